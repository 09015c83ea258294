"""A training step of AABiGAN against one written as the authors' script has it.

The same networks and losses on images of 32 x 32 pixels. The script's step runs forward
and backward through every term of every loss, with gradients for all parameters in the
graph, has an optimiser for each of three players, and evaluates both batches after each
step; it uses torch's default memory format.
"""

from __future__ import annotations

from functools import partial
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from skanomaly._aa_bigan._net import AnomalyAwareBiGAN
from skanomaly._aa_bigan._networks import image_networks
from skanomaly.engine import DeviceDataset
from skanomaly.networks import Ensemble

from .runner import Experiment, grid
from .tables import Metric, Table
from .timing import interleaved, milliseconds_per_step, ratios

LATENT_DIM, WIDTH, LR = 100, 32, 1e-4
A, B, C = 1.0, 0.0, 0.75


class Script(nn.Module):
    """The step by hand; with `looks`, it evaluates both batches."""

    def __init__(self, networks, looks):
        super().__init__()
        modules = {role: build() for role, build in networks.items()}
        self.networks = nn.ModuleDict(modules).to(memory_format=torch.contiguous_format)
        self.looks = looks
        players = {
            "d": ("discriminator_xz", "discriminator_xx"),
            "g": ("generator",),
            "e": ("encoder",),
        }
        self.optimizers = {
            name: torch.optim.Adam(
                [p for role in roles for p in self.networks[role].parameters()],
                LR,
                (0.5, 0.9),
            )
            for name, roles in players.items()
        }

    def step(self, x, known):
        """Make one step, and return the numbers that a script would print."""
        e, g, d_xz, d_xx = (
            self.networks[role]
            for role in ("encoder", "generator", "discriminator_xz", "discriminator_xx")
        )
        optimizers, n = self.optimizers, len(x)
        noise = torch.randn(n, LATENT_DIM, device=x.device)
        z, z_known = e(torch.cat([x, known])).tensor_split([n])
        reconstruction, generated = g(torch.cat([z, noise])).chunk(2)

        loss_d = mse(d_xz(x, z), A) + mse(d_xz(generated, noise), B)
        loss_d = loss_d + mse(d_xz(known, z_known), (A + B) / 2)
        loss_d = loss_d + mse(d_xx(x, x), A) + mse(d_xx(x, reconstruction), B)
        loss_d = loss_d + mse(d_xx(known, known), (A + B) / 2)
        optimizers["d"].zero_grad()
        loss_d.backward(retain_graph=True)
        optimizers["d"].step()

        cycle = mse(d_xx(x, x), C) + mse(d_xx(x, reconstruction), C)
        cycle = (cycle + mse(d_xx(known, known), C)) / 3
        loss_g = mse(d_xz(generated, noise), C) + cycle
        loss_e = mse(d_xz(x, z), C) + mse(d_xz(known, z_known), C) + cycle
        optimizers["g"].zero_grad()
        loss_g.backward(retain_graph=True)
        of_g = [p.grad.clone() for p in g.parameters()]
        optimizers["e"].zero_grad()
        loss_e.backward()
        for p, gradient in zip(g.parameters(), of_g, strict=True):
            p.grad = gradient
        optimizers["g"].step()
        optimizers["e"].step()
        metrics = [loss_d.item(), loss_g.item(), loss_e.item()]
        return metrics + ([self.errors(x), self.errors(known)] if self.looks else [])

    @torch.no_grad()
    def errors(self, x):
        self.eval()
        error = F.mse_loss(
            self.networks["generator"](self.networks["encoder"](x)), x
        ).item()
        self.train()
        return error


def mse(values, target):
    return (values - target).square().mean()


def compare(batch_size, n_known, n_threads, n_steps, n_rounds, device="cpu"):
    """Interleave the ways, and return the median ratios of their times."""
    torch.set_num_threads(n_threads)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_steps * batch_size, 1, 32, 32)).clip(-1, 1)
    dataset = DeviceDataset(X.astype(np.float32), device=device)
    known = dataset.subset(torch.arange(n_known, device=device))
    networks = image_networks((1, 32, 32), LATENT_DIM, WIDTH, True)
    net = AnomalyAwareBiGAN(
        {k: partial(Ensemble.of, 1, build) for k, build in networks.items()},
        latent_dim=LATENT_DIM,
        prepare=torch.clone,
        targets=(A, B, C),
        n_known=n_known,
        beta2=0.9,
        n_estimators=1,
        batch_size=batch_size,
        lr=LR,
        device=device,
    )
    scripts = {
        "script": Script(networks, looks=True).to(device),
        "script without looks": Script(networks, looks=False).to(device),
    }
    data = {"known": known, "cycle_weight": 1 / 3}
    ways = {"package": lambda: net.train(dataset, **data, **plan(n_steps))}
    for name, script in scripts.items():
        ways[name] = lambda script=script: by_hand(script, dataset, known, n_steps)
    seconds = interleaved(ways, n_rounds, device)
    result = milliseconds_per_step(seconds, n_steps)
    for name in scripts:
        result[f"{name} / package"] = median(ratios(seconds, name, "package"))
    return result


def plan(n_steps):
    return {"max_epochs": 1, "epoch_steps": n_steps}


def by_hand(script, dataset, known, n_steps):
    order = torch.randperm(len(dataset), device=dataset.device)
    negatives = known[torch.arange(len(known), device=dataset.device)]
    for index in order.chunk(n_steps):
        script.step(dataset[index], negatives)


SIZES = {"batch_size": [200], "n_known": [50]}
EXPERIMENTS = [
    Experiment(
        "aa_bigan_step",
        compare,
        grid(**SIZES, n_threads=[2, 1], n_steps=[2], n_rounds=[7]),
        alone=True,
    ),
    Experiment(
        "aa_bigan_step.gpu",
        compare,
        grid(**SIZES, n_threads=[8], n_steps=[50], n_rounds=[15], device=["cuda"]),
        profile="gpu",
        alone=True,
    ),
]

STEP = (
    Metric("package, ms per step", "Package, ms per step", "median", 0),
    Metric("script, ms per step", "Script, ms per step", "median", 0),
    Metric("script / package", "Ratio", "median", 2),
    Metric("script without looks / package", "Ratio without looks", "median", 2),
)
TABLES = [
    Table("aa_bigan_step", ("n_threads",), None, STEP, "Threads"),
    Table(
        "aa_bigan_step.gpu",
        ("device",),
        None,
        STEP,
        "Device",
        description="AABiGAN: a training step on a GPU.",
    ),
]
