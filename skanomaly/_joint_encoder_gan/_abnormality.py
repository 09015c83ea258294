"""What makes a row anomalous: its residual, and where its code lies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..objectives import mahalanobis_squared, origin_distance

#: What may be measured on codes.
DISTANCES = "mahalanobis", "origin"
#: How often the bulk of the codes is found, each time without what is far from it.
_ROUNDS = 5
#: The part of the covariance of codes that is the same in all directions.
_SHARE_OF_VARIANCE = 0.1
_LEAST_SPREAD, _TINY = 0.05, 1e-12
_QUARTILES = torch.tensor([0.25, 0.5, 0.75])


class Figures(NamedTuple):
    """What networks say of n rows.

    Attributes
    ----------
    residual : Tensor of shape (n,)
        Of eq. 2, mean over the games.
    codes : Tensor of shape (k, n, l)
        What the encoder of each of k games makes of the rows.
    """

    residual: Tensor
    codes: Tensor


class Abnormality(nn.Module):
    r"""The score of eq. 5, higher for the more anomalous.

    Parameters
    ----------
    n_estimators, n_codes : int
        Number of games, k, and length of their codes, l.
    """

    centre: Tensor
    precision: Tensor
    location: Tensor
    spread: Tensor

    def __init__(self, n_estimators: int, n_codes: int):
        super().__init__()
        k, n, n_terms = n_estimators, n_codes, 1 + len(DISTANCES)
        self.register_buffer("centre", torch.zeros(k, 1, n))
        self.register_buffer("precision", torch.eye(n).repeat(k, 1, 1))
        self.register_buffer("location", torch.zeros(n_terms, 1))
        self.register_buffer("spread", torch.ones(n_terms, 1))

    @torch.no_grad()
    def adapt(self, figures: Figures, left_out: float) -> None:
        """Learn from rows what is usual; a share of them may be anomalous."""
        for k, codes in enumerate(figures.codes.cpu().double()):
            self.centre[k], self.precision[k] = bulk_of(codes, left_out)
        logs = self.logs(self.all_terms(figures))
        low, middle, high = torch.quantile(logs, _QUARTILES.to(logs), 1, keepdim=True)
        self.location.copy_(middle)
        self.spread.copy_((high - low).clamp(min=_LEAST_SPREAD))

    def terms(self, figures: Figures, distance: str) -> Tensor:
        """Return residual and distance of each row, (2, n)."""
        return self.all_terms(figures)[[0, 1 + DISTANCES.index(distance)]]

    def all_terms(self, figures: Figures) -> Tensor:
        """Return the residual and both distances, (3, n): means over the games."""
        squares = mahalanobis_squared(figures.codes, self.centre, self.precision)
        far = (squares / figures.codes.shape[2]).clamp(min=0).sqrt()
        origin = origin_distance(figures.codes)
        return torch.stack([figures.residual, far.mean(0), origin.mean(0)])

    @staticmethod
    def logs(terms: Tensor) -> Tensor:
        """Return logarithms that grow as the terms do; eq. 4, the last, is below 0."""
        signs = terms.new_tensor([[1], [1], [-1]])
        return terms.abs().clamp(min=_TINY).log() * signs

    def forward(
        self, figures: Figures, lam: float, distance: str, standardize: bool
    ) -> Tensor:
        """Return the score of each row, (n,)."""
        terms = self.all_terms(figures)
        if standardize:
            terms = (self.logs(terms) - self.location) / self.spread
        residual, far = terms[[0, 1 + DISTANCES.index(distance)]]
        return lam * residual + (1 - lam) * far


def bulk_of(codes: Tensor, left_out: float) -> tuple[Tensor, Tensor]:
    """Return the mean of most codes, and the inverse of their covariance.

    Anomalies among the rows would make room for themselves: those that are furthest
    away are left out, time and again. These are the concentration steps of the minimum
    covariance determinant (Rousseeuw & Van Driessen 1999), begun with all codes, and
    with some shrinkage, so that they do with fewer codes than scikit-learn's.

    Parameters
    ----------
    codes : Tensor of shape (n, l), float64
        Codes of training rows.
    left_out : float
        Share of the codes to leave out, in [0, 1).

    Returns
    -------
    mean : Tensor of shape (l,)
        Of the codes that are not left out.
    precision : Tensor of shape (l, l)
        Inverse covariance, of which a small part is the same in all directions.
    """
    kept = codes
    for _ in range(_ROUNDS):
        mean = kept.mean(0)
        centred = kept - mean
        covariance = centred.T @ centred / max(len(kept) - 1, 1)
        size = covariance.diagonal().mean() + _TINY
        covariance.diagonal().add_(_SHARE_OF_VARIANCE * size)
        precision = torch.linalg.inv(covariance)
        squares = mahalanobis_squared(codes, mean, precision)
        kept = codes[squares <= torch.quantile(squares, 1 - left_out)]
    return mean, precision
