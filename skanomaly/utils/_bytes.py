"""Detection of uint8 arrays, whose pixels have the range 0 to 255."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["holds_bytes"]


def holds_bytes(X: Any) -> bool:
    """Return whether all numbers are of type uint8.

    Parameters
    ----------
    X : array-like
        An array, a tensor, a list of these, or a DataFrame of any library.

    Returns
    -------
    bool
        True if `X` has no other type.
    """
    if not (hasattr(X, "dtype") or hasattr(X, "dtypes")):
        X = np.asarray(X)
    types = [X.dtype] if hasattr(X, "dtype") else list(X.dtypes)
    return bool(types) and all("uint8" in str(t).lower() for t in types)
