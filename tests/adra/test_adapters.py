"""Adapters of layers, eqs 2 and 3, against reference computations."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skanomaly._adra._adapters import (
    Gate,
    MergedConvolution,
    MixedConvolution,
    StackedLinear,
    adapted_layer,
    adapter_for,
    adapters_for,
    can_mix,
    mean_pixel,
    merge,
)
from skanomaly._adra._backbone import forward_hooks

from .parts import (
    CONVOLUTIONS,
    adapter_by_hand,
    at_the_middle,
    double,
    frozen_form,
    gates_by_hand,
    ignore_missing_corpus,
    n_weights,
    network_of,
    normalised,
    randomised,
    short,
    standardised,
    untrained,
    used_norm,
    weights_by_hand,
)

pytestmark = ignore_missing_corpus


CENTRED = {"same", "reflected", "own"}


MANY = {"one pixel, many channels", "one pixel, many channels, strided"}


every_convolution = pytest.mark.parametrize("kind", CONVOLUTIONS)


every_plain_convolution = pytest.mark.parametrize(
    "kind", [kind for kind in CONVOLUTIONS if kind not in CENTRED]
)


def layer_of(kind, n_experts):
    """Return a convolution, its wrapper, and the adapter in that."""
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    layer, adapter = (
        adapted_layer(conv),
        randomised(adapter_for(conv, n_experts)).double(),
    )
    layer.set_adapter(adapter)
    return conv, layer, adapter


@every_convolution
@pytest.mark.parametrize("normed", [False, True])
def test_adapted_convolutions_and_all_their_gradients(kind, n_experts, normed):
    conv, layer, adapter = layer_of(kind, n_experts)
    norm = used_norm(conv.out_channels).double().eval().requires_grad_(False)
    layer.norm = norm if normed else None
    x = double(3, conv.in_channels, 9, 11).requires_grad_()
    y = layer(x)
    expected = conv(x) + adapter_by_hand(adapter, x, conv)
    expected = norm(expected) if normed else expected
    torch.testing.assert_close(y, expected)
    wanted, weights = torch.randn_like(y), [x, *adapter.parameters()]
    found = torch.autograd.grad(y, weights, wanted)
    literal = torch.autograd.grad(expected, weights, wanted)
    for one, other in zip(found, literal, strict=True):
        torch.testing.assert_close(one, other)


@every_convolution
def test_an_adapter_starts_at_zero(kind, n_experts):
    conv = CONVOLUTIONS[kind]()
    layer, x = adapted_layer(conv), torch.randn(3, conv.in_channels, 9, 11)
    layer.set_adapter(adapter_for(conv, n_experts))
    torch.testing.assert_close(layer(x), conv(x))
    layer.set_adapter(randomised(adapter_for(conv, n_experts)))
    assert not torch.allclose(layer(x), conv(x), atol=1e-2)
    layer.set_adapter(None)
    assert torch.equal(layer(x), conv(x))


@every_plain_convolution
@pytest.mark.parametrize("normed", [False, True])
def test_one_expert_merges_into_the_kernel(kind, normed):
    conv, layer, adapter = layer_of(kind, 1)
    x, merged = double(2, conv.in_channels, 9, 11), deepcopy(conv)
    merged.weight.data += at_the_middle(
        weights_by_hand(adapter, conv)[0].detach(), conv
    )
    norm = used_norm(conv.out_channels).double().eval()
    layer.norm = norm if normed else None
    expected = norm(merged(x)) if normed else merged(x)
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
def test_one_expert_is_a_convolution_of_one_pixel_beside_the_base_layer(kind):
    conv, layer, adapter = layer_of(kind, 1)
    x = double(2, conv.in_channels, 9, 11)
    beside = nn.Conv2d(
        *(conv.in_channels, conv.out_channels, 1, conv.stride),
        groups=conv.groups,
        bias=False,
    ).double()
    beside.weight.data = weights_by_hand(adapter, conv)[0].detach()[:, :, None, None]
    torch.testing.assert_close(layer(x), conv(x) + beside(x))


@pytest.mark.parametrize(
    "kind", ["plain", "one pixel, many channels", "groups", "depthwise", "own"]
)
def test_equal_experts_equal_one_expert_for_any_gate(kind):
    conv, layer, adapter = layer_of(kind, 3)
    x, alone = double(2, conv.in_channels, 9, 11), adapter_for(conv, 1).double()
    alone.weights.data = 3**0.5 * adapter.weights.data[:1]
    adapter.weights.data[:] = adapter.weights.data[:1]
    together = layer(x)
    nn.init.normal_(adapter.gate.weight, std=9)
    torch.testing.assert_close(layer(x), together)
    layer.set_adapter(alone)
    torch.testing.assert_close(layer(x), together)


def test_gates_sum_to_one_and_differ_between_samples():
    adapter = randomised(adapter_for(nn.Conv2d(4, 6, 3), 3)).double()
    nn.init.normal_(adapter.gate.centre)
    mean = 9 * double(7, 4)
    gates = adapter.gate(mean)
    torch.testing.assert_close(gates.sum(1), torch.ones(7, dtype=torch.double))
    torch.testing.assert_close(gates, gates_by_hand(adapter, mean))
    assert (gates > 0).all()
    assert gates.std(0).min() > 0.01


def grouped(conv, n_groups=None):
    """Return the shape of weights for a convolution, in these groups or in its own."""
    n_out, n_in = conv.weight.shape[:2]
    n_groups = n_groups or conv.groups
    return n_groups, n_out // n_groups, n_in * conv.groups // n_groups


GRADCHECKED = [kind for kind in CONVOLUTIONS if kind not in CENTRED | MANY]


@pytest.mark.parametrize(
    ("kind", "n_groups"),
    [(kind, None) for kind in GRADCHECKED]
    + [("one pixel", 4), ("one pixel, strided", 4), ("strided", 2), ("plain", 2)],
)
def test_merged_convolutions_pass_gradcheck(kind, n_groups):
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    x = double(2, conv.in_channels, 5, 6, requires_grad=True)
    weights = double(grouped(conv, n_groups), requires_grad=True)

    def function(x, weights):
        kernel = conv.weight.clone()
        merge(weights, kernel)
        return MergedConvolution.apply(x, weights, kernel, conv.bias, conv)

    assert torch.autograd.gradcheck(function, (x, weights))


@pytest.mark.parametrize("kind", GRADCHECKED)
def test_mixed_convolutions_pass_gradcheck(kind):
    conv = CONVOLUTIONS[kind]().double().requires_grad_(False)
    if not can_mix(conv):
        assert kind in {
            "groups",
            "one pixel, groups",
            "wide padding",
            "multiplied",
        } or (kind.startswith("even"))
        return
    x = double(2, conv.in_channels, 5, 6, requires_grad=True)
    gates = double(2, 3, requires_grad=True)
    weights = double(3, *grouped(conv), requires_grad=True)

    def function(*parts):
        return MixedConvolution.apply(*parts, conv.weight, conv.bias, conv, 2**18)

    assert torch.autograd.gradcheck(function, (x, gates, weights))


@pytest.mark.parametrize(
    "kind", ["plain", "strided", "one pixel", "one pixel, strided"]
)
def test_samples_may_be_mixed_a_few_at_a_time(kind):
    _, layer, adapter = layer_of(kind, 3)
    x = double(7, layer.in_channels, 9, 11).requires_grad_()
    weights, found = [x, *adapter.parameters()], []
    for cached in (2**30, 2 * adapter.weights[0].numel(), 1):
        layer.n_cached = cached
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), weights)])
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("n_out", [24, 72])
@pytest.mark.parametrize("shape", [(5, 64), (5, 7, 64), (5, 2, 3, 64)])
def test_linear_layers_of_samples_and_of_tokens(shape, n_out, n_experts):
    linear = nn.Linear(64, n_out).double().requires_grad_(False)
    layer, adapter = adapted_layer(linear), adapter_for(linear, n_experts).double()
    x = double(shape)
    layer.set_adapter(adapter)
    torch.testing.assert_close(layer(x), linear(x))
    randomised(adapter)
    gates = gates_by_hand(adapter, x.reshape(5, -1, 64).mean(1))
    mixed = torch.einsum("nk,koi->noi", gates, weights_by_hand(adapter, linear))
    expected = linear(x) + torch.einsum("n...i,noi->n...o", x, mixed)
    torch.testing.assert_close(layer(x), expected)


def test_ensembles_of_linear_layers(n_experts):
    stack = StackedLinear(2, 4, 5).double().requires_grad_(False)
    nn.init.normal_(stack.bias)
    layer, adapter = adapted_layer(stack), adapter_for(stack, n_experts).double()
    x = double(2, 7, 4)
    layer.set_adapter(adapter)
    torch.testing.assert_close(layer(x), stack(x))
    randomised(adapter)
    for k in range(2):
        experts, gates = (
            adapter.weights[k].unflatten(1, (n_experts, 5)),
            torch.ones(7, 1),
        )
        if n_experts > 1:
            gate = adapter.gate
            gates = standardised(gate, x)[k] @ gate.weight[k] + gate.bias[k]
            gates = gates.softmax(1)
        expected = x[k] @ stack.weight[k] + stack.bias[k]
        made = torch.einsum("ni,ieo,ne->no", x[k], experts, gates.double())
        torch.testing.assert_close(layer(x)[k], expected + made)


def test_wide_layers_of_one_pixel_have_adapters_in_groups(n_experts):
    gate = n_experts * (64 + 1) if n_experts > 1 else 0
    for layer in (nn.Conv2d(64, 96, 1), nn.Linear(64, 96)):
        adapter = adapter_for(layer, n_experts)
        assert adapter.groups == 8
        assert n_weights(adapter) == n_experts * 64 * 96 // 8 + gate
    assert adapter_for(nn.Linear(72, 68), n_experts).groups == 4
    whole = nn.Conv2d(64, 96, 3), nn.Conv2d(64, 56, 1), nn.Linear(48, 96)
    for layer in whole:
        adapter = adapter_for(layer, n_experts)
        assert adapter.groups == 1
        assert adapter.weights.shape == (n_experts, *layer.weight.shape[:2])
    parts = adapter_for(nn.Conv2d(128, 96, 3, groups=2), n_experts)
    assert parts.weights.shape == (n_experts, 96, 64)
    parts = adapter_for(nn.Conv2d(256, 256, 1, groups=2), n_experts)
    assert parts.groups == 2
    assert parts.weights.shape == (n_experts, 256, 128)


def test_which_layers_have_experts():
    def numbers(*layers):
        return [one.n_experts for one in adapters_for(layers, 3)]

    pointwise, linear = nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
    kernel = nn.Conv2d(8, 8, (1, 3))
    by_channel = nn.Conv2d(8, 8, 3, groups=8)
    assert numbers(pointwise, kernel, linear, pointwise) == [1, 3, 3, 1]
    assert numbers(kernel, by_channel, pointwise) == [3, 3, 1]
    assert numbers(kernel, by_channel) == [3, 3]
    assert numbers(by_channel) == [3]
    assert numbers(pointwise, linear) == [3, 3]
    assert numbers(linear) == [3]
    assert numbers(StackedLinear(2, 4, 5)) == [3]
    # As single numbers, mixtures do nothing: 1 x 1 convolutions have them instead.
    assert numbers(pointwise, by_channel, linear, pointwise) == [3, 1, 3, 3]
    wide, narrow = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
    assert numbers(wide, by_channel, narrow) == [1, 1, 3]
    assert numbers(wide, by_channel) == [3, 1]
    blocks = [wide, by_channel, narrow] * 10
    assert numbers(kernel, *blocks) == [3, *[1, 1, 3] * 10]
    assert numbers(kernel, *blocks[:6]) == [3, *[1, 3, 1] * 2]
    layers = pointwise, nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
    for first, expected in ((0, [3, 1, 3]), (2, [3])):
        x = torch.randn(2, 8, 5, 5)
        _, adapters = frozen_form(nn.Sequential(*layers), x, 3, adapt_from=first)
        assert [one.n_experts for one in adapters.layers] == expected


@pytest.mark.parametrize(("alone", "expected"), [(False, 6e-3), (True, 2e-4)])
def test_a_step_is_as_long_for_any_number_of_experts(images, alone, expected):
    settings = {"backbone": network_of(), "corpus": None if alone else images[1]}
    for k in (1, 3):
        detector = short(**settings, n_experts=k, lr="auto").fit(images[0])
        assert detector.net_.lr == expected


@pytest.mark.parametrize("layer", [nn.Conv2d(512, 512, 1), nn.Linear(512, 512)])
def test_a_step_moves_any_adapter_as_far_as_a_full_matrix(layer, n_experts):
    x, wanted = torch.randn(256, 512), torch.randn(256, 512)
    adapter = adapter_for(layer, n_experts)
    if n_experts > 1:
        nn.init.zeros_(adapter.gate.weight)
        nn.init.zeros_(adapter.gate.bias)
    made = adapter(x[:, None], x)[:, 0]
    (gradient,) = torch.autograd.grad((made * wanted).mean(), adapter.weights)
    adapter.weights.data = -gradient
    moved = (adapter(x[:, None], x)[:, 0] * wanted).mean()
    whole = wanted.T @ x / wanted.numel()
    expected = -((x @ whole.T) * wanted).mean()
    torch.testing.assert_close(moved, expected, rtol=0.05, atol=0)


def patterns(rng, n, seed):
    """Return images of three patterns with a little noise."""
    kinds = np.random.default_rng(seed).integers(90, 166, (3, 3, 10, 12))
    noise = rng.integers(-20, 21, (n, 3, 10, 12))
    return (kinds[rng.integers(0, 3, n)] + noise).astype(np.uint8)


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CorpusSourceWarning")
@pytest.mark.parametrize("kind", ["columns", "images"])
@pytest.mark.parametrize("n_experts", [2, 4])
def test_experts_and_gates_differ_after_fifty_steps(kind, n_experts):
    """Gates once hardly depended on the sample, and all experts learned the same."""
    rng = np.random.default_rng(0)
    settings = {"n_experts": n_experts, "batch_size": 32, "weight_decay": 0}
    if kind == "columns":
        X = rng.normal(size=(160, 4)) + 4 * rng.integers(0, 3, (160, 1))
        detector = short(**settings, max_epochs=5, pretrain_epochs=10).fit(X)
        rows = X
    else:
        X, corpus = patterns(rng, 160, 1), patterns(rng, 160, 2)
        settings |= {"backbone": network_of(), "corpus": corpus, "lr": "auto"}
        detector = short(**settings, max_epochs=5).fit(X)
        rows = np.concatenate([X, corpus])
    assert detector.net_.step_ == 50
    adapters, gates = detector.net_.adapters_.layers, {}

    def keep(gate, inputs, output):
        gates[gate] = output.detach()

    with forward_hooks([one.gate for one in adapters], keep):
        scores = detector.score_samples(rows)
    for one in adapters:
        found = gates[one.gate].flatten(0, -2)
        assert found.std(0).max() > (0.1 if kind == "columns" else 0.02)
        weights = one.weights.detach()
        if kind == "columns":
            weights = weights.unflatten(2, (n_experts, -1)).movedim(2, 0)
        difference = (weights - weights.mean(0)).norm() / weights.norm()
        assert difference > 0.1

    def mean(gate, inputs, output):
        return output.mean(-2, keepdim=True).expand_as(output)

    with forward_hooks([one.gate for one in adapters], mean):
        alike = detector.score_samples(rows)
    ranks = [np.argsort(np.argsort(s)) for s in (scores, alike)]
    assert np.corrcoef(ranks)[0, 1] < (0.99 if kind == "columns" else 0.95)


@pytest.mark.parametrize("n_rows", [60, 300])
def test_gates_are_standardised_by_normal_samples(n_rows):
    """Each sample counts once; those that fill up a batch do not."""
    rng = np.random.default_rng(0)
    X = patterns(rng, n_rows, 1)
    network = network_of().eval()
    detector = untrained(backbone=network, corpus=X[:20], augment=None, input_size=10)
    detector.fit(X)
    first, second = detector.net_.adapters_.layers
    pixels = torch.from_numpy(normalised(X).numpy())
    inner = network[:3](pixels)
    for one, given in ((first, pixels), (second, inner)):
        means = given.mean((2, 3)).double()
        variance = means.var(0, correction=0)
        spread = (variance + 0.01 * variance.mean()).sqrt()
        gate = one.gate
        torch.testing.assert_close(gate.centre, means.mean(0).float())
        torch.testing.assert_close(gate.spread, spread.float(), rtol=1e-3, atol=0)
        z = (means - means.mean(0)) / spread
        z /= z.square().mean(1, keepdim=True).sqrt().clamp(min=1)
        expected = F.linear(z, gate.weight.double()).softmax(1).float()
        torch.testing.assert_close(
            one.gate(means.float()), expected, rtol=1e-2, atol=1e-3
        )
        assert expected.std(0).max() > 0.05


def test_gates_of_an_ensemble_are_standardised_in_each_member():
    X = np.random.default_rng(0).normal(5, 3, (60, 4)) ** 3
    detector = untrained(corpus=X[:20]).fit(X)
    first, second, _ = detector.net_.adapters_.layers
    rows = detector.net_.prepare(
        torch.from_numpy(detector.scaler_.transform(X)).float()
    )
    made = detector.net_.backbone_.network[1](
        detector.net_.backbone_.network[0](rows.expand(2, -1, -1))
    )
    for one, given in ((first, rows.expand(2, -1, -1)), (second, made)):
        centre = given.mean(1, keepdim=True)
        torch.testing.assert_close(one.gate.centre, centre, rtol=1e-3, atol=1e-5)
        assert one.gate.centre.shape == one.gate.spread.shape == (2, 1, given.shape[2])
        z = (given - one.gate.centre) / one.gate.spread
        assert z.std(1).mean() > 0.8


def test_gates_ignore_constant_channels():
    gate = Gate(3, 2)
    rows = torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 5.0]], dtype=torch.double)
    gate.fit(rows.sum(0), rows.square().sum(0), 2)
    least = 0.01 / 3
    expected = torch.tensor([1 + least, least, least]).sqrt()
    torch.testing.assert_close(gate.spread, expected)
    alike = torch.ones(2, 3, dtype=torch.double)
    gate.fit(alike.sum(0), alike.square().sum(0), 2)
    assert torch.equal(gate.spread, torch.ones(3))
    assert torch.equal(gate.centre, torch.ones(3))


def test_gates_see_small_differences_in_half_precision():
    images = torch.full((2, 1, 64, 64), 100.0)
    images[1, :, :4] += 1  # the means are 100 and 100.0625, between which there is none
    means = mean_pixel(images.bfloat16())
    torch.testing.assert_close(means, torch.tensor([[100.0], [100.0625]]))


@pytest.mark.parametrize("n_experts", [1, 2])
def test_slow_layers_compute_in_full_precision(n_experts):
    """Gradients of strided depthwise convolutions took 20 times as long in bfloat16."""
    for layer, dtype in (
        (nn.Conv2d(8, 8, 3, 2, 1, groups=8), torch.float32),
        (nn.Conv2d(8, 8, 3, (1, 2), 1, groups=4), torch.float32),
        (nn.Conv2d(8, 8, 3, 1, 1, groups=8), torch.bfloat16),
        (nn.Conv2d(8, 8, 3, 2, 1), torch.bfloat16),
    ):
        place = adapted_layer(layer.requires_grad_(False))
        place.set_adapter(randomised(adapter_for(layer, n_experts)))
        x = torch.randn(2, 8, 9, 9).bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = place(x)
        assert y.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(y, place(x.float()))
        y.float().sum().backward()
        assert x.grad.dtype == torch.bfloat16
