"""Runs experiments cell by cell, and keeps one JSON file per cell.

An experiment is a function and a list of cells, its keyword arguments. A cell whose
file exists is not run again, so a run can be stopped and taken up at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from joblib import Parallel, delayed
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("skanomaly", "torch", "skorch", "scikit-learn", "numpy")


class Experiment(NamedTuple):
    """A function and the cells to call it with.

    Attributes
    ----------
    name : str
        Names the folder of the results.
    run : callable
        Takes a cell as keywords, returns a dict of figures.
    cells : list of dict
        What differs between the cells; JSON values.
    profile : {"cpu", "long", "gpu"}
        In which runs: "long" is for a CPU too, and for more seeds or steps.
    alone : bool
        Whether cells must not share the machine, since they measure time.
    """

    name: str
    run: Callable[..., dict]
    cells: list[dict]
    profile: str = "cpu"
    alone: bool = False


def grid(**axes: Iterable) -> list[dict[str, Any]]:
    """Return one cell per combination."""
    combinations = product(*axes.values())
    return [dict(zip(axes, values, strict=True)) for values in combinations]


def cell_path(experiment: Experiment, cell: dict) -> Path:
    """Return where a cell's result is kept: readable, and different for each."""
    text = json.dumps(cell, sort_keys=True)
    words = [str(value) for value in cell.values() if isinstance(value, str | int)]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(words)).strip("-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return RESULTS / experiment.name / f"{readable}_{digest}.json"


def run_cell(experiment: Experiment, cell: dict) -> None:
    """Run a cell and keep its result."""
    import torch

    # Side by side, cells share the cores; more threads would only get in the way.
    torch.set_num_threads(1)
    record = {
        "experiment": experiment.name,
        "cell": cell,
        "result": experiment.run(**cell),
        "machine": describe_machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
    }
    path = cell_path(experiment, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.rename(path)


def run(experiments: Iterable[Experiment], profile: str, n_jobs: int) -> None:
    """Run every cell of `profile` that has no result yet."""
    for experiment in experiments:
        if experiment.profile != profile:
            continue
        cells = [c for c in experiment.cells if not cell_path(experiment, c).exists()]
        jobs = (delayed(run_cell)(experiment, cell) for cell in cells)
        pool = Parallel(
            n_jobs=1 if experiment.alone else n_jobs, return_as="generator_unordered"
        )
        for _ in tqdm(pool(jobs), total=len(cells), desc=experiment.name):
            pass


def results(name: str) -> Iterator[dict]:
    """Yield the records of an experiment: each cell's keys and its figures."""
    for path in sorted((RESULTS / name).glob("*.json")):
        record = json.loads(path.read_text())
        yield {**record["cell"], **record["result"], "date": record["date"]}


def describe_machine() -> dict[str, Any]:
    """Return what a reader has to know to judge the figures."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
