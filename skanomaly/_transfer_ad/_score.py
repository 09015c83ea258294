"""The anomaly score g, by which samples are weighted and scored."""

from __future__ import annotations

from math import ceil, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._mahalanobis import Mahalanobis

#: Added to the pooling loss of a sample, as a share of its mean, so that a plain sample
#: does not dominate.
_SHARE_OF_POOLING = 0.01
_LEAST_SPREAD, _TINY = 0.05, 1e-12
#: Maximum length of latent codes, whose covariance has its square.
_LONGEST = 1024


class Outputs(NamedTuple):
    """Outputs of the networks for n samples.

    Attributes
    ----------
    loss : Tensor of shape (k, n)
        Reconstruction loss (eq. 4) of each of k autoencoders.
    pooling_loss : Tensor of shape (n,)
        Loss of average pooling, see :func:`pooling_loss`; 1 for tables.
    codes : Tensor of shape (k, n, l)
        Latent codes by each of the encoders.
    """

    loss: Tensor
    pooling_loss: Tensor
    codes: Tensor


class AnomalyScore(nn.Module):
    r"""A number g > 0 for each sample, higher for the more anomalous.

    The criterion "reconstruction" is the loss L itself. "combined" is made of two
    terms: the loss relative to v, the loss of average pooling; and the Mahalanobis
    distance of the latent code f from those of normal samples:

    .. math:: a = \log \frac{L}{v}, \quad
              b = \log \big[(f - \mu)^T \Sigma^{-1} (f - \mu)\big], \quad
              \log g = \frac{a - \bar a}{2 s_a} + \frac{b - \bar b}{2 s_b}

    Means, deviations and :math:`\mu`, :math:`\Sigma` are those of the weighted target
    samples. Latent codes of more than 1024 numbers, those of large clips, are reduced
    to that many by means over neighbours.

    Parameters
    ----------
    n_estimators, latent_dim : int
        Number of autoencoders, k, and length of their latent codes, l.
    """

    floor: Tensor
    location: Tensor
    spread: Tensor

    def __init__(self, n_estimators: int, latent_dim: int):
        super().__init__()
        self.distance = Mahalanobis(n_estimators, min(latent_dim, _LONGEST))
        self.register_buffer("floor", torch.zeros(()))
        self.register_buffer("location", torch.zeros(2, 1))
        self.register_buffer("spread", torch.ones(2, 1))

    @torch.no_grad()
    def fit(self, outputs: Outputs, weights: Tensor) -> None:
        """Fit centre, location and spread to samples of the given weights, (n,)."""
        weights = weights.to(outputs.loss) + _TINY  # if all are 0, all count alike
        share = weights / weights.sum()
        self.floor.copy_(_SHARE_OF_POOLING * outputs.pooling_loss.mean())
        self.distance.fit_weighted(_shortened(outputs.codes), share)
        terms = self.terms(outputs)
        location = (share * terms).sum(1, keepdim=True)
        spread = (share * (terms - location).square()).sum(1, keepdim=True).sqrt()
        self.location.copy_(location)
        self.spread.copy_(spread.clamp(min=_LEAST_SPREAD))

    def terms(self, outputs: Outputs) -> Tensor:
        """Compute a and b of each sample, (2, n): means over the autoencoders."""
        # If all images are constant, the pooling loss is 0.
        relative = outputs.loss / (outputs.pooling_loss + self.floor).clamp(min=_TINY)
        distance = self.distance(_shortened(outputs.codes))
        terms = torch.stack([relative, distance]).clamp(min=_TINY).log()
        return terms.mean(1)

    def forward(self, outputs: Outputs, criterion: str) -> Tensor:
        """Compute log g of each sample, (n,)."""
        if criterion == "reconstruction":
            return outputs.loss.mean(0).clamp(min=_TINY).log()
        return ((self.terms(outputs) - self.location) / self.spread).mean(0)


def _shortened(codes):
    if codes.shape[-1] <= _LONGEST:
        return codes
    return F.adaptive_avg_pool1d(codes, _LONGEST)


def pooling_loss(rows: Tensor, latent_dim: int) -> Tensor:
    """Compute the loss of average pooling to about `latent_dim` square cells.

    Busy images lose more by pooling than plain ones, and more by an autoencoder too,
    regardless of content. The reconstruction loss is therefore divided by it.

    Parameters
    ----------
    rows : Tensor of shape (n, c, h, w) or (n, c, t, h, w)
        Scaled images or clips.
    latent_dim : int
        Length of a latent code.

    Returns
    -------
    Tensor of shape (n,)
        Mean squared difference of a sample from its means, linearly interpolated.
    """
    sides = rows.shape[2:]
    # Cells of one pixel would lose nothing.
    side = max(ceil((prod(sides) / latent_dim) ** (1 / len(sides))), 2)
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[len(sides)]
    # All cells have one size and are enlarged by it, which keeps them aligned.
    cell = [min(side, n) for n in sides]
    means = pool(rows, cell, ceil_mode=True, count_include_pad=False)
    for axis, n in enumerate(sides, 2):
        enlarge = _enlargement(means.shape[axis], cell[axis - 2], n).to(means)
        means = (means.transpose(axis, -1) @ enlarge).transpose(axis, -1)
    return means.sub_(rows).square_().flatten(1).mean(1)  # in place: memory costs time


def _enlargement(n_cells: int, side: int, n: int) -> Tensor:
    """Make the matrix (cells, n) of linear interpolation; a product is fastest."""
    cells = torch.eye(n_cells)[:, None]
    return F.interpolate(cells, scale_factor=side, mode="linear")[:, 0, :n]
