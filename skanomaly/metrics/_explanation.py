"""Bars and maps of the contributions of columns."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_array

from ..explanation import explain
from ..utils._sklearn_compat import COUNT
from ._plotting import BLUE, ORANGE, REFERENCE, Display, import_pyplot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.container import BarContainer
    from matplotlib.image import AxesImage
    from numpy.typing import ArrayLike, NDArray
    from sklearn.base import BaseEstimator

_LABEL = "Contribution to the anomaly score"
#: Maximum number of characters of a name or a value.
_LONGEST = 28


class ExplanationDisplay(Display):
    """Contributions of columns to anomaly scores: bars of one sample, a map of many.

    Make it with `from_estimator` or `from_explanation`.

    Parameters
    ----------
    contributions : array-like or data frame of shape (n_samples, n_features)
        Output of :func:`skanomaly.explain`, or (n_features,) of one sample: positive
        where a column makes a sample more anomalous. Infinite ones are drawn a little
        beyond the largest other one.
    X : array-like or data frame of shape (n_samples, n_features), default=None
        The samples, whose values stand beside the bars; None leaves these out.
    feature_names : sequence of str, default=None
        Names of the columns; None takes those of a data frame, or x0, x1 and so on.
    name : str, default=None
        Name of the detector, for the title.

    Attributes
    ----------
    bars_ : matplotlib BarContainer or None
        The bars, if a single sample is drawn.
    image_ : matplotlib AxesImage or None
        The map, if several samples are drawn.
    colorbar_ : matplotlib Colorbar or None
        The scale of the map.
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.

    Raises
    ------
    ValueError
        If a contribution is NaN, or `X` or `feature_names` do not belong to them.

    See Also
    --------
    skanomaly.explain : Computes the contributions.
    ScoreDistributionDisplay : The scores that are explained.

    Examples
    --------
    >>> from skanomaly.metrics import ExplanationDisplay
    >>> display = ExplanationDisplay([[0.1, 2.0]], feature_names=["age", "weight"])
    >>> [label.get_text() for label in display.plot().ax_.get_yticklabels()]
    ['weight', 'age']
    """

    def __init__(
        self,
        contributions: ArrayLike,
        X: ArrayLike | None = None,
        *,
        feature_names: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        values = np.asarray(contributions, dtype=np.float64)
        self.contributions: NDArray[np.float64] = check_array(
            np.atleast_2d(values), ensure_all_finite=False, input_name="contributions"
        )
        if np.isnan(self.contributions).any():
            raise ValueError("contributions holds NaN.")
        self.X = X
        if X is not None and np.shape(X) != values.shape:
            raise ValueError(
                f"X has the shape {np.shape(X)}, and the contributions {values.shape}."
            )
        self.feature_names = _names(contributions, X, feature_names, values.shape[-1])
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        detector: BaseEstimator,
        X: ArrayLike,
        reference: ArrayLike,
        *,
        n_neighbors: int = 3,
        feature_names: ArrayLike | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> Self:
        """Explain the scores of samples by a fitted detector and draw.

        Parameters
        ----------
        detector : estimator instance
            Fitted outlier detector, or a fitted pipeline that ends in one.
        X : array-like or data frame of shape (n_samples, n_features)
            Samples to explain.
        reference : array-like or data frame of shape (n_reference, n_features)
            Normal samples, of the kind of `X`; some hundred are enough.
        n_neighbors : int, default=3
            Number of reference samples whose values stand for a column.
        feature_names : sequence of str, default=None
            Names of the columns; None takes those of a data frame, or x0, x1 and so on.
        name : str, default=None
            Name of the detector in the title; None takes the name of its class.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        ExplanationDisplay
            The Display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        sklearn.exceptions.NotFittedError
            If `detector` is not fitted.
        TypeError, ValueError
            If the samples cannot be explained, see :func:`skanomaly.explain`.

        See Also
        --------
        ExplanationDisplay.from_explanation : The same from contributions.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.neighbors import LocalOutlierFactor
        >>> from skanomaly.metrics import ExplanationDisplay
        >>> X = np.random.default_rng(0).normal(size=(100, 2))
        >>> detector = LocalOutlierFactor(novelty=True).fit(X)
        >>> display = ExplanationDisplay.from_estimator(detector, [[0.0, 9.0]], X)
        >>> [label.get_text() for label in display.ax_.get_yticklabels()]
        ['x1 = 9', 'x0 = 0']
        """
        import_pyplot(f"{cls.__name__}.from_estimator")
        return cls.from_explanation(
            explain(detector, X, reference, n_neighbors=n_neighbors),
            X,
            feature_names=feature_names,
            name=type(detector).__name__ if name is None else name,
            ax=ax,
            **plot_params,
        )

    @classmethod
    def from_explanation(
        cls,
        contributions: ArrayLike,
        X: ArrayLike | None = None,
        *,
        feature_names: ArrayLike | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> Self:
        """Draw contributions.

        Parameters
        ----------
        contributions : array-like or data frame of shape (n_samples, n_features)
            Output of :func:`skanomaly.explain`, or (n_features,) of one sample.
        X : array-like or data frame of shape (n_samples, n_features), default=None
            The samples, whose values stand beside the bars; None leaves these out.
        feature_names : sequence of str, default=None
            Names of the columns; None takes those of a data frame, or x0, x1 and so on.
        name : str, default=None
            Name of the detector in the title.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        ExplanationDisplay
            The Display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If a contribution is NaN, or `X` or `feature_names` do not belong to them.

        See Also
        --------
        ExplanationDisplay.from_estimator : The same from a fitted detector.

        Examples
        --------
        >>> from skanomaly.metrics import ExplanationDisplay
        >>> display = ExplanationDisplay.from_explanation([[0.1, 2.0], [1.0, -0.5]])
        >>> display.image_.get_array().shape  # columns, samples
        (2, 2)
        """
        display = cls(contributions, X, feature_names=feature_names, name=name)
        return display.plot(ax=ax, **plot_params)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        sample: int | None = None,
        max_features: int = 10,
        bar_kwargs: Mapping[str, Any] | None = None,
        image_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the bars of one sample, or the map of several.

        The columns with the largest contributions are drawn, in either direction: of
        the sample, or in the mean over the samples. The colours of a map end at the
        quantile of 98 %, so that a few extreme samples do not hide the others.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        sample : int, default=None
            Position of the only sample to draw. None draws all.
        max_features : int, default=10
            Maximum number of columns to draw.
        bar_kwargs : dict, default=None
            Passed to :meth:`matplotlib.axes.Axes.barh` for the bars.
        image_kwargs : dict, default=None
            Passed to :meth:`matplotlib.axes.Axes.imshow` for the map.

        Returns
        -------
        ExplanationDisplay
            The Display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        IndexError
            If there is no `sample`.

        See Also
        --------
        ExplanationDisplay.from_estimator : Explains samples and draws.

        Examples
        --------
        >>> from skanomaly.metrics import ExplanationDisplay
        >>> display = ExplanationDisplay([[0.1, 2.0], [1.0, -0.5]])
        >>> [float(bar.get_width()) for bar in display.plot(sample=1).bars_]
        [1.0, -0.5]
        """
        if not COUNT.is_satisfied_by(max_features):
            raise ValueError(f"max_features={max_features!r} has to be {COUNT}.")
        ax = self._start(ax)
        self.bars_: BarContainer | None = None
        self.image_: AxesImage | None = None
        self.colorbar_: Colorbar | None = None
        if sample is None and len(self.contributions) == 1:
            sample = 0
        if sample is not None:
            self.bars_ = self._draw_bars(ax, sample, max_features, bar_kwargs or {})
        else:
            self.image_ = self._draw_map(ax, max_features, image_kwargs or {})
        if self.name is not None:
            ax.set_title(self.name)
        return self

    def _draw_bars(
        self, ax: Axes, sample: int, n: int, bar_kwargs: Mapping[str, Any]
    ) -> BarContainer:
        """Draw the largest contributions to one sample, the largest on top."""
        values = _finite(self.contributions)[sample]
        chosen = _largest(values, n)
        labels = [self._described(sample, j) for j in chosen]
        look = {"color": np.where(values[chosen] > 0, ORANGE, BLUE)}
        places = np.arange(len(chosen))
        bars = ax.barh(places, values[chosen], **{**look, **bar_kwargs})
        ax.set_yticks(places, labels)
        ax.axvline(0, **{**REFERENCE, "linestyle": "-"})
        ax.invert_yaxis()
        ax.set_xlabel(_LABEL)
        return bars

    def _draw_map(self, ax: Axes, n: int, image_kwargs: Mapping[str, Any]) -> AxesImage:
        """Draw contributions by column, the largest on top, and sample."""
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.ticker import MaxNLocator

        values = _finite(self.contributions)
        chosen = _largest(np.abs(values).mean(0), n)
        end = np.quantile(np.abs(values[:, chosen]), 0.98)
        look = {
            "cmap": LinearSegmentedColormap.from_list("", [BLUE, "white", ORANGE]),
            "vmin": -end,
            "vmax": end,
            "aspect": "auto",
            "interpolation": "nearest",
        }
        image = ax.imshow(values[:, chosen].T, **{**look, **image_kwargs})
        names = [_shortened(self.feature_names[j]) for j in chosen]
        ax.set_yticks(np.arange(len(chosen)), names)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        ax.set_xlabel("Sample")
        self.colorbar_ = ax.figure.colorbar(image, ax=ax, label=_LABEL, extend="both")
        return image

    def _described(self, sample: int, column: int) -> str:
        """Return the name of a column, and its value in a sample if known."""
        name = _shortened(self.feature_names[column])
        if self.X is None:
            return name
        return f"{name} = {_text(_value(self.X, sample, column))}"


def _names(
    contributions: Any, X: Any, feature_names: ArrayLike | None, n: int
) -> list[str]:
    """Return the names of the columns, given or of a data frame."""
    found = [frame.columns for frame in (contributions, X) if hasattr(frame, "columns")]
    if len(found) == 2 and list(found[0]) != list(found[1]):
        raise ValueError("X and the contributions have other names of columns.")
    if feature_names is not None:
        found.insert(0, feature_names)
    names = list(map(str, found[0])) if found else [f"x{j}" for j in range(n)]
    if len(names) != n:
        raise ValueError(
            f"There are {len(names)} feature_names, and contributions of {n} columns."
        )
    return names


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with infinite ones a little beyond the largest other one."""
    finite = np.abs(values[np.isfinite(values)])
    end = 1.1 * finite.max(initial=0.0) or 1.0
    return np.clip(values, -end, end)


def _largest(values: NDArray[np.float64], n: int) -> NDArray[np.intp]:
    """Return the positions of the n largest values in either direction."""
    return np.argsort(-np.abs(values), kind="stable")[:n]


def _value(X: Any, sample: int, column: int) -> Any:
    """Return a value of an array-like or a data frame."""
    if hasattr(X, "columns"):
        values = X[X.columns[column]]
        return values.iloc[sample] if hasattr(values, "iloc") else values[sample]
    return np.atleast_2d(np.asarray(X, dtype=object))[sample, column]


def _text(value: Any) -> str:
    """Return a value as text: numbers with four digits."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return f"{float(value):.4g}"
    return _shortened(str(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
