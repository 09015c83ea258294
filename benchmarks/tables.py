"""Declarations of the tables that show results.

An experiment declares its tables beside its cells, in ``TABLES`` of its module.
``docs/_ext/result_tables.py`` renders them when the documentation is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Record = dict[str, Any]


class Metric(NamedTuple):
    """A number in the results, and its appearance in a table.

    Attributes
    ----------
    key : str
        Its name in the files of results.
    title : str
        Title of the table or column. A part in brackets is about several seeds; it is
        left out where each entry is a single number.
    statistic : {"mean and deviation", "mean", "median", "count"}
        Summary of the numbers of all seeds.
    digits : int
        Number of decimals.
    unit : float
        Divides the numbers.
    average : bool
        Whether a last row has the mean over the rows above.
    """

    key: str
    title: str
    statistic: Literal["mean and deviation", "mean", "median", "count"] = (
        "mean and deviation"
    )
    digits: int = 3
    unit: float = 1.0
    average: bool = False


class Table(NamedTuple):
    """One table per metric of an experiment, or one with a column per metric.

    Attributes
    ----------
    experiment : str
        Name of the experiment.
    index : tuple of str
        Keys of a cell that name a row; keys that no cell has are left out.
    columns : str or None
        Key of a cell that names a column. With None, the metrics are the columns.
    metrics : tuple of Metric
        Metrics to show; those that no result has are left out.
    index_title : str
        Title of the first column.
    nested : str or None
        For results that hold a dict of metrics for each of several settings: the key
        of the setting, after each of them has become a record of its own.
    name : str
        Name of the table among those of its experiment.
    keep : callable or None
        Whether the table shows a record.
    transform : callable or None
        Replaces a record before it is shown.
    description : str
        A paragraph above a table that may be missing; without results, it stands in
        the list of experiments that have not been run.
    """

    experiment: str
    index: tuple[str, ...]
    columns: str | None
    metrics: tuple[Metric, ...]
    index_title: str
    nested: str | None = None
    name: str = ""
    keep: Callable[[Record], bool] | None = None
    transform: Callable[[Record], Record] | None = None
    description: str = ""

    @property
    def file(self) -> str:
        """Name of the file, without its ending."""
        return self.name or self.experiment.replace(".", "_")


AUROC = Metric("auroc", "AUROC (mean ± standard deviation over the seeds)")
AVERAGE_PRECISION = Metric(
    "average_precision",
    "Average precision (mean ± standard deviation over the seeds)",
)
FIT_SECONDS = Metric(
    "fit_seconds", "Seconds to fit (median over the seeds)", "median", 1
)
DETECTION = (
    AUROC._replace(average=True),
    AVERAGE_PRECISION._replace(average=True),
    FIT_SECONDS,
)
#: For tables with a column per metric.
DETECTION_COLUMNS = (
    Metric("auroc", "AUROC"),
    Metric("average_precision", "Average precision"),
    Metric("coverage", "Coverage"),
    Metric("fit_seconds", "Seconds to fit", "median", 1),
)
