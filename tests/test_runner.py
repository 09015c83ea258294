"""Results of benchmarks: one line per cell, taken up where a run was stopped."""

import json

import pytest

from benchmarks import runner
from benchmarks.runner import Experiment, grid


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Return an experiment whose results go to a folder of the test."""
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "tqdm", lambda cells, **_: cells)
    return Experiment("squares", square, grid(x=[3, 10, 2]), alone=True)


def square(x):
    return {"square": x * x}


def lines(name):
    return (runner.RESULTS / f"{name}.jsonl").read_text().splitlines()


def test_a_cell_is_a_line_and_its_circumstances_stand_once(experiment):
    runner.run([experiment], "cpu", 1)
    assert len(lines("squares")) == 3
    assert len(lines("circumstances")) == 1
    found = runner.records("squares")
    assert [r["result"]["square"] for r in found] == [100, 4, 9]  # by name of the cell
    assert {"cell", "date", "machine", "versions"} <= found[0].keys()


def test_a_run_goes_on_where_it_was_stopped(experiment):
    half = experiment._replace(cells=experiment.cells[:2])
    runner.run([half], "cpu", 1)
    before = lines("squares")
    with (runner.RESULTS / "squares.jsonl").open("a") as file:
        file.write('{"cell": {"x": 2}, "resu')  # a kill, in the middle of a line
    runner.run([experiment], "cpu", 1)
    after = lines("squares")
    assert after[:2] == before
    assert [json.loads(line)["cell"]["x"] for line in after] == [3, 10, 2]
    runner.run([experiment], "cpu", 1)
    assert lines("squares") == after


def test_of_two_lines_of_a_cell_the_last_one_counts(experiment):
    runner.run([experiment], "cpu", 1)
    again = json.loads(lines("squares")[0])
    again["result"]["square"] = -1
    with (runner.RESULTS / "squares.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    assert [r["result"]["square"] for r in runner.records("squares")] == [100, 4, -1]


def test_other_profiles_are_left_alone(experiment):
    runner.run([experiment], "gpu", 1)
    assert runner.records("squares") == []
