"""The image sets: five loaders over one local file format and OpenML."""

from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from inspect import getdoc
from pathlib import Path

import numpy as np
from sklearn.datasets import fetch_openml, get_data_home
from sklearn.utils import Bunch

from ._store import DataHome, find, keep, not_found, read


@dataclass(frozen=True)
class _ImageSet:
    """What a loader knows of a set and its file does not say."""

    files: tuple[str, ...]  # the first name is also that of the cached file
    shape: tuple[int, int, int]  # (c, h, w)
    classes: tuple[str, ...]
    openml: tuple[str, int]  # name and version
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


def fetch_mnist(
    *, subset: str = "train", data_home: DataHome = None, return_X_y: bool = False
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load MNIST, 28 x 28 handwritten digits in ten classes.

    There are 60,000 training and 10,000 test images, from ``mnist.npz`` or from
    OpenML ("mnist_784", version 1).

    Rights: held by Yann LeCun and Corinna Cortes; commonly given as CC BY-SA 3.0.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Part of the official split; "all" is the training part, then the test part.
    data_home : str or path-like, default=None
        Folder that is looked through first, then the folder that the environment
        variable `SKANOMALY_DATA` names. With None, the folder of
        :func:`sklearn.datasets.get_data_home` comes last. What is fetched from
        OpenML is kept in `data_home`.
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` alone.

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n, 1, 28, 28), values 0 to 255; `target`, int64 of
        shape (n,), classes 0 to 9; `target_names`; `DESCR`; and `filename`, the file
        that was read.

    Raises
    ------
    ValueError
        If `subset` is unknown, or the file holds images of another kind.
    TypeError
        If `data_home` is not a path.
    FileNotFoundError
        If there is no local file and OpenML cannot be reached.
    OSError
        If the local file cannot be read, or lacks the arrays that are asked for.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_mnist
    >>> X, y = fetch_mnist(subset="test", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (10000, 1, 28, 28)
    """
    return _load(_MNIST, fetch_mnist, subset, data_home, return_X_y)


def fetch_fashion_mnist(
    *, subset: str = "train", data_home: DataHome = None, return_X_y: bool = False
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load Fashion-MNIST, 28 x 28 articles of clothing in ten classes.

    There are 60,000 training and 10,000 test images, from ``fashion_mnist.npz`` or
    from OpenML ("Fashion-MNIST", version 1).

    Rights: MIT licence, Zalando SE (zalandoresearch/fashion-mnist).

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Part of the official split; "all" is the training part, then the test part.
    data_home : str or path-like, default=None
        Folder that is looked through first, then the folder that the environment
        variable `SKANOMALY_DATA` names. With None, the folder of
        :func:`sklearn.datasets.get_data_home` comes last. What is fetched from
        OpenML is kept in `data_home`.
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` alone.

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n, 1, 28, 28), values 0 to 255; `target`, int64 of
        shape (n,), classes 0 to 9; `target_names`; `DESCR`; and `filename`, the file
        that was read.

    Raises
    ------
    ValueError
        If `subset` is unknown, or the file holds images of another kind.
    TypeError
        If `data_home` is not a path.
    FileNotFoundError
        If there is no local file and OpenML cannot be reached.
    OSError
        If the local file cannot be read, or lacks the arrays that are asked for.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_fashion_mnist
    >>> X, y = fetch_fashion_mnist(subset="test", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (10000, 1, 28, 28)
    """
    return _load(_FASHION_MNIST, fetch_fashion_mnist, subset, data_home, return_X_y)


def fetch_kmnist(
    *, subset: str = "train", data_home: DataHome = None, return_X_y: bool = False
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load Kuzushiji-MNIST, 28 x 28 cursive Japanese characters in ten classes.

    There are 60,000 training and 10,000 test images, from ``kmnist.npz`` or from
    OpenML ("Kuzushiji-MNIST", version 1). A file ``kmnist_test.npz``, with the test
    part alone, serves ``subset="test"``.

    Rights: CC BY-SA 4.0, ROIS-DS Center for Open Data in the Humanities
    (rois-codh/kmnist): name the source and share alike.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Part of the official split; "all" is the training part, then the test part.
    data_home : str or path-like, default=None
        Folder that is looked through first, then the folder that the environment
        variable `SKANOMALY_DATA` names. With None, the folder of
        :func:`sklearn.datasets.get_data_home` comes last. What is fetched from
        OpenML is kept in `data_home`.
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` alone.

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n, 1, 28, 28), values 0 to 255; `target`, int64 of
        shape (n,), classes 0 to 9; `target_names`; `DESCR`; and `filename`, the file
        that was read.

    Raises
    ------
    ValueError
        If `subset` is unknown, or the file holds images of another kind.
    TypeError
        If `data_home` is not a path.
    FileNotFoundError
        If there is no local file and OpenML cannot be reached.
    OSError
        If the local file cannot be read, or lacks the arrays that are asked for.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_kmnist
    >>> X, y = fetch_kmnist(subset="test", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (10000, 1, 28, 28)
    """
    return _load(_KMNIST, fetch_kmnist, subset, data_home, return_X_y)


def fetch_usps(
    *, subset: str = "train", data_home: DataHome = None, return_X_y: bool = False
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load USPS, 16 x 16 handwritten digits in ten classes.

    There are 7,291 training and 2,007 test images, from ``usps.npz`` or from OpenML
    ("USPS", version 2), whose grey values from -1 to 1 are rounded to 0 to 255 and
    whose labels from 1 to 10 are shifted to 0 to 9.

    Rights: no licence is stated; keep the data for evaluation.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Part of the official split; "all" is the training part, then the test part.
    data_home : str or path-like, default=None
        Folder that is looked through first, then the folder that the environment
        variable `SKANOMALY_DATA` names. With None, the folder of
        :func:`sklearn.datasets.get_data_home` comes last. What is fetched from
        OpenML is kept in `data_home`.
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` alone.

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n, 1, 16, 16), values 0 to 255; `target`, int64 of
        shape (n,), classes 0 to 9; `target_names`; `DESCR`; and `filename`, the file
        that was read.

    Raises
    ------
    ValueError
        If `subset` is unknown, or the file holds images of another kind.
    TypeError
        If `data_home` is not a path.
    FileNotFoundError
        If there is no local file and OpenML cannot be reached.
    OSError
        If the local file cannot be read, or lacks the arrays that are asked for.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_usps
    >>> X, y = fetch_usps(subset="test", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (2007, 1, 16, 16)
    """
    return _load(_USPS, fetch_usps, subset, data_home, return_X_y)


def fetch_cifar10(
    *, subset: str = "train", data_home: DataHome = None, return_X_y: bool = False
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load CIFAR-10, 32 x 32 colour photographs in ten classes.

    There are 50,000 training and 10,000 test images in RGB order, from OpenML
    ("CIFAR_10", version 1), unless a file ``cifar10.npz`` is there. Such a file is
    used as it is, so that it may hold fewer or JPEG-compressed images.

    Rights: no licence is stated; keep the data for evaluation.

    Parameters
    ----------
    subset : {"train", "test", "all"}, default="train"
        Part of the official split; "all" is the training part, then the test part.
    data_home : str or path-like, default=None
        Folder that is looked through first, then the folder that the environment
        variable `SKANOMALY_DATA` names. With None, the folder of
        :func:`sklearn.datasets.get_data_home` comes last. What is fetched from
        OpenML is kept in `data_home`.
    return_X_y : bool, default=False
        Whether to return ``(data, target)`` alone.

    Returns
    -------
    Bunch or tuple of (data, target)
        `data`, uint8 of shape (n, 3, 32, 32), values 0 to 255; `target`, int64 of
        shape (n,), classes 0 to 9; `target_names`; `DESCR`; and `filename`, the file
        that was read.

    Raises
    ------
    ValueError
        If `subset` is unknown, or the file holds images of another kind.
    TypeError
        If `data_home` is not a path.
    FileNotFoundError
        If there is no local file and OpenML cannot be reached.
    OSError
        If the local file cannot be read, or lacks the arrays that are asked for.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_cifar10
    >>> X, y = fetch_cifar10(subset="test", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (10000, 3, 32, 32)
    """
    return _load(_CIFAR10, fetch_cifar10, subset, data_home, return_X_y)


def _load(
    known: _ImageSet,
    loader: Callable,  # its docstring describes the set
    subset: str,
    data_home: DataHome,
    return_X_y: bool,
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    if subset not in ("train", "test", "all"):
        raise ValueError(f'subset must be "train", "test" or "all", got {subset!r}.')
    parts = ("train", "test") if subset == "all" else (subset,)
    members = [f"{kind}_{part}" for part in parts for kind in "Xy"]
    path = find(known.files, members, data_home) or _download(known, members, data_home)
    arrays = read(path, members)

    X = np.concatenate([_channels_first(arrays[f"X_{part}"]) for part in parts])
    y = np.concatenate([arrays[f"y_{part}"] for part in parts]).astype(np.int64)
    if X.dtype != np.uint8 or X.shape[1:] != known.shape or len(X) != len(y):
        raise ValueError(
            f"{path} must hold uint8 images (c, h, w) = {known.shape} with one label "
            f"each, got {X.dtype} of shape {X.shape} with {len(y)} labels."
        )
    if return_X_y:
        return X, y
    return Bunch(
        data=X,
        target=y,
        target_names=list(known.classes),
        DESCR=(getdoc(loader) or "").partition("\n\nParameters")[0],
        filename=str(path),
    )


def _channels_first(images: np.ndarray) -> np.ndarray:
    """Turn (n, h, w) or (n, h, w, c), as in the files, into (n, c, h, w)."""
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
    return np.ascontiguousarray(images)


def _download(known: _ImageSet, members: list[str], data_home: DataHome) -> Path:
    """Fetch the set from OpenML into `data_home`, in the form of the local files."""
    name, version = known.openml
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
    known: _ImageSet, values: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Cut the rows of OpenML, the training images first, as the local files are."""
    low, high = known.values
    y = np.asarray(labels, dtype=np.float64).astype(np.int64) - known.first_label
    n_train = len(y) - sum(known.test_counts)
    # OpenML says neither where the test split begins nor how values are scaled.
    in_order = tuple(np.bincount(y[n_train:])) == known.test_counts
    in_range = np.allclose((values.min(), values.max()), known.values, atol=0.01)
    if not (in_order and in_range):
        raise ValueError(
            f"OpenML's {known.openml[0]!r} no longer has the order and the values that "
            f"are known of it: put {known.files[0]} into data_home in its place."
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
