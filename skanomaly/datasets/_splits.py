"""Steps that the protocols share: checks, draws, samples that move."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils import check_consistent_length

from ..utils._bytes import holds_bytes
from ..utils._labels import complete_column
from ..utils._random import own_random_state
from ._types import ClassLabels, Kinds, Labels, RandomState

Mask = NDArray[np.bool_]


def sign_of(
    classes: list[Any], inside: int, outside: int, corpus: list[Any], kinds: Kinds
) -> Labels:
    """Return a sign for samples of the classes, another for others, 0 for a corpus."""
    sign = np.where(np.isin(kinds, classes), inside, outside).astype(np.int64)
    sign[np.isin(kinds, corpus)] = 0
    return sign


def corpus_classes(
    corpus_class: ClassLabels | None, kinds: Kinds, name: str, classes: list[Any]
) -> list[Any]:
    """Return the classes of the corpus as a list, without any of the other classes."""
    if corpus_class is None:
        return []
    corpus = classes_of("corpus_class", corpus_class, kinds)
    if both := [kind for kind in corpus if kind in classes]:
        raise ValueError(
            f"corpus_class and {name} both have {both}: a class of the corpus is "
            "neither normal nor anomalous."
        )
    return corpus


def given_kinds(
    X: Any, y: ArrayLike, X_test: Any, y_test: ArrayLike | None
) -> tuple[Kinds, Kinds | None]:
    """Return the labels of the samples, and those of the official test set or None."""
    kinds = kinds_of("y", X, y)
    if (X_test is None) != (y_test is None):
        raise ValueError("X_test and y_test must be given together.")
    if X_test is not None:
        check_alike("X", X, "X_test", X_test)
    return kinds, None if y_test is None else kinds_of("y_test", X_test, y_test)


def split_by_sign(
    X: Any,
    kinds: Kinds,
    X_test: Any,
    kinds_test: Kinds | None,
    sign: Callable[[Kinds], Labels],
    drawn: tuple[float, RandomState],
    return_kinds: bool,
    has_corpus: bool,
) -> tuple[Any, ...]:
    """Split into normal samples for training, a test set and a corpus, by signs."""
    signs = sign(kinds)
    if kinds_test is None:
        train = _drawn_for_training(kinds, signs == 1, *drawn)
        tested = ~train & (signs != 0)
        X_test, kinds_test = take(X, tested), kinds[tested]
    else:
        train, tested = signs == 1, sign(kinds_test) != 0
        if not (sign(kinds_test) == 1).any():
            raise ValueError("y_test has no normal sample: check its type and classes.")
        if not tested.all():
            X_test, kinds_test = take(X_test, tested), kinds_test[tested]

    y_train, y_test = signs[train], sign(kinds_test)
    if not len(y_train):
        raise ValueError("No normal sample is left to train on: take fewer away.")
    if not (y_test == -1).any():
        raise ValueError("No sample is anomalous: take fewer classes as normal.")
    split = [take(X, train), X_test, y_train, y_test]
    split += [kinds[train], kinds_test] if return_kinds else []
    if has_corpus:
        split += [take(X, signs == 0), *([kinds[signs == 0]] if return_kinds else [])]
    return tuple(split)


def _drawn_for_training(
    kinds: Kinds, is_normal: Mask, test_size: float, random_state: RandomState
) -> Mask:
    """Mask the normal samples, less a fraction `test_size` of each of their kinds."""
    _check_fraction("test_size", test_size)
    rng = own_random_state(random_state)
    train = is_normal.copy()
    for kind in np.unique(kinds[is_normal]):
        index = rng.permutation(np.flatnonzero(kinds == kind))
        train[index[: round(test_size * len(index))]] = False
    return train


def move(
    split: Sequence[Any], eligible: Mask, n_wanted: int, random_state: RandomState
) -> tuple[Any, ...]:
    """Append `n_wanted` eligible samples of each test array to its training array."""
    index = np.flatnonzero(eligible)
    if n_wanted > len(index):
        raise ValueError(
            f"{n_wanted} anomalies are needed, but there are {len(index)} to draw "
            "from: lower the fraction, take more kinds or fewer training samples, or "
            "pass a larger pool instead of the test set."
        )
    rng = own_random_state(random_state)
    moved = np.zeros(len(eligible), dtype=bool)
    moved[rng.choice(index, n_wanted, replace=False)] = True
    arrays = []
    for train, test in zip(split[::2], split[1::2], strict=True):
        arrays += [append(train, take(test, moved)), take(test, ~moved)]
    return tuple(arrays)


def thinned(sign: Labels, share: float | None, rng: np.random.RandomState) -> Mask:
    """Mask the normal samples, and as many anomalies as make up the given share."""
    tested: Mask = sign == 1
    if not tested.any():
        raise ValueError("No normal sample is left to test on: raise test_size.")
    index = np.flatnonzero(~tested)
    if share is None:
        n_tested = len(index)
    else:
        n_tested = n_moved("test_contamination", share, int(tested.sum()))
    if not n_tested:
        raise ValueError(
            "The test set would have no anomaly: give a test_contamination above 0, or "
            "None to test on all remaining anomalies."
        )
    if n_tested > len(index):
        raise ValueError(
            f"{n_tested} anomalies are needed to test on, but {len(index)} are left: "
            "lower test_contamination, or give None to test on all of them."
        )
    tested[rng.choice(index, n_tested, replace=False)] = True
    return tested


def check_alike(name: str, X: Any, other_name: str, other: Any) -> None:
    """Check that samples of two data sets can be stacked and mean the same."""
    shapes = np.shape(X)[1:], np.shape(other)[1:]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Samples of {name} have the shape {shapes[0]}, those of {other_name} the "
            f"shape {shapes[1]}: they need one shape; resize images."
        )
    check_columns(name, X, other_name, other)
    # Bytes go up to 255, floats mostly up to 1: together they would be neither.
    if (of_bytes := holds_bytes(X)) != holds_bytes(other):
        names = (name, other_name) if of_bytes else (other_name, name)
        raise ValueError(
            "{} holds bytes (uint8), and {} does not: convert both to one type and one "
            "range of values.".format(*names)
        )


def check_columns(name: str, X: Any, other_name: str, other: Any) -> None:
    """Check that two DataFrames have the same columns: pandas would stack any two."""
    if list(getattr(X, "columns", ())) != list(getattr(other, "columns", ())):
        raise ValueError(f"{name} and {other_name} must have the same columns.")


def n_moved(name: str, fraction: float, n: int) -> int:
    """Count the samples that make up a fraction of themselves and n others."""
    _check_fraction(name, fraction)
    n_samples = round(n * fraction / (1 - fraction))
    if fraction > 0 and n_samples == 0:
        raise ValueError(
            f"{name}={fraction} of {n} samples is less than one sample: give 0, or "
            f"more than {1 / (2 * n + 1):.2g}."
        )
    return n_samples


def _check_fraction(name: str, fraction: float) -> None:
    if not isinstance(fraction, Real) or not 0 <= float(fraction) < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {fraction!r}.")


def checked_split(
    X_train: Any,
    X_test: Any,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: ArrayLike | None,
    kinds_test: ArrayLike | None,
) -> tuple[Any, ...]:
    """Return a valid split of four arrays, or six if the kinds are given."""
    check_columns("X_train", X_train, "X_test", X_test)
    signs = kinds_of("y_train", X_train, y_train), kinds_of("y_test", X_test, y_test)
    if not all(np.isin(sign, (1, -1)).all() for sign in signs):
        raise ValueError(
            "y_train and y_test must be +1 for normal samples and -1 for anomalies; "
            "convert labels with 1 = anomaly by np.where(y == 1, -1, 1)."
        )
    split = X_train, X_test, *(sign.astype(np.int64) for sign in signs)
    if kinds_train is None and kinds_test is None:
        return split
    if kinds_train is None or kinds_test is None:
        raise ValueError("kinds_train and kinds_test must be given together.")
    kinds_train = kinds_of("kinds_train", X_train, kinds_train)
    return (*split, kinds_train, kinds_of("kinds_test", X_test, kinds_test))


def kinds_of(name: str, X: Any, y: ArrayLike) -> Kinds:
    """Return y as an array of one label per sample of X."""
    kinds: Kinds = complete_column(y, name)
    check_consistent_length(X, kinds)
    return kinds


def classes_of(name: str, wanted: Any, *labels: ArrayLike | None) -> list[Any]:
    """Return the wanted classes as a list, each of which is among the labels."""
    if isinstance(wanted, Set):
        wanted = list(wanted)
    names: list[Any] = np.atleast_1d(wanted).tolist()
    present = {kind for y in labels if y is not None for kind in np.unique(y).tolist()}
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise ValueError(
            f"{name} must be among the classes {sorted(present)}, got {names}."
        )
    return names


def take(X: Any, mask: Mask) -> Any:
    """Return the samples of X under the mask."""
    if issparse(X):
        raise TypeError("X is sparse, which no detector takes: give X.toarray().")
    index = np.flatnonzero(mask)
    if hasattr(X, "iloc"):
        return X.iloc[index]
    return (X if _is_table(X) else np.asarray(X))[index]


def _is_table(X: Any) -> bool:
    """Return whether X is a DataFrame, of pandas or of polars."""
    return hasattr(X, "iloc") or hasattr(X, "vstack")


def append(X: Any, samples: Any) -> Any:
    """Append samples of the type of X."""
    if not _is_table(X):
        return np.concatenate([X, samples])
    if hasattr(X, "vstack"):
        return X.vstack(samples)
    import pandas as pd

    return pd.concat([X, samples])
