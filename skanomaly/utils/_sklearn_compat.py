"""Every private import of scikit-learn, in one place, and what it does not check.

When scikit-learn moves one of these, this file changes and no other. The constants
are the constraints that most parameters have.
"""

import sys

import numpy as np
from sklearn.base import _fit_context as fit_context
from sklearn.metrics._scorer import _Scorer as Scorer
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import (
    HasMethods,
    Integral,
    Interval,
    Options,
    Real,
    StrOptions,
)

__all__ = [
    "AUTO",
    "AUTO_COUNT",
    "AUTO_NONNEGATIVE",
    "AUTO_POSITIVE",
    "COUNT",
    "MEMORY",
    "NONNEGATIVE",
    "POSITIVE",
    "Integral",
    "Interval",
    "Options",
    "Real",
    "Scorer",
    "StrOptions",
    "complete_column",
    "fit_context",
]

AUTO = StrOptions({"auto"})
COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")
NONNEGATIVE = Interval(Real, 0, None, closed="left")
MEMORY = [str, HasMethods(["cache"]), None]
AUTO_COUNT = [COUNT, AUTO]
AUTO_POSITIVE = [POSITIVE, AUTO]
AUTO_NONNEGATIVE = [NONNEGATIVE, AUTO]


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
