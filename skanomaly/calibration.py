"""A calibrated detector made of any other."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import clone
from sklearn.model_selection import KFold, ShuffleSplit
from sklearn.utils import check_random_state, indexable
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    process_routing,
)
from sklearn.utils.validation import check_is_fitted

from ._conformal import ConformalMixin, threshold
from .exceptions import CalibrationWarning, FalseAlarmWarning
from .utils._documentation import DocumentationMixin
from .utils._labels import known_anomalies
from .utils._scores import scores_of
from .utils._sklearn_compat import (
    HasMethods,
    Integral,
    Interval,
    Real,
    StrOptions,
    fit_context,
    raise_for_params,
    safe_indexing,
    sliced_params,
)
from .utils._sklearn_types import BaseEstimator, OutlierMixin
from .utils._warnings import quiet, warn

__all__ = ["ConformalDetector"]

#: Fewer samples than this are calibrated by folds, where ``calibration="auto"``.
_FEW = 1000
_FOLDS, _SHARE = 5, 0.2
#: The largest fraction of a rank, so that sums of ranks and fractions keep both.
_BELOW_ONE = 1 - 1e-6

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Indices = NDArray[np.intp]


class ConformalDetector(
    ConformalMixin, DocumentationMixin, OutlierMixin, BaseEstimator
):
    r"""Any outlier detector, with a threshold that keeps a rate of false alarms.

    The detector is trained on a part of the samples, and the others are scored: the
    scores of new normal samples have the same distribution as theirs. With folds, each
    sample is scored by a detector that was not trained on it, and a new one by all of
    them (CV+, [1]_): where samples are few, none is lost for training.

    Parameters
    ----------
    estimator : object
        A detector, or a Pipeline that ends in one, with ``score_samples`` or
        ``decision_function``, higher for more normal samples.
    false_alarm_rate : float in (0, 1), default=0.05
        Share of new normal samples that are flagged, on average over training sets.
    calibration : "auto", "prefit", float, int or splitter, default="auto"
        Origin of the calibration scores: a float in (0, 1) holds that share of the
        samples out; an integer of at least 2 is a number of folds, and a splitter of
        scikit-learn makes its own; "prefit" takes `estimator` as it is, fitted, and all
        samples given to :meth:`fit` calibrate. "auto" makes 5 folds of fewer than 1,000
        samples, and holds out a fifth of more.
    n_jobs : int, default=None
        Number of folds trained at once; None is 1 unless in a
        :obj:`joblib.parallel_config` context.
    random_state : int, RandomState instance or None, default=None
        Draws the samples that are held out, or the folds. `estimator` has a state of
        its own.

    Attributes
    ----------
    estimators_ : list of object
        The fitted detectors: one, or one for each fold.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Scores of the calibration samples, in ascending order.
    offset_ : float
        The threshold: ``decision_function(X) = score_samples(X) - offset_``.
    n_features_in_ : int
        Number of features seen in ``fit``, where `estimator` counts them.
    feature_names_in_ : ndarray of str
        Their names, where `estimator` knows them.

    See Also
    --------
    skanomaly.metrics.detector_roc_auc_score : How well scores rank.

    Notes
    -----
    With folds, a sample is compared in each fold with the calibration samples of that
    fold, by the detector that was not trained on them. Its score is

    .. math:: \frac{1}{n + 1} \Big( \sum_f \#\{i \in f : s_i \le s_f\} + r \Big)

    where r in [0, 1) is the mean of its positions between two neighbouring calibration
    scores, so that samples beyond all of them are still ranked. p-values and
    :meth:`predict` follow from it as from any score. The bound that is proved for folds
    is about twice the rate. In practice it is the rate, or less where the detectors of
    the folds differ: with 99 samples and a rate of .05 it was .049 with
    ``LocalOutlierFactor``, and .040 with forests of 20 trees.

    Samples with ``y == -1``, known anomalies, are never calibration samples; they are
    in the training set of each fold.

    Anomalies among the calibration samples lower the threshold: fewer normal samples
    are flagged than asked for, and some anomalies are missed.

    The folds of a splitter must not overlap, since each calibration sample counts once.
    ``GroupKFold`` takes its groups from ``fit(X, groups=groups)``.

    References
    ----------
    .. [1] R. F. Barber, E. J. Candès, A. Ramdas and R. J. Tibshirani, "Predictive
       inference with the jackknife+", Annals of Statistics 49, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from skanomaly import ConformalDetector
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> forest = IsolationForest(random_state=0)
    >>> detector = ConformalDetector(forest, random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [4.0, -5.0]])
    array([ 1, -1])
    >>> detector.p_value([[4.0, -5.0]]).round(3)
    array([0.002])
    """

    _parameter_constraints = {  # noqa: RUF012
        "estimator": [HasMethods("fit")],
        "false_alarm_rate": [Interval(Real, 0, 1, closed="neither")],
        "calibration": [
            StrOptions({"auto", "prefit"}),
            Interval(Real, 0, 1, closed="neither"),
            Interval(Integral, 2, None, closed="left"),
            HasMethods(["split", "get_n_splits"]),
        ],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        false_alarm_rate: float = 0.05,
        calibration: Any = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.false_alarm_rate = false_alarm_rate
        self.calibration = calibration
        self.n_jobs = n_jobs
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: ArrayLike | None = None, **params: Any) -> Self:
        """Train the detector, and calibrate it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, as `estimator` takes them.
        y : array-like of shape (n_samples,), default=None
            Labels for `estimator`: -1 marks a known anomaly.
        **params : dict
            Metadata for the ``fit`` of `estimator` and the ``split`` of a splitter,
            with scikit-learn's metadata routing; those with a value per sample are
            divided like the samples. Without routing: `groups` for the splitter.

        Returns
        -------
        self
            The fitted detector.

        Raises
        ------
        ValueError
            If there are too few samples to divide, folds overlap, or a score is NaN.
            The detector is unchanged then.

        Warns
        -----
        CalibrationWarning
            If the rate cannot be reached with so few calibration samples, or all
            calibration scores are equal.
        """
        fit_params, split_params = self._routed(params)
        X, y = indexable(X, y)
        splits = self._splits(X, y, split_params)
        if self.calibration == "prefit":
            if hasattr(self.estimator, "__sklearn_tags__"):
                check_is_fitted(self.estimator)
            estimators = [self.estimator]
        else:
            estimators = Parallel(n_jobs=self.n_jobs)(
                delayed(_fit_part)(self.estimator, X, y, fit_params, train)
                for train, _ in splits
            )
        fold_scores = [
            np.sort(scores_of(estimator, safe_indexing(X, held_out)))
            for estimator, (_, held_out) in zip(estimators, splits, strict=True)
        ]
        n = sum(map(len, fold_scores))
        scores = fold_scores[0]
        if len(estimators) > 1:
            scores = np.arange(1, n + 1) / (n + 1)
        if n > len(splits) and all(fold[0] == fold[-1] for fold in fold_scores):
            warn(
                f"All {n} calibration samples have the same score: the detector "
                "ranks nothing, and hardly any sample can be flagged.",
                CalibrationWarning,
            )
        # All at once, so that a fit that fails leaves the detector as it was.
        self.offset_ = threshold(scores, self.false_alarm_rate)
        self.estimators_, self._fold_scores = estimators, fold_scores
        self.calibration_scores_ = scores
        return self

    def fit_predict(
        self, X: Any, y: ArrayLike | None = None, **params: Any
    ) -> Integers:
        """Train the detector, calibrate it, and label the training samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, as for :meth:`fit`.
        y : array-like of shape (n_samples,), default=None
            Labels, as for :meth:`fit`.
        **params : dict
            Metadata, as for :meth:`fit`.

        Returns
        -------
        ndarray of shape (n_samples,)
            -1 for outliers, +1 for inliers.
        """
        # That of OutlierMixin does not pass y: known anomalies would calibrate.
        return self.fit(X, y, **params).predict(X)

    def _has_splitter(self) -> bool:
        return hasattr(self.calibration, "get_n_splits")

    def _routed(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the metadata for `estimator`, and those for the splitter."""
        allowed = ["groups"] if self._has_splitter() else None
        raise_for_params(params, self, "fit", allow=allowed)
        if not params or not get_config()["enable_metadata_routing"]:
            return {}, params
        if self.calibration == "prefit":
            raise ValueError(
                f"calibration='prefit' trains nothing, and has no use for "
                f"{', '.join(params)}."
            )
        routed = process_routing(self, "fit", **params)
        return routed.estimator.fit, routed.splitter.split if allowed else {}

    def _splits(
        self, X: Any, y: Any, params: dict[str, Any]
    ) -> list[tuple[Indices, Indices]]:
        """Return the samples to train on and the samples held out, for each fit."""
        n = X.shape[0] if hasattr(X, "shape") else len(X)  # sparse ones have no length
        is_known = known_anomalies(y, n)
        normal, known = np.flatnonzero(~is_known), np.flatnonzero(is_known)
        how = self.calibration
        if how == "auto":
            how = _FOLDS if len(normal) < _FEW else _SHARE
        least = how if isinstance(how, Integral) else 1
        if len(normal) < least:
            raise ValueError(
                f"calibration={self.calibration!r} needs at least {least} samples, and "
                f"X has n_samples={len(normal)}"
                f"{' without the known anomalies, y == -1' if len(known) else ''}."
            )
        if how == "prefit":
            return [(known, normal)]
        state = check_random_state(self.random_state)
        if isinstance(how, Integral):
            how = KFold(how, shuffle=True, random_state=state)
        elif isinstance(how, Real):
            how = ShuffleSplit(1, test_size=float(how), random_state=state)
        if len(known):
            params = sliced_params(X, params, normal)
            X, y = safe_indexing(X, normal), safe_indexing(y, normal)
        splits = list(how.split(X, y, **params))
        self._check_splits(splits)
        return [
            (np.sort(np.r_[normal[train], known]), normal[held_out])
            for train, held_out in splits
        ]

    def _check_splits(self, splits: list[tuple[Indices, Indices]]) -> None:
        """Refuse folds that do not give one score to each calibration sample."""
        fault = None
        if not splits or not all(len(held_out) for _, held_out in splits):
            fault = "holds no samples out"
        elif (
            np.bincount(np.concatenate([held_out for _, held_out in splits])).max() > 1
        ):
            fault = "holds samples out more than once"
        elif any(np.intersect1d(*split).size for split in splits):
            fault = "trains on samples that it holds out"
        if fault:
            raise ValueError(
                f"calibration={self.calibration!r} {fault}. Each fold has to hold out "
                "samples that no other fold holds out, and train on others."
            )

    def score_samples(self, X: Any) -> Floats:
        """Return how normal each sample is.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,)
            Higher is more normal: the scores of `estimator`; with folds, shares of the
            calibration samples that are less normal, in [0, 1].
        """
        check_is_fitted(self)
        scores = [scores_of(estimator, X) for estimator in self.estimators_]
        if len(scores) == 1:
            return scores[0]
        folds = zip(self._fold_scores, scores, strict=True)
        ranks, positions = zip(*(_rank(*fold) for fold in folds), strict=True)
        position = np.minimum(np.mean(positions, axis=0), _BELOW_ONE)
        n = len(self.calibration_scores_)
        out: Floats = (np.sum(ranks, axis=0) + position) / (n + 1)
        return out

    @property
    def n_features_in_(self) -> int:
        """Number of features seen in ``fit``."""
        if not hasattr(self, "estimators_"):
            raise AttributeError("ConformalDetector is not fitted: no n_features_in_.")
        n_features: int = self.estimators_[0].n_features_in_
        return n_features

    @property
    def feature_names_in_(self) -> NDArray[np.object_]:
        """Names of the features seen in ``fit``."""
        if not hasattr(self, "estimators_"):
            raise AttributeError(
                "ConformalDetector is not fitted: no feature_names_in_."
            )
        names: NDArray[np.object_] = self.estimators_[0].feature_names_in_
        return names

    def get_metadata_routing(self) -> MetadataRouter:
        """Return the routing of metadata to `estimator` and to a splitter.

        Returns
        -------
        sklearn.utils.metadata_routing.MetadataRouter
            The routing.
        """
        router = MetadataRouter(owner=self).add(
            estimator=self.estimator,
            method_mapping=MethodMapping().add(caller="fit", callee="fit"),
        )
        if self._has_splitter():
            mapping = MethodMapping().add(caller="fit", callee="split")
            router.add(splitter=self.calibration, method_mapping=mapping)
        return router

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        own = getattr(self.estimator, "__sklearn_tags__", None)
        if own is not None:
            inner = own()
            tags.input_tags = inner.input_tags
            tags.target_tags = inner.target_tags
        return tags


def _fit_part(
    estimator: Any, X: Any, y: Any, params: dict[str, Any], train: Indices
) -> Any:
    labels = () if y is None else (safe_indexing(y, train),)
    params = sliced_params(X, params, train)
    # Thresholds of the detector inside have no part in the result.
    with quiet(CalibrationWarning, FalseAlarmWarning):
        return clone(estimator).fit(safe_indexing(X, train), *labels, **params)


def _rank(calibration: Floats, scores: Floats) -> tuple[Indices, Floats]:
    """Return the numbers of lower calibration scores, and positions above them.

    A position is in [0, 1): between two calibration scores it is linear, and beyond all
    of them it falls, or grows, with the distance to the last one.
    """
    rank = np.searchsorted(calibration, scores, side="right")
    low, high = calibration[0], calibration[-1]
    below = calibration[np.maximum(rank - 1, 0)]
    above = calibration[np.minimum(rank, len(calibration) - 1)]
    finite = calibration[np.isfinite(calibration)]
    # Scores may be infinite, nearly so, or nearly equal.
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        spread = 0.0
        if len(finite):
            spread = float(np.subtract(*np.quantile(finite, [0.75, 0.25])))
        if not 0 < spread < np.inf:
            spread = 1.0
        between = (scores - below) / (above - below)
        position = np.where(rank == 0, 1 / (1 + (low - scores) / spread), between)
        beyond = 1 - 1 / (1 + (scores - high) / spread)
        position = np.where(rank == len(calibration), beyond, position)
    return rank, np.clip(np.nan_to_num(position, nan=0.0), 0.0, _BELOW_ONE)
