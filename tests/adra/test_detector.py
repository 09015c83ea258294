"""ADRA as a detector: its steps, scores, files."""

import importlib.util
import math
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch import nn

from skanomaly import ADRA, load, save
from skanomaly._adra import _net
from skanomaly._adra._net import ResidualAdaptation
from skanomaly.datasets import fetch_cifar10, fetch_tiny_imagenet
from skanomaly.engine import Adam
from skanomaly.exceptions import CorpusSourceWarning
from skanomaly.objectives import hypersphere_classification_loss

from .parts import (
    CONVOLUTIONS,
    SHORT,
    ignore_missing_corpus,
    layers_of,
    network_of,
    normalised,
    scaled,
    short,
    untrained,
    used_norm,
)

pytestmark = ignore_missing_corpus


# Steps --------------------------------------------------------------------------------


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


def test_adapters_decay(images):
    def size(weight_decay):
        detector = short(backbone=network_of(), corpus=images[1], max_epochs=9, lr=0.1)
        detector.set_params(weight_decay=weight_decay).fit(images[0])
        return sum(one.weights.norm() for one in detector.net_.adapters_.layers)

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


def test_held_out_samples_are_not_trained_on(images, monkeypatch):
    trained = []
    train = ResidualAdaptation.train

    def watched(net, rows, *, held_out, **plan):
        trained.append((rows.X[rows.indices].reshape(len(rows), -1), held_out))
        return train(net, rows, held_out=held_out, **plan)

    monkeypatch.setattr(ResidualAdaptation, "train", watched)
    X = np.random.default_rng(0).integers(0, 256, (80, 3, 10, 12)).astype(np.uint8)
    short(backbone=network_of()).fit(X)
    ((rows, held_out),) = trained
    assert len(rows) == 72
    others = (held_out.flatten(1).numpy(force=True) + 1) * 127.5
    assert len(others) == 8
    assert not any((np.abs(rows - one).max(1) < 1).any() for one in others)


def test_samples_may_be_sorted():
    """The head is fitted on samples from all over, not on the first ones."""
    rng = np.random.default_rng(0)
    X = np.r_[rng.normal(size=(2500, 2)), rng.normal(size=(600, 2)) + 12]
    detector = ADRA(random_state=0, max_epochs=1, pretrain_epochs=1).fit(X)
    assert (detector.predict(rng.normal(size=(200, 2)) + 12) == 1).mean() > 0.5


def test_a_warm_start_keeps_its_network(images):
    detector = short(backbone=network_of(), corpus=images[1], warm_start=True)
    detector.fit(images[0])
    detector.fit(images[0])
    with pytest.raises(ValueError, match="backbone has other weights"):
        detector.set_params(backbone=network_of()).fit(images[0])


def test_the_head_is_computed_in_full_precision(images):
    settings = {"backbone": network_of(), "corpus": images[1]}
    net = untrained(**settings, precision="bfloat16").fit(images[0]).net_
    features = net.features(scaled(images[0]))
    net.backbone_.features = lambda embeddings: features
    with torch.autocast("cpu", torch.bfloat16):
        codes = net.encode_embeddings(None)
    assert torch.equal(codes, net.adapters_.head(features))


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
        for adapter in detector.net_.adapters_.layers:
            assert adapter.weights.abs().max() > 0
    assert np.corrcoef(scores)[0, 1] > 0.9


# Scores -------------------------------------------------------------------------------


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


def test_scores_of_ensembles_are_geometric_means(X):
    detector = short(n_estimators=3, lr=0.01).fit(X)
    codes = detector.encode(X).reshape(60, 3, -1).astype(float)
    assert detector.encode(X).shape == (60, 12)
    radii = np.sqrt(np.square(codes).sum(2) + 1) - 1
    expected = np.exp(np.log(radii).mean(1))
    np.testing.assert_allclose(
        -detector.score_samples(X), expected, rtol=1e-3, atol=1e-6
    )
    # Members differ from each other.
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
    """Dark images are normal, and bright ones the corpus."""
    dark, bright = images[0] // 4, 192 + images[1] // 4
    settings = {"backbone": network_of(), "corpus": bright, "max_epochs": 20}
    detector = short(**settings, lr=1e-3).fit(dark)
    outside = detector.score_samples(bright)
    assert (outside < detector.score_samples(dark).min()).all()
    assert (detector.predict(bright) == -1).all()
    assert (detector.predict(dark) == 1).mean() > 0.8


def test_a_file_gives_the_detector_back(images, tmp_path):
    network = network_of()
    detector = short(backbone=network, lr=0.1).fit(images[0])
    save(detector, tmp_path / "d.safetensors")
    other = load(tmp_path / "d.safetensors", backbone=deepcopy(network))
    np.testing.assert_array_equal(
        other.score_samples(images[0]), detector.score_samples(images[0])
    )


def test_no_epochs_leave_the_frozen_network_and_its_head(images):
    network = network_of()
    detector = short(backbone=network, corpus=images[1], max_epochs=0).fit(images[0])
    assert detector.history_ == []
    assert detector.n_iter_ == 0
    net = detector.net_
    with torch.no_grad():
        features = network.eval()(net.prepare(scaled(images[0])))
        embeddings = net.adapters_.head(features)
    expected = 1 - (embeddings.square().sum(1) + 1).sqrt()
    np.testing.assert_allclose(
        detector.score_samples(images[0]), expected, rtol=1e-3, atol=1e-4
    )


def test_a_subclass_may_train_with_a_net_of_its_own(images):
    class Doubled(ResidualAdaptation):
        def training_step(self, batch):
            for player, loss in super().training_step(batch):
                yield player, 2 * loss

    class Detector(ADRA):
        net_class = Doubled

    common = SHORT | {"backbone": network_of(), "corpus": images[1], "lr": 1e-9}
    plain, doubled = (kind(**common).fit(images[0]) for kind in (ADRA, Detector))
    assert isinstance(doubled.net_, Doubled)
    losses = [one.history_[-1]["adapters_loss"] for one in (plain, doubled)]
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-4)


# Photographs --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_network_of_photographs_finds_cars(shared_data):
    # The benchmarks are no part of the package, and their folder need not be on the
    # path.
    path = Path(__file__).parents[2] / "benchmarks" / "pretrained.py"
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
        calibration=None,
    )
    with pytest.warns(CorpusSourceWarning):  # it is of another source
        detector.fit(X[y == 1][: 20 * 16])
    assert detector.net_.step_ == 20
    some = np.random.default_rng(0).permutation(len(X_test))[:500]
    auroc = roc_auc_score(y_test[some] == 1, detector.score_samples(X_test[some]))
    assert auroc > 0.85


# Files, clones, the end of a run ------------------------------------------------------


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
    shared = other.net_.backbone_.network[0].base_layer.weight
    assert shared.data_ptr() == network[0].weight.data_ptr()


def test_a_file_without_its_network_needs_that_network(images, tmp_path):
    normal, corpus = images
    network, path = network_of(), tmp_path / "adapters"
    save(
        short(backbone=network, corpus=corpus).fit(normal), path, include_backbone=False
    )
    other = deepcopy(network)
    with torch.no_grad():
        other[1].running_mean += 1e-3
    with pytest.raises(ValueError, match="weights of backbone differ"):
        load(path, backbone=other)
    with pytest.raises(ValueError, match="backbone"):
        load(path)


@pytest.mark.parametrize("corpus", ["array", "lists", "labelled"])
def test_a_file_has_no_samples(corpus, X, tmp_path):
    path, given = tmp_path / "detector", 3 * X + 0.123456
    if corpus == "lists":
        given = given.tolist()
    detector = short(corpus=(given, [0] * 60) if corpus == "labelled" else given)
    save(detector.fit(X), path)
    assert load(path).corpus is None
    assert str(3 * X[0, 0] + 0.123456)[:8].encode() not in path.read_bytes()


def test_a_file_without_the_network_needs_no_function_that_builds_it(images, tmp_path):
    normal, corpus = images
    own = {"backbone": lambda shape: network_of(shape[0])}
    detector = short(corpus=corpus, architecture=own).fit(normal)
    path, network = tmp_path / "adapters", detector.backbone_
    save(detector, path, include_backbone=False)
    other = load(path, backbone=network)
    expected = detector.score_samples(normal)
    np.testing.assert_array_equal(other.score_samples(normal), expected)


@pytest.mark.parametrize("kind", ["X", "images"])
def test_a_pretrained_network_is_given_to_load(kind, request, tmp_path):
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
    with pytest.raises(ValueError, match="HistoryAD has no frozen backbone"):
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
    normal = np.concatenate([images[0]] * 60)
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


@pytest.mark.parametrize(
    ("kind", "optimizer", "settings"),
    [
        ("images", torch.optim.SGD, {"lr": 6e-3, "momentum": 0.9, "weight_decay": 0.1}),
        ("X", Adam, {"lr": 1e-3, "weight_decay": 1e-4}),
    ],
)
def test_the_optimisers_of_auto(kind, optimizer, settings, request):
    data = request.getfixturevalue(kind)
    normal, corpus = data if kind == "images" else (data, data + 3)
    backbone = network_of() if kind == "images" else "auto"
    net = short(backbone=backbone, corpus=corpus).fit(normal).net_
    assert type(net.optimizer_adapters_) is optimizer
    (group,) = net.optimizer_adapters_.param_groups
    settings = dict(settings, initial_lr=settings["lr"])
    del settings["lr"]  # which has fallen
    assert {name: group[name] for name in settings} == settings


def test_gradients_of_sgd_are_clipped(images, monkeypatch):
    def steep(normal, corpus):
        return 1e6 * hypersphere_classification_loss(normal, corpus)

    settings = {"batch_size": 80, "lr": 1e-3, "weight_decay": 0, "n_experts": 1}
    build = partial(short, backbone=network_of(), corpus=images[1], **settings)
    start = build(lr=1e-30).fit(images[0]).net_.adapters_.parameters()
    monkeypatch.setattr(_net, "hypersphere_classification_loss", steep)
    end = build().fit(images[0]).net_.adapters_.parameters()
    moved = [(b - a).square().sum() for a, b in zip(start, end, strict=True)]
    assert sum(moved).sqrt().item() == pytest.approx(1e-2, rel=1e-4)  # 10 by 1e-3


def test_a_corpus_at_the_centre_leaves_adapters_small(X):
    """Its gradient has no bound, and a step along it would replace the weights."""
    detector = short(corpus=X, lr=0.1, max_epochs=1).fit(X)
    weights = list(detector.net_.adapters_.layers.parameters())
    assert max(float(w.detach().abs().max()) for w in weights) < 10
