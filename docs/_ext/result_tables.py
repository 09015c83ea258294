"""Writes the tables of results, which the benchmarks declare, as reStructuredText.

No number is typed: each is computed from ``benchmarks/results/<module>.jsonl``
when the documentation is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from rank_pictures import MIN_DETECTORS, MIN_SETS, draw

from benchmarks import runner
from benchmarks.experiments import TABLES
from benchmarks.tables import Metric, Record, Table

#: Share of the data sets that a detector needs to be ranked.
_MOST = 0.75
NOT_RUN = "*Not run yet.*\n"
COMPLETE = "Every experiment has been run.\n"
PICTURE = """
.. figure:: /tables/{file}_ranks.svg
   :alt: Mean ranks of the detectors

   Mean ranks by AUROC, the best on the left. Between detectors that a bar joins, the
   difference is not significant (Nemenyi's test, 5 %).
"""


def write(folder: Path, tables: Iterable[Table] = TABLES) -> None:
    """Write a file per table, and the list of experiments that have not been run."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for table in tables:
        text = render(table)
        if (picture := ranks_of(table)) is not None:
            write_if_new(folder / f"{table.file}_ranks.svg", picture)
            text += PICTURE.format(file=table.file)
        if text == NOT_RUN and table.description:
            missing.append(f"- {table.description}\n")
            text = f".. {table.experiment}: not run yet\n"
        write_if_new(folder / f"{table.file}.rst", text)
    write_if_new(folder / "not_run.rst", "".join(sorted(missing)) or COMPLETE)


def write_if_new(path: Path, text: str) -> None:
    """Write a text that has changed: Sphinx reads all files that are new."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def render(table: Table) -> str:
    """Return the reStructuredText of a table."""
    records = read(table)
    metrics = [m for m in table.metrics if any(m.key in r for r in records)]
    if not metrics:
        return NOT_RUN
    frame = frame_of(records, table)
    parts = [f"{table.description}\n"] if table.description else []
    if table.columns is None:
        parts.append(list_table(by_metric(frame, metrics), table.index_title))
    else:
        parts += [
            f"**{title(frame, metric)}**\n\n"
            + list_table(by_column(frame, metric), table.index_title)
            for metric in metrics
        ]
    return "\n".join([*parts, circumstances(records)])


def ranks_of(table: Table) -> str | None:
    """Return a picture of the ranks of detectors, if there are enough data sets."""
    if table.columns != "detector" or not table.metrics[0].average:
        return None
    records = read(table)
    if not records:
        return None
    metric = table.metrics[0]
    frame = frame_of(records, table).dropna(subset=metric.key)
    groups = frame.groupby(["row", "column"], observed=True)[metric.key]
    scores = groups.mean().unstack("column")
    # A detector that was not run on most of them would leave few data sets.
    scores = scores.loc[:, scores.notna().mean() > _MOST].dropna()
    if len(scores) < MIN_SETS or scores.shape[1] < MIN_DETECTORS:
        return None
    return draw(scores)


# Records ------------------------------------------------------------------------------


def read(table: Table) -> list[Record]:
    """Return the records of a table: keys of the cell, metrics, circumstances."""
    records = []
    for stored in runner.records(table.experiment):
        about = {key: stored[key] for key in ("name", "machine", "versions", "date")}
        about["run"] = about.pop("name")  # cells may have a name of their own
        parts = [stored["result"]]
        if table.nested:
            parts = [{table.nested: k} | part for k, part in stored["result"].items()]
        records += [{**stored["cell"], **part, **about} for part in parts]
    records = differing(records)
    if table.keep is not None:
        records = [record for record in records if table.keep(record)]
    if table.transform is not None:
        records = [table.transform(record) for record in records]
    return records


def differing(records: list[Record]) -> list[Record]:
    """Return the records with only those of their ``params`` that differ."""
    sets = [record["params"] or {} for record in records if "params" in record]
    differ = [k for k in dict.fromkeys(k for p in sets for k in p) if not same(sets, k)]
    return [
        r | {"params": {k: v for k, v in (r["params"] or {}).items() if k in differ}}
        if "params" in r
        else r
        for r in records
    ]


def same(dicts: list[dict], key: str) -> bool:
    """Return whether all have the same value under `key`."""
    return all(key in d and d[key] == dicts[0].get(key) for d in dicts)


def frame_of(records: list[Record], table: Table) -> pd.DataFrame:
    """Return a frame with the labels "row" and "column", and numbers by metric.

    Rows are in the natural order of their labels.
    """
    labels = [
        {"row": row_label(r, table.index), "column": label(r.get(table.columns))}
        for r in records
    ]
    columns = list(dict.fromkeys(metric.key for metric in table.metrics))
    numbers = [
        {key: r[key] for key in columns if isinstance(r.get(key), int | float)}
        for r in records
    ]
    frame = pd.DataFrame(labels).join(pd.DataFrame(numbers, columns=columns))
    order = list(dict.fromkeys(frame["column"]))
    if all(map(is_number, order)):
        order.sort(key=float)
    frame["column"] = pd.Categorical(frame["column"], order)
    return frame.sort_values("row", key=lambda names: names.map(natural), kind="stable")


def row_label(record: Record, keys: tuple[str, ...]) -> str:
    """Return the label of the row that a record belongs to."""
    words = [label(record[key]) for key in keys if record.get(key) is not None]
    return ", ".join(word for word in words if word) or "all"


def label(value) -> str:
    """Return a value of a cell as text."""
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return str(value)


def natural(name: str) -> tuple:
    """Return a key by which 9 comes before 10."""
    words = name.replace("=", " ").replace(",", " ").split()
    return tuple((0, float(w), "") if is_number(w) else (1, 0.0, w) for w in words)


def is_number(word: str) -> bool:
    """Return whether a word is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


# Tables -------------------------------------------------------------------------------


def summary(metric: Metric) -> Callable[[pd.Series], str]:
    """Return a function from the numbers of one entry to its text."""

    def text(numbers: pd.Series) -> str:
        scaled = numbers / metric.unit
        if metric.statistic == "count":
            return str(len(scaled))
        if metric.statistic == "median":
            return f"{scaled.median():,.{metric.digits}f}"
        mean = f"{scaled.mean():.{metric.digits}f}"
        if metric.statistic == "mean" or len(scaled) == 1:
            return mean
        return f"{mean} ± {scaled.std():.{metric.digits}f}"

    return text


def by_metric(frame: pd.DataFrame, metrics: list[Metric]) -> pd.DataFrame:
    """Return the entries by row and metric."""
    columns = {
        m.title: frame.dropna(subset=m.key).groupby("row")[m.key].agg(summary(m))
        for m in metrics
    }
    return pd.DataFrame(columns).reindex(frame["row"].unique())


def by_column(frame: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the entries of a metric by row and column, and the row of means."""
    groups = frame.dropna(subset=metric.key).groupby(["row", "column"], observed=True)
    numbers, order = groups[metric.key], frame["column"].cat.categories
    entries = numbers.agg(summary(metric)).unstack("column")
    entries = entries.reindex(index=frame["row"].unique(), columns=order)
    complete = numbers.mean().unstack("column").reindex(columns=order).dropna()
    if metric.average and len(complete) > 1:
        means = complete.mean().map(lambda mean: f"*{mean:.{metric.digits}f}*")
        entries.loc[f"*mean of {len(complete)}*"] = means
    return entries


def title(frame: pd.DataFrame, metric: Metric) -> str:
    """Return the title, without its part on seeds if each entry is one number."""
    shown = frame.dropna(subset=metric.key)
    several = shown.duplicated(["row", "column"]).any()
    return metric.title if several else metric.title.partition(" (")[0]


def list_table(entries: pd.DataFrame, index_title: str) -> str:
    """Return a list-table; a missing entry is left empty, an empty column left out.

    Columns that begin in a higher row come first.
    """
    shown = entries.dropna(axis="columns", how="all")
    begins = shown.notna().to_numpy().argmax(axis=0)
    shown = shown.iloc[:, begins.argsort(kind="stable")].fillna("")
    lines = [".. list-table::", "   :header-rows: 1", "   :class: results", ""]
    for first, *others in [[index_title, *shown.columns], *shown.itertuples()]:
        lines.append(f"   * - {first}")
        lines += [f"     - {entry}".rstrip() for entry in others]
    return "\n".join(lines) + "\n"


def circumstances(records: list[Record]) -> str:
    """Return the facts that a reader needs to judge the numbers."""
    machines = sorted(
        {
            f"{m['system']}, {m['cores']} cores"
            + (f", {m['gpu']}" if m.get("gpu") else ", no GPU")
            for m in (record["machine"] for record in records)
        }
    )
    torches = sorted({record["versions"]["torch"] for record in records})
    dates = sorted({record["date"] for record in records})
    n_runs = len({record["run"] for record in records})
    n_train = {record["n_train"] for record in records if "n_train" in record}
    seeds = {record["seed"] for record in records if "seed" in record}
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    facts = [
        "1 run" if n_runs == 1 else f"{n_runs} runs",
        *([f"{n_train.pop():,} training samples"] if len(n_train) == 1 else []),
        *([f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"] if seeds else []),
        when,
        " and ".join(machines),
        f"torch {', '.join(torches)}",
    ]
    return f"\n.. rst-class:: small\n\n{'; '.join(facts)}.\n"
