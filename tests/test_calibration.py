"""Conformal p-values and thresholds: exact cases, laws, agreement, errors."""

import pickle
import warnings
from email.message import Message
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import beta, betabinom, chisquare, kstest
from sklearn import config_context
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
    cross_val_score,
)
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from skanomaly import ConformalDetector, HistoryAD
from skanomaly._conformal import p_values, rank_at
from skanomaly.exceptions import CalibrationWarning, CoverageWarning
from skanomaly.model_selection import TargetKFold


class FirstColumn(OutlierMixin, BaseEstimator):
    """Scores a sample by its first number."""

    def fit(self, X, y=None, weight=None):
        self.n_seen_, self.y_, self.weight_ = len(X), y, weight
        self.seen_ = np.asarray(X)[:, 0]
        return self

    def score_samples(self, X):
        return np.asarray(X, dtype=float)[:, 0]


class Centred(FirstColumn):
    """Scores a sample by its distance to the mean of those seen."""

    def score_samples(self, X):
        return -np.abs(np.asarray(X)[:, 0] - self.seen_.mean())


def column(values):
    return np.asarray(values, dtype=float).reshape(-1, 1)


def calibrated(scores, rate=0.5):
    fitted = FirstColumn().fit(column([0, 1]))
    detector = ConformalDetector(fitted, calibration="prefit", false_alarm_rate=rate)
    return detector.fit(column(scores))


RNG = np.random.default_rng(0)
FOREST = IsolationForest(n_estimators=10, random_state=0)


@parametrize_with_checks(
    [
        ConformalDetector(clone(FOREST), calibration=how, random_state=0)
        for how in ("auto", 0.5, 3)
    ]
)
@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CalibrationWarning")
@pytest.mark.filterwarnings("ignore:No sample is taken as a known anomaly")
def test_scikit_learn_s_own_suite(estimator, check):
    check(estimator)


# Exact cases --------------------------------------------------------------------------


def test_p_values_by_hand():
    found = p_values(np.array([1.0, 2.0, 2.0, 4.0]), np.array([0, 1, 2, 3, 4, 5.0]))
    np.testing.assert_array_equal(found, np.array([1, 2, 4, 4, 5, 5]) / 5)


@pytest.mark.parametrize("low", [-np.inf, -1e300])
def test_infinite_scores_have_their_rank(low):
    found = p_values(np.array([-np.inf, 0.0, np.inf]), np.array([low, 1.0, np.inf]))
    np.testing.assert_array_equal(found, [0.5, 0.75, 1.0])


def test_no_whole_number_is_lost_in_floating_point():
    for n in range(1, 400):
        for k in range(1, n + 1):
            assert rank_at(n, k / (n + 1)) == k
    # Rates as users write them.
    for digits in (2, 3):
        for k in range(1, 10**digits):
            rate = float(f"0.{k:0{digits}d}")
            for n in (19, 39, 99, 199, 499, 999):
                exact = Fraction(k, 10**digits) * (n + 1)
                assert rank_at(n, rate) == int(exact)


def test_the_least_number_of_calibration_samples():
    detector = calibrated(np.arange(99), rate=0.01)
    assert detector.offset_ == 0
    np.testing.assert_array_equal(detector.predict([[-1], [0]]), [-1, 1])
    with pytest.warns(CalibrationWarning, match=r"98 calibration.*least rate is 0\.01"):
        detector = calibrated(np.arange(98), rate=0.01)
    assert detector.offset_ == -np.inf
    np.testing.assert_array_equal(detector.predict([[-1], [-1e9], [-np.inf]]), 1)


@pytest.mark.parametrize("rate", [0.01, 0.04, 0.15, 0.3])
def test_the_warning_names_a_number_of_samples_that_is_enough(rate):
    with pytest.warns(CalibrationWarning) as caught:
        calibrated([0.0, 1.0], rate=rate)
    enough = int(str(caught[0].message).split("; ")[1].split(" ")[0])
    assert rank_at(enough, rate) == 1
    assert rank_at(enough - 1, rate) == 0


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_warning_with_confidence_names_them_too(rate):
    detector = calibrated(np.arange(5), rate=0.5)
    with pytest.warns(CalibrationWarning, match=r"confidence of 0\.9") as caught:
        detector.set_threshold(false_alarm_rate=rate, confidence=0.9)
    message = str(caught[0].message)
    enough = int(message.split("; ")[1].split(" ")[0])
    assert rank_at(enough, rate, 0.9) == 1
    assert rank_at(enough - 1, rate, 0.9) == 0
    least = float(message.split("least rate is ")[1].split(",")[0])
    assert rank_at(5, least * 1.03, 0.9) == 1
    assert rank_at(5, least * 0.97, 0.9) == 0


def test_equal_scores_are_never_flagged():
    with pytest.warns(CalibrationWarning, match="All 50 .* same score"):
        detector = calibrated(np.ones(50))
    np.testing.assert_array_equal(detector.p_value([[1.0], [1.0]]), 1)
    np.testing.assert_array_equal(detector.predict([[1.0]]), 1)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("n", [10, 100, 1000])
def test_the_rank_of_a_confidence_is_the_largest(n, rate, confidence):
    k = rank_at(n, rate, confidence)
    law = beta.ppf(confidence, np.arange(1, n + 1), n - np.arange(n))
    assert k == (law <= rate).sum()
    assert k <= rank_at(n, rate)


# Laws ---------------------------------------------------------------------------------


def test_p_values_of_normal_samples_are_uniform():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(2000, 20))
    p = [p_values(np.sort(row[:19]), row[19:])[0] for row in scores]
    ranks = np.rint(np.multiply(p, 20)).astype(int)
    assert chisquare(np.bincount(ranks, minlength=21)[1:]).pvalue > 0.001


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_false_alarms_follow_the_beta_binomial_law(rate):
    rng, n, m = np.random.default_rng(2), 99, 1000
    k = rank_at(n, rate)
    counts = np.array(
        [
            (rng.normal(size=m) < np.sort(rng.normal(size=n))[k - 1]).sum()
            for _ in range(500)
        ]
    )
    law = betabinom(m, k, n + 1 - k)
    uniform = law.cdf(counts - 1) + rng.random(500) * law.pmf(counts)
    assert kstest(uniform, "uniform").pvalue > 0.001


def test_a_confidence_is_kept_by_that_many_calibration_sets():
    rng, n, rate = np.random.default_rng(3), 199, 0.05
    k = rank_at(n, rate, 0.9)
    rates = [np.sort(rng.random(n))[k - 1] for _ in range(500)]
    share = np.mean(np.array(rates) > rate)
    assert share <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 500)


def test_false_discoveries_are_bounded():
    rng, level = np.random.default_rng(4), 0.1
    shares = []
    for _ in range(200):
        detector = calibrated(rng.normal(size=1000))
        X = np.r_[rng.normal(size=900), rng.normal(-20, 1, size=100)]
        flagged = detector.predict_fdr(column(X), level) == -1
        assert flagged[900:].all()
        shares.append(flagged[:900].sum() / flagged.sum())
    assert np.mean(shares) <= level + 2 * np.std(shares) / np.sqrt(200)


@pytest.mark.parametrize("calibration", [3, 5, 0.3])
def test_new_normal_samples_are_flagged_at_the_rate(calibration):
    rng, rates = np.random.default_rng(5), []
    for seed in range(60):
        detector = ConformalDetector(
            Centred(),
            calibration=calibration,
            false_alarm_rate=0.1,
            random_state=seed,
        ).fit(rng.normal(size=(79, 1)))
        rates.append((detector.predict(rng.normal(size=(500, 1))) == -1).mean())
    assert abs(np.mean(rates) - 0.1) < 0.02


# Folds --------------------------------------------------------------------------------


def test_folds_by_hand():
    X, test = RNG.normal(size=(31, 1)), np.r_[RNG.normal(size=(50, 1)), [[9.0]]]
    splitter = KFold(3)
    detector = ConformalDetector(Centred(), calibration=splitter).fit(X)
    count = np.zeros(len(test))
    for train, held_out in splitter.split(X):
        fold = Centred().fit(X[train])
        below = fold.score_samples(X[held_out])[:, None] <= fold.score_samples(test)
        count += below.sum(0)
    np.testing.assert_array_equal(detector.p_value(test), (1 + count) / 32)
    # The score ranks as p-values do, and where these are equal too.
    scores = detector.score_samples(test)
    np.testing.assert_array_equal(np.floor(scores * 32 + 1e-9), count)
    assert len(np.unique(scores)) == len(test)


def test_samples_beyond_all_calibration_samples_are_ranked():
    detector = ConformalDetector(FirstColumn(), calibration=3).fit(RNG.random((30, 1)))
    X = column([-1e12, -100, -10, -1, 2, 10, 100])
    assert (np.diff(detector.score_samples(X)) > 0).all()
    np.testing.assert_array_equal(detector.p_value(X[:4]), 1 / 31)
    np.testing.assert_array_equal(detector.p_value(X[4:]), 1)
    far = detector.score_samples(column([-np.inf, np.inf]))
    assert far[0] == 0
    assert far[1] < 1


@pytest.mark.parametrize("calibration", [3, 0.5])
@pytest.mark.parametrize(
    "ends",
    [[-np.inf], [-np.inf, np.inf], [-1.7e308, 1.7e308], [5e-324], [-3.4e38]],
    ids=str,
)
@pytest.mark.parametrize("n", [6, 40])
def test_scores_at_the_ends_of_the_numbers(n, ends, calibration):
    """They are ranked without a warning of NumPy, which would be an error here."""
    X = column(np.r_[RNG.normal(size=60 - n), np.resize(ends, n)])
    detector = ConformalDetector(
        FirstColumn(), calibration=calibration, false_alarm_rate=0.1, random_state=0
    ).fit(X)
    test = column([-np.inf, -1.7e308, -5e-324, 0, 1, 1.7e308, np.inf])
    scores = detector.score_samples(test)
    assert (scores[1:] >= scores[:-1]).all()
    assert not np.isnan(detector.decision_function(test)).any()
    flagged = detector.p_value(test) <= 0.1
    np.testing.assert_array_equal(detector.predict(test) == -1, flagged)


def test_known_anomalies_train_and_do_not_calibrate():
    X = RNG.normal(size=(40, 1))
    y = np.r_[-np.ones(10), np.ones(30)].astype(int)
    for calibration, n_train in ((3, 10 + 20), (0.5, 10 + 15)):
        detector = ConformalDetector(
            FirstColumn(), calibration=calibration, false_alarm_rate=0.2
        ).fit(X, y)
        assert len(detector.calibration_scores_) == (30 if calibration == 3 else 15)
        for fitted in detector.estimators_:
            assert fitted.n_seen_ == n_train
            assert (fitted.y_ == -1).sum() == 10


def test_groups_stay_together():
    X, groups = RNG.normal(size=(60, 1)), np.repeat(np.arange(12), 5)
    y = np.where(np.arange(60) < 3, -1, 1)
    kinds = dict(zip(X[:, 0], groups, strict=True))

    def check(detector):
        assert len(detector.calibration_scores_) == 57
        for fitted, scores in zip(
            detector.estimators_, detector._fold_scores, strict=True
        ):
            normal = {kinds[x] for x in fitted.seen_[fitted.y_ == 1]}
            assert normal.isdisjoint({kinds[x] for x in scores})

    detector = ConformalDetector(FirstColumn(), calibration=GroupKFold(3))
    check(detector.fit(X, y, groups=groups))
    with pytest.raises(ValueError, match="groups"):
        detector.fit(X, y)
    with pytest.raises(ValueError, match="groups"):
        clone(detector).set_params(calibration=3).fit(X, y, groups=groups)
    with config_context(enable_metadata_routing=True):
        check(clone(detector).fit(X, y, groups=groups))


def test_folds_of_labels_and_of_time():
    X = RNG.normal(size=(60, 1))
    y = np.r_[np.zeros(45), np.ones(15)]  # unlabelled, and known to be normal
    with pytest.warns(UserWarning, match="has to be -1 for these, but has"):
        detector = ConformalDetector(FirstColumn(), calibration=StratifiedKFold(3)).fit(
            X, y
        )
    assert [int(fitted.y_.sum()) for fitted in detector.estimators_] == [10] * 3
    detector = ConformalDetector(FirstColumn(), calibration=TimeSeriesSplit(3)).fit(X)
    assert len(detector.calibration_scores_) == 45  # without the first quarter
    assert [fitted.n_seen_ for fitted in detector.estimators_] == [15, 30, 45]


class Folds:
    """A splitter of given folds."""

    def __init__(self, *folds):
        self.folds = folds

    def split(self, X, y=None, groups=None):
        return iter(self.folds)

    def get_n_splits(self, X=None, y=None, groups=None):
        return len(self.folds)


@pytest.mark.parametrize(
    ("splitter", "fault"),
    [
        (RepeatedKFold(n_splits=3, n_repeats=2), "more than once"),
        (ShuffleSplit(4, test_size=0.5), "more than once"),
        (Folds(), "holds no samples out"),
        (Folds(([0, 1], [2, 3]), ([0, 1], [])), "holds no samples out"),
        (Folds(([0, 1], [1, 2])), "trains on samples that it holds out"),
    ],
)
def test_folds_that_give_no_p_values(splitter, fault):
    with pytest.raises(ValueError, match=fault):
        ConformalDetector(FirstColumn(), calibration=splitter).fit(
            RNG.normal(size=(40, 1))
        )


def test_folds_of_one_sample():
    """One score per fold is no sign that all are equal."""
    detector = ConformalDetector(Centred(), calibration=LeaveOneOut()).fit(
        RNG.normal(size=(30, 1))
    )
    assert len(detector.calibration_scores_) == 30
    assert detector.predict([[99.0]]) == -1


@pytest.mark.parametrize(
    ("y", "advice"),
    [
        (np.r_[np.zeros(58), 1, 1], r"np\.asarray\(y\) == 1, -1, 1"),
        (np.r_[np.zeros(58, bool), True, True], r"np\.where\(y, -1, 1\)"),
        (np.array(["1"] * 58 + ["-1"] * 2), r"== '-1', -1, 1"),
    ],
)
def test_labels_of_another_convention_are_not_misread_in_silence(y, advice):
    with pytest.warns(UserWarning, match=advice):
        detector = ConformalDetector(FirstColumn()).fit(RNG.normal(size=(60, 1)), y)
    assert len(detector.calibration_scores_) == 60


def test_labels_of_normal_samples_alone():
    for y in (np.ones(60), np.zeros(60)):
        ConformalDetector(FirstColumn()).fit(RNG.normal(size=(60, 1)), y)
    with pytest.raises(ValueError, match="missing values"):
        ConformalDetector(FirstColumn()).fit(np.ones((60, 1)), [None] * 60)


def test_fit_predict_reads_labels_too():
    y = np.r_[-np.ones(10), np.ones(50)]
    detector = ConformalDetector(FirstColumn())
    assert detector.fit_predict(RNG.normal(size=(60, 1)), y).shape == (60,)
    assert len(detector.calibration_scores_) == 50


# Agreement ----------------------------------------------------------------------------


def test_the_formula_by_hand_on_a_forest():
    X, test = RNG.normal(size=(200, 3)), RNG.normal(size=(50, 3)) * 2
    detector = ConformalDetector(FOREST, calibration=0.4, random_state=0).fit(X)
    (fitted,) = detector.estimators_
    scores = np.asarray(detector.calibration_scores_)
    assert len(scores) == 80
    assert set(scores) <= set(fitted.score_samples(X))
    by_hand = [(1 + (scores <= s).sum()) / 81 for s in fitted.score_samples(test)]
    np.testing.assert_array_equal(detector.p_value(test), by_hand)
    np.testing.assert_array_equal(
        detector.score_samples(test), fitted.score_samples(test)
    )


@pytest.mark.parametrize("calibration", [0.5, 4])
def test_predict_and_p_values_agree(calibration):
    X = np.round(RNG.normal(size=(200, 1)), 1)  # with ties
    detector = ConformalDetector(Centred(), calibration=calibration, random_state=0)
    detector.fit(X)
    again = pickle.loads(pickle.dumps(detector))
    for rate in (0.02, 0.05, 0.1, 0.15, 0.3, 1 - 0.9, 0.1 + 0.2, 0.99):
        detector.set_threshold(false_alarm_rate=rate)
        again.set_threshold(false_alarm_rate=rate)
        new = clone(detector).set_params(false_alarm_rate=rate).fit(X)
        flagged = detector.p_value(X) <= rate
        assert flagged.any()
        for one in (detector, again, new):
            np.testing.assert_array_equal(one.predict(X) == -1, flagged)


def test_a_threshold_is_set_without_training():
    detector = calibrated(np.arange(100))
    assert detector.set_threshold(score=7) is detector
    np.testing.assert_array_equal(detector.predict([[6], [7]]), [-1, 1])
    detector.set_threshold(false_alarm_rate=0.1)
    assert detector.offset_ == 9
    detector.set_threshold(false_alarm_rate=0.1, confidence=0.9)
    assert detector.offset_ < 9


def test_a_confidence_that_cannot_be_had_flags_nothing():
    with pytest.warns(CalibrationWarning):
        detector = calibrated(np.arange(5)).set_threshold(
            false_alarm_rate=0.2, confidence=0.99
        )
    assert detector.offset_ == -np.inf


def test_the_weaker_procedure_flags_less():
    detector = calibrated(RNG.normal(size=2000))
    X = column(np.r_[RNG.normal(size=900), RNG.normal(-3, 1, size=100)])
    bh, by = (detector.predict_fdr(X, method=name) == -1 for name in ("bh", "by"))
    assert 0 < by.sum() < bh.sum()
    assert (bh | ~by).all()


def test_too_few_calibration_samples_for_a_rate_of_false_discoveries():
    detector, X = calibrated(np.arange(100)), np.zeros((1000, 1)) + 50
    X[:3] = -1
    with pytest.warns(CalibrationWarning, match=r"3 of 1000.* unless 100 samples do"):
        assert (detector.predict_fdr(X) == 1).all()
    X[:100] = -1
    assert (detector.predict_fdr(X)[:100] == -1).all()


def test_rounding_loses_no_discovery():
    """Twenty p-values of 8 / 80 among thirty are just few enough for .15."""
    detector = calibrated(np.arange(79))
    X = np.r_[np.full(20, 6.5), np.full(10, 100.0)]
    np.testing.assert_array_equal(detector.p_value(column(X[:20])), 8 / 80)
    flagged = detector.predict_fdr(column(X), 0.15) == -1
    np.testing.assert_array_equal(flagged, X == 6.5)


def test_rates_are_kept_where_nothing_lies_far_out():
    detector = calibrated(np.arange(100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (detector.predict_fdr(column(np.arange(50.0, 60))) == 1).all()


# Other packages' parts ----------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        FOREST,
        OneClassSVM(),
        LocalOutlierFactor(novelty=True),
        EllipticEnvelope(random_state=0),
        make_pipeline(StandardScaler(), FOREST),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("calibration", [0.3, 3])
def test_detectors_of_scikit_learn(estimator, calibration):
    X = RNG.normal(size=(300, 3))
    detector = ConformalDetector(estimator, calibration=calibration, random_state=0)
    detector.fit(X)
    assert detector.n_features_in_ == 3
    assert detector.predict([[20.0, -20, 20]]) == -1
    assert detector.p_value([[20.0, -20, 20]]) < 0.02
    assert 0 < (detector.predict(RNG.normal(size=(500, 3))) == -1).mean() < 0.15


@pytest.mark.parametrize("calibration", [0.4, 3])
def test_detectors_of_this_package(calibration):
    X = RNG.integers(0, 256, (60, 1, 8, 8)).astype(np.uint8)
    network = HistoryAD(max_epochs=2, width=4, detector_epochs=1, random_state=0)
    detector = ConformalDetector(network, calibration=calibration, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        detector.fit(X)
    assert detector.p_value(X[:5]).shape == (5,)
    flagged = detector.p_value(X) <= 0.05
    np.testing.assert_array_equal(detector.predict(X) == -1, flagged)


@pytest.mark.parametrize("calibration", [0.4, 3])
def test_data_frames_of_mixed_columns(calibration):
    frame = pd.DataFrame(
        {"kind": list("abcd") * 30, "size": RNG.normal(size=120)}, index=range(7, 127)
    )
    columns = ColumnTransformer(
        [("kind", OneHotEncoder(handle_unknown="ignore"), ["kind"])],
        remainder=StandardScaler(),
    )
    detector = ConformalDetector(
        make_pipeline(columns, LocalOutlierFactor(novelty=True)),
        calibration=calibration,
        random_state=0,
    ).fit(frame)
    assert list(detector.feature_names_in_) == ["kind", "size"]
    strange = pd.DataFrame({"kind": ["z"], "size": [9.0]})
    assert detector.predict(strange) == -1


def test_sparse_samples():
    X = sparse.random_array((150, 6), density=0.3, rng=0).tocsr()
    detector = ConformalDetector(FOREST, random_state=0).fit(X)
    assert detector.predict(X).shape == (150,)


def test_searches_and_cross_validation():
    X = RNG.normal(size=(120, 2))
    y = np.ones(120, dtype=int)
    X[::10], y[::10] = 6.0, -1
    detector = ConformalDetector(FOREST, random_state=0)
    search = GridSearchCV(
        detector, {"estimator__max_samples": [16, 32]}, scoring="roc_auc", cv=3
    ).fit(X, y)
    assert search.best_score_ > 0.9
    scores = cross_val_score(detector, X, y, scoring="roc_auc", cv=3)
    assert scores.min() > 0.9


def test_metadata_is_divided_as_samples_are():
    X, weight = RNG.normal(size=(40, 1)), np.arange(40.0)
    with config_context(enable_metadata_routing=True):
        estimator = FirstColumn().set_fit_request(weight=True)
        detector = ConformalDetector(estimator, calibration=4, random_state=0)
        detector.fit(X, weight=weight)
        for fitted in detector.estimators_:
            np.testing.assert_array_equal(
                X[fitted.weight_.astype(int), 0], fitted.seen_
            )


def test_target_samples_alone_calibrate():
    X, domain = RNG.normal(size=(40, 1)), np.r_[np.ones(25), -np.ones(15)]
    with config_context(enable_metadata_routing=True):
        estimator = FirstColumn().set_fit_request(weight="sample_domain")
        folds = TargetKFold(n_splits=3).set_split_request(groups="sample_domain")
        detector = ConformalDetector(
            estimator, calibration=folds, false_alarm_rate=0.1
        ).fit(X, sample_domain=domain)
    assert len(detector.calibration_scores_) == 15
    for fitted in detector.estimators_:
        assert (fitted.weight_ > 0).sum() == 25
        assert (fitted.weight_ < 0).sum() == 10


@pytest.mark.parametrize("address", ["https://example.org/docs/", None])
def test_the_html_representation_links_to_its_page(address, monkeypatch):
    about = Message()
    if address:
        about["Project-URL"] = f"Documentation, {address}"
    monkeypatch.setattr("skanomaly.utils._documentation.metadata", lambda name: about)
    link = "https://example.org/docs/generated/skanomaly.ConformalDetector.html"
    assert ConformalDetector(FOREST)._get_doc_link() == (link if address else "")


def test_no_metadata_are_ignored():
    X = RNG.normal(size=(40, 1))
    with config_context(enable_metadata_routing=True):
        estimator = FirstColumn().fit(X).set_fit_request(weight=True)
        with pytest.raises(ValueError, match="no use for weight"):
            ConformalDetector(estimator, calibration="prefit").fit(X, weight=X[:, 0])


def test_processes_make_no_difference():
    X = RNG.normal(size=(60, 2))
    one, two = (
        ConformalDetector(FOREST, random_state=0, n_jobs=n).fit(X) for n in (None, 2)
    )
    np.testing.assert_array_equal(one.score_samples(X), two.score_samples(X))


def test_the_default_is_folds_where_samples_are_few():
    for n, n_fits, n_calibration in ((999, 5, 999), (1000, 1, 200)):
        detector = ConformalDetector(FirstColumn()).fit(RNG.normal(size=(n, 1)))
        assert len(detector.estimators_) == n_fits
        assert len(detector.calibration_scores_) == n_calibration


# Errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, np.nan, "x", True])
def test_a_rate_outside_of_its_range(rate):
    with pytest.raises(ValueError, match="false_alarm_rate"):
        ConformalDetector(FOREST, false_alarm_rate=rate).fit(RNG.normal(size=(50, 1)))
    detector = calibrated(np.arange(10))
    for name in ("false_alarm_rate", "confidence"):
        given = {"false_alarm_rate": 0.5, name: rate}
        with pytest.raises(ValueError, match=name):
            detector.set_threshold(**given)
    with pytest.raises(ValueError, match="level"):
        detector.predict_fdr([[1.0]], level=rate)
    assert detector.offset_ == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of false_alarm_rate and score"),
        ({"false_alarm_rate": 0.1, "score": 0.0}, "one of false_alarm_rate and score"),
        ({"score": 0.0, "confidence": 0.9}, "belongs to a false_alarm_rate"),
        ({"score": np.nan}, "score=nan has to be a number"),
        ({"score": "x"}, "score='x' has to be a number"),
        ({"score": True}, "score=True has to be a number"),
    ],
)
def test_a_threshold_that_makes_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        calibrated(np.arange(10)).set_threshold(**given)


def test_an_unknown_procedure():
    with pytest.raises(ValueError, match="'bh' or 'by'"):
        calibrated(np.arange(10)).predict_fdr([[1.0]], method="holm")


@pytest.mark.parametrize(
    "call",
    [
        lambda detector: detector.p_value([[1.0]]),
        lambda detector: detector.predict([[1.0]]),
        lambda detector: detector.set_threshold(score=1.0),
        lambda detector: detector.predict_fdr([[1.0]]),
    ],
)
def test_before_a_fit(call):
    with pytest.raises(NotFittedError):
        call(ConformalDetector(FOREST))


def test_scores_that_are_no_numbers():
    with pytest.raises(ValueError, match="2 of 5 scores of FirstColumn are NaN"):
        calibrated([np.nan, 1, np.nan, 2, 3])


def test_an_estimator_without_scores():
    with pytest.raises(ValueError, match="StandardScaler has neither score_samples"):
        ConformalDetector(StandardScaler()).fit(RNG.normal(size=(50, 1)))


@pytest.mark.parametrize("calibration", ["auto", 61, "prefit"])
def test_too_few_samples_to_calibrate(calibration):
    X, y = RNG.normal(size=(60, 1)), -np.ones(60)
    estimator = FirstColumn().fit(X)
    with pytest.raises(ValueError, match="n_samples=0 without the known anomalies"):
        ConformalDetector(estimator, calibration=calibration).fit(X, y)


def test_a_fit_that_fails_changes_nothing():
    X = RNG.normal(size=(60, 1))
    detector = ConformalDetector(FirstColumn(), calibration=3)
    with pytest.raises(ValueError, match="are NaN"):
        detector.fit(X * np.nan)
    with pytest.raises(NotFittedError):
        detector.predict(X)
    before = detector.fit(X).predict(X + 1)
    with pytest.raises(ValueError, match="are NaN"):
        detector.fit(X * np.nan)
    np.testing.assert_array_equal(detector.predict(X + 1), before)
    with pytest.raises(CalibrationWarning):  # they are errors here
        detector.fit(X[:6])
    np.testing.assert_array_equal(detector.predict(X + 1), before)


def test_prefit_takes_detectors_of_other_packages():
    class Plain:
        def fit(self, X, y=None):
            return self

        def decision_function(self, X):
            return -np.abs(X).sum(1)

    X = RNG.normal(size=(60, 1))
    detector = ConformalDetector(Plain(), calibration="prefit").fit(X)
    assert detector.predict([[99.0]]) == -1


def test_prefit_needs_a_fitted_estimator():
    with pytest.raises(NotFittedError):
        ConformalDetector(FOREST, calibration="prefit").fit(RNG.normal(size=(50, 1)))
