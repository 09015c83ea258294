"""Which rows are of the source, and which of the target."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import column_or_1d

__all__ = ["checked_domains"]


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
