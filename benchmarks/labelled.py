"""Detection with a few labelled anomalies: problems, baselines and their measure.

A training set holds normal rows and known anomalies (-1 in ``y_train``). Everything
else in it is +1, the unlabelled anomalies of a polluted one too: that is what a
detector may know, as `skanomaly.datasets.labelled_anomalies` returns it.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

import skanomaly
from skanomaly import datasets
from skanomaly.metrics import detector_roc_auc_score

from . import detection

# Problems: X_train, X_test, y_train, y_test, and for images the kinds of both -------


def table(name, gamma_l, seed):
    """60 % to train, 40 % to test, with the share of anomalies of the whole.

    Of the anomalies to train on, those that make up `gamma_l` are known, and the
    others dropped. At least one is, and at most all: `cover`, `http` and `smtp` have
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

    The normal images, `n_train` of them at most, are polluted to `gamma_p` by
    unlabelled images of all other classes; `gamma_l` of the whole are then known, of
    the classes `anomaly`, or of `n_kinds` of them drawn at random (with None, of all
    classes). The test split stays whole. The classes of both sets come last: known
    kinds are those of the training images with -1.
    """
    X, y = detection.images(name, "train")
    X_test, y_test = detection.images(name, "test")
    one_vs_rest = partial(
        datasets.one_vs_rest, X, y, normal_class=normal, return_kinds=True
    )
    official = one_vs_rest(X_test=X_test, y_test=y_test)
    # What is drawn comes from the training split, so a pool stands in for the test.
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
    """What they share: rows of images, and columns brought to one scale."""

    def __init__(self, seed):
        self.seed = seed

    def fit(self, X, y=None):
        known = np.zeros(len(X), bool) if y is None else np.asarray(y) == -1
        # Columns of a table have units of their own, pixels have one in common.
        self.scaler_ = None if np.ndim(X) > 2 else StandardScaler().fit(X[~known])
        self._fit(self._rows(X), known)
        return self

    def _rows(self, X):
        if self.scaler_ is None:
            return X.reshape(len(X), -1).astype(np.float32) / 127.5 - 1
        return np.clip(self.scaler_.transform(X), -10, 10).astype(np.float32)


class Forest(Baseline):
    """An isolation forest of the rows that are not known anomalies."""

    def _fit(self, rows, known):
        self.forest_ = IsolationForest(random_state=self.seed).fit(rows[~known])

    def decision_function(self, X):
        return self.forest_.decision_function(self._rows(X))


class Boosting(Baseline):
    """Gradient boosting of normal rows against known anomalies.

    Leaves of one row, and no rows held out to stop early: on 16 tables with a
    hundredth of known anomalies, often fewer than ten, this was ahead on average of
    leaves of 20 (the default), of class weights and of stochastic boosting. Among
    tens of thousands of rows (`smtp`, `http`) the leaves' values then diverge, with
    the defaults too, and areas fall below one half; a small penalty mends that, but
    costs much where one anomaly is known among a hundred rows.
    """

    def _fit(self, rows, known):
        if not known.any():
            raise ValueError("GradientBoosting needs known anomalies: gamma_l > 0.")
        self.classes_ = HistGradientBoostingClassifier(
            min_samples_leaf=1,
            early_stopping=False,
            l2_regularization=0.1 if len(rows) > 10_000 else 0.0,
            random_state=self.seed,
        )
        self.classes_.fit(rows, ~known)

    def decision_function(self, X):
        return self.classes_.decision_function(self._rows(X))


class PushedAutoencoder(Baseline):
    """An autoencoder that reconstructs normal rows, and known anomalies badly."""

    n_steps, batch_size, lr = 1000, 128, 1e-3

    def _fit(self, rows, known):
        d = rows.shape[1]
        latent = int(np.ceil(np.sqrt(d)))
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(self.seed)
            self.net_ = nn.Sequential(
                *(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()),
                *(nn.Linear(32, latent), nn.Linear(latent, 32), nn.ReLU()),
                *(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, d)),
            )
            normal, odd = (torch.as_tensor(rows[part]) for part in (~known, known))
            optimizer = torch.optim.Adam(self.net_.parameters(), self.lr)
            for _ in range(self.n_steps):
                loss = self._errors(self._draw(normal)).mean()
                if len(odd):
                    loss = loss + (1 / (self._errors(self._draw(odd)) + 0.1)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _draw(self, rows):
        return rows[torch.randint(len(rows), (self.batch_size,))]

    def _errors(self, rows):
        return (self.net_(rows) - rows).square().mean(1)

    def decision_function(self, X):
        with torch.inference_mode():
            parts = torch.as_tensor(self._rows(X)).split(8192)
            return -torch.cat([self._errors(part) for part in parts]).numpy()


class DevNet(Baseline):
    """Deviation networks, from PyOD 3.6.7 with its loss put right.

    PyOD takes 1 for an anomaly and 0 for a normal row, and scores an anomaly higher.
    But ``fit`` calls ``deviation_loss(outputs, labels)``, which is defined as
    ``deviation_loss(y_true, y_pred)``, and its (n, 1) outputs meet (n,) labels. What
    it minimises is so a positive multiple of the mean output: the labels drop out,
    all scores fall without bound, and most so far from the origin, hence areas below
    one half. `as_shipped` keeps that. Otherwise the loss is that of the paper, and so
    are the batches, half of which are known anomalies, and their number, 1000.
    """

    n_steps, batch_size, as_shipped = 1000, 512, False

    def _fit(self, rows, known):
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
            # Each known anomaly as often as makes them half of the rows.
            odd = np.resize(np.flatnonzero(known), np.count_nonzero(~known))
            index = np.r_[np.flatnonzero(~known), odd]
            rows, known = rows[index], known[index]
        n_batches = -(-len(rows) // self.batch_size)
        n_epochs = 50 if self.as_shipped else -(-self.n_steps // n_batches)
        self.net_ = devnet.DevNet(
            epochs=n_epochs, batch_size=self.batch_size, device="cpu"
        )
        with torch.random.fork_rng(devices=[]), self._quiet(), self._loss(devnet):
            torch.random.manual_seed(self.seed)
            self.net_.fit(rows, known.astype(int))

    @contextlib.contextmanager
    def _loss(self, devnet):
        """Make PyOD hand outputs and labels to its loss in the order it expects."""
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
        return -self.net_.decision_function(self._rows(X))


class DevNetAsShipped(DevNet):
    as_shipped = True


BASELINES = {
    "IsolationForest": Forest,
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


# Measuring --------------------------------------------------------------------------


def detect_labelled(problem, detector, seed, params=None, **settings):
    """Fit with labels, score, and return AUROC and average precision.

    Where the kinds of anomalies are known, those that were among the labelled ones
    and those that were not are measured apart as well, each against all normal rows.
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
    """Return the AUROC of the kinds that had labels, and of those that had not."""
    seen_kinds = np.unique(kinds_train[known])
    seen = np.isin(kinds_test, seen_kinds)
    metrics = {"seen_kinds": seen_kinds.tolist()}
    for name, chosen in (("auroc_seen", seen), ("auroc_unseen", ~seen)):
        rows = (y_test == 1) | chosen
        if (y_test[rows] == -1).any():
            metrics[name] = detector_roc_auc_score(y_test[rows], scores[rows])
    return metrics
