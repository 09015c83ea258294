"""Loaders of image sets, from local files of one format or from OpenML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from inspect import getdoc
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml, get_data_home

from ..utils._docstring import fill_in
from ._store import describe_loader, find, keep, not_found, read
from ._types import (
    DataHome,
    ImageBunch,
    Images,
    Labels,
    Loader,
    Subset,
    TinyImageNetBunch,
)


@dataclass(frozen=True)
class _ImageSet:
    """Facts on a set that are not in its file."""

    files: tuple[str, ...]  # the first name is also that of the cached file
    shape: tuple[int, int, int]  # (channels, height, width)
    classes: tuple[str, ...]
    openml: tuple[str, int] | None  # name and version
    advice: str = ""  # on the file to store, if OpenML does not have the set
    test_counts: tuple[int, ...] = (1000,) * 10  # images per class, official split
    values: tuple[int, int] = (0, 255)  # lowest and highest value at OpenML
    first_label: int = 0  # at OpenML


_DIGITS = tuple("0123456789")

_MNIST = _ImageSet(
    files=("mnist.npz",),
    shape=(1, 28, 28),
    classes=_DIGITS,
    openml=("mnist_784", 1),
    test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
)
_FASHION_MNIST = _ImageSet(
    files=("fashion_mnist.npz",),
    shape=(1, 28, 28),
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    openml=("Fashion-MNIST", 1),
)
_KMNIST = _ImageSet(
    files=("kmnist.npz", "kmnist_test.npz"),
    shape=(1, 28, 28),
    classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    openml=("Kuzushiji-MNIST", 1),
)
_USPS = _ImageSet(
    files=("usps.npz",),
    shape=(1, 16, 16),
    classes=_DIGITS,
    openml=("USPS", 2),
    test_counts=(359, 264, 198, 166, 200, 160, 170, 147, 166, 177),
    values=(-1, 1),
    first_label=1,
)
_CIFAR10 = _ImageSet(
    files=("cifar10.npz",),
    shape=(3, 32, 32),
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    openml=("CIFAR_10", 1),
)
_EMNIST_LETTERS = _ImageSet(
    files=("emnist_letters.npz",),
    shape=(1, 28, 28),
    classes=tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    openml=None,
    advice=(
        "Store images of the Letters part of "
        "https://www.nist.gov/itl/products-and-services/emnist-dataset under that "
        "name, upright, since rows and columns are exchanged there: X uint8 of shape "
        "(n_samples, 28, 28), y the letter, from 0 for A to 25 for Z."
    ),
)
_TINY_IMAGENET = "tiny_imagenet_32.npz"


_OPENML_HOME = """\
data_home : str or path-like, default=None
    Folder to look in first; the folder that the environment variable
    `SKANOMALY_DATA` names comes next. With None, the folder of
    :func:`sklearn.datasets.get_data_home` comes last. A set that is fetched
    from OpenML is stored in `data_home`."""
_OPENML_DOWNLOAD = """\
download_if_missing : bool, default=True
    Whether to fetch the set from OpenML if there is no file of it. If False, a
    missing file is an OSError."""
_OPENML_RETURNS = """\
Bunch or tuple of (data, target)
    `data`, uint8 of shape (n_samples, {shape}), values 0 to 255; `target`,
    int64 of shape (n_samples,), classes 0 to 9; `target_names`; `DESCR`; and
    `filename`, the file that was read."""
_OPENML_ERRORS = """\
ValueError
    If `subset` is unknown, or the file holds images of another kind.
TypeError
    If `data_home` is not a path.
FileNotFoundError
    If there is no local file, and `download_if_missing` is False or OpenML cannot
    be reached. This is an OSError.
OSError
    If the local file cannot be read, or lacks arrays of the subset."""
_OPENML_EXAMPLE = """\
>>> from skanomaly.datasets import {name}
>>> X, y = {name}(subset="test", return_X_y=True)  # doctest: +SKIP
>>> X.shape  # doctest: +SKIP
({n_test}, {shape})"""
#: The sections that loaders of sets from OpenML have in common.
_LOADING = """\
Parameters
----------
%(subset)s
%(data_home)s
%(download_if_missing)s
%(return_X_y)s

Returns
-------
%(returns)s

Raises
------
%(raises)s

Examples
--------
%(example)s"""


def _from_openml(
    known: _ImageSet,
) -> Callable[[Callable[..., Any]], Loader[ImageBunch]]:
    """Return a decorator that fills in ``%(loading)s`` in a docstring."""

    def described(loader: Callable[..., Any]) -> Loader[ImageBunch]:
        values = {
            "name": loader.__name__,
            "shape": ", ".join(map(str, known.shape)),
            "n_test": sum(known.test_counts),
        }
        fill_in(loading=_LOADING)(loader)
        fill_in(
            data_home=_OPENML_HOME,
            download_if_missing=_OPENML_DOWNLOAD,
            returns=_OPENML_RETURNS.format(**values),
            raises=_OPENML_ERRORS,
            example=_OPENML_EXAMPLE.format(**values),
        )(loader)
        return cast(Loader[ImageBunch], describe_loader(loader))

    return described


def _local(loader: Callable[..., Any]) -> Loader[ImageBunch]:
    """Fill in the docstring of a loader that nothing is downloaded for."""
    return cast(Loader[ImageBunch], describe_loader(loader))


@_from_openml(_MNIST)
def fetch_mnist(
    *,
    subset: Subset = "train",
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> ImageBunch | tuple[Images, Labels]:
    """Load MNIST, 28 x 28 handwritten digits in ten classes.

    There are 60,000 training and 10,000 test images, from ``mnist.npz`` or from
    OpenML ("mnist_784", version 1).

    Rights: held by Yann LeCun and Corinna Cortes; commonly given as CC BY-SA 3.0.

    %(loading)s
    """
    places = data_home, download_if_missing
    return _load(_MNIST, fetch_mnist, subset, places, return_X_y)


@_from_openml(_FASHION_MNIST)
def fetch_fashion_mnist(
    *,
    subset: Subset = "train",
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> ImageBunch | tuple[Images, Labels]:
    """Load Fashion-MNIST, 28 x 28 articles of clothing in ten classes.

    There are 60,000 training and 10,000 test images, from ``fashion_mnist.npz`` or
    from OpenML ("Fashion-MNIST", version 1).

    Rights: MIT licence, Zalando SE (zalandoresearch/fashion-mnist).

    %(loading)s
    """
    places = data_home, download_if_missing
    return _load(_FASHION_MNIST, fetch_fashion_mnist, subset, places, return_X_y)


@_from_openml(_KMNIST)
def fetch_kmnist(
    *,
    subset: Subset = "train",
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> ImageBunch | tuple[Images, Labels]:
    """Load Kuzushiji-MNIST, 28 x 28 cursive Japanese characters in ten classes.

    There are 60,000 training and 10,000 test images, from ``kmnist.npz`` or from
    OpenML ("Kuzushiji-MNIST", version 1). A file ``kmnist_test.npz``, with the test
    part alone, serves ``subset="test"``.

    Rights: CC BY-SA 4.0, ROIS-DS Center for Open Data in the Humanities
    (rois-codh/kmnist): name the source and share alike.

    %(loading)s
    """
    places = data_home, download_if_missing
    return _load(_KMNIST, fetch_kmnist, subset, places, return_X_y)


@_from_openml(_USPS)
def fetch_usps(
    *,
    subset: Subset = "train",
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> ImageBunch | tuple[Images, Labels]:
    """Load USPS, 16 x 16 handwritten digits in ten classes.

    There are 7,291 training and 2,007 test images, from ``usps.npz`` or from OpenML
    ("USPS", version 2), whose grey values from -1 to 1 are rounded to 0 to 255 and
    whose labels from 1 to 10 are shifted to 0 to 9.

    Rights: no licence is stated; keep the data for evaluation.

    %(loading)s
    """
    places = data_home, download_if_missing
    return _load(_USPS, fetch_usps, subset, places, return_X_y)


@_from_openml(_CIFAR10)
def fetch_cifar10(
    *,
    subset: Subset = "train",
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> ImageBunch | tuple[Images, Labels]:
    """Load CIFAR-10, 32 x 32 colour photographs in ten classes.

    There are 50,000 training and 10,000 test images in RGB order, from OpenML
    ("CIFAR_10", version 1), unless a file ``cifar10.npz`` is there. Such a file is
    used as it is, so that it may hold fewer or JPEG-compressed images.

    Rights: no licence is stated; keep the data for evaluation.

    %(loading)s
    """
    places = data_home, download_if_missing
    return _load(_CIFAR10, fetch_cifar10, subset, places, return_X_y)


@_local
def fetch_emnist_letters(
    *,
    subset: Subset = "train",
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> ImageBunch | tuple[Images, Labels]:
    """Load EMNIST Letters, 28 x 28 handwritten letters in 26 classes.

    Upper and lower case of a letter are one class. The letters were prepared like the
    digits of MNIST, and have no class in common with them: they can serve as known
    anomalies for digits. The two sources are still not the same. A simple classifier of
    spectrum and noise tells them apart (`corpus_auroc_` of :class:`~skanomaly.ADRA`),
    so that letters may be a worse corpus than other digits. They are read from
    ``emnist_letters.npz``, which nothing downloads: the error for a missing file names
    the source of the images and the arrays to store. The file is used as it is, so that
    it may hold a part of the set.

    Rights: no licence is stated; keep the data for evaluation, and cite Cohen et al.,
    "EMNIST: extending MNIST to handwritten letters", IJCNN 2017.

    Parameters
    ----------
    %(subset)s
    %(data_home)s
    %(download_if_missing)s
    %(return_X_y)s

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n_samples, 1, 28, 28), values 0 to 255; `target`, int64
        of shape (n_samples,), classes 0 for A to 25 for Z; `target_names`; `DESCR`; and
        `filename`, the file that was read.

    Raises
    ------
    ValueError
        If `subset` is unknown, or the file holds images of another kind.
    %(errors)s

    See Also
    --------
    fetch_mnist : Digits, prepared in the same way.
    fetch_tiny_imagenet : Photographs, as known anomalies for photographs.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_emnist_letters
    >>> letters = fetch_emnist_letters(subset="test")  # doctest: +SKIP
    >>> letters.target_names[letters.target[0]]  # doctest: +SKIP
    'A'
    """
    places = data_home, download_if_missing
    return _load(_EMNIST_LETTERS, fetch_emnist_letters, subset, places, return_X_y)


@overload
def fetch_tiny_imagenet(
    *,
    without: Sequence[str] = ...,
    data_home: DataHome = ...,
    download_if_missing: bool = ...,
    return_X_y: Literal[False] = ...,
) -> TinyImageNetBunch: ...
@overload
def fetch_tiny_imagenet(
    *,
    without: Sequence[str] = ...,
    data_home: DataHome = ...,
    download_if_missing: bool = ...,
    return_X_y: Literal[True],
) -> tuple[Images, Labels]: ...
@overload
def fetch_tiny_imagenet(
    *,
    without: Sequence[str] = ...,
    data_home: DataHome = ...,
    download_if_missing: bool = ...,
    return_X_y: bool,
) -> TinyImageNetBunch | tuple[Images, Labels]: ...
@describe_loader
def fetch_tiny_imagenet(
    *,
    without: Sequence[str] = (),
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
) -> TinyImageNetBunch | tuple[Images, Labels]:
    """Load Tiny ImageNet at 32 x 32 pixels, colour photographs in 200 classes.

    Photographs of many kinds can serve as known anomalies for photographs of one kind.
    Leave out the classes that are to be normal, and those that are to be detected. The
    images, in RGB order, are read from ``tiny_imagenet_32.npz``, which nothing
    downloads: the error for a missing file names the source of the images and the
    arrays to store. The file is used as it is, so that it may hold a part of the set.

    Rights: no licence is stated, and the images of ImageNet are for non-commercial
    research; keep the data for evaluation.

    Parameters
    ----------
    without : sequence of str, default=()
        Classes to leave out, each by its WordNet id ("n02123045") or by any of its
        names ("tabby", "tabby cat"). A name that several classes have leaves out all of
        them: "wagon" is an estate car and a police van.
    %(data_home)s
    %(download_if_missing)s
    %(return_X_y)s

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n_samples, 3, 32, 32), values 0 to 255; `target`, int64
        of shape (n_samples,), the remaining classes, numbered from 0; `target_names`,
        the first name of each; `class_ids`, their WordNet ids; `DESCR`; and `filename`,
        the file that was read.

    Raises
    ------
    ValueError
        If `without` has an unknown class, or leaves none, or the file holds images or
        labels of another kind.
    %(errors)s

    See Also
    --------
    fetch_cifar10 : Photographs of the same size.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_tiny_imagenet
    >>> cats = ["tabby", "Persian cat", "Egyptian cat"]
    >>> photos = fetch_tiny_imagenet(without=cats)  # doctest: +SKIP
    >>> photos.data.shape, photos.target_names[:2]  # doctest: +SKIP
    ((9850, 3, 32, 32), ['goldfish', 'European fire salamander'])
    """
    members = ("X", "y", "class_ids", "class_names")
    path = find((_TINY_IMAGENET,), members, data_home)
    if path is None:
        advice = (
            "Resize images of http://cs231n.stanford.edu/tiny-imagenet-200.zip to 32 x "
            "32 pixels, and store them under that name: X uint8 of shape (n_samples, "
            "32, 32, 3), y the numbers of their classes, class_ids the WordNet ids of "
            "these, and class_names their names, those of a class with a comma between "
            "them."
        )
        raise not_found((_TINY_IMAGENET,), members, data_home, advice)
    arrays = read(path, members)
    X, y = _images_and_labels(path, (3, 32, 32), [arrays["X"]], [arrays["y"]])
    ids = arrays["class_ids"].tolist()
    names = [name.split(", ") for name in arrays["class_names"].tolist()]
    if len(ids) != len(names) or not np.isin(y, np.arange(len(ids))).all():
        raise ValueError(
            f"{path} must hold a WordNet id and a name for each class, and labels that "
            f"count them from 0, got {len(ids)} ids, {len(names)} names and the labels "
            f"{y.min()} to {y.max()}."
        )

    kept = _remaining(without, [[ids[k], *names[k]] for k in range(len(ids))])
    chosen = kept[y]
    X, y = X[chosen], (np.cumsum(kept) - 1)[y[chosen]]
    if return_X_y:
        return X, y
    return TinyImageNetBunch(
        data=X,
        target=y,
        target_names=[names[k][0] for k in np.flatnonzero(kept)],
        class_ids=[ids[k] for k in np.flatnonzero(kept)],
        DESCR=(getdoc(fetch_tiny_imagenet) or "").partition("\n\nParameters")[0],
        filename=str(path),
    )


def _remaining(without: Sequence[str], classes: list[list[str]]) -> NDArray[np.bool_]:
    """Return a mask of the classes, each a list of its names, not in `without`.

    Unknown names are an error.
    """
    gone = {without} if isinstance(without, str) else {str(name) for name in without}
    known = {name for names in classes for name in names}
    unknown = sorted(gone - known)
    if unknown:
        close = get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"without has {unknown[0]!r}, which is neither the WordNet id nor a name "
            f"of one of the {len(classes)} classes.{hint}"
        )
    kept = np.array([gone.isdisjoint(names) for names in classes])
    if not kept.any():
        raise ValueError("without leaves no class.")
    return kept


def _load(
    known: _ImageSet,
    loader: Callable[..., Any],  # its docstring describes the set
    subset: str,
    places: tuple[DataHome, bool],  # the folder, and whether a missing set is fetched
    return_X_y: bool,
) -> ImageBunch | tuple[Images, Labels]:
    if subset not in ("train", "test", "all"):
        raise ValueError(f'subset must be "train", "test" or "all", got {subset!r}.')
    parts = ("train", "test") if subset == "all" else (subset,)
    members = [f"{kind}_{part}" for part in parts for kind in "Xy"]
    path = find(known.files, members, places[0]) or _download(known, members, *places)
    arrays = read(path, members)

    images = [arrays[f"X_{part}"] for part in parts]
    labels = [arrays[f"y_{part}"] for part in parts]
    X, y = _images_and_labels(path, known.shape, images, labels)
    if return_X_y:
        return X, y
    return ImageBunch(
        data=X,
        target=y,
        target_names=list(known.classes),
        DESCR=(getdoc(loader) or "").partition("\n\nParameters")[0],
        filename=str(path),
    )


def _images_and_labels(
    path: Path,
    shape: tuple[int, int, int],
    images: list[NDArray[Any]],
    labels: list[NDArray[Any]],
) -> tuple[Images, Labels]:
    """Join the parts of a file, and refuse images of another kind."""
    X = np.concatenate([_channels_first(part) for part in images])
    y = np.concatenate(labels).astype(np.int64)
    if X.dtype != np.uint8 or X.shape[1:] != shape or len(X) != len(y):
        raise ValueError(
            f"{path} must hold uint8 images (channels, height, width) = {shape} with "
            f"one label each, got {X.dtype} of shape {X.shape} with {len(y)} labels."
        )
    return X, y


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """Insert the axis of channels, or move it from the end to its place."""
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
    return np.ascontiguousarray(images)


def _download(
    known: _ImageSet, members: list[str], data_home: DataHome, is_allowed: bool
) -> Path:
    """Fetch the set from OpenML into `data_home`, in the form of the local files."""
    if known.openml is None:
        raise not_found(known.files, members, data_home, known.advice)
    name, version = known.openml
    if not is_allowed:
        advice = (
            f"With download_if_missing=True, {name!r}, version {version}, is fetched "
            "from OpenML."
        )
        raise not_found(known.files, members, data_home, advice)
    path = Path(get_data_home(data_home)) / known.files[0]
    if path.exists():
        raise FileExistsError(
            f"{path} lacks some of the arrays {', '.join(members)}: move it away, so "
            "that the set can be fetched from OpenML and kept under that name."
        )
    try:
        # The .npz file is the cache: OpenML's own text file need not be kept too.
        found = fetch_openml(name, version=version, as_frame=False, cache=False)
    except (OSError, ValueError, HTTPException) as error:
        advice = (
            f"Fetching {name!r}, version {version}, from OpenML failed ({error}): try "
            "again with a network, or put the file into one of these folders."
        )
        raise not_found(known.files, members, data_home, advice) from error
    keep(path, _official_split(known, found.data, found.target))
    return path


def _official_split(
    known: _ImageSet, values: NDArray[Any], labels: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Split the images of OpenML, which begin with the training images."""
    low, high = known.values
    y = np.asarray(labels, dtype=np.float64).astype(np.int64) - known.first_label
    n_train = len(y) - sum(known.test_counts)
    # OpenML tells neither the beginning of the test split nor the range of values.
    in_order = tuple(np.bincount(y[n_train:])) == known.test_counts
    in_range = np.allclose((values.min(), values.max()), known.values, atol=0.01)
    if not (in_order and in_range):
        raise ValueError(
            f"OpenML's set for {known.files[0]} no longer has the order and the values "
            "that it had: put that file into data_home instead."
        )
    X = values.astype(np.float32)
    X -= low
    X *= 255 / (high - low)
    images = np.rint(X).astype(np.uint8).reshape(-1, *known.shape)
    images = images[:, 0] if known.shape[0] == 1 else np.moveaxis(images, 1, -1)
    return {
        "X_train": images[:n_train],
        "y_train": y[:n_train].astype(np.uint8),
        "X_test": images[n_train:],
        "y_test": y[n_train:].astype(np.uint8),
    }
