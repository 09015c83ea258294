"""The head of ADRA, which whitens features by those of normal samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils._stacked_product import stacked_product

#: Number of principal axes with a scale of their own.
_AXES = 128
#: Variance of constant features by rounding in float32, over their mean square.
_ROUNDING = 1e-10


# The class Mahalanobis returns distances, and not codes; torch.cov takes no ensembles.
class WhiteningHead(nn.Module):
    r"""Maps features to latent codes, fixed by the features of normal samples.

    Codes of normal samples are centred at the origin, with about the same variance in
    all directions and a mean squared length of 1:
    :math:`f = c \, \Sigma^{-1/2} (\phi - \mu)`, with their mean and covariance. A share
    of the mean variance is added to the covariance, so that directions in which normal
    samples hardly differ count more, but do not dominate. Beyond the first 128
    principal axes, all directions have the same scale.

    Parameters
    ----------
    shape : tuple of int
        Shape of the features of one sample, (l,) or (k, l) for an ensemble.
    shrinkage : float
        That share, in (0, 1].
    unit : bool
        Whether features are first scaled to unit length.
    """

    centre: Tensor
    axes: Tensor
    gains: Tensor
    rest: Tensor

    def __init__(self, shape: tuple[int, ...], shrinkage: float, unit: bool):
        super().__init__()
        *members, n_features = shape
        n_axes = min(n_features, _AXES)
        self.shrinkage, self.unit = shrinkage, unit
        self.register_buffer("centre", torch.zeros(*members, 1, n_features))
        self.register_buffer("axes", torch.zeros(*members, n_features, n_axes))
        self.register_buffer("gains", torch.ones(*members, 1, n_axes))
        self.register_buffer("rest", torch.ones(*members, 1, 1))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Fit the head to the features of normal samples, (n, l) or (k, n, l)."""
        # On the CPU: not every device has float64 and the decomposition.
        scaled = self._scaled(features).cpu().double()
        n_rows, n_features = scaled.shape[-2:]
        self.centre.copy_(scaled.mean(-2, keepdim=True))
        centred = scaled - scaled.mean(-2, keepdim=True)
        total = centred.square().sum((-2, -1))[..., None, None] / n_rows
        # A variance that float32 cannot tell from 0 is 0.
        least = _ROUNDING * scaled.square().mean((-2, -1))[..., None, None]
        added = (self.shrinkage * total / n_features).maximum(least)
        added = torch.where(added > 0, added, 1.0)
        variances, axes = _principal(centred, self.axes.shape[-1])
        self.axes.copy_(axes)
        self.gains.copy_((variances + added).rsqrt())
        n_others = max(n_features - axes.shape[-1], 1)
        others = (total - variances.sum(-1, keepdim=True)).clamp_min(0) / n_others
        self.rest.copy_((others + added).rsqrt())
        squared = self(features).square().sum(-1).mean(-1)
        scale = torch.where(squared > 0, squared, 1.0).rsqrt()[..., None, None]
        self.gains.mul_(scale)
        self.rest.mul_(scale)

    def _scaled(self, features):
        return F.normalize(features, dim=-1) if self.unit else features

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., n, l) to latent codes (..., n, l)."""
        centred = self._scaled(features) - self.centre
        along = stacked_product(centred, self.axes)
        scaled = along * (self.gains - self.rest)
        return self.rest * centred + stacked_product(scaled, self.axes.mT)


def _principal(centred, n_axes):
    """Return the largest variances (..., 1, m) of centred samples, and their axes."""
    n_rows, n_features = centred.shape[-2:]
    if n_features <= n_rows:
        variances, axes = torch.linalg.eigh(centred.mT @ centred / n_rows)
    else:  # the same, from the smaller matrix of products of samples
        variances, axes = torch.linalg.eigh(centred @ centred.mT / n_rows)
        axes = F.normalize(centred.mT @ axes, dim=-2)
    m = min(n_axes, variances.shape[-1])
    variances, axes = variances[..., -m:].flip(-1), axes[..., -m:].flip(-1)
    missing = n_axes - m
    return (
        F.pad(variances.clamp_min(0), (0, missing))[..., None, :],
        F.pad(axes, (0, missing)),
    )
