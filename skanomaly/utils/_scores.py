"""Scores of any detector."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import column_or_1d

__all__ = ["scores_of"]


def scores_of(detector: Any, X: Any) -> NDArray[np.float64]:
    """Return the scores of a detector, higher for more normal samples.

    Parameters
    ----------
    detector : object
        A fitted detector with ``score_samples`` or ``decision_function``.
    X : array-like or data frame of shape (n_samples, ...)
        The samples.

    Returns
    -------
    ndarray of shape (n_samples,)
        Infinite scores are allowed.

    Raises
    ------
    ValueError
        If `detector` has neither method, or a score is NaN.
    """
    for name in ("score_samples", "decision_function"):
        if hasattr(detector, name):
            values = column_or_1d(getattr(detector, name)(X))
            scores: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
            break
    else:
        raise ValueError(
            f"{type(detector).__name__} has neither score_samples nor "
            "decision_function, one of which has to give a score per sample."
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"{np.isnan(scores).sum()} of {len(scores)} scores of "
            f"{type(detector).__name__} are NaN."
        )
    return scores
