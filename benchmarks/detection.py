"""Detection experiments: problems and detectors by name, and their metrics."""

from __future__ import annotations

import time
from functools import cache, partial

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skanomaly
from skanomaly import datasets
from skanomaly.metrics import (
    detector_average_precision_score,
    detector_roc_auc_score,
)

TABLE_NAMES = (
    *("annthyroid", "arrhythmia", "breastw", "cardio", "cover", "glass", "http"),
    *("internetads", "lymphography", "musk", "optdigits", "pageblocks", "satellite"),
    *("satimage-2", "shuttle", "smtp", "spambase", "thyroid", "wbc", "wine"),
)
#: Principal components of images.
N_COMPONENTS = 64


# Problems: each returns X_train, X_test, y_train, y_test --------------------------


def table(name, seed):
    """60 % of the normal samples for training, the rest and all anomalies for test."""
    X, y = datasets.fetch_odds(name, return_X_y=True)
    return datasets.one_vs_rest(X, y, normal_class=1, random_state=seed)


@cache
def images(name, subset):
    fetch = getattr(datasets, f"fetch_{name}")
    return fetch(subset=subset, return_X_y=True)


def without_class(name, anomaly, n_train, seed):
    """One class is anomalous; `n_train` images of the others; the whole test split."""
    X, y = images(name, "train")
    X_test, y_test = images(name, "test")
    X, X_test, y, y_test = datasets.hold_one_out(
        X, y, anomaly, X_test=X_test, y_test=y_test
    )
    chosen = np.random.default_rng(seed).permutation(len(X))[:n_train]
    return X[chosen], X_test, y[chosen], y_test


def digits_without(anomaly, seed):
    """One of scikit-learn's 8 x 8 digits is anomalous, as in the demo."""
    X, y = load_digits(return_X_y=True)
    return datasets.hold_one_out(X, y, anomaly, random_state=seed)


def mnist_against_kmnist(n_train, seed):
    """MNIST is normal, KMNIST anomalous; both test splits (Fig. 5)."""
    X, _ = images("mnist", "train")
    chosen = np.random.default_rng(seed).permutation(len(X))[:n_train]
    normal, odd = images("mnist", "test")[0], images("kmnist", "test")[0]
    y_test = np.repeat([1, -1], [len(normal), len(odd)])
    return X[chosen], np.concatenate([normal, odd]), np.ones(len(chosen)), y_test


PROBLEMS = {
    "table": table,
    "without_class": without_class,
    "digits_without": digits_without,
    "mnist_against_kmnist": mnist_against_kmnist,
}


# Detectors --------------------------------------------------------------------------


class Flat:
    """A detector for tables, which flattens images; fits on at most `most` samples."""

    def __init__(self, detector, most=None):
        self.detector, self.most = detector, most

    def fit(self, X):
        self.detector.fit(self._flattened(X[: self.most]))
        return self

    def decision_function(self, X):
        return self.detector.decision_function(self._flattened(X))

    @staticmethod
    def _flattened(X):
        return X.reshape(len(X), -1)


def isolation_forest(seed, problem):
    return Flat(IsolationForest(random_state=seed))


def local_outlier_factor(seed, problem):
    lof = LocalOutlierFactor(novelty=True)
    # Columns of a table have units of their own, pixels have one in common.
    detector = make_pipeline(StandardScaler(), lof) if problem == "table" else lof
    # Its time is quadratic in the samples: 20,000 take minutes.
    return Flat(detector, most=20_000)


class Neighbours(BaseEstimator):
    """Distance to the k-th nearest training sample."""

    def __init__(self, k):
        self.k = k

    def fit(self, X, y=None):
        self.neighbours_ = NearestNeighbors(n_neighbors=self.k).fit(X)
        return self

    def decision_function(self, X):
        return -self.neighbours_.kneighbors(X)[0][:, -1]


class Residual(BaseEstimator):
    """Squared error of the reconstruction by principal components."""

    def __init__(self, n_components):
        self.n_components = n_components

    def fit(self, X, y=None):
        self.pca_ = PCA(min(self.n_components, *X.shape), random_state=0).fit(X)
        return self

    def decision_function(self, X):
        error = self.pca_.inverse_transform(self.pca_.transform(X)) - X
        return -np.square(error).sum(1)


def neighbours(k, seed, problem):
    """Neighbours of standardised columns, or of 64 principal components of pixels."""
    if problem == "table":
        first = StandardScaler()
    else:
        first = PCA(N_COMPONENTS, random_state=0)
    return Flat(make_pipeline(first, Neighbours(k)), most=20_000)


def residual(seed, problem):
    return Flat(Residual(N_COMPONENTS))


BASELINES = {
    "1-NN": partial(neighbours, 1),
    "5-NN": partial(neighbours, 5),
    "LocalOutlierFactor": local_outlier_factor,
    "IsolationForest": isolation_forest,
    "PCA": residual,
}
#: What every table of detectors has beside them.
RIVALS = ["1-NN", "5-NN", "LocalOutlierFactor", "IsolationForest"]
RIVALS_OF_IMAGES = [*RIVALS, "PCA"]


def make_detector(name, problem, seed, params=None):
    """Return a detector: one of ours by its class, or a baseline."""
    if name in BASELINES:
        return BASELINES[name](seed, problem)
    return getattr(skanomaly, name)(random_state=seed, **params or {})


# Measuring --------------------------------------------------------------------------


def detect(problem, detector, seed, params=None, **settings):
    """Fit, score, and return AUROC and average precision of the anomalies."""
    X_train, X_test, _, y_test = PROBLEMS[problem](seed=seed, **settings)
    model = make_detector(detector, problem, seed, params)
    _, metrics = fit_and_score(model, [X_train], X_test, y_test)
    if hasattr(model, "coverage_"):
        metrics["coverage"] = model.coverage_
    return metrics


def fit_and_score(model, train, X_test, y_test):
    """Return the scores of the test set, and the metrics.

    `train` has the arguments of ``fit``: samples, or samples and labels.
    """
    start = time.perf_counter()
    model.fit(*train)
    fitted = time.perf_counter()
    scores = model.decision_function(X_test)
    scored = time.perf_counter()
    return scores, {
        "auroc": detector_roc_auc_score(y_test, scores),
        "average_precision": detector_average_precision_score(y_test, scores),
        "prevalence": float(np.mean(y_test == -1)),
        "n_train": len(train[0]),
        "n_test": len(X_test),
        "fit_seconds": round(fitted - start, 2),
        "score_seconds": round(scored - fitted, 2),
    }
