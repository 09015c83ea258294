"""Thresholds and p-values of detectors, from samples that training does not see."""

import pickle
import warnings

import numpy as np
import pytest
from scipy.stats import betabinom
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from test_common import every_detector, short

import skanomaly
from skanomaly import ADRA, AABiGAN, HistoryAD, TransferAD
from skanomaly.exceptions import CalibrationWarning, FalseAlarmWarning

# Expected here, as in the other common tests.
pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]

RATES = 0.05, 0.1, 0.15, 0.3, 1 - 0.9, 0.1 + 0.2, 0.5


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


def n_held_out(n, **params):
    return HistoryAD(**params)._n_calibration(n)


# Samples ------------------------------------------------------------------------------


@every_detector
@pytest.mark.parametrize("kind", ["table", "images"])
def test_calibration_scores_are_those_of_samples_held_out(cls, kind, X):
    if kind == "images":
        X = np.random.default_rng(0).integers(0, 256, (80, 1, 9, 12)).astype(np.uint8)
    detector = short(cls).fit(X)
    calibration_scores = detector.calibration_scores_
    assert len(calibration_scores) == 19
    assert (np.diff(calibration_scores) >= 0).all()
    scores = detector.score_samples(X)
    is_calibration = np.isin(scores, calibration_scores)
    assert is_calibration.sum() == 19
    # Training on the others alone, without calibration, gives the same networks, unless
    # a part of the samples validates.
    if cls is TransferAD or cls is skanomaly.JointEncoderGAN:
        alone = short(cls, calibration=None).fit(X[~is_calibration])
        np.testing.assert_array_equal(alone.score_samples(X), scores)


@every_detector
def test_p_values_are_the_formula(cls, X):
    detector = short(cls, calibration=0.5).fit(X)
    new = np.random.default_rng(1).normal(size=(30, 4)) * 3
    calibration_scores = detector.calibration_scores_
    assert len(calibration_scores) == 40
    by_hand = [
        (1 + (calibration_scores <= score).sum()) / 41
        for score in detector.score_samples(new)
    ]
    np.testing.assert_array_equal(detector.p_value(new), by_hand)


def test_the_number_of_calibration_samples():
    assert [n_held_out(n) for n in (2, 3, 30, 56, 57, 190, 1000, 10**6)] == [
        *(0, 1, 10, 18, 19, 19, 100, 10**5)
    ]
    assert [n_held_out(n, contamination=0.01) for n in (297, 296, 10**4)] == [
        *(99, 29, 1000)
    ]
    assert [n_held_out(n, calibration=0.25) for n in (100, 3)] == [25, 1]
    assert n_held_out(100, calibration=None) == 0


def test_two_samples_train_and_none_calibrates():
    detector = short(AABiGAN).fit(np.eye(2))
    assert not hasattr(detector, "calibration_scores_")
    assert detector.predict(np.eye(2)).shape == (2,)


@pytest.mark.parametrize("calibration", [0, 1, 1.5, -0.1, 5, "x", np.nan, True])
def test_a_share_outside_of_its_range(calibration, X):
    with pytest.raises(ValueError, match="'calibration' parameter"):
        short(AABiGAN, calibration=calibration).fit(X)


def test_a_share_that_leaves_too_few_samples(X):
    with pytest.raises(ValueError, match=r"calibration=0.99 leaves 1 of 80 samples"):
        short(AABiGAN, calibration=0.99).fit(X)


@pytest.mark.parametrize("cls", [AABiGAN, ADRA])
def test_known_anomalies_do_not_calibrate(cls, X):
    y = np.r_[-np.ones(20), np.ones(60)]
    X[y == -1] += 100
    detector = short(cls, calibration=0.5).fit(X, y)
    assert len(detector.calibration_scores_) == 30
    normal = detector.score_samples(X[y == 1])
    assert np.isin(detector.calibration_scores_, normal).all()


def test_source_samples_do_not_calibrate(X):
    domain = np.r_[np.ones(50), -np.ones(30)]
    for fitted in (
        short(TransferAD, calibration=0.5).fit(X, sample_domain=domain),
        short(TransferAD, calibration=0.5).fit(X[50:], X_source=X[:50]),
    ):
        target = fitted.score_samples(X[50:])
        assert len(fitted.calibration_scores_) == 15
        assert np.isin(fitted.calibration_scores_, target).all()
        assert len(fitted.sample_weight_) == 30


@every_detector
def test_a_warm_start_holds_the_same_samples_out(cls, X):
    """With another seed, it would train on those that calibrated before."""
    detector = short(cls, warm_start=True, random_state=np.random.RandomState(0))
    held_out = []
    for _ in range(2):
        detector.fit(X)
        scores = detector.score_samples(X)
        held_out.append(np.isin(scores, detector.calibration_scores_))
    np.testing.assert_array_equal(*held_out)
    assert held_out[0].sum() == 19


# Thresholds ---------------------------------------------------------------------------


@every_detector
def test_predict_and_p_values_agree(cls, X, tmp_path):
    new = np.random.default_rng(1).normal(size=(200, 4)) * 2
    for rate in (0.05, 0.2):
        detector = short(cls, contamination=rate).fit(X)
        skanomaly.save(detector, tmp_path / "d")
        flagged = detector.p_value(new) <= rate
        assert flagged.any()
        for one in (
            detector,
            pickle.loads(pickle.dumps(detector)),
            skanomaly.load(tmp_path / "d"),
            clone(detector).fit(X),
        ):
            np.testing.assert_array_equal(one.predict(new) == -1, flagged)
            np.testing.assert_array_equal(one.p_value(new), detector.p_value(new))
    at_threshold = X[detector.score_samples(X) == detector.offset_]
    assert (detector.predict(at_threshold) == 1).all()


@every_detector
def test_thresholds_are_set_without_training(cls, X):
    detector = short(cls).fit(X)
    before = detector.score_samples(X)
    for rate in RATES:
        assert detector.set_threshold(false_alarm_rate=rate) is detector
        flagged = detector.p_value(X) <= rate
        np.testing.assert_array_equal(detector.predict(X) == -1, flagged)
    detector.set_threshold(score=before[7])
    np.testing.assert_array_equal(detector.predict(X) == -1, before < before[7])
    np.testing.assert_array_equal(detector.score_samples(X), before)
    assert (detector.predict_fdr(50 * X, 0.3) == -1).mean() > 0.5


def test_false_alarms_are_as_many_as_asked_for():
    """Over many fits they follow the beta-binomial law, in the mean and in spread."""
    rng = np.random.default_rng(0)
    normal, rate, counts = rng.normal(size=(60, 400, 3)), 0.1, []
    for seed, rows in enumerate(normal):
        settings = {"contamination": rate, "calibration": 0.25, "random_state": seed}
        detector = short(AABiGAN, **settings, max_epochs=5).fit(rows[:160])
        counts.append((detector.predict(rows[160:]) == -1).sum())
    law = betabinom(240, 4, 37)
    low, high = law.interval(0.95)
    assert np.mean([low <= n <= high for n in counts]) >= 0.85
    deviation = law.std() / np.sqrt(len(counts))
    assert abs(np.mean(counts) - law.mean()) < 3 * deviation


def test_rates_that_cannot_be_reached(X, tmp_path):
    """Nothing is flagged, and samples are still ranked."""
    with pytest.warns(
        CalibrationWarning, match=r"0.01 cannot be reached with 19 .* 99"
    ):
        detector = short(HistoryAD, contamination=0.01).fit(X)
    far = np.r_[X, 50 * X[:5]]
    assert (detector.predict(far) == 1).all()
    decision, scores = detector.decision_function(far), detector.score_samples(far)
    assert np.isfinite(decision).all()
    assert (decision > 0).all()
    np.testing.assert_array_equal(np.argsort(decision), np.argsort(scores))
    y = np.r_[np.ones(80), -np.ones(5)]
    assert roc_auc_score(y, decision) == roc_auc_score(y, scores)
    skanomaly.save(detector, tmp_path / "d")
    assert skanomaly.load(tmp_path / "d").offset_ == -np.inf


def test_fit_predict_flags_the_share_of_the_samples_themselves(X):
    y = np.r_[-np.ones(10), np.ones(70)]
    labels = short(AABiGAN, contamination=0.1).fit_predict(X, y)
    assert (labels[y == 1] == -1).sum() == 7
    domain = np.r_[np.ones(20), -np.ones(60)]
    detector = short(TransferAD, contamination=0.1)
    labels = detector.fit_predict(X, sample_domain=domain)
    assert (labels[domain < 0] == -1).sum() == 6


# Natural thresholds -------------------------------------------------------------------


def test_a_natural_threshold_that_flags_much_gives_a_warning(X):
    flags_much = r"offset_=0, which .* HistoryAD gives, and flags \d+ of 19 held-out"
    with pytest.warns(FalseAlarmWarning, match=flags_much):
        detector = HistoryAD(max_epochs=1, random_state=0).fit(X)
    assert (detector.predict(X) == -1).mean() > 0.3
    with pytest.warns(FalseAlarmWarning, match=r"of 80 held-out samples"):
        detector.calibrate(X)
    with pytest.warns(FalseAlarmWarning, match=r"of 80 training samples"):
        HistoryAD(max_epochs=1, random_state=0, calibration=None).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseAlarmWarning)
        HistoryAD(max_epochs=1, random_state=0, contamination=0.1).fit(X)
        detector.set_threshold(false_alarm_rate=0.1)
        assert (detector.predict(X) == -1).mean() < 0.3


def test_thresholds_inside_of_a_calibrated_detector_do_not_warn(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseAlarmWarning)
        warnings.simplefilter("error", CalibrationWarning)
        for given in ({}, {"contamination": 0.01}):
            inside = HistoryAD(max_epochs=1, random_state=0, **given)
            skanomaly.ConformalDetector(inside, calibration=2).fit(X)


def test_one_calibration_sample_is_no_reason_to_warn(X):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseAlarmWarning)
        detector = HistoryAD(max_epochs=1, random_state=0).fit(X[:5])
    assert len(detector.calibration_scores_) == 1


def test_a_natural_threshold_that_flags_little_gives_none(toy):
    X, _, _ = toy
    with warnings.catch_warnings():
        warnings.simplefilter("error", FalseAlarmWarning)
        HistoryAD(random_state=0).fit(X)


# Other calibration samples ------------------------------------------------------------


@every_detector
def test_other_samples_calibrate_a_fitted_detector(cls, X):
    new = np.random.default_rng(1).normal(size=(50, 4))
    y = np.r_[-np.ones(10), np.ones(40)]
    detector = short(cls, contamination=0.1).fit(X)
    before = detector.score_samples(new)
    assert detector.calibrate(new, y) is detector
    np.testing.assert_array_equal(detector.score_samples(new), before)
    np.testing.assert_array_equal(detector.calibration_scores_, np.sort(before[10:]))
    assert detector.offset_ == np.sort(before[10:])[3]
    flagged = detector.p_value(X) <= 0.1
    np.testing.assert_array_equal(detector.predict(X) == -1, flagged)
    for wrong in (new[:, :3], new * np.nan):
        with pytest.raises(ValueError, match=r"features|NaN"):
            detector.calibrate(wrong)
    with pytest.raises(ValueError, match="no samples besides"):
        detector.calibrate(new, -np.ones(50))
    np.testing.assert_array_equal(detector.calibration_scores_, np.sort(before[10:]))


def test_p_values_of_another_score_are_refused(X):
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)
    for cls in (TransferAD, skanomaly.JointEncoderGAN):
        detector = short(cls).fit(images).set_params(criterion="map")
        detector.predict(images)
        for call in (
            lambda: detector.p_value(images),  # noqa: B023
            lambda: detector.set_threshold(false_alarm_rate=0.2),  # noqa: B023
        ):
            with pytest.raises(
                ValueError, match=r"criterion was changed from .* 'map'"
            ):
                call()
        detector.calibrate(images)
        assert detector.p_value(images).max() == 1
        assert set(detector.calibration_scores_) == set(detector.score_samples(images))
    detector.fit(images).set_params(lam=0.3)
    with pytest.raises(ValueError, match="lam was changed"):
        detector.p_value(images)
    detector.set_params(lam="auto").p_value(images)


@every_detector
def test_a_detector_without_calibration_says_so(cls, X):
    detector = short(cls, calibration=None, contamination=0.1).fit(X)
    for call in (
        lambda: detector.p_value(X),
        lambda: detector.predict_fdr(X),
        lambda: detector.set_threshold(false_alarm_rate=0.1),
    ):
        with pytest.raises(ValueError, match=r"no calibration scores.*calibrate\(X\)"):
            call()
    detector.set_threshold(score=0.0).predict(X)
    assert detector.calibrate(X).p_value(X).min() == 2 / 81


def test_a_file_of_an_older_version(X, tmp_path):
    """Its detector has no calibration scores, and works as before."""
    detector = short(AABiGAN, calibration=None, contamination=0.1).fit(X)
    expected = detector.predict(X)
    for name in ("_training_offset", "_split_seed"):
        delattr(detector, name)
    skanomaly.save(detector, tmp_path / "d")
    loaded = skanomaly.load(tmp_path / "d")
    np.testing.assert_array_equal(loaded.predict(X), expected)
    with pytest.raises(ValueError, match="a file of an older version"):
        loaded.p_value(X)
    loaded.set_params(contamination="auto").calibrate(X)
    assert loaded.p_value(X).max() == 1
