"""Frozen convolutions with a correction, computed as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Numbers that are little enough to be used again before they leave a cache.
_CACHED = 2**18


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
        maps : Tensor of shape (groups, out / groups, in / groups)
            The correction, which gets the gradient.
        kernel, bias : Tensor
            Those of the convolution, the map in the kernel: see :func:`fold`.
        conv : torch.nn.Conv2d
            Says all else.
        """
        ctx.groups = len(maps)
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
        if set(kernel.shape[:2]) == {ctx.groups, 1}:
            of_maps = (of_pixels * sampled).sum(0)[:, None, None]
        else:
            parts = (r.unflatten(1, (ctx.groups, -1)) for r in (of_pixels, sampled))
            of_maps = torch.einsum("pgo,pgi->goi", *parts)
        return of_x, of_maps, None, None, None


class MixedConvolution(torch.autograd.Function):
    """A convolution with a correction of each row (eq. 3), added in place.

    The maps of rows are made a few rows at a time, and made again on the way back:
    those of all rows would not fit into a cache.
    """

    @staticmethod
    def forward(ctx, x, shares, maps, kernel, bias, conv):
        """Return the output.

        Parameters
        ----------
        x : Tensor of shape (n, in, h, w)
            Images, channels last.
        shares : Tensor of shape (n, k)
            Gates.
        maps : Tensor of shape (k, groups, out / groups, in / groups)
            The maps of the experts, in one group, or of one channel in each.
        kernel, bias, conv
            The convolution.
        """
        y = channels_last(convolved(x, kernel, bias, conv))
        sampled = at_middles(x, conv, y.shape[2:])
        if is_diagonal(maps):
            y.addcmul_(sampled, mixed(shares, maps).flatten(1)[..., None, None])
        else:
            parts = shares, pixels(y), pixels(sampled)
            for g, of_y, rows in portions(maps, *parts):
                of_y.baddbmm_(rows, mixed(g, maps)[:, 0].mT)
        ctx.conv = conv
        ctx.save_for_backward(x, shares, maps, kernel)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, of_y):
        """Return the gradients of the images, the gates and the maps."""
        (x, shares, maps, kernel), conv = ctx.saved_tensors, ctx.conv
        of_y, sides = channels_last(of_y), of_y.shape[2:]
        of_pixels, sampled = pixels(of_y), pixels(at_middles(x, conv, sides))
        of_x = back(of_y, x, kernel, conv) if ctx.needs_input_grad[0] else None
        flat = maps.flatten(1)
        if is_diagonal(maps):
            if of_x is not None:
                own = mixed(shares, maps).flatten(1)[..., None, None]
                at_middles(of_x, conv, sides).addcmul_(of_y, own)
            of_own = (of_pixels * sampled).sum(1)
            of_maps, of_shares = shares.T @ of_own, of_own @ flat.T
            return of_x, of_shares, of_maps.view_as(maps), None, None, None
        of_shares, of_maps = torch.empty_like(shares), torch.zeros_like(flat)
        whole = of_x is not None and of_x.shape[2:] == sides
        # Pixels of which some are left out are not rows of a view.
        of_sampled = pixels(of_x) if whole else torch.zeros_like(sampled)
        parts = shares, of_shares, of_pixels, sampled, of_sampled
        for g, of_g, of_rows, rows, made in portions(maps, *parts):
            if of_x is not None:
                made.baddbmm_(of_rows, mixed(g, maps)[:, 0])
            of_own = (of_rows.mT @ rows).flatten(1)
            of_maps.addmm_(g.T, of_own)
            of_g.copy_((flat @ of_own.T).T)  # faster than the same the other way round
        if of_x is not None and not whole:
            reached = at_middles(of_x, conv, sides)
            reached += of_sampled.unflatten(1, sides).permute(0, 3, 1, 2)
        return of_x, of_shares, of_maps.view_as(maps), None, None, None


@torch.no_grad()
def fold(maps: Tensor, kernel: Tensor) -> None:
    """Add a map to the middle of a kernel, in place.

    Parameters
    ----------
    maps : Tensor of shape (groups, out / groups, in / groups)
        The correction, of as many groups as the convolution, or of more.
    kernel : Tensor
        That of the convolution.
    """
    middle = kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2]
    if maps.shape[2] == middle.shape[1]:
        middle += maps.flatten(0, 1)
    else:
        parts = middle.unflatten(1, (len(maps), -1)).unflatten(0, (len(maps), -1))
        parts.diagonal(0, 0, 2).add_(maps.permute(1, 2, 0))


def is_diagonal(maps: Tensor) -> bool:
    """Return whether maps (k, groups, out, in) have one channel in each group."""
    return set(maps.shape[2:]) == {1}


def mixed(shares: Tensor, maps: Tensor) -> Tensor:
    """Return the maps of rows with gates (n, k): (n, groups, out, in)."""
    # Before they are applied, so that it hardly matters how many experts there are.
    return (shares @ maps.flatten(1)).unflatten(1, maps.shape[1:])


def portions(maps: Tensor, *tensors: Tensor):
    """Return tuples of parts of tensors, so few rows that their maps fit a cache."""
    n_rows = len(tensors[0])
    if maps.device.type == "cpu":
        n_numbers = _CACHED * torch.get_num_threads()  # each has a cache of its own
        n_rows = max(n_numbers * len(maps) // maps.numel(), 1)
    return zip(*(tensor.split(n_rows) for tensor in tensors), strict=True)


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


def is_slow_in_halves(conv: nn.Conv2d, device_type: str) -> bool:
    """Return whether the way back takes many times as long as it does in float32.

    On a processor, that of convolutions in groups with a stride does.
    """
    return device_type == "cpu" and conv.groups > 1 and max(conv.stride) > 1


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
    # In halves, rows that differ by little would become alike.
    exact = torch.promote_types(images.dtype, torch.float32)
    return images.sum((2, 3), dtype=exact) / images.shape[2:].numel()


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
