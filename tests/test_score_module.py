"""Detectors as torch modules, whose gradients reach the samples."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_common import DETECTORS, every_detector, short

from skanomaly import ConformalDetector, HistoryAD, score_module

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
    # Samples far beyond the range, on purpose.
    pytest.mark.filterwarnings("ignore:X holds floats from:UserWarning"),
]

LOWEST = float(np.finfo(np.float32).min)


def samples_of(kind):
    rng = np.random.default_rng(0)
    if kind == "table":
        X = rng.normal(size=(60, 5)) * [1, 9, 1e-3, 1, 1e3] + [0, 5, 0, 1e3, 0]
    elif kind == "floats":
        X = rng.random((40, 2, 8, 8))
    else:
        return rng.integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)
    return X.astype(np.float32)


@pytest.fixture(scope="module", params=["table", "floats", "bytes"])
def X(request):
    return samples_of(request.param)


def module_and_detector(cls, X):
    detector = short(cls).fit(X)
    return score_module(detector), detector


def scores(module, X):
    with torch.no_grad():
        return module(torch.from_numpy(X)).numpy()


@every_detector
def test_the_scores_are_those_of_the_detector(cls, X):
    module, detector = module_and_detector(cls, X)
    found, expected = scores(module, X), detector.score_samples(X)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores(module, X[:1]), found[:1], rtol=1e-5, atol=1e-5)
    # Bytes need not be integers of torch, which have no gradients.
    of_doubles = scores(module, X.astype(np.float64))
    np.testing.assert_allclose(of_doubles, expected, rtol=1e-5, atol=1e-5)
    if X.dtype != np.uint8:
        far = 3 * X[:4]
        expected = detector.score_samples(far)
        np.testing.assert_allclose(scores(module, far), expected, rtol=1e-5, atol=1e-5)
        far[1].flat[0] = np.nan
        assert scores(module, far)[1] == LOWEST


@every_detector
def test_gradients_reach_the_samples(cls, X):
    module, _ = module_and_detector(cls, X)
    samples = torch.tensor(X, dtype=torch.float32, requires_grad=True)
    module(samples).sum().backward()
    assert samples.grad.isfinite().all()
    # ADRA resizes images, and other networks clip single values.
    assert (samples.grad != 0).float().mean() > 0.9
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.grad is None for p in module.parameters())


@every_detector
def test_integrated_gradients_of_captum_are_complete(cls, X):
    """Attributions add up to the difference of two scores."""
    attr = pytest.importorskip("captum.attr")
    module, detector = module_and_detector(cls, X)
    samples = torch.tensor(X[:8], dtype=torch.float32)
    # Scores change much towards the mean of two samples.
    means = (samples + torch.tensor(X[8:9], dtype=torch.float32)) / 2
    attributor = attr.IntegratedGradients(lambda x: -module(x))
    attributions = attributor.attribute(samples, means, n_steps=200)
    assert attributions.shape == samples.shape
    total = attributions.flatten(1).sum(1).numpy()
    expected = scores(module, means.numpy()) - detector.score_samples(X[:8])
    assert np.abs(total - expected).max() < 0.03 * np.abs(expected).max()


@every_detector
def test_module_and_detector_are_independent(cls):
    X = samples_of("bytes")
    module, detector = module_and_detector(cls, X)
    before, expected = scores(module, X), detector.score_samples(X)
    detector.fit(X[::-1].copy())
    np.testing.assert_array_equal(scores(module, X), before)
    expected = detector.score_samples(X)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.detach().zero_()
    np.testing.assert_array_equal(detector.score_samples(X), expected)


def test_criterion_and_image_shape():
    X = samples_of("bytes")
    for cls in DETECTORS:
        if hasattr(cls, "criterion"):
            flat = X.reshape(len(X), -1)
            detector = short(cls, criterion="map", image_shape=X.shape[1:]).fit(flat)
            expected = detector.score_samples(flat)
            module = score_module(detector)
            np.testing.assert_allclose(scores(module, flat), expected, rtol=1e-5)


def test_copies_of_a_module():
    X = samples_of("table")
    detector = ConformalDetector(short(HistoryAD), calibration=0.5, random_state=0)
    module = score_module(detector.fit(X))
    (inner,) = detector.estimators_
    expected = inner.score_samples(X)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        np.testing.assert_allclose(scores(copied, X), expected, rtol=1e-5, atol=1e-5)


def test_refusals():
    X = samples_of("table")
    with pytest.raises(NotFittedError):
        score_module(HistoryAD())
    detector = short(HistoryAD).fit(X)
    with pytest.raises(TypeError, match=r"give the detector, pipeline\[-1\]"):
        score_module(make_pipeline(StandardScaler(), detector))
    folds = ConformalDetector(detector, calibration=2).fit(X)
    with pytest.raises(ValueError, match="2 detectors, one for each fold"):
        score_module(folds)
