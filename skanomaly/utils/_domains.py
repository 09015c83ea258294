"""Which rows are of the source, and which of the target."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d

__all__ = ["checked_domains", "share_apart"]


def checked_domains(sample_domain: ArrayLike, name: str = "sample_domain") -> NDArray:
    """Return the domains of rows as an array.

    Parameters
    ----------
    sample_domain : array-like of shape (n,) or (n, 1)
        One number per row: above 0 for the source, below 0 for the target.
    name : str, default="sample_domain"
        What to call them in an error.

    Returns
    -------
    ndarray of shape (n,)
        The numbers.

    Raises
    ------
    ValueError
        If there is anything else among them: a zero, a NaN, a string.
    """
    shape = np.shape(sample_domain)
    if len(shape) != 1 and shape[1:] != (1,):
        raise ValueError(
            f"{name} has to be one number for each row, got shape {shape}."
        )
    domains = column_or_1d(sample_domain)
    if domains.dtype.kind == "O":
        domains = np.asarray(domains.tolist())
    # NaN is neither above nor below.
    if domains.dtype.kind not in "iuf" or not ((domains > 0) | (domains < 0)).all():
        raise ValueError(
            f"{name} has to be a number for each row, above 0 for source rows "
            "and below 0 for target rows. Marks that are 1 or True at the target rows, "
            "0 elsewhere, become that by np.where(is_target, -1, 1)."
        )
    return domains


def share_apart(X: NDArray, others: NDArray, factor: float) -> float:
    """Return the share of columns that hardly are of one unit in two tables.

    Parameters
    ----------
    X, others : ndarray of shape (n, d) and (m, d)
        Rows.
    factor : float
        How much wider a column may be in one than in the other, and how far their
        middles may be apart, in widths of the wider one.

    Returns
    -------
    float
        Share in [0, 1]; columns that are constant in one of the tables are left out.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        sides = (_figures(rows.astype(np.float64)) for rows in (X, others))
        (middle, *widths), (other_middle, *other_widths) = sides
        least, most = np.minimum(widths, other_widths), np.maximum(widths, other_widths)
        # Anomalies widen a column by one measure, and many zeros by the other one.
        wider = ((most > factor * least) | (most == 0)).all(0)
        far = np.abs(middle - other_middle) > factor * most.max(0)
    known = least.max(0) > 0
    return float((known & (wider | far)).sum() / max(known.sum(), 1))


def _figures(rows):
    """Return median, standard deviation and interquartile range of each column."""
    low, middle, high = np.percentile(rows, [25, 50, 75], axis=0)
    deviation, quartiles = rows.std(0), high - low
    for width in (deviation, quartiles):
        width[width <= 1e-12 * np.abs(middle)] = 0  # that is rounding
    return middle, deviation, quartiles
