"""Checks of the input of detectors: shapes, labels, units, ranges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from math import log1p, prod
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import DataConversionWarning
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.validation import column_or_1d, validate_data

from .engine import DeviceDataset
from .exceptions import PixelRangeWarning
from .utils._bytes import holds_bytes
from .utils._columns import missing_message
from .utils._domains import share_of_other_units
from .utils._kinds import TABLE, ByKind, Kind, kind_of
from .utils._labels import complete_column, conversion, shortened
from .utils._numbers import as_numbers
from .utils._range import ValueRange, lowered_beyond
from .utils._scaling import ImageScaler
from .utils._sklearn_compat import COUNT
from .utils._warnings import warn

__all__ = ["MIN_SAMPLES", "InputMixin", "Split"]

#: Minimum number of training samples.
MIN_SAMPLES = 2
#: Channels of colours: red, green, blue and transparency.
_COLOURS = 4
#: Maximum number of samples in the two-class checks of scikit-learn.
_MAX_CHECK_SAMPLES = 100
#: Maximum numbers of samples, and of their values, in a comparison of units.
_MAX_SAMPLES, _MAX_NUMBERS = 1000, 2**22
#: Bound of scaled pixels, so that sums of squares stay finite in float32.
_MAX_SCALED = 1e15


class Split(NamedTuple):
    """The samples that ``fit`` was given, divided by their use.

    Attributes
    ----------
    X : ndarray of shape (n_samples, ...)
        All samples but those in `X_reference`.
    is_reference : ndarray of bool of shape (n_samples,)
        Samples that a method compares the training samples with: known anomalies, or
        samples of a source domain.
    is_calibration : ndarray of bool of shape (n_samples,)
        Samples that are held out for validation and calibration.
    X_reference : ndarray of shape (n_reference, ...) or None
        Reference samples in an array of their own.
    """

    X: NDArray
    is_reference: NDArray[np.bool_]
    is_calibration: NDArray[np.bool_]
    X_reference: NDArray | None = None

    @property
    def is_training(self) -> NDArray[np.bool_]:
        """Samples to train on."""
        return ~(self.is_reference | self.is_calibration)


class InputMixin(ABC):
    """Checks of X and y, and of their units and ranges.

    A child declares the kinds of X that it takes, by `_auto_values`, and whether it
    reads y, by `_reads_labels`.
    """

    # Of the class
    _auto_values: ClassVar[ByKind]
    _reads_labels: ClassVar[bool]
    # Parameters
    image_shape: tuple[int, ...] | None
    scaling: Literal["auto", "minmax", "standard"] | None
    # Set by ``fit``
    n_features_in_: int
    scaler_: ImageScaler | MinMaxScaler | StandardScaler | None
    image_shape_: tuple[int, ...] | None
    offset_: float
    _fitted_ndim: int
    _row_shape: tuple[int, ...]
    _range: tuple[NDArray, NDArray, NDArray]
    _usual_scores: tuple[float, float]

    @abstractmethod
    def _continues(self) -> bool:
        """Return whether ``fit`` continues an earlier one."""

    @abstractmethod
    def _clipping(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the clipping of scaled columns."""

    @abstractmethod
    def _scores_of(self, X: NDArray) -> NDArray[np.float64]:
        """Score checked samples by the networks alone."""

    @property
    def _kind(self) -> Kind:
        """Kind of the data that the detector is fitted on."""
        kind = kind_of(1 + len(self._row_shape), self._auto_values)
        assert kind is not None, self._row_shape
        return kind

    def _check_rows(self, X: Any, *, reset: bool, min_samples: int = 1) -> NDArray:
        """Return X as an array of its kind: of floats, or of bytes for images."""
        X = as_numbers(X)
        ndim = len(X.shape)
        if not reset:
            self._check_like_fitted(tuple(X.shape))
        is_table = self.image_shape is None and ndim <= TABLE.ndim
        as_bytes = not is_table and holds_bytes(X)
        dtype = np.uint8 if as_bytes else [np.float64, np.float32]
        X = self._validated(X, reset, dtype, min_samples)
        is_flat = self.image_shape is not None and ndim == TABLE.ndim
        if 0 in X.shape[1:]:
            raise ValueError(f"X has shape {X.shape}: its samples are empty.")
        if kind_of(ndim, self._auto_values) is None and not is_flat:
            expected = " or ".join(kind.shape for kind in self._auto_values)
            larger = kind_of(ndim + 1, self._auto_values)
            raise ValueError(
                f"X has {ndim} dimensions; {type(self).__name__} takes {expected}."
                + (f" X[:, None] makes {larger.name} of one channel." if larger else "")
            )
        if is_flat:
            X = X.reshape(len(X), *self._checked_image_shape(X.shape[1]))
        elif self.image_shape not in (None, X.shape[1:], list(X.shape[1:])):
            *sides, n_last = X.shape[1:]
            way_out = (
                "move the channels to the front by np.moveaxis(X, -1, 1)."
                if tuple(self.image_shape) == (n_last, *sides)
                else "leave it out. It is for images that are samples of a table."
            )
            raise ValueError(
                f"X has images of shape {X.shape[1:]}, which is not image_shape="
                f"{self.image_shape}: {way_out}"
            )
        if reset:
            self._refuse_channels_last(X.shape[1:], is_flat)
            self._fitted_ndim = ndim
            self.image_shape_ = X.shape[1:] if X.ndim > TABLE.ndim else None
        self._check_image_shape(X.shape)
        return X

    def _validated(self, X: Any, reset: bool, dtype: Any, min_samples: int) -> NDArray:
        """Return X as an array, after the checks of scikit-learn."""
        if not reset and self._is_valid(X) and len(X) >= min_samples:
            return X
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # for NaN it sums X
                return validate_data(
                    self,
                    X,
                    reset=reset,
                    dtype=dtype,
                    allow_nd=True,
                    ensure_min_samples=min_samples,
                )
        except ValueError as error:
            if str(error).startswith("Input X contains"):
                raise ValueError(missing_message(X)) from error
            raise

    def _is_valid(self, X: Any) -> bool:
        """Return whether X is sure to pass the checks of scikit-learn as it is.

        For a single sample these checks take as long as a small network.
        """
        if type(X) is not np.ndarray or hasattr(self, "feature_names_in_"):
            return False
        if X.ndim < TABLE.ndim or X.shape[1] != self.n_features_in_ or not X.size:
            return False
        if X.dtype == np.uint8:
            return X.ndim > TABLE.ndim
        if X.dtype not in (np.float32, np.float64):
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.isfinite(X.sum()))

    def _check_like_fitted(self, shape: tuple[int, ...]) -> None:
        if (ndim := len(shape)) >= TABLE.ndim and ndim != self._fitted_ndim:
            fitted = TABLE if self._fitted_ndim == TABLE.ndim else self._kind
            raise ValueError(
                f"X has {ndim} dimensions, but {type(self).__name__} was fitted on "
                f"{fitted.shape}."
            )
        self._check_image_shape(shape)

    def _check_image_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) > TABLE.ndim and shape[1:] != self.image_shape_:
            raise ValueError(
                f"{self._kind_name(shape[1:])} of shape {shape[1:]}, but "
                f"{type(self).__name__} was fitted on shape {self.image_shape_}."
            )

    def _kind_name(self, shape: tuple[int, ...]) -> str:
        """Return the name of the kind with samples of that shape, capitalised."""
        kind = kind_of(1 + len(shape), self._auto_values)
        return kind.name.capitalize() if kind else "Samples"

    def _refuse_channels_last(self, shape: tuple[int, ...], is_flat: bool) -> None:
        """Raise an error if the channels seem to be the last axis of images.

        Warn in case of doubt. `is_flat` is whether X is a table, whose shape of images
        is known from `image_shape` only; for arrays of images `image_shape` confirms
        the shape.
        """
        is_confirmed = not is_flat and self.image_shape is not None
        if is_confirmed or not _has_short_last(shape):
            return
        *sides, n_last = shape
        n_first, *others = shape
        name = self._kind_name(shape)
        to_confirm = "give X in that shape" if is_flat else f"give image_shape={shape}"
        reshaped = ", after a reshape of X to these axes" if is_flat else ""
        if not _has_channels_last(shape):
            warn(
                f"{name} of shape {shape} are read as {n_first} channels of "
                f"{' x '.join(map(str, others))}: channels come first. If this is "
                f"right, {to_confirm}{' and keep image_shape' if is_flat else ''}. If "
                f"they are {' x '.join(map(str, sides))} with {n_last} channels, "
                f"np.moveaxis(X, -1, 1) moves the channels to the front{reshaped}."
            )
            return
        raise ValueError(
            f"{name} of shape {shape} look like "
            f"{' x '.join(map(str, sides))} with {n_last} channels. Channels come "
            f"first: move them by np.moveaxis(X, -1, 1){reshaped}. If they are "
            f"{n_first} channels of {' x '.join(map(str, others))}, {to_confirm}."
        )

    def _checked_image_shape(self, n_columns: int) -> tuple[int, ...]:
        shape = tuple(self.image_shape or ())
        kinds = [kind for kind in self._auto_values if kind.has_channels]
        counts = all(COUNT.is_satisfied_by(n) for n in shape)
        known = kind_of(1 + len(shape), kinds)
        if not counts or known is None or prod(shape) != n_columns:
            axes = [f"({', '.join(kind.axes)})" for kind in kinds]
            raise ValueError(
                f"image_shape={self.image_shape} has to be "
                f"{' or '.join(['None'] * (not axes) + axes)}, integers with a "
                f"product of {n_columns}, the number of columns of X."
            )
        return tuple(map(int, shape))

    def _check_labels(self, y: ArrayLike | None, n_rows: int) -> NDArray[np.bool_]:
        """Return the mask of known anomalies."""
        nothing = np.zeros(n_rows, dtype=bool)
        if y is None or not self._reads_labels:
            return nothing
        column = self._label_column(y, n_rows)
        complete_column(y, "y, where 0 marks an unlabelled sample,")
        anomalous = column == -1
        if not (anomalous.any() and np.isin(column, (-1, 0, 1)).all()):
            complaint = (
                "No sample is taken as a known anomaly: y has to be -1 for known "
                "anomalies, 1 for normal samples and 0 for unlabelled ones, but has "
                f"the values {shortened(column)}.{conversion(column)}"
            )
            if self._expects_labels() and not _may_be_any_target(column):
                raise ValueError(f"{complaint} Without known anomalies, give y=None.")
            warn(complaint)
            return nothing
        if (n_left := n_rows - anomalous.sum()) < MIN_SAMPLES:
            raise ValueError(
                f"{n_left} of {n_rows} samples are not marked as anomalies (y == -1); "
                f"{type(self).__name__} needs at least {MIN_SAMPLES} of these."
            )
        return anomalous

    def _expects_labels(self) -> bool:
        """Return whether labels without anomalies are a mistake."""
        return self._reads_labels

    @staticmethod
    def _label_column(y: Any, n_rows: int) -> NDArray:
        """Return y as an array of shape (n_samples,), after a check of its shape."""
        shape: tuple[int, ...] = tuple(getattr(y, "shape", ()))
        if len(shape) > 1 and shape[1:] != (1,):
            raise ValueError(
                f"y has shape {shape}, and has to have one label for each sample. Pass "
                "further samples by their own argument, if the detector takes any."
            )
        if len(shape) > 1:
            # The warning of column_or_1d would not name the user's line.
            warn(
                f"y has shape {shape}, and is read as shape ({shape[0]},).",
                DataConversionWarning,
            )
        y = column_or_1d(y)
        if len(y) != n_rows:
            raise ValueError(f"y has {len(y)} labels, but X has {n_rows} samples.")
        return y

    def _check_units(
        self,
        rows: DeviceDataset,
        base: DeviceDataset,
        name: str,
        base_name: str,
        factor: float,
    ) -> None:
        """Warn if samples and those that the scaler was fitted on have other units.

        There are two signs: most numbers are clipped when they are scaled, or most
        columns differ in spread or location by more than `factor`. `name` and
        `base_name` name the samples in the warning.
        """
        if rows.X.dtype == np.uint8:
            return
        cut, n = 0.0, max(min(_MAX_SAMPLES, _MAX_NUMBERS // prod(rows.row_shape)), 1)
        part, base_part = (one.raw(one.spread_indices(n)) for one in (rows, base))
        if self._kind.has_channels:  # one unit for all pixels
            part, base_part = part.reshape(-1, 1), base_part.reshape(-1, 1)
        else:
            scaled = rows[rows.spread_indices(n)]
            cut = float((scaled != self._clipping()(scaled)).float().mean())
        share = share_of_other_units(part, base_part, factor)
        hint = (
            "Check that both have the same units. A pipeline transforms X only, unless "
            "its transform_input and metadata routing name other arguments."
        )
        if cut > 0.5:
            warn(
                f"{cut:.0%} of the numbers of {name} are so far from those of "
                f"{base_name} that scaling clips them, at -10 or 10. {hint}"
            )
        elif share > 0.5:
            columns = f"{share:.0%} of the columns" if share < 1 else "The numbers"
            warn(
                f"{columns} of {name} and of {base_name} differ in spread or location "
                f"by a factor of more than {factor:g}. {hint}"
            )

    def _check_scaled(self, *sets: DeviceDataset) -> None:
        """Raise an error if scaled samples are too large for the networks."""
        # Scaled columns are clipped later, and may be any finite number.
        largest = torch.finfo(torch.float32).max
        most = _MAX_SCALED if self._kind.has_channels else largest
        for rows in sets:
            if rows.X.dtype == np.uint8 or self.scaling is None:
                continue
            for index in torch.arange(len(rows), device=rows.device).split(
                max(_MAX_NUMBERS // prod(rows.row_shape), 1)
            ):
                # The comparison is False for NaN too.
                if not (rows[index].abs() <= most).all():
                    low, high = np.min(rows.X), np.max(rows.X)
                    raise ValueError(
                        f"X holds numbers from {low:g} to {high:g}, whose scaled "
                        "values are too large or imprecise in float32. Check X for "
                        "wrong values; if there are none, bring X nearer to 1 by a "
                        "power of ten."
                    )

    def _check_pixels(self, X: NDArray) -> None:
        """Warn if images are of another scale than those of the first fit."""
        if isinstance(self.scaler_, ImageScaler) and not self.scaler_.suits(X):
            kinds = "floats", "bytes (uint8)"
            before, now = (
                kinds[as_bytes]
                for as_bytes in (self.scaler_.bytes_, X.dtype == np.uint8)
            )
            warn(
                f"X holds {now} from {X.min():g} to {X.max():g}, and the detector was "
                f"fitted on {before}: pixels hardly have one scale. Give both as "
                "uint8, or both as floats of the same range."
            )

    @staticmethod
    def _report_pixels(left_out: str | None) -> None:
        """Warn if the scaler was fitted without some pixels."""
        if left_out is not None:
            warn(
                f"{left_out} The smaller range is used for scaling, and pixels beyond "
                "it are clipped. Check these images for faults of a sensor and for "
                "other units.",
                PixelRangeWarning,
            )

    # The range of training ----------------------------------------------------------

    def _samples_in_range(self, split: Split) -> list[tuple[NDArray, NDArray]]:
        """Return arrays, each with a mask of the samples that may be normal."""
        return [(split.X, split.is_training)]

    def _learn_range(
        self, split: Split, scores: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Learn the range of the training samples, and return their bounded scores.

        Networks give arbitrary outputs for samples far from the training samples: an
        unbounded critic may score some of them higher than any normal sample.
        """
        clip = getattr(self.scaler_, "clip_", None)
        learned = ValueRange.of(self._samples_in_range(split), clip)
        if self._continues() and hasattr(self, "_range"):
            learned = learned.joined(ValueRange(*self._range))
        low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
        spread = high - low or np.ptp(scores) or 1.0
        self._range = learned.low, learned.high, learned.unit
        self._usual_scores = middle, spread
        # Training samples are inside, unless some of their pixels are clipped.
        return (
            scores
            if clip is None
            else self._lower_beyond_range(scores, split.X[split.is_training])
        )

    def _widen_deduction(self) -> None:
        """Increase the unit of the deduction until samples far out are outliers.

        The scores of a critic that separates little are close together and far above
        the threshold: a deduction in units of their spread would leave any image an
        inlier.
        """
        middle, spread = self._usual_scores
        needed = (middle - self.offset_) / log1p(self._kind.far_out)
        self._usual_scores = middle, max(spread, needed)

    def _lower_beyond_range(
        self, scores: NDArray[np.float64], X: NDArray
    ) -> NDArray[np.float64]:
        """Lower the scores of samples beyond the range of training."""
        if not hasattr(self, "_range"):  # loaded from an older file
            return scores
        learned = ValueRange(*self._range)
        excess = learned.excess(X)
        outside = np.flatnonzero(excess)
        if len(outside):
            inside = self._scores_of(learned.cut(X[outside]))
            rows = scores[outside], inside, excess[outside]
            scores[outside] = lowered_beyond(*rows, *self._usual_scores)
        return scores


def _has_short_last(shape: tuple[int, ...]) -> bool:
    """Return whether the last axis of samples is the shortest, as channels are."""
    return len(shape) > 1 and shape[-1] < min(shape[:-1])


def _has_channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether the last axis of samples is likely to be the channels.

    It has to be the shortest axis. Besides, it has at most four elements, as colours
    with transparency have, or the two axes before it are equal: narrow images with many
    channels are rare.
    """
    return _has_short_last(shape) and (
        shape[-1] <= _COLOURS or shape[-3:-2] == shape[-2:-1]
    )


def _may_be_any_target(y: NDArray) -> bool:
    """Return whether `y` may be intended although it marks no anomaly.

    Numbers with one distinct value, or with three or more, may be any target.
    scikit-learn's common tests also pass two values, each for about half of up to 100
    samples, which are too few for a real training set of normal samples.
    """
    counts = Counter(y.tolist())
    numbers = all(isinstance(v, Real) and not isinstance(v, bool) for v in counts)
    if not numbers or -1 in counts:
        return False
    few = len(y) <= _MAX_CHECK_SAMPLES and min(counts.values()) >= 0.4 * len(y) - 1
    return len(counts) != 2 or few
