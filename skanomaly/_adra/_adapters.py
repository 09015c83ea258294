"""Corrections of frozen layers: eqs 2 and 3 of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Weights of a frozen layer per weight of a correction of low rank: as many as a
#: 3 x 3 kernel has per weight of a 1 x 1 kernel.
_SMALLER = 9


class Correction(nn.Module):
    r"""K linear maps of what a frozen layer is given, weighed row by row (eq. 3).

    .. math:: \sum_k g_k(x) A_k x, \qquad g(x) = \mathrm{softmax}(V \bar x + v),

    where the mean of x is taken over its pixels. The maps are 1 x 1 convolutions with
    the stride and the groups of the layer. Beside a layer that is itself 1 x 1, where
    they would be as large as it is, they have a low rank: :math:`A_k = U_k D_k`.

    Parameters
    ----------
    layer : torch.nn.Conv2d or torch.nn.Linear
        The frozen layer.
    n_experts : int
        K. A single expert has no gate (eq. 2).
    """

    def __init__(self, layer: nn.Module, n_experts: int):
        super().__init__()
        n_out, n_in, *sides = layer.weight.shape
        self.n_experts, self.groups = n_experts, getattr(layer, "groups", 1)
        self.rank = None
        if self.groups == 1 and set(sides) <= {1}:
            self.rank = max(n_out * n_in // (_SMALLER * (n_out + n_in)), 1)
            n_hidden = n_experts * self.rank
            self.down = nn.Parameter(torch.randn(n_hidden, n_in) / n_in**0.5)
            self.up = nn.Parameter(torch.zeros(n_out, n_hidden))
        else:
            self.maps = nn.Parameter(torch.zeros(n_experts, n_out, n_in))
        if n_experts > 1:
            # Its weights are drawn at random: equal gates would keep experts equal.
            self.gate = nn.Linear(n_in * self.groups, n_experts)

    @property
    def factors(self) -> tuple[Tensor, Tensor | None]:
        """The map of a single expert: a matrix (out, in), or U and D of its rank."""
        if self.rank is None:
            return self.maps[0], None
        return self.up, self.down

    def shares(self, x: Tensor) -> Tensor:
        """Return the gates g (n, K) of inputs (n, q, in) of q pixels."""
        return self.gate(x.mean(1)).softmax(1)

    def forward(self, x: Tensor, sampled: Tensor, y: Tensor) -> Tensor:
        """Return `y` and the correction added up, (n, p, out).

        Parameters
        ----------
        x : Tensor of shape (n, q, in)
            All pixels of the input; they make the gates.
        sampled : Tensor of shape (n, p, in)
            The pixels in the middle of the frozen kernel, for each pixel of `y`.
        y : Tensor of shape (n, p, out)
            What the frozen layer makes of `x`.
        """
        shares = self.shares(x) if self.n_experts > 1 else x.new_ones(1, 1)
        if self.rank is not None:
            hidden = F.linear(sampled, self.down)
            hidden = hidden * shares.repeat_interleave(self.rank, 1)[:, None]
            return y + F.linear(hidden, self.up)
        # The maps of all experts become one, which costs no more than that of one.
        n_out, n_in = self.maps.shape[1:]
        maps = (shares @ self.maps.flatten(1)).unflatten(1, (n_out, n_in))
        if self.groups == 1:
            return torch.baddbmm(y, sampled, maps.mT.expand(len(y), -1, -1))
        if self.groups == n_out:
            return torch.addcmul(y, sampled, maps.mT)
        parts = sampled.unflatten(2, (self.groups, n_in))
        maps = maps.unflatten(1, (self.groups, -1)).expand(len(y), -1, -1, -1)
        return y + torch.einsum("npgi,ngoi->npgo", parts, maps).flatten(2)


class FoldedConvolution(torch.autograd.Function):
    """A convolution whose kernel is the frozen one with a correction in its middle.

    The same as the sum of both (eq. 2), for the price of one of them. Going back, the
    gradient of the correction is a product over pixels, a ninth of that of a 3 x 3
    kernel; the frozen kernel gets none.
    """

    @staticmethod
    def forward(ctx, x, conv, left, right):
        """Return the output; `left` is the correction, or ``left @ right`` is."""
        kernel = conv.weight.to(x.dtype, copy=True)
        matrix = left if right is None else left @ right
        kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] += matrix
        ctx.conv = conv
        ctx.save_for_backward(x, kernel, left, right)
        bias = None if conv.bias is None else conv.bias.to(x.dtype)
        return F.conv2d(
            x, kernel, bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        """Return the gradients of the input and of the correction."""
        x, kernel, left, right = ctx.saved_tensors
        conv = ctx.conv
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x, _, _ = torch.ops.aten.convolution_backward(
                *(gradient, x, kernel, None),
                *(conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups),
                (True, False, False),
            )
        sampled = pixels(at_middles(x, conv, gradient.shape[2:])).flatten(0, 1)
        gradient = pixels(gradient).flatten(0, 1)
        if right is not None:
            right, left = right.to(x.dtype), left.to(x.dtype)
            of_left = gradient.T @ (sampled @ right.T)
            of_right = (gradient @ left).T @ sampled
            return of_x, None, of_left, of_right
        if conv.groups == 1:
            return of_x, None, gradient.T @ sampled, None
        gradient, sampled = (
            part.unflatten(1, (conv.groups, -1)) for part in (gradient, sampled)
        )
        of_left = torch.einsum("pgo,pgi->goi", gradient, sampled)
        return of_x, None, of_left.flatten(0, 1), None


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
        return self.frozen(x) if correction is None else self.corrected(x, correction)

    def __getattr__(self, name):
        """Look up what is not here in the frozen layer: some networks read sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("frozen"), name)


class AdaptedLinear(AdaptedLayer):
    """A linear layer (n, ..., in), whose pixels are what stands between n and in."""

    def corrected(self, x: Tensor, correction: Correction) -> Tensor:
        """Return the output of both."""
        y = self.frozen(x)
        rows = x.reshape(len(x), -1, x.shape[-1])
        made = correction(rows, rows, y.reshape(*rows.shape[:2], -1))
        return made.view_as(y)


class AdaptedConvolution(AdaptedLayer):
    """A convolution of images, whose correction sits in the middle of its kernel."""

    def corrected(self, x: Tensor, correction: Correction) -> Tensor:
        """Return the output of both."""
        if correction.n_experts == 1 and is_plain(self.frozen):
            if torch.is_autocast_enabled(x.device.type):
                x = x.to(torch.get_autocast_dtype(x.device.type))
            return FoldedConvolution.apply(x, self.frozen, *correction.factors)
        y = self.frozen(x)
        sampled = at_middles(x, self.frozen, y.shape[2:])
        made = correction(*map(pixels, (x, sampled, y)))
        return made.unflatten(1, y.shape[2:]).permute(0, 3, 1, 2)


class StackedLinear(nn.Module):
    """Linear layers side by side, one for each of k networks.

    Parameters
    ----------
    n_copies, n_in, n_out : int
        Layers, and the numbers that each takes and returns.
    """

    def __init__(self, n_copies: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_copies, n_in, n_out) / n_in**0.5)
        self.bias = nn.Parameter(torch.zeros(n_copies, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, n_in) to (k, n, n_out)."""
        return torch.baddbmm(self.bias, x, self.weight)


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
        n_copies, n_in, n_out = layer.weight.shape
        self.n_experts = n_experts
        self.maps = nn.Parameter(torch.zeros(n_copies, n_in, n_experts * n_out))
        if n_experts > 1:
            self.gate = StackedLinear(n_copies, n_in, n_experts)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `y` (k, n, out) and the correction of `x` (k, n, in) added up."""
        if self.n_experts == 1:
            return torch.baddbmm(y, x, self.maps)
        shares = self.gate(x).softmax(2)
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


def correction_of(layer: nn.Module, n_experts: int) -> nn.Module:
    """Return the correction of a frozen layer."""
    return _of_class(layer)[1](layer, n_experts)


def _of_class(layer):
    return next(made for kind, made in ADAPTABLE.items() if isinstance(layer, kind))


def is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution pads with zeros, and by numbers."""
    return (
        type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def pixels(images: Tensor) -> Tensor:
    """Return images (n, c, h, w) as pixels (n, h * w, c): a view of channels-last."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def at_middles(images: Tensor, conv: nn.Conv2d, sides: tuple[int, int]) -> Tensor:
    """Return the pixels on which the middle of a kernel lies, for each output.

    Parameters
    ----------
    images : Tensor of shape (n, c, h, w)
        Input of the convolution.
    conv : torch.nn.Conv2d
        The convolution. If it pads in a way of its own, that is taken to centre it.
    sides : tuple of int
        Height and width of the output.
    """
    for axis, side in enumerate(sides):
        first, stride = 0, conv.stride[axis]
        if is_plain(conv):
            reach = conv.dilation[axis] * (conv.kernel_size[axis] // 2)
            first = reach - conv.padding[axis]
        last = first + stride * (side - 1)
        before, after = max(-first, 0), max(last + 1 - images.shape[axis + 2], 0)
        if before or after:
            images = F.pad(images, (0, 0) * (1 - axis) + (before, after))
        index = slice(first + before, last + before + 1, stride)
        images = images[(slice(None),) * (axis + 2) + (index,)]
    return images
