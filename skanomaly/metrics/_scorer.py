"""Metrics and scorers that take +1 / -1 labels and scores that grow with normality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils import check_array, check_consistent_length, column_or_1d

from ..utils._sklearn_compat import Scorer
from ..utils._warnings import warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray


def check_scores(
    y_score: ArrayLike, input_name: str = "y_score"
) -> NDArray[np.float64]:
    """Return scores, or weights, as finite float64 of shape (n_samples,)."""
    column: NDArray[np.float64] = column_or_1d(
        check_array(y_score, ensure_2d=False, dtype=np.float64, input_name=input_name)
    )
    return column


def check_labels(y_true: ArrayLike) -> NDArray[np.bool_]:
    """Return a mask of the anomalies in `y_true`, which may hold +1 and -1 alone."""
    labels = column_or_1d(y_true)
    found = set(labels.tolist())
    if labels.dtype.kind == "b" or not found <= {-1, 1}:
        raise ValueError(
            "y_true must hold +1 (normal) and -1 (anomaly) only, got the labels "
            f"{sorted(found, key=str)[:5]}. If 0 stands for normal and 1 for anomaly, "
            "convert them: `y = np.where(y == 1, -1, 1)`. Leave out unlabelled "
            "samples: in cross-validation the splitters of skanomaly.model_selection "
            "do."
        )
    anomalous: NDArray[np.bool_] = np.equal(labels, -1)
    return anomalous


def check_labels_and_scores(
    y_true: ArrayLike, y_score: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the mask of the anomalies and the scores, after a check of lengths."""
    check_consistent_length(y_true, y_score)
    return check_labels(y_true), check_scores(y_score)


def check_weights(
    sample_weight: ArrayLike | None, y_score: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights of samples with these scores, by default 1."""
    if sample_weight is None:
        return np.ones_like(y_score)
    check_consistent_length(y_score, sample_weight)
    return check_scores(sample_weight, "sample_weight")


def is_one_class(anomalous: NDArray[np.bool_], weight: NDArray[np.float64]) -> bool:
    """Return whether the samples with a weight are all normal, or all anomalous."""
    present = anomalous[weight > 0]
    return bool(present.all() or not present.any())


def _score_anomalies(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_score: ArrayLike,
    sample_weight: ArrayLike | None,
) -> float:
    """Compute `metric` with anomalies as positives and anomaly scores."""
    anomalous, score = check_labels_and_scores(y_true, y_score)
    weight = check_weights(sample_weight, score)
    if is_one_class(anomalous, weight):
        warn(
            "Only one class is present in y_true, among the samples with a weight: the "
            "score is not defined, NaN is returned. In cross-validation, "
            "StratifiedKFold keeps both classes in every fold. For samples of two "
            "domains (sample_domain), TargetKFold of skanomaly.model_selection does, "
            "and leaves the source, which is all normal, to the training.",
            UndefinedMetricWarning,
        )
        return float("nan")
    return float(metric(anomalous, -score, sample_weight=weight))


def detector_roc_auc_score(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Area under the ROC curve of a detector, the anomaly being the positive class.

    It is the probability that a random anomaly scores lower than a random normal
    sample, where ties count one half: 1 is perfect, 0.5 is chance and 0 is upside down.
    It does not depend on the prevalence of anomalies in `y_true`.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels: +1 for a normal sample, -1 for an anomaly.
    y_score : array-like of shape (n_samples,)
        Output of `score_samples` or `decision_function`: higher means more normal.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    float
        Area in [0, 1]. It is NaN, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, where the samples with a
        weight are of one class, as in :func:`sklearn.metrics.roc_auc_score`.

    Raises
    ------
    ValueError
        If `y_true` holds other labels than +1 and -1 (0 and 1, say, or booleans), if
        a score is not finite, or if the lengths differ.

    See Also
    --------
    detector_roc_auc : Its scorer, for `scoring=`.
    detector_average_precision_score : A summary that depends on the prevalence.
    DetectorRocDisplay : Draws the curve.

    Examples
    --------
    >>> from skanomaly.metrics import detector_roc_auc_score
    >>> detector_roc_auc_score([1, 1, -1, -1], [0.9, 0.4, 0.5, -0.7])
    0.75
    """
    return _score_anomalies(roc_auc_score, y_true, y_score, sample_weight)


def detector_average_precision_score(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Average precision of a detector, the anomaly being the positive class.

    It summarises the precision-recall curve as the mean of the precisions at all
    thresholds, weighted by the gain in recall. It depends on the prevalence: a detector
    at chance has about the share of anomalies in `y_true`, so that only test sets with
    the same share are comparable.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels: +1 for a normal sample, -1 for an anomaly.
    y_score : array-like of shape (n_samples,)
        Output of `score_samples` or `decision_function`: higher means more normal.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.

    Returns
    -------
    float
        Average precision in (0, 1]. It is NaN, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, where the samples with a
        weight are of one class: :func:`sklearn.metrics.average_precision_score` returns
        0 or 1, which looks like a result in the mean over folds.

    Raises
    ------
    ValueError
        If `y_true` holds other labels than +1 and -1 (0 and 1, say, or booleans), if
        a score is not finite, or if the lengths differ.

    See Also
    --------
    detector_average_precision : Its scorer, for `scoring=`.
    detector_roc_auc_score : A summary that does not depend on the prevalence.
    DetectorPrecisionRecallDisplay : Draws the curve.

    Examples
    --------
    >>> from skanomaly.metrics import detector_average_precision_score
    >>> score = detector_average_precision_score([1, 1, -1, -1], [0.9, 0.4, 0.5, -0.7])
    >>> round(score, 3)
    0.833
    """
    return _score_anomalies(average_precision_score, y_true, y_score, sample_weight)


_SCORER_DOC = """Scorer of :func:`{metric}`, for `scoring=`.

For all functions of scikit-learn that take a scorer: `GridSearchCV`,
`cross_val_score`, `permutation_importance`. It calls `decision_function` of the
detector, or `score_samples` where there is none. Split with `StratifiedKFold`, so that
every fold holds normal samples and anomalies; the default for detectors, `KFold`, does
not ensure it. Known kinds of anomalies and samples of two domains have splitters of
their own, in :mod:`skanomaly.model_selection`.

For weights through metadata routing, use the copy that ``set_score_request`` returns;
the imported scorer itself does not change.

Parameters
----------
estimator : estimator instance
    Fitted detector, or a fitted pipeline that ends in one.
X : array-like of shape (n_samples, ...)
    Samples to score.
y_true : array-like of shape (n_samples,)
    Labels: +1 for a normal sample, -1 for an anomaly.
sample_weight : array-like of shape (n_samples,), default=None
    Weights of the samples.
**kwargs : dict
    Further metadata, refused unless scikit-learn's metadata routing is on.

Returns
-------
float
    Value of :func:`{metric}`: higher is better.

See Also
--------
{metric} : The metric, of labels and scores.

Examples
--------
>>> import numpy as np
>>> from sklearn.neighbors import LocalOutlierFactor
>>> from skanomaly.metrics import {scorer}
>>> X = np.r_[np.linspace(0, 1, 50), 5, -5].reshape(-1, 1)
>>> detector = LocalOutlierFactor(novelty=True).fit(X[:50])
>>> {scorer}(detector, X, np.r_[np.ones(50), -1, -1])
1.0
"""


class _SharedScorer(Scorer):
    """A scorer of the module; requests for metadata return a copy of it."""

    if TYPE_CHECKING:

        def __call__(
            self,
            estimator: Any,
            X: ArrayLike,
            y_true: ArrayLike,
            sample_weight: ArrayLike | None = None,
            **kwargs: Any,
        ) -> float:
            """Return the metric of the scores of samples."""

    def set_score_request(self, **requests: bool | str | None) -> Scorer:
        """Return a copy with these requests, like a scorer of `get_scorer`."""
        own = Scorer(self._score_func, self._sign, self._kwargs, self._response_method)
        return own.set_score_request(**requests)


def _detector_scorer(metric: Callable[..., float]) -> _SharedScorer:
    """Make the scorer of a metric, with a docstring of its own."""
    name = metric.__name__
    scorer = _SharedScorer(metric, 1, {}, ("decision_function", "score_samples"))
    scorer.__doc__ = _SCORER_DOC.format(metric=name, scorer=name.removesuffix("_score"))
    return scorer


detector_roc_auc = _detector_scorer(detector_roc_auc_score)
detector_average_precision = _detector_scorer(detector_average_precision_score)
