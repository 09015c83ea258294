"""Frozen convolutions with a correction, computed as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MeanPixel(torch.autograd.Function):
    """Images, and the mean of their pixels, for one look at them back and forth."""

    @staticmethod
    def forward(ctx, x):
        """Return `x` (n, c, h, w) and its means (n, c)."""
        return x.view_as(x), x.mean((2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx, of_x, of_mean):
        """Return the gradient of the images."""
        return of_x + (of_mean / of_x[0, 0].numel())[:, :, None, None]


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
        of_y, wants_x = channels_last(of_y), ctx.needs_input_grad[0]
        if conv.groups > 1 or kernel[0, 0].numel() == 1:
            # There is little or nothing to save, and one look at the images does both.
            of_x, of_kernel = back(of_y, x, kernel, conv, (wants_x, True))
            of_maps = of_kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2]
            return of_x, of_maps, None, None, None
        of_x = back(of_y, x, kernel, conv, (True, False))[0] if wants_x else None
        sampled = at_middles(x, conv, of_y.shape[2:])
        of_maps = pixels(of_y).flatten(0, 1).T @ pixels(sampled).flatten(0, 1)
        return of_x, of_maps, None, None, None


class MixedConvolution(torch.autograd.Function):
    """A convolution with a correction of each row (eq. 3), added in place."""

    @staticmethod
    def forward(ctx, x, maps, kernel, bias, conv):
        """Return the output; `maps` has the shape (n, out, in / groups)."""
        y = channels_last(convolved(x, kernel, bias, conv))
        sampled = pixels(at_middles(x, conv, y.shape[2:]))
        if conv.groups == 1:
            pixels(y).baddbmm_(sampled, maps.mT)
        else:
            pixels(y).addcmul_(sampled, maps.mT)
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
            of_x = channels_last(back(of_y, x, kernel, conv, (True, False))[0])
            reached = at_middles(of_x, conv, sides)
            if dense and reached.shape == of_x.shape:
                pixels(of_x).baddbmm_(of_pixels, maps)
            else:
                made = of_pixels @ maps if dense else of_pixels * maps.mT
                reached += made.unflatten(1, sides).permute(0, 3, 1, 2)
        if dense:
            return of_x, of_pixels.mT @ sampled, None, None, None
        return of_x, (of_pixels * sampled).sum(1)[..., None], None, None, None

    @staticmethod
    def takes(conv: nn.Conv2d) -> bool:
        """Return whether a convolution is of the kind that is done here."""
        return (
            is_plain(conv)
            # The middle of the kernel never lies in the padding.
            and all(
                int(conv.padding[k])
                <= conv.dilation[k] * ((conv.kernel_size[k] - 1) // 2)
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


def back(of_y: Tensor, x: Tensor, kernel: Tensor, conv: nn.Conv2d, wanted):
    """Return the gradients of the images `x` and the kernel, those that are wanted."""
    return torch.ops.aten.convolution_backward(
        *(of_y, x, kernel, None, conv.stride, conv.padding, conv.dilation),
        *(False, (0, 0), conv.groups, (*wanted, False)),
    )[:2]


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
