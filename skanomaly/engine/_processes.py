"""Training on several processes: rows divided, gradients averaged.

The processes are those of :mod:`torch.distributed`, once a program has initialised it:
started by torchrun, by accelerate, or otherwise. All of them draw the batches, the
noise and the masks of all, from one seed, and each computes its own rows. Batch
normalisation takes the statistics of all rows. So the losses are those of one process
with larger batches, up to rounding, and the weights stay equal.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from hashlib import sha256
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from ._net import AlternatingNet

__all__ = [
    "Buffers",
    "all_rows",
    "average",
    "begin_run",
    "begin_together",
    "divided",
    "fail_together",
    "is_first",
    "n_processes",
    "own_rows",
    "part_of_rows",
    "same_weights",
]

#: Rows that stay together: some networks compare the images of groups of four.
_BLOCK = 4
#: Rows by which processes compare their data.
_COMPARED = 64

#: Whether draws are for all processes, of which each takes its part.
_DIVIDED: ContextVar[bool] = ContextVar("divided", default=False)


def n_processes() -> int:
    """Return the number of processes that train together; 1 is this one alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def is_first() -> bool:
    """Return whether this process writes files and shows progress for all."""
    return n_processes() == 1 or dist.get_rank() == 0


# Rows -------------------------------------------------------------------------------


def all_rows(n: int) -> int:
    """Return the number of rows to draw where this process needs `n`."""
    return n * n_processes() if _DIVIDED.get() else n


def own_rows(drawn: Tensor, dim: int) -> Tensor:
    """Return the part of this process of numbers drawn for :func:`all_rows`."""
    return part_of_rows(drawn, dim) if _DIVIDED.get() else drawn


def part_of_rows(rows: Tensor, dim: int) -> Tensor:
    """Return every n-th block of rows, for n processes."""
    n = n_processes()
    if n == 1:
        return rows
    dim %= rows.ndim
    block = gcd(rows.shape[dim] // n, _BLOCK)
    blocks = rows.unflatten(dim, (-1, n, block)).select(dim + 1, dist.get_rank())
    return blocks.flatten(dim, dim + 1)


@contextmanager
def divided() -> Iterator[None]:
    """Divide the rows of draws, dropout and batch normalisation among processes."""
    if n_processes() == 1:
        yield
        return
    token = _DIVIDED.set(True)
    try:
        with _Divided():
            yield
    finally:
        _DIVIDED.reset(token)


class _Divided(TorchFunctionMode):
    """Replaces the functions whose result depends on the other rows of a batch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ == "dropout_factors":
            return _dropout_factors(func, *args)
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training:
        return input
    dim = int(input.ndim == 3)  # after the members of an ensemble
    size = list(input.shape)
    size[dim] *= n_processes()
    kept = F.dropout(input.new_ones(size), p)
    return input * part_of_rows(kept, dim)


def _dropout_factors(draw, x: Tensor, shape: Sequence[int], share: float) -> Tensor:
    size = list(shape)
    size[1] *= n_processes()  # after the members of an ensemble
    return part_of_rows(draw(x, tuple(size), share), 1)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(
            input, running_mean, running_var, weight, bias, False, momentum, eps
        )
    x = input.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    means, variances = _gathered(torch.stack([mean, variance])).unbind(1)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    if running_mean is not None and running_var is not None:
        n = x.numel() // x.shape[1] * n_processes()
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * (n / (n - 1))).to(running_var), momentum)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = (x - mean.view(shape)) * scale.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(input.dtype)


_REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.dropout: _dropout,
    F.batch_norm: _batch_norm,
}


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes, with its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        _wait_for(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Any:
        return _Sum.apply(gradient)


def _gathered(x: Tensor) -> Tensor:
    """Return the tensors of all processes, along a new first axis."""
    rank, n = dist.get_rank(), n_processes()
    own = torch.arange(n, device=x.device) == rank
    total: Tensor = _Sum.apply(torch.where(own.view(-1, *[1] * x.ndim), x, 0.0))
    return total


# Means, weights, agreement ------------------------------------------------------------


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over the processes."""
    n = n_processes()
    if n == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    _wait_for(dist.all_reduce, flat)
    _fill(tensors, flat.div_(n))


def same_weights(modules: nn.Module) -> None:
    """Give all processes the weights of the first one."""
    if n_processes() == 1:
        return
    tensors = [
        tensor.data
        for tensor in (*modules.parameters(), *modules.buffers())
        if tensor.is_floating_point() and tensor.numel()
    ]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    _wait_for(dist.broadcast, flat, 0)
    _fill(tensors, flat)


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Copy the parts of a long vector to tensors."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


class Buffers:
    """The buffers that a step changes, such as means over batches.

    Parameters
    ----------
    modules : torch.nn.Module
        The modules that are trained.
    """

    def __init__(self, modules: nn.Module):
        self.tensors = [b for b in modules.buffers() if b.is_floating_point()]
        self.versions = self._versions()

    def average(self) -> None:
        """Replace the buffers that have changed by their means over the processes."""
        found = zip(self.tensors, self.versions, strict=True)
        average([b for b, version in found if b._version != version])
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in self.tensors]


def _check_agreement(name: str, fact: object) -> None:
    """Raise a ValueError in all processes if they have different values of a fact."""
    facts: list[Any] = [None] * n_processes()
    _wait_for(dist.all_gather_object, facts, fact)
    if any(one != facts[0] for one in facts):
        listed = "; ".join(map(str, facts))
        raise ValueError(
            "All processes have to make the same fits, on the same samples. "
            f"{name} differs between them: {listed}."
        )


def begin_together(seed: int, X: NDArray[Any], on_interrupt: str) -> int:
    """Return the seed of the first process, after a check that `X` is the same."""
    if n_processes() == 1:
        return seed
    if on_interrupt == "keep":
        raise ValueError(
            "on_interrupt='keep' is for one process: several ones are interrupted in "
            "different steps. Use `checkpoint`."
        )
    some = np.linspace(0, len(X) - 1, min(len(X), _COMPARED)).astype(int)
    digest = sha256(np.ascontiguousarray(X[some]).tobytes()).hexdigest()
    _check_agreement("X", (X.shape, digest[:8]))
    seeds = [seed]
    _wait_for(dist.broadcast_object_list, seeds, 0)
    return seeds[0]


def begin_run(net: AlternatingNet, plan: Mapping[str, int]) -> Buffers | None:
    """Give a net the weights of the first process, and return its buffers.

    Without other processes, return None. Raise a ValueError if they begin another run.
    """
    if n_processes() == 1:
        return None
    facts = type(net).__name__, net.batch_size, dict(plan)
    _check_agreement("The run", (*facts, net.step_, len(net.history)))
    same_weights(net.module_)
    return Buffers(net.module_)


# Failure ----------------------------------------------------------------------------

#: The default group, weakly, and the group of the same processes for fits.
_GROUPS: dict[str, Any] = {}


def _group() -> Any:
    """Return the group of fits, which can fail without the program's own."""
    default = dist.group.WORLD
    known = _GROUPS.get("default")
    if known is None or known() is not default:
        _GROUPS["own"] = dist.new_group()
        _GROUPS["default"] = weakref.ref(default)
    return _GROUPS["own"]


def _wait_for(collective: Callable[..., Any], *args: Any) -> None:
    """Call a function of all processes."""
    try:
        collective(*args, group=_group())
    except RuntimeError as error:
        raise RuntimeError(
            "Another process that trains with this one has raised an error, or has "
            f"ended: see its messages. {error}"
        ) from error


@contextmanager
def fail_together() -> Iterator[None]:
    """Let the other processes fail too, instead of waiting, if this one fails."""
    try:
        yield
    except BaseException:
        if n_processes() > 1:
            with suppress(RuntimeError):  # of one that has failed before
                group = _group()
                _GROUPS.clear()
                dist.destroy_process_group(group)
        raise
