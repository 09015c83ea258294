"""ADRA: the paper's loss and corrections, what stays frozen, and what it does."""

import importlib.util
import math
import pickle
import sys
import types
from collections import Counter
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from torch import nn

from skanomaly import ADRA, load, save
from skanomaly._adra import _convolutions, _net
from skanomaly._adra._adapters import (
    AdaptedConvolution,
    StackedLinear,
    adapted,
    correction_of,
    corrections_of,
)
from skanomaly._adra._backbones import IMAGENET, ResNet26, perceptrons
from skanomaly._adra._convolutions import (
    FoldedConvolution,
    MixedConvolution,
    may_mix,
)
from skanomaly._adra._corpus import AlteredRows, damped, excess_sharpness
from skanomaly._adra._frozen import FrozenNetwork
from skanomaly._adra._images import Augmentation, ImagePreparation
from skanomaly._adra._net import Adapters, Head, ResidualAdaptation
from skanomaly._adra._pretraining import JoinedRows, Rotation
from skanomaly.datasets import fetch_cifar10, fetch_tiny_imagenet
from skanomaly.engine import AlternatingNet, MappedRows, Rows
from skanomaly.objectives import hypersphere_classification_loss, hypersphere_radius

SHORT = {
    "random_state": 0,
    "max_epochs": 1,
    "pretrain_epochs": 1,
    "width": 4,
    "batch_size": 16,
    "n_copies": 2,
    "input_size": 10,
}
short = partial(ADRA, **SHORT)
# Adapters that stay where they start.
still = partial(short, lr=1e-30, weight_decay=0)
double = partial(torch.randn, dtype=torch.double)

# Most of these networks are looked at, and learn nothing that matters.
pytestmark = pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning")


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(60, 4))


@pytest.fixture
def images():
    """Colour images that are not square, and a corpus of as many."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 40, 3, 10, 12)).astype(np.uint8)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def used_norm(n):
    """Return batch normalisation that has seen data."""
    norm = nn.BatchNorm2d(n)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    return norm


def network_of(n_channels=3, n_classes=0):
    """Return a small network of images: with a classifier, or without."""
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


def stirred(corrections):
    """Return corrections away from their start, as training leaves them."""
    for parameter in corrections.parameters():
        nn.init.normal_(parameter, std=0.3)
    return corrections


class Watched(nn.Module):
    """What a network is given goes to a list, also what copies of it are given."""

    class Shared(list):
        def __deepcopy__(self, memo):
            return self

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, Watched.Shared()

    def forward(self, x):
        self.seen.append(x)
        return self.network(x)


def watched(network):
    """Return a network, and a list of what it is going to be given."""
    network = Watched(network)
    return network, network.seen


# Loss ---------------------------------------------------------------------------------


def code(squared, dtype=torch.double):
    return torch.tensor([[squared**0.5, 0.0]], dtype=dtype)


def loss_of_normal(codes):
    return hypersphere_classification_loss(codes, codes[:0])


def loss_of_corpus(codes):
    return hypersphere_classification_loss(codes[:0], codes)


def test_the_radius_is_that_of_the_paper():
    assert hypersphere_radius(torch.zeros(2, 3)).tolist() == [0, 0]
    assert float(hypersphere_radius(code(3.0))) == pytest.approx(1, abs=1e-12)
    assert float(hypersphere_radius(code(1.0))) == pytest.approx(2**0.5 - 1, abs=1e-12)
    codes = double(2, 5, 4)
    expected = ((codes**2).sum(-1) + 1).sqrt() - 1
    torch.testing.assert_close(hypersphere_radius(codes), expected)
    short_code = hypersphere_radius(code(1e-8, torch.float32))
    assert float(short_code) == pytest.approx(5e-9, rel=1e-5)


@pytest.mark.parametrize(
    ("squared", "on_normal", "on_corpus", "dtype"),
    [
        (3.0, 1.0, 0.4586751, torch.double),
        (1.0, 0.4142136, 1.0813417, torch.double),
        (1e-8, 5e-9, 19.1138, torch.float32),
    ],
)
def test_values_of_the_loss(squared, on_normal, on_corpus, dtype):
    row, close = code(squared, dtype), partial(pytest.approx, rel=2e-6)
    assert float(loss_of_normal(row)) == close(on_normal)
    assert float(loss_of_corpus(row)) == close(on_corpus)


def test_the_loss_of_normal_rows_at_the_origin_is_zero():
    assert float(loss_of_normal(torch.zeros(3, 2))) == 0


def test_the_loss_is_the_mean_over_all_rows():
    normal, corpus = double(3, 4), double(5, 4)
    terms = [loss_of_normal(row[None]) for row in normal]
    terms += [loss_of_corpus(row[None]) for row in corpus]
    loss = hypersphere_classification_loss(normal, corpus)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert not torch.isclose(loss, hypersphere_classification_loss(corpus, normal))
    # Networks side by side have a loss each.
    stacked = hypersphere_classification_loss(
        torch.stack([normal, 2 * normal]), torch.stack([corpus, 2 * corpus])
    )
    twice = hypersphere_classification_loss(2 * normal, 2 * corpus)
    torch.testing.assert_close(stacked, torch.stack([loss, twice]))


def test_the_two_terms_are_cross_entropy_of_the_probability_to_be_normal():
    codes = double(9, 4)
    probability = (-hypersphere_radius(codes)).exp()
    for loss, label in ((loss_of_normal, 1.0), (loss_of_corpus, 0.0)):
        labels = torch.full_like(probability, label)
        expected = F.binary_cross_entropy(probability, labels)
        torch.testing.assert_close(loss(codes), expected)


def test_normal_rows_are_drawn_to_the_origin_and_the_corpus_is_pushed_away():
    for loss, sign in ((loss_of_normal, 1), (loss_of_corpus, -1)):
        codes = double(6, 3).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(codes), codes)
        assert (sign * (gradient * codes).sum(1) > 0).all()


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-4, 1e4])
def test_gradients_are_finite_everywhere(size):
    codes = torch.full((4, 3), size, requires_grad=True)
    loss = hypersphere_classification_loss(codes[:2], codes[2:])
    (gradient,) = torch.autograd.grad(loss, codes)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


# Corrections --------------------------------------------------------------------------


class OwnConv(nn.Conv2d):
    """A convolution that does what it does in its own way."""

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
CENTRED = {"same", "reflected", "own"}
MANY = {"one pixel, many channels", "one pixel, many channels, strided"}


def pads_by_itself(conv):
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"
    return not plain or conv.padding == "same"


every_convolution = pytest.mark.parametrize("kind", CONVOLUTIONS)
every_plain_convolution = pytest.mark.parametrize(
    "kind", [kind for kind in CONVOLUTIONS if kind not in CENTRED]
)


def maps_by_hand(correction, layer):
    """Return A_k of each expert, (K, out, in / groups)."""
    own = correction.groups // getattr(layer, "groups", 1)
    scaled = (correction.n_experts * own) ** 0.5 * correction.maps
    if own == 1:
        return scaled
    return torch.stack([torch.block_diag(*maps.chunk(own)) for maps in scaled])


def gates_by_hand(correction, mean):
    if correction.n_experts == 1:
        return mean.new_ones(len(mean), 1)
    return F.linear(mean, correction.gate.weight, correction.gate.bias).softmax(1)


def at_the_middle(maps, conv):
    """Return a kernel that has a map in its middle and nothing else."""
    kernel = torch.zeros_like(conv.weight)
    middle = [side // 2 for side in conv.kernel_size]
    kernel[:, :, middle[0], middle[1]] = maps
    return kernel


def correction_by_hand(correction, x, conv):
    """Eqs 2 and 3 as they are written: every expert by itself, then their sum."""
    gates = gates_by_hand(correction, x.mean((2, 3)))
    total = 0
    for k, maps in enumerate(maps_by_hand(correction, conv)):
        if pads_by_itself(conv):
            made = F.conv2d(
                x, maps[:, :, None, None], stride=conv.stride, groups=conv.groups
            )
        else:
            rest = conv.stride, conv.padding, conv.dilation, conv.groups
            made = F.conv2d(x, at_the_middle(maps, conv), None, *rest)
        total = total + gates[:, k, None, None, None] * made
    return total


@pytest.fixture(params=[1, 3], ids=["one expert", "three experts"])
def n_experts(request):
    return request.param


def layer_of(kind, n_experts):
    """Return a convolution, the same with a place, and a correction in it."""
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    layer, correction = adapted(conv), stirred(correction_of(conv, n_experts)).double()
    layer.correct_by(correction)
    return conv, layer, correction


@every_convolution
@pytest.mark.parametrize("normed", [False, True])
def test_corrected_convolutions_and_all_their_gradients(kind, n_experts, normed):
    conv, layer, correction = layer_of(kind, n_experts)
    norm = used_norm(conv.out_channels).double().eval().requires_grad_(False)
    layer.norm = norm if normed else None
    x = double(3, conv.in_channels, 9, 11).requires_grad_()
    y = layer(x)
    expected = conv(x) + correction_by_hand(correction, x, conv)
    expected = norm(expected) if normed else expected
    torch.testing.assert_close(y, expected)
    wanted, weights = torch.randn_like(y), [x, *correction.parameters()]
    found = torch.autograd.grad(y, weights, wanted)
    literal = torch.autograd.grad(expected, weights, wanted)
    for one, other in zip(found, literal, strict=True):
        torch.testing.assert_close(one, other)


@every_convolution
def test_a_correction_starts_as_nothing(kind, n_experts):
    conv = CONVOLUTIONS[kind]()
    layer, x = adapted(conv), torch.randn(3, conv.in_channels, 9, 11)
    layer.correct_by(correction_of(conv, n_experts))
    torch.testing.assert_close(layer(x), conv(x))
    layer.correct_by(stirred(correction_of(conv, n_experts)))
    assert not torch.allclose(layer(x), conv(x), atol=1e-2)
    layer.correct_by(None)
    assert torch.equal(layer(x), conv(x))


@every_plain_convolution
@pytest.mark.parametrize("normed", [False, True])
def test_one_expert_folds_into_the_kernel(kind, normed):
    conv, layer, correction = layer_of(kind, 1)
    x, folded = double(2, conv.in_channels, 9, 11), deepcopy(conv)
    folded.weight.data += at_the_middle(
        maps_by_hand(correction, conv)[0].detach(), conv
    )
    norm = used_norm(conv.out_channels).double().eval()
    layer.norm = norm if normed else None
    expected = norm(folded(x)) if normed else folded(x)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "one pixel, strided",
        "one pixel, many channels",
        "strided",
        "groups",
        "depthwise",
        "seven",
    ],
)
def test_one_expert_is_a_convolution_of_one_pixel_beside_the_frozen_one(kind):
    conv, layer, correction = layer_of(kind, 1)
    x = double(2, conv.in_channels, 9, 11)
    beside = nn.Conv2d(
        *(conv.in_channels, conv.out_channels, 1, conv.stride),
        groups=conv.groups,
        bias=False,
    ).double()
    beside.weight.data = maps_by_hand(correction, conv)[0].detach()[:, :, None, None]
    torch.testing.assert_close(layer(x), conv(x) + beside(x))


@pytest.mark.parametrize(
    "kind", ["plain", "one pixel, many channels", "groups", "depthwise", "own"]
)
def test_equal_experts_are_one_expert_whatever_the_gate(kind):
    conv, layer, correction = layer_of(kind, 3)
    x, alone = double(2, conv.in_channels, 9, 11), correction_of(conv, 1).double()
    alone.maps.data = 3**0.5 * correction.maps.data[:1]
    correction.maps.data[:] = correction.maps.data[:1]
    together = layer(x)
    nn.init.normal_(correction.gate.weight, std=9)
    torch.testing.assert_close(layer(x), together)
    layer.correct_by(alone)
    torch.testing.assert_close(layer(x), together)


def test_gates_sum_to_one_and_are_of_the_row():
    correction = stirred(correction_of(nn.Conv2d(4, 6, 3), 3)).double()
    mean = 9 * double(7, 4)
    gates = correction.shares(mean)
    torch.testing.assert_close(gates.sum(1), torch.ones(7, dtype=torch.double))
    torch.testing.assert_close(gates, gates_by_hand(correction, mean))
    assert (gates > 0).all()
    assert gates.std(0).min() > 0.01


def grouped(conv, n_groups=None):
    """Return the shape of maps beside a convolution, in these groups or in its own."""
    n_out, n_in = conv.weight.shape[:2]
    n_groups = n_groups or conv.groups
    return n_groups, n_out // n_groups, n_in * conv.groups // n_groups


GRADCHECKED = [kind for kind in CONVOLUTIONS if kind not in CENTRED | MANY]


@pytest.mark.parametrize(
    ("kind", "n_groups"),
    [(kind, None) for kind in GRADCHECKED]
    + [("one pixel", 4), ("one pixel, strided", 4), ("strided", 2), ("plain", 2)],
)
def test_folded_convolutions_pass_gradcheck(kind, n_groups):
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    x = double(2, conv.in_channels, 5, 6, requires_grad=True)
    maps = double(grouped(conv, n_groups), requires_grad=True)

    def function(x, maps):
        return FoldedConvolution.apply(x, maps, conv.weight.clone(), conv.bias, conv)

    assert torch.autograd.gradcheck(function, (x, maps))


@pytest.mark.parametrize("kind", GRADCHECKED)
def test_mixed_convolutions_pass_gradcheck(kind):
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    if not may_mix(conv):
        assert kind in {
            "groups",
            "one pixel, groups",
            "wide padding",
            "multiplied",
        } or (kind.startswith("even"))
        return
    x = double(2, conv.in_channels, 5, 6, requires_grad=True)
    shares = double(2, 3, requires_grad=True)
    maps = double(3, *grouped(conv), requires_grad=True)

    def function(*parts):
        return MixedConvolution.apply(*parts, conv.weight, conv.bias, conv)

    assert torch.autograd.gradcheck(function, (x, shares, maps))


@pytest.mark.parametrize(
    "kind", ["plain", "strided", "one pixel", "one pixel, strided"]
)
def test_rows_may_be_mixed_a_few_at_a_time(kind, monkeypatch):
    _, layer, correction = layer_of(kind, 3)
    x = double(7, layer.in_channels, 9, 11).requires_grad_()
    weights, found = [x, *correction.parameters()], []
    for cached in (2**30, 2 * correction.maps[0].numel(), 1):
        monkeypatch.setattr(_convolutions, "_CACHED", cached)
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), weights)])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("n_out", [24, 72])
@pytest.mark.parametrize("shape", [(5, 64), (5, 7, 64), (5, 2, 3, 64)])
def test_linear_layers_of_rows_and_of_tokens(shape, n_out, n_experts):
    linear = nn.Linear(64, n_out).double().requires_grad_(False)
    layer, correction = adapted(linear), correction_of(linear, n_experts).double()
    x = double(shape)
    layer.correct_by(correction)
    torch.testing.assert_close(layer(x), linear(x))
    stirred(correction)
    gates = gates_by_hand(correction, x.reshape(5, -1, 64).mean(1))
    maps = torch.einsum("nk,koi->noi", gates, maps_by_hand(correction, linear))
    expected = linear(x) + torch.einsum("n...i,noi->n...o", x, maps)
    torch.testing.assert_close(layer(x), expected)


def test_layers_side_by_side(n_experts):
    stack = StackedLinear(2, 4, 5).double().requires_grad_(False)
    nn.init.normal_(stack.bias)
    layer, correction = adapted(stack), correction_of(stack, n_experts).double()
    x = double(2, 7, 4)
    layer.correct_by(correction)
    torch.testing.assert_close(layer(x), stack(x))
    stirred(correction)
    for k in range(2):
        maps, gates = correction.maps[k].unflatten(1, (n_experts, 5)), torch.ones(7, 1)
        if n_experts > 1:
            gates = x[k] @ correction.gate.weight[k] + correction.gate.bias[k]
            gates = gates.softmax(1)
        expected = x[k] @ stack.weight[k] + stack.bias[k]
        made = torch.einsum("ni,ieo,ne->no", x[k], maps, gates.double())
        torch.testing.assert_close(layer(x)[k], expected + made)


def test_wide_layers_of_one_pixel_have_corrections_in_groups(n_experts):
    gate = n_experts * (64 + 1) if n_experts > 1 else 0
    for layer in (nn.Conv2d(64, 96, 1), nn.Linear(64, 96)):
        correction = correction_of(layer, n_experts)
        assert correction.groups == 8
        assert n_weights(correction) == n_experts * 64 * 96 // 8 + gate
    assert correction_of(nn.Linear(72, 68), n_experts).groups == 4
    whole = nn.Conv2d(64, 96, 3), nn.Conv2d(64, 56, 1), nn.Linear(48, 96)
    for layer in whole:
        correction = correction_of(layer, n_experts)
        assert correction.groups == 1
        assert correction.maps.shape == (n_experts, *layer.weight.shape[:2])
    parts = correction_of(nn.Conv2d(128, 96, 3, groups=2), n_experts)
    assert parts.maps.shape == (n_experts, 96, 64)
    parts = correction_of(nn.Conv2d(256, 256, 1, groups=2), n_experts)
    assert parts.groups == 2
    assert parts.maps.shape == (n_experts, 256, 128)


def test_layers_of_one_pixel_have_one_expert_where_kernels_are_larger():
    def numbers(*layers):
        return [one.n_experts for one in corrections_of(layers, 3)]

    pointwise, linear = nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
    for larger in (nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, (1, 3))):
        assert numbers(pointwise, larger, linear, pointwise) == [1, 3, 3, 1]
    assert numbers(pointwise, linear) == [3, 3]
    assert numbers(linear) == [3]
    assert numbers(StackedLinear(2, 4, 5)) == [3]
    layers = pointwise, nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
    for first, expected in ((0, [1, 3, 1]), (2, [3])):
        x = torch.randn(2, 8, 5, 5)
        _, adapters = frozen_form(nn.Sequential(*layers), x, 3, adapt_from=first)
        assert [one.n_experts for one in adapters.corrections] == expected


@pytest.mark.parametrize(("alone", "expected"), [(False, 6e-3), (True, 2e-4)])
def test_a_step_is_as_long_for_any_number_of_experts(images, alone, expected):
    settings = {"backbone": network_of(), "corpus": None if alone else images[1]}
    for k in (1, 3):
        detector = short(**settings, n_experts=k, lr="auto").fit(images[0])
        assert detector.net_.lr == expected


@pytest.mark.parametrize("layer", [nn.Conv2d(512, 512, 1), nn.Linear(512, 512)])
def test_corrections_of_any_kind_move_as_far_as_one_whole_map(layer, n_experts):
    x, wanted = torch.randn(256, 512), torch.randn(256, 512)
    correction = correction_of(layer, n_experts)
    if n_experts > 1:
        nn.init.zeros_(correction.gate.weight)
        nn.init.zeros_(correction.gate.bias)
    made = correction.of_pixels(x[:, None], x)[:, 0]
    (gradient,) = torch.autograd.grad((made * wanted).mean(), correction.maps)
    correction.maps.data = -gradient
    moved = (correction.of_pixels(x[:, None], x)[:, 0] * wanted).mean()
    whole = wanted.T @ x / wanted.numel()
    expected = -((x @ whole.T) * wanted).mean()
    torch.testing.assert_close(moved, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", ["X", "images"])
def test_experts_come_to_differ(kind, request):
    data = request.getfixturevalue(kind)
    if kind == "X":
        detector = short(max_epochs=5, lr=0.01).fit(data)
    else:
        settings = {"corpus": data[1], "backbone": network_of(), "max_epochs": 5}
        detector = short(**settings, lr=0.1).fit(data[0])
    for correction in detector.net_.adapters_.corrections:
        if kind == "X":
            parts = correction.maps.detach().unflatten(2, (2, -1)).movedim(2, 0)
        else:
            parts = correction.maps.detach()
        size = parts.abs().amax()
        assert size > 1e-4
        assert (parts[0] - parts[1]).abs().amax() > 1e-3 * size


# What is frozen -----------------------------------------------------------------------


def frozen_form(network, x, n_experts=2, **options):
    """Return the frozen form of a network, with corrections, and these."""
    backbone = FrozenNetwork(network, x[:1], **options)
    adapters = Adapters(backbone, n_experts, 0.1, True)
    backbone.correct_by(adapters.corrections)
    return backbone, adapters


def literally(network, adapters, x):
    """Return what a network of convolutions makes, each corrected as it is written."""
    network, corrections = deepcopy(network).eval(), iter(adapters.corrections)

    def corrected(layer, inputs, output):
        return output + correction_by_hand(next(corrections), inputs[0], layer)

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(corrected)
    made = network(x)
    return made.mean((2, 3)) if made.ndim == 4 else made


def test_a_network_with_folded_norms_is_what_it_was(n_experts):
    network, x = network_of(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    torch.testing.assert_close(backbone(x), network.eval()(x))
    layers = [m for m in backbone.modules() if isinstance(m, AdaptedConvolution)]
    assert [layer.norm is not None for layer in layers] == [True, True]
    stirred(adapters.corrections)
    expected = literally(network, adapters, x)
    assert not torch.allclose(expected, network(x), atol=0.01)
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.bare()(x), network(x))


class Reused(nn.Module):
    """What the convolution makes goes around the batch normalisation as well."""

    def __init__(self, norm, size=1.0):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), norm
        self.size = size

    def forward(self, x):
        y = self.conv(x)
        return self.size * (self.norm(y).relu() + y)


class InPlace(nn.Module):
    """A function in place stands between the convolution and the normalisation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), used_norm(6)

    def forward(self, x):
        return self.norm(F.relu_(self.conv(x)))


class Twice(nn.Module):
    """One convolution is used twice, once with the normalisation behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), used_norm(3)

    def forward(self, x):
        return self.norm(self.conv(self.conv(x).relu()))


@pytest.mark.parametrize(
    "build",
    [lambda: Reused(used_norm(6)), lambda: Reused(used_norm(6), 1e-5), InPlace],
    ids=["used elsewhere", "used elsewhere, small", "changed in place"],
)
def test_norms_that_take_something_else_too_are_not_folded(build, n_experts):
    network, x = build(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    bare, size = network.eval()(x).mean((2, 3)), getattr(network, "size", 1)
    torch.testing.assert_close(backbone(x) / size, bare / size)
    stirred(adapters.corrections)
    expected = literally(network, adapters, x)
    torch.testing.assert_close(
        backbone(x) / size, expected / size, rtol=1e-4, atol=1e-5
    )
    assert_same_state(state_of(backbone.bare()), state_of(network))


def test_a_convolution_that_is_used_twice_is_corrected_twice(n_experts):
    network, x = Twice(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    torch.testing.assert_close(backbone(x), network.eval()(x).mean((2, 3)))
    stirred(adapters.corrections)
    ((correction,), conv) = adapters.corrections, network.conv
    hidden = (conv(x) + correction_by_hand(correction, x, conv)).relu()
    final = conv(hidden) + correction_by_hand(correction, hidden, conv)
    expected = network.norm(final).mean((2, 3))
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)


def test_parts_that_a_sequence_has_twice_compute_twice(n_experts):
    relu, conv = nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), relu, conv, relu, conv, relu)
    x = torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    torch.testing.assert_close(backbone(x), network(x).mean((2, 3)))
    assert len(adapters.corrections) == 2


def test_one_layer_by_two_names_is_corrected_by_either():
    class TwoNames(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.other = nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, x):
            return self.other(x)

    network, x = TwoNames(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x)
    before = backbone(x)
    stirred(adapters.corrections)
    assert not torch.allclose(backbone(x), before, atol=0.01)


def test_corrections_are_there_with_and_without_gradients():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.block(self.patches(x).flatten(2).mT).mean(1)

    network, x = Tokens(), torch.randn(4, 3, 12, 8)
    backbone, adapters = frozen_form(network, x)
    torch.testing.assert_close(backbone(x), network.eval()(x))
    stirred(adapters.corrections)
    with torch.no_grad():
        alone = backbone(x)
    torch.testing.assert_close(backbone(x), alone, rtol=1e-4, atol=1e-5)


def test_a_frozen_network_stays_in_evaluation():
    backbone, _ = frozen_form(network_of(), torch.randn(4, 3, 9, 11))
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("corpus", [True, False])
def test_what_is_frozen_does_not_move_by_a_bit(images, corpus):
    network = network_of().train()
    before = state_of(network)
    corpus = images[1] if corpus else None
    detector = short(backbone=network, corpus=corpus, max_epochs=3, lr=0.1)
    detector.fit(images[0])
    assert_same_state(state_of(network), before)
    assert_same_state(state_of(detector.backbone_), before)
    adapters = detector.net_.adapters_
    assert max(c.maps.abs().max() for c in adapters.corrections) > 1e-4
    held = {
        id(parameter)
        for group in detector.net_._optimizer("adapters").param_groups
        for parameter in group["params"]
    }
    assert held == {id(parameter) for parameter in adapters.parameters()}
    shapes = [(2, 6, 3), (2, 3), (2,), (2, 8, 6), (2, 6), (2,)]
    assert [tuple(p.shape) for p in adapters.parameters()] == shapes


def test_the_network_that_is_given_is_left_as_it_is(images):
    network = network_of(n_classes=5).train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    hook = network[3].register_forward_hook(lambda *arguments: None)

    def description():
        return (
            [type(module) for module in network.modules()],
            [module.training for module in network.modules()],
            [parameter.requires_grad for parameter in network.parameters()],
            [parameter.grad for parameter in network.parameters()],
            [list(module._forward_hooks) for module in network.modules()],
            [parameter.data_ptr() for parameter in network.parameters()],
            list(network.state_dict()),
        )

    before = description()
    state = state_of(network)
    detector = short(backbone=network, corpus=images[1]).fit(images[0])
    detector.score_samples(images[0])
    detector.set_params(warm_start=True).fit(images[0])
    assert description() == before
    assert_same_state(state_of(network), state)
    assert detector.backbone is network
    hook.remove()


def test_detectors_share_the_memory_of_a_network(images):
    network = network_of()
    addresses = [v.data_ptr() for v in network.state_dict().values()]
    for seed in range(2):
        settings = {"backbone": network, "corpus": images[1], "random_state": seed}
        detector = short(**settings).fit(images[0])
        for owner in (detector.net_.backbone_, detector.backbone_):
            tensors = [*owner.parameters(), *owner.buffers()]
            assert {tensor.data_ptr() for tensor in tensors} == set(addresses)


def test_the_bare_backbone_gives_the_frozen_features(images):
    network, x = network_of(n_classes=5), normalised(images[0])
    detector = short(backbone=network, corpus=images[1], lr=0.1).fit(images[0])
    features = network.eval()[:-1](x)
    bare = detector.backbone_
    torch.testing.assert_close(bare(x), features)
    assert not any(isinstance(m, AdaptedConvolution) for m in bare.modules())
    corrected = detector.net_.backbone_(x)
    assert not torch.allclose(corrected, features, atol=1e-4)


def test_adapters_that_have_not_moved_leave_the_features(images):
    network, x = network_of(), normalised(images[0])
    detector = still(backbone=network, corpus=images[1]).fit(images[0])
    expected = detector.net_.adapters_.head(network.eval()(x)).numpy(force=True)
    np.testing.assert_allclose(detector.encode(images[0]), expected, atol=1e-4)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (200,)])
def test_the_head_whitens_the_features_of_normal_rows(shape, unit):
    head, x = Head(shape, 0.1, unit), torch.randn(*shape[:-1], 70, shape[-1])
    x = x * torch.linspace(0.1, 2, shape[-1]) + 3
    head.fit(x)
    for k, of_one in enumerate(x.reshape(-1, 70, shape[-1]).double()):
        features = F.normalize(of_one, dim=1) if unit else of_one
        around = features - features.mean(0)
        covariance = around.T @ around / 70
        added = 0.1 * covariance.trace() / len(covariance)
        variances, axes = torch.linalg.eigh(covariance)
        gains = (variances + added).rsqrt()
        # Directions beyond the first ones are taken for equal.
        gains[:-128] = (variances + added)[:-128].mean().rsqrt()
        expected = around @ (axes * gains) @ axes.T
        expected /= expected.square().sum(1).mean().sqrt()
        found = head(x).reshape(-1, 70, shape[-1])[k].double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_features_that_do_not_differ_get_codes_all_the_same():
    for x in (torch.ones(9, 4), torch.zeros(9, 4), torch.ones(1, 4)):
        head = Head((4,), 0.1, True)
        head.fit(x)
        assert torch.isfinite(head(x)).all()
        assert torch.isfinite(head(torch.randn(5, 4))).all()


def test_the_head_puts_normal_rows_around_the_origin(images):
    for data, settings in ((images[0], {"backbone": network_of()}), (images[0], {})):
        codes = still(**settings).fit(data).encode(data)
        np.testing.assert_allclose(codes.mean(0), 0, atol=1e-3)
        assert np.square(codes).sum(1).mean() == pytest.approx(1, abs=1e-3)


# The paper's network ------------------------------------------------------------------


def test_the_paper_s_network_has_its_numbers_of_weights(n_experts):
    network = ResNet26()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == 25
    assert sum(map(n_weights, convolutions)) == 5_806_944
    assert sum(map(n_weights, norms)) == 7_744
    assert n_weights(network) == 5_806_944 + 7_744
    corrections = [correction_of(layer, n_experts) for layer in convolutions]
    gates = sum(n_experts * (m.in_channels + 1) for m in convolutions)
    wanted = 645_216 * n_experts + gates * (n_experts > 1)
    assert sum(map(n_weights, corrections)) == wanted
    strides = [m.stride[0] for m in convolutions]
    assert [k for k, stride in enumerate(strides) if stride == 2] == [1, 9, 17]
    assert {m.bias for m in convolutions} == {None}


@pytest.mark.parametrize("sides", [(32, 32), (9, 13), (5, 4), (17, 33)])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_the_paper_s_network_takes_images_of_any_size(sides, n_channels):
    network = ResNet26(n_channels, 4).eval()
    x = torch.randn(2, n_channels, *sides)
    assert network(x).shape == (2, 16)
    backbone, adapters = frozen_form(network, x)
    assert len(backbone.layers) == len(adapters.corrections) == 25
    torch.testing.assert_close(backbone(x), network(x), rtol=1e-4, atol=1e-4)


def test_a_file_of_weights_is_read(images, tmp_path):
    first = short(corpus=images[1]).fit(images[0])
    path = tmp_path / "backbone.safetensors"
    save_file(first.backbone_.state_dict(), path)
    for given in (path, str(path)):
        second = short(backbone=given, corpus=images[1], lr=0.1).fit(images[0])
        assert_same_state(state_of(second.backbone_), state_of(first.backbone_))
        x = scaled(images[0])
        assert torch.equal(second.backbone_(x), first.backbone_(x))
        # Its own networks take pixels in [-1, 1], as a file of one does.
        assert {row["stage"] for row in second.history_} == {"adaptation"}
    codes = [
        still(corpus=images[1], backbone=network).fit(images[0]).encode(images[0])
        for network in (path, path)
    ]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("kind", ["missing", "text", "other", "short", "reshaped"])
def test_a_file_that_is_no_backbone_is_named(kind, images, tmp_path):
    path = tmp_path / "backbone.safetensors"
    if kind == "text":
        path.write_text("These are no weights.")
    elif kind == "other":
        save_file(network_of().state_dict(), path)
    elif kind != "missing":
        state = ResNet26(3, 4).state_dict()
        if kind == "short":
            del state["stage_3.2.layers.0.weight"]
        else:
            state["stem.0.weight"] = torch.zeros(7)
        save_file(state, path)
    with pytest.raises(ValueError, match=r"backbone=.*backbone\.safetensors"):
        short(backbone=path).fit(images[0])


# Backbones ----------------------------------------------------------------------------


def layers_of(detector):
    return list(detector.net_.backbone_.layers)


def test_a_classifier_at_the_end_is_left_out(images):
    detector = short(backbone=network_of(n_classes=5)).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 8)
    assert layers_of(detector) == ["0", "3"]
    # A linear layer before the end is no classifier.
    network = network_of(n_classes=5).append(nn.ReLU())
    detector = short(backbone=network).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 5)
    assert layers_of(detector) == ["0", "3", "8"]


def test_maps_are_averaged_over_their_pixels(images):
    network = network_of()
    codes = still(backbone=network).fit(images[0]).encode(images[0])
    maps = still(backbone=network[:-2]).fit(images[0]).encode(images[0])
    np.testing.assert_allclose(maps, codes, atol=1e-4)


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.network, self.function = network_of(), function

    def forward(self, x):
        return self.function(self.network(x))


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda y: (y, y), "a tuple"),
        (lambda y: {"out": y}, "a dict"),
        (lambda y: y[:, None], r"a tensor of shape \(1, 1, 8\)"),
        (lambda y: y.sum(1), r"a tensor of shape \(1,\)"),
    ],
)
def test_what_is_returned_has_to_be_features(function, what, images):
    with pytest.raises(ValueError, match=f"backbone returns {what}.*Wrap it"):
        short(backbone=Returns(function)).fit(images[0])


@pytest.mark.parametrize(
    "layers",
    [[nn.AvgPool2d(2)], [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)]],
)
def test_a_network_with_nothing_to_adapt_is_named(layers, images):
    with pytest.raises(ValueError, match="backbone, a Sequential, has no convolution"):
        short(backbone=nn.Sequential(*layers)).fit(images[0])


def test_a_network_in_half_precision_is_made_float(images):
    network = network_of().half()
    detector = short(backbone=network, corpus=images[1]).fit(images[0])
    assert np.isfinite(detector.score_samples(images[0])).all()
    assert {p.dtype for p in network.parameters()} == {torch.half}
    assert {p.dtype for p in detector.backbone_.parameters()} == {torch.float}


def test_grey_images_are_repeated_for_a_network_of_colours(images):
    network = network_of()
    grey = images[0][:, :1]
    for settings in ({}, {"normalization": None}):
        build = partial(still, backbone=network, **settings)
        codes = build().fit(grey).encode(grey)
        colours = np.repeat(grey, 3, axis=1)
        expected = build().fit(colours).encode(colours)
        np.testing.assert_allclose(codes, expected, atol=1e-4)


def test_grey_images_go_into_a_network_of_grey_images(images):
    network, seen = watched(network_of(n_channels=1))
    grey = images[0][:, :1]
    detector = short(backbone=network, normalization=None).fit(grey)
    assert seen[-1].shape[1] == 1
    assert np.ptp(detector.score_samples(grey)) > 0
    detector = short(backbone=network).fit(grey)
    assert seen[-1].shape[1] == 1
    assert np.ptp(detector.score_samples(grey)) > 0


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (2, 3)])
@pytest.mark.parametrize("normalization", [None, "auto"])
def test_channels_that_do_not_fit_are_named(given, wanted, normalization, images):
    data = images[0][:, :given]
    settings = {"backbone": network_of(wanted), "normalization": normalization}
    with pytest.raises(ValueError, match=f"have {given} channels.*{wanted}"):
        short(**settings).fit(data)


@pytest.mark.parametrize("wrong", [(None, None), ("a", "b"), (0, 0), (0.5, -1), (1,)])
def test_a_normalization_is_means_and_spreads(wrong, images):
    detector = short(backbone=network_of(), normalization=wrong)
    with pytest.raises(ValueError, match="has to be a pair, means and standard"):
        detector.fit(images[0])


class Stem(nn.Conv2d):
    """A convolution of another class, as some networks begin with."""


def test_a_first_convolution_of_another_class(images):
    backbone = nn.Sequential(Stem(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))
    detector = short(backbone=backbone, corpus=images[1]).fit(images[0])
    assert layers_of(detector) == ["0", "2"]


def test_tokens_have_to_come_after_rows(images):
    class TokensFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mixed = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)

        def forward(self, x):
            return self.mixed(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0)

    with pytest.raises(ValueError, match=r"mixed of backbone makes \(6, 2, 5\)"):
        short(backbone=TokensFirst()).fit(images[0])


def test_what_cannot_be_copied_is_named(images):
    network = network_of()
    network.kept = network(torch.zeros(2, 3, 10, 12))  # has a history of gradients
    with pytest.raises(ValueError, match="a Sequential, cannot be copied"):
        short(backbone=network).fit(images[0])


def test_a_network_may_change_images_in_place(images):
    class Scales(nn.Module):
        def forward(self, x):
            return x.sub_(0.5).div_(0.25)

    backbone = nn.Sequential(Scales(), *network_of())
    before = images.copy()
    detector = still(backbone=backbone, corpus=images[1], normalization=None)
    codes = detector.fit(images[0]).encode(images[0])
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(codes, detector.encode(images[0]))


def test_hooks_of_normalisation_are_called(images):
    backbone, seen = network_of(), []
    backbone[1].register_forward_hook(lambda *_: seen.append(1))
    detector = short(backbone=backbone, corpus=images[1]).fit(images[0])
    seen.clear()
    detector.score_samples(images[0])
    assert seen


def test_the_order_in_which_layers_are_registered_does_not_matter(images):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(6, 8, 3)
            self.first = nn.Conv2d(3, 6, 3)

        def forward(self, x):
            return self.last(self.first(x).relu())

    detector = short(backbone=Backwards()).fit(images[0])
    assert layers_of(detector) == ["first", "last"]


class Picky(nn.Module):
    """A network that takes one size, as vision transformers do."""

    def __init__(self, check):
        super().__init__()
        self.network, self.check = network_of(), check

    def forward(self, x):
        if self.check == "assert":
            assert min(x.shape[2:]) == 16, "wrong size"
        elif self.check == "error":
            raise_unless(min(x.shape[2:]) == 16)
        return self.network(x)


def raise_unless(condition):
    if not condition:
        raise RuntimeError("wrong size")


@pytest.mark.parametrize("check", ["assert", "error"])
def test_a_size_that_a_network_does_not_take_is_explained(check, images):
    with pytest.raises(ValueError, match="input_size"):
        short(backbone=Picky(check)).fit(images[0])
    detector = short(backbone=Picky(check), input_size=16).fit(images[0])
    assert np.isfinite(detector.score_samples(images[0])).all()


def test_images_that_are_too_small_for_a_network(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 11), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"\(3, 10, 12\).*input_size"):
        short(backbone=network).fit(images[0])
    detector = short(backbone=network, input_size=15).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 4)


def test_sizes_of_what_the_network_is_given(images):
    for input_size, expected in (("auto", (64, 77)), (20, (20, 24)), (5, (5, 6))):
        network, seen = watched(network_of())
        short(backbone=network, input_size=input_size).fit(images[0])
        assert {tuple(x.shape[2:]) for x in seen} == {expected}
    detector = short(input_size="auto").fit(images[0])
    assert detector.net_.prepare(scaled(images[0])).shape == images[0].shape


def test_a_network_of_tables(X):
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    before = state_of(network)
    detector = short(backbone=network, lr=0.1).fit(X)
    assert detector.encode(X).shape == (60, 8)
    assert layers_of(detector) == ["0", "2"]
    assert_same_state(before, state_of(detector.backbone_))
    assert detector.offset_ == -math.log(2)
    np.testing.assert_array_equal(
        detector.score_samples(X[::-1])[::-1], detector.score_samples(X)
    )
    # Its last layer would be a classifier, if the network ended there.
    detector = short(backbone=network[:-1]).fit(X)
    assert detector.encode(X).shape == (60, 16)


def test_corrections_begin_where_they_are_told_to(images):
    network = nn.Sequential()
    network.add_module("stem", network_of()[:3])
    network.add_module("stage", network_of(6)[:6])
    build = partial(short, backbone=network)
    names = ["stem.0", "stage.0", "stage.3"]
    for where, expected in (
        *((0, names), (1, names[1:]), (2, names[2:])),
        *(("stem", names), ("stage", names[1:]), ("stage.3", names[2:])),
    ):
        detector = build(adapt_from=where).fit(images[0])
        assert layers_of(detector) == expected
        assert len(detector.net_.adapters_.corrections) == len(expected)
    with pytest.raises(ValueError, match=r"adapt_from='stag'.*'stem', 'stage'"):
        build(adapt_from="stag").fit(images[0])
    with pytest.raises(ValueError, match=r"adapt_from=3.*3 layers"):
        build(adapt_from=3).fit(images[0])


@pytest.mark.parametrize("where", [0, "stage", "stage.3"])
def test_what_comes_before_the_corrections_may_be_computed_once(where, images):
    network = nn.Sequential()
    network.add_module("stem", network_of()[:3])
    network.add_module("stage", network_of(6)[:6])
    y = np.repeat([-1, 1], [4, 36])
    scores = []
    for augment in (None, lambda batch: batch.clone()):
        detector = short(backbone=network, adapt_from=where, augment=augment)
        detector.set_params(corpus=images[1], lr=0.1, max_epochs=3)
        scores.append(detector.fit(images[0], y).score_samples(images[0]))
    np.testing.assert_allclose(*scores, rtol=1e-3)
    start = still(backbone=network, adapt_from=where, corpus=images[1])
    start.fit(images[0], y)
    assert not np.allclose(start.score_samples(images[0]), scores[0], rtol=1e-2)


def test_what_comes_before_the_corrections_is_computed_once(images):
    def seen_by(augment):
        stem, rows = network_of()[:3], []
        network = nn.Sequential(stem, network_of(6)[:6])
        stem.register_forward_hook(lambda module, given, _: rows.append(len(given[0])))
        detector = short(backbone=network, adapt_from="1", augment=augment)
        detector.set_params(corpus=images[1], max_epochs=30).fit(images[0])
        return sum(rows), detector.net_.step_

    changed, n_steps = seen_by(lambda batch: batch)
    once, _ = seen_by(None)
    assert changed - once > 0.9 * n_steps * SHORT["batch_size"]


def test_steps_of_the_defaults(X, images):
    backbone = network_of()
    many = {"max_epochs": "auto"}
    for corpus, least in ((images[1], 300), (None, 20)):
        net = short(backbone=backbone, corpus=corpus, **many).fit(images[0]).net_
        assert least <= net.n_steps < least + net.epoch_steps
    net = short(**many).fit(X).net_
    assert 300 <= net.step_ < 300 + net.epoch_steps


def test_the_rate_falls_to_a_hundredth(images):
    detector = short(backbone=network_of(), corpus=images[1], max_epochs=6, lr=0.1)
    net = detector.fit(images[0]).net_
    (group,) = net._optimizer("adapters").param_groups
    assert group["lr"] == pytest.approx(1e-3)


def test_corrections_decay(images):
    def size(weight_decay):
        detector = short(backbone=network_of(), corpus=images[1], max_epochs=9, lr=0.1)
        detector.set_params(weight_decay=weight_decay).fit(images[0])
        return sum(one.maps.norm() for one in detector.net_.adapters_.corrections)

    torch.manual_seed(0)
    free = size(0.0)
    torch.manual_seed(0)
    assert size(1.0) < 0.8 * free


def test_decay_by_default(X, images):
    detector = short(backbone=network_of(), corpus=images[1])
    assert detector.fit(images[0]).net_.weight_decay == 0.1
    assert detector.set_params(weight_decay=1e-4).fit(images[0]).net_.weight_decay == (
        1e-4
    )
    assert short().fit(X).net_.weight_decay == 1e-4


def test_rows_that_tell_when_to_stop_are_not_trained_on(images, monkeypatch):
    trained = []
    run = ResidualAdaptation.run

    def watched(net, rows, *, held_out, **plan):
        trained.append((rows.X[rows.chosen].reshape(len(rows), -1), held_out))
        return run(net, rows, held_out=held_out, **plan)

    monkeypatch.setattr(ResidualAdaptation, "run", watched)
    X = np.random.default_rng(0).integers(0, 256, (80, 3, 10, 12)).astype(np.uint8)
    monkeypatch.setattr("skanomaly._adra._estimator._HELD_OUT", 50)
    short(backbone=network_of()).fit(X)
    ((rows, held_out),) = trained
    assert len(rows) == 72
    others = (held_out.flatten(1).numpy(force=True) + 1) * 127.5
    assert len(others) == 8
    assert not any((np.abs(rows - one).max(1) < 1).any() for one in others)


def test_rows_may_be_sorted():
    """The head is made from rows of all over, not from the first ones."""
    rng = np.random.default_rng(0)
    X = np.r_[rng.normal(size=(2500, 2)), rng.normal(size=(600, 2)) + 12]
    detector = ADRA(random_state=0, max_epochs=1, pretrain_epochs=1).fit(X)
    assert (detector.predict(rng.normal(size=(200, 2)) + 12) == 1).mean() > 0.5


class Emphatic(nn.Module):
    """It takes pixels in [0, 1] alone; the output of a convolution is used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), used_norm(6)

    def forward(self, x):
        y = self.conv(x**2.2)
        return (self.norm(y).relu() + y).mean((2, 3))


def test_a_network_that_takes_some_pixels_alone(images):
    network = Emphatic().eval()
    settings = {"normalization": ((0.0,), (1.0,)), "corpus": images[1]}
    detector = still(backbone=network, **settings).fit(images[0])
    pixels = torch.from_numpy(images[0]).float() / 255
    expected = detector.net_.adapters_.head(network(pixels)).numpy(force=True)
    np.testing.assert_allclose(detector.encode(images[0]), expected, atol=1e-4)
    with pytest.raises(ValueError, match="computes something else"):
        still(backbone=network, normalization=None, corpus=images[1]).fit(images[0])


def test_a_warm_start_keeps_its_network(images):
    detector = short(backbone=network_of(), corpus=images[1], warm_start=True)
    detector.fit(images[0])
    detector.fit(images[0])
    with pytest.raises(ValueError, match="backbone has other weights"):
        detector.set_params(backbone=network_of()).fit(images[0])


def test_channels_that_no_photograph_has(images):
    rng = np.random.default_rng(0)
    many = rng.integers(0, 256, (2, 40, 5, 10, 12)).astype(np.uint8)
    backbone = network_of(5)
    detector = short(backbone=backbone, corpus=many[1])
    with pytest.raises(ValueError, match="normalization is for 3"):
        detector.set_params(normalization=((0.5,) * 3, (0.2,) * 3)).fit(many[0])
    detector.set_params(normalization=((0.5,) * 5, (0.2,) * 5)).fit(many[0])
    with pytest.raises(ValueError, match="one number or one per channel"):
        detector.set_params(normalization=((0.5,) * 4, (0.2,) * 4)).fit(many[0])


def test_flat_images_are_told_of_their_shape(images):
    with pytest.raises(ValueError, match="images need image_shape"):
        short(backbone=network_of()).fit(images[0].reshape(40, -1) / 255)


def test_the_package_s_own_networks(X, images):
    detector = short(adapt_from="stage_2").fit(images[0])
    assert len(layers_of(detector)) == 16
    with pytest.raises(ValueError, match="backbone='resnet26' takes images"):
        short(backbone="resnet26").fit(X)
    settings = {"architecture": {"backbone": lambda shape: network_of(shape[0])}}
    detector = short(**settings).fit(images[0])
    assert layers_of(detector) == ["0", "3"]
    with pytest.raises(ValueError, match="give one of them"):
        short(backbone=network_of(), **settings).fit(images[0])


class Dense(nn.Module):
    """A network of one's own; the output of a convolution is used twice."""

    def __init__(self, shape):
        super().__init__()
        self.part = Reused(nn.BatchNorm2d(6))

    def forward(self, x):
        return self.part(x).mean((2, 3))


@pytest.mark.parametrize("again", ["load", "warm start"])
def test_an_own_network_with_a_norm_that_cannot_be_folded(again, images, tmp_path):
    architecture = {"backbone": Dense}
    detector = short(architecture=architecture, pretrain_epochs=3).fit(images[0])
    scores = detector.score_samples(images[0])
    if again == "load":
        save(detector, tmp_path / "d.safetensors")
        other = load(tmp_path / "d.safetensors", architecture=architecture)
    else:
        other = detector.set_params(warm_start=True, lr=1e-30).fit(images[0])
    np.testing.assert_allclose(other.score_samples(images[0]), scores, rtol=1e-4)


@pytest.fixture
def torchvision(monkeypatch):
    """Stand in for torchvision with one network."""

    class Weights:
        def transforms(self):
            return types.SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])

    chosen, network = Weights(), watched(network_of())

    def get_model_weights(name):
        if name != "tiny":
            raise ValueError(f"Unknown model {name}")
        return types.SimpleNamespace(DEFAULT=chosen)

    def get_model(name, weights=None):
        assert (name, weights) == ("tiny", chosen)
        return network[0]

    models = types.ModuleType("torchvision.models")
    models.get_model_weights, models.get_model = get_model_weights, get_model
    package = types.ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return network


def test_a_network_of_torchvision_by_name(torchvision, images):
    network, seen = torchvision
    detector = short(backbone="tiny", corpus=images[1]).fit(images[0])
    assert_same_state(state_of(detector.backbone_), state_of(network))
    detector.score_samples(images[0])
    mean, spread = (
        torch.tensor(v).view(-1, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    )
    expected = (torch.from_numpy(images[0]) / 255 - mean) / spread
    torch.testing.assert_close(seen[-1][:40], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="backbone='huge': Unknown model huge"):
        short(backbone="huge").fit(images[0])


def test_what_cannot_be_fetched_is_explained(torchvision, images, monkeypatch):
    def get_model(name, weights):
        raise OSError("No route to host")

    monkeypatch.setattr(sys.modules["torchvision.models"], "get_model", get_model)
    with pytest.raises(OSError, match="backbone='tiny' cannot be fetched: No route"):
        short(backbone="tiny", corpus=images[1]).fit(images[0])


def test_a_file_has_the_weights_of_a_network_by_name(torchvision, images, tmp_path):
    network, _ = torchvision
    detector = short(backbone="tiny", corpus=images[1]).fit(images[0])
    whole, adapters = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    save(detector, whole)
    save(detector, adapters, include_backbone=False)
    expected = detector.score_samples(images[0])
    nn.init.zeros_(next(network.parameters()))  # what is fetched now is another
    np.testing.assert_array_equal(load(whole).score_samples(images[0]), expected)
    with pytest.raises(ValueError, match="are not those that the detector"):
        load(adapters)


@pytest.mark.parametrize("kind", [str, Path])
def test_weights_that_a_file_holds_are_not_read(kind, images, tmp_path):
    file, path = tmp_path / "backbone.safetensors", tmp_path / "detector.safetensors"
    save_file(ResNet26(3, 6).state_dict(), file)
    detector = short(backbone=kind(file), corpus=images[1]).fit(images[0])
    save(detector, path)
    file.unlink()
    expected = detector.score_samples(images[0])
    other = load(path)
    np.testing.assert_array_equal(other.score_samples(images[0]), expected)
    other.set_params(warm_start=True, corpus=images[1], lr=1e-30).fit(images[0])
    np.testing.assert_allclose(other.score_samples(images[0]), expected, rtol=1e-5)


def test_without_torchvision_a_name_is_explained(monkeypatch, images):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"backbone='resnet18'.*skanomaly\[vision\]"):
        short(backbone="resnet18").fit(images[0])


@pytest.mark.parametrize("n_copies", [1, 2])
@pytest.mark.parametrize("corpus", ["auto", None, "rows"])
def test_corrections_of_tables_may_begin_later(corpus, n_copies, X):
    corpus = 3 * X if corpus == "rows" else corpus
    detector = short(corpus=corpus, adapt_from=1, n_copies=n_copies).fit(X)
    assert len(detector.net_.adapters_.corrections) == 2
    assert np.ptp(detector.score_samples(X)) > 0


def test_the_head_is_computed_in_full_precision(images):
    settings = {"backbone": network_of(), "corpus": images[1]}
    net = still(**settings, precision="bfloat16").fit(images[0]).net_
    features = net.features(scaled(images[0]))
    net.backbone_.after = lambda begun: features
    with torch.autocast("cpu", torch.bfloat16):
        codes = net.codes_of(None)
    assert torch.equal(codes, net.adapters_.head(features))


PAIR = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        (None, {}, IMAGENET),
        ({"mean": PAIR[0], "std": PAIR[1]}, {}, PAIR),
        ({"mean": PAIR[0]}, {}, IMAGENET),
        (None, {"normalization": PAIR}, PAIR),
        (None, {"normalization": [list(part) for part in PAIR]}, PAIR),
        ({"mean": PAIR[0], "std": PAIR[1]}, {"normalization": IMAGENET}, IMAGENET),
        (None, {"normalization": None}, ((0.5,) * 3, (0.5,) * 3)),
        ({"mean": PAIR[0], "std": PAIR[1]}, {"scaling": None}, None),
    ],
)
def test_what_a_network_is_given(config, settings, expected, images):
    network, seen = watched(network_of())
    if config is not None:
        network.pretrained_cfg = config
    detector = short(backbone=network, corpus=images[1], **settings).fit(images[0])
    detector.score_samples(images[0])
    given = torch.from_numpy(images[0]).float()
    if expected is not None:
        mean, spread = (torch.tensor(part).view(-1, 1, 1) for part in expected)
        given = (given / 255 - mean) / spread
    torch.testing.assert_close(seen[-1][:40], given, rtol=1e-4, atol=1e-4)


def test_layers_of_all_kinds_train_together(images):
    kinds = ["plain", "reflected", "one pixel", "depthwise", "groups", "own", "even"]
    layers, n = [], 3
    for kind in kinds:
        conv = CONVOLUTIONS[kind]()
        layers += [
            nn.Conv2d(n, conv.in_channels, 1),
            nn.LeakyReLU(0.5, inplace=True),
            conv,
        ]
        layers += [used_norm(conv.out_channels), nn.LeakyReLU(0.5, inplace=True)]
        n = conv.out_channels
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    network = nn.Sequential(*layers)
    assert network.eval()(normalised(images[0])).mean((2, 3)).std(0).min() > 1e-3
    network.train()
    settings = {"backbone": network, "corpus": images[1], "max_epochs": 3}
    scores = []
    for precision in ("float32", "bfloat16"):
        detector = short(**settings, precision=precision).fit(images[0])
        scores.append(detector.score_samples(images[0]))
        assert len(layers_of(detector)) == 2 * len(kinds)
        for correction in detector.net_.adapters_.corrections:
            assert correction.maps.abs().max() > 0
    assert np.corrcoef(scores)[0, 1] > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_network_on_another_device(devices, images):
    network = network_of().to(devices[0])
    settings = {"backbone": network, "corpus": images[1], "device": devices[1]}
    detector = short(**settings).fit(images[0])
    assert np.isfinite(detector.score_samples(images[0])).all()
    assert {p.device.type for p in network.parameters()} == {devices[0]}


# The corpus ---------------------------------------------------------------------------


def scores_of(X, corpus, y=None, **settings):
    return short(corpus=corpus, lr=0.1, **settings).fit(X, y).score_samples(X)


@pytest.fixture
def corpus():
    return np.random.default_rng(1).normal(size=(50, 4)) * 3


LABELS = np.repeat(list("ab"), 25)


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows.tolist(),
        np.asfortranarray,
        pd.DataFrame,
        lambda rows: (rows, LABELS),
        lambda rows: (pd.DataFrame(rows), pd.Series(LABELS)),
        lambda rows: (rows.tolist(), LABELS.tolist()),
    ],
    ids=["list", "columns", "frame", "labelled", "labelled frame", "labelled list"],
)
def test_a_corpus_comes_in_many_forms(form, X, corpus):
    expected = scores_of(X, corpus)
    np.testing.assert_array_equal(scores_of(X, form(corpus)), expected)


def test_a_corpus_may_be_a_memory_map(X, corpus, tmp_path):
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    np.testing.assert_array_equal(scores_of(X, mapped), scores_of(X, corpus))


def test_it_matters_which_corpus_it_is(X, corpus):
    each = [scores_of(X, given) for given in (corpus, corpus + 1, "auto", None)]
    for k, one in enumerate(each):
        for other in each[:k]:
            assert not np.array_equal(one, other)


@pytest.mark.parametrize("pretrain", ["auto", "denoising"])
def test_networks_of_tables_are_taught_the_normal_rows(X, corpus, pretrain):
    """The corpus has no part in it: rows are told from the same rows with noise."""
    nets = [
        short(corpus=given, pretrain=pretrain).fit(X).backbone_
        for given in (corpus, 2 * corpus, None)
    ]
    for other in nets[1:]:
        assert_same_state(state_of(other), state_of(nets[0]))


def test_columns_of_a_corpus_are_those_of_the_rows(X, corpus):
    frame, names = pd.DataFrame(X, columns=list("abcd")), list("dcba")
    others = pd.DataFrame(corpus, columns=list("abcd"))
    short(corpus=others).fit(frame)
    for given in (others[names], (others[names], LABELS)):
        with pytest.raises(ValueError, match=r"corpus does not go with X.*names"):
            short(corpus=given).fit(frame)


def test_a_corpus_in_other_units_is_noticed(X, corpus):
    with pytest.warns(UserWarning, match="of the corpus.*same units"):
        short(corpus=corpus + 5000).fit(X)


@pytest.mark.parametrize(
    "given", [lambda rows: (rows, rows), lambda rows: [rows, rows[:5]]]
)
def test_two_corpora_are_not_one(X, corpus, given):
    with pytest.raises(ValueError, match=r"corpus is .*\(rows, classes\)"):
        short(corpus=given(corpus)).fit(X)


def test_a_corpus_of_images_comes_flat_too(images):
    backbone = network_of()
    expected = scores_of(images[0], images[1], backbone=backbone)
    flat = images.reshape(2, 40, -1)
    for corpus in images[1], flat[1]:
        settings = {"backbone": backbone, "image_shape": (3, 10, 12)}
        np.testing.assert_array_equal(scores_of(flat[0], corpus, **settings), expected)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_corpus_by_name(n_channels, images, monkeypatch):
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (30, 3, 32, 32)).astype(np.uint8)
    labels = np.repeat([4, 7, 9], 10)
    asked = []

    def fetch(**settings):
        asked.append(settings)
        return coarse, labels

    monkeypatch.setattr("skanomaly.datasets.fetch_tiny_imagenet", fetch)
    normal = images[0][:, :n_channels]
    detector = short(corpus="tiny_imagenet", backbone=network_of(n_channels))
    detector.set_params(normalization=None).fit(normal)
    assert asked == [{"return_X_y": True}]
    assert np.isfinite(detector.score_samples(normal)).all()
    # The package's own network is taught the classes.
    detector = short(corpus="tiny_imagenet", pretrain="supervised").fit(normal)
    assert detector.history_[0]["stage"] == "pretraining"


def test_a_corpus_by_name_is_brought_to_the_shape_of_the_images(images, monkeypatch):
    plain = np.ones((30, 3, 32, 32), np.uint8)
    plain *= np.array([200, 100, 50], np.uint8)[:, None, None]
    monkeypatch.setattr(
        "skanomaly.datasets.fetch_tiny_imagenet", lambda **_: (plain, np.zeros(30))
    )
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    for n_channels, colour in ((3, (200, 100, 50)), (1, (round(grey),))):
        network, seen = watched(network_of(n_channels))
        settings = {"normalization": None, "augment": None, "backbone": network}
        short(corpus="tiny_imagenet", **settings).fit(images[0][:, :n_channels])
        (batch, *_) = [x for x in seen if len(x) == 16]
        expected = torch.tensor(colour).view(-1, 1, 1) / 127.5 - 1
        torch.testing.assert_close(
            batch[8:], expected.expand(8, n_channels, 10, 12), rtol=0, atol=0.006
        )


def test_anomalies_of_y_and_a_corpus_take_part_in_equal_numbers(images):
    # Constant images have no sharpness to bring to that of others.
    normal, known, corpus = (
        np.full((20, 3, 10, 12), value, np.uint8) for value in (128, 255, 0)
    )
    X, y = np.r_[normal, known], np.repeat([1, -1], 20)
    settings = {"normalization": None, "augment": None}
    for given, labels, share in (
        (corpus, y, {255: 4, 0: 4}),
        (corpus, None, {0: 8}),
        (None, y, {255: 8}),
        (None, None, {}),
    ):
        network, seen = watched(network_of())
        data = X if labels is not None else normal
        detector = short(corpus=given, backbone=network, **settings)
        detector.fit(data, labels)
        batches = [x for x in seen if len(x) == 16]
        pixels = (batches[0][:, 0, 0, 0] + 1) * 127.5
        counts = Counter(pixels.round().int().tolist())
        assert counts == {128: 16 - sum(share.values()), **share}
        if share:
            assert detector.offset_ == -math.log(2)
        else:
            assert detector.offset_ != -math.log(2)


@pytest.mark.parametrize("kind", ["X", "images"])
def test_a_corpus_that_is_small_or_holds_normal_rows(kind, request):
    data = request.getfixturevalue(kind)
    normal = data if kind == "X" else data[0]
    settings = {} if kind == "X" else {"backbone": network_of()}
    for corpus in (normal[:5] * 2, normal[:1], normal, np.concatenate([normal] * 3)):
        scores = scores_of(normal, corpus, **settings)
        assert np.isfinite(scores).all()
        assert np.ptp(scores) > 0


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (np.zeros((9, 3)), r"corpus have shape \(3,\), those of X \(4,\)"),
        (np.full((9, 4), np.nan), "corpus contains NaN"),
        (np.zeros((0, 4)), "0 sample"),
        ("nothing", "'nothing' is no data set.*tiny_imagenet"),
        ("odds", "corpus='odds'"),
        ("ucsd_ped2", "corpus"),
        ((np.zeros((9, 4)), np.zeros(8)), "9 rows, but 8 labels"),
        ((np.zeros((9, 4)), np.zeros(9), 1), "corpus"),
        (np.zeros(4), "corpus"),
    ],
)
def test_a_corpus_that_does_not_fit_is_named(corpus, message, X, monkeypatch):
    def fetch(**settings):
        return np.zeros((9, 1, 8, 8), np.uint8), np.zeros(9)

    monkeypatch.setattr("skanomaly.datasets.fetch_ucsd_ped2", fetch)
    detector = short(corpus=corpus)
    with pytest.raises(ValueError, match=message):
        detector.fit(X)
    assert vars(detector).keys() == detector.get_params().keys()


def test_bytes_and_floats_do_not_go_together(images):
    for normal, corpus in (images[0], images[1] / 255), (images[0] / 255, images[1]):
        with pytest.raises(ValueError, match="give both as bytes"):
            short(corpus=corpus, backbone=network_of()).fit(normal)


def test_without_a_corpus_it_does_not_collapse(toy):
    X_train, X_test, y_test = toy
    detector = ADRA(corpus=None, random_state=0).fit(X_train)
    scores = detector.score_samples(X_test)
    assert len(np.unique(scores)) > 300
    assert np.median(-scores) > 1e-4
    assert roc_auc_score(y_test, scores) > 0.85
    assert np.mean(detector.predict(X_train) == 1) > 0.8


def test_cross_validation_leaves_the_corpus_whole(X, corpus):
    detector = short(corpus=corpus, lr=0.1)
    folds = KFold(2)
    result = cross_validate(
        detector, X, cv=folds, scoring=lambda *_: 0.0, return_estimator=True
    )
    for estimator, (train, _) in zip(result["estimator"], folds.split(X), strict=True):
        expected = scores_of(X[train], corpus)
        np.testing.assert_array_equal(estimator.score_samples(X[train]), expected)


# Sharpness ----------------------------------------------------------------------------


def blurred(images):
    return F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), 5, 1)


@pytest.fixture
def smooth_and_noisy():
    def draw(n, noise):
        made = blurred(blurred(torch.randn(n, 3, 24, 20)))
        return made / made.std() + noise * torch.randn(n, 3, 24, 20)

    return draw(200, 0.1), draw(200, 0.4)


def test_equal_sets_are_equally_sharp(smooth_and_noisy):
    smooth, noisy = smooth_and_noisy
    for images in (smooth, smooth[:, :1]):
        factors = excess_sharpness(images, images)
        torch.testing.assert_close(factors, torch.ones(images.shape[1], 24))
    # A corpus that is less sharp stays so.
    factors = excess_sharpness(noisy, smooth)
    assert factors.min() > 0.8
    assert factors.max() == 1


def test_fine_detail_that_normal_images_lack_is_damped(smooth_and_noisy):
    smooth, noisy = smooth_and_noisy
    factors = excess_sharpness(smooth, noisy)
    assert (factors[:, :3] == 1).all()
    # Where there is noise alone, a quarter of it, and 1 in 7 more of all power.
    torch.testing.assert_close(
        factors[:, 19:], torch.full((3, 5), 0.27), rtol=0.2, atol=0
    )
    # Brightness and contrast do not matter.
    other = excess_sharpness(3 * smooth + 1, 100 * noisy - 7)
    torch.testing.assert_close(other, factors, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (3, 24, 20), (4, 5, 4)])
def test_factors_of_one_change_nothing(shape):
    images = torch.randn(3, *shape)
    factors = torch.ones(3 if shape[0] == 3 else shape[0], 24)
    torch.testing.assert_close(damped(images, factors), images, rtol=1e-4, atol=1e-5)


def spectrum(images):
    """Return the power by frequency of the middle of images, in three bands."""
    window = np.outer(np.hanning(26)[1:-1], np.hanning(22)[1:-1])
    images = images.numpy() - images.numpy().mean((2, 3), keepdims=True)
    power = np.abs(np.fft.fft2(images * window)) ** 2
    power /= power.sum((2, 3), keepdims=True)
    radius = np.hypot(np.fft.fftfreq(24)[:, None], np.fft.fftfreq(20))
    bands = pairwise([0.3, 0.4, 0.5, 0.6])
    return np.array([power[..., (radius >= a) & (radius < b)].mean() for a, b in bands])


def test_a_damped_corpus_has_the_spectrum_of_normal_images(smooth_and_noisy):
    smooth, noisy = smooth_and_noisy
    assert (spectrum(noisy) > 4 * spectrum(smooth)).all()
    made = damped(noisy, excess_sharpness(smooth, noisy))
    assert made.shape == noisy.shape
    np.testing.assert_allclose(spectrum(made), spectrum(smooth), rtol=0.5)
    # What is coarse stays.
    torch.testing.assert_close(
        F.avg_pool2d(made, 8)[..., 1, :],
        F.avg_pool2d(noisy, 8)[..., 1, :],
        rtol=0,
        atol=0.1,
    )


def test_bytes_that_are_damped_stay_within_their_range():
    X = np.zeros((4, 3, 16, 16), np.uint8)
    X[..., 8:] = 255
    factors = torch.ones(3, 24)
    factors[:, 4:] = 0.2
    made = MappedRows(Rows(X), partial(damped, factors=factors))[torch.arange(4)]
    expected = damped(torch.from_numpy(X).float(), factors).clamp(0, 255)
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=0.51)


def test_detectors_see_the_corpus_damped(smooth_and_noisy):
    def as_bytes(images):
        return (128 + 20 * images).clamp(0, 255).byte().numpy()

    smooth, noisy = map(as_bytes, smooth_and_noisy)
    network, seen = watched(network_of())
    settings = {"normalization": None, "augment": None, "input_size": 20}
    short(corpus=noisy, backbone=network, batch_size=200, **settings).fit(smooth)
    corpus = next(x for x in seen if len(x) == 200)[100:]
    high = [spectrum(part)[-1] for part in (scaled(smooth), corpus, scaled(noisy))]
    assert high[1] < high[2] / 4
    assert high[1] == pytest.approx(high[0], rel=0.5)


# Altered rows -------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [(), (3,)])
def test_altered_rows_are_halves_and_quarters(copies):
    table = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    rows = Rows(table.numpy())
    altered = AlteredRows(rows, 0)
    assert len(altered) == 500
    index = torch.arange(400).expand(*copies, 400)
    made, same = altered[index], rows[index]
    assert made.shape == same.shape
    changed = made != same
    # Swapped columns come from other rows, seldom from the row itself.
    swapped = changed[..., :200, :].sum(-1)
    assert (swapped >= 1).float().mean() > 0.98
    assert (swapped < 6).any()
    values = [set(table[:400, k].tolist()) for k in range(6)]
    for k in range(6):
        assert set(made[..., :200, k].flatten().tolist()) <= values[k]
    # Noise is added to one column at least, and to any number of them.
    noisy = changed[..., 200:300, :].sum(-1)
    assert noisy.min() == 1
    assert noisy.max() == 6
    size = (made - same)[..., 200:300, :].abs()
    assert 0.2 < size[size > 0].median() < 2
    # The rest is anywhere in a box that is a little larger than the data.
    low, high = table.amin(0), table.amax(0)
    beyond = 0.25 * (high - low) + 0.5
    free = made[..., 300:, :]
    assert (free >= low - beyond).all()
    assert (free <= high + beyond).all()
    assert ((free < low) | (free > high)).any()
    assert changed[..., 300:, :].all()


def test_altered_rows_are_drawn_by_a_seed():
    rows, index = Rows(np.random.default_rng(0).normal(size=(50, 3))), torch.arange(40)
    one, other, third = (AlteredRows(rows, seed)[index] for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    altered = AlteredRows(rows, 0)
    assert not torch.equal(altered[index], altered[index])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_altered_rows(n):
    rows = Rows(np.random.default_rng(0).normal(size=(50, 1)))
    assert AlteredRows(rows, 0)[torch.arange(n)].shape == (n, 1)


# Pretraining --------------------------------------------------------------------------


def stages(detector):
    return list(dict.fromkeys(row["stage"] for row in detector.history_))


@pytest.mark.parametrize(
    ("kind", "pretrain", "message"),
    [
        ("images", "supervised", "needs a corpus with classes"),
        ("images", "denoising", "'denoising' is no task for images"),
        ("X", "rotation", "'rotation' is no task for a table"),
        ("X", "supervised", "'supervised' is no task for a table"),
    ],
)
def test_tasks_that_do_not_fit_are_named(kind, pretrain, message, request):
    data = request.getfixturevalue(kind)
    settings = {} if kind == "X" else {"corpus": data[1]}
    with pytest.raises(ValueError, match=message):
        short(pretrain=pretrain, **settings).fit(data if kind == "X" else data[0])


@pytest.mark.parametrize(
    ("kind", "pretrain", "labelled"),
    [
        ("X", "denoising", False),
        ("X", "auto", False),
        ("X", None, False),
        ("images", "rotation", False),
        ("images", "auto", False),
        ("images", "auto", True),
        ("images", "supervised", True),
        ("images", "rotation", True),
        ("images", None, True),
    ],
)
def test_own_networks_are_taught_first(kind, pretrain, labelled, request):
    data = request.getfixturevalue(kind)
    settings = {"pretrain": pretrain}
    if kind == "images":
        labels = np.repeat([5, 11], 20)
        settings["corpus"] = (data[1], labels) if labelled else data[1]
        data = data[0]
    detector = short(**settings).fit(data)
    expected = ["adaptation"] if pretrain is None else ["pretraining", "adaptation"]
    assert stages(detector) == expected
    assert np.ptp(detector.score_samples(data)) > 0
    if pretrain is None:
        untaught = ResNet26(3, 4) if kind == "images" else perceptrons(2, 4, 4)
        assert state_of(detector.backbone_).keys() == untaught.state_dict().keys()
        means = [
            v for k, v in state_of(detector.backbone_).items() if "running_mean" in k
        ]
        assert not any(mean.any() for mean in means)


def test_rotations_are_of_normal_images_and_of_the_corpus(images, monkeypatch):
    seen = []

    def posed(self, batch):
        seen.extend(batch.mean((1, 2, 3)).tolist())
        return taught(self, batch)

    taught = Rotation.posed
    monkeypatch.setattr(Rotation, "posed", posed)
    dark, bright = np.full_like(images[0], 10), np.full_like(images[1], 240)
    short(corpus=bright, pretrain_epochs=3).fit(dark)
    assert sum(mean < 0 for mean in seen) == pytest.approx(
        sum(mean > 0 for mean in seen), rel=0.5
    )


def test_joined_rows_stand_one_after_the_other():
    tables = [np.random.default_rng(n).normal(size=(n, 3)) for n in (4, 1, 6)]
    joined, whole = JoinedRows([Rows(t) for t in tables]), np.concatenate(tables)
    index = torch.tensor([10, 0, 4, 4, 3, 5, 9, 1])
    assert len(joined) == 11
    torch.testing.assert_close(joined[index], torch.tensor(whole).float()[index])
    other = pickle.loads(pickle.dumps(joined))
    assert torch.equal(other[index], joined[index])


def test_memory_names_what_it_cannot_keep(images, tmp_path):
    detector = short(
        corpus=images[1], augment=lambda batch: batch, memory=str(tmp_path)
    )
    with pytest.raises(ValueError, match=r"With memory, .* lambda"):
        detector.fit(images[0])


def test_a_network_that_is_given_is_not_taught(images):
    backbone = network_of()
    for pretrain in ("auto", "rotation", "supervised", "denoising"):
        detector = short(backbone=backbone, pretrain=pretrain).fit(images[0])
        assert stages(detector) == ["adaptation"]


def taught(data, **settings):
    """Return the losses of the pretraining, epoch by epoch."""
    detector = short(**settings, pretrain_epochs=12).fit(data)
    return [
        row["pretraining_loss"]
        for row in detector.history_
        if row["stage"] == "pretraining"
    ]


def test_own_networks_learn_the_classes_of_the_corpus(images):
    rows = np.concatenate([images[1] // 4, 192 + images[1] // 4])
    losses = taught(images[0], corpus=(rows, np.repeat(["dark", "bright"], 40)))
    assert 0.3 < losses[0] < 2
    assert losses[-1] < 0.2
    # Labels that say nothing cannot be learned so soon.
    random = np.random.default_rng(0).integers(0, 2, 80)
    assert taught(images[0], corpus=(rows, random))[-1] > 0.35


def test_own_networks_learn_which_way_up_images_are(images):
    upright = images[0].copy()
    upright[:, :, :5] //= 4
    losses = taught(upright, augment=None)
    assert 0.7 < losses[0] < 3
    assert losses[-1] < 1.2 < math.log(4)
    # Images that are the same on all sides have no way up.
    plain = np.repeat(np.arange(40, dtype=np.uint8), 360).reshape(40, 3, 10, 12)
    assert taught(plain)[-1] > 1.3


def test_own_networks_learn_to_take_noise_away():
    rng = np.random.default_rng(0)
    table = np.repeat(rng.normal(size=(200, 1)), 8, axis=1)
    losses = taught(table, n_copies=1, width=16)
    assert 0.02 < losses[-1] < losses[0] / 3


@pytest.fixture
def runs(monkeypatch):
    """Count the runs of each kind of net."""
    counted, fit_loop = Counter(), AlternatingNet.fit_loop

    def watched(net, *arguments, **options):
        counted[type(net).__name__] += 1
        return fit_loop(net, *arguments, **options)

    monkeypatch.setattr(AlternatingNet, "fit_loop", watched)
    return counted


@pytest.mark.parametrize(
    ("kind", "task"),
    [("X", "Denoising"), ("images", "Rotation"), ("images", "Supervised")],
)
def test_candidates_of_a_search_share_the_pretraining(
    kind, task, request, tmp_path, runs
):
    data, settings = request.getfixturevalue(kind), {}
    if kind == "images":
        data, corpus = data
        corpus = np.concatenate([corpus, corpus])
        settings["corpus"] = corpus
        if task == "Supervised":
            settings["corpus"] = corpus, np.repeat([0, 1], 40)
    detector = short(memory=str(tmp_path), **settings)
    everything = np.arange(len(data))
    search = GridSearchCV(
        detector,
        {"n_experts": [1, 2, 3]},
        scoring=lambda *_: 0.0,
        cv=[(everything, everything)],
        refit=False,
    )
    search.fit(data)
    assert runs == {task: 1, "ResidualAdaptation": 3}


@pytest.mark.filterwarnings("error:ADRA was given no corpus:UserWarning")
def test_images_without_a_corpus_are_noticed(images):
    settings = {"backbone": network_of()}
    with pytest.warns(UserWarning, match="no corpus.*UADRA"):
        short(**settings).fit(images[0])
    short(**settings, corpus=None).fit(images[0])
    short(**settings).fit(images.reshape(80, 3, 10, 12), np.repeat([1, -1], 40))
    short().fit(np.random.default_rng(0).normal(size=(60, 4)))


def test_a_corpus_of_larger_numbers_is_refused(images):
    X, corpus = images.astype(np.float32)
    short(corpus=corpus / 200, backbone=network_of()).fit(X / 255)
    with pytest.raises(ValueError, match="corpus goes from 0 to 255 and X from 0 to 1"):
        short(corpus=corpus, backbone=network_of()).fit(X / 255)


def test_rows_that_are_altered_in_a_warm_start_are_new_ones(X, monkeypatch):
    seeds = []

    class Seen(AlteredRows):
        def __init__(self, rows, seed):
            seeds.append(seed)
            super().__init__(rows, seed)

    monkeypatch.setattr("skanomaly._adra._estimator.AlteredRows", Seen)
    short(warm_start=True).fit(X).fit(X)
    assert len(set(seeds)) == 2


# The detector -------------------------------------------------------------------------


def test_scores_are_radii_of_codes(images):
    settings = {"backbone": network_of(), "corpus": images[1], "lr": 0.1}
    detector = short(**settings).fit(images[0])
    codes = detector.encode(images[0])
    assert codes.shape == (40, 8)
    assert codes.dtype == np.float32
    scores = detector.score_samples(images[0])
    assert (scores <= 0).all()
    radius = np.sqrt(np.square(codes.astype(float)).sum(1) + 1) - 1
    np.testing.assert_allclose(-scores, radius, rtol=1e-3, atol=1e-6)
    assert detector.offset_ == -math.log(2)
    detector.set_params(contamination=0.1).fit(images[0])
    assert detector.offset_ != -math.log(2)


def test_scores_of_networks_side_by_side_are_geometric_means(X):
    detector = short(n_copies=3, lr=0.01).fit(X)
    codes = detector.encode(X).reshape(60, 3, -1).astype(float)
    assert detector.encode(X).shape == (60, 12)
    radii = np.sqrt(np.square(codes).sum(2) + 1) - 1
    expected = np.exp(np.log(radii).mean(1))
    np.testing.assert_allclose(
        -detector.score_samples(X), expected, rtol=1e-3, atol=1e-6
    )
    # Networks differ from each other.
    assert radii.std(1).min() > 1e-6


def test_seeds_and_batches(images):
    settings = {"backbone": network_of(), "corpus": images[1], "lr": 0.1}
    detector = short(**settings).fit(images[0])
    scores = detector.score_samples(images[0])
    again = short(**settings).fit(images[0]).score_samples(images[0])
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(detector.score_samples(images[0][::-1]), scores[::-1])
    alone = [detector.score_samples(row[None])[0] for row in images[0][:5]]
    np.testing.assert_array_equal(alone, scores[:5])
    other = short(**settings | {"random_state": 1}).fit(images[0])
    assert not np.array_equal(other.score_samples(images[0]), scores)


def test_a_corpus_is_pushed_away(images):
    """Dark images are normal, and bright ones stand for what is not."""
    dark, bright = images[0] // 4, 192 + images[1] // 4
    settings = {"backbone": network_of(), "corpus": bright, "max_epochs": 20}
    detector = short(**settings, lr=1e-3).fit(dark)
    outside = detector.score_samples(bright)
    assert (outside < detector.score_samples(dark).min()).all()
    assert (detector.predict(bright) == -1).all()
    assert (detector.predict(dark) == 1).all()


def test_a_file_gives_the_detector_back(images, tmp_path):
    network = network_of()
    detector = short(backbone=network, lr=0.1).fit(images[0])
    save(detector, tmp_path / "d.safetensors")
    other = load(tmp_path / "d.safetensors", backbone=deepcopy(network))
    np.testing.assert_array_equal(
        other.score_samples(images[0]), detector.score_samples(images[0])
    )


# Augmentation -------------------------------------------------------------------------


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def places():
    """Images whose pixels say where they are: 100 times the row, and the column."""
    rows, columns = torch.arange(16)[:, None], torch.arange(24)
    image = (100 * rows + columns).float()
    return torch.stack([image, -image]).expand(200, 2, 16, 24)


def test_half_of_the_images_are_mirrored(places, rng):
    made = Augmentation(("flip",))(places, rng)
    assert made.shape == places.shape
    mirrored = (made == places.flip(3)).flatten(1).all(1)
    assert (mirrored ^ (made == places).flatten(1).all(1)).all()
    assert 70 < mirrored.sum() < 130


def test_crops_move_images_and_repeat_their_edges(places, rng):
    made = Augmentation(("crop",))(places, rng)
    assert made.shape == places.shape
    torch.testing.assert_close(made[:, 0], -made[:, 1])
    rows, columns = made[:, 0] // 100, made[:, 0] % 100
    for found, side, far in ((rows[:, :, 0], 16, 2), (columns[:, 0], 24, 3)):
        moved = found[:, side // 2] - side // 2
        assert set(moved.tolist()) == set(range(-far, far + 1))
        expected = (torch.arange(side) + moved[:, None]).clamp(0, side - 1)
        torch.testing.assert_close(found, expected)
    # Every image moves in its own way, both along rows and columns.
    assert len(made.flatten(1).unique(dim=0)) > 25
    again = Augmentation(("crop",))(places, torch.Generator().manual_seed(0))
    assert torch.equal(again, made)


def distinct_of(pixels):
    """Return different images, of pixels in [-1, 1]."""
    as_bytes = (127.5 * (pixels + 1)).round().byte().contiguous().numpy()
    return {image.tobytes() for image in as_bytes}


def training_batches(images, **settings):
    """Return the normal rows of all batches, as the network is given them."""
    network, seen = watched(network_of())
    settings = {"backbone": network, "normalization": None} | settings
    short(**settings, corpus=images[1], batch_size=20, max_epochs=2).fit(images[0])
    batches = [x[:10] for x in seen if len(x) == 20]
    assert len(batches) == 8
    return torch.cat(batches)


def test_detectors_augment_in_training(images):
    given = scaled(images[0])
    plain, mirrored = distinct_of(given), distinct_of(given.flip(3))
    assert distinct_of(training_batches(images, augment=None)) == plain
    assert distinct_of(training_batches(images, augment=())) == plain
    flips = distinct_of(training_batches(images, augment=["flip"]))
    assert flips <= plain | mirrored
    assert len(flips - plain) > 10
    assert len(flips & plain) > 10
    default = distinct_of(training_batches(images))
    assert len(default - plain - mirrored) > 60


def test_scores_are_of_images_as_they_are(images):
    network, seen = watched(network_of())
    detector = short(backbone=network, normalization=None).fit(images[0])
    detector.score_samples(images[0])
    assert distinct_of(seen[-1][:40]) == distinct_of(scaled(images[0]))


def test_a_function_of_one_s_own_augments(images):
    given = []

    def darker(batch):
        given.append(batch.shape)
        return batch / 2

    batches = training_batches(images, augment=darker)
    assert given == [(20, 3, 10, 12)] * 8
    assert distinct_of(2 * batches) == distinct_of(scaled(images[0]))


@pytest.mark.parametrize("augment", [("flip", "turn"), ["turn"]])
def test_unknown_augmentation_is_named(augment, images):
    with pytest.raises(ValueError, match=r"augment has \['turn'\]"):
        short(backbone=network_of(), augment=augment).fit(images[0])


def test_preparation_enlarges_and_normalises():
    x = torch.rand(2, 3, 8, 6) * 2 - 1
    same = ImagePreparation((8, 6))(x)
    assert torch.equal(same, x)
    made = ImagePreparation((16, 12), *PAIR)(x)
    assert made.shape == (2, 3, 16, 12)
    larger = F.interpolate(x, (16, 12), mode="bilinear")
    mean, spread = (torch.tensor(part).view(-1, 1, 1) for part in PAIR)
    torch.testing.assert_close(made, ((larger + 1) / 2 - mean) / spread)


# Photographs --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_of_photographs_finds_cars(shared_data):
    # The benchmarks are no part of the package, and their folder need not be on the
    # path.
    path = Path(__file__).parents[1] / "benchmarks" / "pretrained.py"
    spec = importlib.util.spec_from_file_location("pretrained", path)
    pretrained = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pretrained)
    X, y = fetch_cifar10(data_home=shared_data, return_X_y=True)
    X_test, y_test = fetch_cifar10(
        subset="test", data_home=shared_data, return_X_y=True
    )
    corpus = fetch_tiny_imagenet(data_home=shared_data).data[:1000]
    detector = ADRA(
        backbone=pretrained.mobilenet_v2(shared_data),
        normalization=None,
        corpus=corpus,
        max_epochs=1,
        batch_size=32,
        random_state=0,
    )
    detector.fit(X[y == 1][: 20 * 16])
    assert detector.net_.step_ == 20
    some = np.random.default_rng(0).permutation(len(X_test))[:500]
    auroc = roc_auc_score(y_test[some] == 1, detector.score_samples(X_test[some]))
    assert auroc > 0.85


# Files, clones, and what ends a run ---------------------------------------------------


def test_a_file_may_leave_the_network_out(images, tmp_path):
    normal, corpus = images
    network = network_of(n_classes=5)
    detector = short(backbone=network, corpus=corpus).fit(normal)
    scores = detector.score_samples(normal)
    whole, adapters = tmp_path / "whole", tmp_path / "adapters"
    save(detector, whole)
    save(detector, adapters, include_backbone=False)
    n_frozen = sum(p.nbytes for p in detector.backbone_.parameters())
    assert whole.stat().st_size - adapters.stat().st_size > 0.9 * n_frozen
    for path in (whole, adapters):
        other = load(path, backbone=network)
        np.testing.assert_array_equal(other.score_samples(normal), scores)
        assert other.corpus is None
    shared = other.net_.backbone_.network[0].frozen.weight
    assert shared.data_ptr() == network[0].weight.data_ptr()


def test_a_file_without_its_network_wants_that_one(images, tmp_path):
    normal, corpus = images
    network, path = network_of(), tmp_path / "adapters"
    save(
        short(backbone=network, corpus=corpus).fit(normal), path, include_backbone=False
    )
    other = deepcopy(network)
    with torch.no_grad():
        other[1].running_mean += 1e-3
    with pytest.raises(ValueError, match="weights of backbone are not those"):
        load(path, backbone=other)
    with pytest.raises(ValueError, match="backbone"):
        load(path)


@pytest.mark.parametrize("corpus", ["array", "lists", "labelled"])
def test_a_file_has_no_rows(corpus, X, tmp_path):
    path, given = tmp_path / "detector", 3 * X + 0.123456
    if corpus == "lists":
        given = given.tolist()
    detector = short(corpus=(given, [0] * 60) if corpus == "labelled" else given)
    save(detector.fit(X), path)
    assert load(path).corpus is None
    assert str(3 * X[0, 0] + 0.123456)[:8].encode() not in path.read_bytes()


def test_a_file_without_the_network_wants_no_way_to_build_it(images, tmp_path):
    normal, corpus = images
    own = {"backbone": lambda shape: network_of(shape[0])}
    detector = short(corpus=corpus, architecture=own).fit(normal)
    path, network = tmp_path / "adapters", detector.backbone_
    save(detector, path, include_backbone=False)
    other = load(path, backbone=network)
    expected = detector.score_samples(normal)
    np.testing.assert_array_equal(other.score_samples(normal), expected)


@pytest.mark.parametrize("kind", ["X", "images"])
def test_an_own_network_is_given_back_to_its_adapters(kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    data = data if kind == "X" else data[0]
    detector, path = short().fit(data), tmp_path / "adapters"
    save(detector, path, include_backbone=False)
    other = load(path, backbone=detector.backbone_)
    np.testing.assert_array_equal(
        other.score_samples(data), detector.score_samples(data)
    )


def test_other_detectors_have_no_network_to_leave_out(X, tmp_path):
    from skanomaly import HistoryAD

    detector = HistoryAD(max_epochs=1, detector_epochs=0, width=4, random_state=0).fit(
        X
    )
    with pytest.raises(ValueError, match="HistoryAD has no network"):
        save(detector, tmp_path / "d", include_backbone=False)


def test_clones_share_network_and_corpus(images):
    normal, corpus = images
    detector = short(backbone=network_of(), corpus=corpus, augment=["flip"])
    twin = clone(detector)
    assert twin.backbone is detector.backbone
    assert twin.corpus is corpus
    assert twin.augment == ["flip"]
    assert twin.augment is not detector.augment
    assert twin.get_params().keys() == detector.get_params().keys()
    np.testing.assert_array_equal(
        twin.fit(normal).score_samples(normal),
        detector.fit(normal).score_samples(normal),
    )


def test_a_run_without_a_corpus_ends_within_an_epoch(images):
    normal = np.concatenate([images[0]] * 30)
    detector = short(backbone=network_of(), lr=0.1, corpus=None, max_epochs=3)
    detector.fit(normal)
    n_steps = detector.net_.step_
    assert n_steps < len(normal) * 0.9 // 16  # the first epoch has not ended
    assert n_steps % 5 == 0
    assert detector.n_iter_ == 1
    assert detector.history_[-1]["spread"] > 0
    again = clone(detector).set_params(warm_start=True).fit(normal)
    before = again.net_.step_
    again.fit(normal)  # is measured against the frozen network, as at first
    assert again.net_.step_ - before == 5


def test_statistics_of_batches_are_refused(images):
    network = network_of()
    network[1] = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(ValueError, match="without running statistics, 1"):
        short(backbone=network, corpus=images[1]).fit(images[0])


class LooksAtClasses(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.layer(x) * (1 if type(self.layer) is nn.Conv2d else 2)


def test_networks_that_look_at_the_classes_of_their_layers_are_refused(images):
    with pytest.raises(ValueError, match="computes something else"):
        short(backbone=LooksAtClasses(), corpus=images[1]).fit(images[0])


def test_hooks_of_a_layer_are_kept(images):
    network = network_of()
    network[3].register_forward_hook(lambda layer, inputs, output: 3 * output)
    x = torch.randn(2, 3, 10, 12)
    frozen = FrozenNetwork(network.eval(), x[:1])
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), network(x))
        adapters = Adapters(frozen, 1, 0.1, True)
        frozen.correct_by(adapters.corrections)
        torch.testing.assert_close(frozen(x), network(x))


@pytest.mark.parametrize("normalization", ["auto", None, ((0.1,) * 3, (0.2,) * 3)])
@pytest.mark.parametrize("kind", ["given", "own"])
def test_what_a_network_is_given_is_handed_on_with_it(kind, normalization, images):
    normal, corpus = images
    backbone = network_of() if kind == "given" else "resnet26"
    first = still(backbone=backbone, corpus=corpus, normalization=normalization)
    other = still(backbone=first.fit(normal).backbone_, corpus=corpus).fit(normal)
    np.testing.assert_allclose(other.encode(normal), first.encode(normal), rtol=1e-5)


def test_steps_of_sgd_have_a_greatest_length(images, monkeypatch):
    def steep(normal, apart):
        return 1e6 * hypersphere_classification_loss(normal, apart)

    settings = {"batch_size": 80, "lr": 1e-3, "weight_decay": 0, "n_experts": 1}
    build = partial(short, backbone=network_of(), corpus=images[1], **settings)
    start = build(lr=1e-30).fit(images[0]).net_.adapters_.parameters()
    monkeypatch.setattr(_net, "hypersphere_classification_loss", steep)
    end = build().fit(images[0]).net_.adapters_.parameters()
    moved = [(b - a).square().sum() for a, b in zip(start, end, strict=True)]
    assert sum(moved).sqrt().item() == pytest.approx(1e-2, rel=1e-4)  # 10 by 1e-3


def test_a_corpus_at_the_centre_does_not_tear_the_adapters_apart(X):
    """Its gradient has no bound; one step of it must not be all that was learned."""
    detector = short(corpus=X, lr=0.1, max_epochs=1).fit(X)
    weights = list(detector.net_.adapters_.corrections.parameters())
    assert max(float(w.detach().abs().max()) for w in weights) < 10
