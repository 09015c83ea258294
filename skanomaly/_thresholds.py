"""Thresholds and p-values of detectors, from samples that training does not see."""

from __future__ import annotations

from abc import abstractmethod
from math import sqrt
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._conformal import ConformalMixin, samples_for, threshold
from .exceptions import ConstantScoresWarning, FalseAlarmWarning
from .utils._labels import known_anomalies
from .utils._parameters import Auto
from .utils._state import on_shallow_copy, shallow_copy
from .utils._warnings import warn

__all__ = ["ThresholdMixin"]

#: Minimum number of training samples.
_MIN_SAMPLES = 2
#: Calibration samples where samples are few: enough for a rate of .05.
_FEW_CALIBRATING = 19
#: The largest share of calibration samples, unless `calibration` asks for more.
_LARGEST_SHARE = 1 / 3
#: The largest share of false alarms that is not worth a warning.
_USUAL_ALARMS = 0.1


class ThresholdMixin(ConformalMixin):
    """For detectors that hold calibration samples out, and set thresholds by them."""

    # scikit-learn's name for detectors whose ``predict`` is for new samples; training
    # samples are labelled by ``fit_predict``.
    novelty = True

    #: Parameters that change the scores of a fitted detector.
    _scored_by: ClassVar[tuple[str, ...]] = ()

    # Parameters
    contamination: float | Auto
    calibration: float | Auto | None
    # Set by ``fit``
    _set_by: tuple[float | Auto, float]
    _split_seed: int
    _training_offset: float
    _calibrated_with: dict[str, Any]

    @abstractmethod
    def _given(self, name: str) -> Any:
        """Return a parameter."""

    @abstractmethod
    def _continues(self) -> bool:
        """Return whether ``fit`` continues an earlier one."""

    @abstractmethod
    def _checked_rows(self, X: ArrayLike) -> NDArray:
        """Return samples for a fitted detector, after checks."""

    @abstractmethod
    def _bounded_scores(self, X: NDArray) -> NDArray[np.float64]:
        """Score checked samples."""

    def _natural_offset(self) -> float | None:
        """Return the threshold that the theory of the method gives, if it does."""
        return None

    def _auto_offset(self, scores: NDArray[np.float64]) -> float:
        """Return the threshold for ``contamination="auto"`` without a natural one."""
        low, middle = np.percentile(scores, [25, 50])
        return float(middle - 5 * (middle - low))

    # Public methods -----------------------------------------------------------------

    @on_shallow_copy
    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``, which is negative for outliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            Negative for outliers, positive for inliers. If ``offset_`` is -inf, since
            the calibration samples are too few for `contamination`, these are positive
            numbers in the order of the scores.
        """
        decision = super().decision_function(X)
        self._check_contamination()
        return decision

    def calibrate(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Calibrate a fitted detector again, on other samples, without training.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Samples that the detector was not trained on. ``calibration_scores_`` are
            their scores, and `contamination` sets ``offset_`` by them.
        y : array-like of shape (n_samples,), default=None
            Samples with -1, known anomalies, are left out.

        Returns
        -------
        self
            The detector.

        Raises
        ------
        ValueError
            If there is no sample besides known anomalies, or `X` does not suit the
            detector, which is unchanged then.
        """
        new = shallow_copy(self)
        X = new._checked_rows(X)
        chosen = X[~known_anomalies(y, len(X))]
        if not len(chosen):
            raise ValueError("X has no samples besides the known anomalies.")
        new._calibrate(chosen)
        new._check_alarms()
        self.__dict__ = vars(new)  # in one step, for other threads
        return self

    # Calibration samples ------------------------------------------------------------

    def _calibration_samples(
        self, may_be: NDArray[np.bool_], seed: int
    ) -> NDArray[np.bool_]:
        """Return a mask of the samples to hold out."""
        n = int(may_be.sum())
        n_held_out = self._n_calibration(n)
        if n_held_out and n - n_held_out < _MIN_SAMPLES:
            raise ValueError(
                f"calibration={self.calibration} leaves {n - n_held_out} of {n} "
                f"samples for training, and at least {_MIN_SAMPLES} are needed."
            )
        # A warm start must not train on the calibration samples of the first fit.
        if not (self._continues() and hasattr(self, "_split_seed")):
            self._split_seed = seed
        chosen = np.random.default_rng(self._split_seed).permutation(n)[:n_held_out]
        mask = np.zeros(len(may_be), dtype=bool)
        mask[np.flatnonzero(may_be)[chosen]] = True
        return mask

    def _n_calibration(self, n: int) -> int:
        """Return how many of n samples to hold out."""
        share: float | Auto | None = self._given("calibration")
        if share is None:
            return 0
        if share != "auto":
            return max(round(share * n), 1)
        rate, most = self._given("contamination"), int(n * _LARGEST_SHARE)
        needed = 0 if rate in ("auto", 0) else samples_for(rate)
        n_held_out = max(n // 10, min(_FEW_CALIBRATING, most))
        return max(n_held_out, needed) if needed <= most else n_held_out

    # Thresholds ---------------------------------------------------------------------

    def _set_threshold(self, scores: NDArray[np.float64]) -> None:
        """Set ``offset_`` by the scores of the training samples."""
        if np.ptp(scores) == 0:
            warn(
                f"All {len(scores)} training samples have the same score. Check that "
                "the samples of X differ, and that they still differ once they are "
                "scaled and rounded to float32.",
                ConstantScoresWarning,
            )
        rate = self._given("contamination")
        if rate == "auto":
            self.offset_ = self._offset_without_rate(scores)
        else:
            self.offset_ = float(np.quantile(scores, rate))
        self._set_by = self.contamination, self.offset_

    def _label_by(self, scores: NDArray[np.float64]) -> None:
        """Set the threshold of ``fit_predict`` by the scores of all samples."""
        rate = self._given("contamination")
        self._training_offset = float(
            np.quantile(scores, 0 if rate == "auto" else rate)
        )

    def _calibrate(self, X: NDArray) -> None:
        """Set ``calibration_scores_`` and ``offset_`` by samples held out."""
        scores = np.sort(self._bounded_scores(X))
        rate = self._given("contamination")
        if rate == "auto":
            self.offset_ = self._offset_without_rate(scores)
        elif rate == 0:
            lowest = getattr(self, "_training_offset", np.inf)  # older files lack it
            self.offset_ = float(min(lowest, scores[0]))
        else:
            self.offset_ = threshold(scores, rate)
        self.calibration_scores_ = scores
        self._calibrated_with = {name: getattr(self, name) for name in self._scored_by}
        self._set_by = self.contamination, self.offset_

    def _calibrated_by(self) -> NDArray[np.float64]:
        """Return the calibration scores, unless scores are computed otherwise now."""
        calibration_scores = super()._calibrated_by()
        for name, value in self._calibrated_with.items():
            if (given := getattr(self, name)) != value:
                raise ValueError(
                    f"{name} was changed from {value!r} to {given!r} "
                    "after the calibration, whose scores cannot be compared with those "
                    "of now. calibrate(X) with samples that training did not see, or "
                    "fit again."
                )
        return calibration_scores

    def _offset_without_rate(self, scores: NDArray[np.float64]) -> float:
        """Return the threshold for ``contamination="auto"``."""
        natural = self._natural_offset()
        return self._auto_offset(scores) if natural is None else natural

    def _check_alarms(self, scores: NDArray[np.float64] | None = None) -> None:
        """Warn if the natural threshold flags many calibration, or training, samples.

        Thresholds by the scores themselves are right to flag many, where samples are
        contaminated.
        """
        if self.contamination != "auto" or self._natural_offset() is None:
            return
        scores = getattr(self, "calibration_scores_", scores)
        assert scores is not None
        n, flagged = len(scores), int((scores < self.offset_).sum())
        usual = n * _USUAL_ALARMS
        # A single sample says nothing, and more may be bad luck.
        if flagged > max(usual + 2 * sqrt(usual * (1 - _USUAL_ALARMS)), 1):
            held_out = (
                "held-out" if hasattr(self, "calibration_scores_") else "training"
            )
            warn(
                f"contamination='auto' sets offset_={self.offset_:.4g}, which the "
                f"theory of {type(self).__name__} gives, and flags {flagged} of {n} "
                f"{held_out} samples ({flagged / n:.0%}): about as many of all normal "
                "samples. contamination=0.05 sets a threshold that flags 5 %; after "
                "fit, set_threshold(false_alarm_rate=0.05) does.",
                FalseAlarmWarning,
            )

    def _check_contamination(self) -> None:
        """Warn if `contamination` was changed after it set the threshold."""
        given, offset = getattr(self, "_set_by", (self.contamination, None))
        if self.contamination != given and self.offset_ == offset:
            warn(
                f"contamination was changed to {self.contamination!r} after fit, "
                f"without effect: offset_ is still the threshold for {given!r}. Fit "
                "again, or call set_threshold."
            )
