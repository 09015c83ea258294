"""Where training rows lie, and how far others are from there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._numbers import parts_of

__all__ = ["ValueRange", "kept_below"]

_LOWEST = float(np.finfo(np.float32).min)


class ValueRange(NamedTuple):
    """The range of each column of a table, or of each channel of images.

    Attributes
    ----------
    low, high : ndarray of shape (d,) or (c, 1, ...)
        Bounds of the values.
    unit : ndarray of the same shape
        Half the width; 1 where all values are the same.
    """

    low: NDArray
    high: NDArray
    unit: NDArray

    @classmethod
    def of(cls, sets, clip=None):
        """Return the range of rows.

        Parameters
        ----------
        sets : list of tuple of ndarray
            Rows (n, d) or (n, c, ...), and which of them to look at, (n,) of bool.
        clip : tuple of float or of ndarray of shape (c, 1, ...), or None
            What bounds the range.

        Returns
        -------
        ValueRange
            That of bytes is 0 to 255, whatever values occur. Any other one is wider
            than the values seen by a share of one in the root of their number, since
            new values may lie beyond those of a small sample.
        """
        first, _ = sets[0]
        shape = (-1,) + (1,) * (first.ndim - 2)
        if first.dtype == np.uint8:
            low, high = np.float64([[0], [255]]).reshape(2, *shape)
            return cls(low, high, (high - low) / 2)
        axes = (0, *range(2, first.ndim))
        ends = [
            (part.min(axes), part.max(axes))
            for X, chosen in sets
            for part in parts_of(X, chosen)
        ]
        low, high = (np.float64(values) for values in zip(*ends, strict=True))
        low, high = low.min(0), high.max(0)
        if clip is not None:
            bounds = [np.ravel(bound) for bound in clip]
            low, high = np.clip(low, *bounds), np.clip(high, *bounds)
        largest = np.maximum(np.abs(low), np.abs(high))
        with np.errstate(over="ignore"):
            width = high - low
            apart = width > 10 * np.finfo(first.dtype).eps * largest
            n_values = (
                sum(chosen.sum() for _, chosen in sets) * first[0].size / len(low)
            )
            margin = width / n_values**0.5
        unit = np.where(apart, width / 2, 1.0)
        both = low - margin, high + margin, unit
        return cls(*(values.reshape(shape) for values in both))

    def joined(self, other):
        """Return the range that holds both."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return ValueRange(low, high, np.maximum(self.unit, other.unit))

    def excess(self, X):
        """Return how far the furthest value of each row is beyond the range.

        Parameters
        ----------
        X : ndarray of shape (n, d) or (n, c, ...)
            Rows.

        Returns
        -------
        ndarray of shape (n,)
            In units of half the width of the range, 0 for rows inside.
        """
        beyond = np.zeros(len(X))
        if X.dtype == np.uint8 and self.low.max() <= 0 and self.high.min() >= 255:
            return beyond
        start = 0
        for part in parts_of(X, np.ones(len(X), dtype=bool)):
            outside = ((part < self.low) | (part > self.high)).reshape(len(part), -1)
            found = np.flatnonzero(outside.any(1))
            if len(found):
                rows = part[found].astype(np.float64)
                with np.errstate(over="ignore"):
                    far = np.maximum(self.low - rows, rows - self.high) / self.unit
                beyond[start + found] = far.reshape(len(found), -1).max(1)
            start += len(part)
        return beyond

    def cut(self, X):
        """Return rows whose values are cut at the bounds."""
        kind = np.float64 if X.dtype == np.uint8 else X.dtype
        return np.clip(X, self.low, self.high).astype(kind, copy=False)


def kept_below(scores, inside, excess, median, unit):
    """Return scores of rows beyond the range, none of which is more normal for it.

    Parameters
    ----------
    scores, inside : ndarray of shape (n,)
        Scores of rows, and of the same rows cut at the bounds of the range.
    excess : ndarray of shape (n,)
        How far they are beyond.
    median, unit : float
        Middle of the scores of the training rows, and a unit: how far these are apart,
        or more.

    Returns
    -------
    ndarray of shape (n,)
        The lower of the two scores. What it has above the median goes with the excess,
        and is gone at 1; and `unit` times log(1 + excess) is taken off: columns with
        heavy tails have normal rows far out too. At the bounds these are the scores
        themselves.
    """
    kept = np.minimum(scores, inside)
    kept = kept - np.minimum(excess, 1) * np.maximum(kept - median, 0)
    return np.maximum(kept - unit * np.log1p(excess), _LOWEST)
