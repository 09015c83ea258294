"""Scalers: scikit-learn's for tables, one affine map for images."""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from ._kinds import TABLE, Kind
from ._parts import parts_of, slices_of

__all__ = [
    "ImageScaler",
    "fit_by_parts",
    "make_scaler",
    "refuse_other_scale",
]

#: Bound of scaled pixels: larger ones hardly have the scale of training pixels.
_FAR = 10.0

#: Bound of floats on the scale of bytes, with a margin for interpolation or noise.
_BYTES_BEYOND = 2 * 255

#: Rare pixel values: number of images needed to detect them, maximum share of images
#: with them, and distance beyond other values, in widths of the range of these.
_MIN_IMAGES, _RARE, _BEYOND = 20, 0.05, 2.0

#: Offset of scaled pixels from which float32 loses the digits of the pixels.
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
    scale_, min_ : ndarray of shape (channels, 1, ...) or (1, ...)
        A pixel ``x`` becomes ``x * scale_ + min_``, computed in float64: in float32 a
        large shift might use up all digits.
    clip_ : tuple of float or of ndarray of shape (channels, 1, ...), or None
        Range without rare values, to which pixels are clipped before scaling; None if
        no values are rare. "standard" has bounds for each channel, infinite ones for
        channels without rare values.
    bytes_ : bool
        Whether the images were of dtype uint8.
    seen_ : tuple
        State of ``partial_fit``: the lowest and the highest pixel, or number, means and
        variances.
    """

    def __init__(self, method: Literal["minmax", "standard"] = "minmax"):
        self.method = method

    clip_: tuple[Any, Any] | None = None  # files may lack it
    seen_: tuple[Any, ...] | None
    scale_: NDArray[np.float64]
    min_: NDArray[np.float64]

    def fit(self, X: NDArray, y: object = None) -> Self:
        """Learn the map from images of shape (n_samples, channels, ...)."""
        self.seen_ = None
        return self.partial_fit(X)

    def partial_fit(self, X: NDArray, y: object = None) -> Self:
        """Learn the map from these images and the earlier ones."""
        self.bytes_ = X.dtype == np.uint8
        X = self._cut(X)
        seen = getattr(self, "seen_", None)
        if self.method == "standard":
            self.seen_ = _, lower, variance = _moments(X, seen)
            half = np.where(variance > 0, variance**0.5, 1.0)
        else:
            self.seen_ = ends = (0, 255) if self.bytes_ else _range(X, seen)
            low, high = (np.atleast_1d(np.float64(bound)) for bound in ends)
            half = np.where(high > low, (high - low) / 2, 1.0)
            lower = (low + high) / 2
        shape = _of_channels(X)
        self.scale_ = (1 / half).reshape(shape)
        self.min_ = (-lower / half).reshape(shape)
        return self

    def _cut(self, X: NDArray) -> NDArray:
        return X if self.clip_ is None else np.clip(X, *self.clip_)

    def suits(self, X: NDArray) -> bool:
        """Return whether images seem to have the scale of the training images."""
        if self.bytes_ and X.dtype == np.uint8:
            return True
        if self.bytes_:  # and X holds floats, of 0 to 255 or of 0 to 1
            in_reach = X.min() >= 255 - _BYTES_BEYOND and X.max() <= _BYTES_BEYOND
            return bool(in_reach and X.max() > 1)
        # Both ends, since pixels may be far too dark or far too bright; of each
        # channel, since channels may have scales of their own.
        axes = (0, *range(2, X.ndim))
        ends = np.array([X.min(axes), X.max(axes)], np.float64)
        ends = ends.reshape(2, *_of_channels(X))
        return bool((np.abs(ends * self.scale_ + self.min_) < _FAR).all())

    def transform(self, X: NDArray) -> NDArray[np.float32]:
        """Scale images, in float32."""
        scaled = np.empty(X.shape, np.float32)
        for part in slices_of(X):
            rows = self._cut(X[part]).astype(np.float64)
            with np.errstate(over="ignore"):  # infinite pixels get the lowest score
                scaled[part] = rows * self.scale_ + self.min_
        return scaled

    def inverse_transform(self, X: NDArray) -> NDArray[Any]:
        """Undo the scaling; images are bytes if the training images were."""
        pixels = (X - self.min_) / self.scale_
        if self.bytes_:
            return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        is_shifted = np.abs(self.min_).max() > _SHIFTED
        return pixels if is_shifted else pixels.astype(X.dtype)


def _of_channels(X: NDArray) -> tuple[int, ...]:
    """Return the shape in which values of the channels broadcast against samples."""
    return -1, *[1] * (X.ndim - 2)


def _range(X, before):
    low, high = X.min(), X.max()
    return (
        (low, high) if before is None else (min(low, before[0]), max(high, before[1]))
    )


def _moments(X, before):
    """Return the number of pixels, and the mean and variance of each channel."""
    axes = (0, *range(2, X.ndim))
    n = X.size // X.shape[1]
    mean, variance = X.mean(axes, dtype=np.float64), X.var(axes, dtype=np.float64)
    if before is None:
        return n, mean, variance
    n_before, mean_before, variance_before = before
    share, shift = n / (n + n_before), mean - mean_before
    variance = share * variance + (1 - share) * variance_before
    variance += share * (1 - share) * shift**2
    return n + n_before, mean_before + share * shift, variance


def fit_by_parts(scaler: Any, X: NDArray, chosen: NDArray[np.bool_]) -> str | None:
    """Fit a new scaler on chosen samples, in parts of few samples.

    Parameters
    ----------
    scaler : transformer with ``partial_fit``, or None
        Nothing is fitted if it is None.
    X : ndarray of shape (n_samples, ...)
        It may be larger than the memory.
    chosen : ndarray of shape (n_samples,), bool
        Samples to fit it on.

    Returns
    -------
    str or None
        Description of rare pixel values that were left out, if there are any.
    """
    if scaler is None:
        return None
    left_out = None
    if isinstance(scaler, ImageScaler) and X.dtype != np.uint8:
        by_channel = scaler.method == "standard"
        scaler.clip_, left_out = _usual_range(X, chosen, by_channel)
    # Squares of large numbers overflow; the detector checks the scaled samples.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for rows in parts_of(X, chosen):
            scaler.partial_fit(rows)
    return left_out


def _usual_range(X, chosen, by_channel):
    """Return the range of images without rare values, and a description of these.

    A single pixel a hundred times as bright as all others would compress these to a
    hundredth of the scaled range. A value is rare if few images have it, not if few
    pixels of every image have it. Channels that are scaled separately may have
    different units, and are examined one by one.
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
    # If most images have a single value, the others are not rare but the signal.
    with_rare = np.flatnonzero((reach > 0) & ~usual.all(0))
    if len(lows) < _MIN_IMAGES or not len(with_rare):
        return None, None
    clip = np.full((2, n_ranges), [[-np.inf], [np.inf]])
    for k in with_rare:
        clip[:, k] = lows[usual[:, k], k].min(), highs[usual[:, k], k].max()
    first = with_rare[0]
    low, high = clip[:, first]
    left_out = (
        f"Pixels{f' of channel {first}' if n_ranges > 1 else ''} go from "
        f"{lows[:, first].min():g} to {highs[:, first].max():g}, but only from {low:g} "
        f"to {high:g} in {np.mean(usual[:, first]):.2%} of the images, all but "
        f"{np.sum(~usual[:, first])}."
    )
    if len(with_rare) > 1:
        left_out += f" {len(with_rare)} of {n_ranges} channels have such pixels."
    if n_ranges == 1:
        return (float(low), float(high)), left_out
    return tuple(bounds.reshape(_of_channels(X)) for bounds in clip), left_out


def make_scaler(
    scaling: Literal["auto", "minmax", "standard"] | None, kind: Kind
) -> ImageScaler | MinMaxScaler | StandardScaler | None:
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


def refuse_other_scale(name: str, others: NDArray, X: NDArray) -> None:
    """Raise an error if two arrays of images seem to have different scales.

    Parameters
    ----------
    name : str
        Name of `others` for the user.
    others, X : ndarray of shape (n_samples, ...)
        Samples to be scaled alike. Tables pass.

    Raises
    ------
    ValueError
        If one array holds bytes and the other does not, or if the numbers of one are
        far larger.
    """
    if X.ndim == TABLE.ndim:
        return
    if (others.dtype == np.uint8) != (X.dtype == np.uint8):
        raise ValueError(
            f"{name} has dtype {others.dtype} and X has dtype {X.dtype}, so that they "
            "hardly have one scale: give both as uint8, or both as floats. (A scaler "
            "in a pipeline turns uint8 into floats; images do not need it.)"
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
