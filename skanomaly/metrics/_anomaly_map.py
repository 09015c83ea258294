"""Images, and the maps of their anomalous places."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils._sklearn_compat import check_count
from ._plotting import Display, detector_scores, import_pyplot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.image import AxesImage
    from matplotlib.text import Text
    from numpy.typing import ArrayLike, NDArray
    from sklearn.base import BaseEstimator

_BYTE = 255
#: Distance between images, as a share of their sides; inches per image.
_GAP, _INCHES = 0.06, 1.3


class AnomalyMapDisplay(Display):
    """Images, and below each of them its anomaly map.

    All maps have one range of colours, so that they can be compared. Maps with negative
    values, such as those of :class:`~skanomaly.HistoryAD`, have a range that is
    symmetric around 0. Make it with `from_estimator`, or from arrays.

    Parameters
    ----------
    images : array-like of shape (n_images, channels, height, width)
        Images, uint8 or floats. Three channels are drawn as colours, the mean of other
        numbers as grey. Floats of all images have one range.
    maps : array-like of shape (n_images, height, width)
        Values of pixels, higher for the more anomalous, as of ``anomaly_map``.
    scores : array-like of shape (n_images,), default=None
        Written above the images. None writes nothing.
    name : str, default=None
        Name of the detector, for the title.

    Attributes
    ----------
    images_, maps_ : list of matplotlib AxesImage
        The images, and the maps.
    texts_ : list of matplotlib Text
        The scores above the images.
    colorbar_ : matplotlib Colorbar or None
        The colours of the maps, if they are drawn.
    ax_ : matplotlib Axes
        Axes drawn on.
    figure_ : matplotlib Figure
        Figure of the axes.

    Raises
    ------
    ValueError
        If there are no images, the shapes do not fit, or a value of a map is not
        finite.

    See Also
    --------
    ScoreDistributionDisplay : The scores of many samples.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.metrics import AnomalyMapDisplay
    >>> images = np.random.default_rng(0).random((4, 1, 8, 8))
    >>> display = AnomalyMapDisplay(images, maps=images[:, 0] ** 2)
    >>> len(display.plot().maps_)
    4
    """

    def __init__(
        self,
        images: ArrayLike,
        maps: ArrayLike,
        *,
        scores: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        self.images = np.asarray(images)
        self.maps: NDArray[np.floating] = np.asarray(maps, dtype=float)
        self.scores = None if scores is None else np.asarray(scores, dtype=float)
        self.name = name
        _check_shapes(self.images, self.maps, self.scores)

    @classmethod
    def from_estimator(
        cls,
        detector: BaseEstimator,
        X: ArrayLike,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **plot_params: Any,
    ) -> Self:
        """Compute the maps of images with a fitted detector and draw.

        Parameters
        ----------
        detector : estimator instance
            Fitted detector with `anomaly_map`.
        X : array-like of shape (n_images, channels, height, width)
            Images, or flat ones for a detector with `image_shape`. Their
            `decision_function` is written above them, negative for outliers.
        name : str, default=None
            Name of the detector in the title; None takes the name of its class.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        AnomalyMapDisplay
            The Display, drawn.

        Raises
        ------
        AttributeError
            If `detector` has no `anomaly_map`.
        ImportError
            If matplotlib is not installed.
        sklearn.exceptions.NotFittedError
            If `detector` is not fitted.
        ValueError
            If `detector` was fitted on tables, or `X` are no images.

        See Also
        --------
        AnomalyMapDisplay.plot : Draws the stored images again.

        Examples
        --------
        >>> import numpy as np
        >>> from skanomaly import HistoryAD
        >>> from skanomaly.metrics import AnomalyMapDisplay
        >>> X = np.random.default_rng(0).random((30, 1, 8, 8))
        >>> detector = HistoryAD(max_epochs=1).fit(X)  # doctest: +SKIP
        >>> AnomalyMapDisplay.from_estimator(detector, X[:4])  # doctest: +SKIP
        """
        import_pyplot(f"{cls.__name__}.from_estimator")
        if not hasattr(detector, "anomaly_map"):
            raise AttributeError(
                f"{type(detector).__name__} has no `anomaly_map`, unlike the detectors "
                "of skanomaly. Give the last step of a pipeline, or best_estimator_ of "
                "a search."
            )
        maps, (scores, _) = detector.anomaly_map(X), detector_scores(detector, X)
        images = np.asarray(X)
        if images.ndim == 2:
            images = images.reshape(-1, *detector.image_shape_)
        name = type(detector).__name__ if name is None else name
        return cls(images, maps, scores=scores, name=name).plot(ax=ax, **plot_params)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        overlay: bool = True,
        n_columns: int = 8,
        plot_colorbar: bool = True,
        map_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the images and their maps.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a new figure.
        overlay : bool, default=True
            Whether maps are laid over their images in grey, or stand alone.
        n_columns : int, default=8
            Maximum number of images side by side; more are drawn below.
        plot_colorbar : bool, default=True
            Whether to draw a bar with the colours of the maps.
        map_kwargs : dict, default=None
            Passed to :meth:`matplotlib.axes.Axes.imshow` for every map: `cmap`,
            `alpha`, `vmin`, `vmax`, `norm`.

        Returns
        -------
        AnomalyMapDisplay
            The Display itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.

        See Also
        --------
        AnomalyMapDisplay.from_estimator : Computes maps and draws.

        Examples
        --------
        >>> import numpy as np
        >>> from skanomaly.metrics import AnomalyMapDisplay
        >>> images = np.random.default_rng(0).random((4, 1, 8, 8))
        >>> display = AnomalyMapDisplay(images, maps=images[:, 0] ** 2)
        >>> display.plot(map_kwargs={"vmax": 2.0}).maps_[0].get_clim()
        (0.0, 2.0)
        """
        is_new = ax is None
        ax = self._start(ax)
        look = self._look(overlay) | dict(map_kwargs or {})
        check_count(n_columns, "n_columns")
        n_columns = min(n_columns, len(self.images))
        pictures, grey = _drawable(self.images), _grey(self.images)
        self.images_, self.maps_, self.texts_ = [], [], []
        for k, picture in enumerate(pictures):
            place = 2 * (k // n_columns), k % n_columns
            below = place[0] + 1, place[1]
            self.images_.append(self._draw(picture, place))
            if overlay:
                self._draw(grey[k], below)
            self.maps_.append(self._draw(self.maps[k], below, look))
            if self.scores is not None:
                self.texts_.append(self._write(self.scores[k], place))
        self._frame(n_columns, 2 * -(-len(pictures) // n_columns), is_new)
        self.colorbar_: Colorbar | None = None
        if plot_colorbar:
            self.colorbar_ = self.figure_.colorbar(
                self.maps_[0], ax=ax, label="anomaly map", shrink=0.8
            )
        return self

    def _look(self, overlay: bool) -> dict[str, Any]:
        """Return colours and range of the maps."""
        low, high = float(self.maps.min()), float(self.maps.max())
        look: dict[str, Any] = {"cmap": "inferno", "vmin": 0.0, "vmax": high or 1.0}
        if low < 0:
            far = max(-low, high)
            look = {"cmap": "RdBu_r", "vmin": -far, "vmax": far}
        return look | {"alpha": 0.6 if overlay else 1.0}

    def _draw(
        self,
        picture: NDArray[Any],
        place: tuple[int, int],
        look: dict[str, Any] | None = None,
    ) -> AxesImage:
        """Draw a picture at a row and a column."""
        height, width = picture.shape[:2]
        left, top = place[1] * width * (1 + _GAP), place[0] * height * (1 + _GAP)
        options: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
        options |= look or {}
        if options.get("norm") is not None:  # it has a range of its own
            del options["vmin"], options["vmax"]
        extent = left, left + width, top + height, top
        return self.ax_.imshow(picture, extent=extent, **options)

    def _write(self, score: float, place: tuple[int, int]) -> Text:
        """Write a score into the upper left corner of an image."""
        height, width = self.maps.shape[1:]
        return self.ax_.annotate(
            f"{score:.3g}",
            (place[1] * width * (1 + _GAP), place[0] * height * (1 + _GAP)),
            xytext=(2, -2),
            textcoords="offset points",
            va="top",
            fontsize="x-small",
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
        )

    def _frame(self, n_columns: int, n_rows: int, is_new: bool) -> None:
        """Set limits and title of the axes, and the size of a new figure."""
        height, width = self.maps.shape[1:]
        ax = self.ax_
        ax.set(
            xlim=(0, width * (n_columns * (1 + _GAP) - _GAP)),
            ylim=(height * (n_rows * (1 + _GAP) - _GAP), 0),
        )
        ax.set_axis_off()
        if self.name is not None:
            ax.set_title(self.name)
        if is_new:
            size = 1.5 + _INCHES * n_columns, 0.5 + _INCHES * n_rows * height / width
            figure: Any = self.figure_  # types say that it may be a SubFigure
            figure.set_size_inches(size)


def _check_shapes(
    images: NDArray[Any], maps: NDArray[Any], scores: NDArray[Any] | None
) -> None:
    if images.ndim != 4 or not prod(images.shape):
        clips = " Of a clip, give the frames: X[0].swapaxes(0, 1), maps[0]."
        raise ValueError(
            f"images have the shape {images.shape}, which has to be (n_images, "
            f"channels, height, width).{clips if images.ndim == 5 else ''}"
        )
    expected = len(images), *images.shape[2:]
    if maps.shape != expected:
        raise ValueError(
            f"maps have the shape {maps.shape}, and images of shape {images.shape} "
            f"need maps of shape {expected}."
        )
    if not np.isfinite(maps).all():
        raise ValueError("maps hold NaN, or infinite numbers.")
    if scores is not None and scores.shape != (len(images),):
        raise ValueError(f"scores have the shape {scores.shape}, not {(len(images),)}.")


def _grey(images: NDArray[Any]) -> NDArray[np.floating]:
    """Return the means over channels, in [0, 1], of shape (n_images, height, width)."""
    grey: NDArray[np.floating] = _unit(images).mean(1)
    return grey


def _drawable(images: NDArray[Any]) -> NDArray[np.floating]:
    """Return images in [0, 1] as matplotlib takes them, colours in the last axis."""
    if images.shape[1] != 3:
        return _grey(images)
    return np.moveaxis(_unit(images), 1, -1)


def _unit(images: NDArray[Any]) -> NDArray[np.floating]:
    """Return images with the range [0, 1]."""
    if images.dtype == np.uint8:
        return images / float(_BYTE)
    low, high = float(images.min()), float(images.max())
    return (images.astype(float) - low) / (high - low or 1.0)
