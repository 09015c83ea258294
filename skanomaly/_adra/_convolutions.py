"""Frozen convolutions with a correction, computed as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FoldedConvolution(torch.autograd.Function):
    """A convolution with the same correction for all rows (eq. 2).

    The map sits in the middle of the kernel, so that both cost as much as the frozen
    one alone. Going back, the gradient of the map is a product over pixels, a ninth of
    the work of a 3 x 3 kernel; the frozen kernel gets none.
    """

    @staticmethod
    def forward(ctx, x, maps, kernel, bias, conv):
        """Return the output.

        Parameters
        ----------
        x : Tensor of shape (n, in, h, w)
            Images, channels last.
        maps : Tensor of shape (out, in / groups)
            The correction.
        kernel, bias : Tensor
            Those of the convolution; the map is added to the kernel in place.
        conv : torch.nn.Conv2d
            Says all else.
        """
        kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] += maps
        ctx.conv = conv
        ctx.save_for_backward(x, kernel)
        return convolved(x, kernel, bias, conv)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        """Return the gradients of the images and of the map."""
        (x, kernel), conv = ctx.saved_tensors, ctx.conv
        of_y = channels_last(of_y)
        of_x = back(of_y, x, kernel, conv) if ctx.needs_input_grad[0] else None
        sampled = pixels(at_middles(x, conv, of_y.shape[2:])).flatten(0, 1)
        of_pixels = pixels(of_y).flatten(0, 1)
        if conv.groups == 1:
            return of_x, of_pixels.T @ sampled, None, None, None
        if set(kernel.shape[:2]) == {conv.groups, 1}:
            return of_x, (of_pixels * sampled).sum(0)[:, None], None, None, None
        parts = (rows.unflatten(1, (conv.groups, -1)) for rows in (of_pixels, sampled))
        of_maps = torch.einsum("pgo,pgi->goi", *parts).flatten(0, 1)
        return of_x, of_maps, None, None, None


class MixedConvolution(torch.autograd.Function):
    """A convolution with a correction of each row (eq. 3), added in place."""

    @staticmethod
    def forward(ctx, x, maps, kernel, bias, conv):
        """Return the output; `maps` has the shape (n, out, in / groups)."""
        y = channels_last(convolved(x, kernel, bias, conv))
        sampled = at_middles(x, conv, y.shape[2:])
        if conv.groups == 1:
            pixels(y).baddbmm_(pixels(sampled), maps.mT)
        else:
            y.addcmul_(sampled, maps[..., None])
        ctx.conv = conv
        ctx.save_for_backward(x, maps, kernel)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        """Return the gradients of the images and of the maps."""
        (x, maps, kernel), conv = ctx.saved_tensors, ctx.conv
        of_y, sides = channels_last(of_y), of_y.shape[2:]
        sampled, of_pixels = pixels(at_middles(x, conv, sides)), pixels(of_y)
        dense, of_x = conv.groups == 1, None
        if ctx.needs_input_grad[0]:
            of_x = back(of_y, x, kernel, conv)
            if dense:
                add_at_middles(of_x, conv, sides, of_pixels, maps)
            else:
                at_middles(of_x, conv, sides).addcmul_(of_y, maps[..., None])
        if dense:
            return of_x, of_pixels.mT @ sampled, None, None, None
        return of_x, (of_pixels * sampled).sum(1)[..., None], None, None, None


class LowRankConvolution(torch.autograd.Function):
    """A convolution with a correction of low rank, whose parts each row weighs."""

    @staticmethod
    def forward(ctx, x, weights, down, up, kernel, bias, conv):
        """Return the output.

        Parameters
        ----------
        x : Tensor of shape (n, in, h, w)
            Images, channels last.
        weights : Tensor of shape (n, r)
            What each row makes of the parts of the correction.
        down, up : Tensor of shape (r, in) and (out, r)
            These parts.
        kernel, bias, conv
            The convolution, which has no groups.
        """
        y = channels_last(convolved(x, kernel, bias, conv))
        hidden = pixels(at_middles(x, conv, y.shape[2:])) @ down.T
        weighed = (hidden * weights[:, None]).flatten(0, 1)
        pixels(y).flatten(0, 1).addmm_(weighed, up.T)
        ctx.conv = conv
        ctx.save_for_backward(x, hidden, weights, down, up, kernel)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        """Return the gradients of the images, the weights and both parts."""
        (x, hidden, weights, down, up, kernel), conv = ctx.saved_tensors, ctx.conv
        of_y, sides = channels_last(of_y), of_y.shape[2:]
        sampled, of_pixels = pixels(at_middles(x, conv, sides)), pixels(of_y)
        weighed, of_weighed = hidden * weights[:, None], of_pixels @ up
        of_weights = (of_weighed * hidden).sum(1)
        of_hidden, of_x = of_weighed * weights[:, None], None
        if ctx.needs_input_grad[0]:
            of_x = back(of_y, x, kernel, conv)
            add_at_middles(of_x, conv, sides, of_hidden, down)
        of_down = of_hidden.flatten(0, 1).T @ sampled.flatten(0, 1)
        of_up = of_pixels.flatten(0, 1).T @ weighed.flatten(0, 1)
        return of_x, of_weights, of_down, of_up, None, None, None


def may_mix(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is of the kind that corrections of rows are for."""
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


def convolved(x: Tensor, kernel: Tensor, bias: Tensor | None, conv: nn.Conv2d):
    """Return what a convolution makes of images with another kernel and bias."""
    return F.conv2d(
        x, kernel, bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def back(of_y: Tensor, x: Tensor, kernel: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the gradient of the images `x`, channels last."""
    if is_product(conv):  # and a library of products is faster then
        of_pixels = pixels(of_y) @ kernel[:, :, 0, 0]
        return of_pixels.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    of_x = torch.ops.aten.convolution_backward(
        *(of_y, x, kernel, None, conv.stride, conv.padding, conv.dilation),
        *(False, (0, 0), conv.groups, (True, False, False)),
    )[0]
    return channels_last(of_x)


def is_product(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is no more than a product of pixels and kernel."""
    own = {*conv.kernel_size, *conv.stride, conv.groups}
    return own == {1} and not any(conv.padding)


def is_plain(conv: nn.Conv2d) -> bool:
    """Return whether a convolution pads with zeros, by numbers, and does no more."""
    return (
        type(conv) is nn.Conv2d
        and not (conv._forward_hooks or conv._forward_pre_hooks)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def channels_last(images: Tensor) -> Tensor:
    """Return images in the memory format in which pixels are rows."""
    return images.contiguous(memory_format=torch.channels_last)


def pixels(images: Tensor) -> Tensor:
    """Return images (n, c, h, w) as pixels (n, h * w, c): a view of channels-last."""
    return images.permute(0, 2, 3, 1).flatten(1, 2)


def mean_pixel(images: Tensor) -> Tensor:
    """Return means (n, c) over the pixels of images.

    Not as `mean` does it: its gradient is as large as the images, that of a sum is not.
    """
    return images.sum((2, 3)) / images.shape[2:].numel()


def add_at_middles(images: Tensor, conv: nn.Conv2d, sides, rows, maps) -> None:
    """Add a product, (n, p, r) by (r, in) or (n, r, in), to :func:`at_middles`."""
    reached = at_middles(images, conv, sides)
    if reached.shape != images.shape:
        reached += (rows @ maps).unflatten(1, sides).permute(0, 3, 1, 2)
    elif maps.ndim == 3:
        pixels(images).baddbmm_(rows, maps)
    else:
        pixels(images).flatten(0, 1).addmm_(rows.flatten(0, 1), maps)


def at_middles(images: Tensor, conv: nn.Conv2d, sides: tuple[int, ...]) -> Tensor:
    r"""Return the pixels on which the middle of a kernel lies, for each output.

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
        A view, unless the middle lies in the padding somewhere.
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
    """Return the row, or column, on which the middle of a kernel lies first."""
    size, apart = conv.kernel_size[axis], conv.dilation[axis]
    reach = apart * (size - 1)
    if isinstance(conv.padding, str):
        padding = reach // 2 if conv.padding == "same" else 0
    else:
        padding = conv.padding[axis]
    whole = images.shape[axis + 2] + 2 * padding
    if conv.padding != "same" and (whole - reach - 1) // conv.stride[axis] + 1 != side:
        return 0  # what pads in a way of its own is taken to centre its kernel
    return apart * (size // 2) - padding
