"""Samples as arrays of numbers, and arrays in parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import gen_batches

__all__ = ["as_numbers", "parts_of", "slices_of"]

#: Numbers in a part of an array.
_AT_ONCE = 2**24

#: Advice on columns without numbers.
_WAYS_OUT = "encode text and categories as numbers, or leave such columns out"
_NO_NUMBERS = {"V": "named fields", "M": "dates", "m": "spans of time"}


def as_numbers(X: Any, name: str = "X") -> Any:
    """Convert samples to a container that scikit-learn's checks take.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        An array, a tensor, a DataFrame of any library, or lists.
    name : str, default="X"
        Name of `X` in errors.

    Returns
    -------
    ndarray, DataFrame or sparse matrix
        The samples; numbers are not copied. DataFrames stay, for the names of their
        columns.

    Raises
    ------
    TypeError, ValueError
        If `X` does not consist of samples, if these have different lengths, or if they
        hold anything other than numbers and the text of numbers.
    """
    if isinstance(X, torch.Tensor):
        return _of_tensor(X, name)
    if not hasattr(X, "shape"):
        X = _of_rows(X, name)
    if hasattr(X, "columns"):
        return _checked_columns(X, name)
    kind = getattr(X.dtype, "kind", None)
    if kind == "c":  # the words that scikit-learn's common tests look for
        raise ValueError(f"Complex data not supported: {name} is of dtype {X.dtype}.")
    if kind in _NO_NUMBERS:
        raise TypeError(f"{name} holds {_NO_NUMBERS[kind]}, and has to hold numbers.")
    if np.ma.is_masked(X):
        raise ValueError(
            f"{name} is a masked array with hidden numbers: replace them by "
            f"{name}.filled(value)."
        )
    if kind is not None and kind in "OUS":
        return _converted(X, name)
    if kind == "f" and X.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # infinities are errors of later checks
            return X.astype(np.float64)
    return X


def _of_tensor(X, name):
    if X.is_meta or X.layout != torch.strided:
        defect = "without data" if X.is_meta else "that is sparse"
        raise TypeError(f"{name} is a tensor {defect}: give a dense tensor with data.")
    if X.dtype == torch.bfloat16:  # which NumPy does not know
        X = X.float()
    return X.numpy(force=True)


def _of_rows(X: Any, name: str) -> np.ndarray:
    """Convert lists and other sequences to an array."""
    if hasattr(X, "collect"):
        raise TypeError(f"{name} is a {type(X).__name__}: give {name}.collect().")
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"{name} has samples of different lengths: {error}") from error
    if array.ndim == 0 and array.dtype.kind in "OUS":
        raise TypeError(
            f"{name} is {_described(X)}, and has to be an array, a DataFrame or a list "
            "of lists of numbers."
        )
    return array


def _described(X):
    return "None" if X is None else f"of type {type(X).__name__}"


def _converted(X, name):
    """Convert objects or text to numbers."""
    try:
        return np.asarray(X).astype(np.float64)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} has to hold numbers: {error}. If it is text, {_WAYS_OUT}."
        ) from error
    except TypeError as error:
        raise TypeError(f"{name} has to hold numbers: {error}.") from error


def _checked_columns(X, name):
    """Raise an error that names a column without numbers, or a repeated name."""
    for column, n in Counter(X.columns).most_common(1):
        if n > 1:
            raise ValueError(f"{name} has {n} columns of the name {column!r}.")
    for column, dtype in zip(X.columns, X.dtypes, strict=True):
        described = str(dtype).lower()
        if described.startswith(("int", "uint", "float", "bool")):
            continue
        try:
            if any(word in described for word in ("date", "time", "dura")):
                raise TypeError("times are no numbers")
            np.asarray(X[column], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{name} has a column {column!r} of {described}: {error}. Columns have "
                f"to hold numbers: {_WAYS_OUT}."
            ) from error
    return X


def slices_of(X: NDArray) -> Iterator[slice]:
    """Yield slices that divide an array into parts of few samples.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...)
        It may be larger than the memory.
    """
    n_rows = max(_AT_ONCE // max(X[:1].size, 1), 1)
    return gen_batches(len(X), n_rows)


def parts_of(X: NDArray, chosen: NDArray[np.bool_]) -> Iterator[NDArray]:
    """Yield the chosen samples in parts of few samples.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...)
        It may be larger than the memory.
    chosen : ndarray of shape (n_samples,), bool
        Samples to yield.
    """
    for part in slices_of(X):
        if chosen[part].any():
            rows = X[part]
            yield rows if chosen[part].all() else rows[chosen[part]]
