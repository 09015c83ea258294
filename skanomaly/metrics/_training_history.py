"""Losses over the epochs."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ._plotting import REFERENCE, Display

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray
    from sklearn.base import BaseEstimator


@dataclass(eq=False, repr=False)
class TrainingHistoryDisplay(Display):
    """Curves of the losses over the epochs, with marks of the training stages.

    Make it with `from_estimator`. For a logarithmic scale, call
    `display.ax_.set_yscale("log")`.

    Parameters
    ----------
    epochs : ndarray of shape (n_epochs,)
        Number of each epoch, increasing.
    losses : dict of str to ndarray of shape (n_epochs,)
        Loss per epoch by name; NaN in epochs without it.
    stages : sequence of str or None, of length n_epochs, default=None
        Stage of each epoch; None draws no stages.
    name : str, default=None
        Name of the detector, for the title.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        The curves by name of the loss.
    stage_lines_ : list of matplotlib Line2D
        The borders between the stages.
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.

    See Also
    --------
    ScoreDistributionDisplay : The scores of the trained detector.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.metrics import TrainingHistoryDisplay
    >>> display = TrainingHistoryDisplay(
    ...     np.arange(1, 4), {"critic_loss": np.array([0.9, 0.5, 0.4])}
    ... )
    >>> list(display.plot().lines_)
    ['critic_loss']
    """

    epochs: NDArray[np.int_]
    losses: Mapping[str, NDArray[np.float64]]
    _: KW_ONLY
    stages: Sequence[str | None] | None = None
    name: str | None = None

    @classmethod
    def from_estimator(
        cls,
        detector: BaseEstimator,
        *,
        names: str | Sequence[str] | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> Self:
        """Read the history of a fitted detector and draw.

        Parameters
        ----------
        detector : estimator instance
            Fitted detector with `history_`: a list of dicts, one per epoch. All
            numbers but those of "epoch", "stage" and "duration" are losses.
        names : str or sequence of str, default=None
            Losses to draw, in this order. None draws those with "loss" at the end of
            the name, or all, if there are none.
        name : str, default=None
            Name of the detector in the title; None takes the name of its class.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        TrainingHistoryDisplay
            The Display, drawn.

        Raises
        ------
        AttributeError
            If `detector` is fitted, but has no `history_`.
        ImportError
            If matplotlib is not installed.
        sklearn.exceptions.NotFittedError
            If `detector` is not fitted.
        ValueError
            If the history holds no loss, or none of a name in `names`.

        See Also
        --------
        TrainingHistoryDisplay.plot : Draws the stored curves again.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> from skanomaly.metrics import TrainingHistoryDisplay
        >>> detector = SimpleNamespace(
        ...     history_=[
        ...         {"epoch": 1, "stage": "gan", "critic_loss": 0.9, "duration": 0.1},
        ...         {"epoch": 2, "stage": "detector", "detector_loss": 0.5},
        ...     ]
        ... )
        >>> display = TrainingHistoryDisplay.from_estimator(detector)
        >>> list(display.losses)
        ['critic_loss', 'detector_loss']
        """
        if not hasattr(detector, "history_"):
            check_is_fitted(detector)
            raise AttributeError(
                f"{type(detector).__name__} has no `history_`, unlike the detectors of "
                "skanomaly. Give the last step of a pipeline, or best_estimator_ of a "
                "search."
            )
        history = list(detector.history_)
        return cls(
            _epochs(history),
            _losses(history, names),
            stages=[record.get("stage") for record in history],
            name=type(detector).__name__ if name is None else name,
        ).plot(ax=ax, **plot_params)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        plot_stages: bool = True,
        curve_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the curves and the stages.

        Epochs without a value are skipped: a loss of every fifth epoch is one line.
        Lines end with their stage.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        plot_stages : bool, default=True
            Whether to mark the stages, if there are several.
        curve_kwargs : dict, default=None
            Passed to :meth:`matplotlib.axes.Axes.plot` for every curve.

        Returns
        -------
        TrainingHistoryDisplay
            The Display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.

        See Also
        --------
        TrainingHistoryDisplay.from_estimator : Reads a history and draws.

        Examples
        --------
        >>> from skanomaly.metrics import TrainingHistoryDisplay
        >>> display = TrainingHistoryDisplay([1, 2], {"loss": [0.9, 0.5]})
        >>> display.plot().ax_.get_xlabel()
        'Epoch'
        """
        from matplotlib.ticker import MaxNLocator

        ax = self._start(ax)
        self.lines_ = {
            name: self._draw_loss(name, curve_kwargs or {}) for name in self.losses
        }
        self.stage_lines_ = self._draw_stages() if plot_stages else []
        ax.set(xlabel="Epoch", ylabel="Loss")
        ax.xaxis.set_major_locator(
            MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])
        )
        if self.name is not None:
            ax.set_title(self.name, pad=20 if self.stage_lines_ else None)
        ax.legend(loc="best", frameon=False)
        return self

    def _stage_starts(self) -> NDArray[np.int_]:
        """Return the positions of the first epochs of stages, without the first."""
        changes = [a != b for a, b in pairwise(self.stages or [])]
        return np.flatnonzero(changes) + 1

    def _curve(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return epochs and values of a loss, with NaN where the line breaks."""
        losses = np.asarray(self.losses[name], dtype=float)
        kept = np.flatnonzero(np.isfinite(losses))
        breaks = np.searchsorted(kept, self._stage_starts())
        breaks = np.unique(breaks[(breaks > 0) & (breaks < kept.size)])
        epochs = np.asarray(self.epochs, dtype=float)[kept]
        return np.insert(epochs, breaks, np.nan), np.insert(
            losses[kept], breaks, np.nan
        )

    def _draw_loss(self, name: str, curve_kwargs: Mapping[str, Any]) -> Line2D:
        """Draw one loss, with dots for values without neighbours."""
        epochs, losses = self._curve(name)
        gap = np.r_[True, np.isnan(losses), True]
        alone = ~gap[1:-1] & gap[:-2] & gap[2:]
        look: dict[str, Any] = {"label": name}
        if alone.any():
            look |= {"marker": ".", "markevery": alone.tolist()}
        return self.ax_.plot(epochs, losses, **{**look, **curve_kwargs})[0]

    def _draw_stages(self) -> list[Line2D]:
        """Draw the borders between the stages, and their names above the axes."""
        starts = self._stage_starts()
        if not starts.size:
            return []
        epochs = np.asarray(self.epochs, dtype=float)
        borders = (epochs[starts - 1] + epochs[starts]) / 2
        names = [(self.stages or [])[start] or "" for start in (0, *starts)]
        for name, x in zip(names, [epochs[0], *borders], strict=True):
            self.ax_.annotate(
                name,
                (x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                color=REFERENCE["color"],
            )
        return [self.ax_.axvline(x, **REFERENCE) for x in borders]


def _epochs(history: list[Mapping[str, Any]]) -> NDArray[np.int_]:
    """Return the recorded numbers of the epochs, or a count if they start anew."""
    count = np.arange(1, len(history) + 1)
    epochs = np.array([r.get("epoch", i) for r, i in zip(history, count, strict=True)])
    return epochs if (np.diff(epochs) > 0).all() else count


def _losses(
    history: list[Mapping[str, Any]], names: str | Sequence[str] | None
) -> dict[str, NDArray[np.float64]]:
    """Return the losses by name, NaN where an epoch has none."""
    known = dict.fromkeys(
        key
        for record in history
        for key, value in record.items()
        if key not in ("epoch", "stage", "duration")
        and isinstance(value, Real)
        and not isinstance(value, bool)
    )
    if not known:
        raise ValueError("The history holds no loss.")
    if names is None:
        names = [name for name in known if name.endswith("loss")] or list(known)
    names = [names] if isinstance(names, str) else names
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"No losses named {unknown}; there are {list(known)}.")
    return {
        name: np.array([record.get(name) for record in history], dtype=float)
        for name in names
    }
