"""A simulated device: tensors do not mix with the host, and steps do not wait.

`elsewhere.py` simulates it on any machine. `test_gpu.py` tests a real GPU.
"""

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from elsewhere import NAME, TensorElsewhere, another_device
from test_common import every_detector, short
from test_sklearn_callbacks import HAS_CALLBACKS, Recorder
from torch import nn

from skanomaly import (
    ADRA,
    AABiGAN,
    HistoryAD,
    JointEncoderGAN,
    TransferAD,
    networks,
    score_module,
)
from skanomaly.engine import AlternatingNet, DeviceDataset

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]


def brief(cls, **params):
    return short(cls, **{"max_epochs": 1, "precision": "float32", **params})


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)


@contextmanager
def elsewhere():
    """Simulate ``device="cuda"``, and check that no step fetches a value.

    Callbacks may do so between steps, and nets once an epoch.
    """
    found, usual = [], AlternatingNet.notify
    with another_device() as mode:

        def notify(net, event, **options):
            if event in ("on_batch_begin", "on_grad_computed", "on_batch_end"):
                found.append(list(mode.fetched))
            usual(net, event, **options)
            mode.fetched.clear()

        with patch.object(AlternatingNet, "notify", notify):
            yield
    assert found, "no step was recorded"
    assert not any(found), f"fetched within steps: {[x for x in found if x]}"


def assert_on_device(net):
    modules = [m for m in vars(net).values() if isinstance(m, nn.Module)]
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    assert tensors
    assert all(isinstance(tensor, TensorElsewhere) for tensor in tensors)


def assert_close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


# The simulated device ---------------------------------------------------------------


def test_devices_do_not_mix():
    with another_device() as mode:
        x, y = torch.ones(3, device=NAME), torch.ones(3)
        for mixed in (lambda: x + y, lambda: y[x.long()], lambda: torch.cat([y, x])):
            with pytest.raises(RuntimeError, match="on the host"):
                mixed()
        with pytest.raises(TypeError, match="cpu"):
            np.asarray(x)
        assert not mode.fetched
        assert (x + 1).cpu().tolist() == [2, 2, 2]
        assert x[torch.arange(2)].device == x.device
        assert float(x.sum()) == 3
        assert x[x > 0].shape == (3,)
        assert mode.fetched == ["_to_copy", "_local_scalar_dense", "index"]
    assert torch.ones(1).device.type == "cpu"


# All detectors ------------------------------------------------------------------------


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_scores_on_a_device_equal_those_on_the_host(cls, kind, request):
    data = request.getfixturevalue(kind)
    on_host = brief(cls).fit(data)
    expected = on_host.score_samples(data)
    with elsewhere():
        detector = brief(cls, device="cuda").fit(data)
        assert detector.net_.device == NAME
        assert_on_device(detector.net_)
        assert_close(detector.score_samples(data), expected)
        assert detector.offset_ == pytest.approx(on_host.offset_, rel=1e-3)
        for name in ("encode", "reconstruct", "anomaly_map"):
            if hasattr(cls, name) and not (name == "anomaly_map" and kind == "X"):
                result = getattr(detector, name)(data)
                assert_close(result, getattr(on_host, name)(data))
        if hasattr(cls, "sample"):
            assert_close(detector.sample(7), on_host.sample(7))
        samples = torch.tensor(data, dtype=torch.float32, device=NAME)
        scores = score_module(detector)(samples)
        assert isinstance(scores, TensorElsewhere)
        assert_close(scores.numpy(force=True), expected)
        detector.set_params(warm_start=True).fit(data)
    expected = on_host.set_params(warm_start=True).fit(data).score_samples(data)
    with another_device():
        assert_close(detector.score_samples(data), expected)


@pytest.mark.skipif(not HAS_CALLBACKS, reason="scikit-learn < 1.9")
@every_detector
def test_detectors_in_training_score_on_the_device(cls, X):
    recorder = Recorder()
    with elsewhere():
        final = brief(cls, device="cuda").set_callbacks(recorder).fit(X)
        *_, last, _ = recorder.detectors.values()
        assert_on_device(last.net_)
        np.testing.assert_array_equal(last.score_samples(X), final.score_samples(X))


@every_detector
def test_data_larger_than_the_device_is_streamed(cls, X, monkeypatch):
    expected = brief(cls).fit(X).score_samples(X)
    monkeypatch.setattr("skanomaly.engine._dataset.HOST_BYTES", 0)
    with another_device():
        rows = DeviceDataset(X, None, NAME)
        assert rows.resident is None
        assert isinstance(rows[torch.arange(3, device=NAME)], TensorElsewhere)
        detector = brief(cls, device="cuda").fit(X)
        assert_close(detector.score_samples(X), expected)


# Single detectors ------------------------------------------------------------------


def compared(build, fit, *data):
    """Fit on the host and elsewhere, compare scores, and return both detectors."""
    on_host = fit(build())
    with elsewhere():
        detector = fit(build(device="cuda"))
        for part in data:
            assert_close(detector.score_samples(part), on_host.score_samples(part))
    return on_host, detector


@pytest.mark.parametrize("kind", ["X", "images"])
def test_known_anomalies(kind, request):
    data = request.getfixturevalue(kind)
    y = np.repeat([-1, 1], [10, len(data) - 10])

    def build(**settings):
        return brief(AABiGAN, criterion="auto", early_stopping=True, **settings)

    compared(build, lambda detector: detector.fit(data, y), data)


@pytest.mark.parametrize("kind", ["X", "images", "clips"])
@pytest.mark.parametrize(
    "more", [{}, {"normalize_weights": True, "weight_source": True}]
)
def test_domains(kind, more, request, monkeypatch):
    def dropped(x, shape, share):
        return F.dropout(x.new_ones(shape), share)

    # A host takes bits instead of numbers, and drops others.
    monkeypatch.setattr(networks, "dropout_factors", dropped)
    if kind == "clips":
        data = np.random.default_rng(0).normal(size=(12, 1, 4, 8, 8))
    else:
        data = request.getfixturevalue(kind)
    source, target = np.array_split(data, 2)

    def build(**settings):
        return brief(TransferAD, **more, **settings)

    def fit(detector):
        return detector.fit(target, X_source=source)

    on_host, detector = compared(build, fit, target)
    assert_close(detector.sample_weight_, on_host.sample_weight_)


@pytest.mark.parametrize("init", ["average", "random"])
def test_history_with_wide_samples(init, X):
    def build(**settings):
        return brief(HistoryAD, init=init, wide_latent=3.0, **settings)

    compared(build, lambda detector: detector.fit(X), X)


@pytest.mark.parametrize(
    "more",
    [
        {"encoder_training": "separate"},
        {"encoder_loss": "latent", "cycle_updates_generator": True},
        {"preset": "paper"},
    ],
)
def test_other_losses_of_the_encoder(more, images):
    def build(**settings):
        return brief(JointEncoderGAN, **more, **settings)

    compared(build, lambda detector: detector.fit(images), images)


def network():
    """Return a network with layers that have different adapters."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=64, padding=1)),
        *(nn.ReLU6(), nn.Conv2d(64, 64, 1), nn.ReLU()),
        *(nn.Conv2d(64, 16, 3, stride=2, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.ReLU()),
    )


@pytest.mark.parametrize("n_experts", [1, 2])
@pytest.mark.parametrize(
    "more",
    [{}, {"adapt_from": 2, "augment": None}, {"adapt_from": 2}, {"labelled": True}],
    ids=["all layers", "embedded once", "embedded each time", "with labels"],
)
def test_adapters_of_a_network(n_experts, more, images):
    colours = np.repeat(images, 3, 1)
    corpus, more = colours[:, :, ::-1].copy(), dict(more)
    y = np.repeat([-1, 1], [8, 32]) if more.pop("labelled", False) else None

    def build(**settings):
        return brief(
            ADRA,
            backbone=network(),
            corpus=corpus,
            n_experts=n_experts,
            input_size=12,
            **more,
            **settings,
        )

    _, detector = compared(build, lambda d: d.fit(colours, y), colours)
    assert all(p.device.type == "cpu" for p in detector.backbone.parameters())
    with another_device():
        assert_on_device(detector.net_)


@pytest.mark.parametrize("pretrain", ["rotation", "supervised"])
def test_pretraining(pretrain, images):
    corpus = images[:, :, ::-1].copy(), np.repeat([0, 1], 20)

    def build(**settings):
        return brief(ADRA, corpus=corpus, pretrain=pretrain, **settings)

    compared(build, lambda detector: detector.fit(images), images)
