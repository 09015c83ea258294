"""A network that stays as it is, with places for corrections."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._adapters import ADAPTABLE, AdaptedConvolution, adapted


class FrozenNetwork(nn.Module):
    """A network whose parameters and buffers stay as they are, whatever is trained.

    Its weights are those of the network that it is made of, not copies of them: many
    detectors share one. That network itself is not changed in any way.

    Parameters
    ----------
    network : torch.nn.Module
        Maps images, or rows of a table, to features. A linear layer at its very end,
        a classifier, is left out.
    example : Tensor of shape (1, ...)
        What it is going to be given, to see how it computes.
    adapt_from : str or int
        Where corrections begin: a number of layers, or the name of a part.

    Attributes
    ----------
    layers : dict of str to AdaptedLayer
        The layers that can be corrected, in the order in which they compute.
    n_fixed : int
        Parts, of a network that is a sequence of parts, before the first correction.
    features_shape : tuple of int
        Shape of what it makes of one row.
    """

    def __init__(self, network: nn.Module, example: Tensor, adapt_from=0):
        super().__init__()
        self.network = sharing_copy(network).float()
        self.eval()
        self.n_channels = _n_channels(self.network, example)
        calls = self._watch(example)
        if calls and calls[-1].ends:
            self._replace({calls.pop().layer: nn.Identity()})
        if not calls:
            raise ValueError(
                f"backbone, a {type(network).__name__}, has no convolution and no "
                "linear layer, apart from a classifier, that could be adapted."
            )
        first = _first_to_adapt([call.name for call in calls], adapt_from)
        self.layers = {call.name: adapted(call.layer) for call in calls[first:]}
        self._replace({layer.frozen: layer for layer in self.layers.values()})
        corrected = set(self.layers.values())
        self.n_fixed = next(
            number
            for number, part in enumerate(self._parts())
            if not corrected.isdisjoint(part.modules())
        )
        self._fold_norms(example)
        with torch.no_grad():
            # The row is the first axis, or the second for networks side by side.
            self.features_shape = self(example).movedim(-2, 0)[0].shape

    def _watch(self, example):
        """Return the adaptable layers that compute, in their order."""
        names = {
            layer: name
            for name, layer in self.network.named_modules()
            if isinstance(layer, tuple(ADAPTABLE))
        }
        outputs: dict[nn.Module, Tensor] = {}

        def called(layer, inputs, output):
            outputs.pop(layer, None)
            outputs[layer] = output

        with _watched(names, called):
            final = self.network(self._colours(example))
        _check_features(final, example)
        return [
            _Call(names[layer], layer, output is final and isinstance(layer, nn.Linear))
            for layer, output in outputs.items()
        ]

    def _fold_norms(self, example):
        """Make batch normalisation part of the convolution whose output it takes."""
        rng = torch.Generator(example.device).manual_seed(0)
        probe = torch.randn(example.shape, generator=rng, device=example.device)
        made, taken = {}, {}
        watched = [
            *(v for v in self.layers.values() if isinstance(v, AdaptedConvolution)),
            *(m for m in self.modules() if type(m) is nn.BatchNorm2d),
        ]

        def called(layer, inputs, output):
            if isinstance(layer, AdaptedConvolution):
                made[layer] = output
            elif layer.running_mean is not None:
                taken[layer] = inputs[0]

        with _watched(watched, called):
            before = self(probe)
        pairs = [(v, m) for v, y in made.items() for m, x in taken.items() if x is y]
        self._place_norms(pairs)
        # Who else takes the output of a convolution cannot be seen, but noticed.
        with torch.no_grad():
            after = self(probe)
        if not torch.allclose(after, before, rtol=1e-3, atol=1e-4):
            self._replace(self.places)
            for layer, _ in pairs:
                layer.norm = None
            self.places = {}

    def _place_norms(self, pairs):
        self.places = {nn.Identity(): norm for _, norm in pairs}
        self._replace({norm: place for place, norm in self.places.items()})
        for layer, norm in pairs:
            layer.norm = norm

    def _replace(self, others):
        """Put other modules in the place of some."""
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if child in others:
                    setattr(parent, name, others[child])

    def _colours(self, images):
        """Return images with as many channels as the network takes: grey repeated."""
        if self.n_channels is None or images.shape[1] == self.n_channels:
            return images
        return images.expand(-1, self.n_channels, -1, -1)

    def correct_by(self, corrections) -> None:
        """Take the corrections, one for each layer."""
        for layer, correction in zip(self.layers.values(), corrections, strict=True):
            layer.correct_by(correction)

    def bare(self) -> nn.Module:
        """Return the network without anything beside it; it shares the weights."""
        other = deepcopy(self, _sharing_memo(self))
        other._replace(other.places)
        other._replace({layer: layer.frozen for layer in other.layers.values()})
        return other.network

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in evaluation: statistics of batches would change what is frozen."""
        return super().train(False)

    def load_state_dict(self, *arguments, **options):
        """Take other weights; those that were shared stay as they are."""
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = tensor.data.clone()
        return super().load_state_dict(*arguments, **options)

    def before(self, x: Tensor) -> Tensor:
        """Map rows (n, ...) to what the first part with a correction is given."""
        x = self._colours(x)
        for part in self._parts()[: self.n_fixed]:
            x = part(x)
        return x

    def after(self, x: Tensor) -> Tensor:
        """Map that to features (n, l), means over pixels where there are pixels."""
        for part in self._parts()[self.n_fixed :]:
            x = part(x)
        return x.mean((2, 3)) if x.ndim == 4 else x

    def _parts(self):
        """Return what computes one after the other: the network, or parts of it."""
        plain = type(self.network).forward is nn.Sequential.forward
        return list(self.network.children()) if plain else [self.network]

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (n, ...) to features (n, l)."""
        return self.after(self.before(x))


@contextmanager
def _watched(layers, called):
    """Call a function after each of some layers, in a pass without gradients."""
    handles = [layer.register_forward_hook(called) for layer in layers]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Call(NamedTuple):
    name: str
    layer: nn.Module
    ends: bool  # whether it is linear, and its output is that of the network


def sharing_copy(network: nn.Module) -> nn.Module:
    """Return a copy of a module whose tensors are those of the module, frozen."""
    return deepcopy(network, _sharing_memo(network))


def _sharing_memo(network):
    return {
        id(tensor): nn.Parameter(tensor.detach(), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach()
        for tensor in (*network.parameters(), *network.buffers())
    }


def _n_channels(network, example):
    """Return the channels of images that a network takes, None of a table."""
    layers = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    if example.ndim != 4 or (first := next(layers, None)) is None:
        return None
    given, wanted = example.shape[1], first.in_channels
    if given not in (1, wanted):
        raise ValueError(
            f"The images have {given} channels, but backbone takes {wanted}. Those of "
            "one channel would be repeated."
        )
    return wanted


def _first_to_adapt(names, adapt_from):
    """Return how many layers stand before the first one to correct."""
    if isinstance(adapt_from, str):
        inside = [f"{name}.".startswith(f"{adapt_from}.") for name in names]
        if True not in inside:
            parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ValueError(
                f"adapt_from={adapt_from!r}: no layer of the backbone that could be "
                f"adapted is in a part of that name; there are {parts}."
            )
        return inside.index(True)
    if adapt_from >= len(names):
        raise ValueError(
            f"adapt_from={adapt_from}, but the backbone has {len(names)} layers that "
            "could be adapted."
        )
    return adapt_from


def _check_features(output, example):
    side_by_side = example.ndim == 3
    if not isinstance(output, Tensor) or (
        output.ndim not in ((3,) if side_by_side else (2, 4))
    ):
        what = f"a {type(output).__name__}"
        if isinstance(output, Tensor):
            what = f"a tensor of shape {tuple(output.shape)}"
        raise ValueError(
            f"backbone returns {what}, but features (n, l) or maps (n, l, h, w) are "
            "wanted. Wrap it in a module that returns one of these."
        )
