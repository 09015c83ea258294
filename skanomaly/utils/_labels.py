"""Labels that are all there."""

from __future__ import annotations

import sys

import numpy as np
from sklearn.utils import column_or_1d

__all__ = ["complete_column"]


def complete_column(y, name):
    """Return `y` as an array of one dimension, and refuse missing values in it.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels, numbers or strings.
    name : str
        What to call them in the error.

    Returns
    -------
    ndarray of shape (n,)
        What ``column_or_1d`` of scikit-learn returns, which lets missing values pass,
        and makes strings of those that stand among strings in a list.

    Raises
    ------
    ValueError
        If `y` is of another shape, or a value is None, NaN or pandas.NA.
    """
    column = column_or_1d(y)
    # Where pandas is not imported, there is no NA; comparing it is an error.
    na = getattr(sys.modules.get("pandas"), "NA", None)
    values = np.asarray(y, dtype=object).ravel().tolist()
    if any(value is None or value is na or value != value for value in values):
        raise ValueError(f"{name} has missing values (None, NaN or NA).")
    return column
