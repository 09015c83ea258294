"""Runs experiments cell by cell, and keeps one file of JSON lines per module.

An experiment is a function and a list of cells, its keyword arguments. A cell that has
a line is not run again, so that a run can be stopped and resumed at any time. Machine
and versions are in a file of their own, and lines refer to them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from joblib import Parallel, delayed
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
_CIRCUMSTANCES = "circumstances"
PACKAGES = ("skanomaly", "torch", "skorch", "scikit-learn", "numpy")


class Experiment(NamedTuple):
    """A function and the cells to call it with.

    Attributes
    ----------
    name : str
        Name of the module, whose file has the results, and of the experiment among
        those of the module: "adra.memory", or "defects" for the only one.
    run : callable
        Takes a cell as keywords, returns a dict of metrics.
    cells : list of dict
        The arguments of each cell, JSON values.
    profile : {"cpu", "long", "gpu"}
        The runs that include it; "long" is for a CPU, too, with more seeds or steps.
    alone : bool
        Whether cells measure time or memory, and must not share the machine.
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


def cell_name(cell: dict) -> str:
    """Return a readable and unique name of a cell; results are sorted by it."""
    text = json.dumps(cell, sort_keys=True)
    words = [str(value) for value in cell.values() if isinstance(value, str | int)]
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(words)).strip("-")
    return f"{readable}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def run_cell(experiment: Experiment, cell: dict) -> None:
    """Run a cell and keep its result, unless it needs a package that is missing."""
    import torch

    # Parallel cells share the cores, and more threads would slow them down.
    torch.set_num_threads(1)
    try:
        result = experiment.run(**cell)
    except ImportError as error:
        warnings.warn(f"{experiment.name} {cell} is skipped: {error}", stacklevel=2)
        return
    record = {
        "experiment": experiment.name,
        "cell": cell,
        "result": result,
        "date": date.today().isoformat(),
        "circumstances": _circumstances(),
    }
    _append(_path(experiment.name), record)


def run(experiments: Iterable[Experiment], profile: str, n_jobs: int) -> None:
    """Run every cell of `profile` that has no result yet."""
    for experiment in experiments:
        if experiment.profile != profile:
            continue
        done = {cell_name(line["cell"]) for line in _lines_of(experiment.name)}
        cells = [cell for cell in experiment.cells if cell_name(cell) not in done]
        jobs = (delayed(run_cell)(experiment, cell) for cell in cells)
        pool = Parallel(
            n_jobs=1 if experiment.alone else n_jobs, return_as="generator_unordered"
        )
        for _ in tqdm(pool(jobs), total=len(cells), desc=experiment.name):
            pass


def records(name: str) -> list[dict[str, Any]]:
    """Return the records of an experiment, sorted by cell, the last one of each.

    Parameters
    ----------
    name : str
        Name of the experiment.

    Returns
    -------
    list of dict
        "name" and "cell", "result", "date", "machine" and "versions" of each.
    """
    known = {line.pop("id"): line for line in _lines(_path(_CIRCUMSTANCES))}
    found = {
        cell_name(line["cell"]): line | known[line.pop("circumstances")]
        for line in _lines_of(name)
    }
    return [{"name": key, **found[key]} for key in sorted(found)]


def _circumstances() -> str:
    """Return the identifier of machine and versions, which are written once."""
    facts = {
        "machine": describe_machine(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    text = json.dumps(facts, sort_keys=True)
    identifier = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = _path(_CIRCUMSTANCES)
    if identifier not in {line["id"] for line in _lines(path)}:
        _append(path, {"id": identifier, **facts})
    return identifier


def _path(name):
    """Return the file of the module that an experiment belongs to."""
    return RESULTS / f"{name.partition('.')[0]}.jsonl"


def _lines_of(name):
    """Return the lines of an experiment."""
    return [line for line in _lines(_path(name)) if line["experiment"] == name]


def _lines(path):
    """Return the records of a file, without a last line that a kill has cut short."""
    if not path.exists():
        return []
    *whole, last = path.read_text().split("\n")
    if _is_record(last):
        whole.append(last)
    return [json.loads(line) for line in whole if line]


def _append(path, record):
    """Write a line with a single call, since several processes may write at a time."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        start = ""
        if file.tell() and not _ends_on_a_line(file):
            last = path.read_bytes().rpartition(b"\n")[2]
            if _is_record(last):  # some editors end no last line
                start = "\n"
            else:  # the rest of a line of a killed process would spoil this one
                file.truncate(file.tell() - len(last))
        file.write(f"{start}{json.dumps(record)}\n".encode())


def _ends_on_a_line(file):
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _is_record(line):
    """Return whether a line is complete: no part of an object is one."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def describe_machine() -> dict[str, Any]:
    """Return the facts on this machine."""
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
