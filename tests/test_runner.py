"""Benchmarks: one line of results per cell, resumed runs, tables of results."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import engine_overhead, explain, runner, transfer
from benchmarks.experiments import EXPERIMENTS, MODULES, TABLES
from benchmarks.runner import Experiment, grid
from benchmarks.tables import Metric, Table

DOCS = Path(__file__).parents[1] / "docs"


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


def test_a_run_continues_where_it_was_stopped(experiment):
    half = experiment._replace(cells=experiment.cells[:2])
    runner.run([half], "cpu", 1)
    before = lines("squares")
    with (runner.RESULTS / "squares.jsonl").open("a") as file:
        file.write(
            '{"experiment": "squares", "cell": {"x": 2}, "resu'
        )  # a kill, in the middle of a line
    runner.run([experiment], "cpu", 1)
    after = lines("squares")
    assert after[:2] == before
    assert [json.loads(line)["cell"]["x"] for line in after] == [3, 10, 2]
    runner.run([experiment], "cpu", 1)
    assert lines("squares") == after


def test_a_cell_without_its_package_is_skipped(experiment):
    def run(x):
        if x == 10:
            raise ModuleNotFoundError("No module named 'pyod'")
        return square(x)

    with pytest.warns(UserWarning, match="'x': 10} is skipped: No module named 'pyod'"):
        runner.run([experiment._replace(run=run)], "cpu", 1)
    assert [json.loads(line)["cell"]["x"] for line in lines("squares")] == [3, 2]


def test_a_deleted_line_is_made_again(experiment):
    """The other lines stay, even if the editor has left the last one without an end."""
    runner.run([experiment], "cpu", 1)
    before = lines("squares")
    for end in ("\n", ""):
        kept = [before[0], before[2]]
        (runner.RESULTS / "squares.jsonl").write_text("\n".join(kept) + end)
        assert len(runner.records("squares")) == 2
        runner.run([experiment], "cpu", 1)
        assert lines("squares") == [*kept, before[1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["defects", "--profile", "gpu"], "nothing of defects is in the profile gpu"),
        (["defects.tables"], "no experiment defects.tables"),
    ],
)
def test_a_command_that_runs_nothing_says_so(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit):
        runpy.run_module("benchmarks", run_name="__main__")
    assert message in capsys.readouterr().err


def test_of_two_lines_of_a_cell_the_last_one_counts(experiment):
    runner.run([experiment], "cpu", 1)
    again = json.loads(lines("squares")[0])
    again["result"]["square"] = -1
    with (runner.RESULTS / "squares.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    assert [r["result"]["square"] for r in runner.records("squares")] == [100, 4, -1]


def test_experiments_of_a_module_share_a_file(experiment):
    other = experiment._replace(name="squares.negative", run=lambda x: {"square": -x})
    runner.run([experiment, other], "cpu", 1)
    assert len(lines("squares")) == 6
    assert [r["result"]["square"] for r in runner.records("squares")] == [100, 4, 9]
    found = [r["result"]["square"] for r in runner.records("squares.negative")]
    assert found == [-10, -2, -3]


def test_names_begin_with_the_module():
    for module in MODULES:
        name = module.__name__.rpartition(".")[2]
        of_module = {e.name for e in module.EXPERIMENTS}
        assert {one.partition(".")[0] for one in of_module} == {name}
        assert {table.experiment for table in module.TABLES} <= of_module


def test_every_line_of_the_results_belongs_to_an_experiment():
    names = {e.name for e in EXPERIMENTS}
    for file in runner.RESULTS.glob("*.jsonl"):
        if file.stem != "circumstances":
            stored = file.read_text().splitlines()
            found = {json.loads(line)["experiment"] for line in stored}
            assert found <= names
            assert {name.partition(".")[0] for name in found} == {file.stem}


def test_other_profiles_are_left_alone(experiment):
    runner.run([experiment], "gpu", 1)
    assert runner.records("squares") == []


# Experiments on internals of the package, which other tests do not see ----------------

SMALLEST = {
    "aa_bigan_step": {"batch_size": 8, "n_known": 4},
    "joint_encoder_gan_step": {
        "width": 4,
        "latent_dim": 8,
        "n_colours": 1,
        "batch_size": 8,
        "fading": True,
    },
}


@pytest.mark.parametrize("name", SMALLEST)
def test_steps_are_compared(name, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # not of other tests
    experiment = next(e for e in EXPERIMENTS if e.name == name)
    once = {"n_threads": 1, "n_steps": 1, "n_rounds": 1}
    assert all(value > 0 for value in experiment.run(**SMALLEST[name], **once).values())


def test_the_overhead_of_the_engine_is_measured(monkeypatch):
    monkeypatch.setattr(engine_overhead, "N_STEPS", 2)
    monkeypatch.setattr(engine_overhead, "N_ROUNDS", 4)
    assert engine_overhead.overhead(batch_size=4)["ratio"] > 0


def test_scoring_is_compared_with_a_bare_autoencoder():
    assert transfer.scoring("table", n_samples=64, n_rounds=1)["ratio"] > 0


@pytest.mark.parametrize("kind", explain.PLANTS)
def test_plants_are_in_the_columns_that_are_said(kind):
    rng = np.random.default_rng(0)
    a = rng.normal(size=400)
    X = np.c_[rng.normal(size=400), a, a + rng.normal(scale=0.1, size=400)]
    rows, columns = explain.PLANTS[kind](X[:300], X[300:], rng)
    changed = rows != X[300:]
    of_plant = np.take_along_axis(changed, columns, 1).sum(1)
    assert (changed.sum(1) == of_plant).all()
    assert (of_plant == (2 if kind == "moved" else 1)).all()
    assert np.isin(rows[changed], X[:300]).all()
    off_the_line = np.abs(rows[:, 2] - rows[:, 1])
    if kind == "broken":
        assert off_the_line.min() > 0.5
    if kind == "moved":
        assert off_the_line.max() < 0.5
        assert np.abs(rows[:, 1]).min() > 2


# Tables -------------------------------------------------------------------------------


def test_every_experiment_has_a_table():
    shown = {table.experiment for table in TABLES}
    assert shown == {experiment.name for experiment in EXPERIMENTS}


def test_every_table_is_in_the_documentation():
    pages = "".join(page.read_text() for page in DOCS.rglob("*.rst"))
    included = re.findall(r"include:: (?:\.\./)?tables/(\w+)\.rst", pages)
    names = [table.file for table in TABLES]
    assert sorted(included) == sorted([*names, "not_run"])


@pytest.fixture
def write(tmp_path, monkeypatch, experiment):
    """Return a function that renders one table of results that it is given."""
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "path", [str(DOCS / "_ext"), *sys.path])
    import result_tables

    def written(results, table):
        cells = [cell for cell, _ in results]
        by_cell = {runner.cell_name(cell): result for cell, result in results}
        run = Experiment(
            "squares", lambda **cell: by_cell[runner.cell_name(cell)], cells, alone=True
        )
        runner.run([run], "cpu", 1)
        result_tables.write(tmp_path, [table])
        return (tmp_path / "squares.rst").read_text()

    return written


def test_a_table_by_row_and_column(write):
    results = [
        ({"n": 10, "way": "a", "seed": 0}, {"auroc": 0.5}),
        ({"n": 10, "way": "a", "seed": 1}, {"auroc": 0.7}),
        ({"n": 10, "way": "b", "seed": 0}, {"auroc": 0.9}),
        ({"n": 9, "way": "a", "seed": 0}, {"auroc": 1.0}),
        ({"n": 9, "way": "b", "seed": 0}, {"auroc": 0.25}),
        ({"n": 9, "way": "c", "seed": 0}, {"other": 3}),
    ]
    metric = Metric("auroc", "AUROC (over the seeds)", average=True)
    text = write(results, Table("squares", ("n",), "way", (metric,), "Number"))
    head, _, below = text.partition("   * - ")
    assert head.startswith("**AUROC (over the seeds)**\n\n.. list-table::\n")
    table, _, facts = below.partition("\n\n")
    cells = [line.removeprefix("   * - ").strip(" -") for line in table.split("\n")]
    assert cells == [
        *("Number", "a", "b"),
        *("9", "1.000", "0.250"),
        *("10", "0.600 ± 0.141", "0.900"),
    ]
    assert facts.strip().split("\n")[-1].startswith("6 runs; 2 seeds; ")


def test_means_are_over_complete_rows(write):
    results = [
        ({"n": n, "way": way}, {"auroc": n / 10})
        for n, way in ((1, "a"), (1, "b"), (3, "a"), (3, "b"), (5, "a"))
    ]
    metric = Metric("auroc", "AUROC (over the seeds)", average=True)
    text = write(results, Table("squares", ("n",), "way", (metric,), "Number"))
    assert text.startswith("**AUROC**\n")  # each entry is one number
    assert "   * - *mean of 2*\n     - *0.200*\n     - *0.200*\n" in text


def test_a_table_with_a_column_per_metric(write):
    results = [
        ({"name": "x"}, {"small": {"us": 2e6}, "large": {"us": 4e6, "bytes": 2**20}})
    ]
    metrics = (
        Metric("bytes", "MiB", "median", 2, unit=2**20),
        Metric("us", "Time, µs", "median", 0),
        Metric("us", "Runs", "count"),
        Metric("absent", "Not there"),
    )
    table = Table("squares", ("size",), None, metrics, "Size", nested="size")
    text = write(results, table)
    assert "   * - Size\n     - MiB\n     - Time, µs\n     - Runs\n" in text
    assert "   * - large\n     - 1.00\n     - 4,000,000\n     - 1\n" in text
    assert "   * - small\n     -\n     - 2,000,000\n     - 1\n" in text


def test_a_table_without_results_is_listed(write, tmp_path):
    table = Table("squares", ("n",), None, (), "Number", description="Squares.")
    assert write([], table) == ".. squares: not run yet\n"
    assert (tmp_path / "not_run.rst").read_text() == "- Squares.\n"


def test_ranks_of_detectors_over_data_sets(monkeypatch):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "path", [str(DOCS / "_ext"), *sys.path])
    import rank_pictures

    scores = pd.DataFrame(
        {"a": [0.9, 0.8, 0.7, 0.9], "b": [0.8, 0.8, 0.6, 0.8], "c": [0.1, 0.2, 0.3, 0]}
    )
    ranks = rank_pictures.mean_ranks(scores)
    assert ranks.to_dict() == {"a": 1.125, "b": 1.875, "c": 3.0}
    # Table 5 of Demsar (2006): 2.343 for three, 2.850 for six classifiers.
    for n, q in ((3, 2.343), (6, 2.850)):
        expected = q * (n * (n + 1) / (6 * 10)) ** 0.5
        found = rank_pictures.critical_difference(n, 10)
        assert found == pytest.approx(expected, rel=2e-3)
    assert rank_pictures.cliques(ranks, 0.8) == [(1.125, 1.875)]
    assert rank_pictures.cliques(ranks, 1.2) == [(1.125, 1.875), (1.875, 3.0)]
    picture = rank_pictures.draw(scores)
    assert all(f"{name} (" in picture for name in scores)
