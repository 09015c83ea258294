"""Detectors of two domains with skada: its data helpers, splitters and pipelines.

Importing skada turns scikit-learn's metadata routing on for the whole process. Here it
is on for these tests alone.
"""

import numpy as np
import pytest
from sklearn import config_context, get_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skanomaly import TransferAD
from skanomaly.metrics import detector_roc_auc
from skanomaly.model_selection import TargetKFold

with config_context():
    skada = pytest.importorskip("skada")
    skada_datasets = pytest.importorskip("skada.datasets")
ROUTING = get_config()["enable_metadata_routing"]


DETECTOR = TransferAD(
    max_epochs=10, transfer_epochs=10, n_estimators=1, batch_size=16, random_state=0
)
GRID = {"lam": [0.0, 0.1]}


@pytest.fixture(autouse=True)
def routing():
    with config_context(enable_metadata_routing=True):
        yield


@pytest.fixture
def dataset():
    """Return 40 normal source samples, and 50 target samples, 10 of them anomalous."""
    rng = np.random.default_rng(0)
    y_target = np.repeat([1, -1], [40, 10])
    X_target = rng.normal(size=(50, 3)) + 2 + 6 * (y_target == -1)[:, None]
    return skada_datasets.DomainAwareDataset(
        [
            (rng.normal(size=(40, 3)), np.ones(40, int), "plant"),
            (X_target, y_target, "site"),
        ]
    )


@pytest.fixture
def packed(dataset):
    """Return X, y and sample_domain of both, with the true labels of the target."""
    return dataset.pack(["plant"], ["site"], mask_target_labels=False)


def tells_apart(scores, y):
    return np.mean(scores[y == 1][:, None] > scores[y == -1]) > 0.95


# ------------------------------------------------------------------- data helpers


def test_packed_domains_are_those_of_fit(packed):
    X, y, domain = packed
    assert set(domain) == {1, -2}
    detector = clone(DETECTOR).fit(X, sample_domain=domain)
    target = domain < 0
    assert tells_apart(detector.score_samples(X[target]), y[target])


def test_masked_labels_change_nothing(dataset, packed):
    X, _, domain = packed
    _, masked, _ = dataset.pack(["plant"], ["site"], mask_target_labels=True)
    # skada's mark of a missing label is our mark of a known anomaly.
    assert set(masked[domain < 0]) == {-1}
    one = clone(DETECTOR).fit(X, masked, sample_domain=domain).score_samples(X)
    other = clone(DETECTOR).fit(X, sample_domain=domain).score_samples(X)
    np.testing.assert_array_equal(one, other)


def test_split_domains_are_the_two_arguments_of_fit(packed):
    X, y, domain = packed
    source, target, _, y_target = skada.source_target_split(X, y, sample_domain=domain)
    apart = clone(DETECTOR).fit(target, X_source=source).score_samples(target)
    together = clone(DETECTOR).fit(X, sample_domain=domain).score_samples(target)
    np.testing.assert_allclose(apart, together)
    assert tells_apart(apart, y_target)


# --------------------------------------------------------- scikit-learn's pipelines


@pytest.mark.parametrize("scoring", ["roc_auc", detector_roc_auc])
def test_search_of_a_pipeline(packed, scoring):
    X, y, domain = packed
    pipeline = make_pipeline(StandardScaler(), DETECTOR)
    name = pipeline.steps[-1][0]
    search = GridSearchCV(
        pipeline,
        {f"{name}__{key}": values for key, values in GRID.items()},
        cv=TargetKFold(domain, 3, random_state=0),
        scoring=scoring,
        error_score="raise",
    ).fit(X, y, sample_domain=domain)
    assert search.best_score_ > 0.9
    assert search.score(X[domain < 0], y[domain < 0]) > 0.9


def test_splitters_of_skada_are_given_the_domains(packed):
    X, y, domain = packed
    found = cross_validate(
        clone(DETECTOR),
        X,
        y,
        params={"sample_domain": domain},
        cv=skada.model_selection.SourceTargetShuffleSplit(
            2, test_size=0.4, random_state=0
        ),
        scoring=detector_roc_auc,
        error_score="raise",
    )
    assert (found["test_score"] > 0.8).all()


# ----------------------------------------------------------------- skada's pipelines


def test_pipeline_of_skada(packed):
    X, _, domain = packed
    pipeline = skada.make_da_pipeline(StandardScaler(), DETECTOR)
    pipeline.fit(X, sample_domain=domain)
    by_hand = make_pipeline(StandardScaler(), clone(DETECTOR))
    by_hand.fit(X, sample_domain=domain)
    target = X[domain < 0]
    for method in ("decision_function", "predict"):
        expected = getattr(by_hand, method)(target)
        np.testing.assert_array_equal(getattr(pipeline, method)(target), expected)
        # It may be given the domains when it predicts, too, and makes nothing of them.
        found = getattr(pipeline, method)(target, sample_domain=domain[domain < 0])
        np.testing.assert_array_equal(found, expected)
    # skada wraps each step, and passes these methods on alone.
    assert not hasattr(pipeline, "score_samples")
    detector = pipeline[-1].get_estimator()
    assert detector.score_samples(target).shape == (50,)


def test_pipeline_of_skada_with_an_adapter(packed):
    X, _, domain = packed
    pipeline = skada.make_da_pipeline(StandardScaler(), skada.CORALAdapter(), DETECTOR)
    # Not the effect of an adapter is tested: the domains have to arrive.
    scores = pipeline.fit(X, sample_domain=domain).decision_function(X[domain < 0])
    assert scores.shape == (50,)
    detector = pipeline[-1].get_estimator()
    assert detector.sample_weight_.shape == (50,)
    adapted = detector.scaler_.var_
    plain = skada.make_da_pipeline(StandardScaler(), DETECTOR)
    plain.fit(X, sample_domain=domain)
    assert not np.allclose(plain[-1].get_estimator().scaler_.var_, adapted)


def test_search_of_a_pipeline_of_skada(packed):
    X, y, domain = packed
    pipeline = skada.make_da_pipeline(StandardScaler(), DETECTOR)
    name = pipeline.steps[-1][0]
    search = GridSearchCV(
        pipeline,
        {f"{name}__{key}": values for key, values in GRID.items()},
        cv=TargetKFold(domain, 3, random_state=0),
        scoring="roc_auc",
        error_score="raise",
        # A copy: skada 0.6 masks the labels of the target in the array it is given,
        # when the search fits for the last time.
    ).fit(X, y.copy(), sample_domain=domain)
    assert search.best_score_ > 0.9


def test_the_import_leaves_other_tests_alone():
    assert not ROUTING
