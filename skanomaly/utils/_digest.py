"""Digests of values, equal in all processes for equal values."""

from __future__ import annotations

from pickle import PicklingError
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["digest_of"]


def digest_of(value: Any) -> str:
    """Return the digest of a value.

    Parameters
    ----------
    value : object
        Numbers, texts, arrays, also memory maps, tensors, modules, functions, or
        containers of these. Modules are known by their class, their text and their
        weights, functions by their name.

    Returns
    -------
    str of 40 hexadecimal digits

    Raises
    ------
    ValueError
        If a function is a lambda, or was defined in another function.
    """
    try:
        return joblib.hash(_hashable(value), hash_name="sha1", coerce_mmap=True)
    except (PicklingError, AttributeError) as error:
        raise ValueError(
            "With `checkpoint`, a function given as a parameter has to be defined at "
            f"module level, not as a lambda or inside another function: {error}"
        ) from error


def _hashable(value: Any) -> Any:
    """Return a value whose pickle does not depend on places in memory."""
    if isinstance(value, nn.Module):
        states = value.state_dict().items()
        weights = {k: _hashable(state) for k, state in states}
        return type(value).__qualname__, str(value), weights
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        has_numpy = value.dtype != torch.bfloat16
        return (value if has_numpy else value.float()).numpy()
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        return np.asarray(value)  # data frames too
    if isinstance(value, dict):
        return {k: _hashable(part) for k, part in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_hashable, value)]
    return value.item() if isinstance(value, np.generic) else value
