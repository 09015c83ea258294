"""Size of the data: quality against samples and steps, time and memory, other packages.

Fits of other packages need pyod, which is not among the requirements: without it their
cells are skipped.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Event, Thread

import numpy as np

import skanomaly

from .detection import fit_and_score, table, without_class
from .runner import Experiment, grid
from .tables import Metric, Table

SIZES = [100, 1000, 10_000, 100_000]
#: Rows that "a pass" of the second column sees, whatever the sample.
PASS = 100_000
N_COLUMNS = 30
#: Of one row; the median counts.
N_CALLS = 21
DETECTORS = ["HistoryAD", "AABiGAN", "TransferAD", "JointEncoderGAN", "ADRA"]
#: Modules of the classes of PyOD.
PEERS = {
    "AutoEncoder": "auto_encoder",
    "DeepSVDD": "deep_svdd",
    "ALAD": "alad",
    "AnoGAN": "anogan",
}


# Quality --------------------------------------------------------------------------


def problem(data, seed):
    if data != "mnist":
        return table(data, seed)
    X, X_test, y, y_test = without_class("mnist", 4, None, seed)
    X, X_test = (
        Z.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49) for Z in (X, X_test)
    )
    return X, X_test, y, y_test


def curve(data, detector, n, steps, seed):
    """Fit on a part of a large table; "pass" makes the steps of a pass over 10^5."""
    X, X_test, _, y_test = problem(data, seed)
    X = X[np.random.default_rng(seed).permutation(len(X))[:n]]
    epochs = "auto" if steps == "auto" else round(PASS / len(X))
    model = getattr(skanomaly, detector)(max_epochs=epochs, random_state=seed)
    return fit_and_score(model, [X], X_test, y_test)[1]


# Time and memory ------------------------------------------------------------------


def gaussians(n, seed):
    """Return rows around ten centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 3, (10, N_COLUMNS))
    rows = rng.normal(size=(n, N_COLUMNS)) + centres[rng.integers(0, 10, n)]
    return rows.astype(np.float32)


class Peak:
    """The peak of the memory that a context allocates, in MiB.

    Pages of a mapped file are not counted, as ``ru_maxrss`` does: the system takes them
    back when it needs them.
    """

    def __enter__(self):
        self.start = self.peak = self._allocated()
        self.ended = Event()
        self.thread = Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()
        self.mib = (self.peak - self.start) / 1024

    def _watch(self):
        while not self.ended.wait(0.01):
            self.peak = max(self.peak, self._allocated())

    @staticmethod
    def _allocated():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(
            int(line.split()[1]) for line in lines if line.startswith("RssAnon")
        )


def fit_from_map(detector, n):
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        X = np.lib.format.open_memmap(file.name, "w+", np.float32, (n, N_COLUMNS))
        for start in range(0, n, 100_000):
            X[start : start + 100_000] = gaussians(min(100_000, n - start), start)
        X.flush()
        del X
        X = np.load(file.name, mmap_mode="r")
        model = getattr(skanomaly, detector)(random_state=0)
        getattr(skanomaly, detector)(max_epochs=1).fit(X[:100])  # imports, pools
        with Peak() as fitting:
            start = time.perf_counter()
            model.fit(X)
            fitted = time.perf_counter()
        with Peak() as scoring:
            start_scoring = time.perf_counter()
            model.score_samples(X)
            scored = time.perf_counter()
        torch.set_num_threads(2)
        start_in_two = time.perf_counter()
        model.score_samples(X)
        scored_in_two = time.perf_counter()
    return {
        "fit_seconds": fitted - start,
        "fit_mib": fitting.mib,
        "rows_per_second": n / (scored - start_scoring),
        "rows_per_second_2": n / (scored_in_two - start_in_two),
        "score_mib": scoring.mib,
    }


def cost(detector, n):
    """Fit and score in a new process, from a memory map."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(fit_from_map, (detector, n))


def compare(detector):
    """Fit on 2,000 rows with the defaults; score one row, and 100,000."""
    package, _, name = detector.rpartition(" ")
    if package:
        sizes = {"n_features": N_COLUMNS} if name == "DeepSVDD" else {}
        model = getattr(import_module(f"pyod.models.{PEERS[name]}"), name)(**sizes)
    else:
        model = getattr(skanomaly, name)(random_state=0)
    X, X_test, seconds = gaussians(2000, 1), gaussians(100_000, 2), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        model.fit(X)
        fitted = time.perf_counter()
        model.decision_function(X_test)
        scored = time.perf_counter()
        for _ in range(N_CALLS):
            before = time.perf_counter()
            model.decision_function(X_test[:1])
            seconds.append(time.perf_counter() - before)
    return {
        "fit_seconds": fitted - start,
        "one_ms": 1e3 * median(seconds),
        "score_seconds": scored - fitted,
    }


EXPERIMENTS = [
    Experiment(
        "scale.curve",
        curve,
        [
            cell
            for seed in range(2)
            for steps, sizes in (("auto", SIZES), ("pass", [1000, PASS]))
            for cell in grid(
                seed=[seed],
                steps=[steps],
                data=["cover", "http", "shuttle", "mnist"],
                detector=["HistoryAD", "AABiGAN", "JointEncoderGAN"],
                n=sizes,
            )
        ],
    ),
    Experiment(
        "scale.cost",
        cost,
        grid(n=[10_000, 100_000, 1_000_000], detector=DETECTORS)
        + grid(n=[10_000_000], detector=["HistoryAD", "AABiGAN"]),
        alone=True,
    ),
    Experiment(
        "scale.peers",
        compare,
        grid(detector=[*DETECTORS, *(f"PyOD {name}" for name in PEERS)]),
        alone=True,
    ),
]


def with_setting(record):
    """Name a column by samples and steps."""
    is_pass = record["steps"] == "pass"
    return record | {"samples": f"{record['n']:,}" + (", a pass" if is_pass else "")}


TABLES = [
    Table(
        "scale.curve",
        ("data", "detector"),
        "samples",
        (Metric("auroc", "AUROC (mean over the seeds)", "mean"),),
        "Data and detector",
        transform=with_setting,
    ),
    Table(
        "scale.cost",
        ("detector", "n"),
        None,
        (
            Metric("fit_seconds", "Seconds to fit", "median", 1),
            Metric("fit_mib", "Memory to fit, MiB", "median", 0),
            Metric(
                "rows_per_second", "Thousand rows scored per second", "median", 0, 1e3
            ),
            Metric("rows_per_second_2", "In two threads", "median", 0, 1e3),
            Metric("score_mib", "Memory to score, MiB", "median", 0),
        ),
        "Detector and rows",
    ),
    Table(
        "scale.peers",
        ("detector",),
        None,
        (
            Metric("fit_seconds", "Seconds to fit 2,000 rows", "median", 1),
            Metric("one_ms", "One row, ms", "median", 2),
            Metric("score_seconds", "100,000 rows, seconds", "median", 2),
        ),
        "Detector",
    ),
]
