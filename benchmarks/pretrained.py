"""Two pretrained networks, from weights in the data folder.

MobileNetV2 was trained on ImageNet. It takes RGB images (n, 3, h, w) scaled to [-1, 1],
of 32 pixels a side or more, and returns features averaged over the image. It is a
sequence of stages, so that ``network[:n]`` is the part below stage n. ResNet20 was
trained on CIFAR-10.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MOBILENET = "mobilenet_v2_1.0_224_imagenet_float32.npz"
RESNET = "resnet20_cifar10.th"
#: Mean and deviation of channels, of pixels in [0, 1].
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mobilenet_v2(folder, classify=False):
    """Return MobileNetV2 1.0 with batch norm merged into its convolutions.

    Parameters
    ----------
    folder : str or path
        Data folder, which has the weights in its subfolder ``weights``.
    classify : bool, default=False
        Return the logits of 1001 classes, the first of them background, in place of
        the 1280 pooled features.

    Returns
    -------
    network : torch.nn.Sequential
        Stages ``stem``, ``block1`` to ``block17``, ``last`` and ``pool``.
    """
    arrays = _arrays(folder, MOBILENET)
    graph = json.loads(str(arrays.pop("graph")))
    stages, layers = OrderedDict(), []
    for op, following in pairwise(graph):
        if op["op"] != "conv":
            continue
        key, activated = op["key"], op["act"] == "relu6"
        layers += _same_conv(_tensors(arrays, key), op["stride"], op["groups"])
        layers += [nn.ReLU6()] * activated
        if key == "00":
            stages["stem"], layers = nn.Sequential(*layers), []
        elif not activated:  # a block ends in a convolution without an activation
            block = Shortcut if following["op"] == "add" else nn.Sequential
            stages[f"block{len(stages)}"], layers = block(*layers), []
    stages["last"] = nn.Sequential(*layers)
    stages["pool"] = _pool()
    if classify:
        weight, bias = _tensors(arrays, "52")
        stages["classes"] = nn.Linear(*weight.shape[1::-1])
        _fill(stages["classes"], weight[:, :, 0, 0], bias)
    return nn.Sequential(stages).eval()


def resnet20(folder):
    """Return ResNet20, pretrained on CIFAR-10 with its labels, for other images.

    Parameters
    ----------
    folder : str or path
        Data folder, as above.

    Returns
    -------
    network : torch.nn.Module
        Maps images, normalised by `IMAGENET`, to 64 features.
    """
    path = Path(folder) / "weights" / RESNET
    weights = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    network = ResNet20()
    network.load_state_dict({k: v for k, v in weights.items() if "linear" not in k})
    return network.eval()


class ResNet20(nn.Module):
    """Three stages of three blocks."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = _conv3(3, 16, 1), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32), _Block(32, 32), _Block(32, 32))
        self.layer3 = nn.Sequential(_Block(32, 64), _Block(64, 64), _Block(64, 64))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))


class _Block(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.stride, self.n_more = n_out // n_in, (n_out - n_in) // 2
        self.conv1, self.bn1 = _conv3(n_in, n_out, self.stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = _conv3(n_out, n_out, 1), nn.BatchNorm2d(n_out)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return F.relu(F.pad(x, (0, 0, 0, 0, self.n_more, self.n_more)) + y)


def _conv3(n_in, n_out, stride):
    return nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)


class Shortcut(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x):
        return x + super().forward(x)


class SamePad(nn.Module):
    """Padding of TensorFlow before a 3 x 3 convolution of stride 2.

    An even side is padded at its end only, an odd one at both ends.
    """

    def forward(self, x):
        return F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))


def _arrays(folder, name):
    with np.load(Path(folder) / "weights" / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _tensors(arrays, key):
    parts = ("weight", "bias")
    return tuple(torch.from_numpy(arrays[f"{key}_{part}"]) for part in parts)


def _conv(tensors, **options):
    weight, bias = tensors
    groups = options.get("groups", 1)
    n_out, n_in, *kernel = weight.shape
    return _fill(nn.Conv2d(n_in * groups, n_out, kernel, **options), weight, bias)


def _same_conv(tensors, stride, groups):
    kernel = tensors[0].shape[-1]
    padding = kernel // 2 if stride == 1 else 0
    conv = _conv(tensors, stride=stride, padding=padding, groups=groups)
    return [conv] if stride == 1 else [SamePad(), conv]


@torch.no_grad()
def _fill(layer, weight, bias):
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _pool():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
