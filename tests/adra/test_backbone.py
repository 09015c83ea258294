"""The frozen network of ADRA, its adapters and its head."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skanomaly._adra._adapters import (
    AdaptedConvolution,
)
from skanomaly._adra._backbone import FrozenNetwork
from skanomaly._adra._net import Adapters, CachedEmbeddings
from skanomaly._adra._networks import stacked_mlps
from skanomaly._adra._whitening import WhiteningHead
from skanomaly.engine import Batches, DeviceDataset

from .parts import (
    SHORT,
    Reused,
    adapter_by_hand,
    assert_same_state,
    frozen_form,
    ignore_missing_corpus,
    layers_of,
    network_of,
    normalised,
    randomised,
    short,
    state_of,
    untrained,
    used_norm,
)

pytestmark = ignore_missing_corpus


def literally(network, adapters, x):
    """Return the output of a network with eqs 2 and 3 at each convolution."""
    network, adapters = deepcopy(network).eval(), iter(adapters.layers)

    def adapted(layer, inputs, output):
        return output + adapter_by_hand(next(adapters), inputs[0], layer)

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(adapted)
    made = network(x)
    return made.mean((2, 3)) if made.ndim == 4 else made


def test_merged_norms_do_not_change_the_network(n_experts):
    network, x = network_of(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    torch.testing.assert_close(backbone(x), network.eval()(x))
    layers = [m for m in backbone.modules() if isinstance(m, AdaptedConvolution)]
    assert [layer.norm is not None for layer in layers] == [True, True]
    randomised(adapters.layers)
    expected = literally(network, adapters, x)
    assert not torch.allclose(expected, network(x), atol=0.01)
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone.base_network()(x), network(x))


class InPlace(nn.Module):
    """An in-place function stands between convolution and normalisation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), used_norm(6)

    def forward(self, x):
        return self.norm(F.relu_(self.conv(x)))


class Twice(nn.Module):
    """One convolution is used twice, once followed by the normalisation."""

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
def test_norms_with_other_inputs_are_not_merged(build, n_experts):
    network, x = build(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    bare, size = network.eval()(x).mean((2, 3)), getattr(network, "size", 1)
    torch.testing.assert_close(backbone(x) / size, bare / size)
    randomised(adapters.layers)
    expected = literally(network, adapters, x)
    torch.testing.assert_close(
        backbone(x) / size, expected / size, rtol=1e-4, atol=1e-5
    )
    assert_same_state(state_of(backbone.base_network()), state_of(network))


def test_a_convolution_that_is_used_twice_is_adapted_twice(n_experts):
    network, x = Twice(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    torch.testing.assert_close(backbone(x), network.eval()(x).mean((2, 3)))
    randomised(adapters.layers)
    ((adapter,), conv) = adapters.layers, network.conv
    hidden = (conv(x) + adapter_by_hand(adapter, x, conv)).relu()
    final = conv(hidden) + adapter_by_hand(adapter, hidden, conv)
    expected = network.norm(final).mean((2, 3))
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-5)


def test_parts_that_a_sequence_has_twice_compute_twice(n_experts):
    relu, conv = nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), relu, conv, relu, conv, relu)
    x = torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    torch.testing.assert_close(backbone(x), network(x).mean((2, 3)))
    assert len(adapters.layers) == 2


def test_one_layer_by_two_names_is_adapted_by_either():
    class TwoNames(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.other = nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, x):
            return self.other(x)

    network, x = TwoNames(), torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network, x)
    before = backbone(x)
    randomised(adapters.layers)
    assert not torch.allclose(backbone(x), before, atol=0.01)


def test_adapters_compute_with_and_without_gradients():
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
    randomised(adapters.layers)
    with torch.no_grad():
        alone = backbone(x)
    torch.testing.assert_close(backbone(x), alone, rtol=1e-4, atol=1e-5)


def test_a_frozen_network_stays_in_evaluation():
    backbone, _ = frozen_form(network_of(), torch.randn(4, 3, 9, 11))
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("corpus", [True, False])
def test_frozen_weights_do_not_change_by_a_bit(images, corpus):
    network = network_of().train()
    before = state_of(network)
    corpus = images[1] if corpus else None
    detector = short(backbone=network, corpus=corpus, max_epochs=3, lr=0.1)
    detector.fit(images[0])
    assert_same_state(state_of(network), before)
    assert_same_state(state_of(detector.backbone_), before)
    adapters = detector.net_.adapters_
    assert max(c.weights.abs().max() for c in adapters.layers) > 1e-4
    held = {
        id(parameter)
        for group in detector.net_._optimizer("adapters").param_groups
        for parameter in group["params"]
    }
    assert held == {id(parameter) for parameter in adapters.parameters()}
    shapes = [(2, 6, 3), (2, 3), (2,), (2, 8, 6), (2, 6), (2,)]
    assert [tuple(p.shape) for p in adapters.parameters()] == shapes


def test_the_given_network_is_not_changed(images):
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


def test_the_base_network_returns_the_frozen_features(images):
    network, x = network_of(n_classes=5), normalised(images[0])
    detector = short(backbone=network, corpus=images[1], lr=0.1).fit(images[0])
    features = network.eval()[:-1](x)
    base = detector.backbone_
    torch.testing.assert_close(base(x), features)
    assert not any(isinstance(m, AdaptedConvolution) for m in base.modules())
    adapted = detector.net_.backbone_(x)
    assert not torch.allclose(adapted, features, atol=1e-4)


def test_untrained_adapters_do_not_change_the_features(images):
    network, x = network_of(), normalised(images[0])
    detector = untrained(backbone=network, corpus=images[1]).fit(images[0])
    expected = detector.net_.adapters_.head(network.eval()(x)).numpy(force=True)
    np.testing.assert_allclose(detector.encode(images[0]), expected, atol=1e-4)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (200,)])
def test_the_head_whitens_the_features_of_normal_samples(shape, unit):
    head, x = WhiteningHead(shape, 0.1, unit), torch.randn(*shape[:-1], 70, shape[-1])
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


def test_constant_features_get_finite_codes():
    for x in (torch.ones(9, 4), torch.zeros(9, 4), torch.ones(1, 4)):
        head = WhiteningHead((4,), 0.1, True)
        head.fit(x)
        assert torch.isfinite(head(x)).all()
        assert torch.isfinite(head(torch.randn(5, 4))).all()


def test_the_head_centres_normal_samples(images):
    for data, settings in ((images[0], {"backbone": network_of()}), (images[0], {})):
        codes = untrained(**settings).fit(data).encode(data)
        np.testing.assert_allclose(codes.mean(0), 0, atol=1e-3)
        assert np.square(codes).sum(1).mean() == pytest.approx(1, abs=1e-3)


def test_hooks_of_normalisation_are_called(images):
    backbone, seen = network_of(), []
    backbone[1].register_forward_hook(lambda *_: seen.append(1))
    detector = short(backbone=backbone, corpus=images[1]).fit(images[0])
    seen.clear()
    detector.score_samples(images[0])
    assert seen


def test_layers_are_in_the_order_of_computation(images):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(6, 8, 3)
            self.first = nn.Conv2d(3, 6, 3)

        def forward(self, x):
            return self.last(self.first(x).relu())

    detector = short(backbone=Backwards()).fit(images[0])
    assert layers_of(detector) == ["first", "last"]


def test_adapt_from_is_a_number_or_a_name(images):
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
        assert len(detector.net_.adapters_.layers) == len(expected)
    with pytest.raises(ValueError, match=r"adapt_from='stag'.*'stem', 'stage'"):
        build(adapt_from="stag").fit(images[0])
    with pytest.raises(ValueError, match=r"adapt_from=3.*3 layers"):
        build(adapt_from=3).fit(images[0])


@pytest.mark.parametrize("where", [0, "stage", "stage.3"])
def test_cached_embeddings_do_not_change_the_scores(where, images):
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
    start = untrained(backbone=network, adapt_from=where, corpus=images[1])
    start.fit(images[0], y)
    assert not np.allclose(start.score_samples(images[0]), scores[0], rtol=1e-2)


def test_embeddings_are_computed_once(images):
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


def test_embeddings_are_computed_of_drawn_samples_only(images):
    """The whole corpus once passed the network before the first step."""
    stem, rows = network_of()[:3], []
    network = nn.Sequential(stem, network_of(6)[:6])
    corpus = np.tile(images[1], (20, 1, 1, 1))
    stem.register_forward_hook(lambda module, given, _: rows.append(len(given[0])))
    detector = short(backbone=network, adapt_from="1", augment=None, corpus=corpus)
    detector.set_params(batch_size=8, max_epochs=2).fit(images[0])
    assert detector.net_.step_ == 20
    drawn = 40 + 4 * 20
    # The network is tried, the head, steps, and the threshold, in batches of one size.
    assert drawn < sum(rows) <= 10 + 40 + drawn + 256 < len(corpus)


@pytest.mark.parametrize("n_rows", [3, 40])
def test_embeddings_are_cached_as_samples_are_drawn(n_rows):
    seen = []

    def embed(rows):
        seen.extend(rows[:, 0].tolist())
        return 2 * rows

    X = np.arange(2.0 * n_rows).reshape(-1, 2)
    rows, expected = (
        CachedEmbeddings(DeviceDataset(X), embed),
        2 * torch.from_numpy(X).float(),
    )
    assert len(rows) == n_rows
    rng = torch.Generator().manual_seed(0)
    for index in Batches(torch.arange(n_rows), 16, 3, 0, rng):
        assert torch.equal(rows[index], expected[index])
    assert len(seen) == len(set(seen)) == n_rows


@pytest.mark.parametrize("n_estimators", [1, 2])
@pytest.mark.parametrize("corpus", ["auto", None, "rows"])
def test_adapt_from_of_tables(corpus, n_estimators, X):
    corpus = 3 * X if corpus == "rows" else corpus
    detector = short(corpus=corpus, adapt_from=1, n_estimators=n_estimators).fit(X)
    assert len(detector.net_.adapters_.layers) == 2
    assert np.ptp(detector.score_samples(X)) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_network_on_another_device(devices, images):
    network = network_of().to(devices[0])
    settings = {"backbone": network, "corpus": images[1], "device": devices[1]}
    detector = short(**settings).fit(images[0])
    assert np.isfinite(detector.score_samples(images[0])).all()
    assert {p.device.type for p in network.parameters()} == {devices[0]}


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
    with pytest.raises(ValueError, match="computes other features"):
        short(backbone=LooksAtClasses(), corpus=images[1]).fit(images[0])


def test_hooks_of_layers_are_called(images):
    network = network_of()
    network[3].register_forward_hook(lambda layer, inputs, output: 3 * output)
    x = torch.randn(2, 3, 10, 12)
    frozen = FrozenNetwork(network.eval(), x[:1])
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), network(x))
        adapters = Adapters(frozen, 1, 0.1, True)
        frozen.set_adapters(adapters.layers)
        torch.testing.assert_close(frozen(x), network(x))


def test_samples_pass_a_few_at_a_time_on_a_host(n_experts):
    network, x = network_of(), torch.randn(11, 3, 9, 11)
    backbone, adapters = frozen_form(network, x, n_experts)
    randomised(adapters.layers)
    whole = backbone(x)
    expected = torch.autograd.grad(whole.square().sum(), adapters.layers[0].weights)
    # The first layer's output is the largest: 6 channels of 9 x 11 numbers.
    few = FrozenNetwork(network, x[:1], most_bytes=4 * (4 * 6 * 9 * 11) + 3)
    few.set_adapters(adapters.layers)
    assert (backbone.n_at_once > len(x), few.n_at_once) == (True, 4)
    seen = []
    few.network[0].register_forward_hook(lambda layer, x, y: seen.append(len(y)))
    made = few(x)
    assert seen == [4, 4, 3]
    torch.testing.assert_close(made, whole)
    gradient = torch.autograd.grad(made.square().sum(), adapters.layers[0].weights)
    torch.testing.assert_close(gradient, expected)
    assert few(x[:0]).shape == (0, 8)


def test_ensembles_pass_at_once():
    network, x = stacked_mlps(5, 3, 4), torch.randn(5, 7, 3)
    assert FrozenNetwork(network, x[:, :1]).n_at_once > len(x)


def test_weights_are_merged_once_while_adapters_do_not_change(monkeypatch, n_experts):
    x = torch.randn(4, 3, 9, 11)
    backbone, adapters = frozen_form(network_of(), x, n_experts)
    randomised(adapters.layers)
    normalised, times = AdaptedConvolution._normalised, []
    monkeypatch.setattr(
        AdaptedConvolution,
        "_normalised",
        lambda self: times.append(self) or normalised(self),
    )
    expected = backbone(x)
    assert len(times) == 2
    with backbone.merged(), torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(backbone(x), expected, rtol=0, atol=0)
    assert len(times) == 4
    backbone.n_at_once = 1
    torch.testing.assert_close(backbone(x), expected)
    assert len(times) == 6
    # Merged weights are dropped, and follow the adapters.
    adapters.layers[0].weights.data += 1
    assert not torch.allclose(backbone(x), expected, atol=0.01)
    assert all(m.cache is None for m in backbone.layers.values())


def test_merged_weights_do_not_change_the_scores(images):
    detector = short(backbone=network_of(), lr=0.1).fit(images[0])
    scores = detector.score_samples(images[1])
    rows = torch.from_numpy(detector.scaler_.transform(images[1])).float()
    with torch.inference_mode():
        expected = detector._score_batch(rows)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert all(m.cache is None for m in detector.net_.backbone_.layers.values())
