r"""Conformal p-values, and thresholds that keep a rate of false alarms.

Scores are scikit-learn's: higher is more normal. With :math:`n` calibration samples
that a detector has not seen, exchangeable with new normal samples, the p-value of a
sample with score :math:`s` is

.. math:: p = \frac{1 + \#\{i : s_i \le s\}}{n + 1}

and at most a share :math:`a` of new normal samples has :math:`p \le a` [1]_ [2]_.

References
----------
.. [1] R. Laxhammar and G. Falkman, "Conformal prediction for distribution-independent
   anomaly detection in streaming vessel data", 2010.
.. [2] S. Bates, E. Candès, L. Lei, Y. Romano and M. Sesia, "Testing for outliers with
   conformal p-values", Annals of Statistics 51, 2023.
"""

from __future__ import annotations

from math import ceil, floor, log1p
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc
from scipy.stats import false_discovery_control
from sklearn.utils.validation import check_is_fitted

from .exceptions import CalibrationWarning
from .utils._sklearn_compat import Real
from .utils._state import on_shallow_copy
from .utils._warnings import warn

__all__ = [
    "ConformalMixin",
    "p_values",
    "rank_at",
    "ranked_above_zero",
    "samples_for",
    "threshold",
]

#: Relative errors of rounding in adjusted p-values, of which many times as much.
_ROUNDING = 1e-12

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def p_values(calibration_scores: Floats, scores: Floats) -> Floats:
    """Return conformal p-values.

    Parameters
    ----------
    calibration_scores : ndarray of shape (n_calibration,)
        Scores of calibration samples, in ascending order.
    scores : ndarray of shape (n_samples,)
        Scores of the samples to test; infinite ones have their rank.

    Returns
    -------
    ndarray of shape (n_samples,)
        In [1 / (n_calibration + 1), 1].
    """
    n = len(calibration_scores)
    n_lower = np.searchsorted(calibration_scores, scores, side="right")
    p: Floats = (1 + n_lower) / (n + 1)
    return p


def rank_at(n: int, rate: float, confidence: float | None = None) -> int:
    r"""Return the rank k of the calibration score that becomes the threshold.

    Without `confidence` it is the largest k with :math:`k / (n + 1) \le a`, in floating
    point as a user compares p-values with a rate. Over all calibration sets the rate of
    false alarms is then at most `rate`; for a given one it has the law
    :math:`\mathrm{Beta}(k, n + 1 - k)`. With `confidence` it is the largest k for which
    this law is at most `rate` with that probability.

    Parameters
    ----------
    n : int
        Number of calibration samples.
    rate : float in (0, 1)
        Share of normal samples that may be flagged.
    confidence : float in (0, 1), default=None
        Probability that the share is kept by this calibration set.

    Returns
    -------
    int
        Between 0 and n; 0 flags nothing.
    """
    k = floor((n + 1) * rate)
    k += (k + 1) / (n + 1) <= rate
    k -= k / (n + 1) > rate
    if confidence is not None:
        # P(Beta(k, n + 1 - k) <= a) is the probability that at least k of n uniform
        # numbers are at most a.
        ranks = np.arange(1, k + 1)
        k = int((bdtrc(ranks - 1, n, rate) >= confidence).sum())
    return k


class ConformalMixin:
    """Conformal p-values, and thresholds that keep a rate of false alarms.

    A child has ``score_samples`` and the fitted attributes ``offset_`` and
    ``calibration_scores_``.
    """

    #: Scores of the calibration samples, in ascending order.
    calibration_scores_: Floats
    offset_: float

    def score_samples(self, X: Any) -> Floats:
        """Return one score per sample; children write it."""
        raise NotImplementedError

    @on_shallow_copy
    def decision_function(self, X: Any) -> Floats:
        """Return ``score_samples(X) - offset_``: negative for outliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,)
            Negative for outliers, positive for inliers. If ``offset_`` is -inf, since
            the calibration samples are too few for the rate, these are positive numbers
            in the order of the scores.
        """
        scores = self.score_samples(X)
        if self.offset_ == -np.inf:
            return ranked_above_zero(scores)
        with np.errstate(invalid="ignore", over="ignore"):  # of scores at the ends
            return np.where(scores == self.offset_, 0.0, scores - self.offset_)

    @on_shallow_copy
    def predict(self, X: Any) -> Integers:
        """Return -1 for outliers and +1 for inliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,)
            -1 where ``decision_function(X)`` is negative. If a rate of false alarms set
            the threshold, that is where ``p_value(X)`` is at most that rate.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    @on_shallow_copy
    def p_value(self, X: Any) -> Floats:
        r"""Return the conformal p-value of each sample.

        .. math:: p = \frac{1 + \#\{i : s_i \le s\}}{n + 1}

        with the scores :math:`s_i` of :math:`n` calibration samples. Of new normal
        samples at most a share :math:`a` has :math:`p \le a`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,)
            In [1 / (n + 1), 1]: low for outliers.

        Raises
        ------
        ValueError
            If the detector has no calibration scores.
        """
        calibration_scores = self._calibrated_by()
        return p_values(calibration_scores, self.score_samples(X))

    def _calibrated_by(self) -> Floats:
        """Return the calibration scores, after checks."""
        check_is_fitted(self)
        if not hasattr(self, "calibration_scores_"):
            raise ValueError(
                f"This {type(self).__name__} has no calibration scores: too few "
                "samples, calibration=None, or a file of an older version. "
                "calibrate(X), with new normal samples, makes them; "
                "set_threshold(score=...) needs none."
            )
        return self.calibration_scores_

    def set_threshold(
        self,
        *,
        false_alarm_rate: float | None = None,
        confidence: float | None = None,
        score: float | None = None,
    ) -> Self:
        """Change `offset_` of a fitted detector, without training.

        Parameters
        ----------
        false_alarm_rate : float in (0, 1), default=None
            Share of new normal samples that may be flagged, on average over calibration
            sets: :meth:`predict` flags the samples with ``p_value(X) <=
            false_alarm_rate``. For one calibration set of n samples the share varies
            around it, with a standard deviation of about
            ``sqrt(rate * (1 - rate) / (n + 2))``.
        confidence : float in (0, 1), default=None
            Probability that this calibration set keeps the rate. With .9, the share is
            at most the rate for nine of ten calibration sets, and not only on average.
            Fewer samples are flagged.
        score : float, default=None
            The threshold itself, in the place of a rate: samples with a lower score are
            flagged.

        Returns
        -------
        self
            The detector.

        Raises
        ------
        ValueError
            If neither or both of `false_alarm_rate` and `score` are given, a number is
            outside of its range, or the detector has no calibration scores. The
            threshold is unchanged then.

        Warns
        -----
        CalibrationWarning
            If no sample can be flagged at this rate, since there are too few
            calibration samples.
        """
        check_is_fitted(self)
        if (false_alarm_rate is None) == (score is None):
            raise ValueError(
                "set_threshold takes one of false_alarm_rate and score, and was given "
                f"false_alarm_rate={false_alarm_rate!r} and score={score!r}."
            )
        if confidence is not None:
            _check_share(confidence, "confidence")
        if false_alarm_rate is not None:
            _check_share(false_alarm_rate, "false_alarm_rate")
            scores = self._calibrated_by()
            self.offset_ = threshold(scores, false_alarm_rate, confidence)
            return self
        if confidence is not None:
            raise ValueError("confidence belongs to a false_alarm_rate.")
        if not isinstance(score, Real) or isinstance(score, bool) or np.isnan(score):
            raise ValueError(f"score={score!r} has to be a number.")
        self.offset_ = float(score)
        return self

    @on_shallow_copy
    def predict_fdr(
        self, X: Any, level: float = 0.1, *, method: Literal["bh", "by"] = "bh"
    ) -> Integers:
        r"""Label samples, -1 for outliers, with a bounded false discovery rate.

        Where :meth:`predict` bounds the share of normal samples that are flagged, this
        bounds the expected share of normal samples among the flagged ones, the false
        discovery rate, over the whole of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            The samples, all those that are tested together.
        level : float in (0, 1), default=0.1
            Bound of the false discovery rate.
        method : {"bh", "by"}, default="bh"
            Benjamini-Hochberg, which holds for p-values of one calibration set [1]_, or
            Benjamini-Yekutieli, which holds for any p-values and flags fewer samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            -1 for outliers, +1 for inliers.

        Warns
        -----
        CalibrationWarning
            If nothing is flagged because the calibration samples are too few: the
            lowest p-value is 1 / (n + 1), and of m samples about
            :math:`m / ((n + 1) \cdot level)` have to have it.

        References
        ----------
        .. [1] S. Bates, E. Candès, L. Lei, Y. Romano and M. Sesia, "Testing for
           outliers with conformal p-values", Annals of Statistics 51, 2023.
        """
        _check_share(level, "level")
        if method not in ("bh", "by"):
            raise ValueError(f"method={method!r} has to be 'bh' or 'by'.")
        p = self.p_value(X)
        # Rounding must not lose a sample whose adjusted p-value is the level.
        adjusted = false_discovery_control(p, method=method)
        flagged = adjusted <= level * (1 + _ROUNDING)
        n, m = len(self.calibration_scores_), len(p)
        factor = 1.0 if method == "bh" else float((1 / np.arange(1, m + 1)).sum())
        needed = ceil(m * factor / ((n + 1) * level))
        lowest = int((p == 1 / (n + 1)).sum())
        if not flagged.any() and lowest:
            warn(
                f"Nothing is flagged at level={level:g}, though {lowest} of {m} "
                f"samples score lower than all {n} calibration samples: so few "
                f"support no more unless {needed} samples do. More calibration "
                "samples, or a higher level, help.",
                CalibrationWarning,
            )
        return np.where(flagged, -1, 1)


def ranked_above_zero(scores: Floats) -> Floats:
    """Map scores to positive numbers in the same order."""
    with np.errstate(divide="ignore"):
        return np.where(scores > 0, 1 + scores, 1 / (1 - np.minimum(scores, 0)))


def threshold(
    calibration_scores: Floats, rate: float, confidence: float | None = None
) -> float:
    """Return the threshold that keeps a rate of false alarms.

    Parameters
    ----------
    calibration_scores : ndarray of shape (n_calibration,)
        Scores of calibration samples, in ascending order.
    rate : float in (0, 1)
        Share of normal samples that may be flagged.
    confidence : float in (0, 1), default=None
        Probability that the share is kept by this calibration set.

    Returns
    -------
    float
        Samples with lower scores are flagged; -inf, with a CalibrationWarning, if there
        are too few calibration samples.
    """
    n = len(calibration_scores)
    k = rank_at(n, rate, confidence)
    if k:
        return float(calibration_scores[k - 1])
    least = 1 / (n + 1)
    if confidence is not None:  # (1 - rate)^n = 1 - confidence
        least = 1 - (1 - confidence) ** (1 / n)
    warn(
        f"A false-alarm rate of {rate:g} cannot be reached with {n} calibration "
        "samples, and nothing is flagged. "
        f"The least rate is {least:.2g}"
        f"{'' if confidence is None else f', with a confidence of {confidence:g}'}"
        f"; {samples_for(rate, confidence)} calibration samples are enough for "
        f"{rate:g}.",
        CalibrationWarning,
    )
    return -np.inf


def samples_for(rate: float, confidence: float | None = None) -> int:
    """Return the number of calibration samples with which a rate can be reached."""
    if confidence is None:
        return ceil(1 / rate - 1 - 1e-9)
    return ceil(log1p(-confidence) / log1p(-rate))


def _check_share(value: Any, name: str) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"{name}={value!r} has to be a number between 0 and 1.")
