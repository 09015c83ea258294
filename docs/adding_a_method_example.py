"""A detector in one file: an autoencoder, scored by its reconstruction error."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from skanomaly._base import BaseDeepDetector
from skanomaly.engine import AlternatingNet, DeviceDataset, Player
from skanomaly.utils._docstring import describe
from skanomaly.utils._kinds import TABLE, ByKind
from skanomaly.utils._parameters import Auto, parameter
from skanomaly.utils._sklearn_compat import AUTO_COUNT

# In the package these lines read: from ._base import ..., from .engine import ...

__all__ = ["Autoencoder"]


# 1. The network: sizes in, tensors out --------------------------------------------


def make_coder(n_columns: int, width: int, latent_dim: int) -> nn.Module:
    """Return an MLP with a narrow middle."""
    return nn.Sequential(
        nn.Linear(n_columns, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, latent_dim),
        nn.Linear(latent_dim, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, n_columns),
    )


# 2. The net: players and their losses ---------------------------------------------


class AutoencoderNet(AlternatingNet):
    """One player, whose loss is the reconstruction error."""

    def configure_optimizers(self):
        adam = partial(torch.optim.Adam, lr=self.lr, fused=True)
        return {"coder": Player(self.coder_, adam)}

    def training_step(self, batch: Tensor):
        yield "coder", self.error(batch).mean()

    def error(self, rows: Tensor) -> Tensor:
        """Return the mean squared error of each sample."""
        return (self.coder_(rows) - rows).square().flatten(1).mean(1)


# 3. The estimator -----------------------------------------------------------------


@describe(
    auto_steps="500",
    auto_batch="",
    auto_lr='"auto" is 1e-3.',
    width='Hidden units. "auto" is 32.',
    auto_offset="the median of the training scores less five times its distance to "
    "their first quartile",
)
class Autoencoder(BaseDeepDetector):
    """Detector for tables: the reconstruction error of an autoencoder.

    Parameters
    ----------
    %(parameters)s
    """

    # Meanings of "auto" by kind of data. This detector takes tables alone. For
    # max_epochs it is a number of optimiser steps, and the epochs follow from it.
    _auto_values: ClassVar[ByKind] = {
        TABLE: {"latent_dim": 2, "max_epochs": 500, "lr": 1e-3, "width": 32},
    }

    latent_dim: int | Auto = parameter(
        AUTO_COUNT, default="auto", doc="Length of the latent codes."
    )

    def _make_nets(self, device: str, seed: int):
        net = AutoencoderNet(
            {"coder": self._coder()},
            lr=self._value("lr"),
            **self._engine(device, seed),
        )
        return {"net_": net}

    def _coder(self):
        self._family()  # for its checks of `architecture` and of the shape
        sizes = *self._row_shape, self._value("width"), self._value("latent_dim")
        return partial(make_coder, *sizes)

    def _train(
        self,
        rows: DeviceDataset,
        reference: DeviceDataset,
        held_out: DeviceDataset,
        seed: int,
    ):
        self.net_ = self._nets_to_train(str(rows.device), seed)["net_"]
        plan = self._plan("max_epochs", len(rows))
        with self._progress(plan) as callbacks:
            own = callbacks("training", type(self)._keep_net)
            self.net_.run(rows, callbacks=own, **plan)
        self._record(training=self.net_)

    def _score_batch(self, batch: Tensor) -> Tensor:
        return -self.net_.error(batch)


if __name__ == "__main__":  # not in the package: its common tests find the class
    from sklearn.utils.estimator_checks import check_estimator

    check_estimator(Autoencoder(max_epochs=2))
    print("check_estimator: passed")
