"""What detectors are given, and what they say when it is not what it has to be."""

from __future__ import annotations

from collections import Counter
from math import log1p, prod
from numbers import Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import column_or_1d, validate_data

from .exceptions import PixelRangeWarning
from .utils._bytes import holds_bytes
from .utils._domains import share_of_other_units
from .utils._kinds import TABLE, ByKind, Kind, kind_of
from .utils._labels import complete_column
from .utils._numbers import as_numbers
from .utils._range import ValueRange, kept_below
from .utils._scaling import ImageScaler
from .utils._sklearn_compat import COUNT
from .utils._warnings import warn

__all__ = ["FEWEST", "InputMixin"]

FEWEST = 2  # rows to learn from
_COLOURS = 4  # red, green, blue, and transparency
_MOST_OF_A_CHECK = 100  # rows that scikit-learn's checks give with two labels
_ENOUGH, _NUMBERS = 1000, 2**22  # rows, and numbers, to see whether units are the same
_MOST = 1e15  # of scaled numbers whose squares can be summed in single precision


class InputMixin:
    """For detectors: checks of X and y, and of the units that they are in.

    A child declares the kinds of X that it takes, by `_auto_values`, and whether it
    reads y, by `_reads_labels`.
    """

    _auto_values: ClassVar[ByKind]
    _reads_labels: ClassVar[bool]
    _row_shape: tuple[int, ...]

    @property
    def _kind(self) -> Kind:
        """The kind of data that the detector was fitted on."""
        kind = kind_of(1 + len(self._row_shape), self._auto_values)
        assert kind is not None, self._row_shape
        return kind

    def _check_rows(self, X, *, reset, fewest=1):
        """Return X as an array (n, d) or (n, c, h, w): floats, or uint8 images."""
        X = as_numbers(X)
        ndim = len(X.shape)
        if not reset:
            self._check_like_fitted(tuple(X.shape))
        is_table = self.image_shape is None and ndim <= TABLE.ndim
        as_bytes = not is_table and holds_bytes(X)
        with np.errstate(over="ignore", invalid="ignore"):  # of its check by a sum
            X = validate_data(
                self,
                X,
                reset=reset,
                dtype=np.uint8 if as_bytes else [np.float64, np.float32],
                allow_nd=True,
                ensure_min_samples=fewest,
            )
        is_flat = self.image_shape is not None and ndim == TABLE.ndim
        if 0 in X.shape[1:]:
            raise ValueError(f"X has shape {X.shape}: its rows hold no numbers.")
        if kind_of(ndim, self._auto_values) is None and not is_flat:
            expected = " or ".join(kind.shape for kind in self._auto_values)
            raise ValueError(
                f"X has {ndim} dimensions; {type(self).__name__} takes {expected}. "
                "Grey images of shape (n, h, w) become (n, 1, h, w) by X[:, None]."
            )
        if is_flat:
            X = X.reshape(len(X), *self._checked_image_shape(X.shape[1]))
        elif self.image_shape not in (None, X.shape[1:], list(X.shape[1:])):
            *sides, n_last = X.shape[1:]
            way_out = (
                "channels come first: np.moveaxis(X, -1, 1) brings them there."
                if tuple(self.image_shape) == (n_last, *sides)
                else "it is for images in flat rows."
            )
            raise ValueError(
                f"X holds images of shape {X.shape[1:]}, and image_shape="
                f"{self.image_shape}: {way_out}"
            )
        if reset:
            self._refuse_channels_last(X.shape[1:], said=not is_flat)
            self._fitted_ndim = ndim
            self.image_shape_ = X.shape[1:] if X.ndim > TABLE.ndim else None
        self._check_image_shape(X.shape)
        return X

    def _check_like_fitted(self, shape):
        if (ndim := len(shape)) >= TABLE.ndim and ndim != self._fitted_ndim:
            fitted = kind_of(self._fitted_ndim, (*self._auto_values, TABLE))
            raise ValueError(
                f"X has {ndim} dimensions, but {type(self).__name__} was fitted on "
                f"{fitted.shape}."
            )
        self._check_image_shape(shape)

    def _check_image_shape(self, shape):
        if len(shape) > TABLE.ndim and shape[1:] != self.image_shape_:
            raise ValueError(
                f"{self._name_of(shape[1:])} of shape {shape[1:]}, but "
                f"{type(self).__name__} was fitted on those of shape "
                f"{self.image_shape_}."
            )

    def _name_of(self, shape):
        """Return the kind of data with samples of that shape, as a message begins."""
        kind = kind_of(1 + len(shape), self._auto_values)
        return kind.name.capitalize() if kind else "Samples"

    def _refuse_channels_last(self, shape, said):
        """Raise an error if images look as if their last axis were the channels.

        Warn if they may be either. `said` tells whether `image_shape`, if it is given,
        confirms the shape of X; for flat rows nothing else tells it.
        """
        if not _has_short_last(shape) or (said and self.image_shape is not None):
            return
        *sides, n_last = shape
        n_first, *others = shape
        rows = self._name_of(shape)
        way_out = f"image_shape={shape} says so" if said else "give X in that shape"
        if not _has_channels_last(shape):
            warn(
                f"{rows} of shape {shape} are read as {n_first} channels of "
                f"{' x '.join(map(str, others))}: channels come first. If so, "
                f"{way_out}{'' if said else ' and keep image_shape'}. If they are "
                f"{' x '.join(map(str, sides))} with {n_last} channels, "
                "np.moveaxis(X, -1, 1) brings the channels to the front"
                f"{'' if said else ', once X has these axes'}."
            )
            return
        raise ValueError(
            f"{rows} of shape {shape} look like "
            f"{' x '.join(map(str, sides))} with {n_last} channels. Channels come "
            "first: np.moveaxis(X, -1, 1) brings them there"
            f"{'' if said else ', once X has these axes'}. If they are {n_first} "
            f"channels of {' x '.join(map(str, others))}, {way_out}."
        )

    def _checked_image_shape(self, n_columns):
        shape = tuple(self.image_shape)
        kinds = [kind for kind in self._auto_values if kind.has_channels]
        counts = all(COUNT.is_satisfied_by(n) for n in shape)
        known = kind_of(1 + len(shape), kinds)
        if not counts or known is None or prod(shape) != n_columns:
            axes = " or ".join(f"({', '.join(kind.axes)})" for kind in kinds)
            raise ValueError(
                f"image_shape={self.image_shape} has to be {axes}, integers with a "
                f"product of {n_columns}, the number of columns of X."
            )
        return tuple(map(int, shape))

    def _check_labels(self, y, n_rows):
        """Return which rows are known to be anomalous."""
        nothing = np.zeros(n_rows, dtype=bool)
        if y is None or not self._reads_labels:
            return nothing
        column = self._label_column(y, n_rows)
        complete_column(y, "y, where 0 marks an unlabelled row,")
        anomalous = column == -1
        if not (anomalous.any() and np.isin(column, (-1, 0, 1)).all()):
            complaint = (
                "Nothing is taken as known to be anomalous: y marks such rows by -1, "
                "normal ones by 1, others by 0, and it holds "
                f"{_shortened(column)}.{_conversion(column)}"
            )
            if self._expects_labels() and not _may_be_any_target(column):
                raise ValueError(f"{complaint} Where none is known: y=None.")
            warn(complaint)
            return nothing
        if (n_left := n_rows - anomalous.sum()) < FEWEST:
            raise ValueError(
                f"{n_left} of {n_rows} rows are not marked as anomalies (y == -1); "
                f"{type(self).__name__} learns what is normal from at least {FEWEST}."
            )
        return anomalous

    def _expects_labels(self):
        """Return whether labels that mark no anomaly are a mistake."""
        return self._reads_labels

    @staticmethod
    def _label_column(y, n_rows):
        """Return y as an array (n,), after a check of its shape."""
        shape = getattr(y, "shape", ())
        if len(shape) > 1 and tuple(shape[1:]) != (1,):
            raise ValueError(
                f"y has shape {tuple(shape)}, and holds a label for each row. Where a "
                "detector takes other rows, a parameter is named for them."
            )
        if len(shape) > 1:
            # That of column_or_1d would not name the user's line.
            warn(
                f"y is a column of shape {tuple(shape)}, and taken as one of shape "
                f"({shape[0]},).",
                DataConversionWarning,
            )
        y = column_or_1d(y)
        if len(y) != n_rows:
            raise ValueError(f"y has {len(y)} labels, but X has {n_rows} rows.")
        return y

    def _check_units(self, rows, base, what, others, factor):
        """Warn if rows are hardly in the units of those that the scaling comes from.

        They may be so far out that they are cut when scaled, or so close together that
        scaling leaves nothing of them; or their columns are apart by a factor.
        """
        if rows.X.dtype == np.uint8:
            return
        cut, n = 0.0, max(min(_ENOUGH, _NUMBERS // prod(rows.row_shape)), 1)
        some, some_others = (part.raw(part.spread_indices(n)) for part in (rows, base))
        if self._kind.has_channels:  # which have one unit for all pixels
            some, some_others = some.reshape(-1, 1), some_others.reshape(-1, 1)
        else:
            scaled = rows[rows.spread_indices(n)]
            cut = float((scaled != self._clipping()(scaled)).float().mean())
        apart = share_of_other_units(some, some_others, factor)
        hint = (
            "Are both in the same units? Steps of a pipeline transform X alone, save "
            "with its transform_input and metadata routing."
        )
        if cut > 0.5:
            warn(
                f"{cut:.0%} of the numbers of {what} are so far from those of {others} "
                f"that they are cut off, at -10 or 10 when scaled. {hint}"
            )
        elif apart > 0.5:
            columns = f"{apart:.0%} of the columns" if apart < 1 else "The numbers"
            warn(
                f"{columns} of {what} and of {others} have spreads or locations that "
                f"are apart by a factor of more than {factor:g}. {hint}"
            )

    def _check_scaled(self, *sets):
        """Raise an error if scaling makes no numbers of rows that nets compute with."""
        # Scaled columns are cut, and any number will do.
        largest = torch.finfo(torch.float32).max
        most = _MOST if self._kind.has_channels else largest
        for rows in sets:
            if rows.X.dtype == np.uint8 or self.scaling is None:
                continue
            for index in torch.arange(len(rows), device=rows.device).split(
                max(_NUMBERS // prod(rows.row_shape), 1)
            ):
                # NaN is not below either.
                if not (rows[index].abs() <= most).all():
                    low, high = np.min(rows.X), np.max(rows.X)
                    raise ValueError(
                        f"X holds numbers from {low:g} to {high:g}, which lose all "
                        "their digits, or all sense of scale, when they are scaled. "
                        "Are single ones wrong? If not, bring X nearer to 1 by a power "
                        "of ten."
                    )

    def _check_pixels(self, X):
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
                "bytes, or both as floats of one range."
            )

    @staticmethod
    def _report_pixels(left_out):
        """Warn if the scaling was learned without some pixels."""
        if left_out is not None:
            warn(
                f"{left_out} The smaller range is taken for the scaling, and pixels "
                "beyond are cut off there. Are they faults of a sensor, or is the unit "
                "of these images another one?",
                PixelRangeWarning,
            )

    # The range of training ----------------------------------------------------------

    def _rows_in_range(self, X, apart, X_apart):
        """Return pairs of rows, and which of them may be normal."""
        return [(X, ~apart)]

    def _learn_range(self, X, apart, X_apart, scores):
        """Learn where the training rows lie, and what scores they have.

        Networks may do anything with rows unlike all that they were trained on: a
        critic without bounds finds some of them more normal than any normal one.
        """
        clip = getattr(self.scaler_, "clip_", None)
        learned = ValueRange.of(self._rows_in_range(X, apart, X_apart), clip)
        if self._goes_on() and hasattr(self, "_range"):
            learned = learned.joined(ValueRange(*self._range))
        low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
        spread = high - low or np.ptp(scores) or 1.0
        self._range, self._usual_scores = tuple(learned), (middle, spread)
        # Training rows are inside, unless some of their pixels are cut off.
        return scores if clip is None else self._kept_in_range(scores, X[~apart])

    def _reach_threshold(self):
        """Make the unit of what is taken off so large that rows far out are outliers.

        A critic that tells little apart has scores close together, all of them far
        above its threshold: their spread alone would leave any image an inlier.
        """
        middle, spread = self._usual_scores
        needed = (middle - self.offset_) / log1p(self._kind.far_out)
        self._usual_scores = middle, max(spread, needed)

    def _kept_in_range(self, scores, X):
        """Return scores of which no row beyond the range of training has a high one."""
        if not hasattr(self, "_range"):  # in files that know of none
            return scores
        learned = ValueRange(*self._range)
        excess = learned.excess(X)
        outside = np.flatnonzero(excess)
        if len(outside):
            inside = self._scores_of(learned.cut(X[outside]))
            rows = scores[outside], inside, excess[outside]
            scores[outside] = kept_below(*rows, *self._usual_scores)
        return scores


def _has_short_last(shape):
    """Return whether the last axis of rows is the shortest, as that of channels is."""
    return len(shape) > 1 and shape[-1] < min(shape[:-1])


def _has_channels_last(shape):
    """Return whether the last axis of rows is likely to be that of channels.

    It is the shortest, and has as many numbers as colours with transparency at most,
    or the two before it are a square: many channels beside narrow images are rare.
    """
    return _has_short_last(shape) and (
        shape[-1] <= _COLOURS or shape[-3:-2] == shape[-2:-1]
    )


def _may_be_any_target(y):
    """Return whether labels without a known anomaly may be meant as they are.

    Numbers of one value, or of three and more, may be anything. The common tests of
    scikit-learn give detectors numbers of two values too, in at most 100 rows of which
    about half have either: as few normal rows as that are no training set.
    """
    counts = Counter(y.tolist())
    numbers = all(isinstance(v, Real) and not isinstance(v, bool) for v in counts)
    if not numbers or -1 in counts:
        return False
    few = len(y) <= _MOST_OF_A_CHECK and min(counts.values()) >= 0.4 * len(y) - 1
    return len(counts) != 2 or few


def _conversion(y):
    """Return how to mark the rarer of two values as the anomaly, as a sentence."""
    counts = Counter(y.tolist())
    if len(counts) != 2 or -1 in counts:
        return ""
    if y.dtype.kind == "b":
        return " Where True is an anomaly: np.where(y, -1, 1)."
    rarer, other = sorted(counts, key=counts.get)
    if counts.keys() == {0, 1}:  # of as many, 1 is the anomaly by custom
        rarer = 0 if counts[0] < counts[1] else 1
    which = "" if counts[rarer] == counts[other] else ", the rarer one,"
    return (
        f" Where {rarer!r}{which} is an anomaly: "
        f"np.where(np.asarray(y) == {rarer!r}, -1, 1)."
    )


def _shortened(y):
    """Return the values of y in a few words."""
    values = list(dict.fromkeys(map(repr, y.tolist())))
    return ", ".join(values[:4] + ["..."] * (len(values) > 4))
