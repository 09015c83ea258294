"""Encoders, decoders and classifiers of domains: for tables, images, clips.

Those for images of 3 x 28 x 28 and for clips of 1 x 16 x 256 x 256 are the paper's.
Each function maps sizes to a module; latent codes are vectors (n, l) throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import SLOPE, Builders, StackedMLP, n_halvings
from ..utils._kinds import CLIP, IMAGE

Sides = tuple[int, ...]

_HIDDEN, _DROPOUT = 128, 0.5  # of the classifier
_COARSEST = 9  # pixels of the longer side, before the last stride of an image
_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Layers:
    """Sizes of the layers of an encoder, and modules for both directions.

    Parameters
    ----------
    shape : tuple of int
        Shape (c, h, w) or (c, t, h, w) of a sample.
    width : int
        Channels of the first layer.

    Attributes
    ----------
    channels : list of int
        Before the first layer, and after each.
    strides : list of tuple of int
        Of each layer.
    sides : list of tuple of int
        Before the first layer, and after each.
    """

    def __init__(self, shape: tuple[int, ...], width: int):
        n_channels, *sides = shape
        if len(shape) == len(IMAGE.axes):
            n = n_halvings(shape, _COARSEST)
            # 32, 16, 8 with two halvings; more of them leave the finest at 32.
            outputs = [max(min(width, width >> 2 << k), 1) for k in range(n + 1)][::-1]
            steps: list[Sides] = [*[(2, 2)] * n, (3, 3)]
        else:
            outputs = [width, 4 * width // 3, 8 * width // 3, 8 * width // 3]
            steps = [(1, 2, 2), *[(2, 2, 2)] * 3]
        self.channels = [n_channels, *outputs]
        self.strides = steps
        self.sides: list[Sides] = [tuple(sides)]
        for stride in steps:
            pairs = zip(self.sides[-1], stride, strict=True)
            self.sides.append(tuple((side - 1) // step + 1 for side, step in pairs))

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape (c, ...) of the output of the last layer."""
        return self.channels[-1], *self.sides[-1]

    def encoder(self, latent_dim: int) -> nn.Module:
        """Build a module that maps samples (n, c, ...) to codes (n, latent_dim)."""
        d = len(self.sides[0])
        modules: list[nn.Module] = []
        for (i, o), stride in zip(pairwise(self.channels), self.strides, strict=True):
            modules.append(_CONV[d](i, o, 3, stride, 1))
            modules += [_NORM[d](o), nn.LeakyReLU(SLOPE, inplace=True)]
        modules.append(nn.Flatten())
        if latent_dim != prod(self.code_shape):
            modules.append(nn.Linear(prod(self.code_shape), latent_dim))
        return _channels_last(nn.Sequential(*modules), d)

    def decoder(self, latent_dim: int) -> nn.Module:
        """Build a module that maps codes (n, latent_dim) to samples (n, c, ...)."""
        d = len(self.sides[0])
        modules: list[nn.Module] = []
        if latent_dim != prod(self.code_shape):
            modules.append(nn.Linear(latent_dim, prod(self.code_shape)))
        modules.append(nn.Unflatten(1, self.code_shape))
        outputs = [self.channels[0], *self.channels[1:-1]][::-1]
        back = zip(outputs, self.strides[::-1], self.sides[-2::-1], strict=True)
        i = self.channels[-1]
        for o, stride, sides in back:
            # Pixels that the stride leaves over at the end of each side.
            rest = tuple((n - 1) % s for n, s in zip(sides, stride, strict=True))
            modules.append(_TRANSPOSED[d](i, o, 3, stride, 1, output_padding=rest))
            modules += [_NORM[d](o), nn.LeakyReLU(SLOPE, inplace=True)]
            i = o
        return _channels_last(nn.Sequential(*modules[:-2]), d)

    def classifier(self, latent_dim: int) -> nn.Module:
        """Build a module that maps codes (n, latent_dim) to logits (n,)."""
        pooled: list[nn.Module] = []
        n_features = latent_dim
        of_clips = len(self.sides[0]) + 1 == len(CLIP.axes)
        if of_clips and latent_dim == prod(self.code_shape):
            n_features = self.code_shape[0]
            pooled = [nn.Unflatten(1, self.code_shape), nn.AdaptiveAvgPool3d(1)]
        return nn.Sequential(
            *pooled,
            nn.Flatten(),
            *_hidden(n_features),
            *_hidden(_HIDDEN),
            nn.Linear(_HIDDEN, 1),
            nn.Flatten(0),
        )


def _hidden(n_inputs: int) -> list[nn.Module]:
    return [nn.Linear(n_inputs, _HIDDEN), nn.ReLU(), nn.Dropout(_DROPOUT)]


def _channels_last(module: nn.Module, n_sides: int) -> nn.Module:
    """Return `module` in the fastest memory format for convolutions."""
    if n_sides == 2:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


class StackedClassifier(StackedMLP):
    """An ensemble of classifiers of domains, for the latent codes of tables."""

    def __init__(self, n_estimators: int, n_inputs: int):
        sizes = n_inputs, _HIDDEN, _HIDDEN, 1
        super().__init__(n_estimators, sizes, slope=0.0, dropout=_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, l) to (k, n)."""
        return super().forward(x).squeeze(-1)


def table_networks(k: int, n_columns: int, latent_dim: int, width: int) -> Builders:
    """Return the builders of the networks for tables, each for k members."""
    sizes = n_columns, width, max(width // 2, 1), latent_dim
    return {
        "encoder": partial(StackedMLP, k, sizes, True),
        "decoder": partial(StackedMLP, k, sizes[::-1], True),
        "classifier": partial(StackedClassifier, k, latent_dim),
    }


def natural_latent_dim(shape: Sequence[int], width: int) -> int:
    """Return the number of outputs of the last layer for an image or a clip."""
    return prod(Layers(tuple(shape), width).code_shape)


def conv_networks(shape: Sequence[int], latent_dim: int, width: int) -> Builders:
    """Return the builders of the networks for images or clips, each for one member."""
    layers = Layers(tuple(shape), width)
    return {
        "encoder": partial(layers.encoder, latent_dim),
        "decoder": partial(layers.decoder, latent_dim),
        "classifier": partial(layers.classifier, latent_dim),
    }
