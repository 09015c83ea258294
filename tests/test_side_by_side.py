"""Fits side by side, and searches whose candidates are trained together."""

import pickle
import warnings
from functools import partial
from itertools import product

import numpy as np
import pytest
import sklearn
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler
from skorch.callbacks import Callback

from skanomaly import ADRA, AABiGAN, HistoryAD, JointEncoderGAN, TransferAD
from skanomaly.engine import fit_side_by_side
from skanomaly.exceptions import TrainingDivergedError
from skanomaly.metrics import detector_average_precision, detector_roc_auc
from skanomaly.model_selection import (
    LeaveAnomalyKindOut,
    SideBySideGridSearchCV,
    SideBySideRandomizedSearchCV,
    TargetKFold,
)

N, N_COLUMNS = 240, 6
FOLDS = [np.flatnonzero(np.arange(N) % 3 != k) for k in range(3)]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, N_COLUMNS)) + rng.normal(size=(N, 1))
    y = np.ones(N, int)
    y[::8] = -1
    X[y == -1] += 3
    return X, y


@pytest.fixture(scope="module")
def domain():
    return np.repeat([1, -1], N // 2)


def short(cls=HistoryAD, **params):
    return cls(**{"max_epochs": 2, "n_estimators": 2, "random_state": 0} | params)


def fitted(estimator, X, y=None, **params):
    return clone(estimator).fit(X, y, **params)


# Members and fits of their own --------------------------------------------------------

#: Detector, candidates, and the fewest fits that have to be trained together.
CASES = {
    "TransferAD": (
        short(TransferAD, max_epochs=1, transfer_epochs=2),
        {"lam": [0.1, 0.3], "adversarial_weight": [5e-4, 0.1], "beta": [5.0, 20.0]},
        24,
    ),
    "TransferAD without a game": (
        short(TransferAD, max_epochs=1, transfer_epochs=2),
        {"adversarial_weight": [0, 0.1]},
        3,
    ),
    "HistoryAD": (short(HistoryAD), {"beta": [0, 1.0], "alpha": [0, 0.5]}, 12),
    "HistoryAD, a trained detector": (
        short(HistoryAD, detector_epochs=2),
        {"beta": [0, 1.0], "lam": [1.0, 10.0]},
        6,
    ),
    "AABiGAN": (
        short(AABiGAN),
        {"cycle_weight": [0.1, 1.0], "criterion": ["reconstruction", "auto"]},
        12,
    ),
    "JointEncoderGAN": (
        short(JointEncoderGAN, cycle_updates_generator=True),
        {"cycle_weight": [0.1, 1.0]},
        6,
    ),
    "ADRA": (short(ADRA, pretrain_epochs=2), {"weight_decay": [0.1, 0.2]}, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_a_member_equals_a_fit_of_its_own(name, data, domain):
    X, y = data
    detector, grid, n_together = CASES[name]
    jobs = [
        partial(
            fitted,
            clone(detector).set_params(**dict(zip(grid, values, strict=True))),
            X[rows],
            y[rows] if isinstance(detector, AABiGAN | ADRA) else None,
            **({"sample_domain": domain[rows]} if "Transfer" in name else {}),
        )
        for values in product(*grid.values())
        for rows in FOLDS
    ]
    outcomes = fit_side_by_side(jobs)
    # A fit whose only stage comes from another has none of its own.
    assert min(one.n_together or np.inf for one in outcomes) > 1
    assert max(one.n_together for one in outcomes) >= n_together
    for job, outcome in zip(jobs, outcomes, strict=True):
        alone, together = job(), outcome.result
        expected, found = alone.score_samples(X), together.score_samples(X)
        assert np.abs(found - expected).max() < 1e-3 * expected.std()
        assert_allclose(together.offset_, alone.offset_, atol=1e-3)
        losses = [
            [{k: v for k, v in row.items() if k != "duration"} for row in one.history_]
            for one in (alone, together)
        ]
        for a, b in zip(*losses, strict=True):
            assert a.keys() == b.keys()
            assert a["stage"] == b["stage"]
            assert_allclose(
                *([v for v in row.values() if isinstance(v, float)] for row in (a, b)),
                rtol=1e-2,
                atol=1e-4,
            )


def test_members_are_of_any_size_of_fold(data):
    X, _ = data
    sizes = 100, 101, 240  # the last one has other epochs, and is trained alone
    jobs = [partial(fitted, short(), X[:n]) for n in sizes]
    outcomes = fit_side_by_side(jobs)
    assert [one.n_together for one in outcomes] == [2, 2, 1]
    for job, outcome in zip(jobs, outcomes, strict=True):
        expected = job().score_samples(X)
        assert_allclose(outcome.result.score_samples(X), expected, atol=1e-4)


def test_early_stopping_is_for_each_fit(data):
    X, y = data
    X = np.where(y[:, None] == -1, X - 3, X)  # nothing to find
    detector = short(AABiGAN, early_stopping=True, max_epochs=60, averaging=0)
    jobs = [partial(fitted, detector, X[rows], y[rows]) for rows in FOLDS]
    outcomes = fit_side_by_side(jobs)
    lengths = [outcome.result.n_iter_ for outcome in outcomes]
    assert len(set(lengths)) > 1
    assert lengths == [job().n_iter_ for job in jobs]


def test_a_run_may_end_within_an_epoch(data):
    X, _ = data
    few = {"max_epochs": 40, "pretrain_epochs": 2}
    detector = short(ADRA, corpus=None, lr=0.02, **few)  # until it collapses
    jobs = [partial(fitted, detector, X[rows]) for rows in FOLDS]
    outcomes = fit_side_by_side(jobs)
    assert {one.n_together for one in outcomes} == {3}
    n_epochs = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        alone, together = job(), outcome.result
        assert together.n_iter_ == alone.n_iter_
        assert together.net_.step_ == alone.net_.step_
        assert "adapters_loss" in together.history_[-1]
        n_epochs.append(sum(row["stage"] == "adaptation" for row in alone.history_))
    assert min(n_epochs) < 40


def test_fitted_detectors_share_nothing(data):
    X, _ = data
    first, second = (
        one.result for one in fit_side_by_side([partial(fitted, short(), X)] * 2)
    )
    before = second.score_samples(X)
    for parameter in first.net_.detector_.parameters():
        parameter.data.zero_()
    assert_array_equal(second.score_samples(X), before)
    size = len(pickle.dumps(first.gan_))
    assert size < 1.2 * len(pickle.dumps(fitted(short(), X).gan_))


def test_a_warm_start_continues_a_member(data):
    X, _ = data
    (outcome, _) = fit_side_by_side([partial(fitted, short(), X)] * 2)
    alone, together = fitted(short(), X), outcome.result
    for one in (alone, together):
        one.set_params(warm_start=True).fit(X)
    expected = alone.score_samples(X)
    assert_allclose(together.score_samples(X), expected, atol=1e-4)


def test_a_fit_that_fails_does_not_harm_others(data):
    X, _ = data

    class Bad(Callback):
        def on_train_begin(self, net, **kwargs):
            for parameter in net.generator_.parameters():
                parameter.data[:] = np.nan

    diverging = short(callbacks=[Bad()])
    missing = np.full_like(X, np.nan)
    jobs = [
        *(partial(fitted, one, X) for one in (short(), diverging, "no detector")),
        partial(fitted, short(), missing),
        partial(fitted, short(beta=2), X),
    ]
    outcomes = fit_side_by_side(jobs)
    assert [type(one.result) for one in outcomes] == [
        *(HistoryAD, TrainingDivergedError, TypeError, ValueError, HistoryAD)
    ]
    assert [one.n_together for one in outcomes] == [3, 3, 0, 0, 3]
    for k in (0, 4):
        expected = jobs[k]().score_samples(X)
        assert_allclose(outcomes[k].result.score_samples(X), expected, atol=1e-4)


@pytest.mark.parametrize("when", ["on_batch_begin", "on_epoch_end"])
def test_an_interrupt_ends_all_fits(data, when):
    X, _ = data

    class Interrupt(Callback):
        pass

    def interrupt(self, net, **kwargs):
        raise KeyboardInterrupt

    setattr(Interrupt, when, interrupt)
    interrupted = short(callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        fit_side_by_side([partial(fitted, one, X) for one in (interrupted, short())])
    assert fitted(short(), X).n_iter_  # the engine is free again


# Searches -----------------------------------------------------------------------------


def search_of(estimator, grid, cls=SideBySideGridSearchCV, **params):
    return cls(
        estimator,
        grid,
        **{"scoring": detector_roc_auc, "cv": StratifiedKFold(3)} | params,
    )


GRID = {"beta": [0, 1.0], "alpha": [0, 0.5]}


def test_whole_fits_have_the_scores_of_scikit_learn(data):
    X, y = data
    settings = {
        "scoring": {"auc": detector_roc_auc, "ap": detector_average_precision},
        "refit": "ap",
        "return_train_score": True,
    }
    usual = search_of(short(), GRID, GridSearchCV, **settings).fit(X, y)
    search = search_of(short(), GRID, members_per_candidate=None, **settings).fit(X, y)
    assert set(search.cv_results_) == {*usual.cv_results_, "side_by_side"}
    assert search.cv_results_["side_by_side"].all()
    for key, expected in usual.cv_results_.items():
        if key.endswith(("_auc", "_ap")) and "rank" not in key:
            assert_allclose(search.cv_results_[key], expected, atol=1e-4)
    assert search.cv_results_["params"] == usual.cv_results_["params"]
    assert search.best_params_ == usual.best_params_
    # The refit is a whole fit: equal to the bit.
    assert_array_equal(search.score_samples(X), usual.score_samples(X))
    assert (search.cv_results_["mean_fit_time"] > 0).all()
    assert type(search.best_estimator_) is HistoryAD
    assert not {"fit", "__sklearn_clone__"} & set(vars(search.best_estimator_))
    again = pickle.loads(pickle.dumps(search))
    assert_array_equal(again.score_samples(X), usual.score_samples(X))
    assert clone(search).get_params().keys() == search.get_params().keys()
    assert search.estimator.n_estimators == 2


@pytest.mark.parametrize(("given", "members"), [({}, 2), (1, 1), (9, 3)])
def test_candidates_have_few_members_and_the_best_has_all(data, given, members):
    X, y = data
    given = {"members_per_candidate": given} if given else {}
    search = search_of(short(n_estimators=3), GRID, **given).fit(X, y)
    usual = search_of(short(n_estimators=members), GRID, GridSearchCV).fit(X, y)
    for k in range(3):
        key = f"split{k}_test_score"
        assert_allclose(search.cv_results_[key], usual.cv_results_[key], atol=1e-4)
    assert search.best_estimator_.n_estimators == 3


def test_candidates_may_have_their_own_number_of_members(data):
    X, y = data
    own = search_of(short(), {"n_estimators": [1, 3]}, refit=False).fit(X, y)
    assert not hasattr(own, "best_estimator_")
    assert own.cv_results_["param_n_estimators"].tolist() == [1, 3]


def test_candidates_have_the_same_seeds_without_a_seed(data):
    X, y = data
    search = search_of(short(random_state=None), {"lam": [1, 2.0]}, refit=False)
    scores = search.fit(X, y).cv_results_["mean_test_score"]
    assert scores[0] == scores[1]  # lam is for the training of the detector


def test_pipelines_domains_and_groups_are_handed_on(data, domain):
    X, y = data
    y = np.where(domain > 0, 1, y)
    pipeline = make_pipeline(RobustScaler(), short(TransferAD, transfer_epochs=1))
    grid = {"transferad__lam": [0.1, 0.3], "robustscaler__with_scaling": [True, False]}
    cv = TargetKFold(n_splits=3, random_state=0)
    named = {"transferad__sample_domain": domain, "groups": domain}
    searches = [
        search_of(pipeline, grid, cls, cv=cv, **own).fit(X, y, **named)
        for cls, own in (
            (GridSearchCV, {}),
            (SideBySideGridSearchCV, {"members_per_candidate": None}),
        )
    ]
    scores = [one.cv_results_["mean_test_score"] for one in searches]
    assert_allclose(*scores, atol=1e-4)
    assert searches[1].cv_results_["side_by_side"].all()
    with sklearn.config_context(enable_metadata_routing=True):
        routed = cv.set_split_request(groups="sample_domain")
        search = search_of(pipeline, grid, cv=routed, members_per_candidate=None)
        search.fit(X, y, sample_domain=domain)
    assert_allclose(search.cv_results_["mean_test_score"], scores[0], atol=1e-4)


def test_splits_are_drawn_once(data):
    X, y = data
    drawn = []

    class Counting(KFold):
        def split(self, *arguments):
            drawn.append(list(super().split(*arguments)))
            return iter(drawn[-1])

    search_of(short(), GRID, cv=Counting(2, shuffle=True), refit=False).fit(X, y)
    assert len(drawn) == 1
    kinds = np.where(np.arange(N) % 16 == 0, "one", "other")
    search = search_of(short(), GRID, cv=LeaveAnomalyKindOut(kinds)).fit(X, y)
    assert search.n_splits_ == 2


def test_processes_divide_the_fits(data):
    X, y = data
    alone = search_of(short(), GRID, refit=False).fit(X, y)
    with parallel_config("threading"):
        search = search_of(short(), GRID, refit=False, n_jobs=2).fit(X, y)
    for k in range(3):
        key = f"split{k}_test_score"
        assert_allclose(search.cv_results_[key], alone.cv_results_[key], atol=1e-4)
    assert search.n_jobs == 2


def test_failed_fits_have_the_error_score(data):
    X, y = data
    grid = {"alpha": [0, 5.0]}  # a history without a save point
    search = search_of(short(), grid, error_score=-1)
    with pytest.warns(FitFailedWarning, match="leaves no save point"):
        search.fit(X, y)
    assert search.cv_results_["mean_test_score"][1] == -1
    assert search.best_params_ == {"alpha": 0}
    with pytest.raises(ValueError, match="leaves no save point"):
        search_of(short(), grid, error_score="raise").fit(X, y)
    assert search.estimator.alpha == "auto"


def test_candidates_at_random(data):
    X, y = data
    search = search_of(
        short(),
        {"beta": [0, 1.0, 2.0, 3.0]},
        SideBySideRandomizedSearchCV,
        n_iter=2,
        random_state=0,
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == 2
    assert search.cv_results_["side_by_side"].all()


def test_candidates_of_other_kinds_are_side_by_side_among_themselves(data):
    X, y = data
    grid = [{"width": [8, 16], "beta": [0, 1.0]}, {"lr": [1e-3, 2e-3]}]
    search = search_of(short(), grid, refit=False).fit(X, y)
    assert search.cv_results_["side_by_side"].all()


SMALL = {"width": 2, "max_epochs": 1, "detector_epochs": 0}


@pytest.mark.parametrize(
    ("detector", "X_of"),
    [
        (short(callbacks=[Callback()]), lambda X: X),
        (short(image_shape=(1, 6, 8), **SMALL), lambda X: np.tile(X, 8)),
        (short(**SMALL), lambda X: np.tile(X[:, None, :, None], 8)),
        (IsolationForest(n_estimators=5), lambda X: X),
    ],
    ids=["callbacks", "flat images", "images", "another estimator"],
)
def test_others_are_searched_one_by_one(data, detector, X_of):
    X, y = data
    grid = {"contamination": [0.1, 0.2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = search_of(detector, grid, cv=StratifiedKFold(2)).fit(X_of(X), y)
    assert search.cv_results_["side_by_side"].tolist() == [False, False]
    assert search.best_estimator_.get_params()["n_estimators"] in (2, 5)


def test_members_are_counted(data):
    X, y = data
    for wrong in (0, 1.5, "all"):
        with pytest.raises(ValueError, match="members_per_candidate"):
            search_of(short(), GRID, members_per_candidate=wrong).fit(X, y)
