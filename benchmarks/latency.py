"""Time to score one sample, and a batch, beside the bare pass of the networks."""

from __future__ import annotations

import warnings
from statistics import median

import numpy as np
import torch
from sklearn.ensemble import IsolationForest

import skanomaly
from skanomaly.export import score_module

from .runner import Experiment, grid
from .tables import Metric, Table
from .timing import interleaved, ratios

N_ROUNDS = 21
SHAPES = {
    "table of 20 columns": (20,),
    "3 x 32 x 32": (3, 32, 32),
    "3 x 64 x 64": (3, 64, 64),
}
#: Short trainings: the time of a pass does not depend on the weights.
DETECTORS = {
    "HistoryAD": {"max_epochs": 1},
    "AABiGAN": {"max_epochs": 1},
    "TransferAD": {"max_epochs": 1, "transfer_epochs": 1},
    "JointEncoderGAN": {"max_epochs": 1},
    "ADRA": {"max_epochs": 1, "pretrain_epochs": 1},
}


def samples(shape, n):
    rng = np.random.default_rng(0)
    if len(shape) == 1:
        return rng.normal(size=(n, *shape))
    return rng.integers(0, 256, (n, *shape)).astype(np.uint8)


def latency(detector, data):
    """Interleave a detector and its networks, for one sample and for a batch."""
    n = 300 if len(SHAPES[data]) == 1 else 96
    X = samples(SHAPES[data], 120)
    model = getattr(skanomaly, detector)(**DETECTORS[detector], random_state=0)
    source = {"X_source": X[60:]} if detector == "TransferAD" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X[:60], **source)
    module, X = score_module(model), samples(SHAPES[data], n)
    rows = torch.from_numpy(X)

    @torch.inference_mode()
    def bare(batch):
        module(batch)

    ways = {
        "one": lambda: model.score_samples(X[:1]),
        "bare one": lambda: bare(rows[:1]),
        "batch": lambda: model.score_samples(X),
        "bare batch": lambda: bare(rows),
    }
    if X.ndim == 2:
        forest = IsolationForest(random_state=0).fit(X)
        ways["forest"] = lambda: forest.score_samples(X[:1])
    seconds = interleaved(ways, N_ROUNDS)
    ms = {way: 1e3 * median(times) for way, times in seconds.items()}
    return {
        "one_ms": ms["one"],
        "bare_one_ms": ms["bare one"],
        "one_ratio": median(ratios(seconds, "one", "bare one")),
        "batch_ms": ms["batch"],
        "batch_ratio": median(ratios(seconds, "batch", "bare batch")),
    } | ({"forest_ms": ms["forest"]} if "forest" in ms else {})


EXPERIMENTS = [
    Experiment(
        "latency",
        latency,
        grid(data=list(SHAPES), detector=list(DETECTORS)),
        alone=True,
    )
]

TABLES = [
    Table(
        "latency",
        ("data", "detector"),
        None,
        (
            Metric("one_ms", "One sample, ms", "median", 2),
            Metric("bare_one_ms", "Networks alone, ms", "median", 2),
            Metric("one_ratio", "Ratio", "median", 2),
            Metric("forest_ms", "IsolationForest, ms", "median", 2),
            Metric("batch_ms", "Batch, ms", "median", 1),
            Metric("batch_ratio", "Ratio to networks alone", "median", 2),
        ),
        "Data and detector",
    )
]
