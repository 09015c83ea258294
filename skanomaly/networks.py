"""Networks of two methods or more, ensembles of them, and networks of users."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import pairwise
from math import ceil, prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, is_lazy

from .utils._dropout import dropout_factors
from .utils._stacked_product import stacked_product

__all__ = [
    "SLOPE",
    "Builders",
    "ConvCritic",
    "ConvGenerator",
    "Ensemble",
    "Role",
    "StackedCritic",
    "StackedMLP",
    "build_checked_network",
    "build_network",
    "coarse_shape",
    "n_halvings",
    "normalised_alike",
    "one_per_sample",
    "running_statistics",
    "sample_by_sample",
]

#: Usual slope of a LeakyReLU left of zero.
SLOPE = 0.2

#: Multiplies a gradient with the slopes of a LeakyReLU, given its output.
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward

#: Functions that build networks, by role.
Builders = dict[str, Callable[[], nn.Module]]


class StackedMLP(nn.Module):
    """An ensemble of MLPs of one shape, computed together.

    A call of a small network costs more than its computation: k networks in one batched
    product cost little more than one.

    Parameters
    ----------
    n_estimators : int
        Number of MLPs, k.
    sizes : sequence of int
        Numbers of inputs, of units in each hidden layer, and of outputs.
    normalised : bool
        Whether hidden layers have batch normalisation, with separate statistics for
        each MLP, and running statistics after training.
    slope : float
        Slope of the LeakyReLU left of zero.
    dropout : float
        Share of the hidden units that are dropped in training.
    """

    #: Ensembles side by side in this one, which drop the same units.
    n_alike = 1

    def __init__(
        self,
        n_estimators: int,
        sizes: Sequence[int],
        normalised: bool = False,
        slope: float = SLOPE,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.n_estimators, self.slope, self.dropout = n_estimators, slope, dropout
        for k, (i, o) in enumerate(pairwise(sizes)):
            for name, n_rows in (("weight", i), ("bias", 1)):
                values = torch.empty(n_estimators, n_rows, o).uniform_(
                    -(i**-0.5), i**-0.5
                )
                self.register_parameter(f"{name}_{k}", nn.Parameter(values))
        for k, n_units in enumerate(sizes[1:-1] if normalised else ()):
            self.add_module(f"norm_{k}", nn.BatchNorm1d(n_estimators * n_units))

    def _layers(self):
        """Return weight and bias of each layer; a ModuleList would cost time."""
        values = list(self._parameters.values())
        return list(zip(values[::2], values[1::2], strict=True))

    @torch.no_grad()
    def rescale(self, x: Tensor, spread: float) -> None:
        """Scale the last layer to a given spread of the outputs, with a bias of 0.

        Parameters
        ----------
        x : Tensor of shape (k, n, inputs)
            Inputs.
        spread : float
            Root mean square of the standard deviations of the outputs on `x`.
        """
        weight, bias = self._layers()[-1]
        now = self(x).var(1, keepdim=True).mean(2, keepdim=True).sqrt()
        weight.mul_(spread / now)
        bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, inputs) to (k, n, outputs)."""
        *hidden, (weight, bias) = self._layers()
        norms = self._modules.values() or [None] * len(hidden)
        for (w, b), norm in zip(hidden, norms, strict=True):
            if norm is not None and not norm.training:
                w, b = self._folded(w, b, norm)
            x = stacked_product(x, w, b)
            if norm is not None and norm.training:
                x = norm(x.transpose(0, 1).flatten(1))
                x = x.unflatten(1, (self.n_estimators, -1)).transpose(0, 1)
            x = F.leaky_relu(x, self.slope, inplace=not torch.is_grad_enabled())
            if self.dropout and self.training:
                x = self._dropped(x)
        if self.training and weight.shape[2] == 1:
            # Faster than a product of matrices, for values and for gradients.
            return (x * weight.mT).sum(2, keepdim=True) + bias
        return stacked_product(x, weight, bias)

    def _folded(self, weight, bias, norm):
        """Return weights and biases that include a normalisation by fixed statistics.

        It then costs nothing for each sample.
        """
        with torch._C.DisableTorchFunction():
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            scale, shift = (v.view(self.n_estimators, 1, -1) for v in (scale, shift))
            return weight * scale, torch.addcmul(shift, bias, scale)

    def _dropped(self, x):
        shape = len(x) // self.n_alike, *x.shape[1:]
        kept = dropout_factors(x, shape, self.dropout)
        return (x.unflatten(0, (self.n_alike, -1)) * kept).flatten(0, 1)


class StackedCritic(StackedMLP):
    """MLPs without normalisation, with their gradient by the inputs."""

    def input_gradient(self, x: Tensor) -> Tensor:
        """Compute the gradient of the first output by `x`, (k, n, inputs).

        The network is piecewise linear, and this gradient a product of weights: it is
        computed without a backward pass, and differentiated by a single one.
        """
        *hidden, (last, _) = self._layers()
        outputs = []
        with torch.no_grad():
            for w, b in hidden:
                x = F.leaky_relu(torch.baddbmm(b, x, w), self.slope)
                outputs.append(x)
        gradient = last[..., 0][:, None].expand(-1, x.shape[1], -1)
        for (w, _), output in zip(hidden[::-1], outputs[::-1], strict=True):
            gradient = _leaky_relu_backward(gradient, output, self.slope, True) @ w.mT
        return gradient


class Ensemble(nn.Module):
    """Several modules of one kind, each with its own part of the input.

    Parameters
    ----------
    modules : iterable of torch.nn.Module
        The k modules.
    """

    #: Not to be a part of a larger ensemble, which would not be faster.
    one_by_one = True

    def __init__(self, modules):
        super().__init__()
        self.members = nn.ModuleList(modules)

    @classmethod
    def of(cls, n_estimators: int, build: Callable[[], nn.Module]) -> Ensemble:
        """Return an ensemble of `n_estimators` new modules."""
        return cls(build() for _ in range(n_estimators))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map one or several inputs (k, n, ...) to (k, n, ...), member by member."""
        parts = zip(self.members, *inputs, strict=True)
        return torch.stack([member(*part) for member, *part in parts])


def build_network(role: str, build: Callable[..., nn.Module], *sizes) -> nn.Module:
    """Return a copy of the network that a function of the user returns.

    The function may return the same network each time, and two detectors must not train
    one network.

    Parameters
    ----------
    role : str
        Key of the network in ``architecture``.
    build : callable
        The function.
    *sizes : object
        Its arguments.
    """
    try:
        network = build(*sizes)
    except TypeError as error:
        raise ValueError(
            f"architecture[{role!r}] failed when it was called with {sizes}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"architecture[{role!r}] returned a {type(network).__name__}; it has to "
            "return a torch.nn.Module."
        )
    # torch cannot copy buffers without a size.
    lazy = [buffer for buffer in network.buffers() if is_lazy(buffer)]
    fresh: Any = UninitializedBuffer
    twins = [fresh(device=buffer.device, dtype=buffer.dtype) for buffer in lazy]
    return deepcopy(network, dict(zip(map(id, lazy), twins, strict=True)))


class Role(NamedTuple):
    """Inputs and output of a network that a user may give.

    Each size is "shape", the shape of a sample, or "latent_dim", the length of a
    latent code.

    Attributes
    ----------
    arguments : tuple of str
        Sizes that are passed to the function that builds the network.
    inputs : tuple of str
        Size of each input.
    output : str
        Size of the output; "" means one number per sample, of shape (n,) or (n, 1), and
        "features" any length.
    """

    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str

    def __str__(self) -> str:
        """Describe the role, for the documentation of ``architecture``."""
        words = {
            "shape": "(n_samples, \\*shape)",
            "": "(n_samples,) or (n_samples, 1)",
        }
        arguments = ", ".join(self.arguments)
        *inputs, output = (
            words.get(size, f"(n_samples, {size})")
            for size in (*self.inputs, self.output)
        )
        return (
            f"is called with ({arguments}) and returns a module that maps "
            f"{' and '.join(inputs)} to {output}"
        )


def build_checked_network(
    name: str,
    build: Callable[..., nn.Module],
    role: Role,
    shape: tuple[int, ...],
    latent_dim: int,
) -> nn.Module:
    """Return a copy of the network of a user, after a check of its shapes.

    The check passes two samples through a copy in evaluation mode, which changes
    neither the network nor a random state. Only lazy modules, which learn their sizes
    from the first samples, get their initial weights here.

    Parameters
    ----------
    name : str
        Key of the network in ``architecture``.
    build : callable
        The function of the user.
    role : Role
        Arguments of the function, inputs and output of its network.
    shape : tuple of int
        Shape of a sample.
    latent_dim : int
        Length of a latent code.

    Raises
    ------
    ValueError
        If the network fails on samples of the shapes of its role, or its output does
        not have the shape of its role.
    """
    sizes = {"shape": shape, "latent_dim": latent_dim}
    shapes = {"shape": shape, "latent_dim": (latent_dim,), "": ()}
    wanted_inputs, wanted = [shapes[size] for size in role.inputs], shapes[role.output]
    network = build_network(name, build, *(sizes[size] for size in role.arguments))
    state = next((t for t in network.state_dict().values() if not is_lazy(t)), None)
    device = None if state is None else state.device
    inputs = [
        torch.linspace(-1, 1, 2 * prod(size), device=device).reshape(2, *size)
        for size in wanted_inputs
    ]
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        _tried(name, network, inputs)
    with torch.random.fork_rng(devices=[device] if inputs[0].is_cuda else []):
        output = _tried(name, deepcopy(network), inputs)
    fits = {(2, *wanted)} | (set() if wanted else {(2, 1)})
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got not in fits or not output.is_floating_point():
        raise ValueError(
            f"architecture[{name!r}] returned a network that returns "
            f"{_in_words(got, output)} for two samples of shape "
            f"{_shapes(wanted_inputs)}; it has to return floats of shape "
            f"{' or '.join(map(str, sorted(fits)))}."
        )
    return network


def _tried(name: str, network: nn.Module, inputs: list[Tensor]) -> Any:
    """Pass `inputs` through a network in evaluation mode."""
    training = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            return network(*inputs)
    except Exception as error:
        shapes = _shapes(tuple(part.shape)[1:] for part in inputs)
        raise ValueError(
            f"architecture[{name!r}] returned a network that fails on two samples of "
            f"shape {shapes}: {type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in training:
            module.training = mode


def _shapes(shapes) -> str:
    return " and ".join(str(tuple(shape)) for shape in shapes)


def _in_words(got, output) -> str:
    if isinstance(got, str):
        return f"a {got}"
    return f"{str(output.dtype).removeprefix('torch.')} of shape {got}"


@torch.no_grad()
def normalised_alike(network: nn.Module, usual: Tensor, other: Tensor):
    """Pass two batches through a network, with the batch statistics of the first.

    Batch normalisation by its own statistics would hide that a batch has a larger
    spread than usual. Here both batches are normalised by the statistics of the usual
    batch.

    Parameters
    ----------
    network : torch.nn.Module
        A network with or without batch normalisation.
    usual, other : Tensor of shape (..., d)
        The batches.

    Returns
    -------
    pair of Tensor
        The outputs for the two batches.
    """
    found: dict[nn.Module, list] = {
        layer: []
        for layer in network.modules()
        if isinstance(layer, _BatchNorm)
        and (layer.training or layer.running_mean is None)
    }

    def look(layer, inputs):
        axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
        statistics = torch.var_mean(inputs[0], axes, correction=0)
        found[layer].append(statistics)

    hooks = [layer.register_forward_pre_hook(look) for layer in found]
    try:
        first = network(usual)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, statistics in found.items():
        layer.forward = partial(_normalised_by, layer, iter(statistics))
    try:
        return first, network(other)
    finally:
        for layer in found:
            del layer.forward


def _normalised_by(layer, statistics, x):
    variance, mean = next(statistics)
    return F.batch_norm(x, mean, variance, layer.weight, layer.bias, eps=layer.eps)


@contextmanager
def running_statistics(network: nn.Module) -> Iterator[None]:
    """Make batch normalisation use its running statistics in training.

    Parameters
    ----------
    network : torch.nn.Module
        A network; its layers without running statistics do not change.
    """
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, _BatchNorm)
        and layer.training
        and layer.running_mean is not None
    ]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def sample_by_sample(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Apply a function of samples (m, ...) to a batch of an ensemble, (k, n, ...).

    Parameters
    ----------
    function : callable
        A function that treats samples independently of each other.
    rows : Tensor of shape (k, n, ...)
        The batch.

    Returns
    -------
    Tensor of shape (k, n, ...)
        The results.
    """
    return function(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])


def one_per_sample(values: Tensor) -> Tensor:
    """Remove the last axis of one number per sample, if there is one.

    Parameters
    ----------
    values : Tensor of shape (k, n) or (k, n, 1)
        Outputs of networks of users have either shape.

    Returns
    -------
    Tensor of shape (k, n)
        The same numbers.

    Raises
    ------
    RuntimeError
        If there is more than one number for a sample.
    """
    return values.reshape(values.shape[:2])


def n_halvings(shape: tuple[int, ...], coarsest: int = 7) -> int:
    """Return the number of halvings that bring the longer side down to `coarsest`."""
    longest, count = max(shape[1:]), 0
    while ceil(longest / 2**count) > coarsest:
        count += 1
    return count


def coarse_shape(shape: tuple[int, ...], coarsest: int = 7) -> tuple[int, int]:
    """Return the height and width of an image after all halvings."""
    n = n_halvings(shape, coarsest)
    height, width = (ceil(side / 2**n) for side in shape[1:])
    return height, width


class ConvGenerator(nn.Module):
    """A generator of images: transposed convolutions, batch normalisation, LeakyReLU.

    Parameters
    ----------
    latent_dim : int
        Length of a noise vector.
    shape : tuple of int
        Shape (c, h, w) of one image.
    width : int
        Channels of the finest layer; each coarser one has twice as many.
    bounded : bool
        Whether the last layer is tanh, for images in [-1, 1].
    coarsest : int
        Longest side of the first, coarsest layer.
    running : bool
        Whether batch normalisation uses running statistics after training, so that
        images do not depend on one another. Otherwise it uses those of the batch, which
        do not lag behind changing weights.
    slope : float
        Slope of the LeakyReLU left of zero; 0 makes it a ReLU.
    """

    def __init__(
        self,
        latent_dim: int,
        shape,
        width: int,
        bounded: bool = True,
        coarsest: int = 7,
        running: bool = False,
        slope: float = SLOPE,
    ):
        super().__init__()
        self.shape = shape
        n, size = n_halvings(shape, coarsest), coarse_shape(shape, coarsest)
        channels = width * 2**n
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_dim, 1, 1)),
            nn.ConvTranspose2d(latent_dim, channels, size, bias=False),
        ]
        for k in reversed(range(n)):
            layers += _normalised(channels, running, slope)
            fewer = shape[0] if k == 0 else width * 2**k
            layers.append(nn.ConvTranspose2d(channels, fewer, 4, 2, 1, bias=k == 0))
            channels = fewer
        if n == 0:
            layers += _normalised(channels, running, slope)
            layers.append(nn.Conv2d(channels, shape[0], 3, 1, 1))
        if bounded:
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z: Tensor) -> Tensor:
        """Map latent codes to images (n_samples, channels, height, width)."""
        _, h, w = self.shape
        return self.layers(z)[..., :h, :w]


def _normalised(channels, running, slope):
    return [
        nn.BatchNorm2d(channels, track_running_stats=running),
        nn.LeakyReLU(slope, inplace=True),
    ]


class ConvCritic(nn.Module):
    """A critic of images: convolutions, average pooling, two linear layers.

    There is no batch normalisation: the gradient penalty is taken image by image.

    Parameters
    ----------
    shape : tuple of int
        Shape (c, h, w) of one image.
    width : int
        Channels of the finest layer; each coarser one has twice as many. The hidden
        linear layer has 8 times as many units.
    """

    def __init__(self, shape, width: int):
        super().__init__()
        n, (h, w), channels = n_halvings(shape), coarse_shape(shape), shape[0]
        self.padding = (0, w * 2**n - shape[2], 0, h * 2**n - shape[1])
        layers: list[nn.Module] = []
        for k in range(n + 1):
            layers.append(nn.Conv2d(channels, width * 2**k, 3, 1, 1))
            layers.append(nn.LeakyReLU(SLOPE, inplace=True))
            if k < n:
                layers.append(nn.AvgPool2d(2))
            channels = width * 2**k
        layers += [
            nn.Flatten(),
            nn.Linear(channels * h * w, 8 * width),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Linear(8 * width, 1),
        ]
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n_samples, channels, height, width) to (n_samples, 1)."""
        x = F.pad(x, self.padding) if any(self.padding) else x
        return self.layers(x.contiguous(memory_format=torch.channels_last))
