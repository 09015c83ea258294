"""Results of a sample that do not depend on its batch, to the bit.

Libraries of linear algebra choose an algorithm by the sizes of a call, and algorithms
round differently: a sample alone would get another score than among others. The mode of
this module changes how torch computes a batch:

- Products and convolutions of a batch are compared, once for each shape in a process,
  with those of a constant number of rows. If the bits differ, the batch is filled up to
  a size whose bits do not, or divided into batches of that constant number.
- Functions of single numbers are computed in whole vectors of the processor, which
  rounds the numbers of an incomplete vector differently.
- Sums over other axes than the innermost one, such as means over an ensemble, are
  computed along contiguous memory.

Other functions that treat samples separately are known by name. If a network calls a
function that is not known, its batches have one constant size.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._row_plans import RowFunction, by_rows

__all__ = ["BatchInvariance", "map_batches"]

#: A multiple of the numbers in a vector of any processor, and of unrolled loops.
_VECTOR = 64
#: torch divides more numbers than these among threads, anywhere in a vector.
_UNDIVIDED = 2**15
#: Samples in the batches of networks that call functions that are not known.
_CONSTANT = 256


def map_batches(
    function: Callable[[Tensor], Tensor], rows: Any, size: int, n_threads: int = 1
) -> NDArray[Any]:
    """Apply a function of batches to all samples of a data set.

    Parameters
    ----------
    function : callable
        Maps a batch of samples to one result per sample.
    rows : DeviceDataset
        The samples.
    size : int
        Samples per batch.
    n_threads : int, default=1
        Batches that are computed at the same time, on a CPU.

    Returns
    -------
    ndarray of shape (n_samples, ...)
        Results. That of a sample is the same, to the bit, in any data set.
    """
    if rows.device.type == "cpu":
        results = _of_many_sizes(function, rows, size, n_threads)
        if results is not None:
            return results
    return np.concatenate(list(_of_constant_size(function, rows, min(size, _CONSTANT))))


def _of_many_sizes(function, rows, size, n_threads):
    """Return the results of batches, or None if a function is not known."""

    def result_of(part):
        n, mode = part.stop - part.start, BatchInvariance()
        batch = rows[_filled_up(part, min(_rounded(n), size))]
        with torch.inference_mode(), mode:
            result = function(batch)
        return None if mode.unknown else result[:n].numpy()

    first, *others = _slices(len(rows), size)
    result = result_of(first)  # alone: it finds plans, and functions not known
    if result is None or not others:
        return result
    # Small results that stay between large temporaries would fragment the memory.
    results = np.empty((len(rows), *result.shape[1:]), result.dtype)
    results[first] = result

    def fill(part):
        found = result_of(part)
        if found is not None:
            results[part] = found
        return found is not None

    if n_threads > 1:
        with ThreadPoolExecutor(n_threads, initializer=_compute_alone) as pool:
            is_known = all(list(pool.map(fill, others)))
    else:
        is_known = all(map(fill, others))
    return results if is_known else None


def _mode_for(device):
    return BatchInvariance() if device.type == "cpu" else nullcontext()


def _slices(n: int, size: int) -> list[slice]:
    """Return batches, in less time than scikit-learn checks the size of one."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _compute_alone():
    """Let a thread of a pool compute without further threads."""
    torch.set_num_threads(1)


def _rounded(n: int) -> int:
    """Return the next larger of eight numbers between powers of two.

    Products of each number of rows are compared once: of many numbers of rows, these
    comparisons would take longer than a few rows more.
    """
    step = 2 ** max(n.bit_length() - 4, 0)
    return -(-n // step) * step


def _filled_up(part: slice, size: int) -> slice | Tensor:
    """Return the indices of a part, and its last one again up to a size."""
    if part.stop - part.start == size:
        return part
    return torch.arange(part.start, part.start + size).clamp_(max=part.stop - 1)


def _of_constant_size(function, rows, size):
    """Yield the results of batches that are filled up to one size."""
    for part in _slices(len(rows), size):
        # The mode still treats the functions that it knows.
        with torch.inference_mode(), _mode_for(rows.device):
            result = function(rows[_filled_up(part, size)])
        yield result[: part.stop - part.start].numpy(force=True)


class BatchInvariance(TorchFunctionMode):
    """Context in which torch computes each sample as in any other batch.

    Attributes
    ----------
    unknown : set of str
        Names of called functions that are not known to treat samples separately.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call a function of torch."""
        name = getattr(func, "__name__", "")
        if name in _SEPARATE:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if name in _COMPUTED:
            # Functions have further arguments under several names, such as `out`.
            with suppress(TypeError):
                result = _COMPUTED[name](func, *args, **kwargs)
                if result is not NotImplemented:
                    return result
        self.unknown.add(name)
        return func(*args, **kwargs)


# Products and convolutions ------------------------------------------------------------


def _memory_order(x: Tensor) -> list[int]:
    """Return the axes from the outermost in memory to the innermost."""
    strides = x.stride()
    return sorted(range(x.ndim), key=lambda axis: -strides[axis])


def _convolution(func, x: Tensor, weight: Tensor, bias=None, *args, **kwargs):
    if x.ndim != weight.ndim:
        return NotImplemented  # one image without an axis of samples
    others = [weight] if bias is None else [weight, bias]

    def compute(rows, others):
        bias = others[1] if len(others) > 1 else None
        return func(rows[0], others[0], bias, *args, **kwargs)

    key = func, *args, *kwargs.items()
    try:
        hash(key)
    except TypeError:  # lists
        key = tuple(map(_hashable, key))
    return by_rows(RowFunction(compute), [x], others, *key)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _linear(func, x: Tensor, weight: Tensor, bias: Tensor | None = None):
    def compute(rows, others):
        return func(rows[0], *others)

    others = [weight] if bias is None else [weight, bias]
    return _of_last_axis(RowFunction(compute, weight=0), func, x, others)


def _matmul(func, x: Tensor, other: Tensor):
    if x.ndim >= 2 and other.ndim == 2:
        function = RowFunction(_mm, weight=1)
        return _of_last_axis(function, torch.mm, x, [other])
    if x.ndim < 3 or x.shape[:-2] != other.shape[:-2]:
        return NotImplemented
    result = _bmm(torch.bmm, x.flatten(0, -3), other.flatten(0, -3))
    return result.unflatten(0, x.shape[:-2])


def _mm(rows, others):
    return torch.mm(rows[0], others[0])


def _of_last_axis(function, key, x: Tensor, others: list[Tensor]) -> Tensor:
    """Apply a function of rows (n, d) to a tensor (..., d)."""
    if x.ndim == 2:
        return by_rows(function, [x.contiguous()], others, key)
    # A view of a single sample may have other strides than a copy of several.
    rows = by_rows(function, [x.reshape(-1, x.shape[-1]).contiguous()], others, key)
    return rows.unflatten(0, x.shape[:-1])


def _addmm(func, bias: Tensor, x: Tensor, other: Tensor, **kwargs):
    if bias.ndim == 2 and len(bias) != len(x):
        return NotImplemented
    rows, others = ([x, bias], [other]) if bias.ndim == 2 else ([x], [other, bias])

    def compute(rows, others):
        return func(*rows[1:], *others[1:], rows[0], others[0], **kwargs)

    key = func, *kwargs.items()
    return by_rows(RowFunction(compute, weight=1), rows, others, *key)


def _bmm(func, x: Tensor, other: Tensor):
    function = RowFunction(lambda rows, _: func(*rows))
    return by_rows(function, [x, other], [], func)


def _baddbmm(func, bias: Tensor, x: Tensor, other: Tensor, **kwargs):
    if bias.ndim != 3 or len(bias) != len(x):
        return NotImplemented

    def compute(rows, _):
        return torch.baddbmm(*rows, **kwargs)

    function = RowFunction(compute)
    result = by_rows(function, [bias, x, other], [], torch.baddbmm, *kwargs.items())
    return bias.copy_(result) if func.__name__.endswith("_") else result


def _stacked_product(func, x: Tensor, weight: Tensor, bias: Tensor | None = None):
    if x.ndim == 2:
        return _matmul(torch.matmul, x, weight)
    rows, others = [x], [weight]
    if bias is not None:
        (rows if bias.shape[1] == x.shape[1] else others).append(bias)

    def compute(rows, others):
        return func(rows[0], others[0], *rows[1:], *others[1:])

    return by_rows(RowFunction(compute, axis=1, weight=2), rows, others, func)


def _attention(func, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any):
    rows, others = list(args[:3]), list(args[3:4])
    if len(args) > 4 or len(rows) < 3:
        return NotImplemented
    mask = others.pop() if others else attn_mask
    if mask is not None:
        of_samples = mask.ndim == rows[0].ndim and len(mask) > 1
        (rows if of_samples else others).append(mask)

    def compute(rows, others):
        mask = [*rows[3:], *others, None][0]
        return func(*rows[:3], attn_mask=mask, **kwargs)

    key = func, len(rows), *kwargs.items()
    return by_rows(RowFunction(compute), rows, others, *key)


# Functions of single numbers ----------------------------------------------------------


def _in_vectors(func, x: Tensor, *args, **kwargs):
    """Apply a function of single numbers in whole vectors."""
    numbers = any(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
    if numbers or not isinstance(x, Tensor):
        return NotImplemented
    n, order = x.numel(), _memory_order(x)
    in_order = x.permute(order)
    is_divided = n > _UNDIVIDED and torch.get_num_threads() > 1
    if n % _VECTOR == 0 and not is_divided and in_order.is_contiguous():
        return func(x, *args, **kwargs)
    flat = in_order.reshape(-1)
    flat = F.pad(flat, (0, -n % _VECTOR))
    parts = flat.split(_UNDIVIDED) if is_divided else [flat]
    results = torch.cat([func(part, *args, **kwargs) for part in parts])[:n]
    result = results.view(in_order.shape).permute(
        [order.index(k) for k in range(x.ndim)]
    )
    in_place = func.__name__.endswith("_") or kwargs.get("inplace", False)
    return x.copy_(result) if in_place else result


# Sums ---------------------------------------------------------------------------------


def _reduced(func, x: Tensor, dim=None, keepdim: bool = False, **kwargs):
    """Reduce axes; other axes that follow them are filled up to whole vectors."""
    if dim is None or isinstance(keepdim, (list, tuple)):
        return NotImplemented
    axes = sorted(axis % x.ndim for axis in ([dim] if isinstance(dim, int) else dim))
    n_last = x.ndim - 1 - axes[-1]
    x = x.contiguous()
    if n_last:
        last, n = x.shape[x.ndim - n_last :], prod(x.shape[x.ndim - n_last :])
        rows = F.pad(x.flatten(x.ndim - n_last), (0, -n % _VECTOR))
        result = func(rows, axes, keepdim=keepdim, **kwargs)
        return result[..., :n].unflatten(-1, last)
    is_single = len(axes) < x.ndim and prod(x.shape[: x.ndim - len(axes)]) == 1
    if is_single and x.numel() > _UNDIVIDED:  # threads would divide a single sum
        return func(torch.cat([x, x]), axes, keepdim=keepdim, **kwargs)[:1]
    return func(x, axes, keepdim=keepdim, **kwargs)


def _norm(func, x: Tensor, *args: Any, dim=None, keepdim: bool = False, **kwargs: Any):
    def of_axes(x, dim, **kwargs):
        return func(x, *args, dim=dim, **kwargs)

    return _reduced(of_axes, x, dim, keepdim, **kwargs)


def _softmax(func, x: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Any:
    is_last = dim is not None and dim % x.ndim == x.ndim - 1
    return func(x, dim, *args, **kwargs) if is_last else NotImplemented


def _batch_norm(func, *args: Any, training: bool = False, **kwargs: Any) -> Any:
    of_batch = training or (len(args) > 5 and args[5])
    return NotImplemented if of_batch else func(*args, training=training, **kwargs)


# Functions by name --------------------------------------------------------------------


def _names(text: str) -> list[str]:
    return text.split()


#: Functions that are computed in a way of their own, in place or not.
_COMPUTED: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "stacked_product": _stacked_product,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "mm": _matmul,
    "bmm": _bmm,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "baddbmm_": _baddbmm,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "batch_norm": _batch_norm,
    "norm": _norm,
    "scaled_dot_product_attention": _attention,
}
_COMPUTED |= dict.fromkeys(_names("sum mean logsumexp var std prod"), _reduced)
_COMPUTED |= dict.fromkeys(
    _names("""
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    """),
    _convolution,
)
_COMPUTED |= {
    name + end: _in_vectors
    for end in ("", "_")
    for name in _names("""
    acos acosh asin asinh atan atanh celu cos cosh digamma elu erf erfc erfinv exp exp2
    expm1 gelu hardsigmoid hardswish lgamma log log10 log1p log2 log_sigmoid logit
    logsigmoid mish pow rsqrt selu sigmoid silu sin sinc sinh softplus softsign tan tanh
    tanhshrink __pow__ __rpow__
    """)
}

#: Functions that compute each number, or the numbers of each sample, for themselves.
_SEPARATE = frozenset(
    _names("""
    __get__ __len__ __bool__ dim ndimension size numel nelement stride storage_offset
    is_contiguous is_floating_point is_complex element_size item tolist get_device
    promote_types result_type can_cast _set_grad_enabled is_grad_enabled _assert

    expand expand_as broadcast_to broadcast_tensors reshape reshape_as view view_as
    flatten ravel unflatten squeeze unsqueeze transpose swapaxes swapdims permute
    movedim moveaxis t adjoint contiguous clone detach detach_ to type type_as float
    double half bfloat16 int long bool cat concat concatenate stack hstack vstack dstack
    split split_with_sizes chunk tensor_split unbind narrow select index_select gather
    take_along_dim __getitem__ __setitem__ flip roll rot90 repeat repeat_interleave tile
    pad copy_ fill_ zero_ masked_fill masked_fill_ where diagonal diag_embed tril triu
    unfold pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    as_strided

    add sub rsub subtract mul multiply div divide true_divide neg negative abs absolute
    sign sgn square sqrt reciprocal maximum minimum fmax fmin clamp clamp_min clamp_max
    clip floor ceil round trunc frac fmod remainder floor_divide addcmul addcdiv lerp
    nan_to_num eq ne lt le gt ge greater less equal logical_and logical_or logical_not
    logical_xor bitwise_and bitwise_or bitwise_not isnan isinf isfinite isclose add_
    sub_ mul_ div_ neg_ abs_ square_ sqrt_ clamp_ clamp_min_ clamp_max_ round_ addcmul_
    addcdiv_ lerp_ nan_to_num_ floor_ ceil_ trunc_ rsub_ __add__ __radd__ __iadd__
    __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__
    __itruediv__ __rdiv__ __neg__ __abs__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__
    __and__ __or__ __invert__ __floordiv__ __mod__

    relu relu_ relu6 leaky_relu leaky_relu_ prelu hardtanh hardtanh_ threshold
    hardshrink softshrink dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_dropout layer_norm group_norm instance_norm rms_norm local_response_norm
    normalize cosine_similarity linalg_vecdot pairwise_distance avg_pool1d avg_pool2d
    avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool1d lp_pool2d boolean_dispatch
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d interpolate upsample grid_sample affine_grid
    embedding one_hot max min amax amin aminmax any all argmax argmin sort argsort topk
    kthvalue median cummax cummin cumsum cumprod count_nonzero searchsorted bucketize
    isin

    zeros ones full empty eye arange linspace tensor as_tensor zeros_like ones_like
    full_like empty_like new_zeros new_ones new_full new_empty new_tensor
    """)
)
