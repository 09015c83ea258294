"""Parts of all Displays: matplotlib on demand, the axes, the look, the scores.

A Display has the interface of scikit-learn's: a constructor that stores arrays, class
methods `from_...` that take an estimator or predictions, and `plot`, which draws the
stored arrays, if need be again on other axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import ArrayLike
    from sklearn.base import BaseEstimator

BLUE, ORANGE = "#0072B2", "#D55E00"
PALETTE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Colours of Okabe and Ito, told apart by colour-blind readers too."""

REFERENCE: dict[str, Any] = {
    "color": "0.35",
    "linestyle": "--",
    "linewidth": 1.0,
    "zorder": 1.5,
}
"""Look of the lines that are not data: chance levels, thresholds, stages."""


def import_pyplot(caller: str) -> Any:
    """Return `matplotlib.pyplot`, or raise an error that says how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib: `pip install skanomaly[plot]`."
        ) from error
    return plt


def detector_scores(detector: BaseEstimator, X: ArrayLike) -> tuple[Any, float | None]:
    """Return the scores of `X`, and the threshold of `predict` if known."""
    if hasattr(detector, "decision_function"):
        return detector.decision_function(X), 0.0
    return detector.score_samples(X), None


def label_once(ax: Axes, label: str) -> str | None:
    """Return `label`, or None if an artist of the axes has it already."""
    return None if label in ax.get_legend_handles_labels()[1] else label


class Display:
    """Base of the Displays, with the axes of the last plot."""

    ax_: Axes
    figure_: Figure | SubFigure

    def _start(self, ax: Axes | None) -> Axes:
        """Take the given axes unchanged, or make new ones in one style."""
        plt = import_pyplot(type(self).__name__)
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_prop_cycle(
                plt.cycler(linestyle=["-", "--", ":"]) * plt.cycler(color=PALETTE)
            )
        self.ax_, self.figure_ = ax, ax.figure
        return ax


class ScoreDisplay(Display, ABC):
    """Base of the Displays of labels and scores."""

    @classmethod
    @abstractmethod
    def _from_arrays(
        cls,
        y_true: ArrayLike | None,
        y_score: ArrayLike,
        *,
        sample_weight: ArrayLike | None,
        threshold: float | None,
        name: str | None,
    ) -> Self:
        """Check the arrays, and make a Display from them."""

    @abstractmethod
    def plot(self, ax: Axes | None = None, *args: Any, **kwargs: Any) -> Self:
        """Draw the stored arrays."""

    @classmethod
    def from_estimator(
        cls,
        detector: BaseEstimator,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> Self:
        """Score samples with a fitted detector and draw.

        The scores are those of `decision_function`, with a threshold of 0, or of
        `score_samples`, without a threshold, for a detector that has no other.

        Parameters
        ----------
        detector : estimator instance
            Fitted outlier detector, or a fitted pipeline that ends in one.
        X : array-like of shape (n_samples, ...)
            Samples to score.
        y : array-like of shape (n_samples,), default=None
            Labels: +1 for a normal sample, -1 for an anomaly. Optional for
            :class:`ScoreDistributionDisplay` alone.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        name : str, default=None
            Name of the detector in the plot; None takes the name of its class.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        Display
            The Display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        sklearn.exceptions.NotFittedError
            If `detector` is not fitted.
        ValueError
            If `y` holds other labels than +1 and -1, or the lengths differ; for a
            curve also if `y` holds only one of the two.

        See Also
        --------
        ScoreDistributionDisplay.from_predictions : The same from scores.
        DetectorRocDisplay.from_predictions : The same from scores.
        DetectorPrecisionRecallDisplay.from_predictions : The same from scores.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.neighbors import LocalOutlierFactor
        >>> from skanomaly.metrics import DetectorRocDisplay
        >>> X = np.r_[np.linspace(0, 1, 50), 5, -5].reshape(-1, 1)
        >>> y = np.r_[np.ones(50), -1, -1]
        >>> detector = LocalOutlierFactor(novelty=True).fit(X[:50])
        >>> display = DetectorRocDisplay.from_estimator(detector, X, y)
        >>> float(display.roc_auc)
        1.0
        """
        import_pyplot(f"{cls.__name__}.from_estimator")
        y_score, threshold = detector_scores(detector, X)
        name = type(detector).__name__ if name is None else name
        return cls.from_predictions(
            y,
            y_score,
            sample_weight=sample_weight,
            threshold=threshold,
            name=name,
            ax=ax,
            **plot_params,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike | None,
        y_score: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        threshold: float | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> Self:
        """Draw labels and scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,) or None
            Labels: +1 for a normal sample, -1 for an anomaly. Optional for
            :class:`ScoreDistributionDisplay` alone.
        y_score : array-like of shape (n_samples,)
            Output of `score_samples` or `decision_function`: higher means more normal.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        threshold : float, default=None
            Samples that score below are predicted as anomalies: 0 for the output of
            `decision_function`. None draws no threshold.
        name : str, default=None
            Name of the detector in the plot.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        Display
            The Display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `y_true` holds other labels than +1 and -1, a score is not finite or
            the lengths differ; for a curve also if `y_true` holds only one of the two.

        See Also
        --------
        ScoreDistributionDisplay.from_estimator : The same from a fitted detector.
        DetectorRocDisplay.from_estimator : The same from a fitted detector.
        DetectorPrecisionRecallDisplay.from_estimator : The same from a fitted detector.

        Examples
        --------
        >>> from skanomaly.metrics import DetectorRocDisplay
        >>> display = DetectorRocDisplay.from_predictions(
        ...     [1, 1, -1, -1], [0.9, 0.4, 0.5, -0.7], threshold=0, name="mine"
        ... )
        >>> display.ax_.get_legend().get_texts()[0].get_text()
        'mine (AUROC = 0.75)'
        """
        display = cls._from_arrays(
            y_true,
            y_score,
            sample_weight=sample_weight,
            threshold=threshold,
            name=name,
        )
        return display.plot(ax=ax, **plot_params)
