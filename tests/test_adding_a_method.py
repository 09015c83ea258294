"""The worked example of the documentation is a detector that keeps the contract."""

import importlib
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def Autoencoder(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("adding_a_method_example").Autoencoder


def test_it_passes_scikit_learn_s_suite(Autoencoder):
    check_estimator(Autoencoder(max_epochs=2), on_skip=None)


def test_it_detects(Autoencoder, toy):
    X_train, X_test, y_test = toy
    detector = Autoencoder(random_state=0).fit(X_train)
    assert roc_auc_score(y_test, detector.score_samples(X_test)) > 0.8
    again = detector.set_params(warm_start=True).fit(X_train)
    assert (
        again.n_iter_ == 2 * detector.set_params(warm_start=False).fit(X_train).n_iter_
    )
