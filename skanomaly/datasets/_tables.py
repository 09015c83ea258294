"""The tables of ODDS and ADBench, read from local files."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ..utils._kinds import TABLE
from ._store import describe_loader, find, not_found, read
from ._types import DataHome, FrameBunch, Labels, TableBunch

if TYPE_CHECKING:
    import pandas as pd

Numbers = NDArray[np.float32] | NDArray[np.float64]

_ADBENCH = (
    "https://github.com/Minqi824/ADBench/raw/"
    "3dac8221081e190f157d78e93bfa8867f90d0965/adbench/datasets/Classical/"
)
_PYOD = (
    "https://github.com/yzhao062/pyod/raw/"
    "34f7996effac700a5166d882d5e94c6e6078fae3/examples/data/"
)

_SOURCES = {
    "annthyroid": _ADBENCH + "2_annthyroid.npz",
    "arrhythmia": _PYOD + "arrhythmia.csv",
    "breastw": _ADBENCH + "4_breastw.npz",
    "cardio": _ADBENCH + "6_cardio.npz",
    "cover": _ADBENCH + "10_cover.npz",
    "glass": _ADBENCH + "14_glass.npz",
    "http": _ADBENCH + "16_http.npz",
    "internetads": _ADBENCH + "17_InternetAds.npz",
    "lymphography": _ADBENCH + "21_Lymphography.npz",
    "musk": _ADBENCH + "25_musk.npz",
    "optdigits": _ADBENCH + "26_optdigits.npz",
    "pageblocks": _ADBENCH + "27_PageBlocks.npz",
    "satellite": _ADBENCH + "30_satellite.npz",
    "satimage-2": _ADBENCH + "31_satimage-2.npz",
    "shuttle": _ADBENCH + "32_shuttle.npz",
    "smtp": _ADBENCH + "34_smtp.npz",
    "spambase": _ADBENCH + "35_SpamBase.npz",
    "thyroid": _ADBENCH + "38_thyroid.npz",
    "wbc": _ADBENCH + "42_WBC.npz",
    "wine": _ADBENCH + "45_wine.npz",
}


@overload
def fetch_odds(
    name: str,
    *,
    data_home: DataHome = ...,
    download_if_missing: bool = ...,
    return_X_y: Literal[False] = ...,
    as_frame: Literal[False] = ...,
) -> TableBunch: ...
@overload
def fetch_odds(
    name: str,
    *,
    data_home: DataHome = ...,
    download_if_missing: bool = ...,
    return_X_y: Literal[True],
    as_frame: Literal[False] = ...,
) -> tuple[Numbers, Labels]: ...
@overload
def fetch_odds(
    name: str,
    *,
    data_home: DataHome = ...,
    download_if_missing: bool = ...,
    return_X_y: Literal[False] = ...,
    as_frame: Literal[True],
) -> FrameBunch: ...
@overload
def fetch_odds(
    name: str,
    *,
    data_home: DataHome = ...,
    download_if_missing: bool = ...,
    return_X_y: Literal[True],
    as_frame: Literal[True],
) -> tuple[pd.DataFrame, pd.Series]: ...
@describe_loader
def fetch_odds(
    name: str,
    *,
    data_home: DataHome = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
    as_frame: bool = False,
) -> TableBunch | FrameBunch | tuple[Numbers, Labels] | tuple[pd.DataFrame, pd.Series]:
    """Load one of the ODDS tables, with its anomalies marked by -1.

    The tables are those of the Outlier Detection DataSets collection (ODDS) in the
    form of ADBench, `arrhythmia` in that of PyOD. They are read from
    ``<name>.npz`` (arrays `X` and `y`, where 1 is an anomaly), which nothing
    downloads: the error for a missing file names its source.

    Rights: ADBench and PyOD are under the BSD 2-Clause licence; the data, most of
    which come from the UCI repository, keep the terms of their own sources.

    Parameters
    ----------
    name : str
        One of "annthyroid", "arrhythmia", "breastw", "cardio", "cover", "glass",
        "http", "internetads", "lymphography", "musk", "optdigits", "pageblocks",
        "satellite", "satimage-2", "shuttle", "smtp", "spambase", "thyroid", "wbc" and
        "wine".
    %(data_home)s
        Each folder may have the file in its subfolder `tabular`.
    %(download_if_missing)s
    %(return_X_y)s
    as_frame : bool, default=False
        Whether the data are a DataFrame and the target is a Series.

    Returns
    -------
    Bunch or tuple of (data, target)
        `data` of shape (n_samples, n_features), float32 or float64 as stored and not
        scaled; `target` of shape (n_samples,), +1 for an inlier and -1 for an outlier,
        int64; `feature_names`; `frame`, data and target in one DataFrame with
        `as_frame`, otherwise None; `DESCR`; and `filename`, the file that was read.

    Raises
    ------
    ValueError
        If there is no table of this name, its labels are not 0 and 1, or not one for
        each sample.
    TypeError
        If `name` or `data_home` is of the wrong type.
    FileNotFoundError
        If the file is in none of the folders. This is an OSError.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> from skanomaly.datasets import fetch_odds
    >>> X, y = fetch_odds("thyroid", return_X_y=True)  # doctest: +SKIP
    >>> X.shape, (y == -1).sum()  # doctest: +SKIP
    ((3772, 6), 93)
    """
    _check_name(name)
    names, members = (f"{name}.npz", f"tabular/{name}.npz"), ("X", "y")
    path = find(names, members, data_home)
    if path is None:
        advice = f"Store X and y (1 = anomaly) of {_SOURCES[name]} under that name."
        raise not_found(names, members, data_home, advice)
    X, labels = read(path, members).values()
    labels = labels.ravel()
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"y in {path} must be 1 for an anomaly and 0 elsewhere.")
    if X.ndim != TABLE.ndim or len(X) != len(labels):
        raise ValueError(
            f"{path} must hold X of shape (n_samples, n_features) with one label each, "
            f"got X of shape {X.shape} and {len(labels)} labels."
        )

    table = TableBunch(
        data=X if X.dtype.kind == "f" else X.astype(np.float64),
        target=np.where(labels == 1, -1, 1).astype(np.int64),
        feature_names=[f"x{i}" for i in range(X.shape[1])],
        frame=None,
        DESCR=f"{name}, a table of ODDS; source: {_SOURCES[name]}",
        filename=str(path),
    )
    if not as_frame:
        return (table.data, table.target) if return_X_y else table
    frame = _framed(table)
    return (frame.data, frame.target) if return_X_y else frame


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}.")
    if name not in _SOURCES:
        close = get_close_matches(name.lower(), _SOURCES, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"No ODDS table is named {name!r}. {hint}The names are "
            f"{', '.join(_SOURCES)}."
        )


def _framed(table: TableBunch) -> FrameBunch:
    """Return the table in pandas objects."""
    import pandas as pd

    data = pd.DataFrame(table.data, columns=table.feature_names)
    target = pd.Series(table.target, name="target")
    frame = pd.concat([data, target], axis=1)
    return FrameBunch(**table | {"data": data, "target": target, "frame": frame})
