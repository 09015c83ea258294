"""Detection with a few labelled anomalies: problems, baselines and metrics.

A training set has normal samples and known anomalies (-1 in ``y_train``). All other
samples are +1, including the unlabelled anomalies of a contaminated set, as in the
result of `skanomaly.datasets.labelled_anomalies`.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

import numpy as np
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import nn

import skanomaly
from skanomaly import datasets
from skanomaly.metrics import detector_roc_auc_score

from . import detection

# Problems: X_train, X_test, y_train, y_test, and for images the kinds of both -------


def table(name, gamma_l, seed):
    """60 % for training, 40 % for test, with the same share of anomalies.

    As many anomalies of the training part as make up `gamma_l` are known, at least one,
    and the others are dropped. All are known in `cover`, `http` and `smtp`, which have
    fewer than a hundredth.
    """
    X, y = datasets.fetch_odds(name, return_X_y=True)
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.4, stratify=y, random_state=seed
    )
    X, pool, y, y_pool = datasets.one_vs_rest(X, y, normal_class=1, test_size=0)
    if gamma_l == 0:
        return X, X_test, y, y_test
    wanted = round(len(X) * gamma_l / (1 - gamma_l))
    n_known = min(max(wanted, 1), len(pool))
    X, _, y, _ = datasets.labelled_anomalies(
        *(X, pool, y, y_pool), ratio=n_known / (len(X) + n_known), random_state=seed
    )
    return X, X_test, y, y_test


def images(
    name, normal, anomaly, gamma_l, gamma_p=0.0, n_train=None, seed=0, n_kinds=None
):
    """One class is normal; a few images of other classes are known anomalies.

    The normal images, `n_train` of them at most, are contaminated to `gamma_p` by
    unlabelled images of all other classes; a share `gamma_l` of the whole is then
    known, of the classes `anomaly`, or of `n_kinds` of them drawn at random (with None,
    of all classes). The test split stays complete. The classes of both sets are
    returned last: known kinds are those of the training images with -1.
    """
    X, y = detection.images(name, "train")
    X_test, y_test = detection.images(name, "test")
    one_vs_rest = partial(
        datasets.one_vs_rest, X, y, normal_class=normal, return_kinds=True
    )
    official = one_vs_rest(X_test=X_test, y_test=y_test)
    # Anomalies are drawn from the training split: a pool replaces the test set.
    split = list(one_vs_rest(test_size=0))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(split[0]))[:n_train]
    split[::2] = [part[chosen] for part in split[::2]]
    kinds = np.setdiff1d(y, normal) if anomaly is None else np.atleast_1d(anomaly)
    if n_kinds is not None:
        kinds = rng.choice(kinds, n_kinds, replace=False)
    if gamma_p > 0:
        split = datasets.contaminate(*split, contamination=gamma_p, random_state=seed)
    if gamma_l > 0:
        split = datasets.labelled_anomalies(
            *split, ratio=gamma_l, kinds=kinds.tolist(), random_state=seed
        )
    X_train, _, y_train, _, kinds_train, _ = split
    if gamma_l == 0:
        y_train = np.ones_like(y_train)
    return X_train, official[1], y_train, official[3], kinds_train, official[5]


PROBLEMS = {"table": table, "images": images}


# Baselines: fit(X, y), decision_function(X), higher for more normal ------------------


class Baseline:
    """Base of the baselines: flattens images, and scales features."""

    def __init__(self, seed):
        self.seed = seed

    def fit(self, X, y=None):
        known = np.zeros(len(X), bool) if y is None else np.asarray(y) == -1
        # Features of a table have different units, pixels have one in common.
        self.scaler_ = None if np.ndim(X) > 2 else StandardScaler().fit(X[~known])
        self._fit(self._prepared(X), known)
        return self

    def _prepared(self, X):
        if self.scaler_ is None:
            return X.reshape(len(X), -1).astype(np.float32) / 127.5 - 1
        return np.clip(self.scaler_.transform(X), -10, 10).astype(np.float32)


class Forest(Baseline):
    """An isolation forest of the samples that are not known anomalies."""

    def _fit(self, samples, known):
        self.forest_ = IsolationForest(random_state=self.seed).fit(samples[~known])

    def decision_function(self, X):
        return self.forest_.decision_function(self._prepared(X))


class DistanceRatio(Baseline):
    """Log ratio of distances to the nearest known anomaly and the nearest other sample.

    Without known anomalies, the negative distance to the nearest sample.
    """

    def _fit(self, samples, known):
        if samples.ndim == 2 and self.scaler_ is None:
            n = min(detection.N_COMPONENTS, *samples.shape)
            self.pca_ = PCA(n, random_state=0).fit(samples[~known])
            samples = self.pca_.transform(samples)
        nearest = NearestNeighbors(n_neighbors=1)
        # Its time is quadratic in the samples.
        self.normal_ = clone(nearest).fit(samples[~known][:20_000])
        self.known_ = clone(nearest).fit(samples[known]) if known.any() else None

    def decision_function(self, X):
        samples = self._prepared(X)
        if self.scaler_ is None:
            samples = self.pca_.transform(samples)
        normal = self.normal_.kneighbors(samples)[0][:, 0]
        if self.known_ is None:
            return -normal
        anomaly = self.known_.kneighbors(samples)[0][:, 0]
        tiny = np.finfo(np.float32).tiny
        return np.log(anomaly + tiny) - np.log(normal + tiny)


class Boosting(Baseline):
    """Gradient boosting of normal samples against known anomalies.

    Leaves of one sample, and no early stopping: on 16 tables with a hundredth of known
    anomalies, often fewer than ten, this was ahead on average of leaves of 20 (the
    default), of class weights and of stochastic boosting. With tens of thousands of
    samples (`smtp`, `http`) the leaves' values then diverge, with the defaults, too,
    and areas fall below one half; a small penalty prevents that, but costs much with
    one known anomaly among a hundred samples.
    """

    def _fit(self, samples, known):
        if not known.any():
            raise ValueError("GradientBoosting needs known anomalies: gamma_l > 0.")
        self.classes_ = HistGradientBoostingClassifier(
            min_samples_leaf=1,
            early_stopping=False,
            l2_regularization=0.1 if len(samples) > 10_000 else 0.0,
            random_state=self.seed,
        )
        self.classes_.fit(samples, ~known)

    def decision_function(self, X):
        return self.classes_.decision_function(self._prepared(X))


class PushedAutoencoder(Baseline):
    """An autoencoder that reconstructs normal samples, and known anomalies badly."""

    n_steps, batch_size, lr = 1000, 128, 1e-3

    def _fit(self, samples, known):
        d = samples.shape[1]
        latent = int(np.ceil(np.sqrt(d)))
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(self.seed)
            self.net_ = nn.Sequential(
                *(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()),
                *(nn.Linear(32, latent), nn.Linear(latent, 32), nn.ReLU()),
                *(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, d)),
            )
            normal, odd = (torch.as_tensor(samples[part]) for part in (~known, known))
            optimizer = torch.optim.Adam(self.net_.parameters(), self.lr)
            for _ in range(self.n_steps):
                loss = self._errors(self._draw(normal)).mean()
                if len(odd):
                    loss = loss + (1 / (self._errors(self._draw(odd)) + 0.1)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _draw(self, samples):
        return samples[torch.randint(len(samples), (self.batch_size,))]

    def _errors(self, samples):
        return (self.net_(samples) - samples).square().mean(1)

    def decision_function(self, X):
        with torch.inference_mode():
            parts = torch.as_tensor(self._prepared(X)).split(8192)
            return -torch.cat([self._errors(part) for part in parts]).numpy()


class DevNet(Baseline):
    """Deviation networks, from PyOD 3.6.7 with its loss corrected.

    PyOD takes 1 for an anomaly and 0 for a normal sample, and scores an anomaly higher.
    But ``fit`` calls ``deviation_loss(outputs, labels)``, which is defined as
    ``deviation_loss(y_true, y_pred)``, and its (n, 1) outputs are broadcast with (n,)
    labels. So it minimises a positive multiple of the mean output: the labels drop out,
    and all scores fall without bound, most of all far from the origin, hence areas
    below one half. `as_shipped` keeps that. Otherwise the loss is that of the paper,
    and so are the batches, half of which are known anomalies, and their number, 1000.
    """

    n_steps, batch_size, as_shipped = 1000, 512, False

    def _fit(self, samples, known):
        try:
            from pyod.models import devnet
        except ImportError as error:
            raise ImportError(
                "DevNet is a baseline from PyOD, which skanomaly does not need: "
                "python -m pip install pyod"
            ) from error
        if not known.any():
            raise ValueError("DevNet needs known anomalies: gamma_l > 0.")
        if not self.as_shipped:
            # Known anomalies are repeated until they are half of the samples.
            odd = np.resize(np.flatnonzero(known), np.count_nonzero(~known))
            index = np.r_[np.flatnonzero(~known), odd]
            samples, known = samples[index], known[index]
        n_batches = -(-len(samples) // self.batch_size)
        n_epochs = 50 if self.as_shipped else -(-self.n_steps // n_batches)
        self.net_ = devnet.DevNet(
            epochs=n_epochs, batch_size=self.batch_size, device="cpu"
        )
        with torch.random.fork_rng(devices=[]), self._quiet(), self._loss(devnet):
            torch.random.manual_seed(self.seed)
            self.net_.fit(samples, known.astype(int))

    @contextlib.contextmanager
    def _loss(self, devnet):
        """Make PyOD call its loss with the arguments in the right order."""
        shipped = devnet.deviation_loss
        if not self.as_shipped:
            devnet.deviation_loss = lambda out, y: shipped(y, out.squeeze(1))
        try:
            yield
        finally:
            devnet.deviation_loss = shipped

    @staticmethod
    @contextlib.contextmanager
    def _quiet():
        """Silence one line per epoch."""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield

    def decision_function(self, X):
        return -self.net_.decision_function(self._prepared(X))


class DevNetAsShipped(DevNet):
    as_shipped = True


BASELINES = {
    "IsolationForest": Forest,
    "DistanceRatio": DistanceRatio,
    "GradientBoosting": Boosting,
    "PushedAutoencoder": PushedAutoencoder,
    "DevNet": DevNet,
    "DevNetAsShipped": DevNetAsShipped,
}


def make_detector(name, seed, params=None):
    """Return a detector: one of ours by its class, or a baseline."""
    if name in BASELINES:
        detector = BASELINES[name](seed)
        vars(detector).update(params or {})
        return detector
    return getattr(skanomaly, name)(random_state=seed, **params or {})


# Metrics ----------------------------------------------------------------------------


def detect_labelled(problem, detector, seed, params=None, **settings):
    """Fit with labels, score, and return AUROC and average precision.

    If the kinds of anomalies are given, the kinds with labels and those without are
    also measured separately, each against all normal samples.
    """
    X_train, X_test, y_train, y_test, *kinds = PROBLEMS[problem](seed=seed, **settings)
    model = make_detector(detector, seed, params)
    known = y_train == -1
    train = X_train, y_train if known.any() else None
    scores, metrics = detection.fit_and_score(model, train, X_test, y_test)
    metrics |= {"n_train": len(X_train), "n_labelled": int(known.sum())}
    if kinds:
        metrics |= by_kind(*kinds, known, y_test, scores)
    return metrics


def by_kind(kinds_train, kinds_test, known, y_test, scores):
    """Return the AUROC of the kinds with labels, and of those without."""
    seen_kinds = np.unique(kinds_train[known])
    seen = np.isin(kinds_test, seen_kinds)
    metrics = {"seen_kinds": seen_kinds.tolist()}
    for name, chosen in (("auroc_seen", seen), ("auroc_unseen", ~seen)):
        tested = (y_test == 1) | chosen
        if (y_test[tested] == -1).any():
            metrics[name] = detector_roc_auc_score(y_test[tested], scores[tested])
    return metrics
