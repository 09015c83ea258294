"""Pretrained networks: the package's own, a user's, one by name, one from a file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ._adapters import StackedLinear

#: Mean and standard deviation of the channels of ImageNet, of pixels in [0, 1].
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: What networks for large photographs need to see more than blurs, in pixels.
_LEAST_SIDE = 64
_BLOCKS = 4  # in each stage of ResNet26


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
    """Return a 3 x 3 convolution without bias, with the start of Rebuffi et al."""
    layer = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
    nn.init.normal_(layer.weight, std=(2 / (9 * n_out)) ** 0.5)
    return layer


def perceptrons(n_estimators: int, n_columns: int, width: int) -> nn.Sequential:
    """Return networks for tables, side by side: (k, n, d) to features (k, n, width)."""
    return nn.Sequential(
        *(StackedLinear(n_estimators, n_columns, width), nn.GELU()),
        *(StackedLinear(n_estimators, width, width), nn.GELU()),
        StackedLinear(n_estimators, width, width),
    )


# By name, from a file ---------------------------------------------------------------


class Source(NamedTuple):
    """Where a frozen network comes from.

    Attributes
    ----------
    build : callable
        Returns the network.
    n_estimators : int
        How many networks it is, side by side; 0 for one by itself.
    normalization : tuple of (mean, spread), or None
        What it wants of each channel, of pixels in [0, 1]; None for [-1, 1].
    least_side : int
        Shorter side to which smaller images are enlarged, in pixels.
    """

    build: Callable[[], nn.Module]
    n_estimators: int = 0
    normalization: tuple | None = None
    least_side: int = 0


def find_backbone(backbone, weights: dict[str, Tensor] | None = None) -> Source:
    """Return the source of a pretrained network: a module, a file, a name.

    With `weights`, in the order of its layers, those in a file do not matter, and are
    not read. Names are always looked up: weights decide on more than numbers there.
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
    """Return a network as a source, with what can be known of it."""
    build = partial(itself, network)
    stacked = (m for m in network.modules() if isinstance(m, StackedLinear))
    if (first := next(stacked, None)) is not None:
        return Source(build, len(first.weight))
    if (known := getattr(network, "taken_for", None)) is not None:
        return Source(build, 0, *known)
    if isinstance(network, ResNet26):
        return Source(build)
    config = getattr(network, "pretrained_cfg", None)  # of timm
    if isinstance(config, dict) and {"mean", "std"} <= config.keys():
        return Source(build, 0, (config["mean"], config["std"]), _LEAST_SIDE)
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    in_colour = len(IMAGENET[0]) in (m.in_channels for m in convolutions)
    return Source(build, 0, IMAGENET if in_colour else None, _LEAST_SIDE)


def _from_file(path):
    try:
        with path.open("rb"):  # safetensors says of any other trouble that it is none
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
            f"backbone={name!r} is neither 'resnet26' nor a file, and to look it up in "
            "torchvision, that has to be installed: "
            "python -m pip install 'skanomaly[vision]'. Any torch module will do too."
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
    except OSError as error:  # among others, what is raised without a connection
        raise OSError(
            f"The weights of backbone={name!r} cannot be fetched: {error}. Give the "
            "network itself, a module, in the place of its name; to `load` as well."
        ) from error


def itself(network: nn.Module) -> nn.Module:
    """Return a network that is there already."""
    return network
