"""The domains of samples, and columns whose units differ between domains."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d

__all__ = ["checked_domains", "share_of_other_units"]


def checked_domains(
    sample_domain: ArrayLike, name: str = "sample_domain"
) -> NDArray[Any]:
    """Return the domains of samples as an array.

    Parameters
    ----------
    sample_domain : array-like of shape (n_samples,) or (n_samples, 1)
        One number per sample: above 0 for the source, below 0 for the target.
    name : str, default="sample_domain"
        Name of the domains in an error.

    Returns
    -------
    ndarray of shape (n_samples,)
        The numbers.

    Raises
    ------
    ValueError
        If a value is zero, NaN or not a number.
    """
    shape = np.shape(sample_domain)
    if len(shape) != 1 and shape[1:] != (1,):
        raise ValueError(
            f"{name} has to be one number for each sample, got shape {shape}."
        )
    domains: NDArray[Any] = column_or_1d(sample_domain)
    if domains.dtype.kind == "O":
        domains = np.asarray(domains.tolist())
    # NaN is neither above nor below.
    if domains.dtype.kind not in "iuf" or not ((domains > 0) | (domains < 0)).all():
        raise ValueError(
            f"{name} has to be a number for each sample: positive for the source, "
            "negative for the target. Convert a mask of target samples by "
            "np.where(is_target, -1, 1)."
        )
    return domains


def share_of_other_units(
    X: NDArray[Any], X_reference: NDArray[Any], factor: float
) -> float:
    """Return the share of columns whose units seem to differ between two tables.

    Parameters
    ----------
    X, X_reference : ndarrays of shape (n_samples, n_features)
        The tables, each with samples of its own.
    factor : float
        Columns differ if one is wider by more than this factor, or if their medians
        are further apart than this number of widths of the wider one.

    Returns
    -------
    float
        Share in [0, 1] of the columns that are constant in neither table.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        median, *widths = _median_and_widths(X.astype(np.float64))
        other_median, *other_widths = _median_and_widths(X_reference.astype(np.float64))
        least, most = np.minimum(widths, other_widths), np.maximum(widths, other_widths)
        # Anomalies widen one measure of width, and many zeros narrow the other.
        wider = ((most > factor * least) | (most == 0)).all(0)
        far = np.abs(median - other_median) > factor * most.max(0)
    varying = least.max(0) > 0
    return float((varying & (wider | far)).sum() / max(varying.sum(), 1))


def _median_and_widths(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return median, standard deviation and interquartile range of each column."""
    low, middle, high = np.percentile(rows, [25, 50, 75], axis=0)
    deviation, quartiles = rows.std(0), high - low
    for width in (deviation, quartiles):
        width[width <= 1e-12 * np.abs(middle)] = 0  # rounding
    return middle, deviation, quartiles
