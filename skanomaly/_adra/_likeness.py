"""Whether a corpus differs from the normal images in more than what it shows.

Images of another camera, size or format can be told apart without looking at what they
show. Each image is described by a few numbers that say how it was made: how its power
is shared out among frequencies, how strong and how peaked its noise is, how its colours
go together, whether there are blocks of 8 x 8 pixels in it as JPEG leaves them. None of
them changes with brightness or contrast. A linear classifier of these numbers, tried on
images that it has not seen, tells by its AUROC.
"""

from __future__ import annotations

from itertools import pairwise
from math import pi, prod

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ..engine import DeviceDataset, TransformedDataset
from ..exceptions import CorpusSourceWarning
from ..utils._warnings import warn
from ._corpus import by_colour, frequencies, no_sharper, power_spectrum

#: AUROC above which a corpus has another source. What images show alone brings classes
#: of CIFAR-10 and digits of MNIST to .90 against the others, but for the digit 1.
_TOLD_APART = 0.9

#: Fewer images than that, of either, tell nothing reliable.
_FEWEST = 50
#: Images of each that are enough, and numbers in them: large ones are fewer.
_MOST, _PIXELS = 500, 2**24
#: Sides in pixels: below the first there is little to see, the second is enough.
_LEAST_SIDE, _SIDE = 8, 96
#: Images to look at together.
_AT_ONCE = 64
#: Edges of bands of frequencies, in cycles per pixel.
_EDGES = 0.03, 0.1, 0.18, 0.27, 0.36, 0.45, 0.75
#: Pixels per side of a block of JPEG, and sums of the two frequencies in a block that
#: are of middle, high and highest frequency.
_BLOCK, _DIAGONALS = 8, (3, 6, 9, 15)
_QUANTILES = 0.25, 0.5
#: Smaller than a level of 256, in [-1, 1], and smaller than any share of power.
_LEVEL, _SHARE = 1e-3, 1e-6
_FOLDS, _SHRUNK = 5, 0.1


def like_normal(
    normal: DeviceDataset, corpus: DeviceDataset, seed: int
) -> tuple[DeviceDataset | TransformedDataset, float | None]:
    """Return a corpus whose source is as like that of the normal images as may be.

    It is damped to be no sharper than these, unless it has their source as it is: where
    nothing tells the two apart, damping would leave traces that do.

    Parameters
    ----------
    normal, corpus : DeviceDataset
        Images (n, c, h, w) and (m, c, h, w).
    seed : int
        Draws the folds.

    Returns
    -------
    DeviceDataset or TransformedDataset, and float or None
        The corpus, and how well it is told from the normal images all the same.

    Warns
    -----
    CorpusSourceWarning
        If it is, with an AUROC of more than .9.
    """
    found = likeness_auroc(normal, corpus, seed)
    if found is not None and found <= _TOLD_APART:
        return corpus, found
    made = no_sharper(corpus, normal)
    found = likeness_auroc(normal, made, seed)
    if found is not None and found > _TOLD_APART:
        warn(
            "The corpus is told from the normal images by their spectrum, noise, "
            f"colours or traces of compression alone (corpus_auroc_ is {found:.2f}). A "
            "detector may learn to tell their sources, and not what is normal. Take a "
            "corpus of the same camera, size and format, such as images of other "
            "classes, and compare with corpus=None.",
            CorpusSourceWarning,
        )
    return made, found


def likeness_auroc(
    normal: DeviceDataset, corpus: DeviceDataset | TransformedDataset, seed: int
) -> float | None:
    """Return how well a corpus is told from normal images by how both were made.

    Parameters
    ----------
    normal, corpus : DeviceDataset or TransformedDataset
        Images (n, c, h, w) and (m, c, h, w), scaled.
    seed : int
        Draws the folds.

    Returns
    -------
    float or None
        AUROC of a cross-validated classifier, .5 where nothing tells them apart; None
        for less than 50 images of either, or sides below 8 pixels.
    """
    n_enough = min(max(_PIXELS // prod(normal.row_shape), _FEWEST), _MOST)
    if min(len(normal), len(corpus)) < _FEWEST:
        return None
    if min(normal.row_shape[-2:]) < _LEAST_SIDE:
        return None
    numbers = [_described(normal, n_enough), _described(corpus, n_enough)]
    labels = np.repeat([0, 1], [len(part) for part in numbers])
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=_SHRUNK, class_weight="balanced", max_iter=1000),
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
    """Return numbers of about n of the rows, (n, k)."""
    chosen = torch.linspace(0, len(rows) - 1, min(n, len(rows))).long()
    parts = [statistics(rows[some]) for some in chosen.split(_AT_ONCE)]
    return torch.cat(parts).double().numpy(force=True)


def statistics(images: Tensor) -> Tensor:
    """Return what tells how images (n, c, h, w) were made, (n, k)."""
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
    """Return what is left of images when all that is smooth is taken away."""
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
    """Return how much larger steps between blocks are than those beside them."""
    found = []
    for images in (luma, luma.transpose(1, 2)):
        steps = images.diff(dim=1).abs().mean(2) + _LEVEL
        between = torch.arange(_BLOCK - 1, steps.shape[1] - 1, _BLOCK)
        beside = (steps[:, between - 1] + steps[:, between + 1]) / 2
        found.append((steps[:, between].mean(1) / beside.mean(1)).log())
    return torch.stack(found, 1)


def _sparsity_of_blocks(luma):
    """Return how much sparser blocks of JPEG are than those that straddle them.

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
    """Return how each channel goes with the next (Fisher's z)."""
    centred = images.flatten(2) - images.flatten(2).mean(-1, keepdim=True)
    unit = centred / (centred.norm(dim=-1, keepdim=True) + _LEVEL)
    one, other = unit[:, :-1], unit[:, 1:]
    return (one * other).sum(-1).clamp(-0.999, 0.999).atanh()
