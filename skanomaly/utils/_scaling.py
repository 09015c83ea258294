"""Scalers: scikit-learn's for tables, one affine map for images."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.preprocessing import MinMaxScaler, StandardScaler

__all__ = ["ImageScaler", "make_scaler", "refuse_other_scale"]

#: Scaled pixels so far out that they were hardly meant, where 1 is as far as any.
_FAR = 10.0


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
    scale_, min_ : ndarray of shape (c, 1, ...) or (1, ...), float32
        A pixel ``x`` becomes ``x * scale_ + min_``.
    bytes_ : bool
        Whether the images were of dtype uint8.
    """

    def __init__(self, method="minmax"):
        self.method = method

    def fit(self, X, y=None):
        """Learn the map from images of shape (n, c, ...)."""
        if self.method == "standard":
            axes = (0, *range(2, X.ndim))
            mean, spread = X.mean(axes, dtype=np.float64), X.std(axes, dtype=np.float64)
            lower, half = mean, np.where(spread > 0, spread, 1.0)
        else:
            low, high = (0, 255) if X.dtype == np.uint8 else (X.min(), X.max())
            low, high = np.atleast_1d(np.float64(low)), np.atleast_1d(np.float64(high))
            half = np.where(high > low, (high - low) / 2, 1.0)
            lower = (low + high) / 2
        self.bytes_ = X.dtype == np.uint8
        shape = (-1,) + (1,) * (X.ndim - 2)
        self.scale_ = (1 / half).astype(np.float32).reshape(shape)
        self.min_ = (-lower / half).astype(np.float32).reshape(shape)
        return self

    def suits(self, X):
        """Return whether pixels may well have the scale of those it was fitted on."""
        if self.bytes_ == (X.dtype == np.uint8):
            return True
        if self.bytes_:  # and X holds floats, of 0 to 255 or of 0 to 1
            return X.max() > 1
        return (np.float32(X.max()) * self.scale_ + self.min_).max() < _FAR

    def transform(self, X):
        """Return the scaled images, float32."""
        return X.astype(np.float32) * self.scale_ + self.min_

    def inverse_transform(self, X):
        """Return scaled images to the range, and uint8 to bytes, of before."""
        X = (X - self.min_) / self.scale_
        return np.clip(np.rint(X), 0, 255).astype(np.uint8) if self.bytes_ else X


def make_scaler(scaling, *, images):
    """Return the unfitted scaler that `scaling` names, None for no scaling.

    Parameters
    ----------
    scaling : {"auto", "minmax", "standard"} or None
        "auto" is "minmax" for images and "standard" for tables.
    images : bool
        Whether rows are images, or columns of a table.
    """
    if scaling is None:
        return None
    if images:
        return ImageScaler("standard" if scaling == "standard" else "minmax")
    return MinMaxScaler((-1, 1)) if scaling == "minmax" else StandardScaler()


def refuse_other_scale(name, others, X):
    """Raise an error if one of two arrays of images holds bytes, and one does not.

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
    if X.ndim > 2 and (others.dtype == np.uint8) != (X.dtype == np.uint8):
        raise ValueError(
            f"{name} is of dtype {others.dtype} and X of dtype {X.dtype}, so that they "
            "hardly have one scale: give both as bytes (uint8), or both as floats. "
            "(A scaler in front, in a pipeline, makes floats of bytes; images need "
            "none.)"
        )
