"""The corpus: altered samples, reading, spectrum matching, and a test of the source."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from itertools import pairwise
from math import log, pi, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array, gen_batches
from torch import Tensor

from .. import datasets
from ..engine import DeviceDataset, TransformedDataset
from ..exceptions import CorpusSourceWarning
from ..utils._kinds import IMAGE, TABLE
from ..utils._labels import complete_column
from ..utils._numbers import as_numbers
from ..utils._scaling import refuse_other_scale
from ..utils._warnings import warn
from ._networks import resized

#: Weights of red, green and blue in a grey image (ITU-R BT.601).
_LUMA = 0.299, 0.587, 0.114
#: Images to convert together, and to describe together.
_CONVERTED, _DESCRIBED = 256, 64

# Altered samples: how many of a table determine the range of its columns; least and
# largest standard deviation of their noise; how much larger than the range their box
# is, as a share of it and as a number.
_ENOUGH = 5000
_NOISE = 0.3, 3.0
_BOX = 0.25, 0.5

# Spectra: maximum number of pixels to estimate them from; number of bands, highest
# frequency, and lowest frequency of fine detail.
_PIXELS = 2**22
_BANDS, _TOP, _FINE = 24, 0.5**0.5, 0.1
_TINY = 1e-9

#: AUROC above which a corpus is taken to have another source. By content alone, a class
#: of CIFAR-10 or MNIST against the others reaches up to .90, except the digit 1.
_OTHER_SOURCE = 0.9
#: Minimum number of images of each for a reliable AUROC.
_MIN_IMAGES = 50
#: Maximum number of images of each, and of their pixels.
_MAX_IMAGES, _MAX_NUMBERS = 500, 2**24
#: Minimum side of images, and side of the middle that is described, in pixels.
_LEAST_SIDE, _SIDE = 8, 96
#: Edges of bands of frequencies, in cycles per pixel.
_EDGES = 0.03, 0.1, 0.18, 0.27, 0.36, 0.45, 0.75
#: Pixels per side of a block of JPEG, and sums of the two frequencies in a block that
#: are of middle, high and highest frequency.
_BLOCK, _DIAGONALS = 8, (3, 6, 9, 15)
_QUANTILES = 0.25, 0.5
#: Offsets of logarithms: below a level of 256 in [-1, 1], and below shares of power.
_LEVEL, _SHARE = 1e-3, 1e-6
#: Folds, and inverse strength of the penalty, of the classifier of sources.
_FOLDS, _C = 5, 0.1


class AlteredSamples:
    """Samples of a table that are no longer normal: normal ones altered at random.

    A half get some columns from other samples, which breaks the relations between
    columns; a quarter get noise in some columns, of any size from 0.3 to 3 standard
    deviations; a quarter are anywhere in a box a little larger than the data.

    Parameters
    ----------
    rows : DeviceDataset
        Normal samples (n_samples, n_features), scaled.
    seed : int
        Seed of the alterations.
    """

    #: The samples of a batch depend on one another.
    for_batches = True

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
        """Return altered samples in the place of those at `index`, (..., m, d)."""
        rows = self.rows[index]
        half, quarter = rows.shape[-2] // 2, rows.shape[-2] // 4
        swapped, noisy, free = rows.tensor_split([half, half + quarter], -2)
        altered = self._swapped(swapped, rows), self._noisy(noisy), self._free(free)
        return torch.cat(altered, -2)

    def run_state(self):
        """Return the state of the generator."""
        return self.rng.get_state()

    def load_run_state(self, state):
        """Set the state of the generator."""
        self.rng.set_state(state)

    def _swapped(self, rows, givers):
        giver = self._one_of(givers.shape[-2], *rows.shape)
        return torch.where(self._some(rows), givers.gather(-2, giver), rows)

    def _noisy(self, rows):
        low, high = map(log, _NOISE)
        size = (low + (high - low) * self._drawn(*rows.shape[:-1], 1)).exp()
        noise = torch.randn(rows.shape, generator=self.rng, device=self.rng.device)
        return rows + self._some(rows) * size * noise

    def _some(self, rows):
        """Choose some columns of each sample, in any number; at least one."""
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


# Reading ----------------------------------------------------------------------------


def read_corpus(corpus: Any, X: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the samples of a corpus, of the shape and kind of X, and their classes.

    Parameters
    ----------
    corpus : array, tuple of (array, labels), or str
        Samples, or the name of a data set: "tiny_imagenet" stands for
        :func:`skanomaly.datasets.fetch_tiny_imagenet`.
    X : ndarray of shape (n_samples, n_features) or (n_samples, channels, height, width)
        Training samples.

    Returns
    -------
    tuple of ndarray and (ndarray or None)
        Samples, and the number of the class of each, if classes are known.
    """
    labels = None
    if isinstance(corpus, str):
        corpus, labels = _fetched(corpus)
        if X.ndim == corpus.ndim == IMAGE.ndim:
            corpus = _converted(corpus, X.shape[1:])
    elif isinstance(corpus, tuple):
        if len(corpus) != 2:
            raise ValueError(
                f"corpus is a tuple of {len(corpus)}; a pair (samples, classes) is "
                "wanted."
            )
        corpus, labels = corpus
    corpus = _checked_rows(corpus, X)
    return corpus, None if labels is None else _checked_classes(labels, len(corpus))


def _checked_rows(corpus, X):
    """Return the samples of a corpus as an array of the shape and type of X."""
    try:
        corpus = np.asarray(as_numbers(corpus, "corpus"))
    except ValueError as error:
        raise ValueError(
            "corpus has to be an array of samples, or a pair (samples, classes): "
            f"{error}"
        ) from error
    if not corpus.size:
        raise ValueError("corpus has 0 samples: give corpus=None for no corpus.")
    if np.iscomplexobj(corpus):
        raise ValueError("corpus holds complex numbers: give real ones, as X has.")
    if corpus.ndim == TABLE.ndim < X.ndim and corpus.shape[1] == X[0].size:
        corpus = corpus.reshape(-1, *X.shape[1:])
    if corpus.shape[1:] != X.shape[1:]:
        raise ValueError(
            f"The samples of corpus have shape {corpus.shape[1:]}, those of X "
            f"{X.shape[1:]}: they have to be of one shape."
        )
    refuse_other_scale("corpus", corpus, X)
    with np.errstate(over="ignore", invalid="ignore"):  # its check for NaN sums it
        return check_array(corpus, dtype=X.dtype, allow_nd=True, input_name="corpus")


def _checked_classes(labels, n_rows):
    """Return the number of the class of each sample, or None if there is one class."""
    shape = np.shape(labels)
    if len(shape) != 1 and shape[1:] != (1,):
        raise ValueError(
            "corpus is a tuple (samples, classes), and has no class for each sample "
            f"but an array of shape {shape}. Samples of two sources are put together "
            "by np.concatenate."
        )
    labels = complete_column(labels, "corpus, as (samples, classes),")
    if len(labels) != n_rows:
        raise ValueError(f"corpus has {n_rows} samples, but {len(labels)} labels.")
    labels = np.unique(labels, return_inverse=True)[1]
    return labels if labels.any() else None


def _fetched(name: str) -> tuple[np.ndarray, np.ndarray]:
    loaders: dict[str, Callable] = {
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


def _converted(images, shape):
    """Return images as bytes of another shape (c, h, w)."""
    n_channels, *sides = shape
    converted = np.empty((len(images), *shape), np.uint8)
    for batch in gen_batches(len(images), _CONVERTED):
        some = torch.from_numpy(images[batch]).float()
        if some.shape[1] == 3 and n_channels == 1:
            some = (some * torch.tensor(_LUMA).view(-1, 1, 1)).sum(1, keepdim=True)
        if some.shape[2:] != tuple(sides):
            some = resized(some, tuple(sides))
        some = some.round().clamp(0, 255).byte()
        converted[batch] = some.expand(-1, n_channels, -1, -1)
    return converted


# Spectra ----------------------------------------------------------------------------


def match_spectrum(corpus: DeviceDataset, normal: DeviceDataset) -> TransformedDataset:
    """Return the images of a corpus, filtered to be no sharper than the normal ones.

    Images from another source are often sharper or noisier. A detector would learn this
    difference alone, and nothing about anomalies.
    """
    n_enough = max(_PIXELS // prod(normal.row_shape), 1)
    some = (rows[rows.spread_indices(n_enough)] for rows in (normal, corpus))
    return TransformedDataset(
        corpus, partial(filter_bands, factors=spectrum_factors(*some))
    )


def spectrum_factors(normal: Tensor, corpus: Tensor) -> Tensor:
    """Return the factors that match the spectrum of a corpus to normal images.

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
        frequencies, which carry the content of images.
    """
    ratio = _band_power(normal) / _band_power(corpus)
    high = torch.linspace(0, 1, _BANDS, device=ratio.device) * _TOP >= _FINE
    return torch.where(high, ratio.sqrt().clamp_max(1), 1.0)


def filter_bands(images: Tensor, factors: Tensor) -> Tensor:
    """Return images (n, c, h, w) whose frequencies are multiplied by factors."""
    *_, h, w = images.shape
    around = (w // 2, w // 2, h // 2, h // 2)
    larger = F.pad(by_colour(images), around, mode="replicate")
    frequency = frequencies(larger) / _TOP * (_BANDS - 1)
    low = frequency.long().clamp_max(_BANDS - 2)
    factor = torch.lerp(factors[:, low], factors[:, low + 1], frequency - low)
    filtered = torch.fft.irfft2(torch.fft.rfft2(larger) * factor, larger.shape[2:])
    filtered = filtered[:, :, h // 2 : h // 2 + h, w // 2 : w // 2 + w]
    return by_colour(filtered, back=True)


def by_colour(images: Tensor, back: bool = False) -> Tensor:
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


def _band_power(images):
    """Return the mean share of the power of images in each band, by channel."""
    power = power_spectrum(images)
    power = (power / power.sum((2, 3), keepdim=True).clamp_min(_TINY)).mean(0)
    frequency = frequencies(images)
    band = (frequency / _TOP * (_BANDS - 1)).round().long().flatten()
    total = power.new_zeros(len(power), _BANDS).index_add_(1, band, power.flatten(1))
    # Bands that the grid has no frequency of, or without power, have factors of 1.
    return total / torch.bincount(band, minlength=_BANDS).clamp_min(1) + _TINY


def frequencies(images: Tensor) -> Tensor:
    """Return the frequency, in cycles per pixel, of each number of rfft2."""
    *_, height, width = images.shape
    down = torch.fft.fftfreq(height, device=images.device)[:, None]
    return torch.hypot(down, torch.fft.rfftfreq(width, device=images.device))


# Sources ----------------------------------------------------------------------------
#
# Images of another camera, size or format can be distinguished regardless of content.
# Each image is described by a few statistics of its source: the distribution of its
# power over frequencies, the size and the peaks of its noise, the correlations of its
# colours, and traces of the blocks of 8 x 8 pixels of JPEG. None of them changes with
# brightness or contrast. The AUROC of a linear classifier of these numbers, on images
# that it was not trained on, is the measure.


def match_source(
    normal: DeviceDataset, corpus: DeviceDataset, seed: int
) -> tuple[DeviceDataset | TransformedDataset, float | None]:
    """Return a corpus whose source is as similar to the normal images as possible.

    Its spectrum is matched to theirs, unless the two already have one source: then a
    filter would introduce a difference.

    Parameters
    ----------
    normal, corpus : DeviceDataset
        Images (n, c, h, w) and (m, c, h, w).
    seed : int
        Seed of the folds.

    Returns
    -------
    DeviceDataset or TransformedDataset, and float or None
        The corpus, and its :func:`source_auroc`.

    Warns
    -----
    CorpusSourceWarning
        If the AUROC is above .9.
    """
    auroc = source_auroc(normal, corpus, seed)
    if auroc is not None and auroc <= _OTHER_SOURCE:
        return corpus, auroc
    matched = match_spectrum(corpus, normal)
    auroc = source_auroc(normal, matched, seed)
    if auroc is not None and auroc > _OTHER_SOURCE:
        warn(
            "The corpus differs from the normal images in spectrum, noise, colours or "
            f"traces of compression (corpus_auroc_ is {auroc:.2f}). A detector may "
            "learn this difference, and not normal content. Take a corpus of the same "
            "camera, size and format, such as images of other classes, and compare "
            "with corpus=None.",
            CorpusSourceWarning,
        )
    return matched, auroc


def source_auroc(
    normal: DeviceDataset, corpus: DeviceDataset | TransformedDataset, seed: int
) -> float | None:
    """Return the AUROC of a classifier of normal images and corpus by their sources.

    Parameters
    ----------
    normal, corpus : DeviceDataset or TransformedDataset
        Images (n, c, h, w) and (m, c, h, w), scaled.
    seed : int
        Seed of the folds.

    Returns
    -------
    float or None
        Cross-validated AUROC, .5 if the sources do not differ; None for less than 50
        images of either, or sides below 8 pixels.
    """
    n_enough = min(
        max(_MAX_NUMBERS // prod(normal.row_shape), _MIN_IMAGES), _MAX_IMAGES
    )
    if min(len(normal), len(corpus)) < _MIN_IMAGES:
        return None
    if min(normal.row_shape[-2:]) < _LEAST_SIDE:
        return None
    numbers = [_described(normal, n_enough), _described(corpus, n_enough)]
    labels = np.repeat([0, 1], [len(part) for part in numbers])
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=_C, class_weight="balanced", max_iter=1000),
    )
    scores = cross_val_predict(
        classifier,
        np.concatenate(numbers),
        labels,
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
        method="decision_function",
    )
    return float(roc_auc_score(labels, scores))


def _described(rows, n):
    """Return the statistics of about n of the samples, (n, k)."""
    chosen = torch.linspace(0, len(rows) - 1, min(n, len(rows))).long()
    parts = [source_statistics(rows[some]) for some in chosen.split(_DESCRIBED)]
    return torch.cat(parts).double().numpy(force=True)


def source_statistics(images: Tensor) -> Tensor:
    """Return numbers (n, k) that describe the source of images (n, c, h, w)."""
    images = _middle(images)
    luma, *colours = by_colour(images).unbind(1)
    noise = _noise(images)
    parts = [_shares(images), _spread(noise, images), _peakedness(noise)]
    if min(luma.shape[1:]) >= 2 * _BLOCK:
        parts += [_steps_between_blocks(luma), _sparsity_of_blocks(luma)]
    if colours:
        parts += [_correlations(images), _correlations(noise)]
    return torch.cat(parts, 1)


def _middle(images):
    """Return the middle of large images, which begins where a block does."""
    for dim in (2, 3):
        side = images.shape[dim]
        if side > _SIDE:
            start = (side - _SIDE) // 2 // _BLOCK * _BLOCK
            images = images.narrow(dim, start, _SIDE)
    return images


def _shares(images):
    """Return the logarithm of the share of the power in each band, by channel."""
    power = power_spectrum(images)
    edges = torch.tensor(_EDGES, device=images.device)
    band = torch.bucketize(frequencies(images), edges)
    total = torch.stack(
        [power[..., band == k].sum(-1) for k in range(1, len(_EDGES))], -1
    )
    whole = total.sum(-1, keepdim=True) + _LEVEL**2
    return (total / whole + _SHARE).log().flatten(1)


def _noise(images):
    """Return the second differences of images, along rows and columns."""
    for dim in (2, 3):
        n = images.shape[dim] - 2
        before, at, after = (images.narrow(dim, k, n) for k in range(3))
        images = before - 2 * at + after
    return images


def _spread(noise, images):
    """Return the logarithm of the size of the noise over that of the image."""
    size = images.flatten(2).std(-1) + _LEVEL
    found = _quantiles(noise.abs().flatten(2)) + _LEVEL
    return (found / size).log().transpose(0, 1).flatten(1)


def _quantiles(x):
    return x.quantile(x.new_tensor(_QUANTILES), -1)


def _peakedness(noise):
    """Return the logarithm of the kurtosis of the noise, by channel."""
    noise = noise.flatten(2)
    square = noise.square().mean(-1)
    return (noise.pow(4).mean(-1) / (square.square() + _LEVEL**4) + 1).log()


def _steps_between_blocks(luma):
    """Return the logarithm of steps between blocks over those beside them."""
    found = []
    for images in (luma, luma.transpose(1, 2)):
        steps = images.diff(dim=1).abs().mean(2) + _LEVEL
        between = torch.arange(_BLOCK - 1, steps.shape[1] - 1, _BLOCK)
        beside = (steps[:, between - 1] + steps[:, between + 1]) / 2
        found.append((steps[:, between].mean(1) / beside.mean(1)).log())
    return torch.stack(found, 1)


def _sparsity_of_blocks(luma):
    """Return the sparsity of JPEG blocks, relative to blocks shifted by half a side.

    Quantised coefficients are mostly zero in the blocks in which they were quantised.
    """
    half = _BLOCK // 2
    at, across = _sparsity(luma), _sparsity(luma[:, half:, half:])
    return at - across


def _sparsity(luma):
    n, *sides = luma.shape
    rows, columns = (side // _BLOCK for side in sides)
    whole = luma[:, : rows * _BLOCK, : columns * _BLOCK]
    blocks = whole.reshape(n, rows, _BLOCK, columns, _BLOCK).transpose(2, 3)
    waves = _cosines(luma)
    coefficients = (waves @ blocks @ waves.T).abs().flatten(1, 2)
    k = torch.arange(_BLOCK, device=luma.device)
    diagonal = k[:, None] + k
    found = []
    for low, high in pairwise(_DIAGONALS):
        some = coefficients[..., (low <= diagonal) & (diagonal < high)].flatten(1)
        typical = some.mean(1) + _LEVEL
        found += [((q + _LEVEL) / typical).log() for q in _quantiles(some)]
    return torch.stack(found, 1)


def _cosines(like):
    """Return the matrix of the discrete cosine transform, orthonormal."""
    k = torch.arange(_BLOCK, dtype=like.dtype, device=like.device)
    waves = torch.cos(pi / _BLOCK * (k + 0.5) * k[:, None])
    return waves / waves.norm(dim=1, keepdim=True)


def _correlations(images):
    """Return the correlation of each channel with the next (Fisher's z)."""
    centred = images.flatten(2) - images.flatten(2).mean(-1, keepdim=True)
    unit = centred / (centred.norm(dim=-1, keepdim=True) + _LEVEL)
    one, other = unit[:, :-1], unit[:, 1:]
    return (one * other).sum(-1).clamp(-0.999, 0.999).atanh()
