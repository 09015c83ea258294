"""Backbones, their sources, and the preparation of images for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ._adapters import StackedLinear

#: Mean and standard deviation of the channels of ImageNet, of pixels in [0, 1].
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Least side, in pixels, of the images of networks for large photographs, which see
#: mostly blurs in smaller ones.
_LEAST_SIDE = 64
_BLOCKS = 4  # in each stage of ResNet26
_COLOURS = 3


# The package's own ------------------------------------------------------------------


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut that has no parameters.

    Parameters
    ----------
    n_in, n_out : int
        Channels.
    stride : int
        Of the first convolution; with 2, the shortcut is a mean of 2 x 2 pixels.
    """

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.n_more, self.stride = n_out - n_in, stride
        self.layers = nn.Sequential(
            *(convolution(n_in, n_out, stride), nn.BatchNorm2d(n_out), nn.ReLU()),
            *(convolution(n_out, n_out, 1), nn.BatchNorm2d(n_out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, h, w) to (n, n_out, h / stride, w / stride)."""
        y = self.layers(x)
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.n_more:
            x = F.pad(x, (0, 0, 0, 0, 0, self.n_more))
        return F.relu(x + y)


class ResNet26(nn.Sequential):
    """The residual network of the paper: 25 convolutions in a stem and three stages.

    Parameters
    ----------
    n_channels : int
        Channels of the images.
    width : int
        Channels of the first stage, 64 in the paper; the second has twice as many,
        the third four times, the stem half.
    """

    def __init__(self, n_channels: int = 3, width: int = 64):
        stem = max(width // 2, 1)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        stages["stem"] = nn.Sequential(
            convolution(n_channels, stem, 1), nn.BatchNorm2d(stem)
        )
        n_in = stem
        for k, n_out in enumerate((width, 2 * width, 4 * width), 1):
            blocks = [Block(n_in, n_out, 2)]
            blocks += [Block(n_out, n_out, 1) for _ in range(_BLOCKS - 1)]
            stages[f"stage_{k}"] = nn.Sequential(*blocks)
            n_in = n_out
        stages["end"] = nn.Sequential(
            *(nn.BatchNorm2d(n_in), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        super().__init__(stages)

    @classmethod
    def of_weights(cls, weights: dict[str, Tensor]) -> ResNet26:
        """Return a network with weights as :meth:`state_dict` names them."""
        n_channels = weights["stem.0.weight"].shape[1]
        network = cls(n_channels, len(weights["stage_1.0.layers.0.weight"]))
        network.load_state_dict(weights)
        return network


def convolution(n_in: int, n_out: int, stride: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution without bias, started as by Rebuffi et al."""
    layer = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
    nn.init.normal_(layer.weight, std=(2 / (9 * n_out)) ** 0.5)
    return layer


# StackedMLP has other initial weights, another activation, and no layers to adapt.
def stacked_mlps(n_estimators: int, n_columns: int, width: int) -> nn.Sequential:
    """Return an ensemble of MLPs for tables: (k, n, d) to features (k, n, width)."""
    return nn.Sequential(
        *(StackedLinear(n_estimators, n_columns, width), nn.GELU()),
        *(StackedLinear(n_estimators, width, width), nn.GELU()),
        StackedLinear(n_estimators, width, width),
    )


# By name, from a file ---------------------------------------------------------------


class Source(NamedTuple):
    """The source of a frozen network, and the images that it expects.

    Attributes
    ----------
    build : callable
        Returns the network.
    n_estimators : int
        Members of an ensemble; 0 means a single network.
    normalization : tuple of (mean, spread), or None
        Mean and standard deviation of each channel, of pixels in [0, 1]; None for
        pixels in [-1, 1].
    least_side : int
        Shorter side to which smaller images are enlarged, in pixels.
    """

    build: Callable[[], nn.Module]
    n_estimators: int = 0
    normalization: tuple | None = None
    least_side: int = 0


def find_backbone(backbone, weights: dict[str, Tensor] | None = None) -> Source:
    """Return the source of a pretrained network given as a module, a file or a name.

    Parameters
    ----------
    backbone : torch.nn.Module, str or path-like
        The parameter of the detector.
    weights : dict of str to Tensor, optional
        Weights that will replace those of the source, in the order of its layers. A
        file is then not read. A name is still looked up in torchvision, since its
        weights also determine the preparation of images.
    """
    if isinstance(backbone, nn.Module):
        return given_backbone(backbone)
    path = Path(backbone)
    if path.suffix != ".safetensors" and not path.is_file():
        return _by_name(str(backbone))
    if weights is None:
        return Source(partial(_from_file, path))
    kernels = [tensor for tensor in weights.values() if tensor.ndim == 4]
    return Source(partial(ResNet26, kernels[0].shape[1], len(kernels[1])))


def given_backbone(network: nn.Module) -> Source:
    """Return a network as a source; its attributes may describe its images."""
    build = partial(existing, network)
    stacked = (m for m in network.modules() if isinstance(m, StackedLinear))
    if (first := next(stacked, None)) is not None:
        return Source(build, len(first.weight))
    if (known := getattr(network, "expected_images", None)) is not None:
        return Source(build, 0, *known)
    if isinstance(network, ResNet26):
        return Source(build)
    config = getattr(network, "pretrained_cfg", None)  # of timm
    if isinstance(config, dict) and {"mean", "std"} <= config.keys():
        return Source(build, 0, (config["mean"], config["std"]), _LEAST_SIDE)
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    in_colour = _COLOURS in (m.in_channels for m in convolutions)
    return Source(build, 0, IMAGENET if in_colour else None, _LEAST_SIDE)


def _from_file(path):
    try:
        with path.open("rb"):  # safetensors has no clear error for a missing file
            return ResNet26.of_weights(load_file(path))
    except FileNotFoundError as error:
        raise ValueError(f"backbone={str(path)!r}: there is no such file.") from error
    except (SafetensorError, LookupError, RuntimeError) as error:
        raise ValueError(
            f"backbone={str(path)!r} does not hold the weights of a ResNet26, as "
            "safetensors.torch.save_file(detector.backbone_.state_dict(), path) writes "
            f"them: {error}"
        ) from error


def _by_name(name):
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError(
            f"backbone={name!r} is neither 'resnet26' nor a file, and names of "
            "torchvision need its installation: python -m pip install "
            "'skanomaly[vision]'. You can also give any torch module."
        ) from error
    try:
        weights = models.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise ValueError(f"backbone={name!r}: {error}") from error
    wants = weights.transforms()
    build = partial(_fetched, models.get_model, name, weights)
    return Source(build, 0, (tuple(wants.mean), tuple(wants.std)), _LEAST_SIDE)


def _fetched(get_model, name, weights):
    try:
        return get_model(name, weights=weights)
    except OSError as error:  # for example without a connection
        raise OSError(
            f"The weights of backbone={name!r} cannot be fetched: {error}. Give the "
            "network itself, a module, in the place of its name; to `load` as well."
        ) from error


def existing(network: nn.Module) -> nn.Module:
    """Return an existing network, as the builder of a source."""
    return network


# Images -----------------------------------------------------------------------------


class ImagePreparation(NamedTuple):
    """Resizes and normalises scaled images for a network.

    Attributes
    ----------
    sides : tuple of int
        Height and width; images are interpolated.
    mean, spread : tuple of float, or None
        Mean and standard deviation of each channel, of pixels in [0, 1]; None leaves
        pixels in [-1, 1].
    """

    sides: tuple[int, int]
    mean: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Map scaled images (n, c, h, w) to images of those sides."""
        if images.shape[2:] != self.sides:
            images = resized(images, self.sides)
        if self.mean is not None:
            mean, spread = (
                images.new_tensor(values).view(-1, 1, 1)
                for values in (self.mean, self.spread)
            )
            images = ((images + 1) / 2 - mean) / spread
        return images.contiguous(memory_format=torch.channels_last)


def preparation_for(
    source: Source,
    shape: tuple[int, ...],
    input_size: int | str,
    normalization: Iterable | None,
    any_channels: bool,
) -> ImagePreparation:
    """Return the preparation of images for a network.

    Parameters
    ----------
    source : Source
        The network.
    shape : tuple of int
        Shape (c, h, w) of an image.
    input_size : int or "auto"
        Shorter side of resized images; "auto" enlarges small ones for the network.
    normalization : pair of array-like, or None
        Means and standard deviations of channels; None leaves pixels in [-1, 1].
    any_channels : bool
        Whether the network takes the channels of the images, however many they are.

    Raises
    ------
    ValueError
        If `normalization` is not a valid pair, or is for another number of channels.
    """
    n_channels, height, width = shape
    short = min(height, width)
    wanted = max(short, source.least_side) if input_size == "auto" else int(input_size)
    sides = round(height * wanted / short), round(width * wanted / short)
    if normalization is None:
        return ImagePreparation(sides)
    means, spreads = checked_pair(normalization, n_channels)
    n_given = max(len(means), len(spreads))
    # Other networks may take grey images as three channels.
    if any_channels and n_given not in (1, n_channels):
        raise ValueError(
            f"normalization is for {n_given} channels, and the network of the package "
            f"takes the {n_channels} of the images: give one for these, or None."
        )
    return ImagePreparation(sides, means, spreads)


def checked_pair(normalization: Iterable, n_channels: int) -> tuple[tuple, tuple]:
    """Return the means and standard deviations of channels.

    Parameters
    ----------
    normalization : pair of array-like
        Means and deviations, unchecked.
    n_channels : int
        Channels of the images.

    Raises
    ------
    ValueError
        If `normalization` is not a valid pair, or is for another number of channels.
    """
    try:
        means, spreads = (np.ravel(np.asarray(part, float)) for part in normalization)
    except (TypeError, ValueError):
        means, spreads = np.empty(0), np.empty(0)
    sizes = {len(means), len(spreads)}
    finite = np.isfinite(means).all() and np.isfinite(spreads).all()
    positive = finite and (spreads > 0).all()
    if sizes not in ({1}, {_COLOURS}, {n_channels}) or not positive:
        raise ValueError(
            f"normalization={normalization!r} has to be a pair, means and standard "
            "deviations above 0, each of one number or one per channel, all finite."
        )
    if len(means) > 1 < n_channels != len(means):
        raise ValueError(
            f"The images have {n_channels} channels, and the normalization is for "
            f"{len(means)}: give one for yours, or normalization=None."
        )
    return tuple(means.tolist()), tuple(spreads.tolist())


def shape_after(prepare: Callable, row_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a sample after a preparation, which may resize it."""
    return row_shape[0], *getattr(prepare, "sides", row_shape[1:])


def resized(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return images (n, c, h, w) with other sides, interpolated."""
    # Enlarged images need no antialiasing, which is slow.
    shrinks = any(new < old for new, old in zip(sides, images.shape[2:], strict=True))
    return F.interpolate(images, sides, mode="bilinear", antialias=shrinks)
