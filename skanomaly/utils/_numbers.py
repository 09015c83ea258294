"""Samples as arrays of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ._columns import check_columns

__all__ = ["as_numbers"]

#: Kinds of arrays without numbers, and the advice on each.
_NO_NUMBERS = {
    "V": "named fields: pandas.DataFrame({}) has them as columns",
    "M": "dates: {}.astype('datetime64[h]').astype(int) % 24 are hours of the day",
    "m": "spans of time: {} / np.timedelta64(1, 's') are seconds",
}


def as_numbers(X: Any, name: str = "X") -> Any:
    """Convert samples to a container that scikit-learn's checks take.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        An array, a tensor, a DataFrame of any library, a table or record batch of
        Arrow, or lists.
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
    if type(X).__module__.startswith("pyarrow") and hasattr(X, "to_pandas"):
        X = X.to_pandas()  # tables, and batches of a file
    if not hasattr(X, "shape"):
        X = _of_rows(X, name)
    if hasattr(X, "columns"):
        check_columns(X, name)
        return X
    kind = getattr(X.dtype, "kind", None)
    if kind == "c":  # the words that scikit-learn's common tests look for
        raise ValueError(f"Complex data not supported: {name} is of dtype {X.dtype}.")
    if kind in _NO_NUMBERS:
        raise TypeError(
            f"{name} has to hold numbers, and holds {_NO_NUMBERS[kind].format(name)}."
        )
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
    except (TypeError, ValueError, OverflowError) as error:
        if X.ndim == 2:
            check_columns(X, name)
        cls = TypeError if isinstance(error, TypeError) else ValueError
        raise cls(f"{name} has to hold numbers: {error}.") from error
