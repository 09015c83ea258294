"""A copy of a net in training, with the weights that its run would leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
from skorch.history import History
from torch import nn

from ..utils._state import shallow_copy
from ._callbacks import AverageWeights
from ._net import AlternatingNet

Net = TypeVar("Net", bound=AlternatingNet)


@contextmanager
def ended_copy(net: Net) -> Iterator[Net]:
    """Yield a copy of a net in training, as if its run ended now.

    Parameters
    ----------
    net : AlternatingNet
        A net between two epochs of a run, or at the end of the run.

    Yields
    ------
    AlternatingNet
        It has averaged or best weights where the end of the run would set them, and
        fresh optimisers. Parameters that the run does not train are shared. Within the
        context it has the data of the run, and a generator with the state of the run's
        own: draws do not change the run.

    Raises
    ------
    ValueError
        If a module cannot be copied.
    """
    copy = shallow_copy(net)
    copy.__dict__ |= _copied_modules(net) | {"callbacks": [], "callbacks_": []}
    copy.history, copy.rng_ = History(list(net.history)), _copied_generator(net)
    copy.initialize_optimizer()
    try:
        yield copy
    finally:
        for name in ("rng_", "_trained", "_lowest", "_buffers", *net.data_names_):
            copy.__dict__.pop(name, None)
        copy.data_names_ = ()


def _copied_modules(net: AlternatingNet) -> dict[str, nn.Module]:
    """Return copies of the modules by attribute, with their final weights."""
    modules = {f"{name}_": getattr(net, f"{name}_") for name in net.modules}
    trained = {id(parameter) for _, parameter in net.get_all_learnable_params()}
    copies = {
        id(parameter): parameter
        for module in modules.values()
        for parameter in module.parameters()
        if id(parameter) not in trained
    }
    try:
        copied = deepcopy(modules, copies)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            "A callback asks for the detector during training, which needs a copy of "
            f"its networks, and they cannot be copied: {error}"
        ) from error
    with torch.no_grad():
        for _, callback in net.callbacks_:
            # At the end of the run it has replaced the weights, and released them.
            if isinstance(callback, AverageWeights) and hasattr(callback, "weights_"):
                weights = zip(callback.weights_, callback.final_weights(), strict=True)
                for weight, final in weights:
                    copies[id(weight)].copy_(final)
    return copied


def _copied_generator(net: AlternatingNet) -> torch.Generator:
    generator = torch.Generator(net.device)
    return generator.set_state(net.rng_.get_state())
