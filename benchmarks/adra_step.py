"""ADRA's training step and its scoring, compared with those of the bare network.

A step is compared with one that trains all weights of the same network, with the same
head, loss and optimiser, and batch statistics if there is batch normalisation. Scoring
with one expert is compared with the bare network, both without the head, and also with
the bare network in the memory format and the portions of a network with adapters.
Samples are ready on the device: neither way prepares or augments them.

The time for the gradients of a kernel depends on the vector instructions of a
processor, so that results are separate for these.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from math import ceil
from statistics import median

import torch
from torch import nn

from skanomaly._adra._backbone import FrozenNetwork
from skanomaly._adra._net import OPTIMIZERS, Adapters
from skanomaly._adra._networks import ResNet26
from skanomaly.objectives import hypersphere_classification_loss

from . import pretrained
from .runner import Experiment, grid
from .tables import Metric, Table
from .timing import interleaved, milliseconds_per_step, ratios

SIDE, SHRINKAGE = 64, 0.1
EXPERTS = 1, 2, 4

#: Comparisons: a way, and its reference.
PAIRS = [
    *((f"K={n_experts}", "fine-tuning") for n_experts in EXPERTS),
    *((f"K={n_experts}", "K=1") for n_experts in EXPERTS[1:]),
    ("scoring, K=1", "scoring, bare"),
    ("scoring, K=1", "scoring, bare, alike"),
]


def mobilenet():
    return pretrained.mobilenet_v2(os.environ["SKANOMALY_DATA"])


@torch.no_grad()
def normalised():
    """Return the same network with batch normalisation, as libraries have it.

    In the stored weights it is merged into the convolutions. Their biases become those
    of the normalisation, which does nothing else before it is trained.
    """
    network = mobilenet()
    for part in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        layers = list(part.named_children())
        part._modules.clear()
        for name, layer in layers:
            part.add_module(name, layer)
            if isinstance(layer, nn.Conv2d):
                norm = nn.BatchNorm2d(layer.out_channels)
                norm.running_var.fill_(1 - norm.eps)
                norm.bias.copy_(layer.bias)
                layer.bias = None
                part.add_module(f"{name}_norm", norm)
    return network.eval()


#: The function that builds a network, and the first layer with adapters.
NETWORKS = {
    "ResNet26": (ResNet26, 0),
    "MobileNetV2 with norms": (normalised, 0),
    "MobileNetV2": (mobilenet, 0),
    "MobileNetV2 from block 7": (mobilenet, "block7"),
}


def adapted(network, adapt_from, n_experts, x):
    """Return the network with adapters, their modules, and the head."""
    backbone = FrozenNetwork(network, x[:1], adapt_from)
    adapters = Adapters(backbone, n_experts, SHRINKAGE, unit=True).to(x.device)
    backbone.set_adapters(adapters.layers)
    with torch.no_grad():
        adapters.head.fit(backbone(x))
    return backbone, adapters.layers, adapters.head


def step_of(network, head, trained, x):
    """Return a function that makes one step; half of the samples are the corpus."""
    parameters = list(trained.parameters())
    optimizer = OPTIMIZERS["sgd"](parameters, lr=1e-3, weight_decay=1e-4)

    def step():
        optimizer.zero_grad()
        normal, corpus = head(network(x)).chunk(2)
        loss = hypersphere_classification_loss(normal, corpus)
        loss.backward(inputs=parameters)
        optimizer.step()

    return step


@torch.inference_mode()
def scored(network, x, at_rest, n_batches):
    """Score batches like a detector, which merges adapters once for all of them."""
    with at_rest():
        for _ in range(n_batches):
            network(x)


def portioned(network, n_at_once):
    """Return a function that applies a network to at most so many samples at a time."""

    def computed(x):
        return torch.cat([network(part) for part in x.chunk(ceil(len(x) / n_at_once))])

    return computed


def scorings_of(corrected, bare, alike, x, n_batches):
    """Return functions that score batches by the network with and without adapters."""
    n_at_once = corrected.n_at_once if x.device.type == "cpu" else len(x)
    networks = {
        "K=1": (corrected, corrected.merged),
        "bare": (bare, nullcontext),
        "bare, alike": (portioned(alike, n_at_once), nullcontext),
    }
    return {
        f"scoring, {name}": partial(scored, network, x, at_rest, n_batches)
        for name, (network, at_rest) in networks.items()
    }


def repeated(way, n_steps):
    for _ in range(n_steps):
        way()


def compare(
    network,
    batch_size,
    n_scored,
    n_batches,
    n_threads,
    n_steps,
    n_rounds,
    side=SIDE,
    device="cpu",
    vectors=None,
):
    """Interleave all ways, and return the median ratios of their times.

    A way makes `n_steps` consecutive steps in its turn, as in training. `vectors` names
    the instructions of the processor.
    """
    torch.set_num_threads(n_threads)
    torch.manual_seed(0)
    build, adapt_from = NETWORKS[network]
    bare = build().to(device).eval()
    x, many = (
        torch.randn(n, 3, side, side, device=device).to(
            memory_format=torch.channels_last
        )
        for n in (batch_size, n_scored)
    )
    networks = {n: adapted(bare, adapt_from, n, x) for n in EXPERTS}
    steps = {
        f"K={n_experts}": step_of(backbone, head, adapters, x)
        for n_experts, (backbone, adapters, head) in networks.items()
    }
    scoring, _, head = networks[1]
    tuned, alike = (
        deepcopy(bare).to(memory_format=torch.channels_last) for _ in range(2)
    )
    steps["fine-tuning"] = step_of(tuned.train(), head, tuned, x)
    steps = {name: partial(repeated, step, n_steps) for name, step in steps.items()}
    scorings = scorings_of(scoring, bare, alike, many, n_batches)
    # Separately, since the free memory depends on earlier allocations.
    of_steps, of_scorings = (
        interleaved(ways, n_rounds, device) for ways in (steps, scorings)
    )
    metrics = milliseconds_per_step(of_steps, n_steps)
    metrics |= milliseconds_per_step(of_scorings, n_batches)
    seconds = of_steps | of_scorings
    return metrics | {
        f"{way} / {base}": median(ratios(seconds, way, base)) for way, base in PAIRS
    }


#: As many samples together as detectors score of images of 64 x 64 pixels.
SCORED = {
    "n_scored": [85],
    "n_batches": [3],
    "n_threads": [1, 2],
    "n_steps": [4],
    "n_rounds": [5],
    "vectors": [torch.backends.cpu.get_cpu_capability()],
}
EXPERIMENTS = [
    Experiment(
        "adra_step",
        compare,
        [
            *grid(network=["ResNet26"], batch_size=[16], **SCORED),
            *grid(network=list(NETWORKS)[1:], batch_size=[64], **SCORED),
        ],
        alone=True,
    ),
    Experiment(
        "adra_step.gpu",
        compare,
        grid(
            network=list(NETWORKS),
            batch_size=[128],
            n_scored=[85],
            n_batches=[10],
            n_threads=[8],
            n_steps=[20],
            n_rounds=[7],
            side=[64, 128],
            device=["cuda"],
        ),
        profile="gpu",
        alone=True,
    ),
]

STEP = (
    Metric("fine-tuning, ms per step", "Fine-tuning, ms per step", "median", 0),
    *(
        Metric(f"K={k} / fine-tuning", f"K = {k} / fine-tuning", "median", 2)
        for k in EXPERTS
    ),
    *(Metric(f"K={k} / K=1", f"K = {k} / K = 1", "median", 2) for k in EXPERTS[1:]),
    Metric("scoring, K=1 / scoring, bare", "Scoring, K = 1 / network", "median", 2),
    Metric(
        "scoring, K=1 / scoring, bare, alike", "The same, computed alike", "median", 2
    ),
)
TABLES = [
    Table(
        "adra_step",
        ("network", "vectors", "n_threads"),
        None,
        STEP,
        "Network, instructions, threads",
    ),
    Table(
        "adra_step.gpu",
        ("network", "side"),
        None,
        STEP,
        "Network, pixels",
        description="ADRA: a training step on a GPU.",
    ),
]
