"""Random states that are nobody else's."""

from __future__ import annotations

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["own_random_state"]


def own_random_state(seed) -> np.random.RandomState:
    """Return what draws random numbers.

    Parameters
    ----------
    seed : int, RandomState instance or None
        None gives a new generator with a seed of the system. scikit-learn would take
        NumPy's global one, and move it.
    """
    return np.random.RandomState() if seed is None else check_random_state(seed)
