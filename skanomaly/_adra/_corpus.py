"""Rows that are not normal, or need not be: where a corpus comes from."""

from __future__ import annotations

from functools import partial
from inspect import signature
from math import log, prod

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils import check_array
from torch import Tensor

from .. import datasets
from ..engine import DeviceDataset, TransformedDataset
from ..utils._kinds import IMAGE, TABLE
from ..utils._labels import complete_column
from ..utils._numbers import as_numbers
from ..utils._scaling import refuse_other_scale
from ._images import resized

#: Weights of red, green and blue in a grey image (ITU-R BT.601).
_LUMA = 0.299, 0.587, 0.114
#: Images to look at together.
_AT_ONCE = 256
#: Numbers in images that are enough to see how sharp they are.
_PIXELS = 2**22
#: Rows that are enough to see how far columns reach.
_ENOUGH = 5000
#: Least and largest standard deviation of the noise in altered rows.
_NOISE = 0.3, 3.0
#: Bands of frequencies, up to the highest, and from where on they are fine detail.
_BANDS, _TOP, _FINE = 24, 0.5**0.5, 0.1
_TINY = 1e-9
#: By how much their box is larger: a share of the range, and a number.
_BOX = 0.25, 0.5


class AlteredRows:
    """Rows of a table that are no longer normal, made of normal ones at random.

    A half of them have some columns from other rows, which breaks what holds between
    columns; a quarter have noise added to some columns, of any size from 0.3 to 3
    standard deviations; a quarter are anywhere in a box a little larger than the data.

    Parameters
    ----------
    rows : DeviceDataset
        Normal rows (n, d), scaled.
    seed : int
        Draws what is altered.
    """

    def __init__(self, rows: DeviceDataset, seed: int):
        self.rows = rows
        self.rng = torch.Generator(rows.device).manual_seed(seed)
        some = rows[rows.spread_indices(_ENOUGH)]
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
        giver = self._one_of(givers.shape[-2], *rows.shape)
        return torch.where(self._some(rows), givers.gather(-2, giver), rows)

    def _noisy(self, rows):
        low, high = map(log, _NOISE)
        size = (low + (high - low) * self._drawn(*rows.shape[:-1], 1)).exp()
        noise = torch.randn(rows.shape, generator=self.rng, device=self.rng.device)
        return rows + self._some(rows) * size * noise

    def _some(self, rows):
        """Choose a share of the columns, of any size, row by row; at least one."""
        *before, d = rows.shape
        chosen = self._drawn(*rows.shape) < self._drawn(*before, 1)
        one = self._one_of(d, *before, 1)
        return chosen | (torch.arange(d, device=rows.device) == one)

    def _one_of(self, n, *shape):
        return (n * self._drawn(*shape)).long()

    def _drawn(self, *shape):
        return torch.rand(shape, generator=self.rng, device=self.rng.device)

    def _free(self, rows):
        return self.low + self.size * self._drawn(*rows.shape)


# Sharpness --------------------------------------------------------------------------


def no_sharper(corpus: DeviceDataset, normal: DeviceDataset) -> TransformedDataset:
    """Return the images of a corpus, damped to be no sharper than the normal ones."""
    n_enough = max(_PIXELS // prod(normal.row_shape), 1)
    some = (rows[rows.spread_indices(n_enough)] for rows in (normal, corpus))
    return TransformedDataset(corpus, partial(damped, factors=excess_sharpness(*some)))


def excess_sharpness(normal: Tensor, corpus: Tensor) -> Tensor:
    """Return by how much to damp the frequencies of a corpus.

    Images from elsewhere are sharper or noisier. A detector that is to tell them from
    the normal ones does so by that alone, and learns nothing about anomalies.

    Parameters
    ----------
    normal, corpus : Tensor of shape (n, c, h, w) and (m, c, h, w)
        Some images of both.

    Returns
    -------
    Tensor of shape (k, b)
        A factor for each band of frequencies, from 0 to the highest there is; for
        grey, and for two differences of colours if there are colours. It is below 1
        where the corpus has more of its power than the normal images, and 1 for low
        frequencies, which are what images are about.
    """
    ratio = _spectrum(normal) / _spectrum(corpus)
    high = torch.linspace(0, 1, _BANDS, device=ratio.device) * _TOP >= _FINE
    return torch.where(high, ratio.sqrt().clamp_max(1), 1.0)


def damped(images: Tensor, factors: Tensor) -> Tensor:
    """Return images (n, c, h, w) whose frequencies are multiplied by factors."""
    *_, h, w = images.shape
    around = (w // 2, w // 2, h // 2, h // 2)
    larger = F.pad(by_colour(images), around, mode="replicate")
    frequency = frequencies(larger) / _TOP * (_BANDS - 1)
    low = frequency.long().clamp_max(_BANDS - 2)
    factor = torch.lerp(factors[:, low], factors[:, low + 1], frequency - low)
    made = torch.fft.irfft2(torch.fft.rfft2(larger) * factor, larger.shape[2:])
    made = made[:, :, h // 2 : h // 2 + h, w // 2 : w // 2 + w]
    return by_colour(made, back=True)


def by_colour(images, back=False):
    """Return grey and differences of colours in the place of red, green and blue."""
    if images.shape[1] != 3:
        return images
    axes = images.new_tensor([[1, 1, 1], [1, -1, 0], [1, 1, -2]])
    axes = axes / axes.norm(dim=1, keepdim=True)
    return torch.einsum("ko,nohw->nkhw", axes.T if back else axes, images)


def power_spectrum(images: Tensor) -> Tensor:
    """Return the power of each number of rfft2, by channel, without that of edges."""
    images = by_colour(images)
    images = images - images.mean((2, 3), keepdim=True)
    window = [
        torch.hann_window(n, False, device=images.device) for n in images.shape[2:]
    ]
    return torch.fft.rfft2(images * window[0][:, None] * window[1]).abs().square()


def _spectrum(images):
    """Return the share of the power in each band, by channel, in the mean of images."""
    power = power_spectrum(images)
    power = (power / power.sum((2, 3), keepdim=True).clamp_min(_TINY)).mean(0)
    frequency = frequencies(images)
    band = (frequency / _TOP * (_BANDS - 1)).round().long().flatten()
    total = power.new_zeros(len(power), _BANDS).index_add_(1, band, power.flatten(1))
    # Bands of which the grid has no frequency, or which have no power, damp nothing.
    return total / torch.bincount(band, minlength=_BANDS).clamp_min(1) + _TINY


def frequencies(images):
    """Return the frequency, in cycles per pixel, of each number of rfft2."""
    *_, height, width = images.shape
    down = torch.fft.fftfreq(height, device=images.device)[:, None]
    return torch.hypot(down, torch.fft.rfftfreq(width, device=images.device))


# Reading ----------------------------------------------------------------------------


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
        if X.ndim == corpus.ndim == IMAGE.ndim:
            corpus = _like(corpus, X.shape[1:])
    elif isinstance(corpus, tuple):
        if len(corpus) != 2:
            raise ValueError(
                f"corpus is a tuple of {len(corpus)}; a pair (rows, classes) is wanted."
            )
        corpus, labels = corpus
    try:
        corpus = np.asarray(as_numbers(corpus, "corpus"))
    except ValueError as error:
        raise ValueError(
            f"corpus is no array of rows, nor a tuple of two, (rows, classes): {error}"
        ) from error
    if not corpus.size:
        raise ValueError("corpus has 0 samples; corpus=None says that there is none.")
    if np.iscomplexobj(corpus):
        raise ValueError(
            "corpus holds complex numbers: give real ones, of which X is made too."
        )
    if corpus.ndim == TABLE.ndim < X.ndim and corpus.shape[1] == X[0].size:
        corpus = corpus.reshape(-1, *X.shape[1:])
    _check_kind(corpus, X)
    with np.errstate(over="ignore", invalid="ignore"):  # of its check by a sum
        corpus = check_array(corpus, dtype=X.dtype, allow_nd=True, input_name="corpus")
    if labels is not None:
        shape = np.shape(labels)
        if len(shape) != 1 and shape[1:] != (1,):
            raise ValueError(
                "corpus is a tuple (rows, classes), and has no class for each row but "
                f"an array of shape {shape}. Rows of two sources are put together by "
                "np.concatenate."
            )
        labels = complete_column(labels, "corpus, as (rows, classes),")
        if len(labels) != len(corpus):
            raise ValueError(
                f"corpus has {len(corpus)} rows, but {len(labels)} labels."
            )
        labels = np.unique(labels, return_inverse=True)[1]
        labels = labels if labels.any() else None  # one class says nothing
    return corpus, labels


def _fetched(name):
    loaders = {
        k.removeprefix("fetch_"): getattr(datasets, k)
        for k in datasets.__all__
        if k.startswith("fetch_")
    }
    known = {
        k: loader
        for k, loader in loaders.items()
        if not any(
            (p.default is p.empty and p.kind is p.KEYWORD_ONLY)
            or p.kind is p.POSITIONAL_OR_KEYWORD
            for p in signature(loader).parameters.values()
        )
    }
    if name not in known:
        raise ValueError(
            f"corpus={name!r} is no data set of skanomaly.datasets: {sorted(known)}."
        )
    return known[name](return_X_y=True)


def _check_kind(corpus, X):
    if corpus.shape[1:] != X.shape[1:]:
        raise ValueError(
            f"The rows of corpus have shape {corpus.shape[1:]}, those of X "
            f"{X.shape[1:]}: they have to be of one shape."
        )
    refuse_other_scale("corpus", corpus, X)


def _like(images, shape):
    """Return images as bytes of another shape (c, h, w)."""
    n_channels, *sides = shape
    made = np.empty((len(images), *shape), np.uint8)
    for start in range(0, len(images), _AT_ONCE):
        some = torch.from_numpy(images[start : start + _AT_ONCE]).float()
        if some.shape[1] == 3 and n_channels == 1:
            some = (some * torch.tensor(_LUMA).view(-1, 1, 1)).sum(1, keepdim=True)
        if some.shape[2:] != tuple(sides):
            some = resized(some, tuple(sides))
        some = some.round().clamp(0, 255).byte()
        made[start : start + _AT_ONCE] = some.expand(-1, n_channels, -1, -1)
    return made
