"""Packages that take detectors of scikit-learn, with those of this one.

Each test holds a line of the page "With other packages". Packages that are not
installed skip their tests.
"""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from skanomaly import AABiGAN, ConformalDetector, HistoryAD

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
FAR = RNG.normal(size=(20, 4)) + 9
RARE = (np.arange(300) % 10 == 0).astype(int)

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of other packages
    pytest.mark.filterwarnings("error::UserWarning:skanomaly"),
]


def tiny(cls=AABiGAN, **params):
    return cls(max_epochs=2, n_estimators=1, random_state=0, **params)


def test_imbalanced_learn_removes_outliers():
    imblearn = pytest.importorskip("imblearn")
    pipeline = pytest.importorskip("imblearn.pipeline")
    y = (X[:, 0] > 0).astype(int)

    def inliers(X, y):
        normal = tiny(contamination=0.1).fit_predict(X) == 1
        return X[normal], y[normal]

    sampler = imblearn.FunctionSampler(func=inliers)
    assert sampler.fit_resample(X, y)[0].shape == (270, 4)
    model = pipeline.make_pipeline(sampler, LogisticRegression()).fit(X, y)
    assert model.predict(FAR).shape == (20,)  # new rows are all kept


def test_scikit_lego_classifies_outliers():
    meta = pytest.importorskip("sklego.meta")
    rows = X + 9 * RARE[:, None]
    detector = tiny(HistoryAD, detector_epochs=1)
    model = meta.OutlierClassifier(detector).fit(rows, RARE)
    share = model.predict_proba(rows)[:, 1]
    assert share[RARE == 1].mean() > share[RARE == 0].mean() + 0.1
    assert (model.predict(1e3 * FAR) == 1).all()
    with pytest.raises(ValueError, match=r"If 1, the rarer value, means anomaly"):
        meta.OutlierClassifier(tiny()).fit(rows, RARE)


def test_scikit_lego_removes_outliers():
    lego = pytest.importorskip("sklego.preprocessing")
    remover = lego.OutlierRemover(tiny(contamination=0.1)).fit(X)
    expected = X[remover.estimator_.predict(X) == 1]
    assert 240 < len(expected) < 300
    np.testing.assert_array_equal(remover.transform_train(X), expected)
    assert remover.transform(FAR).shape == (20, 4)  # new rows are all kept


def test_shap_explains_scores():
    shap = pytest.importorskip("shap")
    detector = tiny().fit(X)
    found = shap.Explainer(detector.score_samples, X[:20])(X[:2])
    total = found.values.sum(1) + found.base_values
    np.testing.assert_allclose(total, detector.score_samples(X[:2]), atol=1e-9)
    with pytest.raises(TypeError, match="not callable"):
        shap.Explainer(detector, X[:20])


def test_aeon_turns_labels_round():
    collection = pytest.importorskip("aeon.anomaly_detection.collection")
    series = np.random.default_rng(0).normal(size=(100, 1, 12))
    far = series[:5] + 50
    adapter = collection.OutlierDetectionAdapter(tiny()).fit(series)
    assert (adapter.predict(far) == 0).all()  # which are its normal ones
    assert adapter.predict(series).mean() > 0.5


def test_aeon_takes_detectors_of_pyod_alone():
    pytest.importorskip("pyod")
    series = pytest.importorskip("aeon.anomaly_detection.series")
    with pytest.raises(ValueError, match="not a compatible PyOD model"):
        series.PyODAdapter(tiny()).fit(X[:, 0])


def test_sktime_does_not_tell_outliers_apart():
    pytest.importorskip("pyod")
    adapters = pytest.importorskip("sktime.detection.adapters")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X)
    found = adapters.PyODDetector(tiny(contamination=0.1)).fit(frame).predict(frame)
    assert len(found) == len(X)


def test_windows_of_a_series_are_samples():
    series = np.sin(np.arange(400)) + 0.1 * RNG.normal(size=400)
    changed = series.copy()
    changed[200:210] *= -3
    windows = np.lib.stride_tricks.sliding_window_view
    detector = tiny().fit(windows(series, 50))
    assert 152 <= detector.score_samples(windows(changed, 50)).argmin() <= 209


def test_nonconform_has_to_be_told_the_sign():
    nonconform = pytest.importorskip("nonconform", exc_type=Exception)

    def p_values(detector, **options):
        split = nonconform.Split(n_calib=0.3)
        made = nonconform.ConformalDetector(detector, split, seed=0, **options)
        return made.fit(X).compute_p_values(FAR)

    assert p_values(tiny()).min() == 1
    assert p_values(tiny(), score_polarity="higher_is_normal").max() < 0.02
    with pytest.raises(ValueError, match="Unable to infer score polarity"):
        p_values(tiny(), score_polarity="auto")


def test_ray_gives_the_same_scores():
    ray = pytest.importorskip("ray")
    joblib_of_ray = pytest.importorskip("ray.util.joblib")
    import joblib

    detector = tiny().fit(X)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        shared = ray.put(detector)
        score = ray.remote(lambda detector, rows: detector.score_samples(rows))
        parts = ray.get([score.remote(shared, part) for part in np.split(X, 4)])
        joblib_of_ray.register_ray()
        with joblib.parallel_config(backend="ray"):
            spread = ConformalDetector(tiny(), calibration=3, n_jobs=2, random_state=0)
            spread.fit(X)
    finally:
        ray.shutdown()
    np.testing.assert_array_equal(np.concatenate(parts), detector.score_samples(X))
    here = ConformalDetector(tiny(), calibration=3, random_state=0).fit(X)
    np.testing.assert_array_equal(spread.p_value(X), here.p_value(X))


@pytest.mark.parametrize("cls", [AABiGAN, HistoryAD])
def test_skops_refuses_tensors(cls):
    io = pytest.importorskip("skops.io")
    with pytest.raises(RuntimeError, match="TensorBase"):
        io.dumps(tiny(cls).fit(X))
