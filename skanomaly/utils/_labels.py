"""Labels without missing values."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import column_or_1d

__all__ = ["complete_column"]


def complete_column(y: Any, name: str) -> NDArray[Any]:
    """Return `y` as an array of one dimension, after a check for missing values.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels, numbers or strings.
    name : str
        Name of `y` in the error.

    Returns
    -------
    ndarray of shape (n_samples,)
        Result of ``column_or_1d`` of scikit-learn, which accepts missing values, and
        turns those in a list of strings into strings.

    Raises
    ------
    ValueError
        If `y` is of another shape, or a value is None, NaN or pandas.NA.
    """
    column: NDArray[Any] = column_or_1d(y)
    # NA of pandas has no truth value to compare by, and exists once it is imported.
    na = getattr(sys.modules.get("pandas"), "NA", None)
    values = np.asarray(y, dtype=object).ravel().tolist()
    if any(value is None or value is na or value != value for value in values):
        raise ValueError(f"{name} has missing values (None, NaN or NA).")
    return column
