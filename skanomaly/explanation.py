r"""Explanation of anomaly scores by contributions of columns, for any detector.

A sample x becomes a normal one, r, column by column, and a column contributes the rise
of the score at its step. With a score :math:`s`, higher for more normal samples,

.. math:: c_j(x) = \frac{1}{2k} \sum_{r \in N(x)}
    s(r_{\leq j}, x_{>j}) - s(r_{<j}, x_{\geq j})
    + s(x_{<j}, r_{\geq j}) - s(x_{\leq j}, r_{>j})

where :math:`N(x)` are the k reference samples nearest to x. Columns change from the
first to the last and from the last to the first, so that of two columns each is once
the earlier: the effect of a pair is divided equally. If no three columns act together,
this is the Shapley value [1]_ of the columns, with r as the baseline. Contributions add
up to the difference of the scores of r and x.

.. [1] M. Sundararajan & A. Najmi, "The many Shapley values for model explanation",
   ICML, 2020.
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
#: Bound of squared distances of values, in squared standard deviations: a strange value
#: must not choose the neighbours.
_FAR = 4.0
#: Number of a missing value, far from all others.
_MISSING = 1e30


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

    A sample takes the values of the nearest reference samples column by column, and
    the contribution of a column is the rise of the score at its step: the mean over
    the orders from the first column to the last and back. They add up to the
    difference between the scores of these reference samples and that of the sample.
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
        Number of nearest reference samples, k.

    Returns
    -------
    ndarray or data frame of shape (n_samples, n_features)
        In units of the score; positive where a column makes the sample more anomalous.
        Of a data frame, one with the same columns.

    Raises
    ------
    TypeError
        If `X` or `reference` is a lazy frame, which has to be collected.
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
    both = table.followed_by(usual)
    numbers = np.stack([_comparable(c, len(table)) for c in both.columns], 1)
    nearest = _nearest(numbers, len(table), min(n_neighbors, len(usual)))
    before, out = scores_of(detector, X), np.empty((len(table), len(table.names)))
    step = max(_NUMBERS // (2 * nearest.shape[1] * out.shape[1] ** 2), 1)
    for batch in gen_batches(len(table), step):
        chosen = np.arange(batch.start, batch.stop), nearest[batch]
        rises = _rises(detector, both, *chosen, before[batch])
        with np.errstate(invalid="ignore"):
            out[batch] = rises.mean((1, 2))
    out[np.isnan(out)] = 0.0  # a rise and a fall without bounds
    return table.like(out)


def _rises(
    detector: Any, both: Table, rows: Indices, nearest: Indices, before: Floats
) -> Floats:
    """Return the rises of the score (n_samples, n_neighbors, 2, n_features).

    Samples and their neighbours are given by their positions in a table of both.
    """
    d = len(both.names)
    order = np.arange(d)
    orders = np.stack([order, order[::-1]])
    shape = (*nearest.shape, 2, d)
    scores = np.empty(np.prod(shape))
    for batch in gen_batches(len(scores), max(_NUMBERS // d, 1)):
        steps = np.arange(batch.start, batch.stop)
        sample, neighbor, o, last = np.unravel_index(steps, shape)
        changed = orders[o] <= last[:, None]  # each order is its own inverse
        origin = np.where(
            changed, nearest[sample, neighbor][:, None], rows[sample][:, None]
        )
        scores[batch] = scores_of(detector, both.mixed(origin))
    scores = scores.reshape(shape)
    first = np.broadcast_to(before[:, None, None, None], (*shape[:3], 1))
    earlier = np.concatenate([first, scores[..., :-1]], -1)
    with np.errstate(invalid="ignore"):  # of infinity less infinity
        rises = np.where(scores == earlier, 0.0, scores - earlier)
    rises[:, :, 1] = rises[:, :, 1, ::-1]
    return rises


class Table:
    """Samples whose columns can be exchanged: an array, or the columns of a frame."""

    def __init__(self, X: Any, names: list[Any], columns: list[Any]):
        self.X, self.names, self.columns = X, names, columns

    @classmethod
    def of(cls, X: Any, name: str) -> Table:
        """Return the table of an array-like or a data frame."""
        if hasattr(X, "collect"):  # a query of polars, which holds no rows
            raise TypeError(f"{name} is a {type(X).__name__}: give {name}.collect().")
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

    def followed_by(self, other: Table) -> Table:
        """Return a table of the samples of both."""
        if not self.is_frame:
            X = np.concatenate([self.X, other.X])  # integers would cut off decimals
            return Table(X, self.names, list(X.T))
        X = _joined(self.X, other.X)
        return Table(X, self.names, [X[label] for label in self.names])

    def mixed(self, origin: Indices) -> Any:
        """Return samples whose values come from the samples at these positions.

        Parameters
        ----------
        origin : ndarray of shape (n_samples, n_features)
            The position for each value.
        """
        if not self.is_frame:
            return self.X[origin, np.arange(len(self.names))]
        parts = [
            safe_indexing(column, positions)
            for column, positions in zip(self.columns, origin.T, strict=True)
        ]
        if hasattr(self.X, "iloc"):  # pandas would align by the index
            parts = [part.reset_index(drop=True) for part in parts]
        return type(self.X)(dict(zip(self.names, parts, strict=True)))

    def like(self, values: Floats) -> Any:
        """Return values per sample and column in the container of the samples."""
        if not self.is_frame:
            return values
        frame = type(self.X)(dict(zip(self.names, values.T, strict=True)))
        return frame.set_index(self.X.index) if hasattr(self.X, "iloc") else frame


def _joined(first: Any, second: Any) -> Any:
    """Return the samples of two data frames of pandas or polars."""
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat([first, second], ignore_index=True)
    import polars as pl

    return pl.concat([first, second], how="vertical_relaxed")


def _comparable(column: Any, n: int) -> Floats:
    """Return the values of a column as numbers (n_samples,) to be compared.

    Numbers are in units of the standard deviation of the samples from the n-th on.
    Values of other kinds, and missing ones, are numbered so that different ones are far
    from each other.
    """
    values = _values(column)
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
    known = numbers[n:]
    known = known[np.isfinite(known)]
    # A power of two changes no digit, and keeps squares of the largest numbers finite.
    unit = np.exp2(-np.frexp(np.abs(known).max(initial=0.0))[1])
    spread = (known * unit).std() if len(known) else 0.0
    centre = (known * unit).mean() if len(known) else 0.0
    with np.errstate(over="ignore"):
        scaled: Floats = (numbers * unit - centre) / (spread or unit)
    scaled[np.isnan(numbers)] = _MISSING
    return scaled


def _values(column: Any) -> NDArray[Any]:
    """Return the values of a column; times of a time zone as those of UTC."""
    zoned = getattr(getattr(column, "dtype", None), "tz", None) is not None
    values: NDArray[Any] = np.asarray(column, dtype="M8[ns]" if zoned else None)
    return values


def _nearest(numbers: Floats, n: int, k: int) -> Indices:
    """Return the positions of the k samples from the n-th on nearest to each before."""
    usual = numbers[n:]
    parts = []
    for batch in gen_batches(n, max(_NUMBERS // usual.size, 1)):
        with np.errstate(over="ignore", invalid="ignore"):
            squares = (numbers[batch][:, None] - usual).astype(np.float32) ** 2
        squares = np.nan_to_num(squares, nan=_FAR, posinf=_FAR)
        total = np.minimum(squares, _FAR).sum(2)
        parts.append(n + np.argpartition(total, k - 1, axis=1)[:, :k])
    return np.concatenate(parts)


def _shortened(names: list[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
