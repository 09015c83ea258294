"""The example detectors of the documentation work, and keep the common contract."""

import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def Autoencoder(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("adding_a_method_example").Autoencoder


@pytest.fixture
def SeriesAutoencoder(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("adding_a_kind_example").SeriesAutoencoder


@pytest.fixture
def series():
    """Return waves of two channels: training, normal and anomalous samples."""
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 6, (3, 60, 1, 1))
    lag = np.zeros((3, 60, 2, 1))
    lag[2, :, 1] = rng.uniform(2, 4, (60, 1))
    waves = np.sin(phases + lag + np.linspace(0, 12, 30))
    return waves + 0.05 * rng.normal(size=waves.shape)


def test_the_example_passes_scikit_learn_checks(Autoencoder):
    check_estimator(Autoencoder(max_epochs=2), on_skip=None)


def test_the_example_detects_anomalies(Autoencoder, toy):
    X_train, X_test, y_test = toy
    detector = Autoencoder(random_state=0).fit(X_train)
    assert roc_auc_score(y_test, detector.score_samples(X_test)) > 0.8
    again = detector.set_params(warm_start=True).fit(X_train)
    assert (
        again.n_iter_ == 2 * detector.set_params(warm_start=False).fit(X_train).n_iter_
    )


def test_a_detector_of_a_fourth_kind_of_data(SeriesAutoencoder, series):
    X_train, normal, anomalous = series
    detector = SeriesAutoencoder(random_state=0).fit(X_train)
    X_test, y_test = np.concatenate([normal, anomalous]), np.repeat([1, -1], 60)
    scores = detector.score_samples(X_test)
    assert scores.dtype == np.float64
    assert roc_auc_score(y_test, scores) > 0.9
    assert np.mean(detector.predict(normal) == 1) > 0.8
    np.testing.assert_array_equal(
        detector.predict(X_test), np.where(scores < detector.offset_, -1, 1)
    )
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.score_samples(X_test), scores)
    # Each channel has mean 0 and variance 1, and values far out are outliers.
    scaled = detector.scaler_.transform(X_train)
    np.testing.assert_allclose(scaled.std((0, 2)), 1, rtol=0.01)
    with pytest.warns(UserWarning, match="hardly have one scale"):
        assert (detector.predict(200 * normal) == -1).all()


def test_input_checks_of_a_fourth_kind_of_data(SeriesAutoencoder, series):
    X, detector = series[0], SeriesAutoencoder(random_state=0, max_epochs=1)
    flat = X.reshape(len(X), -1)
    by_hint = detector.set_params(image_shape=(2, 30)).fit(flat).score_samples(flat)
    detector.set_params(image_shape=None)
    with pytest.raises(ValueError, match=r"takes \(n_samples, channels, length\)"):
        detector.fit(flat)
    np.testing.assert_array_equal(detector.fit(X).score_samples(X), by_hint)
    with pytest.raises(ValueError, match=r"length\). X\[:, None\] makes series of one"):
        detector.fit(X[:, 0])
    with pytest.raises(ValueError, match=r"length\)\.$"):
        detector.fit(X[:, None])
    with pytest.raises(ValueError, match=r"Series of 3 steps .* at least 4"):
        clone(detector).fit(X[..., :3])
    with pytest.raises(ValueError, match=r"architecture='mlp' does not fit"):
        clone(detector).set_params(architecture="mlp").fit(X)
    with pytest.raises(ValueError, match=r"Series of shape \(2, 29\), but"):
        detector.predict(X[..., :-1])
    with pytest.raises(ValueError, match=r"Series .*30, 2\) look like 30 with 2 chan"):
        detector.fit(X.transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"image_shape=.*has to be \(channels, length"):
        detector.set_params(image_shape=(2, 5, 6)).fit(flat)
