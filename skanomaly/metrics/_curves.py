"""ROC and precision-recall curves."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_curve,
)

from ._plotting import REFERENCE, ScoreDisplay, label_once
from ._scorer import check_labels_and_scores, check_weights, is_one_class

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from numpy.typing import ArrayLike, NDArray

    Mask = NDArray[np.bool_]
    Values = NDArray[np.float64]

_CHANCE, _THRESHOLD = "chance", "detector's threshold"


def _share(part: Mask, whole: Mask, weight: Values) -> float:
    """Return the share of the part in the weight of the whole."""
    return float(np.average(part[whole], weights=weight[whole]))


class _CurveDisplay(ScoreDisplay):
    """A curve of two rates over all thresholds, with its area and its chance level.

    Subclasses compute the curve, and define its summary and labels.
    """

    _drawstyle = "default"
    _axis_labels: tuple[str, str]
    _legend_loc: Any
    operating_point: tuple[float, float] | None
    name: str | None

    @classmethod
    @abstractmethod
    def _compute(
        cls, anomalous: Mask, anomaly_score: Values, weight: Values, **params: Any
    ) -> Self:
        """Compute the curve, and make a Display from it."""

    @staticmethod
    @abstractmethod
    def _point(
        anomalous: Mask, flagged: Mask, weight: Values
    ) -> tuple[float, float] | None:
        """Return the point, in the plot, of a detector that flags these samples."""

    @abstractmethod
    def _curve(self) -> tuple[ArrayLike, ArrayLike]:
        """Return the curve's x and y."""

    @abstractmethod
    def _summary(self) -> tuple[str, float | None]:
        """Return the name and the value of the area under the curve."""

    @abstractmethod
    def _chance_level(self) -> tuple[tuple[float, float], str] | None:
        """Return y at x = 0 and at x = 1, and the text of the legend, if known."""

    @classmethod
    def _from_arrays(
        cls,
        y_true: ArrayLike | None,
        y_score: ArrayLike,
        *,
        sample_weight: ArrayLike | None,
        threshold: float | None,
        name: str | None,
    ) -> Self:
        if y_true is None:
            raise ValueError(f"{cls.__name__} needs labels: y is None.")
        anomalous, score = check_labels_and_scores(y_true, y_score)
        weight = check_weights(sample_weight, score)
        if is_one_class(anomalous, weight):
            raise ValueError(
                f"{cls.__name__} needs normal samples (+1) and anomalies (-1), but "
                "only one class is present in y_true, among the samples with a weight."
            )
        point = None
        if threshold is not None:
            point = cls._point(anomalous, score < threshold, weight)
        return cls._compute(anomalous, -score, weight, operating_point=point, name=name)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        name: str | None = None,
        plot_chance_level: bool = True,
        plot_operating_point: bool = True,
        curve_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the curve.

        For several detectors in one plot, give `ax=display.ax_` of the first to the
        others.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        name : str, default=None
            Name of the detector in the legend; None takes the stored one.
        plot_chance_level : bool, default=True
            Whether to draw the curve of scores without information.
        plot_operating_point : bool, default=True
            Whether to mark the threshold of the detector, if known.
        curve_kwargs : dict, default=None
            Passed to :meth:`matplotlib.axes.Axes.plot` for the curve.

        Returns
        -------
        Display
            The Display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.

        See Also
        --------
        DetectorRocDisplay : True against false positives.
        DetectorPrecisionRecallDisplay : Precision against recall.

        Examples
        --------
        >>> from skanomaly.metrics import DetectorRocDisplay
        >>> display = DetectorRocDisplay(fpr=[0, 0, 1], tpr=[0, 1, 1], name="perfect")
        >>> display.plot(curve_kwargs={"linewidth": 2}).line_.get_label()
        'perfect'
        """
        ax = self._start(ax)
        look = {"drawstyle": self._drawstyle, "label": self._label(name)}
        (self.line_,) = ax.plot(*self._curve(), **{**look, **(curve_kwargs or {})})
        self.chance_level_: Line2D | None = None
        if plot_chance_level:
            self.chance_level_ = self._draw_chance_level(ax)
        self.operating_point_: Line2D | None = None
        if plot_operating_point and self.operating_point is not None:
            self.operating_point_ = self._draw_point(ax, *self.operating_point)
        xlabel, ylabel = self._axis_labels
        limits = (-0.01, 1.01)
        ax.set(xlabel=xlabel, ylabel=ylabel, xlim=limits, ylim=limits, aspect="equal")
        self._draw_legend(ax)
        return self

    def _label(self, name: str | None) -> str | None:
        """Return the text of the legend: name and area, as far as known."""
        name = self.name if name is None else name
        metric, value = self._summary()
        if value is None:
            return name
        area = f"{metric} = {value:.2f}"
        return area if name is None else f"{name} ({area})"

    def _draw_legend(self, ax: Axes) -> None:
        """Draw the legend: curves first, then chance level and threshold."""
        entries = sorted(
            zip(*ax.get_legend_handles_labels(), strict=True),
            key=lambda entry: entry[1].startswith((_CHANCE, _THRESHOLD)),
        )
        if entries:
            handles = [handle for handle, _ in entries]
            labels = [label for _, label in entries]
            ax.legend(handles, labels, loc=self._legend_loc, frameon=False)

    def _draw_chance_level(self, ax: Axes) -> Line2D | None:
        """Draw the chance level, if it is known."""
        chance = self._chance_level()
        if chance is None:
            return None
        level, label = chance
        return ax.plot((0, 1), level, **REFERENCE, label=label_once(ax, label))[0]

    def _draw_point(self, ax: Axes, x: float, y: float) -> Line2D:
        """Mark the threshold of the detector, in the colour of the curve."""
        return ax.plot(
            [x],
            [y],
            linestyle="none",
            marker="o",
            color=self.line_.get_color(),
            markeredgecolor="white",
            clip_on=False,
            zorder=3,
            label=label_once(ax, _THRESHOLD),
        )[0]


@dataclass(kw_only=True, eq=False, repr=False)
class DetectorRocDisplay(_CurveDisplay):
    """ROC curve of a detector, the anomaly being the positive class.

    :class:`sklearn.metrics.RocCurveDisplay` refuses outlier detectors, and takes the
    normal samples for the positive class. Make it with `from_estimator` or
    `from_predictions`.

    Parameters
    ----------
    fpr : ndarray of shape (n_thresholds,)
        False positive rate: share of flagged normal samples.
    tpr : ndarray of shape (n_thresholds,)
        True positive rate: share of flagged anomalies.
    roc_auc : float, default=None
        Area under the curve, for the legend.
    operating_point : tuple of (float, float), default=None
        False and true positive rate at the threshold of the detector.
    name : str, default=None
        Name of the detector, for the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    chance_level_ : matplotlib Line2D or None
        The diagonal, if it is drawn.
    operating_point_ : matplotlib Line2D or None
        The mark of the threshold, if it is drawn.
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    detector_roc_auc_score : The area under the curve.
    DetectorPrecisionRecallDisplay : The curve that depends on the prevalence.

    Examples
    --------
    >>> from skanomaly.metrics import DetectorRocDisplay
    >>> display = DetectorRocDisplay.from_predictions(
    ...     [1, 1, -1, -1], [0.9, 0.4, 0.5, -0.7], threshold=0
    ... )
    >>> display.operating_point
    (0.0, 0.5)
    """

    _axis_labels = (
        "False positive rate (normal samples flagged)",
        "True positive rate (anomalies flagged)",
    )
    _legend_loc = "lower right"

    fpr: Values
    tpr: Values
    roc_auc: float | None = None
    operating_point: tuple[float, float] | None = None
    name: str | None = None

    @classmethod
    def _compute(
        cls, anomalous: Mask, anomaly_score: Values, weight: Values, **params: Any
    ) -> Self:
        fpr, tpr, _ = roc_curve(anomalous, anomaly_score, sample_weight=weight)
        return cls(fpr=fpr, tpr=tpr, roc_auc=float(auc(fpr, tpr)), **params)

    @staticmethod
    def _point(anomalous: Mask, flagged: Mask, weight: Values) -> tuple[float, float]:
        return _share(flagged, ~anomalous, weight), _share(flagged, anomalous, weight)

    def _curve(self) -> tuple[ArrayLike, ArrayLike]:
        return self.fpr, self.tpr

    def _summary(self) -> tuple[str, float | None]:
        return "AUROC", self.roc_auc

    def _chance_level(self) -> tuple[tuple[float, float], str] | None:
        return (0, 1), f"{_CHANCE} (AUROC = 0.50)"


@dataclass(kw_only=True, eq=False, repr=False)
class DetectorPrecisionRecallDisplay(_CurveDisplay):
    """Precision-recall curve of a detector, the anomaly being the positive class.

    The chance level is the prevalence: the share of anomalies. Make it with
    `from_estimator` or `from_predictions`.

    Parameters
    ----------
    precision : ndarray of shape (n_thresholds + 1,)
        Share of anomalies among the flagged samples.
    recall : ndarray of shape (n_thresholds + 1,)
        Share of flagged anomalies.
    average_precision : float, default=None
        Average precision, for the legend.
    prevalence : float, default=None
        Share of anomalies; None draws no chance level.
    operating_point : tuple of (float, float), default=None
        Recall and precision at the threshold of the detector.
    name : str, default=None
        Name of the detector, for the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve, in steps, without interpolation of the precision.
    chance_level_ : matplotlib Line2D or None
        The line at the prevalence, if it is drawn.
    operating_point_ : matplotlib Line2D or None
        The mark of the threshold, if it is drawn and the detector flags samples:
        otherwise there is no precision.
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    detector_average_precision_score : The summary in the legend.
    DetectorRocDisplay : The curve that does not depend on the prevalence.

    Examples
    --------
    >>> from skanomaly.metrics import DetectorPrecisionRecallDisplay
    >>> display = DetectorPrecisionRecallDisplay.from_predictions(
    ...     [1, 1, 1, -1], [0.9, 0.4, 0.5, -0.7]
    ... )
    >>> display.prevalence
    0.25
    """

    _drawstyle = "steps-post"
    _axis_labels = (
        "Recall (anomalies flagged)",
        "Precision (anomalies among the flagged)",
    )
    _legend_loc = "best"

    precision: Values
    recall: Values
    average_precision: float | None = None
    prevalence: float | None = None
    operating_point: tuple[float, float] | None = None
    name: str | None = None

    @classmethod
    def _compute(
        cls, anomalous: Mask, anomaly_score: Values, weight: Values, **params: Any
    ) -> Self:
        weighted = {"sample_weight": weight}
        precision, recall, _ = precision_recall_curve(
            anomalous, anomaly_score, **weighted
        )
        average_precision = average_precision_score(
            anomalous, anomaly_score, **weighted
        )
        return cls(
            precision=precision,
            recall=recall,
            average_precision=float(average_precision),
            prevalence=float(np.average(anomalous, weights=weight)),
            **params,
        )

    @staticmethod
    def _point(
        anomalous: Mask, flagged: Mask, weight: Values
    ) -> tuple[float, float] | None:
        if not weight[flagged].any():
            return None
        return _share(flagged, anomalous, weight), _share(anomalous, flagged, weight)

    def _curve(self) -> tuple[ArrayLike, ArrayLike]:
        return self.recall, self.precision

    def _summary(self) -> tuple[str, float | None]:
        return "AP", self.average_precision

    def _chance_level(self) -> tuple[tuple[float, float], str] | None:
        if self.prevalence is None:
            return None
        return (self.prevalence,) * 2, f"{_CHANCE} (prevalence = {self.prevalence:.2g})"
