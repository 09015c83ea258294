"""Random states independent of NumPy's global one."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["own_random_state"]


def own_random_state(
    seed: int | np.random.RandomState | None,
) -> np.random.RandomState:
    """Return a random state that is not NumPy's global one.

    Parameters
    ----------
    seed : int, RandomState instance or None
        None gives a new random state with a seed of the system, where scikit-learn
        would draw from NumPy's global one.
    """
    return np.random.RandomState() if seed is None else check_random_state(seed)
