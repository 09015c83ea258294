"""Products of the samples of an ensemble by a matrix of each member."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["stacked_product"]


def stacked_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the samples of each member of an ensemble by a matrix of its own.

    Parameters
    ----------
    x : Tensor of shape (k, n, i) or (n, i)
        Samples of k members.
    weight : Tensor of shape (k, i, o) or (i, o)
        Matrices.
    bias : Tensor of shape (k, 1, o) or (k, n, o), optional
        Added to the products.

    Returns
    -------
    Tensor of shape (k, n, o) or (n, o)
        In the mode that scores samples alike in any batch, rows of x are samples; in
        torch's own products of three axes, the first axis has the samples.
    """
    if has_torch_function((x,)):
        return handle_torch_function(stacked_product, (x,), x, weight, bias)
    return x @ weight if bias is None else torch.baddbmm(bias, x, weight)
