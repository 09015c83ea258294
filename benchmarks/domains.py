"""Detection across two domains: problems, detectors and metrics.

A problem is a :class:`Problem`: normal samples of the source, an unlabelled mixture of
the target, and labelled samples of the target to test on.
"""

from __future__ import annotations

import time
import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import RobustScaler

from skanomaly import TransferAD, datasets
from skanomaly.metrics import detector_roc_auc_score

from .detection import N_COMPONENTS, images


class Problem(NamedTuple):
    """Samples of two domains, and labels (+1 or -1) of those of the target."""

    source: np.ndarray
    target: np.ndarray
    y_target: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray

    @classmethod
    def of(cls, split):
        """Return the problem of a split by `datasets.across_domains`."""
        X, X_test, y, y_test, domain = split
        target = domain < 0
        return cls(X[~target], X[target], y[target], X_test, y_test)


# Problems ---------------------------------------------------------------------------


def digit_images(name, subset):
    """Return MNIST or USPS with 28 x 28 pixels, the latter resized bilinearly."""
    X, y = images(name, subset)
    if X.shape[-1] != 28:
        resized = F.interpolate(
            torch.from_numpy(X).float(), size=(28, 28), mode="bilinear"
        )
        X = resized.round().byte().numpy()
    return X, y


def digits(direction, normal, rate, seed):
    """One digit of two data sets; all anomalies of the test split are tested."""
    source, target = direction.split(" to ")
    split = datasets.across_domains(
        *digit_images(source, "train"),
        *digit_images(target, "train"),
        normal,
        contamination=rate,
        test_contamination=None,
        X_test=digit_images(target, "test")[0],
        y_test=digit_images(target, "test")[1],
        random_state=seed,
    )
    return Problem.of(split)


def blurred(X):
    return gaussian_filter(X, (0, 0, 1.5, 1.5))


CHANGES = {"inverted": lambda X: 255 - X, "blurred": blurred}


def fashion(change, normal, rate, seed):
    """Halve Fashion-MNIST, and change one half, the target."""
    (X, y), (X_test, y_test) = (images("fashion_mnist", s) for s in ("train", "test"))
    half = np.random.default_rng(seed).random(len(X)) < 0.5
    change = CHANGES[change]
    split = datasets.across_domains(
        *(X[half], y[half], change(X[~half]), y[~half], normal),
        contamination=rate,
        test_contamination=None,
        X_test=change(X_test),
        y_test=y_test,
        random_state=seed,
    )
    return Problem.of(split)


def table(name, shift, rate, seed):
    """Halve the normal samples; the target half has a share `rate` of anomalies.

    With `shift` "another site" the halves are random, and each feature of the target is
    scaled and shifted by random numbers; with "by a column" one feature divides the
    samples at the median of the normal ones, and is dropped. Of the target, 40 % are
    held out for the test. If there are too few anomalies, normal samples are left out.
    """
    rng = np.random.default_rng([seed, round(100 * rate), len(shift)])
    X, y = datasets.fetch_odds(name, return_X_y=True)
    chosen = rng.permutation(len(X))[:5000]
    X, y = np.asarray(X, np.float64)[chosen], np.asarray(y)[chosen]
    X = X[:, X.std(0) > 0]
    normal, odd = np.flatnonzero(y == 1), np.flatnonzero(y == -1)
    if shift == "by a column":
        X, source, target, odd = divided(X, normal, odd, rng)
    else:
        source, target = normal[: len(normal) // 2], normal[len(normal) // 2 :]
    n_odd = round(rate / (1 - rate) * len(target))
    if n_odd > len(odd):
        n_odd = len(odd)
        target = rng.permutation(target)[: round(n_odd * (1 - rate) / rate)]
    odd = rng.permutation(odd)[:n_odd]
    X_source, samples = X[source], X[np.r_[target, odd]]
    if shift == "another site":
        spread = X[normal].std(0)
        scale = np.exp(0.5 * rng.normal(size=X.shape[1]))
        samples = samples * scale + rng.normal(size=X.shape[1]) * spread
    held_out = np.concatenate([np.arange(n) >= 0.6 * n for n in (len(target), n_odd)])
    y = np.repeat([1, -1], [len(target), n_odd])
    return Problem(
        X_source, samples[~held_out], y[~held_out], samples[held_out], y[held_out]
    )


def divided(X, normal, odd, rng):
    """Divide samples by a random feature; the target has more of the anomalies."""
    rich = [j for j in range(X.shape[1]) if len(np.unique(X[normal, j])) >= 8]
    column = rng.choice(rich)
    values = X[:, column] + 1e-9 * X[:, column].std() * rng.normal(size=len(X))
    above = values > np.median(values[normal])
    if above[odd].mean() < 0.5:
        above = ~above
    source, target = (rng.permutation(normal[part[normal]]) for part in (~above, above))
    return np.delete(X, column, 1), source, target, odd[above[odd]]


PROBLEMS = {"digits": digits, "fashion": fashion, "table": table}


# Detectors --------------------------------------------------------------------------


class Autoencoder:
    """TransferAD without its second domain, trained as long as with it.

    `stages` holds the samples of its first and of its second half.
    """

    def __init__(self, *stages, **params):
        self.stages = stages
        self.detector = TransferAD(warm_start=True, **params)

    def fit(self):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TransferAD was given no domains")
            for samples in self.stages:
                self.detector.fit(samples)
        return self.detector


def transfer(problem, **params):
    return TransferAD(**params).fit(problem.target, X_source=problem.source)


def source_only(problem, **params):
    return Autoencoder(problem.source, problem.source, **params).fit()


def target_only(problem, **params):
    return Autoencoder(problem.target, problem.target, **params).fit()


def pooled(problem, **params):
    samples = np.concatenate([problem.source, problem.target])
    return Autoencoder(samples, samples, **params).fit()


def source_then_target(problem, **params):
    return Autoencoder(problem.source, problem.target, **params).fit()


def target_normals(problem, **params):
    samples = problem.target[problem.y_target == 1]
    return Autoencoder(samples, samples, **params).fit()


def isolation_forest(problem, random_state):
    forest = IsolationForest(random_state=random_state)
    return forest.fit(problem.target.reshape(len(problem.target), -1))


class SourceNeighbours:
    """Distance to the fifth nearest source sample.

    Aligned, each domain's columns are centred and scaled by its own median and
    quartiles; else, and for images, by those of the source. Images become 64 principal
    components of the source.
    """

    def __init__(self, problem, aligned):
        source, target = (part.reshape(len(part), -1) for part in problem[:2])
        self.reduce_ = None
        if problem.source.ndim > 2:
            n = min(N_COMPONENTS, *source.shape)
            self.reduce_ = PCA(n, random_state=0).fit(source)
            source, target = map(self.reduce_.transform, (source, target))
        self.scaler_ = RobustScaler().fit(target if aligned else source)
        own = RobustScaler().fit_transform(source) if aligned else None
        known = self.scaler_.transform(source) if own is None else own
        self.neighbours_ = NearestNeighbors(n_neighbors=5).fit(known)

    def score_samples(self, X):
        X = X.reshape(len(X), -1)
        if self.reduce_ is not None:
            X = self.reduce_.transform(X)
        return -self.neighbours_.kneighbors(self.scaler_.transform(X))[0][:, -1]


def source_neighbours(problem, random_state):
    return SourceNeighbours(problem, aligned=False)


def aligned_neighbours(problem, random_state):
    return SourceNeighbours(problem, aligned=True)


DETECTORS = {
    "TransferAD": transfer,
    "IsolationForest": isolation_forest,
    "5-NN, source": source_neighbours,
    "5-NN, aligned": aligned_neighbours,
    "source only": source_only,
    "target only": target_only,
    "pooled": pooled,
    "source, then target": source_then_target,
    "target normals": target_normals,
}
AUTOENCODERS = ["source only", "target only", "pooled"]
#: Detectors that do not depend on the share of anomalies in the target.
WITHOUT_ANOMALIES = {"source only", "target normals", "5-NN, source"}


# Metrics ----------------------------------------------------------------------------


def detect(problem, detector, seed, params=None, **settings):
    """Fit, score, and return the AUROC by the default score and by the loss."""
    start = time.perf_counter()
    problem = PROBLEMS[problem](seed=seed, **settings)
    model = DETECTORS[detector](problem, random_state=seed, **params or {})
    return {
        **measure(model, problem),
        "n_source": len(problem.source),
        "n_target": len(problem.target),
        "fit_seconds": round(time.perf_counter() - start, 2),
    }


def measure(detector, problem):
    """Return metrics of a fitted detector."""
    auroc = partial(detector_roc_auc_score, problem.y_test)
    if isinstance(detector, SourceNeighbours):
        return {"auroc": auroc(detector.score_samples(problem.X_test))}
    if isinstance(detector, IsolationForest):
        samples = problem.X_test.reshape(len(problem.X_test), -1)
        return {"auroc": auroc(detector.score_samples(samples))}
    metrics = {"auroc": auroc(detector.score_samples(problem.X_test))}
    for criterion in ("reconstruction", "combined"):
        detector.set_params(criterion=criterion)
        scores = detector.score_samples(problem.X_test)
        metrics[f"auroc_{criterion}"] = auroc(scores)
    detector.set_params(criterion="auto")
    if hasattr(detector, "sample_weight_"):
        for name, label in (("normal", 1), ("anomalous", -1)):
            weights = detector.sample_weight_[problem.y_target == label]
            metrics[f"weight_{name}"] = float(weights.mean())
    return metrics


def over_rates(problem, detector, seed, rates, **settings):
    """Return the metrics by rate; a detector without anomalies is trained once."""
    found, model = {}, None
    for rate in rates:
        part = PROBLEMS[problem](seed=seed, rate=rate, **settings)
        if model is None or detector not in WITHOUT_ANOMALIES:
            model = DETECTORS[detector](part, random_state=seed)
        found[rate] = measure(model, part)
    return found
