"""The anomaly score: the residual, and the distance of the latent code."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._mahalanobis import Mahalanobis
from ..objectives import origin_distance

#: Distances of latent codes.
DISTANCES = "mahalanobis", "origin"
_LEAST_SPREAD, _TINY = 0.05, 1e-12
_QUARTILES = torch.tensor([0.25, 0.5, 0.75])


class Outputs(NamedTuple):
    """Outputs of the networks for n samples.

    Attributes
    ----------
    residual : Tensor of shape (n,)
        Of eq. 2, mean over the ensemble.
    codes : Tensor of shape (k, n, l)
        Latent codes by each of k encoders.
    """

    residual: Tensor
    codes: Tensor


class AnomalyScore(nn.Module):
    r"""The score of eq. 5, higher for the more anomalous.

    Parameters
    ----------
    n_estimators, latent_dim : int
        Number of ensemble members, k, and length of their latent codes, l.
    """

    location: Tensor
    spread: Tensor

    def __init__(self, n_estimators: int, latent_dim: int):
        super().__init__()
        n_terms = 1 + len(DISTANCES)
        self.distance = Mahalanobis(n_estimators, latent_dim)
        self.register_buffer("location", torch.zeros(n_terms, 1))
        self.register_buffer("spread", torch.ones(n_terms, 1))

    @torch.no_grad()
    def fit(self, outputs: Outputs, left_out: float) -> None:
        """Fix centre, location and spread; a share of the samples may be anomalous."""
        self.distance.fit_trimmed(outputs.codes, left_out)
        logs = self.logs(self.all_terms(outputs))
        low, middle, high = torch.quantile(logs, _QUARTILES.to(logs), 1, keepdim=True)
        self.location.copy_(middle)
        self.spread.copy_((high - low).clamp(min=_LEAST_SPREAD))

    def terms(self, outputs: Outputs, distance: str) -> Tensor:
        """Compute residual and distance of each sample, (2, n)."""
        return self.all_terms(outputs)[[0, 1 + DISTANCES.index(distance)]]

    def all_terms(self, outputs: Outputs) -> Tensor:
        """Compute the residual and both distances, (3, n): means over the ensemble."""
        squares = self.distance(outputs.codes)
        far = (squares / outputs.codes.shape[2]).clamp(min=0).sqrt()
        origin = origin_distance(outputs.codes)
        return torch.stack([outputs.residual, far.mean(0), origin.mean(0)])

    @staticmethod
    def logs(terms: Tensor) -> Tensor:
        """Map terms to logarithms that rise with them; eq. 4, the last, is below 0."""
        signs = terms.new_tensor([[1], [1], [-1]])
        return terms.abs().clamp(min=_TINY).log() * signs

    def forward(
        self, outputs: Outputs, lam: float, distance: str, standardize: bool
    ) -> Tensor:
        """Compute the score of each sample, (n,)."""
        terms = self.all_terms(outputs)
        if standardize:
            terms = (self.logs(terms) - self.location) / self.spread
        residual, far = terms[[0, 1 + DISTANCES.index(distance)]]
        return lam * residual + (1 - lam) * far
