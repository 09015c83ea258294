"""Anomaly maps: how well they show the place of a defect.

Images of one kind are normal. Each of those held out gets a defect of each kind, at a
random place. The pixel AUROC tells the pixels of the defect from the others of the same
image by the map.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn.metrics import roc_auc_score

from .defects import fitted, problem, with_defect
from .runner import Experiment, grid
from .tables import Metric, Table

N_IMAGES = 100
KINDS = "spot", "scratch", "hole", "missing part"
DETECTORS = "HistoryAD", "AABiGAN", "TransferAD", "JointEncoderGAN", "ADRA"

#: A score notices a defect that lowers it by this share of the distance between the
#: quartiles of the scores of normal images.
_NOTICED = 0.5


def pixel_aurocs(maps, places):
    """Return the AUROC of each image, NaN for those without a changed pixel."""
    return np.array(
        [
            roc_auc_score(place.ravel(), values.ravel()) if place.any() else np.nan
            for values, place in zip(maps, places, strict=True)
        ]
    )


def measure(name, normal, detector, seed):
    """Return the mean pixel AUROC of each kind of defect."""
    X, X_test, _ = problem(name, normal, seed)
    model, seconds = fitted(detector, X, seed)
    X_test, metrics = X_test[:N_IMAGES], {"fit_seconds": seconds}
    usual = model.score_samples(X_test)
    least = _NOTICED * np.subtract(*np.percentile(usual, [75, 25]))
    noticed_by_kind, seconds = [], 0.0
    for kind in KINDS:
        odd = with_defect(X_test, kind, seed)
        start = time.perf_counter()
        maps = model.anomaly_map(odd)
        seconds += time.perf_counter() - start
        each = pixel_aurocs(maps, (odd != X_test).any(1))
        noticed = usual - model.score_samples(odd) > least
        noticed_by_kind.append(np.where(noticed, each, np.nan))
        metrics[kind] = np.nanmean(each)
    metrics["mean"] = np.mean([metrics[kind] for kind in KINDS])
    metrics["noticed"] = np.isfinite(noticed_by_kind).mean()
    if metrics["noticed"]:
        metrics["mean of noticed"] = np.nanmean(noticed_by_kind)
    metrics["map_milliseconds"] = 1e3 * seconds / len(X_test) / len(KINDS)
    return metrics


EXPERIMENTS = [
    Experiment(
        "maps",
        measure,
        grid(name=["fashion_mnist"], normal=[1], detector=DETECTORS, seed=[0]),
    )
]

TABLES = [
    Table(
        "maps",
        ("detector",),
        None,
        (
            *(Metric(kind, kind.capitalize(), "mean") for kind in (*KINDS, "mean")),
            Metric("noticed", "Share noticed", "mean", 2),
            Metric("mean of noticed", "Mean of noticed", "mean"),
        ),
        "Detector",
    )
]
