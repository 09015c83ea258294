r"""Explanation of anomaly scores by contributions of columns, for any detector.

A column contributes the rise of the score when its value is replaced by a usual one.
With a score :math:`s`, higher for more normal samples, the contribution of column j to
the anomaly score of x is

.. math:: c_j(x) = \frac{1}{k} \sum_{i \in N_j(x)} s(x_{\setminus j}, r_{ij}) - s(x)

where :math:`N_j(x)` are the k reference samples :math:`r_i` nearest to x in all *other*
columns: column j takes values that are usual where the others are as they are in x. So
a pair of columns that breaks a relation is found, though each value alone is usual.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_array

from .utils._labels import is_missing
from .utils._scores import scores_of
from .utils._sklearn_compat import COUNT, safe_indexing

__all__ = ["explain"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


class _DataFrame(Protocol):
    """A data frame of pandas or polars, for type checkers."""

    @property
    def columns(self) -> Any: ...


Frame = TypeVar("Frame", bound=_DataFrame)

#: Maximum number of values in memory at a time: distances, and samples to score.
_NUMBERS = 2**22
#: Bound of squared distances of values, in squared standard deviations.
_FAR = 1e6


@overload
def explain(
    detector: Any, X: Frame, reference: Frame, *, n_neighbors: int = 3
) -> Frame: ...
@overload
def explain(
    detector: Any, X: ArrayLike, reference: ArrayLike, *, n_neighbors: int = 3
) -> Floats: ...
def explain(detector: Any, X: Any, reference: Any, *, n_neighbors: int = 3) -> Any:
    """Return the contribution of each column to the anomaly score of each sample.

    Each column in turn takes the values that it has in those reference samples that
    are nearest in all other columns; its contribution is the rise of the score.
    Numbers are compared in units of their standard deviation, other values by whether
    they are equal.

    Parameters
    ----------
    detector : object
        Any fitted detector, or a Pipeline that ends in one, with ``score_samples`` or
        ``decision_function``, higher for more normal samples.
    X : array-like or data frame of shape (n_samples, n_features)
        The samples to explain, as `detector` takes them: columns of a data frame may
        hold numbers, categories, dates or missing values.
    reference : array-like or data frame of shape (n_reference, n_features)
        Normal samples, of the kind of `X`; some hundred are enough.
    n_neighbors : int, default=3
        Number of reference samples whose values stand for a column, k.

    Returns
    -------
    ndarray or data frame of shape (n_samples, n_features)
        In units of the score; positive where a column makes the sample more anomalous.
        Of a data frame, one with the same columns.

    Raises
    ------
    ValueError
        If `X` has no two dimensions, as images have none, or no samples; if `reference`
        has other columns or is of another type; or if a score is NaN.
    """
    if not COUNT.is_satisfied_by(n_neighbors):
        raise ValueError(f"n_neighbors={n_neighbors!r} has to be {COUNT}.")
    table, usual = Table.of(X, "X"), Table.of(reference, "reference")
    if table.kind != usual.kind:
        raise ValueError(
            f"X is {table.kind}, and reference {usual.kind}: both have to be arrays, "
            "or data frames of one package."
        )
    if table.names != usual.names:
        raise ValueError(
            f"X has the columns {_shortened(table.names)}, and the reference samples "
            f"have {_shortened(usual.names)}."
        )
    k = min(n_neighbors, len(usual))
    numbers, usual_numbers = _comparable(table, usual)
    before, out = scores_of(detector, X), np.empty((len(table), len(table.names)))
    step = max(_NUMBERS // usual_numbers.size, 1)
    for batch in gen_batches(len(table), step):
        part = np.arange(batch.start, batch.stop)
        squares = _squares(numbers[part], usual_numbers)
        total = squares.sum(2)
        for j in range(len(table.names)):
            nearest = np.argpartition(total - squares[:, :, j], k - 1, axis=1)[:, :k]
            changed = table.replaced(np.repeat(part, k), j, usual, nearest.ravel())
            after = scores_of(detector, changed).reshape(len(part), k)
            with np.errstate(invalid="ignore"):  # of infinity less infinity
                after = after.mean(1)
                rise = after - before[part]
            out[part, j] = np.where(after == before[part], 0.0, rise)
    return table.like(out)


class Table:
    """Samples whose columns can be exchanged: an array, or the columns of a frame."""

    def __init__(self, X: Any, names: list[Any], columns: list[Any]):
        self.X, self.names, self.columns = X, names, columns

    @classmethod
    def of(cls, X: Any, name: str) -> Table:
        """Return the table of an array-like or a data frame."""
        if not hasattr(X, "columns"):
            if np.ndim(X) > 2:
                raise ValueError(
                    f"{name} has {np.ndim(X)} dimensions, and explain takes tables of "
                    "two. Images and clips have no columns: detector.anomaly_map(X) "
                    "has a value for each of their pixels."
                )
            X = check_array(X, dtype=None, ensure_all_finite=False, input_name=name)
            return cls(X, list(range(X.shape[1])), list(X.T))
        names = list(X.columns)
        if not len(X) or not names:
            raise ValueError(
                f"{name} has {len(X)} samples and {len(names)} columns, and needs one "
                "of each."
            )
        if twice := [label for label, count in Counter(names).items() if count > 1]:
            raise ValueError(
                f"Columns of {name} share a name, and cannot be told apart: "
                f"{_shortened(twice)}."
            )
        return cls(X, names, [X[label] for label in names])

    def __len__(self) -> int:
        return len(self.X)

    @property
    def is_frame(self) -> bool:
        """Whether the samples are a data frame."""
        return not isinstance(self.X, np.ndarray)

    @property
    def kind(self) -> str:
        """The kind of container, for messages."""
        if not self.is_frame:
            return "an array"
        of_pandas = hasattr(self.X, "iloc")
        return f"a data frame {'of pandas' if of_pandas else 'without an index'}"

    def replaced(self, rows: Indices, j: int, other: Table, other_rows: Indices) -> Any:
        """Return samples with the values of column j from samples of another table."""
        if not self.is_frame:
            dtype = np.result_type(self.X, other.X)  # integers would cut off decimals
            changed = self.X[rows].astype(dtype, copy=False)
            changed[:, j] = other.X[other_rows, j]
            return changed
        parts = [safe_indexing(column, rows) for column in self.columns]
        parts[j] = safe_indexing(other.columns[j], other_rows)
        if hasattr(self.X, "iloc"):  # pandas would align by the index
            parts = [part.reset_index(drop=True) for part in parts]
        return type(self.X)(dict(zip(self.names, parts, strict=True)))

    def like(self, values: Floats) -> Any:
        """Return values per sample and column in the container of the samples."""
        if not self.is_frame:
            return values
        frame = type(self.X)(dict(zip(self.names, values.T, strict=True)))
        return frame.set_index(self.X.index) if hasattr(self.X, "iloc") else frame


def _comparable(table: Table, usual: Table) -> tuple[Floats, Floats]:
    """Return the values of both tables as numbers (n, n_features) to be compared.

    Numbers are in units of the standard deviation. Values of other kinds, and missing
    ones, are numbered so that different ones are far from each other.
    """
    pairs = zip(table.columns, usual.columns, strict=True)
    both = np.stack([_column_numbers(*pair) for pair in pairs], 1)
    return both[: len(table)], both[len(table) :]


def _column_numbers(column: Any, usual: Any) -> Floats:
    """Return the values of a column in both tables, one after the other."""
    values = np.concatenate([_values(column), _values(usual)])
    if values.dtype.kind in "mM":
        missing = np.isnat(values)
        values = np.where(missing, 0, values.astype(np.int64)).astype(float)
        values[missing] = np.nan
    if values.dtype.kind == "O":
        values = np.where(is_missing(values), np.nan, values)
    if values.dtype.kind not in "biuf":
        try:
            values = values.astype(float)
        except (TypeError, ValueError):
            _, ranks = np.unique(values.astype(str), return_inverse=True)
            return np.asarray(ranks * np.sqrt(_FAR))
    numbers = values.astype(float)
    known = numbers[len(column) :]
    known = known[np.isfinite(known)]
    # A power of two changes no digit, and keeps squares of the largest numbers finite.
    unit = np.exp2(-np.frexp(np.abs(known).max(initial=0.0))[1])
    spread = (known * unit).std() if len(known) else 0.0
    centre = (known * unit).mean() if len(known) else 0.0
    with np.errstate(over="ignore"):
        scaled: Floats = (numbers * unit - centre) / (spread or unit)
    scaled[np.isnan(numbers)] = np.sqrt(_FAR)
    return scaled


def _values(column: Any) -> NDArray[Any]:
    """Return the values of a column; times of a time zone as those of UTC."""
    zoned = getattr(getattr(column, "dtype", None), "tz", None) is not None
    values: NDArray[Any] = np.asarray(column, dtype="M8[ns]" if zoned else None)
    return values


def _squares(numbers: Floats, usual: Floats) -> NDArray[np.float32]:
    """Return squared differences (n_samples, n_reference, n_features)."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = (numbers[:, None] - usual).astype(np.float32) ** 2
    return np.minimum(np.nan_to_num(squares, nan=_FAR, posinf=_FAR), _FAR)


def _shortened(names: list[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
