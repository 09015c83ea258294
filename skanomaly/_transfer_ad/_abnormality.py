"""What stands for the loss of a row, in its weight and in its score."""

from __future__ import annotations

from math import ceil, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..objectives import mahalanobis_squared

#: Added to the detail of a row, as a share of its mean; and the part of the covariance
#: of codes that is the same in all directions. A plain row, or a direction in which
#: codes hardly vary, should not decide alone.
_SHARE_OF_DETAIL, _SHARE_OF_VARIANCE = 0.01, 0.3
_LEAST_SPREAD, _TINY = 0.05, 1e-12
#: Numbers of a code of which the covariance is found; it has the square of them.
_LONGEST = 1024


class Figures(NamedTuple):
    """What networks say of n rows.

    Attributes
    ----------
    loss : Tensor of shape (k, n)
        The loss of reconstruction (eq. 4), of each of k autoencoders.
    detail : Tensor of shape (n,)
        What the plainest code would lose, see :func:`detail_of`; 1 for tables.
    codes : Tensor of shape (k, n, l)
        What the encoders make of the rows.
    """

    loss: Tensor
    detail: Tensor
    codes: Tensor


class Abnormality(nn.Module):
    r"""A number g > 0 for each row, higher for the more anomalous.

    The criterion "reconstruction" is the loss L itself. "combined" is made of two
    terms, the loss as a share of what the plainest code would lose, v, and how far the
    row's code f is from those of normal rows:

    .. math:: a = \log \frac{L}{v}, \quad
              b = \log \big[(f - \mu)^T \Sigma^{-1} (f - \mu)\big], \quad
              \log g = \frac{a - \bar a}{2 s_a} + \frac{b - \bar b}{2 s_b}

    Means, deviations and :math:`\mu`, :math:`\Sigma` are those of the target rows,
    each row counted by its weight. Codes of more than 1024 numbers, those of large
    clips, are brought to so many, by means over neighbours.

    Parameters
    ----------
    n_estimators, n_codes : int
        Number of autoencoders, k, and length of their codes, l.
    """

    centre: Tensor
    precision: Tensor
    floor: Tensor
    location: Tensor
    spread: Tensor

    def __init__(self, n_estimators: int, n_codes: int):
        super().__init__()
        k, n = n_estimators, min(n_codes, _LONGEST)
        self.register_buffer("centre", torch.zeros(k, 1, n))
        self.register_buffer("precision", torch.eye(n).repeat(k, 1, 1))
        self.register_buffer("floor", torch.zeros(()))
        self.register_buffer("location", torch.zeros(2, 1))
        self.register_buffer("spread", torch.ones(2, 1))

    @torch.no_grad()
    def adapt(self, figures: Figures, weights: Tensor) -> None:
        """Learn what is usual from rows, (n,) of them, that count by their weights."""
        weights = weights.to(figures.loss) + _TINY  # if none counts, all do
        share = weights / weights.sum()
        self.floor.copy_(_SHARE_OF_DETAIL * figures.detail.mean())
        codes = _shortened(figures.codes)
        mean = (share[:, None] * codes).sum(1, keepdim=True)
        centred = codes - mean
        covariance = centred.mT @ (share[:, None] * centred)
        size = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + _TINY
        round_one = size * torch.eye(mean.shape[-1], device=mean.device)
        covariance = torch.lerp(covariance, round_one, _SHARE_OF_VARIANCE)
        self.centre.copy_(mean)
        self.precision.copy_(torch.linalg.inv(covariance))
        terms = self.terms(figures)
        location = (share * terms).sum(1, keepdim=True)
        spread = (share * (terms - location).square()).sum(1, keepdim=True).sqrt()
        self.location.copy_(location)
        self.spread.copy_(spread.clamp(min=_LEAST_SPREAD))

    def terms(self, figures: Figures) -> Tensor:
        """Return a and b of each row, (2, n): means over the autoencoders."""
        # Of constant images there is no detail, in none of them.
        lost = figures.loss / (figures.detail + self.floor).clamp(min=_TINY)
        codes = _shortened(figures.codes)
        distance = mahalanobis_squared(codes, self.centre, self.precision)
        terms = torch.stack([lost, distance]).clamp(min=_TINY).log()
        return terms.mean(1)

    def forward(self, figures: Figures, criterion: str) -> Tensor:
        """Return log g of each row, (n,)."""
        if criterion == "reconstruction":
            return figures.loss.mean(0).clamp(min=_TINY).log()
        return ((self.terms(figures) - self.location) / self.spread).mean(0)


def _shortened(codes):
    if codes.shape[-1] <= _LONGEST:
        return codes
    return F.adaptive_avg_pool1d(codes, _LONGEST)


def detail_of(rows: Tensor, n_codes: int) -> Tensor:
    """Return what images or clips lose if square cells keep nothing but their mean.

    There are about as many cells as a code has numbers. Busy images lose more by this
    than plain ones, and so they do by an autoencoder, whatever they show; the loss is
    to be seen beside it.

    Parameters
    ----------
    rows : Tensor of shape (n, c, h, w) or (n, c, t, h, w)
        Scaled rows.
    n_codes : int
        Length of a code.

    Returns
    -------
    Tensor of shape (n,)
        Mean squared difference between a row and its smoothly enlarged means.
    """
    sides = rows.shape[2:]
    # Cells of one pixel would lose nothing, and tell nothing.
    side = max(ceil((prod(sides) / n_codes) ** (1 / len(sides))), 2)
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[len(sides)]
    # Cells of one size, and enlarged by that factor: else both would be out of step.
    cell = [min(side, n) for n in sides]
    means = pool(rows, cell, ceil_mode=True, count_include_pad=False)
    for axis, n in enumerate(sides, 2):
        enlarge = _enlargement(means.shape[axis], cell[axis - 2], n).to(means)
        means = (means.transpose(axis, -1) @ enlarge).transpose(axis, -1)
    return means.sub_(rows).square_().flatten(1).mean(1)  # in place: memory costs time


def _enlargement(n_cells: int, side: int, n: int) -> Tensor:
    """Return the matrix (cells, n) of linear interpolation; a product is fastest."""
    cells = torch.eye(n_cells)[:, None]
    return F.interpolate(cells, scale_factor=side, mode="linear")[:, 0, :n]
