"""Rows of products and convolutions with bits that do not depend on the batch.

A batch is compared with those of a constant number of rows, once for each shape in a
process, on random numbers. If the bits differ, it is filled up to a size whose bits do
not, or divided into batches of that constant number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RowFunction", "by_rows"]

#: Rows of the batches that all others are compared with.
_BLOCK = 16
#: Shifts of those rows: they have to have the same bits in each place.
_SHIFTS = (1, 5, 6, 11)
#: Number of outputs below which a product is slow.
_FEW = 8
#: Numbers of each row that are compared.
_COMPARED = 64
#: Limit of the remembered shapes.
_MOST_PLANS = 4096


class RowFunction(NamedTuple):
    """A function that computes rows, such as a layer.

    Attributes
    ----------
    compute : callable
        Returns the rows of the result for a list of tensors with rows, the samples
        first, and a list of others, weights first.
    axis : int
        Axis of the rows.
    weight : int or None
        Axis of the outputs in the weights, the first of the others. None means that
        outputs cannot be added.
    """

    compute: Callable[[list[Tensor], list[Tensor]], Tensor]
    axis: int = 0
    weight: int | None = None

    def ways(self, others: list[Tensor]) -> list[bool]:
        """Return in which order to try whether the outputs are widened.

        A product with a few outputs takes longer than one with a few more.
        """
        if self.weight is None:
            return [False]
        n_out = others[0].shape[self.weight]
        return [n_out < _FEW, n_out >= _FEW]

    def widened(self, rows: list[Tensor], others: list[Tensor]) -> Tensor:
        """Compute rows with more outputs: with a few, the place of a row may matter."""
        (x, *own), (weight, *common) = rows, others
        n_out = weight.shape[self.weight or 0]
        n_more = -n_out % _BLOCK
        own, common = ([F.pad(t, (0, n_more)) for t in some] for some in (own, common))
        weight = _fill(weight, (self.weight or 0) % weight.ndim, n_more)
        return self.compute([x, *own], [weight, *common])[..., :n_out]


#: Computes a function for tensors with rows and others.
_Plan = Callable[[RowFunction, list[Tensor], list[Tensor]], Tensor]
#: The plans by function, shapes and number of threads.
_PLANS: dict[Any, _Plan] = {}


def by_rows(
    function: RowFunction, rows: list[Tensor], others: list[Tensor], *key: Any
) -> Tensor:
    """Compute rows with the bits that they have in any batch.

    Parameters
    ----------
    function : RowFunction
        The function.
    rows, others : list of Tensor
        Its arguments with and without rows.
    *key : object
        What determines the function besides: hashable.

    Returns
    -------
    Tensor
        The rows of the result.
    """
    if not rows[0].numel():
        return function.compute(rows, others)
    layouts = [(t.shape, t.stride(), t.dtype) for t in (*rows, *others)]
    whole_key = (*key, *layouts, torch.get_num_threads())
    plan = _PLANS.get(whole_key)
    if plan is None:
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        plan = _PLANS[whole_key] = _find_plan(function, rows, others)
    return plan(function, rows, others)


def _find_plan(
    function: RowFunction, rows: list[Tensor], others: list[Tensor]
) -> _Plan:
    """Return the cheapest way to compute a batch of these shapes."""
    n = rows[0].shape[function.axis]
    places = [(torch.arange(_BLOCK) + shift) % _BLOCK for shift in _SHIFTS]
    for widened in function.ways(others):
        whole = partial(_filled, size=_BLOCK, widened=widened)
        if _equal(whole, whole, places, function, rows, others):
            break
    else:  # the place in a batch matters
        return partial(_in_blocks, size=1, widened=False)
    order = torch.arange(4 * n if n < _BLOCK else n) % _BLOCK
    for size in _sizes(n):
        plan = partial(_filled, size=size, widened=widened)
        if _equal(whole, plan, order.split(n), function, rows, others):
            return plan
    return partial(_in_blocks, size=_BLOCK, widened=widened)


def _equal(
    whole: _Plan,
    plan: _Plan,
    batches: Iterable[Tensor],
    function: RowFunction,
    rows: list[Tensor],
    others: list[Tensor],
) -> bool:
    """Return whether some batches of random rows have the bits of all rows."""
    axis, rng = function.axis, torch.Generator().manual_seed(0)
    n_compared = 0  # in each row: other algorithms round a third of the numbers alike
    while n_compared < _COMPARED:
        block = [_random_like(t, rng, axis, _BLOCK) for t in rows]
        # Random, since trained weights may be zeros, which all algorithms round alike.
        weights = [_random_like(t, rng) for t in others]
        expected = whole(function, block, weights)
        for index in batches:
            batch = [_take(t, axis, index) for t in block]
            got = plan(function, batch, weights)
            if not torch.equal(got, expected.index_select(axis, index)):
                return False
        n_compared += expected.numel() // _BLOCK
    return True


def _take(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Return some rows with the strides of `x`."""
    shape, strides = _resized(x, axis, len(index))
    rows = torch.empty_strided(shape, strides, dtype=x.dtype)
    once = rows  # an expanded tensor cannot be written to
    for k, stride in enumerate(strides):
        if stride == 0:
            once, x = once.narrow(k, 0, 1), x.narrow(k, 0, 1)
    once.copy_(x.index_select(axis, index))
    return rows


def _sizes(n: int) -> list[int]:
    """Return the sizes, from n, to which a batch of n rows may be filled up."""
    power, multiple = 2 ** (n - 1).bit_length(), -(-n // _BLOCK) * _BLOCK
    return sorted({n, n + n % 2, min(power, multiple), multiple})


def _filled(
    function: RowFunction,
    rows: list[Tensor],
    others: list[Tensor],
    *,
    size: int,
    widened: bool,
) -> Tensor:
    """Compute a batch after filling it up to a number of rows."""
    axis, n = function.axis, rows[0].shape[function.axis]
    if n == size and not widened:
        return function.compute(rows, others)
    filled = [_fill(t, axis, size - n) for t in rows]
    if not widened:
        return function.compute(filled, others).narrow(axis, 0, n)
    return function.widened(filled, others).narrow(axis, 0, n)


def _in_blocks(
    function: RowFunction,
    rows: list[Tensor],
    others: list[Tensor],
    *,
    size: int,
    widened: bool,
) -> Tensor:
    """Compute a batch in parts of a constant number of rows."""
    axis, n = function.axis, rows[0].shape[function.axis]
    parts = [_fill(t, axis, -n % size).split(size, axis) for t in rows]
    results = [
        _filled(function, list(part), others, size=size, widened=widened)
        for part in zip(*parts, strict=True)
    ]
    return torch.cat(results, axis).narrow(axis, 0, n)


def _fill(x: Tensor, axis: int, n: int) -> Tensor:
    """Append `n` rows of zeros."""
    return F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, n]) if n else x


def _random_like(
    x: Tensor, rng: torch.Generator, axis: int = 0, n: int | None = None
) -> Tensor:
    """Return random numbers with the strides of `x`, and n rows."""
    shape, strides = _resized(x, axis, x.shape[axis] if n is None else n)
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    numbers = torch.randn(last + 1, generator=rng).to(x.dtype)
    return numbers.as_strided(shape, strides)


def _resized(x: Tensor, axis: int, n: int) -> tuple[list[int], list[int]]:
    """Return the shape and the strides of `x` with n rows."""
    shape, strides = list(x.shape), list(x.stride())
    for k in range(axis):
        if strides[k] >= strides[axis]:  # around the rows
            strides[k] = strides[k] // shape[axis] * n
    shape[axis] = n
    return shape, strides
