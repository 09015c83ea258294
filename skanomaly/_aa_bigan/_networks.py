"""Encoders, generators and discriminators: for tables, grey images, colour images.

Those for images of 32 x 32 pixels are the paper's; other sizes get more or fewer
layers of the same kinds. Each function maps sizes to a module.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks import (
    Builders,
    ConvGenerator,
    Ensemble,
    StackedMLP,
    coarse_shape,
    n_halvings,
)

_COARSEST = 4  # pixels of the longer side, where generators start
_SLOPE = 0.1  # of LeakyReLU left of zero
_GREY = 1  # channel


def working_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (c, h, w) that images of such a shape are resized to.

    Each side becomes the next multiple of the power of 2 that leaves 4 pixels of the
    longer one: 28 x 28 becomes 32 x 32, as in the paper.
    """
    n = n_halvings(shape, _COARSEST)
    sides = (max(side, 2) * 2**n for side in coarse_shape(shape, _COARSEST))
    return shape[0], *sides


class TwoTowers(nn.Module):
    """A discriminator of pairs: a tower for each half, and two layers that join them.

    Parameters
    ----------
    first, second : torch.nn.Module
        Map (n, ...) to features (n, f1) and (n, f2).
    n_features : int
        f1 + f2.
    width : int
        Units of the first layer that joins them.
    """

    def __init__(self, first, second, n_features: int, width: int):
        super().__init__()
        self.first, self.second = first, second
        self.head = nn.Sequential(
            nn.Linear(n_features, width), nn.LeakyReLU(_SLOPE), nn.Linear(width, 1)
        )

    def forward(self, first: Tensor, *seconds: Tensor) -> Tensor:
        """Map (n, ...) and (n, ...) to (n,); for s seconds, each (n, ...), to (s, n).

        Each second has batch statistics of its own, and all have one first.
        """
        of_first = self.first(first)
        values = [
            self.head(torch.cat([of_first, self.second(second)], 1)).squeeze(1)
            for second in seconds
        ]
        return torch.stack(values) if len(values) > 1 else values[0]


def shares_firsts(discriminator: nn.Module) -> bool:
    """Return whether a discriminator takes several seconds for one first."""
    return isinstance(discriminator, Ensemble) and all(
        isinstance(member, TwoTowers) for member in discriminator.members
    )


class StackedPairs(nn.Module):
    """Discriminators of pairs: an ensemble of MLPs.

    Parameters
    ----------
    n_estimators, n_inputs, width : int
        Number of MLPs, length of a pair, units of the two hidden layers.
    """

    def __init__(self, n_estimators: int, n_inputs: int, width: int):
        super().__init__()
        self.mlp = StackedMLP(n_estimators, (n_inputs, width, width, 1), slope=_SLOPE)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map (k, n, d1) and (k, n, d2) to (k, n)."""
        return self.mlp(torch.cat([first, second], -1)).squeeze(-1)


# Grey images ----------------------------------------------------------------------


def grey_encoder(shape, latent_dim: int, width: int) -> nn.Module:
    """Build an encoder that halves images down to one pixel."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for k in range(n_halvings(shape, 1)):
        wider = width * 2 ** min(k, 4)
        layers.append(nn.Conv2d(channels, wider, 3, 2, 1))
        layers += [nn.BatchNorm2d(wider)] if k else []
        layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
        channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, latent_dim))


def grey_generator(latent_dim: int, shape, width: int, bounded: bool) -> nn.Module:
    """Build a generator of transposed convolutions."""
    return ConvGenerator(
        latent_dim, shape, max(width // 2, 1), bounded, _COARSEST, True, slope=0.0
    )


def grey_tower(shape, width: int) -> tuple[nn.Module, int]:
    """Build a module that maps images to features; return their number too."""
    layers: list[nn.Module] = []
    channels, wider = shape[0], 2 * width
    for k in range(n_halvings(shape, _COARSEST) + 1):
        layers.append(nn.Conv2d(channels, wider, 4, 2, 1))
        layers += [nn.BatchNorm2d(wider)] if k else []
        layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
        channels = wider
    sides = (side // 2 for side in coarse_shape(shape, _COARSEST))
    return nn.Sequential(*layers, nn.Flatten()), channels * prod(sides)


# Colour images --------------------------------------------------------------------


class DoublingConv(nn.ConvTranspose2d):
    """Doubling of the sides, and a transposed convolution of 5 x 5 pixels, in one.

    Each of the four pixels that replace one sees 3 x 3 of the smaller image: a
    convolution with four times as many channels takes 9/25 of the products, and is
    fast for images with few channels, too.

    Parameters
    ----------
    n_inputs, n_outputs : int
        Channels before and after.
    """

    sums: Tensor

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__(n_inputs, n_outputs, 5, padding=2, bias=False)
        # By axis, the pixels 0 and 1 of a pair see two and three neighbours as one.
        axis = torch.zeros(2, 3, 5)
        for pixel in range(2):
            for tap in range(5):
                axis[pixel, (pixel + tap) // 2, tap] = 1
        sums = torch.einsum("pau,qbv->uvpqab", axis, axis).flip(0, 1)
        self.register_buffer("sums", sums.reshape(25, 36), persistent=False)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (n, n_inputs, h, w) to (n, n_outputs, 2 h, 2 w)."""
        kernels = (self.weight.flatten(2) @ self.sums).unflatten(2, (4, 9))
        kernel = kernels.permute(2, 1, 0, 3).flatten(0, 1).unflatten(2, (3, 3))
        y = F.conv2d(x, kernel, padding=1)
        pixels = y.movedim(1, -1).unflatten(3, (2, 2, -1)).transpose(2, 3)
        return pixels.flatten(1, 2).flatten(2, 3).movedim(-1, 1)


def _batch_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-4, affine=False)


def _leaky_relu():
    return nn.LeakyReLU(0.01, inplace=True)


def colour_tower(shape, width: int) -> tuple[nn.Module, int]:
    """Build a module that maps images to features; return their number too."""
    layers: list[nn.Module] = []
    channels, n = shape[0], max(n_halvings(shape, _COARSEST), 1)
    for k in range(n):
        wider = width * 2**k
        layers.append(nn.Conv2d(channels, wider, 5, padding=2, bias=False))
        # A LeakyReLU has the same maxima, and less to do after the pooling.
        layers += [_batch_norm(wider), nn.MaxPool2d(2), _leaky_relu()]
        channels = wider
    sides = (side // 2**n for side in shape[1:])
    return nn.Sequential(*layers, nn.Flatten()), channels * prod(sides)


def colour_encoder(shape, latent_dim: int, width: int) -> nn.Module:
    """Build an encoder: the tower, and a linear map of its features to codes."""
    tower, n_features = colour_tower(shape, width)
    return nn.Sequential(tower, nn.Linear(n_features, latent_dim, bias=False))


def colour_generator(latent_dim: int, shape, width: int, bounded: bool) -> nn.Module:
    """Build a generator of convolutions and nearest-neighbour upsampling."""
    coarse, channels = coarse_shape(shape, _COARSEST), 8
    n_inputs = channels * prod(coarse)
    layers: list[nn.Module] = []
    if latent_dim != n_inputs:
        layers.append(nn.Linear(latent_dim, n_inputs, bias=False))
    layers += [nn.Unflatten(1, (channels, *coarse)), nn.LeakyReLU(0.01)]
    widths = [width * 2**k for k in reversed(range(n_halvings(shape, _COARSEST)))]
    for k, wider in enumerate([*widths, shape[0]]):
        if k:
            layers += [_batch_norm(channels), _leaky_relu()]
            layers.append(DoublingConv(channels, wider))
        else:
            start = nn.ConvTranspose2d(channels, wider, 5, padding=2, bias=False)
            layers.append(start)
        channels = wider
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            gain = nn.init.calculate_gain("leaky_relu", 0.01)
            nn.init.xavier_uniform_(layer.weight, gain)
    return nn.Sequential(*layers, *([nn.Tanh()] if bounded else []))


# Families ---------------------------------------------------------------------------


def table_networks(k: int, n_columns: int, latent_dim: int, width: int) -> Builders:
    """Return the builders of the networks for tables, each for k members."""
    sizes = n_columns, width, max(width // 2, 1), latent_dim
    return {
        "encoder": partial(StackedMLP, k, sizes, True, _SLOPE),
        "generator": partial(StackedMLP, k, sizes[::-1], True, _SLOPE),
        "discriminator_xz": partial(StackedPairs, k, n_columns + latent_dim, width),
        "discriminator_xx": partial(StackedPairs, k, 2 * n_columns, width),
    }


def image_networks(shape, latent_dim: int, width: int, bounded: bool) -> Builders:
    """Return the builders of the networks for images, each for one member."""
    grey = shape[0] == _GREY
    encoder = grey_encoder if grey else colour_encoder
    generator = grey_generator if grey else colour_generator
    tower = partial(grey_tower if grey else colour_tower, shape, width)
    builders = {
        "encoder": partial(encoder, shape, latent_dim, width),
        "generator": partial(generator, latent_dim, shape, width, bounded),
        "discriminator_xz": partial(_discriminator_xz, tower, latent_dim, width),
        "discriminator_xx": partial(_discriminator_xx, tower, width),
    }
    return {role: partial(_channels_last, build) for role, build in builders.items()}


def _channels_last(build):
    """Build a module in the fastest memory format for convolutions."""
    return build().to(memory_format=torch.channels_last)


def _discriminator_xz(tower, latent_dim, width):
    (on_image, n_features), on_code = tower(), nn.Linear(latent_dim, 16 * width)
    return TwoTowers(on_image, on_code, n_features + 16 * width, 32 * width)


def _discriminator_xx(tower, width):
    (first, n_features), (second, _) = tower(), tower()
    return TwoTowers(first, second, 2 * n_features, 32 * width)
