"""Corrections of frozen layers: eqs 2 and 3 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn

from ._convolutions import (
    FoldedConvolution,
    MixedConvolution,
    at_middles,
    channels_last,
    convolved,
    fold,
    is_plain,
    is_slow_in_halves,
    may_mix,
    mean_pixel,
    mixed,
    pixels,
)

#: Groups of a correction beside a layer of single pixels, and channels that it has.
_GROUPS, _WIDE = 8, 64
#: Share of the convolutions of a network, below which some are but few.
_FEW = 0.1
#: Standard deviation of what a gate's softmax is given at the start, for normal rows.
_REACH = 1.0
#: Share of the mean variance of channels that is added to that of each.
_LEAST = 0.01


class Standardising(nn.Module):
    """What comes before the linear map of a gate, and after it."""

    centre: Tensor
    spread: Tensor

    @torch.no_grad()
    def fit(self, total: Tensor, squares: Tensor, n_rows: int) -> None:
        """Fix the standardisation by what the gate is given for normal rows.

        Parameters
        ----------
        total, squares : Tensor of shape (in,) or (k, 1, in), float64
            The sums over rows of that, and of its squares.
        n_rows : int
            How many they are.
        """
        centre = total / n_rows
        variance = (squares / n_rows - centre.square()).clamp_min(0)
        # A channel in which normal rows hardly differ is not to decide on others.
        variance += _LEAST * variance.mean(-1, keepdim=True)
        self.centre.copy_(centre)
        self.spread.copy_(torch.where(variance > 0, variance, 1.0).sqrt())

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        # What was saved before there were these standardised nothing.
        for name in ("centre", "spread"):
            state_dict.setdefault(f"{prefix}{name}", getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shares of experts, which sum to 1."""
        z = (x - self.centre) / self.spread
        # Rows far from normal ones, of a corpus, would leave all to a single expert.
        far = z.square().mean(-1, keepdim=True).clamp_min(1).rsqrt()
        return super().forward(z * far).softmax(-1)


class Gate(Standardising, nn.Linear):
    r"""How experts are shared out by what a layer is given.

    .. math:: g(x) = \mathrm{softmax}(V z(x) + v), \qquad z(x) = (x - \mu) / \sigma

    with mean and deviation of normal rows, which are fixed: features differ from row
    to row by a small part of their size, and the softmax would hardly notice.

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


class Correction(nn.Module):
    r"""K linear maps of what a frozen layer is given, weighed row by row (eq. 3).

    .. math:: \sum_k g_k(x) A_k x, \qquad g(x) = \mathrm{softmax}(V z(\bar x) + v),

    where the mean of x is taken over its pixels, and z is that of :class:`Gate`. The
    maps are 1 x 1 convolutions with the stride and the groups of the layer. Beside a
    layer that is itself 1 x 1, where they would be as large as it is, they have groups
    of their own.

    Maps start at zero, and gates at random: a correction is nothing at first, and its
    experts part at the first step, since each is taught by rows of its own.

    Parameters
    ----------
    layer : torch.nn.Conv2d or torch.nn.Linear
        The frozen layer.
    n_experts : int
        K. A single expert has no gate (eq. 2).
    """

    def __init__(self, layer: nn.Module, n_experts: int):
        super().__init__()
        weight: Tensor = layer.weight  # type: ignore[assignment]
        n_out, n_in, *sides = weight.shape
        groups = getattr(layer, "groups", 1)
        self.n_experts, self.groups = n_experts, groups
        # A step of SGD moves maps together as far as it would move a single map...
        self.scale = n_experts**0.5
        if groups == 1 and set(sides) <= {1} and min(n_in, n_out) >= _WIDE:
            self.groups = gcd(n_in, n_out, _GROUPS)
            self.scale *= self.groups**0.5  # ... and one with fewer weights as well.
        n_each = n_in * groups // self.groups
        self.maps = nn.Parameter(torch.zeros(n_experts, n_out, n_each))
        if n_experts > 1:
            self.gate = Gate(n_in * groups, n_experts)

    def shares(self, mean: Tensor) -> Tensor:
        """Return the gates g (n, K) of inputs of which `mean` (n, in) is the mean."""
        return self.gate(mean)

    def by_group(self, scale: Tensor | None = None) -> Tensor:
        """Return the maps (K, groups, out / groups, in / groups), outputs scaled."""
        own = self.scale if scale is None else self.scale * scale[:, None]
        return (self.maps * own).unflatten(1, (self.groups, -1))

    def of_pixels(self, sampled: Tensor, mean: Tensor) -> Tensor:
        """Return the correction (n, p, out) of pixels (n, p, in)."""
        maps = self.by_group()
        if self.n_experts > 1:
            maps = mixed(self.shares(mean), maps)
        parts = sampled.unflatten(2, (self.groups, -1))
        maps = maps.expand(len(mean), -1, -1, -1)
        return torch.einsum("npgi,ngoi->npgo", parts, maps).flatten(2)


class AdaptedLayer(nn.Module):
    """A frozen layer with its correction beside it; a subclass adds them up.

    The correction belongs to the detector, not to this module, so that what is frozen
    and what is trained stay apart: see :meth:`correct_by`.

    Parameters
    ----------
    frozen : torch.nn.Module
        The layer.
    """

    def __init__(self, frozen: nn.Module):
        super().__init__()
        self.frozen = frozen
        self.correct_by(None)

    def correct_by(self, correction: nn.Module | None) -> None:
        """Take a correction, which is not registered as a part; None for none."""
        self.held = (correction,)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the frozen layer, corrected."""
        (correction,) = self.held
        if correction is None:
            return self.uncorrected(x)
        return self.corrected(x, correction)

    def uncorrected(self, x: Tensor) -> Tensor:
        """Return the output of what is frozen."""
        return self.frozen(x)

    def __getattr__(self, name):
        """Look up what is not here in the frozen layer: some networks read sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # how to copy it is its own business
                raise
            return getattr(super().__getattr__("frozen"), name)


class AdaptedLinear(AdaptedLayer):
    """A linear layer (n, ..., in), whose pixels are what stands between n and in."""

    def corrected(self, x: Tensor, correction: Correction) -> Tensor:
        """Return the output of both."""
        rows = x.reshape(len(x), -1, x.shape[-1])
        y = self.frozen(x)
        return y + correction.of_pixels(rows, rows.mean(1)).view_as(y)


class AdaptedConvolution(AdaptedLayer):
    """A convolution of images, whose correction sits in the middle of its kernel.

    Batch normalisation that follows, frozen as well, is part of kernel and correction.

    Parameters
    ----------
    frozen : torch.nn.Conv2d
        The convolution.
    """

    def __init__(self, frozen: nn.Conv2d):
        super().__init__(frozen)
        self.norm = None
        #: Holds what rows have in common, once it is made; None: it is not to be kept.
        self.kept: list | None = None

    def uncorrected(self, x: Tensor) -> Tensor:
        """Return the output of what is frozen."""
        y = self.frozen(x)
        return y if self.norm is None else self.norm(y)

    def corrected(self, x: Tensor, correction: Correction) -> Tensor:
        """Return the output of both."""
        conv, kind = cast(nn.Conv2d, self.frozen), x.device.type
        if torch.is_autocast_enabled(kind) and is_slow_in_halves(conv, kind):
            with torch.autocast(kind, enabled=False):
                return self.corrected(x.float(), correction)
        one = correction.n_experts == 1
        alike = correction.groups == conv.groups
        if not (is_plain(conv) if one else may_mix(conv) and alike):
            return self._added_up(x, correction)
        maps, kernel, bias = made = self._combined(correction)
        if one and not maps.requires_grad:
            return convolved(x, kernel, bias, conv)
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            maps, kernel, bias = (r if r is None else r.to(dtype) for r in made)
            x = x.to(dtype)
        x = channels_last(x)
        if one:
            return FoldedConvolution.apply(x, maps, kernel, bias, conv)
        shares = correction.shares(mean_pixel(x)).to(x.dtype)
        return MixedConvolution.apply(x, shares, maps, kernel, bias, conv)

    def _combined(self, correction):
        """Return maps, kernel and bias with the norm; a single map is in the kernel."""
        kept = self.kept
        if kept:
            return kept[0]
        kernel, bias, scale = self._folded()
        maps = correction.by_group(scale)
        if correction.n_experts == 1:
            (maps,) = maps
            fold(maps, kernel)
        if kept is not None:
            kept.append((maps, kernel, bias))
        return maps, kernel, bias

    def _folded(self):
        """Return a kernel of its own, a bias, both with the norm, and its scale."""
        weight, bias, norm = self.frozen.weight, self.frozen.bias, self.norm
        # In the format that a convolution would bring it to, on both ways.
        kernel = weight.detach().clone(memory_format=torch.channels_last)
        if norm is None:
            return kernel, bias, None
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        shift = shift * scale if norm.bias is None else shift * scale + norm.bias
        return kernel.mul_(scale[:, None, None, None]), shift, scale

    def _added_up(self, x, correction):
        y, mean = self.frozen(x), mean_pixel(x)
        sampled = pixels(at_middles(x, self.frozen, y.shape[2:]))
        made = correction.of_pixels(sampled, mean).unflatten(1, y.shape[2:])
        y = y + made.permute(0, 3, 1, 2)
        return y if self.norm is None else self.norm(y)


class StackedLinear(nn.Module):
    """Linear layers side by side, one for each of k networks.

    Parameters
    ----------
    n_estimators, n_in, n_out : int
        Layers, and the numbers that each takes and returns.
    """

    def __init__(self, n_estimators: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_estimators, n_in, n_out) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(n_estimators, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, n_in) to (k, n, n_out)."""
        return torch.baddbmm(self.bias, x, self.weight)


class StackedGate(Standardising, StackedLinear):
    """What :class:`Gate` is, for layers side by side.

    Parameters
    ----------
    n_estimators, n_in, n_experts : int
        Layers, what each takes, and K.
    """

    def __init__(self, n_estimators: int, n_in: int, n_experts: int):
        super().__init__(n_estimators, n_in, n_experts)
        self.register_buffer("centre", torch.zeros(n_estimators, 1, n_in))
        self.register_buffer("spread", torch.ones(n_estimators, 1, n_in))


class StackedCorrection(nn.Module):
    """What :class:`Correction` is, for layers side by side.

    Parameters
    ----------
    layer : StackedLinear
        The frozen layers.
    n_experts : int
        K.
    """

    def __init__(self, layer: StackedLinear, n_experts: int):
        super().__init__()
        n_estimators, n_in, n_out = layer.weight.shape
        self.n_experts = n_experts
        self.maps = nn.Parameter(torch.zeros(n_estimators, n_in, n_experts * n_out))
        if n_experts > 1:
            self.gate = StackedGate(n_estimators, n_in, n_experts)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `y` (k, n, out) and the correction of `x` (k, n, in) added up."""
        if self.n_experts == 1:
            return torch.baddbmm(y, x, self.maps)
        shares = self.gate(x)
        made = torch.bmm(x, self.maps).unflatten(2, (self.n_experts, -1))
        return y + (shares[..., None] * made).sum(2)


class AdaptedStack(AdaptedLayer):
    """Linear layers side by side."""

    def corrected(self, x: Tensor, correction: StackedCorrection) -> Tensor:
        """Return the output of both."""
        return correction(x, self.frozen(x))


#: What takes the place of a layer, and its correction, by the class of the layer.
ADAPTABLE = {
    nn.Conv2d: (AdaptedConvolution, Correction),
    nn.Linear: (AdaptedLinear, Correction),
    StackedLinear: (AdaptedStack, StackedCorrection),
}


def adapted(layer: nn.Module) -> AdaptedLayer:
    """Return what takes the place of a frozen layer."""
    return _of_class(layer)[0](layer)


def corrections_of(layers: Sequence[nn.Module], n_experts: int) -> nn.ModuleList:
    """Return the corrections of all frozen layers of a network.

    Not all of them are mixtures: see :func:`has_experts`.
    """
    return nn.ModuleList(
        correction_of(layer, n_experts if several else 1)
        for layer, several in zip(layers, has_experts(layers), strict=True)
    )


def has_experts(layers: Sequence[nn.Module]) -> list[bool]:
    """Return whether the correction of each layer of a network is a mixture.

    Mixtures stand beside linear layers and larger kernels, as in the paper: 1 x 1
    convolutions are where they would cost the most. Where nearly all of the larger
    kernels have a channel each, a mixture beside them would be of single numbers, and
    1 x 1 convolutions have it in their place, those that do not widen if there are any.
    """
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    pointwise = {layer for layer in convolutions if is_pointwise(layer)}
    alone = {layer for layer in convolutions if _is_by_channel(layer)} - pointwise
    n_larger = sum(layer not in pointwise | alone for layer in convolutions)
    if not pointwise or n_larger > _FEW * len(convolutions):
        return [layer not in pointwise for layer in layers]
    narrow = {layer for layer in pointwise if layer.out_channels <= layer.in_channels}
    without = alone | (pointwise - narrow if narrow else set())
    return [layer not in without for layer in layers]


def _is_by_channel(layer):
    return layer.groups > 1 and layer.weight.shape[1] == 1


def correction_of(layer: nn.Module, n_experts: int) -> nn.Module:
    """Return the correction of a frozen layer."""
    return _of_class(layer)[1](layer, n_experts)


def is_pointwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution with a kernel of a single pixel."""
    return isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1}


def _of_class(layer):
    return next(made for kind, made in ADAPTABLE.items() if isinstance(layer, kind))
