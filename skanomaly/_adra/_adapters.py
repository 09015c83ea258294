"""Adapters beside frozen base layers: eqs 2 and 3 of the paper.

The terms are those of the package peft: an adapter adds its output to that of a base
layer, and its weights are merged into the layer where this gives the same outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..utils._stacked_product import stacked_product

#: Groups of the adapter of a 1 x 1 convolution, and channels from which it has them.
_GROUPS, _WIDE = 8, 64
#: Share of the convolutions of a network up to which larger kernels are few.
_FEW = 0.1
#: Initial standard deviation of the logits of a gate, for normal samples.
_REACH = 1.0
#: Share of the mean variance of channels that is added to the variance of each.
_LEAST = 0.01


# Gates ------------------------------------------------------------------------------


class StandardisedGate(nn.Module):
    """Mixin of gates: standardises their inputs, and applies the softmax."""

    centre: Tensor
    spread: Tensor

    @torch.no_grad()
    def fit(self, total: Tensor, squares: Tensor, n_rows: int) -> None:
        """Fit the standardisation to the inputs of the gate for normal samples.

        Parameters
        ----------
        total, squares : Tensor of shape (in,) or (k, 1, in), float64
            Sums over samples of these inputs, and of their squares.
        n_rows : int
            Number of samples.
        """
        centre = total / n_rows
        variance = (squares / n_rows - centre.square()).clamp_min(0)
        # Channels in which normal samples hardly differ must not dominate the gate.
        variance += _LEAST * variance.mean(-1, keepdim=True)
        self.centre.copy_(centre)
        self.spread.copy_(torch.where(variance > 0, variance, 1.0).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights of the experts, which sum to 1."""
        z = (x - self.centre) / self.spread
        # Without this bound, samples far from normal would use a single expert.
        far = z.square().mean(-1, keepdim=True).clamp_min(1).rsqrt()
        return super().forward(z * far).softmax(-1)


class Gate(StandardisedGate, nn.Linear):
    r"""Weights of the experts of an adapter, by the input of its base layer.

    .. math:: g(x) = \mathrm{softmax}(V z(x) + v), \qquad z(x) = (x - \mu) / \sigma

    with the mean and the standard deviation of normal samples, which are fixed. Without
    this standardisation the weights would hardly differ between samples, since features
    differ by a small part of their size.

    Parameters
    ----------
    n_in, n_experts : int
        Channels of the layer, and K.
    """

    def __init__(self, n_in: int, n_experts: int):
        super().__init__(n_in, n_experts)
        nn.init.normal_(self.weight, std=_REACH / n_in**0.5)
        nn.init.zeros_(self.bias)
        self.register_buffer("centre", torch.zeros(n_in))
        self.register_buffer("spread", torch.ones(n_in))


# Adapters of convolutions and linear layers -------------------------------------------


class Adapter(nn.Module):
    r"""K linear experts beside a base layer, mixed sample by sample (eq. 3).

    .. math:: \sum_k g_k(x) A_k x, \qquad g(x) = \mathrm{softmax}(V z(\bar x) + v),

    where the mean of x is taken over its pixels, and z is that of :class:`Gate`. The
    experts are 1 x 1 convolutions with the stride and the groups of the layer. Beside a
    1 x 1 convolution, where they would be as large as the layer, they have more groups.

    Their weights start at zero, so that an adapter changes nothing at first. Gates
    start at random, so that the first step makes the experts different.

    Parameters
    ----------
    layer : torch.nn.Conv2d or torch.nn.Linear
        The base layer.
    n_experts : int
        K. A single expert has no gate (eq. 2).
    """

    gate: Gate

    def __init__(self, layer: nn.Conv2d | nn.Linear, n_experts: int):
        super().__init__()
        n_out, n_in, *sides = layer.weight.shape
        groups = getattr(layer, "groups", 1)
        self.n_experts, self.groups = n_experts, groups
        # Makes the effect of a step of SGD independent of the number of experts...
        self.scaling = n_experts**0.5
        if groups == 1 and set(sides) <= {1} and min(n_in, n_out) >= _WIDE:
            self.groups = gcd(n_in, n_out, _GROUPS)
            self.scaling *= self.groups**0.5  # ... and of groups.
        n_each = n_in * groups // self.groups
        self.weights = nn.Parameter(torch.zeros(n_experts, n_out, n_each))
        if n_experts > 1:
            self.gate = Gate(n_in * groups, n_experts)

    def by_group(self, scale: Tensor | None = None) -> Tensor:
        """Return the weights (K, groups, out / groups, in / groups).

        Parameters
        ----------
        scale : Tensor of shape (out,), optional
            Factors of the outputs.
        """
        own = self.scaling if scale is None else self.scaling * scale[:, None]
        return (self.weights * own).unflatten(1, (self.groups, -1))

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the outputs (n, p, out) for pixels (n, p, in) of a mean (n, in)."""
        weights = self.by_group()
        if self.n_experts > 1:
            weights = mixed(self.gate(mean), weights)
        parts = x.unflatten(2, (self.groups, -1))
        weights = weights.expand(mean.shape[0], -1, -1, -1)
        return torch.einsum("npgi,ngoi->npgo", parts, weights).flatten(2)


class AdaptedLayer(nn.Module):
    """A frozen base layer, and the adapter that is added to its output.

    The adapter belongs to the detector, not to this module, so that frozen and trained
    weights are separate.

    Parameters
    ----------
    base_layer : torch.nn.Module
        The layer.
    """

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.set_adapter(None)

    def set_adapter(self, adapter: nn.Module | None) -> None:
        """Set the adapter, which is not registered as a submodule; None removes it."""
        self._adapter = (adapter,)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the base layer and the adapter, if there is one."""
        (adapter,) = self._adapter
        return (
            self.base_output(x) if adapter is None else self.adapted_output(x, adapter)
        )

    def base_output(self, x: Tensor) -> Tensor:
        """Return the output without the adapter."""
        return self.base_layer(x)

    def adapted_output(self, x: Tensor, adapter) -> Tensor:
        """Return the output with an adapter."""
        raise NotImplementedError

    def __getattr__(self, name):
        """Look up other attributes in the base layer: some networks read its sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # methods of copy and pickle are not delegated
                raise
            return getattr(super().__getattr__("base_layer"), name)


class AdaptedLinear(AdaptedLayer):
    """A linear layer; axes of its input between samples and features are pixels."""

    def adapted_output(self, x: Tensor, adapter: Adapter) -> Tensor:
        """Return the output of the layer plus that of the adapter."""
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        y = self.base_layer(x)
        return y + adapter(rows, rows.mean(1)).view_as(y)


class AdaptedConvolution(AdaptedLayer):
    """A convolution of images, with its adapter in the middle of its kernel.

    A frozen batch normalisation after it is merged into both.

    Parameters
    ----------
    base_layer : torch.nn.Conv2d
        The convolution.

    Attributes
    ----------
    norm : torch.nn.BatchNorm2d or None
        The normalisation.
    cache : list or None
        Merged weights, once they are computed; None does not cache them.
    n_cached : int
        Number of weights of mixed adapters that fit in the cache of a processor.
    """

    base_layer: nn.Conv2d

    def __init__(self, base_layer: nn.Conv2d):
        super().__init__(base_layer)
        self.norm: nn.BatchNorm2d | None = None
        self.cache: list | None = None
        self.n_cached = 2**18

    def base_output(self, x: Tensor) -> Tensor:
        """Return the output without the adapter."""
        y = self.base_layer(x)
        return y if self.norm is None else self.norm(y)

    def adapted_output(self, x: Tensor, adapter: Adapter) -> Tensor:
        """Return the output of the layer plus that of the adapter, normalised."""
        conv, kind = self.base_layer, x.device.type
        if torch.is_autocast_enabled(kind) and is_slow_in_half_precision(conv, kind):
            with torch.autocast(kind, enabled=False):
                return self.adapted_output(x.float(), adapter)
        one = adapter.n_experts == 1
        alike = adapter.groups == conv.groups
        if not (is_plain(conv) if one else can_mix(conv) and alike):
            return self._sum(x, adapter)
        weights, kernel, bias = merged = self._merged(adapter)
        if one and not weights.requires_grad:
            return convolve(x, kernel, bias, conv)
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            weights, kernel, bias = (r if r is None else r.to(dtype) for r in merged)
            x = x.to(dtype)
        x = channels_last(x)
        if one:
            return MergedConvolution.apply(x, weights, kernel, bias, conv)
        gates = adapter.gate(mean_pixel(x)).to(x.dtype)
        rest = weights, kernel, bias, conv, self.n_cached
        return MixedConvolution.apply(x, gates, *rest)

    def _merged(self, adapter):
        """Return weights of the adapter, kernel and bias, with merged normalisation.

        An adapter with a single expert is merged into the kernel.
        """
        if self.cache:
            return self.cache[0]
        kernel, bias, scale = self._normalised()
        weights = adapter.by_group(scale)
        if adapter.n_experts == 1:
            (weights,) = weights
            merge(weights, kernel)
        if self.cache is not None:
            self.cache.append((weights, kernel, bias))
        return weights, kernel, bias

    def _normalised(self):
        """Return kernel and bias with merged normalisation, and its factors."""
        # torch.nn.utils.fusion rounds the bias differently, and returns no factors.
        weight, bias, norm = self.base_layer.weight, self.base_layer.bias, self.norm
        # The memory format that convolutions use, forward and backward.
        kernel = weight.detach().clone(memory_format=torch.channels_last)
        if norm is None:
            return kernel, bias, None
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = (variance + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -mean if bias is None else bias - mean
        shift = shift * scale if norm.bias is None else shift * scale + norm.bias
        return kernel.mul_(scale[:, None, None, None]), shift, scale

    def _sum(self, x, adapter):
        y, mean = self.base_layer(x), mean_pixel(x)
        sampled = pixels(at_middles(x, self.base_layer, y.shape[2:]))
        adapted = adapter(sampled, mean).unflatten(1, y.shape[2:])
        y = y + adapted.permute(0, 3, 1, 2)
        return y if self.norm is None else self.norm(y)


# Adapters of ensembles of linear layers -----------------------------------------------


class StackedLinear(nn.Module):
    """An ensemble of linear layers, each with its own input.

    Parameters
    ----------
    n_estimators, n_in, n_out : int
        Members of the ensemble, and the size of the input and the output of each.
    """

    def __init__(self, n_estimators: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_estimators, n_in, n_out) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(n_estimators, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, n_in) to (k, n, n_out)."""
        return stacked_product(x, self.weight, self.bias)


class StackedGate(StandardisedGate, StackedLinear):
    """An ensemble of gates.

    Parameters
    ----------
    n_estimators, n_in, n_experts : int
        Members of the ensemble, the size of the input of each, and K.
    """

    def __init__(self, n_estimators: int, n_in: int, n_experts: int):
        super().__init__(n_estimators, n_in, n_experts)
        self.register_buffer("centre", torch.zeros(n_estimators, 1, n_in))
        self.register_buffer("spread", torch.ones(n_estimators, 1, n_in))


class StackedAdapter(nn.Module):
    """An ensemble of adapters.

    Parameters
    ----------
    layer : StackedLinear
        The base layers.
    n_experts : int
        K.
    """

    gate: StackedGate

    def __init__(self, layer: StackedLinear, n_experts: int):
        super().__init__()
        n_estimators, n_in, n_out = layer.weight.shape
        self.n_experts = n_experts
        self.weights = nn.Parameter(torch.zeros(n_estimators, n_in, n_experts * n_out))
        if n_experts > 1:
            self.gate = StackedGate(n_estimators, n_in, n_experts)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `y` (k, n, out) plus the adapters' outputs for `x` (k, n, in)."""
        if self.n_experts == 1:
            return stacked_product(x, self.weights, y)
        gates = self.gate(x).split(1, 2)
        experts = stacked_product(x, self.weights).chunk(self.n_experts, 2)
        # One by one: products of all experts would be copied before they are summed.
        for gate, adapted in zip(gates, experts, strict=True):
            y = torch.addcmul(y, gate, adapted)
        return y


class AdaptedStack(AdaptedLayer):
    """An ensemble of linear layers."""

    def adapted_output(self, x: Tensor, adapter: StackedAdapter) -> Tensor:
        """Return the output of the layer plus that of the adapter."""
        return adapter(x, self.base_layer(x))


# Which layers get which adapters ------------------------------------------------------

#: The classes of the wrapper of a layer and of its adapter, by the class of the layer.
ADAPTABLE = {
    nn.Conv2d: (AdaptedConvolution, Adapter),
    nn.Linear: (AdaptedLinear, Adapter),
    StackedLinear: (AdaptedStack, StackedAdapter),
}


def is_adaptable(layer: nn.Module) -> bool:
    """Return whether a layer can have an adapter."""
    return isinstance(layer, tuple(ADAPTABLE))


def adapted_layer(layer: nn.Module) -> AdaptedLayer:
    """Return a layer with a place for an adapter."""
    return _classes_for(layer)[0](layer)


def adapter_for(layer: nn.Module, n_experts: int) -> Adapter | StackedAdapter:
    """Return a new adapter of a base layer."""
    return _classes_for(layer)[1](layer, n_experts)


def _classes_for(layer):
    return next(both for kind, both in ADAPTABLE.items() if isinstance(layer, kind))


def adapters_for(layers: Sequence[nn.Module], n_experts: int) -> nn.ModuleList:
    """Return new adapters of all base layers of a network.

    Not all of them are mixtures: see :func:`have_experts`.
    """
    return nn.ModuleList(
        adapter_for(layer, n_experts if several else 1)
        for layer, several in zip(layers, have_experts(layers), strict=True)
    )


def have_experts(layers: Sequence[nn.Module]) -> list[bool]:
    """Return whether the adapter of each layer of a network is a mixture.

    Linear layers and larger kernels have mixtures, as in the paper; beside 1 x 1
    convolutions they would cost most. If nearly all larger kernels are depthwise,
    experts beside them would be single numbers. Then 1 x 1 convolutions have the
    mixtures: those that do not add channels, if there are any.
    """
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    pointwise = {layer for layer in convolutions if is_pointwise(layer)}
    alone = {layer for layer in convolutions if is_depthwise(layer)} - pointwise
    n_larger = sum(layer not in pointwise | alone for layer in convolutions)
    if not pointwise or n_larger > _FEW * len(convolutions):
        return [layer not in pointwise for layer in layers]
    narrow = {layer for layer in pointwise if layer.out_channels <= layer.in_channels}
    without = alone | (pointwise - narrow if narrow else set())
    return [layer not in without for layer in layers]


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether each group of a convolution takes a single channel."""
    return conv.groups > 1 and conv.weight.shape[1] == 1


def is_pointwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution with a kernel of a single pixel."""
    return isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1}


# Convolutions with adapters -----------------------------------------------------------


class MergedConvolution(torch.autograd.Function):
    """A convolution with one and the same adapter for all samples (eq. 2).

    The adapter sits in the middle of the kernel, so that both cost as much as the base
    layer alone. In the backward pass, the gradient of the adapter is a product over
    pixels, a ninth of the work of a 3 x 3 kernel; the frozen kernel has no gradient.
    """

    @staticmethod
    def forward(ctx, x, weights, kernel, bias, conv):
        """Return the output.

        Parameters
        ----------
        x : Tensor of shape (n, in, h, w)
            Images, channels last.
        weights : Tensor of shape (groups, out / groups, in / groups)
            The adapter, which gets the gradient.
        kernel, bias : Tensor
            Kernel, with the adapter merged by :func:`merge`, and bias.
        conv : torch.nn.Conv2d
            The convolution, for stride, padding, dilation and groups.
        """
        ctx.groups = len(weights)
        ctx.conv = conv
        ctx.save_for_backward(x, kernel)
        return convolve(x, kernel, bias, conv)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        """Return the gradients of the images and of the adapter."""
        (x, kernel), conv = ctx.saved_tensors, ctx.conv
        of_y = channels_last(of_y)
        of_x = (
            image_gradient(of_y, x, kernel, conv) if ctx.needs_input_grad[0] else None
        )
        sampled = pixels(at_middles(x, conv, of_y.shape[2:])).flatten(0, 1)
        of_pixels = pixels(of_y).flatten(0, 1)
        if set(kernel.shape[:2]) == {ctx.groups, 1}:
            of_weights = (of_pixels * sampled).sum(0)[:, None, None]
        else:
            parts = (r.unflatten(1, (ctx.groups, -1)) for r in (of_pixels, sampled))
            of_weights = torch.einsum("pgo,pgi->goi", *parts)
        return of_x, of_weights, None, None, None


class MixedConvolution(torch.autograd.Function):
    """A convolution with an adapter mixed for each sample (eq. 3), added in place.

    Weights are mixed for a few samples at a time, and again in the backward pass: those
    of all samples would not fit into a cache.
    """

    @staticmethod
    def forward(ctx, x, gates, weights, kernel, bias, conv, n_cached):
        """Return the output.

        Parameters
        ----------
        x : Tensor of shape (n, in, h, w)
            Images, channels last.
        gates : Tensor of shape (n, k)
            Weights of the experts.
        weights : Tensor of shape (k, groups, out / groups, in / groups)
            The experts, with one group, or one channel in each group.
        kernel, bias, conv
            The convolution.
        n_cached : int
            Weights that fit into a cache.
        """
        y = channels_last(convolve(x, kernel, bias, conv))
        sampled = at_middles(x, conv, y.shape[2:])
        if is_diagonal(weights):
            y.addcmul_(sampled, mixed(gates, weights).flatten(1)[..., None, None])
        else:
            parts = gates, pixels(y), pixels(sampled)
            for g, of_y, rows in portions(weights, n_cached, *parts):
                of_y.baddbmm_(rows, mixed(g, weights)[:, 0].mT)
        ctx.conv, ctx.n_cached = conv, n_cached
        ctx.save_for_backward(x, gates, weights, kernel)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        """Return the gradients of the images, the gates and the experts."""
        (x, gates, weights, kernel), conv = ctx.saved_tensors, ctx.conv
        of_y, sides = channels_last(of_y), of_y.shape[2:]
        of_pixels, sampled = pixels(of_y), pixels(at_middles(x, conv, sides))
        of_x = (
            image_gradient(of_y, x, kernel, conv) if ctx.needs_input_grad[0] else None
        )
        rest = (None,) * 4
        flat = weights.flatten(1)
        if is_diagonal(weights):
            if of_x is not None:
                own = mixed(gates, weights).flatten(1)[..., None, None]
                at_middles(of_x, conv, sides).addcmul_(of_y, own)
            of_own = (of_pixels * sampled).sum(1)
            of_weights, of_gates = gates.T @ of_own, of_own @ flat.T
            return of_x, of_gates, of_weights.view_as(weights), *rest
        of_gates, of_weights = torch.empty_like(gates), torch.zeros_like(flat)
        # If a stride leaves out pixels, the others are not a view.
        whole = of_x is not None and of_x.shape[2:] == sides
        of_sampled = torch.zeros_like(sampled)
        if of_x is not None and whole:
            of_sampled = pixels(of_x)
        parts = gates, of_gates, of_pixels, sampled, of_sampled
        for g, of_g, of_rows, rows, of_some in portions(weights, ctx.n_cached, *parts):
            if of_x is not None:
                of_some.baddbmm_(of_rows, mixed(g, weights)[:, 0])
            of_own = (of_rows.mT @ rows).flatten(1)
            of_weights.addmm_(g.T, of_own)
            of_g.copy_((flat @ of_own.T).T)  # faster than of_own @ flat.T
        if of_x is not None and not whole:
            reached = at_middles(of_x, conv, sides)
            reached += of_sampled.unflatten(1, sides).permute(0, 3, 1, 2)
        return of_x, of_gates, of_weights.view_as(weights), *rest


@torch.no_grad()
def merge(weights: Tensor, kernel: Tensor) -> None:
    """Add an adapter to the middle of a kernel, in place.

    Parameters
    ----------
    weights : Tensor of shape (groups, out / groups, in / groups)
        The adapter, of as many groups as the convolution, or of more.
    kernel : Tensor
        Kernel of the convolution.
    """
    middle = kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2]
    if weights.shape[2] == middle.shape[1]:
        middle += weights.flatten(0, 1)
    else:
        n = len(weights)
        parts = middle.unflatten(1, (n, -1)).unflatten(0, (n, -1))
        parts.diagonal(0, 0, 2).add_(weights.permute(1, 2, 0))


def is_diagonal(weights: Tensor) -> bool:
    """Return whether experts (k, groups, out, in) have one channel in each group."""
    return set(weights.shape[2:]) == {1}


def mixed(gates: Tensor, weights: Tensor) -> Tensor:
    """Return the mixed weights (n, groups, out, in) of samples with gates (n, k)."""
    # Mixed before they are applied, so that the number of experts hardly matters.
    return (gates @ weights.flatten(1)).unflatten(1, weights.shape[1:])


def portions(
    weights: Tensor, n_cached: int, *tensors: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Divide tensors into parts of samples whose weights fit into a cache."""
    if not is_split(weights):
        return iter([tensors])
    n_numbers = n_cached * torch.get_num_threads()  # each has a cache of its own
    n_rows = max(n_numbers * len(weights) // weights.numel(), 1)
    return zip(*(tensor.split(n_rows) for tensor in tensors), strict=True)


def is_split(x: Tensor) -> bool:
    """Return whether samples are computed in parts, which fit the cache of a CPU.

    An exported graph would keep the number of parts of its example.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def can_mix(conv: nn.Conv2d) -> bool:
    """Return whether :class:`MixedConvolution` can compute a convolution."""
    return (
        is_plain(conv)
        # The middle of the kernel never lies in the padding.
        and all(
            int(conv.padding[k]) <= conv.dilation[k] * ((conv.kernel_size[k] - 1) // 2)
            for k in range(2)
        )
        and (conv.groups == 1 or set(conv.weight.shape[1:2]) == {1})
        and conv.groups in (1, conv.out_channels)
    )


def is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has zero padding given by numbers, and no hooks."""
    return (
        type(conv) is nn.Conv2d
        and not (conv._forward_hooks or conv._forward_pre_hooks)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def is_slow_in_half_precision(conv: nn.Conv2d, device_type: str) -> bool:
    """Return whether the backward pass is many times slower than in float32.

    It is on a CPU, for convolutions with groups and a stride.
    """
    return device_type == "cpu" and conv.groups > 1 and max(conv.stride) > 1


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
    """Return the output of a convolution with another kernel and bias."""
    return F.conv2d(
        x, kernel, bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def image_gradient(of_y: Tensor, x: Tensor, kernel: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the gradient of the images `x` of a convolution, channels last."""
    if is_product(conv):  # a matrix product is faster then
        of_pixels = pixels(of_y) @ kernel[:, :, 0, 0]
        return of_pixels.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    of_x = torch.ops.aten.convolution_backward(
        *(of_y, x, kernel, None, conv.stride, conv.padding, conv.dilation),
        *(False, (0, 0), conv.groups, (True, False, False)),
    )[0]
    return channels_last(of_x)


def is_product(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is a matrix product of pixels and kernel."""
    own = {*conv.kernel_size, *conv.stride, conv.groups}
    return own == {1} and not any(conv.padding)


def channels_last(images: Tensor) -> Tensor:
    """Return images in the memory format in which pixels are rows."""
    return images.contiguous(memory_format=torch.channels_last)


def pixels(images: Tensor) -> Tensor:
    """Return images (n, c, h, w) as pixels (n, h * w, c): a view of channels-last."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def mean_pixel(images: Tensor) -> Tensor:
    """Return the mean (n, c) over the pixels of images.

    A sum, since the gradient of `mean` would be as large as the images.
    """
    # In half precision, small differences between samples would be lost.
    exact = torch.promote_types(images.dtype, torch.float32)
    return images.sum((2, 3), dtype=exact) / images.shape[2:].numel()


def at_middles(images: Tensor, conv: nn.Conv2d, sides: tuple[int, ...]) -> Tensor:
    r"""Return the input pixel at the middle of the kernel, for each output pixel.

    Parameters
    ----------
    images : Tensor of shape (n, c, h, w)
        Input of the convolution.
    conv : torch.nn.Conv2d
        The convolution.
    sides : tuple of int
        Height and width of the output.

    Returns
    -------
    Tensor of shape (n, c, \\*sides)
        A view, unless a middle lies in the padding.
    """
    for axis, side in enumerate(sides):
        stride, first = conv.stride[axis], _first_middle(conv, images, axis, side)
        last = first + stride * (side - 1)
        before, after = max(-first, 0), max(last + 1 - images.shape[axis + 2], 0)
        if before or after:
            images = F.pad(images, (0, 0) * (1 - axis) + (before, after))
        index = slice(first + before, last + before + 1, stride)
        images = images[(slice(None),) * (axis + 2) + (index,)]
    return images


def _first_middle(conv, images, axis, side):
    """Return the first row, or column, on which the middle of a kernel lies."""
    size, apart = conv.kernel_size[axis], conv.dilation[axis]
    reach = apart * (size - 1)
    if isinstance(conv.padding, str):
        padding = reach // 2 if conv.padding == "same" else 0
    else:
        padding = conv.padding[axis]
    whole = images.shape[axis + 2] + 2 * padding
    if conv.padding != "same" and (whole - reach - 1) // conv.stride[axis] + 1 != side:
        return 0  # a subclass with its own padding is assumed to centre it
    return apart * (size // 2) - padding
