"""Networks of HistoryAD: ensembles of generators and of detectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import StackedMLP, one_per_sample


class TableGenerator(nn.Module):
    """An ensemble of MLPs from noise to samples that start out wider than the data.

    An MLP reaches at most as many directions as its last hidden layer has units. In
    wider tables, each column therefore gets noise of its own, with a learned scale.

    Parameters
    ----------
    n_estimators, latent_dim, n_columns, width : int
        Number of MLPs; lengths of noise and sample, units of the hidden layers.
    spread : float or None
        Root mean square of the columns' standard deviations before training. None
        leaves the usual initial weights, whose samples lie closer together than
        standardised data.
    """

    def __init__(self, n_estimators, latent_dim, n_columns, width, spread):
        super().__init__()
        self.latent_dim = latent_dim
        self.mlp = StackedMLP(n_estimators, (latent_dim, width, width, n_columns))
        self.own_noise = None
        if spread is not None:
            self.mlp.rescale(torch.randn(n_estimators, 1024, latent_dim), spread)
        if spread is not None and n_columns > width:
            start = torch.full((n_estimators, 1, n_columns), 0.3 * spread)
            self.own_noise = nn.Parameter(start)

    @staticmethod
    def noise_dim(latent_dim, n_columns, width, spread):
        """Return the length of a noise vector, with the noise of columns."""
        return latent_dim + (n_columns if spread and n_columns > width else 0)

    def forward(self, z: Tensor) -> Tensor:
        """Map (k, n, noise_dim) to (k, n, n_columns)."""
        rows = self.mlp(z[..., : self.latent_dim])
        if self.own_noise is not None:
            rows = torch.addcmul(rows, self.own_noise, z[..., self.latent_dim :])
        return rows


class Detector(nn.Module):
    """Critics with calibrated values.

    The critics of a Wasserstein GAN, and so their average (eq. 14), have an arbitrary
    offset and scale; eq. 10 needs values near -1 and +1.
    """

    def __init__(self, n_estimators: int, build_critics):
        super().__init__()
        self.critic: nn.Module = build_critics()
        self.shift = nn.Buffer(torch.zeros(n_estimators, 1))
        self.stretch = nn.Buffer(torch.ones(n_estimators, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, ...) to (k, n)."""
        return (one_per_sample(self.critic(x)) - self.shift) * self.stretch

    @torch.no_grad()
    def calibrate(self, data: Tensor, generated: Tensor) -> None:
        """Make the mean value -1 on `data` and +1 on `generated`, (k, n, ...).

        If the two overlap so much that most values would be outside of [-1, 1], their
        spread is the unit instead.
        """
        values = [one_per_sample(self.critic(x)) for x in (data, generated)]
        low, high = (v.mean(1, keepdim=True) for v in values)
        spreads = [v.std(1, correction=0, keepdim=True) for v in values]
        unit = torch.maximum((high - low) / 2, torch.stack(spreads).mean(0))
        self.shift.copy_((low + high) / 2)
        self.stretch.copy_(1 / unit.clamp_min(1e-6))
