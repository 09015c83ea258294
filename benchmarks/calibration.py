"""Calibration: false alarms at the rates that were asked for, and their price.

Fresh normal samples are flagged at several rates. Given n calibration samples, their
number among m fresh ones has a beta-binomial law; a cell is right if it is inside the
central 95 % of it. The same detector without calibration samples is fitted beside it.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
from scipy.stats import betabinom

import skanomaly
from skanomaly._conformal import rank_at
from skanomaly.exceptions import CalibrationWarning, FalseAlarmWarning
from skanomaly.metrics import detector_roc_auc_score

from .detection import TABLE_NAMES, images, table
from .runner import Experiment, grid
from .tables import Metric, Table

RATES = 0.01, 0.05, 0.1
LEVEL = 0.1
N_KNOWN = 5
N_IMAGES = 1000
#: The largest numbers of rows of a table: training, normal test rows, anomalies.
MOST = 20_000, 5_000, 2_000

#: Class, parameters and whether a few anomalies are known, by name.
DETECTORS = {
    "HistoryAD": ("HistoryAD", {}, False),
    "HistoryAD, one epoch": ("HistoryAD", {"max_epochs": 1}, False),
    "AABiGAN": ("AABiGAN", {}, False),
    "AABiGAN, known anomalies": ("AABiGAN", {}, True),
    "TransferAD": ("TransferAD", {}, False),
    "JointEncoderGAN": ("JointEncoderGAN", {}, False),
    "ADRA": ("ADRA", {}, False),
}


def some_rows(name, seed):
    """Return rows of a table to train on, and others to test."""
    X, X_test, _, y_test = table(name, seed)
    rng, (n_train, *n_test) = np.random.default_rng(seed), MOST
    tested = np.concatenate(
        [
            rng.permutation(np.flatnonzero(y_test == label))[:n]
            for label, n in zip((1, -1), n_test, strict=True)
        ]
    )
    return rng.permutation(X)[:n_train], X_test[tested], y_test[tested]


def one_class(name, normal, seed):
    """Return images of one class to train on, and others, of all classes, to test."""
    X, y = images(name, "train")
    X_test, y_test = images(name, "test")
    X = np.random.default_rng(seed).permutation(X[y == normal])
    # Those that are left of the training split make the test sharper.
    X_test = np.concatenate([X_test, X[N_IMAGES:]])
    y_test = np.where(y_test == normal, 1, -1)
    return X[:N_IMAGES], X_test, np.r_[y_test, np.ones(len(X) - N_IMAGES, int)]


def on_table(name, detector, seed):
    """Fit a detector on a table with and without calibration samples."""
    X, X_test, y_test = some_rows(name, seed)
    samples = with_known(X, X_test, y_test, detector)
    fits = {}
    # In turns, since the machine is shared.
    for calibration in ("auto", None) if seed % 2 else (None, "auto"):
        fits[calibration] = fitted(detector, seed, samples[:2], calibration)
    model, seconds, warned = fits["auto"]
    plain, plain_seconds, _ = fits[None]
    X_test, y_test = samples[2:]
    before = detector_roc_auc_score(y_test, plain.score_samples(X_test))
    metrics = false_alarms(model, X_test, y_test)
    return metrics | {
        "warned": warned,
        "auroc_without": before,
        "auroc_change": metrics["auroc"] - before,
        "fit_ratio": seconds / plain_seconds,
    }


def on_images(name, normal, detector, seed):
    """Fit a detector on images, with the default calibration."""
    X, X_test, y_test = one_class(name, normal, seed)
    model, seconds, warned = fitted(detector, seed, (X, None), "auto")
    metrics = false_alarms(model, X_test, y_test)
    return metrics | {"warned": warned, "fit_seconds": round(seconds, 1)}


def with_known(X, X_test, y_test, detector):
    """Return training samples and labels, and those to test."""
    if not DETECTORS[detector][2]:
        return X, None, X_test, y_test
    known = np.flatnonzero(y_test == -1)[:N_KNOWN]
    y = np.repeat([1, -1], [len(X), len(known)])
    X = np.concatenate([X, X_test[known]])
    return X, y, np.delete(X_test, known, 0), np.delete(y_test, known)


def fitted(detector, seed, samples, calibration):
    """Return a fitted detector, its seconds, and whether its threshold warned."""
    cls, params, _ = DETECTORS[detector]
    model = getattr(skanomaly, cls)(
        random_state=seed, calibration=calibration, **params
    )
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.fit(*samples)
    seconds = time.perf_counter() - start
    return model, seconds, any(w.category is FalseAlarmWarning for w in seen)


def false_alarms(model, X_test, y_test):
    """Return shares of fresh normal samples that are flagged, and their laws."""
    scores = model.score_samples(X_test)
    normal = y_test == 1
    n, m = len(model.calibration_scores_), int(normal.sum())
    metrics = {
        "auroc": detector_roc_auc_score(y_test, scores),
        "n_calibration": n,
        "n_fresh": m,
        "flagged by default": float((model.predict(X_test[normal]) == -1).mean()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        for rate in RATES:
            model.set_threshold(false_alarm_rate=rate)
            flagged = int((model.predict(X_test[normal]) == -1).sum())
            metrics |= judged(flagged, rate, n, m)
        found = model.predict_fdr(X_test, LEVEL) == -1
    metrics["false discoveries"] = float((found & normal).sum() / max(found.sum(), 1))
    metrics["found"] = float(found[~normal].mean())
    return metrics


def judged(flagged, rate, n, m):
    """Return the share that is flagged, and its place in the beta-binomial law."""
    out = {f"flagged at {rate}": flagged / m}
    if rank := rank_at(n, rate):
        law = betabinom(m, rank, n + 1 - rank)
        low, high = law.interval(0.95)
        out[f"inside at {rate}"] = float(low <= flagged <= high)
        out[f"above at {rate}"] = float(flagged > high)
        # Randomised, since it is discrete: uniform where the law holds.
        below, at = law.cdf(flagged - 1), law.pmf(flagged)
        u = np.random.default_rng(flagged + m).uniform()
        out[f"position at {rate}"] = float(below + u * at)
    return out


EXPERIMENTS = [
    Experiment(
        "calibration.tables",
        on_table,
        grid(seed=range(5), name=TABLE_NAMES, detector=DETECTORS),
    ),
    # Of the first five, fewer than 93 % of the runs of these were inside the law.
    Experiment(
        "calibration.more_seeds",
        on_table,
        grid(seed=range(5, 10), name=TABLE_NAMES, detector=["TransferAD", "ADRA"]),
    ),
    Experiment(
        "calibration.images",
        on_images,
        grid(
            seed=range(5),
            name=["mnist", "fashion_mnist"],
            normal=[3],
            detector=[name for name in DETECTORS if "known" not in name],
        ),
    ),
]

RUNS = Metric("auroc", "Runs", "count")
INSIDE = tuple(
    Metric(f"{key} at {rate}", f"{title} {rate:g}", "mean", 2)
    for key, title in (("inside", "Inside the law at"), ("position", "Position at"))
    for rate in RATES
)
FLAGGED = (
    *(Metric(f"flagged at {rate}", f"Flagged at {rate:g}", "mean") for rate in RATES),
    Metric("flagged by default", "By default", "mean"),
    Metric("false discoveries", "False discoveries", "mean"),
    Metric("found", "Anomalies found", "mean", 2),
)
COSTS = (
    Metric("auroc_without", "AUROC without calibration", "mean", 4),
    Metric("auroc", "AUROC with it", "mean", 4),
    Metric("auroc_change", "Change", "mean", 4),
    Metric("fit_ratio", "Time to fit, ratio", "median", 2),
    RUNS,
)
TABLES = [
    Table(experiment, ("detector",), None, metrics, "Detector", name=name)
    for experiment, metrics, name in (
        ("calibration.tables", INSIDE, ""),
        ("calibration.tables", FLAGGED, "calibration_flagged"),
        ("calibration.tables", COSTS, "calibration_costs"),
        ("calibration.more_seeds", (*INSIDE, RUNS), ""),
        ("calibration.images", INSIDE, ""),
        ("calibration.images", FLAGGED, "calibration_images_flagged"),
    )
]
