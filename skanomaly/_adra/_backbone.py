"""A frozen network, whose layers are wrapped for adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from math import ceil, inf
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._adapters import (
    AdaptedConvolution,
    AdaptedLayer,
    adapted_layer,
    adapter_for,
    is_adaptable,
    is_split,
)

#: Channels that grey images are repeated to, for networks that do not take grey.
_COLOURS = 3
#: Tolerated relative difference between two results of one computation.
_ROUNDING = 1e-3
#: Names of parts that compute class scores.
_CLASSIFIERS = {"classifier", "classes", "fc", "head", "logits"}
#: Share of the weights in adapted layers above which no warning is given.
_MOST = 0.9


class FrozenNetwork(nn.Module):
    """A frozen network: training changes neither its parameters nor its buffers.

    It shares its weights with the given network, so that many detectors need a single
    copy. The given network does not change.

    Parameters
    ----------
    network : torch.nn.Module
        Maps images, or samples of a table, to features. A linear layer at its very end,
        a classifier, is left out.
    example : Tensor of shape (1, ...)
        A typical sample, not constant. Its forward pass determines the order and the
        outputs of the layers.
    adapt_from : str or int
        Start of the adapters: a number of layers, or the name of a part.
    most_bytes : int
        Maximum size of a layer's output on a CPU. The memory of larger outputs would be
        returned to the system and cleared page by page when it is allocated again.

    Attributes
    ----------
    layers : dict of str to AdaptedLayer
        The layers that can have adapters, in the order in which they compute.
    unadapted : str
        Share of the weights in layers that can have adapters, and names of the other
        parts; empty if the share is large.
    n_fixed : int
        Number of parts before the first adapter, if the network is a sequence of parts.
    features_shape : tuple of int
        Shape of the features of one sample.
    n_at_once : int or inf
        Samples to compute together on a CPU.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        adapt_from: str | int = 0,
        most_bytes: int = 3 * 2**23,
    ):
        super().__init__()
        _refuse_unwrappable(network)
        self.network = sharing_copy(network).float()
        self._call_layers(True)
        self.layers: dict[str, AdaptedLayer] = {}
        self.n_channels: int | None = None
        self.n_fixed, self.n_at_once, self.most_bytes = 0, inf, most_bytes
        self.eval()
        _refuse_batch_statistics(network)
        calls = self._traced(example)
        left_out = [calls.pop().layer] if calls and calls[-1].ends else []
        self._replace({layer: nn.Identity() for layer in left_out})
        if not calls:
            raise ValueError(
                f"backbone, a {type(network).__name__}, has no convolution and no "
                "linear layer, apart from a classifier, that could be adapted."
            )
        first = _first_to_adapt([call.name for call in calls], adapt_from)
        unwrapped = self._computed(example)
        self.layers |= {call.name: adapted_layer(call.layer) for call in calls[first:]}
        self._replace({layer.base_layer: layer for layer in self.layers.values()})
        self._merge_norms(example)
        self.n_fixed = self._find_fixed()
        features = self._computed(example)
        if _differ(features, unwrapped):
            raise ValueError(
                f"backbone, a {type(network).__name__}, computes other features when "
                "its layers are wrapped: its forward depends on their classes, or on "
                "hooks."
            )
        self._check_gradients(example)
        self.unadapted = self._unadapted([call.layer for call in calls])
        # The sample is the first axis, or the second for an ensemble.
        self.features_shape = features.movedim(-2, 0)[0].shape

    @torch.no_grad()
    def _computed(self, x):
        return self(x)

    # The layers of a network ------------------------------------------------------

    def _traced(self, example):
        """Return the adaptable layers that compute, in their order."""
        names = {
            layer: name
            for name, layer in self.network.named_modules()
            if is_adaptable(layer)
        }
        for layer in self._read():
            names.pop(layer, None)
        outputs, final = self._outputs(names, example)
        _check_features(final, example)
        if not final.isfinite().all():
            raise ValueError(
                f"backbone, a {type(self.network).__name__}, returns NaN or infinite "
                "numbers for samples like these: see normalization and scaling."
            )
        if not _is_ensemble(example):
            self._check_pair(names, example, outputs, final)
        return [
            _Call(names[layer], layer, _ends(names[layer], layer, output, final))
            for layer, output in outputs.items()
        ]

    def _check_pair(self, names, example, outputs, final):
        """Raise an error if the output for a sample depends on other samples."""
        both, twice = self._outputs(names, torch.cat([example, example.flip(-1)]))
        most = max((output.nbytes for output in outputs.values()), default=1)
        self.n_at_once = max(self.most_bytes // most, 1)
        for layer, one in outputs.items():
            two = both.get(layer, one)
            if two.numel() == 2 * one.numel() and len(two) != 2 * len(one):
                raise ValueError(
                    f"{names[layer]} of backbone returns {tuple(two.shape)} for two "
                    "samples. They have to be along the first axis, so that the score "
                    "of a sample does not depend on others."
                )
        if _differ(twice[:1], final):
            raise ValueError(
                f"backbone, a {type(self.network).__name__}, returns other features "
                "for a sample if the batch has another one, so that its score would "
                "depend on others."
            )

    def _read(self):
        """Return the layers whose weights torch reads, without a call of the layer."""
        wholes = (
            m for m in self.network.modules() if isinstance(m, nn.MultiheadAttention)
        )
        return {layer for whole in wholes for layer in whole.modules()}

    def _call_layers(self, called: bool) -> None:
        """Make torch's encoders call their layers, instead of taking a fast path."""
        for whole in self.network.modules():
            if isinstance(whole, nn.TransformerEncoderLayer):
                whole.activation_relu_or_gelu = 0 if called else _fast_kind(whole)

    def _check_gradients(self, example):
        """Raise an error if adapters of the network would get no gradients."""
        some = [adapter_for(layer.base_layer, 1) for layer in self.layers.values()]
        self.set_adapters(nn.ModuleList(some).to(example.device))
        with torch.enable_grad():
            reached = self(example).requires_grad
        self.set_adapters(None)
        if not (reached or torch.is_inference_mode_enabled()):
            raise ValueError(
                f"backbone, a {type(self.network).__name__}, computes without "
                "gradients, by torch.no_grad, inference_mode or detach: adapters "
                "could not be trained. Take these out of its forward."
            )

    def _unadapted(self, adapted):
        """Describe the weights without adapters, if they are many."""
        read, sizes = self._read(), {}
        for name, module in self.network.named_modules():
            module = module.base_layer if isinstance(module, AdaptedLayer) else module
            other = is_adaptable(module) and module not in read
            if not other:
                own = module.parameters(recurse=False)
                sizes[name] = sum(p.numel() for p in own if p.ndim > 1)
        most, few = sum(layer.weight.numel() for layer in adapted), 3
        share = most / (most + sum(sizes.values()))
        if share >= _MOST:
            return ""
        names = sorted((n for n in sizes if sizes[n]), key=lambda n: -sizes[n])
        more = f" and {len(names) - few} more" if len(names) > few else ""
        return f"{share:.0%} of the weights; not in {', '.join(names[:few])}{more}"

    def _outputs(
        self, layers: Iterable[nn.Module], x: Tensor
    ) -> tuple[dict[nn.Module, Tensor], Tensor]:
        """Return the outputs of layers, in their order, and that of the network."""
        outputs: dict[nn.Module, Tensor] = {}

        def keep(layer, inputs, output):
            outputs.pop(layer, None)
            outputs[layer] = output

        with forward_hooks(layers, keep):
            return outputs, self._tried(x.clone())  # networks may change x in place

    def _tried(self, example):
        """Return the output of the network, for grey images as colours if necessary."""
        taken = [
            m.in_channels for m in self.network.modules() if isinstance(m, nn.Conv2d)
        ]
        n_channels = example.shape[1] if example.ndim == 4 and taken else None
        try:
            return self.network(example)
        except RuntimeError as error:
            if n_channels is None or n_channels in taken:
                raise
            if n_channels > 1:
                raise ValueError(
                    f"The images have {n_channels} channels, but backbone takes "
                    f"{taken[0]}; only images of one channel are repeated. (A "
                    "normalization for three channels makes three of one.)"
                ) from error
        self.n_channels = _COLOURS
        return self.network(self._colours(example))

    def _find_fixed(self):
        """Return the number of parts before the first one with an adapter."""
        adapted = set(self.layers.values())
        parts = [list(part.modules()) for part in self._parts()]
        n = next(k for k, inner in enumerate(parts) if not adapted.isdisjoint(inner))
        return n if any(is_adaptable(m) for p in parts[:n] for m in p) else 0

    def _merge_norms(self, probe):
        """Merge batch normalisation into the convolution whose output it takes."""
        made, taken = {}, {}
        convolutions = [
            v for v in self.layers.values() if isinstance(v, AdaptedConvolution)
        ]
        norms = [
            m for m in self.modules() if type(m) is nn.BatchNorm2d and not _hooked(m)
        ]

        def convolved(layer, inputs, output):
            made[layer] = output

        def normalised(layer, inputs, output):
            taken[layer] = inputs[0]
            return 2 * output + 1  # so that a change of inputs shows in the outputs

        with forward_hooks(convolutions, convolved), forward_hooks(norms, normalised):
            before = self(probe)
        pairs = [(v, m) for v, y in made.items() for m, x in taken.items() if x is y]
        self.places = {nn.Identity(): norm for _, norm in pairs}
        self._replace({norm: place for place, norm in self.places.items()})
        for layer, norm in pairs:
            layer.norm = norm
        # Only a change of results reveals other users of a convolution's output.
        with forward_hooks(norms, normalised):
            after = self(probe)
        if _differ(after, before):
            self._replace(self.places)
            for layer, _ in pairs:
                layer.norm = None
            self.places = {}

    def _replace(self, others) -> None:
        """Replace modules by others."""
        for parent in list(self.modules()):
            # A module may stand twice in one parent.
            for name, child in list(parent._modules.items()):
                if child in others:
                    setattr(parent, name, others[child])

    def _colours(self, images):
        """Return images with as many channels as the network takes: grey repeated."""
        if self.n_channels is None or images.shape[1] == self.n_channels:
            return images
        return images.expand(-1, self.n_channels, -1, -1)

    # Weights ----------------------------------------------------------------------

    def set_adapters(self, adapters: Iterable[nn.Module] | None) -> None:
        """Set one adapter for each layer, or none at all."""
        layers = self.layers.values()
        each = [None] * len(layers) if adapters is None else adapters
        for layer, adapter in zip(layers, each, strict=True):
            layer.set_adapter(adapter)

    def base_network(self) -> nn.Module:
        """Return the network with its own layers, unwrapped; it shares the weights."""
        other = deepcopy(self, _sharing_memo(self))
        other._replace(other.places)
        other._replace({layer: layer.base_layer for layer in other.layers.values()})
        other._call_layers(False)
        return other.network

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in evaluation mode: statistics of batches would change the buffers."""
        return super().train(False)

    def load_state_dict(self, state_dict, *arguments, **options):
        """Load other weights, without a change of the shared ones."""
        if not self.differs_from(state_dict):
            return None
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = tensor.data.clone()
        return super().load_state_dict(state_dict, *arguments, **options)

    def differs_from(self, state_dict: Mapping[str, Tensor]) -> bool:
        """Return whether the weights differ."""
        mine = self.state_dict()
        return mine.keys() != state_dict.keys() or not all(
            torch.equal(mine[k], v.to(mine[k].device)) for k, v in state_dict.items()
        )

    # Computation ------------------------------------------------------------------

    def embed(self, x: Tensor) -> Tensor:
        """Map samples (n, ...) to embeddings: the input of the first adapted part.

        No training changes them.
        """
        # Networks may change their inputs in place.
        return self._passed(self._parts()[: self.n_fixed], self._colours(x).clone())

    def features(self, embeddings: Tensor) -> Tensor:
        """Map embeddings to features (n, l): the means of feature maps over pixels."""
        x = self._passed(self._parts()[self.n_fixed :], embeddings)
        return x.mean((2, 3)) if x.ndim == 4 else x

    def _passed(self, parts, x):
        """Compute parts in sequence, on a CPU for a few samples at a time."""
        parts_of_x = [x]
        if is_split(x):
            parts_of_x = x.chunk(max(ceil(len(x) / self.n_at_once), 1))
        made = []
        with self.merged():
            for some in parts_of_x:
                for part in parts:
                    some = part(some)
                made.append(some)
        return torch.cat(made) if len(made) > 1 else made[0]

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Merge weights once for all samples, as long as no adapter changes."""
        layers = [
            layer
            for layer in self.layers.values()
            if isinstance(layer, AdaptedConvolution) and layer.cache is None
        ]
        for layer in layers:
            layer.cache = []
        try:
            yield
        finally:
            for layer in layers:
                layer.cache = None

    def _parts(self):
        """Return the parts of a sequence, or the whole network as a single one."""
        network = self.network
        if type(network).forward is not nn.Sequential.forward:
            return [network]
        return [network] if _hooked(network) else list(network._modules.values())

    def forward(self, x: Tensor) -> Tensor:
        """Map samples (n, ...) to features (n, l)."""
        return self.features(self.embed(x))


def build_frozen(
    build: Callable[[], nn.Module], example: Tensor, adapt_from: str | int
) -> FrozenNetwork:
    """Return the frozen form of the network that `build` returns."""
    network = build()
    first = next(network.parameters(), torch.empty(0))
    try:
        return FrozenNetwork(network, example.to(first.device), adapt_from)
    except (RuntimeError, AssertionError) as error:
        shape, images = tuple(example.shape[1:]), example.ndim == 4
        hint = "input_size enlarges images" if images else "images need image_shape"
        raise ValueError(
            f"backbone, a {type(network).__name__}, cannot be used on samples of shape "
            f"{shape}, as they are given to it; {hint}. {error}"
        ) from error


@contextmanager
def forward_hooks(layers: Iterable[nn.Module], hook: Callable) -> Iterator[None]:
    """Call a function after each of some layers, in a pass without gradients."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Call(NamedTuple):
    name: str
    layer: nn.Module
    ends: bool  # whether it computes class scores


def _ends(name, layer, output, final):
    """Return whether a network ends on the output of a layer, as class scores."""
    if isinstance(layer, nn.Linear):
        return output is final
    return (
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and layer.out_channels == final.shape[1]
        and not _CLASSIFIERS.isdisjoint(name.split("."))
    )


def _fast_kind(whole):
    """Return torch's number of the activation of an encoder, 0 without a fast path."""
    kinds = (F.relu, nn.ReLU), (F.gelu, nn.GELU)
    for number, (function, module) in enumerate(kinds, 1):
        if whole.activation is function or isinstance(whole.activation, module):
            return number
    return 0


def _refuse_unwrappable(network):
    """Raise an error for modules whose layers cannot be replaced."""
    for module in network.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                "backbone is scripted or traced (torch.jit), so that its layers cannot "
                "be adapted: give the module that it was made of."
            )
        if "_orig_mod" in module._modules:
            raise ValueError(
                "backbone is compiled (torch.compile), so that its layers cannot be "
                "adapted: give the module that it was made of, its _orig_mod."
            )
    if any(map(nn.parameter.is_lazy, (*network.parameters(), *network.buffers()))):
        raise ValueError(
            "backbone has lazy layers, which have no weights before their first call: "
            "call it on a batch."
        )


def sharing_copy(network: nn.Module) -> nn.Module:
    """Return a frozen copy of a module that shares its tensors."""
    try:
        return deepcopy(network, _sharing_memo(network))
    except RuntimeError as error:
        raise ValueError(
            f"backbone, a {type(network).__name__}, cannot be copied: {error}"
        ) from error


def _sharing_memo(network):
    return {
        id(tensor): nn.Parameter(tensor.detach(), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach()
        for tensor in (*network.parameters(), *network.buffers())
    }


def _hooked(module):
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_ensemble(example):
    return example.ndim == 3


def _refuse_batch_statistics(network):
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    for name, layer in network.named_modules():
        if isinstance(layer, kinds) and layer.running_mean is None:
            raise ValueError(
                f"backbone has batch normalisation without running statistics, {name}: "
                "its output for a sample depends on the other samples."
            )


def _differ(features, others):
    """Return whether two results of one computation differ."""
    return not bool((features - others).norm() <= _ROUNDING * others.norm())  # or NaN


def _first_to_adapt(names, adapt_from):
    """Return the number of layers before the first one to adapt."""
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
    if not isinstance(output, Tensor) or (
        output.ndim not in ((3,) if _is_ensemble(example) else (2, 4))
    ):
        found = f"a {type(output).__name__}"
        if isinstance(output, Tensor):
            found = f"a tensor of shape {tuple(output.shape)}"
        raise ValueError(
            f"backbone returns {found}, but features (n_samples, n_features) or "
            "feature maps (n_samples, n_features, height, width) are wanted. Wrap it "
            "in a module that returns one of these."
        )
