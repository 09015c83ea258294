"""The range of the training samples, and the distance of others beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._parts import parts_of

__all__ = ["ValueRange", "lowered_beyond"]

_LOWEST = float(np.finfo(np.float32).min)


class ValueRange(NamedTuple):
    """The range of each column of a table, or of each channel of images.

    Attributes
    ----------
    low, high : ndarray of shape (n_features,) or (channels, 1, ...)
        Bounds of the values.
    unit : ndarray of the same shape
        Half the width; 1 where all values are the same.
    """

    low: NDArray
    high: NDArray
    unit: NDArray

    @classmethod
    def of(
        cls,
        sets: Sequence[tuple[NDArray, NDArray[np.bool_]]],
        clip: tuple[Any, Any] | None = None,
    ) -> ValueRange:
        """Return the range of samples.

        Parameters
        ----------
        sets : list of tuple of ndarray
            Samples (n_samples, ...), and a mask of the samples to use, (n_samples,).
        clip : tuple of float or of ndarray of shape (channels, 1, ...), or None
            Bounds of the range.

        Returns
        -------
        ValueRange
            The range of uint8 is 0 to 255. Other ranges are wider than that of the
            values seen, by its width over the root of their number on each side, since
            new values may lie beyond those of a small sample.
        """
        first, _ = sets[0]
        shape = (-1,) + (1,) * (first.ndim - 2)
        if first.dtype == np.uint8:
            low, high = np.array([[0.0], [255.0]]).reshape(2, *shape)
            return cls(low, high, (high - low) / 2)
        axes = (0, *range(2, first.ndim))
        ends = [
            (part.min(axes), part.max(axes))
            for X, chosen in sets
            for part in parts_of(X, chosen)
        ]
        lows, highs = zip(*ends, strict=True)
        low, high = (
            np.array(lows, np.float64).min(0),
            np.array(highs, np.float64).max(0),
        )
        if clip is not None:
            bounds = [np.ravel(bound) for bound in clip]
            low, high = np.clip(low, *bounds), np.clip(high, *bounds)
        largest = np.maximum(np.abs(low), np.abs(high))
        with np.errstate(over="ignore"):
            width = high - low
            is_wide = width > 10 * np.finfo(first.dtype).eps * largest
            n_values = (
                sum(chosen.sum() for _, chosen in sets) * first[0].size / len(low)
            )
            margin = width / n_values**0.5
        unit = np.where(is_wide, width / 2, 1.0)
        both = low - margin, high + margin, unit
        return cls(*(values.reshape(shape) for values in both))

    def joined(self, other: ValueRange) -> ValueRange:
        """Return the smallest range that covers both."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return ValueRange(low, high, np.maximum(self.unit, other.unit))

    def excess(self, X: NDArray) -> NDArray[np.float64]:
        """Return the distance of each sample's furthest value beyond the range.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features) or (n_samples, channels, ...)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            In units of half the width of the range, 0 for samples inside.
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

    def cut(self, X: NDArray) -> NDArray:
        """Return samples with values clipped at the bounds."""
        kind = np.float64 if X.dtype == np.uint8 else X.dtype
        return np.clip(X, self.low, self.high).astype(kind, copy=False)


def lowered_beyond(
    scores: NDArray[np.float64],
    inside: NDArray[np.float64],
    excess: NDArray[np.float64],
    median: float,
    unit: float,
) -> NDArray[np.float64]:
    """Lower the scores of samples beyond the range.

    Parameters
    ----------
    scores, inside : ndarray of shape (n_samples,)
        Scores of samples, and of the same samples clipped at the bounds of the range.
    excess : ndarray of shape (n_samples,)
        Distances beyond the range.
    median, unit : float
        Median of the training scores, and their spread or more.

    Returns
    -------
    ndarray of shape (n_samples,)
        The lower of the two scores, less two deductions that are 0 at the bounds. The
        first is the part of the score above the median, times the excess or 1 if that
        is lower. The second is ``unit * log(1 + excess)``: it grows slowly, since
        normal samples may be far out in columns with heavy tails.
    """
    kept = np.minimum(scores, inside)
    kept = kept - np.minimum(excess, 1) * np.maximum(kept - median, 0)
    return np.maximum(kept - unit * np.log1p(excess), _LOWEST)
