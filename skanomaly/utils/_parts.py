"""Arrays in parts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

__all__ = ["parts_of", "slices_of"]

#: Numbers in a part of an array.
_AT_ONCE = 2**24


def slices_of(X: NDArray) -> Iterator[slice]:
    """Yield slices that divide an array into parts of few samples.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...)
        It may be larger than the memory.
    """
    n_rows = max(_AT_ONCE // max(X[:1].size, 1), 1)
    return gen_batches(len(X), n_rows)


def parts_of(X: NDArray, chosen: NDArray[np.bool_]) -> Iterator[NDArray]:
    """Yield the chosen samples in parts of few samples.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...)
        It may be larger than the memory.
    chosen : ndarray of shape (n_samples,), bool
        Samples to yield.
    """
    for part in slices_of(X):
        if chosen[part].any():
            rows = X[part]
            yield rows if chosen[part].all() else rows[chosen[part]]
