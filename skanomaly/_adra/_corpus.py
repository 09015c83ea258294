"""Rows that are not normal, or need not be: where a corpus comes from."""

from __future__ import annotations

from math import log

import numpy as np
import torch
from sklearn.utils import check_array, column_or_1d
from torch import Tensor

from .. import datasets
from ..engine import Rows
from ._images import resized

#: Weights of red, green and blue in a grey image (ITU-R BT.601).
_LUMA = 0.299, 0.587, 0.114
#: Rows that are enough to see how far columns reach.
_ENOUGH = 5000
#: Least and largest standard deviation of the noise in altered rows.
_NOISE = 0.1, 3.0
#: By how much their box is larger: a share of the range, and a number.
_BOX = 0.25, 0.5


def read_corpus(corpus, X):
    """Return the rows of a corpus, of the shape and kind of X, and their classes.

    Parameters
    ----------
    corpus : array, tuple of (array, labels), or str
        Rows, or the name of a data set: "tiny_imagenet" stands for
        :func:`skanomaly.datasets.fetch_tiny_imagenet`.
    X : ndarray of shape (n, d) or (n, c, h, w)
        The rows it goes with.

    Returns
    -------
    tuple of ndarray and (ndarray or None)
        Rows, and the number of the class of each, if classes are known.
    """
    labels = None
    if isinstance(corpus, str):
        corpus, labels = _fetched(corpus)
        if X.ndim == corpus.ndim == 4:
            corpus = _like(corpus, X.shape[1:])
    elif isinstance(corpus, tuple):
        corpus, labels = corpus
    if corpus.ndim == 2 < X.ndim and corpus.shape[1] == X[0].size:
        corpus = corpus.reshape(-1, *X.shape[1:])
    _check_kind(corpus, X)
    corpus = check_array(corpus, dtype=X.dtype, allow_nd=True, input_name="corpus")
    if labels is not None:
        labels = column_or_1d(labels)
        if len(labels) != len(corpus):
            raise ValueError(
                f"corpus has {len(corpus)} rows, but {len(labels)} labels."
            )
        labels = np.unique(labels, return_inverse=True)[1]
    return corpus, labels


class AlteredRows:
    """Rows of a table that are no longer normal, made of normal ones at random.

    A half of them have some columns from other rows, which breaks what holds between
    columns; a quarter have noise added, of any size from a tenth of a standard
    deviation to three; a quarter are anywhere in a box a little larger than the data.

    Parameters
    ----------
    rows : Rows
        Normal rows (n, d), scaled.
    seed : int
        Draws what is altered.
    """

    def __init__(self, rows: Rows, seed: int):
        self.rows = rows
        self.rng = torch.Generator(rows.device).manual_seed(seed)
        some = rows.head(_ENOUGH)
        low, high = some.amin(0), some.amax(0)
        beyond = _BOX[0] * (high - low) + _BOX[1]
        self.low, self.size = low - beyond, high - low + 2 * beyond

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return altered rows in the place of those at `index`, (..., m, d)."""
        rows = self.rows[index]
        half, quarter = rows.shape[-2] // 2, rows.shape[-2] // 4
        swapped, noisy, free = rows.tensor_split([half, half + quarter], -2)
        made = self._swapped(swapped, rows), self._noisy(noisy), self._free(free)
        return torch.cat(made, -2)

    def _swapped(self, rows, givers):
        *before, n, d = rows.shape
        giver = self._one_of(givers.shape[-2], *rows.shape)
        chosen = self._drawn(*rows.shape) < self._drawn(*before, n, 1)
        chosen |= torch.arange(d, device=rows.device) == self._one_of(d, *before, n, 1)
        return torch.where(chosen, givers.gather(-2, giver), rows)

    def _one_of(self, n, *shape):
        return (n * self._drawn(*shape)).long()

    def _drawn(self, *shape):
        return torch.rand(shape, generator=self.rng, device=self.rng.device)

    def _noisy(self, rows):
        *before, n, d = rows.shape
        low, high = map(log, _NOISE)
        size = (low + (high - low) * self._drawn(*before, n, 1)).exp()
        noise = torch.randn(rows.shape, generator=self.rng, device=self.rng.device)
        return rows + size * noise

    def _free(self, rows):
        return self.low + self.size * self._drawn(*rows.shape)


def _fetched(name):
    known = [k.removeprefix("fetch_") for k in datasets.__all__ if "fetch_" in k]
    if name not in known:
        raise ValueError(
            f"corpus={name!r} is no data set of skanomaly.datasets: {sorted(known)}."
        )
    return getattr(datasets, f"fetch_{name}")(return_X_y=True)


def _check_kind(corpus, X):
    if corpus.shape[1:] != X.shape[1:]:
        raise ValueError(
            f"The rows of corpus have shape {corpus.shape[1:]}, those of X "
            f"{X.shape[1:]}: they have to be of one shape."
        )
    if (corpus.dtype == np.uint8) != (X.dtype == np.uint8):
        raise ValueError(
            f"corpus is of dtype {corpus.dtype} and X of dtype {X.dtype}, so that they "
            "hardly have one scale: give both as bytes (uint8), or both as floats."
        )


def _like(images, shape):
    """Return images as bytes of another shape (c, h, w)."""
    made = torch.from_numpy(images)
    n_channels, *sides = shape
    if made.shape[1] == 3 and n_channels == 1:
        made = (made * torch.tensor(_LUMA).view(-1, 1, 1)).sum(1, keepdim=True)
    if made.shape[2:] != tuple(sides):
        made = resized(made.float(), tuple(sides))
    return made.expand(-1, n_channels, -1, -1).round().byte().numpy()
