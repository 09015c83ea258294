"""Errors of tables that name the columns at fault, with the code that mends them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array, gen_batches

__all__ = ["check_columns", "is_missing", "missing_message"]

#: Beginnings of the names of dtypes, of pandas, polars and arrow.
_NUMBERS = "int", "uint", "float", "bool"
_SPAN = "timedelta", "duration"
_TIME = "date", "time", "period"
#: Kinds of columns that are no numbers.
_TEXT, _MIXED = "text or categories", "numbers and text"
_MARKED, _OBJECTS = "numbers and NA", "objects"
_TIMES, _SPANS = "dates or times", "spans of time"
#: Columns that a sentence names.
_MAX_NAMED = 5
#: Samples that are looked at together.
_AT_ONCE = 2**14
#: A step of a pipeline that encodes text and categories.
_ONE_HOT = "OneHotEncoder(handle_unknown='ignore', sparse_output=False)"


def check_columns(X: Any, name: str) -> None:
    """Raise an error if columns of a table hold anything other than numbers.

    Parameters
    ----------
    X : DataFrame or ndarray of shape (n_samples, n_features)
        The table; text of numbers counts as numbers.
    name : str
        Name of `X` in errors.

    Raises
    ------
    TypeError, ValueError
        If a name occurs twice, or columns hold text, categories, times or objects. The
        message names these columns, and for `name` "X" it ends in lines of code.
    """
    labels = _labels(X)
    for label, n in Counter(labels).most_common(1):
        if n > 1:
            raise ValueError(f"{name} has {n} columns of the name {label!r}.")
    is_frame = hasattr(X, "columns")
    dtypes = X.dtypes if is_frame else [X.dtype] * len(labels)
    faults: dict[str, dict[int, Any]] = {}  # by kind and number of the column
    for j, dtype in enumerate(dtypes):
        if not _holds_numbers(name_of_dtype := str(dtype).lower()):
            column = X[labels[j]] if is_frame else X[:, j]
            kind, example = _kind_of(column, name_of_dtype)
            if kind:
                faults.setdefault(kind, {})[j] = example
    if faults:
        _refuse(X, name, faults)


def _refuse(X: Any, name: str, faults: dict[str, dict[int, Any]]) -> None:
    """Raise an error about the columns, with examples by kind and number."""
    if _OBJECTS in faults:
        j, error = next(iter(faults[_OBJECTS].items()))
        cls = TypeError if isinstance(error, TypeError) else ValueError
        raise cls(
            f"{name} has to hold numbers, and has objects in {_named(X, [j])}: {error}."
        ) from error
    found = "; ".join(
        f"{kind} in {_named(X, list(columns))}{_such_as(columns.values())}"
        for kind, columns in faults.items()
    )
    way_out = (
        "Convert them, for new samples too:" + _as_code(_lines(X, faults))
        if name == "X"
        else "Convert them as those of X, or leave them out."
    )
    raise ValueError(f"{name} has to hold numbers, and has {found}. {way_out}")


def missing_message(X: Any) -> str:
    """Return the message of an error about NaN and infinities.

    Parameters
    ----------
    X : DataFrame or ndarray of shape (n_samples, ...)
        Samples, of numbers. It may be larger than the memory.

    Returns
    -------
    str
        The columns of a table, with their counts and a line of code for missing values;
        otherwise the samples.
    """
    if len(X.shape) != 2:
        return _missing_in_samples(X)
    n_nan, n_infinite = np.zeros((2, X.shape[1]), dtype=int)
    for batch in gen_batches(len(X), _AT_ONCE):
        values = check_array(X[batch], ensure_all_finite=False)
        n_nan += np.isnan(values).sum(0)
        n_infinite += np.isinf(values).sum(0)
    counts = [("NaN", n_nan), ("infinity", n_infinite)]
    found = " and ".join(f"{what}: {_counted(X, n)}" for what, n in counts if n.any())
    if n_infinite.any():
        return f"Input X contains {found}. Replace infinite values by finite ones."
    line = "detector = make_pipeline(SimpleImputer(), detector)"
    return f"Input X contains {found}. Fill in missing values:{_as_code([line])}"


def _missing_in_samples(X: NDArray[Any]) -> str:
    """Return the message for images and clips."""
    sums = np.array([np.sum(one, dtype=np.float64) for one in X])
    bad = np.flatnonzero(~np.isfinite(sums))
    kind = "infinity" if np.isinf(X[bad[0]]).any() else "NaN"
    return (
        f"Input X contains {kind}, in {len(bad)} of {len(X)} samples, the first of "
        f"them X[{bad[0]}]."
    )


def is_missing(values: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Return where values are None, NaN, or NA or NaT of pandas.

    Parameters
    ----------
    values : ndarray of shape (n,), object
        Values of any kind.
    """
    # pandas.NA has no truth value, and exists only if pandas is imported.
    na = getattr(sys.modules.get("pandas"), "NA", None)
    missing = [v is None or v is na or v != v for v in values.tolist()]
    return np.array(missing, dtype=bool)


def _labels(X: Any) -> list[Any]:
    """Return the names of columns, or their numbers in an array."""
    return list(X.columns) if hasattr(X, "columns") else list(range(X.shape[1]))


def _holds_numbers(dtype: str) -> bool:
    return dtype.startswith(_NUMBERS) and not dtype.startswith("interval")


def _kind_of(column: Any, dtype: str) -> tuple[str | None, Any]:
    """Return the kind of a column, None for numbers, and an example or an error."""
    if dtype.startswith((*_SPAN, *_TIME)):
        return _SPANS if dtype.startswith(_SPAN) else _TIMES, None
    try:
        np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        return _kind_of_values(np.asarray(column, dtype=object), error)
    return None, None


def _kind_of_values(values: NDArray[np.object_], error: Exception) -> tuple[str, Any]:
    """Return the kind of values that are not all numbers, and the first of these."""
    known = values[~is_missing(values)].tolist()
    others = [value for value in known if not _is_number(value)]
    if not others:
        return _MARKED, None
    if all(isinstance(value, str | bytes) for value in others):
        return _MIXED if len(others) < len(known) / 2 else _TEXT, others[0]
    for kind, classes in ((_SPANS, timedelta), (_TIMES, date)):
        if all(isinstance(value, classes) for value in known):
            return kind, None
    return _OBJECTS, error


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _named(X: Any, columns: Iterable[int]) -> str:
    """Return the names of columns as a list in words."""
    names = [repr(label) for label in _labels(X)]
    if not hasattr(X, "columns"):
        names = [f"X[:, {name}]" for name in names]
    return _in_words([names[j] for j in columns])


def _in_words(parts: list[str]) -> str:
    few = parts[:_MAX_NAMED]
    more = len(parts) - len(few)
    return ", ".join(few) + (f" and {more} more columns" if more else "")


def _counted(X: Any, counts: NDArray[np.intp]) -> str:
    """Return the names of columns with counts above 0, and these."""
    columns = np.flatnonzero(counts)
    return _in_words([f"{counts[j]} in {_named(X, [int(j)])}" for j in columns])


def _such_as(examples: Iterable[Any]) -> str:
    """Return the first of some examples in words."""
    first = next(iter(examples))
    return "" if first is None else f" (such as {first!r:.40})"


def _as_code(lines: list[str]) -> str:
    return "".join(f"\n    {line}" for line in lines)


def _lines(X: Any, faults: dict[str, dict[int, Any]]) -> list[str]:
    """Return lines of code that turn the columns into numbers."""
    line = _polars_line if hasattr(X, "with_columns") else _pandas_line
    lines = [
        line(X, _labels(X)[j], kind)
        for kind, columns in faults.items()
        for j in columns
        if kind != _TEXT
    ]
    if _TEXT in faults:
        labels = [_labels(X)[j] for j in faults[_TEXT]]
        are_names = all(isinstance(label, str) for label in labels)
        chosen = labels if are_names else list(faults[_TEXT])
        lines.append(
            f"detector = make_pipeline(make_column_transformer(({_ONE_HOT}, {chosen}), "
            "remainder=SimpleImputer()), detector)"
        )
    return lines


def _polars_line(X: Any, label: Any, kind: str) -> str:
    dtype = str(X[label].dtype).lower()
    if kind == _SPANS:
        call = "dt.total_seconds()"
    elif kind == _TIMES:
        call = "dt.hour()" if dtype == "time" else "dt.weekday()"
    else:
        call = "cast(float, strict=False)"
    return f"X = X.with_columns(X[{label!r}].{call})"


def _pandas_line(X: Any, label: Any, kind: str) -> str:
    """Return a line for a column of pandas or of an array."""
    is_frame = hasattr(X, "columns")
    column = f"X[{label!r}]" if is_frame else f"X[:, {label}]"
    parts = f"{column}.dt" if is_frame and X[label].dtype != object else ""
    through = "pandas.{}(" + column + ")" + (".dt" if is_frame else "")
    if kind == _SPANS:
        value = f"{parts or through.format('to_timedelta')}.total_seconds()"
    elif kind == _TIMES:
        is_day = not parts or not str(X[label].dtype).startswith("time")
        part = "day_of_week  # or hour, month, ..." if is_day else "hour"
        value = f"{parts or through.format('to_datetime')}.{part}"
    else:
        value = f"pandas.to_numeric({column}, errors='coerce')"
    return f"{column} = {value}"
