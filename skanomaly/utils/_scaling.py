"""Scalers: scikit-learn's for tables, one affine map for images."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from ._kinds import TABLE, Kind
from ._numbers import parts_of, slices_of

__all__ = [
    "ImageScaler",
    "fit_by_parts",
    "make_scaler",
    "refuse_other_scale",
]

#: Scaled pixels so far out that they were hardly meant, where 1 is as far as any.
_FAR = 10.0

#: Where floats end that are bytes, if interpolation or noise has moved some.
_BYTES_BEYOND = 2 * 255

#: Images that are enough to tell values that hardly any of them has, the share of
#: images that may have them, and how far these are beyond the others, in their range.
_ENOUGH_IMAGES, _RARE, _BEYOND = 20, 0.05, 2.0

#: Where the pixels are, in scaled units, if float32 has no digits left for them.
_SHIFTED = 2.0**10


class ImageScaler(TransformerMixin, BaseEstimator):
    """Scale images by one affine map, learned over all pixels.

    Parameters
    ----------
    method : {"minmax", "standard"}, default="minmax"
        "minmax" maps the range of the pixels to [-1, 1]; the range of uint8 is
        0 to 255 whatever values occur. "standard" gives each channel mean 0 and
        standard deviation 1.

    Attributes
    ----------
    scale_, min_ : ndarray of shape (c, 1, ...) or (1, ...)
        A pixel ``x`` becomes ``x * scale_ + min_``, computed in float64: the digits of
        float32 may all be those of the shift.
    clip_ : tuple of float or of ndarray of shape (c, 1, ...), or None
        Where pixels are cut first: the range without values that hardly any image has,
        if there are such. That of "standard" is a range of each channel, without bounds
        for those that have no such values.
    bytes_ : bool
        Whether the images were of dtype uint8.
    seen_ : tuple
        What ``partial_fit`` goes on from: the least and the highest pixel, or number,
        means and variances.
    """

    def __init__(self, method="minmax"):
        self.method = method

    clip_ = None  # in files that know of none

    def fit(self, X, y=None):
        """Learn the map from images of shape (n, c, ...)."""
        self.seen_ = None
        return self.partial_fit(X)

    def partial_fit(self, X, y=None):
        """Learn the map from these images and those before."""
        self.bytes_ = X.dtype == np.uint8
        X = self._cut(X)
        seen = getattr(self, "seen_", None)
        if self.method == "standard":
            self.seen_ = _moments(X, seen)
            _, lower, variance = self.seen_
            half = np.where(variance > 0, variance**0.5, 1.0)
        else:
            self.seen_ = (0, 255) if self.bytes_ else _range(X, seen)
            low, high = (np.atleast_1d(np.float64(bound)) for bound in self.seen_)
            half = np.where(high > low, (high - low) / 2, 1.0)
            lower = (low + high) / 2
        shape = (-1,) + (1,) * (X.ndim - 2)
        self.scale_ = (1 / half).reshape(shape)
        self.min_ = (-lower / half).reshape(shape)
        return self

    def _cut(self, X):
        return X if self.clip_ is None else np.clip(X, *self.clip_)

    def suits(self, X):
        """Return whether pixels may well have the scale of those it was fitted on."""
        if self.bytes_ and X.dtype == np.uint8:
            return True
        if self.bytes_:  # and X holds floats, of 0 to 255 or of 0 to 1
            return 1 < X.max() <= _BYTES_BEYOND and X.min() >= 255 - _BYTES_BEYOND
        # Both ends: what is far too dark is no more of one scale than too bright. Those
        # of each channel, since channels may have scales of their own.
        axes = (0, *range(2, X.ndim))
        ends = np.float64([X.min(axes), X.max(axes)])
        ends = ends.reshape(2, -1, *[1] * (X.ndim - 2))
        return bool((np.abs(ends * self.scale_ + self.min_) < _FAR).all())

    def transform(self, X):
        """Return the scaled images, float32."""
        made = np.empty(X.shape, np.float32)
        for part in slices_of(X):
            rows = self._cut(X[part]).astype(np.float64)
            with np.errstate(over="ignore"):  # what has no number scores as infinite
                made[part] = rows * self.scale_ + self.min_
        return made

    def inverse_transform(self, X):
        """Return scaled images to the range, and uint8 to bytes, of before."""
        made = (X - self.min_) / self.scale_
        if self.bytes_:
            return np.clip(np.rint(made), 0, 255).astype(np.uint8)
        return made if np.abs(self.min_).max() > _SHIFTED else made.astype(X.dtype)


def _range(X, before):
    low, high = X.min(), X.max()
    return (
        (low, high) if before is None else (min(low, before[0]), max(high, before[1]))
    )


def _moments(X, before):
    """Return the pixels, and the mean and the variance of each channel."""
    axes = (0, *range(2, X.ndim))
    n = X.size // X.shape[1]
    mean, variance = X.mean(axes, dtype=np.float64), X.var(axes, dtype=np.float64)
    if before is None:
        return n, mean, variance
    n_before, mean_before, variance_before = before
    share, apart = n / (n + n_before), mean - mean_before
    variance = share * variance + (1 - share) * variance_before
    variance += share * (1 - share) * apart**2
    return n + n_before, mean_before + share * apart, variance


def fit_by_parts(scaler, X, chosen):
    """Fit a new scaler on chosen rows, few at a time: X may be larger than the memory.

    Parameters
    ----------
    scaler : transformer with ``partial_fit``, or None
        What to fit, if there is anything.
    X : ndarray of shape (n, ...)
        Rows.
    chosen : ndarray of shape (n,), bool
        Which of them to fit it on.

    Returns
    -------
    str or None
        What the scaling was learned without, if there is such.
    """
    if scaler is None:
        return None
    left_out = None
    if isinstance(scaler, ImageScaler) and X.dtype != np.uint8:
        by_channel = scaler.method == "standard"
        scaler.clip_, left_out = _usual_range(X, chosen, by_channel)
    # Who scales looks at what comes of numbers whose squares are none.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for rows in parts_of(X, chosen):
            scaler.partial_fit(rows)
    return left_out


def _usual_range(X, chosen, by_channel):
    """Return the range of images without values that hardly any has, and what it lacks.

    One pixel that is a hundred times as bright as all others would leave these a
    hundredth of the scaled range. It is images that are counted, and not pixels, since
    a value in few pixels of every image is what these images are about. Channels that
    are scaled each by itself may have different units, and are looked at one by one.
    """
    n_ranges = X.shape[1] if by_channel else 1
    ends = [
        (part.min(2), part.max(2))
        for part in (
            rows.reshape(len(rows), n_ranges, -1) for rows in parts_of(X, chosen)
        )
    ]
    lows, highs = (
        np.concatenate(values).astype(np.float64) for values in zip(*ends, strict=True)
    )
    low = np.quantile(lows, _RARE, axis=0, method="higher")
    high = np.quantile(highs, 1 - _RARE, axis=0, method="lower")
    reach = _BEYOND * (high - low)
    usual = (lows >= low - reach) & (highs <= high + reach)
    # Where most images are of one value, the others are all that there is to see.
    spoilt = np.flatnonzero((reach > 0) & ~usual.all(0))
    if len(lows) < _ENOUGH_IMAGES or not len(spoilt):
        return None, None
    clip = np.full((2, n_ranges), [[-np.inf], [np.inf]])
    for k in spoilt:
        clip[:, k] = lows[usual[:, k], k].min(), highs[usual[:, k], k].max()
    first = spoilt[0]
    low, high = clip[:, first]
    left_out = (
        f"Pixels{f' of channel {first}' if n_ranges > 1 else ''} go from "
        f"{lows[:, first].min():g} to {highs[:, first].max():g}, but only from {low:g} "
        f"to {high:g} in {np.mean(usual[:, first]):.2%} of the images, all but "
        f"{np.sum(~usual[:, first])}."
    )
    if len(spoilt) > 1:
        left_out += f" {len(spoilt)} of {n_ranges} channels have such pixels."
    if n_ranges == 1:
        return (float(low), float(high)), left_out
    shape = (-1,) + (1,) * (X.ndim - 2)
    return tuple(bounds.reshape(shape) for bounds in clip), left_out


def make_scaler(scaling, kind: Kind):
    """Return the unfitted scaler that `scaling` names, None for no scaling.

    Parameters
    ----------
    scaling : {"auto", "minmax", "standard"} or None
        "auto" is the scaling of the kind of data.
    kind : Kind
        The kind of data.
    """
    if scaling is None:
        return None
    method = kind.scaling if scaling == "auto" else scaling
    if kind.has_channels:
        return ImageScaler(method)
    return MinMaxScaler((-1, 1)) if method == "minmax" else StandardScaler()


def refuse_other_scale(name, others, X):
    """Raise an error if two arrays of images hardly have one scale.

    One holds bytes, and one does not; or the numbers of one are far larger.

    Parameters
    ----------
    name : str
        What the user calls the others.
    others, X : ndarray of shape (n, ...)
        Rows that are going to be scaled alike.

    Raises
    ------
    ValueError
        If so.
    """
    if X.ndim == TABLE.ndim:
        return
    if (others.dtype == np.uint8) != (X.dtype == np.uint8):
        raise ValueError(
            f"{name} is of dtype {others.dtype} and X of dtype {X.dtype}, so that they "
            "hardly have one scale: give both as bytes (uint8), or both as floats. "
            "(A scaler in front, in a pipeline, makes floats of bytes; images need "
            "none.)"
        )
    if len(others) and X.dtype != np.uint8:
        both = [(float(rows.min()), float(rows.max())) for rows in (others, X)]
        reach = [max(abs(low), abs(high)) for low, high in both]
        if max(reach) > _FAR * min(reach) > 0:
            (low, high), (own_low, own_high) = both
            raise ValueError(
                f"{name} goes from {low:g} to {high:g} and X from {own_low:g} to "
                f"{own_high:g}: images hardly have one scale. Divide bytes by 255 in "
                "both, or in neither."
            )
