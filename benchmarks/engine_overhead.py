"""Overhead of the engine over a loop written by hand with the same steps."""

from __future__ import annotations

from functools import partial
from statistics import median

import numpy as np
import torch
from torch import nn

from skanomaly.engine import AlternatingNet, DeviceDataset, Player

from .runner import Experiment, grid
from .tables import Metric, Table
from .timing import interleaved, ratios

N_COLUMNS, N_STEPS, N_ROUNDS = 32, 300, 15
ADAM = partial(torch.optim.Adam, lr=1e-3, fused=True)


def make_module():
    return nn.Sequential(
        nn.Linear(N_COLUMNS, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, N_COLUMNS),
    )


class Autoencoder(AlternatingNet):
    """A minimal method: one player, one loss."""

    def configure_optimizers(self):
        return {"coder": Player(self.coder_, ADAM)}

    def training_step(self, batch):
        yield "coder", (self.coder_(batch) - batch).square().mean()


def bare_loop(module, optimizer, data, batch_size, n_steps):
    """One epoch, written by hand, with data on the device."""
    order = torch.randperm(len(data))
    total = torch.zeros(())
    for start in range(0, n_steps * batch_size, batch_size):
        batch = data[order[start : start + batch_size]]
        loss = (module(batch) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total.item()


def overhead(batch_size):
    """Interleave both ways, and return the median ratio of their times."""
    X = np.random.default_rng(0).normal(size=(N_STEPS * batch_size, N_COLUMNS))
    dataset = DeviceDataset(X)
    net = Autoencoder({"coder": make_module}, batch_size=batch_size)
    module = make_module()
    optimizer = ADAM(module.parameters())
    ways = {
        "engine": lambda: net.run(dataset, max_epochs=1, epoch_steps=N_STEPS),
        "bare": lambda: bare_loop(
            module, optimizer, dataset.resident, batch_size, N_STEPS
        ),
    }
    seconds = interleaved(ways, N_ROUNDS)
    found = ratios(seconds, "engine", "bare")
    return {
        "ratio": median(found),
        "ratio_quartiles": [found[N_ROUNDS // 4], found[-N_ROUNDS // 4]],
        "engine_us_per_step": median(seconds["engine"]) / N_STEPS * 1e6,
        "bare_us_per_step": median(seconds["bare"]) / N_STEPS * 1e6,
    }


EXPERIMENTS = [
    Experiment(
        "engine_overhead", overhead, grid(batch_size=[64, 128, 1024]), alone=True
    )
]

TABLES = [
    Table(
        "engine_overhead",
        ("batch_size",),
        None,
        (
            Metric("engine_us_per_step", "Engine, µs per step", "median", 0),
            Metric("bare_us_per_step", "Loop by hand, µs per step", "median", 0),
            Metric("ratio", "Ratio", "median", 3),
        ),
        "Batch size",
    )
]
