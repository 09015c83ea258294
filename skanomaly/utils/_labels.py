"""Labels: missing values, known anomalies, advice on conversion."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import column_or_1d

from ._columns import is_missing
from ._warnings import warn

__all__ = [
    "complete_column",
    "conversion",
    "is_missing",
    "known_anomalies",
    "shortened",
]


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
    if is_missing(np.asarray(y, dtype=object).ravel()).any():
        raise ValueError(f"{name} has missing values (None, NaN or NA).")
    return column


def known_anomalies(y: Any, n: int) -> NDArray[np.bool_]:
    """Return the mask of known anomalies, for labels that an estimator reads too.

    Parameters
    ----------
    y : array-like of shape (n,) or None
        Labels; -1 marks a known anomaly.
    n : int
        Number of samples.

    Warns
    -----
    UserWarning
        If the labels seem to follow another convention: they differ, and none is -1.
    """
    if y is None:
        return np.zeros(n, dtype=bool)
    column = complete_column(y, "y")
    known = np.asarray(column == -1)
    if not known.any() and (column != column[:1]).any():
        warn(
            "No sample is taken as a known anomaly: y has to be -1 for these, but has "
            f"the values {shortened(column)}.{conversion(column)}"
        )
    return known


def conversion(y: NDArray) -> str:
    """Return advice on how to convert two labels, the rarer of them anomalous."""
    counts = Counter(y.tolist())
    if len(counts) != 2 or -1 in counts:
        return ""
    if y.dtype.kind == "b":
        return " If True means anomaly, give np.where(y, -1, 1)."
    rarer, other = sorted(counts, key=counts.__getitem__)
    if counts.keys() == {0, 1}:  # if equally rare, 1 is the anomaly by custom
        rarer = 0 if counts[0] < counts[1] else 1
    which = "" if counts[rarer] == counts[other] else ", the rarer value,"
    return (
        f" If {rarer!r}{which} means anomaly, give "
        f"np.where(np.asarray(y) == {rarer!r}, -1, 1)."
    )


def shortened(y: NDArray) -> str:
    """Return the first distinct values of y as text."""
    values = list(dict.fromkeys(map(repr, y.tolist())))
    return ", ".join(values[:4] + ["..."] * (len(values) > 4))
