"""A detector of a fourth kind of data: windows of time series."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from adding_a_method_example import Autoencoder
from torch import nn

from skanomaly.utils._kinds import ByKind, Kind

__all__ = ["SERIES", "SeriesAutoencoder"]


# 1. The kind ----------------------------------------------------------------------

SERIES = Kind(
    name="series",
    axes=("channels", "length"),
    family="conv",
    scaling="standard",
    n_estimators=1,
    far_out=100.0,
    units="steps",
    least_side=4,
)


# 2. Its network -------------------------------------------------------------------


def make_series_coder(n_channels: int, width: int, latent_dim: int) -> nn.Module:
    """Return convolutions with few channels in the middle."""
    return nn.Sequential(
        nn.Conv1d(n_channels, width, 5, padding="same"),
        nn.LeakyReLU(0.2),
        nn.Conv1d(width, latent_dim, 1),
        nn.Conv1d(latent_dim, width, 5, padding="same"),
        nn.LeakyReLU(0.2),
        nn.Conv1d(width, n_channels, 1),
    )


# 3. A detector that takes it ------------------------------------------------------


class SeriesAutoencoder(Autoencoder):
    """Detector for series: the reconstruction error of an autoencoder."""

    _auto_values: ClassVar[ByKind] = {
        SERIES: {"latent_dim": 1, "max_epochs": 300, "lr": 3e-3, "width": 16},
    }

    def _coder(self):
        self._family()
        n_channels, _ = self._row_shape
        sizes = n_channels, self._value("width"), self._value("latent_dim")
        return partial(make_series_coder, *sizes)
