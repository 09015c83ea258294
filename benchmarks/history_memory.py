"""Peak memory of HistoryAD's history, against keeping snapshots of the networks."""

from __future__ import annotations

import resource
from copy import deepcopy
from multiprocessing import get_context

import numpy as np
from skorch.callbacks import Callback

from .runner import Experiment, grid
from .tables import Metric, Table

N_EPOCHS, EPOCH_STEPS, BATCH_SIZE = 5, 100, 64


class Snapshots(Callback):
    """Keeps copies of both networks at every save point."""

    def __init__(self, every):
        self.every = every
        self.kept = []

    def on_batch_end(self, net, **kwargs):
        if hasattr(net, "generator_") and net.step_ % self.every == 0:
            states = net.generator_.state_dict(), net.critic_.state_dict()
            self.kept.append(deepcopy(states))


def fit_and_measure(way, n_saves):
    from skanomaly import HistoryAD

    X = np.random.default_rng(0).normal(size=(EPOCH_STEPS * BATCH_SIZE * 10 // 9, 64))
    every = N_EPOCHS * EPOCH_STEPS // n_saves
    detector = HistoryAD(
        n_estimators=1,
        width=512,
        max_epochs=N_EPOCHS,
        saves_per_epoch=n_saves // N_EPOCHS if way == "running sum" else 1,
        callbacks=[Snapshots(every)] if way == "snapshots" else None,
        detector_epochs=0,
        random_state=0,
    )
    HistoryAD(max_epochs=1, detector_epochs=0).fit(X[:100])  # warm up: imports, pools
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    detector.fit(X)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peak_memory(way, n_saves):
    """Fit in a new process, since the peak of a process never falls."""
    with get_context("spawn").Pool(1) as pool:
        return {"peak_mib": pool.apply(fit_and_measure, (way, n_saves))}


EXPERIMENTS = [
    Experiment(
        "history_memory",
        peak_memory,
        grid(way=["running sum", "snapshots"], n_saves=[10, 50, 500]),
        alone=True,
    )
]

PEAK = Metric("peak_mib", "Peak memory above that before the fit, MiB", "median", 0)
TABLES = [Table("history_memory", ("n_saves",), "way", (PEAK,), "Save points")]
