"""Training steps of the detectors, in a former version of the package and in this one.

Each version trains in a process of its own. The two take turns, so that other work on
the machine affects both. A turn is one fit, of which the epochs are timed: the steps
with their batches, without scores and thresholds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from .runner import Experiment, grid
from .tables import Metric, Table

ROOT = Path(__file__).parents[1]
#: A folder with another version of the package, instead of one from the history.
FORMER = os.environ.get("SKANOMALY_FORMER")
COMMIT = "68abf41"
N_ROUNDS = 9

#: By kind of data. Detectors on tables are fitted with their defaults, those on images
#: for a few steps of each stage, in about the proportions of the defaults.
DETECTORS: dict[str, dict[str, dict[str, Any]]] = {
    "1,000 x 30": {
        "HistoryAD": {},
        "AABiGAN": {},
        "TransferAD": {},
        "JointEncoderGAN": {},
        "ADRA": {},
    },
    "3 x 32 x 32": {
        # The only save point is at the end: a long run has few of them.
        "HistoryAD": {"max_epochs": 8, "detector_epochs": 8, "alpha": 1.0},
        "AABiGAN": {"max_epochs": 3},
        "TransferAD": {"max_epochs": 10, "transfer_epochs": 10},
        "JointEncoderGAN": {"max_epochs": 2},
    },
}


def compare(data, detector, n_threads, commit):
    """Let two versions take turns, and return the median of the ratios of their times.

    On images, this version takes its turns with each `precision`, too.
    """
    ways = {"now": {}}
    if data != "1,000 x 30":
        ways |= {name: {"precision": name} for name in ("float32", "bfloat16")}
    rounds = []
    with former_version(commit) as folder, version(folder) as before, version() as now:
        for _ in range(N_ROUNDS + 1):
            turn = data, detector, n_threads
            times = {"former": before(*turn, {})}
            times |= {way: now(*turn, params) for way, params in ways.items()}
            rounds.append(times)
    del rounds[0]  # to warm up
    result: dict[str, Any] = {
        f"{way}_ms": median(times[way]["ms"] for times in rounds) for way in rounds[0]
    }
    for way in ways:
        found = sorted(times[way]["ms"] / times["former"]["ms"] for times in rounds)
        result[f"{way}_ratio"] = median(found)
        result[f"{way}_quartiles"] = [found[N_ROUNDS // 4], found[-1 - N_ROUNDS // 4]]
    return result | {"processor": rounds[0]["now"]["processor"]}


@contextmanager
def former_version(commit: str) -> Iterator[Path]:
    """Yield a folder with the package as it was at a commit."""
    if FORMER:
        yield Path(FORMER)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", commit, "skanomaly"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
        yield Path(folder)


@contextmanager
def version(folder: Path = ROOT) -> Iterator[Any]:
    """Yield a function that fits in a process which imports the package from there."""
    paths = os.pathsep.join(map(str, (folder, ROOT)))
    with subprocess.Popen(
        [sys.executable, "-c", "from benchmarks.steps import work; work()"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def turn(*arguments):
            print(json.dumps(arguments), file=process.stdin, flush=True)
            result = json.loads(process.stdout.readline())
            assert Path(result.pop("package")).is_relative_to(folder)
            return result

        yield turn
        process.stdin.close()


# In the process of a version --------------------------------------------------------


def work() -> None:
    """Fit once for each line of the standard input, and print the time of a step."""
    import skanomaly

    for line in sys.stdin:
        result = fit(*json.loads(line))
        result["package"] = skanomaly.__file__
        print(json.dumps(result), flush=True)


def fit(data: str, detector: str, n_threads: int, params: dict) -> dict[str, Any]:
    """Fit a detector, and return the milliseconds per step, and the processor."""
    import warnings

    import torch
    from skorch.callbacks import Callback

    import skanomaly

    from .latency import samples
    from .timing import time

    class Clock(Callback):
        """Adds up the time of epochs."""

        n_steps, seconds = 0, 0.0

        def on_epoch_begin(self, net, **kwargs):
            self.n_steps -= net.step_
            self.seconds -= time.perf_counter()

        def on_epoch_end(self, net, **kwargs):
            self.n_steps += net.step_
            self.seconds += time.perf_counter()

    torch.set_num_threads(n_threads)
    is_table = data == "1,000 x 30"
    X = samples((30,), 1000) if is_table else samples((3, 32, 32), 128)
    settings = DETECTORS[data][detector] | params
    clock = Clock()
    model = getattr(skanomaly, detector)(
        **settings, callbacks=[clock], calibration=None, random_state=0
    )
    half = len(X) // 2
    of_source = {"X_source": X[half:]} if detector == "TransferAD" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X[:half] if of_source else X, **of_source)
    return {
        "ms": 1e3 * clock.seconds / clock.n_steps,
        "processor": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "amx": torch.cpu._is_amx_tile_supported(),
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        },
    }


EXPERIMENTS = [
    Experiment(
        "steps",
        compare,
        [
            cell
            for data, detectors in DETECTORS.items()
            for cell in grid(
                data=[data], detector=list(detectors), n_threads=[1], commit=[COMMIT]
            )
        ],
        alone=True,
    )
]

TABLES = [
    Table(
        "steps",
        ("data", "detector"),
        None,
        (
            Metric("former_ms", "Before, ms per step", "median", 2),
            Metric("now_ms", "Now, ms per step", "median", 2),
            Metric("now_ratio", "Ratio", "median", 2),
            Metric("float32_ratio", "float32", "median", 2),
            Metric("bfloat16_ratio", "bfloat16", "median", 2),
        ),
        "Data and detector",
    )
]
