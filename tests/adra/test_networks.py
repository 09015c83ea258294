"""The networks of ADRA: the paper's, the user's, torchvision's."""

import math
import sys
import types
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from skanomaly import load, save
from skanomaly._adra._adapters import (
    adapter_for,
)
from skanomaly._adra._networks import ResNet26

from .parts import (
    Reused,
    assert_same_state,
    frozen_form,
    ignore_missing_corpus,
    layers_of,
    n_weights,
    network_of,
    normalised,
    recorded,
    scaled,
    short,
    state_of,
    untrained,
    used_norm,
)

pytestmark = ignore_missing_corpus


# The paper's network ------------------------------------------------------------------


def test_the_paper_s_network_has_its_numbers_of_weights(n_experts):
    network = ResNet26()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == 25
    assert sum(map(n_weights, convolutions)) == 5_806_944
    assert sum(map(n_weights, norms)) == 7_744
    assert n_weights(network) == 5_806_944 + 7_744
    adapters = [adapter_for(layer, n_experts) for layer in convolutions]
    gates = sum(n_experts * (m.in_channels + 1) for m in convolutions)
    wanted = 645_216 * n_experts + gates * (n_experts > 1)
    assert sum(map(n_weights, adapters)) == wanted
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
    assert len(backbone.layers) == len(adapters.layers) == 25
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
        untrained(corpus=images[1], backbone=network).fit(images[0]).encode(images[0])
        for network in (path, path)
    ]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("kind", ["missing", "text", "other", "short", "reshaped"])
def test_a_file_without_a_backbone_raises_an_error(kind, images, tmp_path):
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


def test_a_classifier_at_the_end_is_left_out(images):
    detector = short(backbone=network_of(n_classes=5)).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 8)
    assert layers_of(detector) == ["0", "3"]
    # A linear layer before the end is no classifier.
    network = network_of(n_classes=5).append(nn.Tanh())
    detector = short(backbone=network).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 5)
    assert layers_of(detector) == ["0", "3", "8"]


def test_feature_maps_are_averaged_over_their_pixels(images):
    network = network_of()
    codes = untrained(backbone=network).fit(images[0]).encode(images[0])
    averaged = untrained(backbone=network[:-2]).fit(images[0]).encode(images[0])
    np.testing.assert_allclose(averaged, codes, atol=1e-4)


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
def test_outputs_have_to_be_features(function, what, images):
    with pytest.raises(ValueError, match=f"backbone returns {what}.*Wrap it"):
        short(backbone=Returns(function)).fit(images[0])


@pytest.mark.parametrize(
    "layers",
    [[nn.AvgPool2d(2)], [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)]],
)
def test_a_network_with_nothing_to_adapt_raises_an_error(layers, images):
    with pytest.raises(ValueError, match="backbone, a Sequential, has no convolution"):
        short(backbone=nn.Sequential(*layers)).fit(images[0])


def test_a_network_in_half_precision_is_converted(images):
    network = network_of().half()
    detector = short(backbone=network, corpus=images[1]).fit(images[0])
    assert np.isfinite(detector.score_samples(images[0])).all()
    assert {p.dtype for p in network.parameters()} == {torch.half}
    assert {p.dtype for p in detector.backbone_.parameters()} == {torch.float}


def test_grey_images_are_repeated_for_a_network_of_colours(images):
    network = network_of()
    grey = images[0][:, :1]
    for settings in ({}, {"normalization": None}):
        build = partial(untrained, backbone=network, **settings)
        codes = build().fit(grey).encode(grey)
        colours = np.repeat(grey, 3, axis=1)
        expected = build().fit(colours).encode(colours)
        np.testing.assert_allclose(codes, expected, atol=1e-4)


def test_grey_images_go_into_a_network_of_grey_images(images):
    network, seen = recorded(network_of(n_channels=1))
    grey = images[0][:, :1]
    detector = short(backbone=network, normalization=None).fit(grey)
    assert seen[-1].shape[1] == 1
    assert np.ptp(detector.score_samples(grey)) > 0
    detector = short(backbone=network).fit(grey)
    assert seen[-1].shape[1] == 1
    assert np.ptp(detector.score_samples(grey)) > 0


@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (2, 3)])
@pytest.mark.parametrize("normalization", [None, "auto"])
def test_channels_that_do_not_fit_raise_an_error(given, wanted, normalization, images):
    data = images[0][:, :given]
    settings = {"backbone": network_of(wanted), "normalization": normalization}
    with pytest.raises(ValueError, match=f"have {given} channels.*{wanted}"):
        short(**settings).fit(data)


class Unshuffled(nn.Module):
    """A network whose first convolution takes other channels than images have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(nn.functional.pixel_unshuffle(x, 2))


def test_a_network_may_arrange_channels_itself(images):
    detector = short(backbone=Unshuffled()).fit(images[0])
    assert detector.net_.backbone_.n_channels is None
    assert np.ptp(detector.score_samples(images[0])) > 0


class Centred(nn.Module):
    """A network whose output for a sample depends on the others."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        made = self.conv(x).mean((2, 3))
        return made - made.mean(0)


def test_a_network_that_compares_samples_is_refused(images):
    with pytest.raises(ValueError, match="Centred, returns other features"):
        short(backbone=Centred()).fit(images[0])


@pytest.mark.parametrize("wrong", [(None, None), ("a", "b"), (0, 0), (0.5, -1), (1,)])
def test_a_normalization_is_means_and_deviations(wrong, images):
    detector = short(backbone=network_of(), normalization=wrong)
    with pytest.raises(ValueError, match="has to be a pair, means and standard"):
        detector.fit(images[0])


class Stem(nn.Conv2d):
    """A convolution of a subclass, as in the stem of some networks."""


def test_a_first_convolution_of_a_subclass(images):
    backbone = nn.Sequential(Stem(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))
    detector = short(backbone=backbone, corpus=images[1]).fit(images[0])
    assert layers_of(detector) == ["0", "2"]


def test_samples_have_to_be_the_first_axis(images):
    class TokensFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mixed = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)

        def forward(self, x):
            return self.mixed(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0)

    with pytest.raises(ValueError, match=r"mixed of backbone returns \(6, 2, 5\)"):
        short(backbone=TokensFirst()).fit(images[0])


def test_a_network_that_cannot_be_copied_raises_an_error(images):
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
    detector = untrained(backbone=backbone, corpus=images[1], normalization=None)
    codes = detector.fit(images[0]).encode(images[0])
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(codes, detector.encode(images[0]))


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
def test_a_wrong_size_of_images_is_explained(check, images):
    with pytest.raises(ValueError, match="input_size"):
        short(backbone=Picky(check)).fit(images[0])
    detector = short(backbone=Picky(check), input_size=16).fit(images[0])
    assert np.isfinite(detector.score_samples(images[0])).all()


def test_too_small_images_are_explained(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 11), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"\(3, 10, 12\).*input_size"):
        short(backbone=network).fit(images[0])
    detector = short(backbone=network, input_size=15).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 4)


def test_images_are_resized_for_a_network(images):
    for input_size, expected in (("auto", (64, 77)), (20, (20, 24)), (5, (5, 6))):
        network, seen = recorded(network_of())
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


class Emphatic(nn.Module):
    """It takes only pixels in [0, 1], and uses the output of a convolution twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), used_norm(6)

    def forward(self, x):
        y = self.conv(x**2.2)
        return (self.norm(y).relu() + y).mean((2, 3))


def test_a_network_that_takes_only_some_pixels(images):
    network = Emphatic().eval()
    settings = {"normalization": ((0.0,), (1.0,)), "corpus": images[1]}
    detector = untrained(backbone=network, **settings).fit(images[0])
    pixels = torch.from_numpy(images[0]).float() / 255
    expected = detector.net_.adapters_.head(network(pixels)).numpy(force=True)
    np.testing.assert_allclose(detector.encode(images[0]), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"Emphatic, returns NaN.* normalization"):
        untrained(backbone=network, normalization=None, corpus=images[1]).fit(images[0])


def test_normalisation_of_five_channels(images):
    rng = np.random.default_rng(0)
    many = rng.integers(0, 256, (2, 40, 5, 10, 12)).astype(np.uint8)
    backbone = network_of(5)
    detector = short(backbone=backbone, corpus=many[1])
    with pytest.raises(ValueError, match="normalization is for 3"):
        detector.set_params(normalization=((0.5,) * 3, (0.2,) * 3)).fit(many[0])
    detector.set_params(normalization=((0.5,) * 5, (0.2,) * 5)).fit(many[0])
    with pytest.raises(ValueError, match="one number or one per channel"):
        detector.set_params(normalization=((0.5,) * 4, (0.2,) * 4)).fit(many[0])


def test_flat_images_need_image_shape(images):
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
    with pytest.raises(ValueError, match="give only one of them"):
        short(backbone=network_of(), **settings).fit(images[0])


class Dense(nn.Module):
    """An own network that uses the output of a convolution twice."""

    def __init__(self, shape):
        super().__init__()
        self.part = Reused(nn.BatchNorm2d(6))

    def forward(self, x):
        return self.part(x).mean((2, 3))


@pytest.mark.parametrize("again", ["load", "warm start"])
def test_an_own_network_with_a_norm_that_cannot_be_merged(again, images, tmp_path):
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
    """Replace torchvision by a module with one network."""

    class Weights:
        def transforms(self):
            return types.SimpleNamespace(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])

    chosen, network = Weights(), recorded(network_of())

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


def test_a_failed_download_is_explained(torchvision, images, monkeypatch):
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
    nn.init.zeros_(next(network.parameters()))  # the name now means another network
    np.testing.assert_array_equal(load(whole).score_samples(images[0]), expected)
    with pytest.raises(ValueError, match="differ from those in the training"):
        load(adapters)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_saved_detector_needs_no_file_of_weights(kind, images, tmp_path):
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


class Attention(nn.Module):
    """An encoder of torch, or attention as in timm, of patches of images."""

    def __init__(self, by_torch, **options):
        super().__init__()
        self.patches, self.by_torch = nn.Conv2d(3, 16, 2, 2), by_torch
        if by_torch:
            self.encoder = nn.TransformerEncoderLayer(
                16, 2, 32, batch_first=True, **options
            )
        else:
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        if self.by_torch:
            return self.encoder(x).mean(1)
        query, key, value = self.qkv(x).chunk(3, -1)
        weights = (query @ key.mT / 4).softmax(-1)
        return (x + self.proj(weights @ value)).mean(1)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward_layers_of_encoders_are_adapted(activation, images):
    """torch reads them on a fast path, and they were once left out silently."""
    network = Attention(True, activation=activation)
    detector = short(backbone=network, corpus=images[1], lr=0.05, max_epochs=3)
    with pytest.warns(UserWarning, match=r"5\d% of the weights; not in enc"):
        detector.fit(images[0])
    names = ["patches", "encoder.linear1", "encoder.linear2"]
    assert layers_of(detector) == names
    for one in detector.net_.adapters_.layers:
        assert one.weights.detach().abs().max() > 0
    # Scoring, without gradients, does what training does.
    x = normalised(images[0])
    with torch.no_grad():
        fast = detector.net_.backbone_(x)
    torch.testing.assert_close(fast, detector.net_.backbone_(x))
    bare, fast = detector.backbone_.encoder, network.encoder.activation_relu_or_gelu
    assert bare.activation_relu_or_gelu == fast == {"relu": 1, "gelu": 2}[activation]


def test_attention_of_linear_layers_is_adapted(images):
    detector = short(backbone=Attention(False), corpus=images[1]).fit(images[0])
    assert layers_of(detector) == ["patches", "qkv", "proj"]


def test_class_scores_of_a_convolution_are_left_out(images):
    """Those of SqueezeNet once counted as features."""
    ends = nn.Dropout(), nn.Conv2d(8, 11, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential()
    network.add_module("features", network_of()[:-2])
    network.add_module("classifier", nn.Sequential(*ends))
    network.add_module("flat", nn.Flatten())
    detector = short(backbone=network, corpus=images[1]).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 8)
    assert layers_of(detector) == ["features.0", "features.3"]
    mixing = nn.Sequential(network_of()[:-2], ends[1], *network_of()[-2:])
    detector = short(backbone=mixing, corpus=images[1]).fit(images[0])
    assert detector.encode(images[0]).shape == (40, 11)


class WithoutGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network_of()

    @torch.no_grad()
    def forward(self, x):
        return self.network(x)


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        return torch.jit.trace(network_of(), torch.zeros(1, 3, 10, 12))


class Compiled(nn.Module):
    """A module like those that torch.compile returns, which takes long."""

    def __init__(self):
        super().__init__()
        self._orig_mod = network_of()

    def forward(self, x):
        return self._orig_mod(x)


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (traced, "scripted or traced"),
        (Compiled, "compiled .*_orig_mod"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3), *network_of()[-2:]), "lazy layers"),
        (WithoutGradients, "without gradients"),
    ],
)
def test_networks_that_cannot_be_adapted_are_refused_with_the_cause(
    make, cause, images
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = make()
    with pytest.raises(ValueError, match=cause):
        short(backbone=network, corpus=images[1]).fit(images[0])


@pytest.mark.parametrize("own", [True, False])
def test_a_normalization_of_colours_is_refused_for_a_grey_network(own, images):
    grey, colours = images[:, :, :1], ((0.5,) * 3, (0.2,) * 3)
    backbone = "auto" if own else network_of(1)
    detector = short(backbone=backbone, corpus=grey[1], normalization=colours)
    with pytest.raises(ValueError, match="normalization"):
        detector.fit(grey[0])


def test_a_decay_beyond_the_weights_is_refused(X):
    with pytest.raises(ValueError, match=r"lr=0.1 times weight_decay=1e\+10 is 1 or"):
        short(lr=0.1, weight_decay=1e10).fit(X)
