"""Small networks, and reference computations of adapters, for the tests of ADRA."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skanomaly import ADRA
from skanomaly._adra._backbone import FrozenNetwork
from skanomaly._adra._net import Adapters
from skanomaly._adra._networks import IMAGENET

# Most of these detectors are trained for a step or two, and need no corpus.
ignore_missing_corpus = pytest.mark.filterwarnings(
    "ignore:ADRA was given no corpus:UserWarning"
)

SHORT = {
    "random_state": 0,
    "max_epochs": 1,
    "pretrain_epochs": 1,
    "width": 4,
    "batch_size": 16,
    "n_estimators": 2,
    "input_size": 10,
    # All samples train; the tests of calibration are common to all detectors.
    "calibration": None,
}
short = partial(ADRA, **SHORT)
# Adapters that do not move.
untrained = partial(short, lr=1e-30, weight_decay=0)
double = partial(torch.randn, dtype=torch.double)


def used_norm(n):
    """Return batch normalisation with random statistics."""
    norm = nn.BatchNorm2d(n)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return norm


def network_of(n_channels=3, n_classes=0):
    """Return a small network for images, with a classifier if it has classes."""
    layers = [
        *(nn.Conv2d(n_channels, 6, 3, padding=1, bias=False), used_norm(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, stride=2, padding=1), used_norm(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ]
    return nn.Sequential(*layers, *([nn.Linear(8, n_classes)] if n_classes else []))


def scaled(images):
    return torch.from_numpy(images).float() / 127.5 - 1


def normalised(images):
    mean, spread = (torch.tensor(v).view(-1, 1, 1) for v in IMAGENET)
    return (torch.from_numpy(images).float() / 255 - mean) / spread


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def n_weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(adapters):
    """Return adapters with random weights, as if trained."""
    for parameter in adapters.parameters():
        nn.init.normal_(parameter, std=0.3)
    return adapters


class Recorder(nn.Module):
    """A network that appends its inputs to a list, which its copies share."""

    class Shared(list):
        def __deepcopy__(self, memo):
            return self

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, Recorder.Shared()

    def forward(self, x):
        self.seen.append(x)
        return self.network(x)


def recorded(network):
    """Return a network, and the list of its future inputs."""
    network = Recorder(network)
    return network, network.seen


class OwnConv(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


CONVOLUTIONS = {
    "plain": partial(nn.Conv2d, 4, 6, 3, padding=1),
    "one pixel": partial(nn.Conv2d, 16, 12, 1),
    "one pixel, strided": partial(nn.Conv2d, 16, 12, 1, stride=2, bias=False),
    "one pixel, many channels": partial(nn.Conv2d, 64, 72, 1),
    "one pixel, many channels, strided": partial(nn.Conv2d, 80, 64, 1, stride=2),
    "one pixel, groups": partial(nn.Conv2d, 4, 6, 1, groups=2),
    "strided": partial(nn.Conv2d, 4, 6, 3, stride=2, padding=1, bias=False),
    "dilated": partial(nn.Conv2d, 4, 6, 3, padding=2, dilation=2),
    "groups": partial(nn.Conv2d, 4, 6, 3, padding=1, groups=2),
    "depthwise": partial(nn.Conv2d, 6, 6, 3, stride=2, padding=1, groups=6),
    "multiplied": partial(nn.Conv2d, 3, 6, 3, padding=1, groups=3),
    "patches": partial(nn.Conv2d, 3, 6, 4, stride=4),
    "seven": partial(nn.Conv2d, 3, 4, 7, stride=2, padding=3, bias=False),
    "no padding": partial(nn.Conv2d, 4, 6, 3),
    "no padding, strided": partial(nn.Conv2d, 4, 6, 5, stride=2, padding=1),
    "wide padding": partial(nn.Conv2d, 4, 6, 3, padding=3),
    "oblong": partial(nn.Conv2d, 4, 6, (1, 5), padding=(0, 2), stride=(1, 2)),
    "even": partial(nn.Conv2d, 4, 6, 2, padding=1),
    "even, strided": partial(nn.Conv2d, 4, 6, 4, stride=2, padding=2),
    "even, depthwise": partial(nn.Conv2d, 4, 4, 2, padding=1, groups=4),
    "same": partial(nn.Conv2d, 4, 6, 3, padding="same"),
    "reflected": partial(nn.Conv2d, 4, 6, 3, padding=1, padding_mode="reflect"),
    "own": partial(OwnConv, 4, 6, 3, padding=1, stride=2),
}


def pads_by_itself(conv):
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"
    return not plain or conv.padding == "same"


def weights_by_hand(adapter, layer):
    """Return A_k of each expert, (K, out, in / groups)."""
    own = adapter.groups // getattr(layer, "groups", 1)
    scaled = (adapter.n_experts * own) ** 0.5 * adapter.weights
    if own == 1:
        return scaled
    return torch.stack([torch.block_diag(*one.chunk(own)) for one in scaled])


def standardised(gate, x):
    """Return the input of the linear map of a gate."""
    z = (x - gate.centre) / gate.spread
    return z / z.square().mean(-1, keepdim=True).sqrt().clamp(min=1)


def gates_by_hand(adapter, mean):
    if adapter.n_experts == 1:
        return mean.new_ones(len(mean), 1)
    gate = adapter.gate
    return F.linear(standardised(gate, mean), gate.weight, gate.bias).softmax(1)


def at_the_middle(weights, conv):
    """Return a kernel of zeros with weights in its middle."""
    kernel = torch.zeros_like(conv.weight)
    middle = [side // 2 for side in conv.kernel_size]
    kernel[:, :, middle[0], middle[1]] = weights
    return kernel


def adapter_by_hand(adapter, x, conv):
    """Return eqs 2 and 3 as written: every expert by itself, then their sum."""
    gates = gates_by_hand(adapter, x.mean((2, 3)))
    total = 0
    for k, weights in enumerate(weights_by_hand(adapter, conv)):
        if pads_by_itself(conv):
            made = F.conv2d(
                x, weights[:, :, None, None], stride=conv.stride, groups=conv.groups
            )
        else:
            rest = conv.stride, conv.padding, conv.dilation, conv.groups
            made = F.conv2d(x, at_the_middle(weights, conv), None, *rest)
        total = total + gates[:, k, None, None, None] * made
    return total


def frozen_form(network, x, n_experts=2, **options):
    """Return the frozen form of a network, and its adapters."""
    backbone = FrozenNetwork(network, x[:1], **options)
    adapters = Adapters(backbone, n_experts, 0.1, True)
    backbone.set_adapters(adapters.layers)
    return backbone, adapters


class Reused(nn.Module):
    """A network that uses the output of a convolution before and after its norm."""

    def __init__(self, norm, size=1.0):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), norm
        self.size = size

    def forward(self, x):
        y = self.conv(x)
        return self.size * (self.norm(y).relu() + y)


def layers_of(detector):
    return list(detector.net_.backbone_.layers)
