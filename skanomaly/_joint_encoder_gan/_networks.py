r"""Networks that grow: generator, critic and encoder, from coarse to fine.

Those for images are the paper's, with fewer channels by default: convolutions with
equalised learning rates, normalisation pixel by pixel in the generator, one map of
the minibatch's spread in the other two. Each function maps sizes to a module.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import gcd, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..networks import (
    SLOPE,
    Builders,
    Ensemble,
    StackedCritic,
    StackedMLP,
    coarse_shape,
    n_halvings,
)

_COARSEST = 4  # pixels of the longer side, at level 0
_GAIN = 2**0.5  # of He initialisation
GROUP = 4  # images in a group with one spread
_MOMENTUM = 0.02  # of the running mean of spreads


def upsampled(x: Tensor) -> Tensor:
    """Double the sides of images (n, c, h, w): each pixel becomes four."""
    return F.interpolate(x, scale_factor=2.0)


def faded(new: Tensor, old: Tensor, share: float) -> Tensor:
    """Blend `new` with a share of `old`."""
    return torch.lerp(new, old, share)


class Frame(NamedTuple):
    """Sizes of images at each level, and the maps from the data to a level and back.

    Attributes
    ----------
    shape : tuple of int
        Shape (c, h, w) of an image.
    coarse : tuple of int
        Height and width at level 0; each level has twice those of the one below.
    finest : int
        The last level, the first one with room for the whole image.
    """

    shape: tuple[int, ...]
    coarse: tuple[int, int]
    finest: int

    @classmethod
    def of(cls, shape):
        """Return the frame with at most 4 pixels on the longer side at level 0."""
        return cls(shape, coarse_shape(shape, _COARSEST), n_halvings(shape, _COARSEST))

    def sides(self, level: int) -> tuple[int, int]:
        """Return height and width at a level."""
        height, width = (side * 2**level for side in self.coarse)
        return height, width

    def shrunk(self, images: Tensor, level: int) -> Tensor:
        """Resize images (n, c, h, w) to a level: repeat edges, average pixels."""
        (top, bottom), (left, right) = self._margins()
        if top or bottom or left or right:
            images = F.pad(images, (left, right, top, bottom), mode="replicate")
        factor = 2 ** (self.finest - level)
        return F.avg_pool2d(images, factor) if factor > 1 else images

    def enlarged(self, images: Tensor, level: int) -> Tensor:
        """Resize images of a level to the size of the data."""
        if level < self.finest:
            images = F.interpolate(images, scale_factor=2.0 ** (self.finest - level))
        (top, _), (left, _) = self._margins()
        _, height, width = self.shape
        return images[..., top : top + height, left : left + width]

    def changes(self, level: int) -> bool:
        """Return whether images of a level have another size than the data."""
        return self.sides(level) != self.shape[1:]

    def _margins(self):
        full, sides = self.sides(self.finest), self.shape[1:]
        missing = [wide - side for wide, side in zip(full, sides, strict=True)]
        return [(n // 2, n - n // 2) for n in missing]


# Layers with an equalised learning rate ---------------------------------------------


class EqualizedLinear(nn.Module):
    """A linear layer whose weights are scaled when used, not when initialised.

    All weights start from N(0, 1), so that a step of Adam moves each by the same
    share of its size.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Lengths of input and output.
    gain : float
        The weights are multiplied with ``gain / sqrt(n_inputs)``.
    bias : bool
        Whether there is one.
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, gain: float = _GAIN, bias: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_outputs, n_inputs))
        self.bias = nn.Parameter(torch.zeros(n_outputs)) if bias else None
        self.scale = gain / n_inputs**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_inputs) to (n, n_outputs)."""
        return F.linear(x, self.weight * self.scale, self.bias)


class EqualizedConv(nn.Module):
    """A convolution of 3 x 3 pixels whose weights are scaled when used.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Channels before and after.
    """

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_outputs, n_inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(n_outputs))
        self.scale = _GAIN / (n_inputs * 9) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_inputs, h, w) to (n, n_outputs, h, w)."""
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=1)


class PointwiseConv(EqualizedLinear):
    """A convolution of 1 x 1 pixels.

    It is computed as a linear map of channels, so that the output has the channels
    last. The output of torch's convolution of images with one channel has not, and
    makes the next convolution twice as slow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_inputs, h, w) to (n, n_outputs, h, w)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class FusedConv(EqualizedConv):
    """A convolution together with a change of size, by one larger kernel.

    Each weight of that kernel is the sum of up to four neighbours: the product with a
    fixed matrix.
    """

    share = 1.0  # of each of the neighbours
    sums: Tensor

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__(n_inputs, n_outputs)
        axis = torch.eye(4)[:, :3] + torch.eye(4)[:, 1:]
        sums = torch.kron(axis, axis).T * (self.scale * self.share)
        self.register_buffer("sums", sums, persistent=False)

    def kernel(self) -> Tensor:
        """Return the scaled kernel, (n_outputs, n_inputs, 4, 4)."""
        return (self.weight.flatten(2) @ self.sums).unflatten(2, (4, 4))


class UpConv(FusedConv):
    """Doubling of the sides, and a convolution, in one: 4/9 of the products."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_inputs, h, w) to (n, n_outputs, 2 h, 2 w)."""
        kernel = self.kernel().transpose(0, 1).flip(2, 3)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class DownConv(FusedConv):
    """A convolution, and means of 2 x 2 pixels, in one."""

    share = 0.25

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_inputs, 2 h, 2 w) to (n, n_outputs, h, w)."""
        return F.conv2d(x, self.kernel(), self.bias, stride=2, padding=1)


class _PixelNorm(torch.autograd.Function):
    """Vectors of the last dimension with a mean square of 1.

    Its speed is that of the memory: with a gradient of its own it reads and writes
    images half as often as the same formula in tensors.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        """Divide x by its root mean square."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            squares = torch.linalg.vecdot(wide, wide).unsqueeze(-1)
        scale = squares.div_(x.shape[-1]).add_(1e-8).rsqrt_()
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Project the gradient on the plane orthogonal to y, and scale it."""
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(gradient, y).unsqueeze(-1).div_(y.shape[-1])
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale)


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """Normalise `x` to a mean square of 1 along `dim`."""
    return _PixelNorm.apply(x.movedim(dim, -1)).movedim(-1, dim)


class PixelNorm(nn.Module):
    """Pixel normalisation as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape."""
        return pixel_norm(x)


class MinibatchStdDev(nn.Module):
    """An additional channel: the spread of the images of a group.

    In training it is the mean standard deviation in groups of four images. Afterwards
    it is the running mean of that, so that images do not depend on each other.
    """

    spread: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("spread", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c + 1, h, w)."""
        n, _, h, w = x.shape
        if not self.training:
            return torch.cat([x, self.spread.to(x.dtype).expand(n, 1, h, w)], 1)
        groups = x.float().unflatten(0, (-1, gcd(n, GROUP)))
        centred = groups - groups.mean(1, keepdim=True)
        spread = (centred.square().mean(1) + 1e-8).sqrt().mean((1, 2, 3))
        with torch.no_grad():
            self.spread.lerp_(spread.mean(), _MOMENTUM)
        spread = spread.repeat_interleave(gcd(n, GROUP))
        spread = spread.to(x.dtype)[:, None, None, None]
        return torch.cat([x, spread.expand(n, 1, h, w)], 1)


# Networks for images ----------------------------------------------------------------


class Growing(nn.Module):
    """A network that is used up to a level, or between two levels.

    Attributes
    ----------
    level : int
        The finest level in use; 0 is the coarsest.
    fade : float
        Share of the level below in the output, in [0, 1].
    """

    def __init__(self):
        super().__init__()
        self.level, self.fade = 0, 0.0

    def get_extra_state(self) -> list:
        """Return level and fade."""
        return [self.level, self.fade]

    def set_extra_state(self, state: list) -> None:
        """Set level and fade."""
        self.level, self.fade = state


def _active(layer):
    return [layer, nn.LeakyReLU(SLOPE)]


def _normed(layer):
    return [*_active(layer), PixelNorm()]


class Generator(Growing):
    """A generator of images.

    Parameters
    ----------
    latent_dim : int
        Length of a noise vector.
    coarse : tuple of int
        Height and width at level 0.
    channels : list of int
        Channels of each level.
    n_colours : int
        Channels of an image.
    """

    def __init__(self, latent_dim: int, coarse, channels, n_colours: int):
        super().__init__()
        first = channels[0]
        self.dense = EqualizedLinear(latent_dim, first * prod(coarse), _GAIN / 4, False)
        self.bias = nn.Parameter(torch.zeros(first, 1, 1))
        self.conv = EqualizedConv(first, first)
        self.blocks = nn.ModuleList(
            nn.Sequential(*_normed(UpConv(i, o)), *_normed(EqualizedConv(o, o)))
            for i, o in pairwise(channels)
        )
        self.to_image = nn.ModuleList(
            PointwiseConv(c, n_colours, gain=1.0) for c in channels
        )
        self.coarse = coarse
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z: Tensor) -> Tensor:
        """Map (n, latent_dim) to images of the current level."""
        x = self.dense(pixel_norm(z)).unflatten(1, (-1, *self.coarse)) + self.bias
        x = pixel_norm(F.leaky_relu(x, SLOPE))
        x = x.contiguous(memory_format=torch.channels_last)
        x = below = pixel_norm(F.leaky_relu(self.conv(x), SLOPE))
        for block in self.blocks[: self.level]:
            below, x = x, block(x)
        image = self.to_image[self.level](x)
        if self.level and self.fade:
            coarser = upsampled(self.to_image[self.level - 1](below))
            image = faded(image, coarser, self.fade)
        return image


class Tower(Growing):
    """The encoder, and the critic without its last layer.

    Parameters
    ----------
    coarse, channels, n_colours
        As in :class:`Generator`.
    n_outputs : int
        Length of the output.
    rectified : bool
        Whether the last layer is a LeakyReLU.
    """

    def __init__(
        self, coarse, channels, n_colours: int, n_outputs: int, rectified: bool = True
    ):
        super().__init__()
        self.rectified = rectified
        first = channels[0]
        self.from_image = nn.ModuleList(PointwiseConv(n_colours, c) for c in channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(*_active(EqualizedConv(i, i)), *_active(DownConv(i, o)))
            for o, i in pairwise(channels)
        )
        self.spread = MinibatchStdDev()
        self.conv = EqualizedConv(first + 1, first)
        self.dense = EqualizedLinear(first * prod(coarse), n_outputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """Map images of the current level to (n, n_outputs)."""
        image = image.contiguous(memory_format=torch.channels_last)
        x = self._entered(image, self.level)
        for level in range(self.level, 0, -1):
            x = self.blocks[level - 1](x)
            if level == self.level and self.fade:
                coarser = self._entered(F.avg_pool2d(image, 2), level - 1)
                x = faded(x, coarser, self.fade)
        x = F.leaky_relu(self.conv(self.spread(x)), SLOPE)
        x = self.dense(x.flatten(1))
        return F.leaky_relu(x, SLOPE) if self.rectified else x

    def _entered(self, image, level):
        return F.leaky_relu(self.from_image[level](image), SLOPE)


class Critic(nn.Sequential):
    """A critic of images."""

    def __init__(self, coarse, channels, n_colours: int):
        tower = Tower(coarse, channels, n_colours, channels[0])
        super().__init__(tower, EqualizedLinear(channels[0], 1, gain=1.0))

    def forward(self, image: Tensor) -> Tensor:
        """Map images of the current level to (n,)."""
        return super().forward(image).squeeze(1)


# Networks for tables ----------------------------------------------------------------


class TableGenerator(nn.Module):
    """An ensemble of MLPs that generate samples from the direction of noise.

    Parameters
    ----------
    n_estimators : int
        Number of MLPs.
    sizes : sequence of int
        Length of the noise, units of the hidden layers, columns.
    """

    def __init__(self, n_estimators: int, sizes):
        super().__init__()
        self.mlp = StackedMLP(n_estimators, sizes)

    def forward(self, z: Tensor) -> Tensor:
        """Map (k, n, latent_dim) to (k, n, columns)."""
        return self.mlp(pixel_norm(z, -1))


class TableCritic(StackedCritic):
    """An ensemble of MLPs with one output."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, columns) to (k, n)."""
        return super().forward(x).squeeze(-1)


def keeps_apart(critic: nn.Module, n: int) -> bool:
    """Return whether a critic treats two batches of `n` samples separately in one."""
    if isinstance(critic, TableCritic):
        return True
    is_own = isinstance(critic, Ensemble) and all(
        isinstance(member, Critic) for member in critic.members
    )
    return is_own and n % GROUP == 0  # no group has samples of both


# Families ---------------------------------------------------------------------------


def channels_of(frame: Frame, width: int, max_width: int) -> list[int]:
    """Return the channels of each level: `width` at the last, twice that below."""
    exponents = range(frame.finest, -1, -1)
    return [min(width * 2**k, max_width) for k in exponents]


def image_networks(
    frame: Frame, latent_dim: int, width: int, max_width: int, rectified: bool
) -> Builders:
    """Return the builders of the networks for images, each for one member."""
    sizes = frame.coarse, channels_of(frame, width, max_width), frame.shape[0]
    return {
        "generator": partial(Generator, latent_dim, *sizes),
        "critic": partial(Critic, *sizes),
        "encoder": partial(Tower, *sizes, latent_dim, rectified),
    }


def table_networks(k: int, n_columns: int, latent_dim: int, width: int) -> Builders:
    """Return the builders of the networks for tables, each for k members."""
    sizes = n_columns, width, width, latent_dim
    return {
        "generator": partial(TableGenerator, k, sizes[::-1]),
        "critic": partial(TableCritic, k, (n_columns, width, width, 1)),
        "encoder": partial(StackedMLP, k, sizes),
    }
