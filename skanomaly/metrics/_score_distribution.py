"""Histograms of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._plotting import BLUE, ORANGE, REFERENCE, ScoreDisplay
from ._scorer import check_labels_and_scores, check_scores, check_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.patches import StepPatch
    from numpy.typing import ArrayLike, NDArray

_LOWEST = float(np.finfo(np.float32).min)


class ScoreDistributionDisplay(ScoreDisplay):
    """Histograms of the scores of normal samples and of anomalies.

    Each class has a density of its own, so that a few anomalies stay visible next to
    many normal samples. Both have the same bins. Samples with the lowest number of
    float32, the score of samples without finite outputs, are counted but not drawn:
    bins down to them would put all others into one. Make it with `from_estimator` or
    `from_predictions`.

    Parameters
    ----------
    y_score : array-like of shape (n_samples,)
        Scores, higher meaning more normal.
    y_true : array-like of shape (n_samples,), default=None
        Labels: +1 for a normal sample, -1 for an anomaly. None draws one histogram of
        all samples.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in the density.
    threshold : float, default=None
        Samples that score below are predicted as anomalies. None draws no threshold.
    name : str, default=None
        Name of the detector, before each label of the legend.

    Attributes
    ----------
    histograms_ : dict of str to matplotlib StepPatch
        The histograms by class: "normal" and "anomaly", or "all samples".
    line_ : matplotlib Line2D or None
        The threshold, if it is drawn.
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.

    Raises
    ------
    ValueError
        If `y_true` holds other labels than +1 and -1, a score is not finite or the
        lengths differ.

    See Also
    --------
    DetectorRocDisplay : The rates of all thresholds.

    Examples
    --------
    >>> from skanomaly.metrics import ScoreDistributionDisplay
    >>> display = ScoreDistributionDisplay.from_predictions(
    ...     [1, 1, 1, -1], [0.2, 0.3, 0.4, -0.5], threshold=0, bins=10
    ... )
    >>> list(display.histograms_)
    ['normal', 'anomaly']
    """

    def __init__(
        self,
        y_score: ArrayLike,
        y_true: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        self.y_score = check_scores(y_score)
        self.y_true: NDArray[np.int_] | None = None
        if y_true is not None:
            anomalous, _ = check_labels_and_scores(y_true, y_score)
            self.y_true = np.where(anomalous, -1, 1)
        self.sample_weight = check_weights(sample_weight, self.y_score)
        self.threshold = threshold
        self.name = name

    @classmethod
    def _from_arrays(
        cls, y_true: ArrayLike | None, y_score: ArrayLike, **params: Any
    ) -> Self:
        return cls(y_score, y_true, **params)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        bins: int | str | Sequence[float] = 30,
        plot_threshold: bool = True,
        hist_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the histograms and the threshold.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        bins : int, str or sequence of float, default=30
            Bins over all scores, as in :func:`numpy.histogram_bin_edges`.
        plot_threshold : bool, default=True
            Whether to draw the threshold, if there is one.
        hist_kwargs : dict, default=None
            Passed to :meth:`matplotlib.axes.Axes.stairs` for every histogram. A
            `color` is for the edge, and in a lighter shade for the face.

        Returns
        -------
        ScoreDistributionDisplay
            The Display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.

        See Also
        --------
        ScoreDistributionDisplay.from_estimator : Scores samples and draws.

        Examples
        --------
        >>> from skanomaly.metrics import ScoreDistributionDisplay
        >>> display = ScoreDistributionDisplay([0.2, 0.3, 0.4, -0.5])
        >>> display.plot(bins=5).ax_.get_ylabel()
        'Density'
        """
        ax = self._start(ax)
        within = self.y_score[self.y_score > _LOWEST]
        edges = np.histogram_bin_edges(within, bins)
        self.histograms_ = {
            label: self._histogram(label, chosen, color, edges, hist_kwargs or {})
            for label, chosen, color in self._groups()
            if self.sample_weight[chosen].any()
        }
        self.line_: Line2D | None = None
        if plot_threshold and self.threshold is not None:
            label = self._named(f"threshold ({self.threshold:.3g})")
            self.line_ = ax.axvline(self.threshold, **REFERENCE, label=label)
        ax.set(xlabel="Score (higher = more normal)", ylabel="Density")
        ax.legend(loc="best", frameon=False)
        return self

    def _named(self, label: str) -> str:
        return label if self.name is None else f"{self.name}: {label}"

    def _groups(self) -> list[tuple[str, NDArray[np.bool_], str]]:
        """List the histograms: label, mask of the samples, colour."""
        if self.y_true is None:
            return [("all samples", np.ones(self.y_score.shape, dtype=bool), BLUE)]
        anomalous = np.equal(self.y_true, -1)
        return [("normal", ~anomalous, BLUE), ("anomaly", anomalous, ORANGE)]

    def _histogram(
        self,
        label: str,
        chosen: NDArray[np.bool_],
        color: str,
        edges: NDArray[np.float64],
        hist_kwargs: Mapping[str, Any],
    ) -> StepPatch:
        """Draw the density of the scores of some samples."""
        from matplotlib.colors import to_rgba

        # With a colour for the face, stairs ignores `color`.
        color = hist_kwargs.get("color", color)
        weight = self.sample_weight[chosen]
        counts, _ = np.histogram(self.y_score[chosen], edges, weights=weight)
        density = counts / (weight.sum() * np.diff(edges))
        look = {
            "fill": True,
            "facecolor": to_rgba(color, 0.35),
            "edgecolor": color,
            "linewidth": 1.2,
            "label": self._named(f"{label} (n = {chosen.sum()})"),
        }
        return self.ax_.stairs(density, edges, **{**look, **hist_kwargs})
