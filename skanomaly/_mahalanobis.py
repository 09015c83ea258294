"""Mahalanobis distances of latent codes from the normal samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .utils._stacked_product import stacked_product

__all__ = ["Mahalanobis"]

#: Number of trimming steps, each by the estimate of the step before.
_ROUNDS = 5
#: Shrinkage of covariances to a multiple of the identity, so that a direction in which
#: codes hardly vary does not dominate the distance.
_SHRINKAGE_TRIMMED, _SHRINKAGE_WEIGHTED = 0.1, 0.3
_TINY = 1e-12


class Mahalanobis(nn.Module):
    """Squared Mahalanobis distance, for the latent codes of each ensemble member.

    Parameters
    ----------
    n_estimators, latent_dim : int
        Number of members, k, and length of their latent codes, l.
    """

    centre: Tensor
    precision: Tensor

    def __init__(self, n_estimators: int, latent_dim: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_estimators, 1, latent_dim))
        precision = torch.eye(latent_dim).repeat(n_estimators, 1, 1)
        self.register_buffer("precision", precision)

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes (k, n, l) to squared distances (k, n)."""
        return mahalanobis_squared(codes, self.centre, self.precision)

    @torch.no_grad()
    def fit_trimmed(self, codes: Tensor, share: float) -> None:
        """Estimate centre and precision from codes with anomalies among them.

        Anomalies would widen the estimate in their own direction. Therefore each step
        leaves out the furthest codes. These are the concentration steps of the minimum
        covariance determinant (Rousseeuw & Van Driessen 1999), started from all codes.
        With shrinkage, fewer codes suffice than for scikit-learn's MinCovDet.

        Parameters
        ----------
        codes : Tensor of shape (k, n, l)
            Latent codes of training samples.
        share : float
            Share of the codes to leave out, in [0, 1).
        """
        for k, of_member in enumerate(codes.cpu().double()):
            self.centre[k], self.precision[k] = _trimmed_estimate(of_member, share)

    @torch.no_grad()
    def fit_weighted(self, codes: Tensor, shares: Tensor) -> None:
        """Estimate centre and precision from weighted codes.

        Parameters
        ----------
        codes : Tensor of shape (k, n, l)
            Latent codes of training samples.
        shares : Tensor of shape (n,)
            Weights of the samples, with sum 1.
        """
        # torch.cov takes weights, but no batches, and rounds differently.
        mean = (shares[:, None] * codes).sum(1, keepdim=True)
        centred = codes - mean
        covariance = centred.mT @ (shares[:, None] * centred)
        size = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + _TINY
        isotropic = size * torch.eye(mean.shape[-1], device=mean.device)
        covariance = torch.lerp(covariance, isotropic, _SHRINKAGE_WEIGHTED)
        self.centre.copy_(mean)
        self.precision.copy_(torch.linalg.inv(covariance))


def _trimmed_estimate(codes: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Estimate the mean (l,) and the precision (l, l) of most codes (n, l)."""
    kept, latent_dim = codes, codes.shape[1]
    for _ in range(_ROUNDS):
        mean = kept.mean(0)
        covariance = torch.cov(kept.T, correction=min(len(kept) - 1, 1))
        covariance = covariance.reshape(latent_dim, latent_dim)
        size = covariance.diagonal().mean() + _TINY
        covariance.diagonal().add_(_SHRINKAGE_TRIMMED * size)
        precision = torch.linalg.inv(covariance)
        squares = mahalanobis_squared(codes, mean, precision)
        kept = codes[squares <= torch.quantile(squares, 1 - share)]
    return mean, precision


def mahalanobis_squared(points: Tensor, centre: Tensor, precision: Tensor) -> Tensor:
    r"""Compute the squared Mahalanobis distance of points from a centre.

    .. math:: (z - \mu)^T \Sigma^{-1} (z - \mu)

    Parameters
    ----------
    points : Tensor of shape (..., n, l)
        Points z.
    centre : Tensor of shape (..., 1, l) or (l,)
        Their mean :math:`\mu`.
    precision : Tensor of shape (..., l, l)
        The inverse of their covariance :math:`\Sigma`.

    Returns
    -------
    Tensor of shape (..., n)
        At least 0, but for rounding.
    """
    centred = points - centre
    return (stacked_product(centred, precision) * centred).sum(-1)
