"""Scores of samples that come in batches, such as those of a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from .engine import Bar
from .utils._state import on_shallow_copy

__all__ = ["BatchesMixin"]


class BatchesMixin(ABC):
    """For detectors that score more samples than the memory holds."""

    @abstractmethod
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score samples; higher is more normal."""

    @on_shallow_copy
    def score_batches(
        self,
        batches: Iterable[ArrayLike],
        *,
        n_samples: int | None = None,
        verbose: int = 0,
    ) -> Iterator[NDArray[np.float64]]:
        """Score samples that come in batches; higher is more normal.

        One batch at a time is read, scored and yielded, so that the memory does not
        depend on the number of batches. A later ``fit`` has no effect on an iteration
        that has begun.

        Parameters
        ----------
        batches : iterable of array-like
            Each is anything that :meth:`score_samples` takes: arrays, data frames,
            tables and record batches of Arrow, such as
            ``pyarrow.parquet.ParquetFile(path).iter_batches()``. A batch may be empty.
        n_samples : int, default=None
            Number of all samples, for the bar to show the time left.
        verbose : int, default=0
            0 shows nothing, 1 a progress bar.

        Yields
        ------
        ndarray of shape (n_samples_of_batch,), float64
            The scores of each batch, in order, equal to those of
            :meth:`score_samples`.

        Raises
        ------
        TypeError
            If `batches` is a single array or data frame.
        ValueError
            If a batch is invalid; a note of the error has its number, from 0.

        Examples
        --------
        >>> import numpy as np
        >>> from skanomaly import HistoryAD
        >>> X = np.random.default_rng(0).normal(size=(300, 2))
        >>> detector = HistoryAD(random_state=0).fit(X)
        >>> batches = (X[start : start + 128] for start in range(0, 300, 128))
        >>> [len(scores) for scores in detector.score_batches(batches)]
        [128, 128, 44]
        """
        check_is_fitted(self)
        if hasattr(batches, "shape") or isinstance(batches, str):
            raise TypeError(
                f"batches is of type {type(batches).__name__}, and has to be an "
                "iterable of arrays. Use score_samples for a single one."
            )
        return self._scores_of_batches(batches, n_samples, verbose)

    def _scores_of_batches(
        self, batches: Iterable[ArrayLike], n_samples: int | None, verbose: int
    ) -> Iterator[NDArray[np.float64]]:
        with ExitStack() as stack:
            bar = None
            if verbose:
                bar = stack.enter_context(Bar(type(self).__name__, n_samples))
            for k, batch in enumerate(batches):
                try:
                    scores = self._scores_of_batch(batch)
                except (TypeError, ValueError) as error:
                    error.add_note(f"This is an error of batch {k}, counted from 0.")
                    raise
                if bar is not None:
                    bar.advance(len(scores))
                yield scores

    def _scores_of_batch(self, batch: ArrayLike) -> NDArray[np.float64]:
        shape = getattr(batch, "shape", None)
        if shape is not None and shape[0] == 0:  # as the last one of a file may be
            return np.empty(0)
        return self.score_samples(batch)
