"""Metrics and scorers that take +1 / -1 labels and scores that grow with normality."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    return column_or_1d(
        check_array(y_score, ensure_2d=False, dtype=np.float64, input_name=input_name)
    )


def check_labels(y_true: ArrayLike) -> NDArray[np.bool_]:
    """Return a mask of the anomalies in `y_true`, and refuse all but +1 and -1."""
    labels = column_or_1d(y_true)
    found = set(labels.tolist())
    if labels.dtype.kind == "b" or not found <= {-1, 1}:
        raise ValueError(
            "y_true must hold +1 (normal) and -1 (anomaly) only, got the labels "
            f"{sorted(found, key=str)[:5]}. If 0 stands for normal and 1 for anomaly, "
            "convert them: `y = np.where(y == 1, -1, 1)`. Leave out unlabelled rows: "
            "in cross-validation the splitters of skanomaly.model_selection do."
        )
    return np.equal(labels, -1)


def check_labels_and_scores(
    y_true: ArrayLike, y_score: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the mask of the anomalies and the scores, of one length."""
    check_consistent_length(y_true, y_score)
    return check_labels(y_true), check_scores(y_score)


def check_weights(
    sample_weight: ArrayLike | None, y_score: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights of the rows with these scores, 1 if none are given."""
    if sample_weight is None:
        return np.ones_like(y_score)
    check_consistent_length(y_score, sample_weight)
    return check_scores(sample_weight, "sample_weight")


def is_one_class(anomalous: NDArray[np.bool_], weight: NDArray[np.float64]) -> bool:
    """Return whether the rows that have a weight are all normal, or all anomalous."""
    present = anomalous[weight > 0]
    return bool(present.all() or not present.any())


def _score_anomalies(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_score: ArrayLike,
    sample_weight: ArrayLike | None,
) -> float:
    """Give `metric` the anomalies as positives and scores that grow with anomaly."""
    anomalous, score = check_labels_and_scores(y_true, y_score)
    weight = check_weights(sample_weight, score)
    if is_one_class(anomalous, weight):
        warn(
            "Only one class is present in y_true, among the rows with a weight: the "
            "score is not defined, NaN is returned. In cross-validation, "
            "StratifiedKFold keeps both classes in every fold; where rows are of two "
            "domains (sample_domain), TargetKFold of skanomaly.model_selection does, "
            "and leaves the source, all normal, to the training.",
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

    It is the probability that an anomaly drawn at random scores lower than a normal
    row drawn at random, ties counting one half: 1 is perfect, 0.5 is chance and 0 is
    upside down. It does not depend on the prevalence of anomalies in `y_true`.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels: +1 for a normal row, -1 for an anomaly.
    y_score : array-like of shape (n_samples,)
        Output of `score_samples` or `decision_function`: higher means more normal.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.

    Returns
    -------
    float
        Area in [0, 1]. It is NaN, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, where `y_true` holds only
        one class, weights of 0 left out; :func:`sklearn.metrics.roc_auc_score` does the
        same.

    Raises
    ------
    ValueError
        If `y_true` holds other labels than +1 and -1 (0 and 1, say, or booleans), if
        a score is not finite, or if the lengths differ.

    See Also
    --------
    detector_roc_auc : The scorer made of it, for `scoring=`.
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

    It summarises the precision-recall curve as the mean of the precisions at each
    threshold, weighted by the gain in recall. It depends on the prevalence: a detector
    at chance gets about the share of anomalies in `y_true`, so that values are only
    comparable between test sets with the same share.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels: +1 for a normal row, -1 for an anomaly.
    y_score : array-like of shape (n_samples,)
        Output of `score_samples` or `decision_function`: higher means more normal.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.

    Returns
    -------
    float
        Average precision in (0, 1]. It is NaN, with an
        :class:`~sklearn.exceptions.UndefinedMetricWarning`, where `y_true` holds only
        one class, weights of 0 left out:
        :func:`sklearn.metrics.average_precision_score` would give 0 or 1, which would
        pass for a result in the mean over folds.

    Raises
    ------
    ValueError
        If `y_true` holds other labels than +1 and -1 (0 and 1, say, or booleans), if
        a score is not finite, or if the lengths differ.

    See Also
    --------
    detector_average_precision : The scorer made of it, for `scoring=`.
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

Goes wherever scikit-learn takes a scorer: `GridSearchCV`, `cross_val_score`,
`permutation_importance`. It calls `decision_function` of the detector, or
`score_samples` where there is none. Split with `StratifiedKFold`, so that every fold
holds normal rows and anomalies: the default for detectors, `KFold`, does not see to it.
Known kinds of anomalies and rows of two domains have splitters of their own, in
:mod:`skanomaly.model_selection`.

For weights through metadata routing, take what ``set_score_request`` returns: it is a
copy, and the scorer that everybody imports stays as it is.

Parameters
----------
estimator : estimator instance
    Fitted detector, or a fitted pipeline that ends in one.
X : array-like of shape (n_samples, ...)
    Rows to score.
y_true : array-like of shape (n_samples,)
    Labels: +1 for a normal row, -1 for an anomaly.
sample_weight : array-like of shape (n_samples,), default=None
    Weights of the rows.
**kwargs : dict
    Further metadata, refused unless scikit-learn's metadata routing is on.

Returns
-------
float
    What :func:`{metric}` returns: higher is better.

See Also
--------
{metric} : The metric, for labels and scores at hand.

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
    """A scorer that all import: who asks it for metadata gets a scorer of their own."""

    def set_score_request(self, **requests: bool | str | None) -> Scorer:
        """Return a copy with these requests, as of a scorer of `get_scorer`."""
        own = Scorer(self._score_func, self._sign, self._kwargs, self._response_method)
        return own.set_score_request(**requests)


def _detector_scorer(metric: Callable[..., float]) -> Scorer:
    """Make the scorer of a metric, with a docstring of its own."""
    name = metric.__name__
    scorer = _SharedScorer(metric, 1, {}, ("decision_function", "score_samples"))
    scorer.__doc__ = _SCORER_DOC.format(metric=name, scorer=name.removesuffix("_score"))
    return scorer


detector_roc_auc = _detector_scorer(detector_roc_auc_score)
detector_average_precision = _detector_scorer(detector_average_precision_score)
