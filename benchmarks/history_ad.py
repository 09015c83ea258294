"""HistoryAD: tables, digits, KMNIST, noise, the number of save points.

The CPU profile is sized to end within half an hour on two cores; the GPU profile
has the sizes of the paper.
"""

from __future__ import annotations

import numpy as np

from skanomaly import HistoryAD
from skanomaly.metrics import detector_roc_auc_score

from .detection import (
    RIVALS,
    RIVALS_OF_IMAGES,
    TABLE_NAMES,
    detect,
    mnist_against_kmnist,
)
from .runner import Experiment, grid
from .tables import DETECTION, DETECTION_COLUMNS, Metric, Table

N_TRAIN = 8000  # images to train on, in the CPU profile
EVERYONE = ["HistoryAD", *RIVALS]
OF_IMAGES = ["HistoryAD", *RIVALS_OF_IMAGES]

# The settings that the paper states.
PAPER = {
    "time_unit": "epoch",
    "alpha": 1.0,
    "beta": 3.0,
    "max_epochs": 5,
    "n_estimators": 1,
    "n_critic": 5,
    "init": "average",
    "batch_size": 64,
    "width": 64,
    "latent_dim": 128,
}

# One change of the defaults at a time, on the tables.
ABLATION = {
    "defaults": {},
    "one history": {"n_estimators": 1},
    "usual start": {"spread": None},
    "start 2": {"spread": 2.0},
    "start 10": {"spread": 10.0},
    "beta 0": {"beta": 0.0},
    "beta 3": {"beta": 3.0},
    "case 2": {"wide_latent": 2.0},
    "detector trained": {"detector_epochs": 10},
    "detector from scratch": {
        "init": "random",
        "detector_epochs": 40,
        "detector_lr": 1e-3,
    },
}
ABLATION_TABLES = [
    *("cardio", "glass", "optdigits", "pageblocks", "satellite"),
    *("satimage-2", "spambase", "thyroid", "wbc", "wine"),
]


def ablate(variant, name, seed):
    """Run a variant of the defaults on a table."""
    return detect("table", "HistoryAD", seed, ABLATION[variant], name=name)


def noise(n_train, seed, params=None):
    """Scores of MNIST test images under Gaussian noise (Fig. 6)."""
    X_train, X, *_ = mnist_against_kmnist(n_train, seed)
    detector = HistoryAD(random_state=seed, **params or {}).fit(X_train)
    rng = np.random.default_rng(seed)
    X = X[:2000].astype(float)
    clean, metrics = detector.score_samples(X), {}
    for sigma in (0, 20, 40, 60, 80, 100):
        noisy = np.clip(X + sigma * rng.standard_normal(X.shape), 0, 255)
        scores = detector.score_samples(noisy)
        y = np.repeat([1, -1], len(X))
        metrics[f"sigma {sigma}"] = {
            "mean_score": float(scores.mean()),
            "auroc": detector_roc_auc_score(y, np.r_[clean, scores]),
        }
    return metrics


def saves(n_saves, n_train, seed, params=None):
    """MNIST against KMNIST by the number of save points (Fig. 9)."""
    # As many steps as by default: nine tenths of the samples train.
    n_epochs = round(3000 / (0.9 * n_train // 32))
    params = {
        "max_epochs": n_epochs,
        "saves_per_epoch": max(n_saves // n_epochs, 1),
        **(params or {}),
    }
    return detect("mnist_against_kmnist", "HistoryAD", seed, params, n_train=n_train)


DIGITS = range(10)
MNIST = {"problem": ["without_class"], "name": ["mnist"], "anomaly": DIGITS}
EXPERIMENTS = [
    Experiment(
        "history_ad.tables",
        detect,
        grid(problem=["table"], name=TABLE_NAMES, detector=EVERYONE, seed=range(5)),
    ),
    Experiment(
        "history_ad.mnist",
        detect,
        grid(**MNIST, n_train=[N_TRAIN], detector=OF_IMAGES, seed=[0]),
    ),
    Experiment(
        "history_ad.digits",
        detect,
        grid(
            problem=["digits_without"],
            anomaly=DIGITS,
            detector=OF_IMAGES,
            seed=range(2),
        ),
    ),
    Experiment(
        "history_ad.kmnist",
        detect,
        grid(
            problem=["mnist_against_kmnist"],
            n_train=[N_TRAIN],
            detector=OF_IMAGES,
            seed=[0],
        ),
    ),
    Experiment("history_ad.noise", noise, grid(n_train=[N_TRAIN], seed=[0])),
    Experiment(
        "history_ad.saves",
        saves,
        grid(n_saves=[13, 65, 260], n_train=[N_TRAIN], seed=[0]),
    ),
    Experiment(
        "history_ad.ablation",
        ablate,
        grid(variant=list(ABLATION), name=ABLATION_TABLES, seed=[0]),
    ),
    Experiment(
        "history_ad.mnist_paper",
        detect,
        grid(
            **MNIST,
            n_train=[54_000],
            detector=["HistoryAD"],
            seed=[0],
            params=[
                PAPER | {"detector_epochs": epochs, "wide_latent": wide}
                for epochs, wide in ((5, None), (5, 2.0), (0, None))
            ],
        ),
        profile="gpu",
    ),
    Experiment(
        "history_ad.kmnist_paper",
        detect,
        grid(
            problem=["mnist_against_kmnist"],
            n_train=[60_000],
            detector=["HistoryAD"],
            seed=range(3),
            params=[PAPER | {"detector_epochs": 5}],
        ),
        profile="gpu",
    ),
]

TABLES = [
    Table("history_ad.tables", ("name",), "detector", DETECTION, "Table"),
    Table("history_ad.mnist", ("anomaly",), "detector", DETECTION, "Digit"),
    Table("history_ad.digits", ("anomaly",), "detector", DETECTION, "Digit"),
    Table(
        "history_ad.kmnist",
        ("detector", "params"),
        None,
        DETECTION_COLUMNS,
        "Detector",
    ),
    Table(
        "history_ad.mnist_paper",
        ("anomaly",),
        "params",
        DETECTION,
        "Digit",
        description="HistoryAD on MNIST, with the settings that the paper states, on a "
        "GPU; the others are our choice (:ref:`history_ad`).",
    ),
    Table(
        "history_ad.kmnist_paper",
        ("detector", "params"),
        None,
        DETECTION_COLUMNS,
        "Detector",
        description="HistoryAD on MNIST against Kuzushiji-MNIST, with the settings "
        "that the paper states, on a GPU.",
    ),
    Table(
        "history_ad.noise",
        ("noise",),
        None,
        (
            Metric("mean_score", "Mean of score_samples"),
            Metric("auroc", "AUROC against images without noise"),
        ),
        "Noise (of 255)",
        nested="noise",
    ),
    Table(
        "history_ad.saves",
        ("n_saves", "params"),
        None,
        DETECTION_COLUMNS,
        "Save points",
    ),
    Table(
        "history_ad.ablation",
        ("variant",),
        None,
        (
            Metric("auroc", "AUROC, mean over the tables", "mean"),
            Metric("average_precision", "Average precision, mean", "mean"),
            Metric("coverage", "Coverage, mean", "mean"),
            Metric("fit_seconds", "Seconds to fit, median", "median", 1),
            Metric("auroc", "Runs", "count"),
        ),
        "Variant",
    ),
]
