"""A detector in one file: rows that an autoencoder rebuilds badly are anomalies."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from skanomaly._base import BaseDeepDetector
from skanomaly.engine import AlternatingNet, Player, Rows

# In the package these two lines read: from ._base import ..., from .engine import ...

__all__ = ["Autoencoder"]


# 1. The network: sizes in, tensors out --------------------------------------------


def make_coder(n_columns: int, width: int, latent_dim: int) -> nn.Module:
    """Return a perceptron with a narrow middle."""
    return nn.Sequential(
        nn.Linear(n_columns, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, latent_dim),
        nn.Linear(latent_dim, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, n_columns),
    )


# 2. The net: who plays, and in which order ----------------------------------------


class AutoencoderNet(AlternatingNet):
    """One player, whose loss is the error of reconstruction."""

    def players(self):
        adam = partial(torch.optim.Adam, lr=self.lr, fused=True)
        return {"coder": Player(self.coder_, adam)}

    def turns(self, batch: Tensor):
        yield "coder", self.error(batch).mean()

    def error(self, rows: Tensor) -> Tensor:
        """Return the mean squared error of each row."""
        return (self.coder_(rows) - rows).square().mean(1)


# 3. The estimator -----------------------------------------------------------------


class Autoencoder(BaseDeepDetector):
    """Detector for tables: the error of an autoencoder's reconstruction.

    Its parameters are those that every detector has.
    """

    # What "auto" stands for: for tables, for images. For max_epochs it is a number of
    # optimiser steps, from which the number of epochs follows.
    _auto_values = {  # noqa: RUF012
        "latent_dim": (2, 2),
        "max_epochs": (500, 500),
        "lr": (1e-3, 1e-3),
        "width": (32, 32),
    }
    _accepted_ndim = (2,)

    def __init__(
        self,
        *,
        latent_dim="auto",
        max_epochs="auto",
        batch_size=32,
        lr="auto",
        scaling="auto",
        image_shape=None,
        architecture="auto",
        width="auto",
        contamination="auto",
        device="auto",
        precision="float32",
        callbacks=None,
        on_interrupt="raise",
        warm_start=False,
        verbose=0,
        random_state=None,
    ):
        self.latent_dim = latent_dim
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.scaling = scaling
        self.image_shape = image_shape
        self.architecture = architecture
        self.width = width
        self.contamination = contamination
        self.device = device
        self.precision = precision
        self.callbacks = callbacks
        self.on_interrupt = on_interrupt
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    def _make_nets(self, device: str, seed: int):
        sizes = *self._row_shape, self._value("width"), self._value("latent_dim")
        net = AutoencoderNet(
            {"coder": partial(make_coder, *sizes)},
            lr=self._value("lr"),
            **self._engine(device, seed),
        )
        return {"net_": net}

    def _train(self, rows: Rows, others: Rows, seed: int) -> None:
        self.net_ = self._nets_to_train(str(rows.device), seed)["net_"]
        plan = self._plan("max_epochs", len(rows))
        with self._progress(plan) as callbacks:
            self.net_.run(rows, callbacks=callbacks("training"), **plan)
        self._record(training=self.net_)

    def _score_batch(self, batch: Tensor) -> Tensor:
        return -self.net_.error(batch)


if __name__ == "__main__":  # not in the package: its common tests find the class
    from sklearn.utils.estimator_checks import check_estimator

    check_estimator(Autoencoder(max_epochs=2))
    print("check_estimator: passed")
