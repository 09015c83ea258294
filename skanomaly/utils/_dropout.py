"""Random factors of dropout."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["dropout_factors"]


def dropout_factors(x: Tensor, shape: tuple[int, ...], share: float) -> Tensor:
    """Draw the factors of a dropout: 0, or 1 / (1 - share).

    Parameters
    ----------
    x : Tensor
        Gives device and dtype.
    shape : tuple of int
        Shape of the factors.
    share : float
        Probability of a 0. One half takes a random bit each, on a CPU, instead of a
        random number, and 3 % of the time.

    Returns
    -------
    Tensor of the given shape
        Drawn by torch's global generator.
    """
    if has_torch_function((x,)):  # a mode may draw the factors of all processes
        return handle_torch_function(dropout_factors, (x,), x, shape, share)
    if share != 0.5 or x.device.type != "cpu":
        return F.dropout(x.new_ones(shape), share)
    n, places = prod(shape), torch.arange(31, dtype=torch.int32)
    words = torch.empty(-(-n // 62), dtype=torch.int64).random_(-(2**63), None)
    # Bit 30 is the whole difference between the numbers 2.0 and 0.0.
    bits = (words.view(torch.int32)[:, None] << places) & 2**30
    return bits.view(torch.float32).flatten()[:n].view(shape).to(x.dtype)
