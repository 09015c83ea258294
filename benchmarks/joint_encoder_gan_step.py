"""A training step of JointEncoderGAN against a straightforward one.

The same networks, with the same numbers of parameters, and the same losses. The
straightforward step is the authors' graph in torch: separate upsampling and
convolution, or convolution and pooling; all resolutions computed at each step, with
weights of zero for those that are not faded in; data resized in each step; gradients
for all parameters in the graph; Adam with both moments; torch's default memory format.
The memory is that of the optimisers.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from skanomaly._joint_encoder_gan._net import JointNet, Phase
from skanomaly._joint_encoder_gan._networks import (
    Frame,
    channels_of,
    image_networks,
)
from skanomaly.engine import DeviceDataset
from skanomaly.networks import Ensemble

from .runner import Experiment, grid
from .tables import Metric, Table
from .timing import interleaved, milliseconds_per_step, ratios

LR, SLOPE = 1e-3, 0.2


class Layer(nn.Module):
    """A convolution with scaled weights, before or after a change of size."""

    def __init__(self, n_inputs, n_outputs, size=3, gain=2**0.5, change=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_outputs, n_inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(n_outputs))
        self.scale, self.change = gain / (n_inputs * size**2) ** 0.5, change
        self.padding = size // 2

    def forward(self, x):
        if self.change == "up":
            x = F.interpolate(x, scale_factor=2)
        x = F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)
        return F.avg_pool2d(x, 2) if self.change == "down" else x


class Dense(nn.Module):
    def __init__(self, n_inputs, n_outputs, gain=2**0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_outputs, n_inputs))
        self.bias = nn.Parameter(torch.zeros(n_outputs))
        self.scale = gain / n_inputs**0.5

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias)


def active(x):
    return F.leaky_relu(x, SLOPE)


def normed(x):
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class PlainGenerator(nn.Module):
    """All resolutions, each blended into the next one by its weight."""

    def __init__(self, latent_dim, channels, n_colours):
        super().__init__()
        c = channels
        self.dense = Dense(latent_dim, 16 * c[0], 2**0.5 / 4)
        self.conv = Layer(c[0], c[0])
        pairs = list(pairwise(c))
        self.up = nn.ModuleList(Layer(i, o, change="up") for i, o in pairs)
        self.same = nn.ModuleList(Layer(o, o) for _, o in pairs)
        self.to_image = nn.ModuleList(Layer(n, n_colours, 1, 1.0) for n in c)

    def forward(self, z, blend):
        x = normed(active(self.dense(normed(z)).unflatten(1, (-1, 4, 4))))
        x = normed(active(self.conv(x)))
        image = self.to_image[0](x)
        for k, (up, same) in enumerate(zip(self.up, self.same, strict=True), 1):
            x = normed(active(same(normed(active(up(x))))))
            old = F.interpolate(image, scale_factor=2)
            share = min(max(blend - (len(self.up) - k), 0.0), 1.0)
            image = torch.lerp(self.to_image[k](x), old, share)
        return image


class PlainTower(nn.Module):
    """A critic or encoder, with the image at every resolution."""

    def __init__(self, channels, n_colours, n_outputs, last=None):
        super().__init__()
        c = channels
        pairs = list(pairwise(c))
        self.same = nn.ModuleList(Layer(i, i) for _, i in pairs)
        self.down = nn.ModuleList(Layer(i, o, change="down") for o, i in pairs)
        self.from_image = nn.ModuleList(Layer(n_colours, n, 1) for n in c)
        self.conv = Layer(c[0] + 1, c[0])
        self.dense = Dense(16 * c[0], n_outputs)
        self.last = last

    def forward(self, image, blend):
        x = active(self.from_image[-1](image))
        for k in range(len(self.same), 0, -1):
            x = active(self.down[k - 1](active(self.same[k - 1](x))))
            image = F.avg_pool2d(image, 2)
            share = min(max(blend - (len(self.same) - k), 0.0), 1.0)
            x = torch.lerp(x, active(self.from_image[k - 1](image)), share)
        groups = x.unflatten(0, (4, -1))
        spread = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        spread = spread.repeat(4)[:, None, None, None].expand(-1, 1, 4, 4)
        x = active(self.conv(torch.cat([x, spread], 1)))
        x = active(self.dense(x.flatten(1)))
        return x if self.last is None else self.last(x).squeeze(1)


class Straightforward:
    """The training by hand, with the gradient penalty on a share of each batch."""

    def __init__(self, latent_dim, channels, n_colours, device, penalised):
        self.penalised = penalised
        c = channels
        critic = PlainTower(c, n_colours, c[0], Dense(c[0], 1, 1.0))
        self.g = PlainGenerator(latent_dim, c, n_colours).to(device)
        self.d = critic.to(device)
        self.e = PlainTower(c, n_colours, latent_dim).to(device)
        self.latent_dim = latent_dim
        adam = partial(torch.optim.Adam, lr=LR, betas=(0.0, 0.99))
        self.optimizers = {k: adam(getattr(self, k).parameters()) for k in "dge"}

    def step(self, real, blend):
        g, d, e = self.g, self.d, self.e
        n = len(real)

        def noise():
            return torch.randn(n, self.latent_dim, device=real.device)

        coarse = F.interpolate(F.avg_pool2d(real, 2), scale_factor=2)
        real = torch.lerp(real, coarse, blend)
        generated = g(noise(), blend).detach()
        k = round(n * self.penalised)
        share = torch.rand(k, 1, 1, 1, device=real.device)
        points = torch.lerp(real[:k], generated[:k], share).requires_grad_()
        value = d(points, blend).sum()
        slope = torch.autograd.grad(value, points, create_graph=True)[0]
        on_data = d(real, blend)
        loss = d(generated, blend).mean() - on_data.mean()
        loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
        self.move("d", loss + 1e-3 * on_data.square().mean())
        self.move("g", -d(g(noise(), blend), blend).mean())
        generated = g(noise(), blend).detach()
        self.move("e", (generated - g(e(generated, blend), blend)).abs().mean())

    def move(self, player, loss):
        self.optimizers[player].zero_grad()
        loss.backward()
        self.optimizers[player].step()


def held_by(optimizers):
    """Return the bytes of the state of optimisers."""
    return sum(
        value.numel() * value.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
    )


def compare(
    width,
    latent_dim,
    n_colours,
    batch_size,
    fading,
    n_threads,
    n_steps,
    n_rounds,
    device="cpu",
):
    """Interleave both ways, and return the median ratio of their times."""
    torch.set_num_threads(n_threads)
    frame = Frame.of((n_colours, 32, 32))
    networks = image_networks(frame, latent_dim, width, 512, rectified=True)
    X = np.random.default_rng(0).integers(
        0, 256, (n_steps * batch_size, n_colours, 32, 32), dtype=np.uint8
    )
    dataset = DeviceDataset(X.astype(np.float32) / 127.5 - 1, device=device)
    net = JointNet(
        {role: partial(Ensemble.of, 1, build) for role, build in networks.items()},
        latent_dim=latent_dim,
        frame=frame,
        clip=torch.clone,
        encoder_loss="image",
        cycle_updates_generator=False,
        cycle_weight=None,
        as_published=False,
        n_estimators=1,
        lr=LR,
        device=device,
    )
    channels = channels_of(frame, width, 512)
    # The package takes half of each batch for the penalty, the authors all of it.
    sizes = latent_dim, channels, n_colours, device
    plain = {
        "plain": Straightforward(*sizes, penalised=1.0),
        "plain, half a penalty": Straightforward(*sizes, penalised=0.5),
    }
    phase = Phase(frame.finest, fading, batch_size, 1, n_steps, "32 x 32")

    def by_hand(way):
        order = torch.randperm(len(dataset), device=dataset.device)
        for k, index in enumerate(order.chunk(n_steps)):
            way.step(dataset[index], 1 - k / n_steps if fading else 0.0)

    ways = {"package": lambda: net.train(dataset, phase=phase)}
    ways |= {name: partial(by_hand, way) for name, way in plain.items()}
    seconds = interleaved(ways, n_rounds, device)
    metrics = milliseconds_per_step(seconds, n_steps)
    for name in plain:
        metrics[f"{name} / package"] = median(ratios(seconds, name, "package"))
    players = net.configure_optimizers()
    ours = held_by(getattr(net, f"optimizer_{name}_") for name in players)
    theirs = held_by(plain["plain"].optimizers.values())
    return metrics | {"optimiser memory, package / plain": ours / theirs}


SIZES = {"latent_dim": [64], "n_colours": [1], "batch_size": [32]}
ROUNDS = {"n_steps": [3], "n_rounds": [7]}
EXPERIMENTS = [
    Experiment(
        "joint_encoder_gan_step",
        compare,
        [
            *grid(width=[8], **SIZES, fading=[False, True], n_threads=[1, 2], **ROUNDS),
            *grid(width=[32], **SIZES, fading=[False], n_threads=[1], **ROUNDS),
        ],
        alone=True,
    ),
    Experiment(
        "joint_encoder_gan_step.gpu",
        compare,
        grid(
            width=[512],
            latent_dim=[512],
            n_colours=[3],
            batch_size=[64],
            fading=[False, True],
            n_threads=[8],
            n_steps=[20],
            n_rounds=[7],
            device=["cuda"],
        ),
        profile="gpu",
        alone=True,
    ),
]

STEP = (
    Metric("package, ms per step", "Package, ms per step", "median", 0),
    Metric("plain, ms per step", "Straightforward, ms per step", "median", 0),
    Metric("plain / package", "Ratio", "median", 2),
    Metric("plain, half a penalty / package", "Ratio, same penalty", "median", 2),
    Metric(
        "optimiser memory, package / plain", "Memory of the optimisers", "median", 2
    ),
)
TABLES = [
    Table(
        "joint_encoder_gan_step",
        ("width", "fading", "n_threads"),
        None,
        STEP,
        "Channels, fading in, threads",
    ),
    Table(
        "joint_encoder_gan_step.gpu",
        ("fading",),
        None,
        STEP,
        "Fading in",
        description="JointEncoderGAN: a training step with the paper's networks, on a "
        "GPU.",
    ),
]
