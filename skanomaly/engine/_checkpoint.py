"""Checkpoints of a run, from which the same run goes on after its process was killed.

A file holds numbers, names and tensors: it is read by torch's unpickler for weights,
which creates nothing else, after its digest was checked.
"""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch.callbacks import Callback
from skorch.history import History
from torch import Tensor, nn

from ..exceptions import InvalidFileError
from ..utils._files import replace_file
from ..utils._warnings import warn
from ._callbacks import ProgressBar
from ._processes import is_first

if TYPE_CHECKING:
    from ._net import AlternatingNet

#: Least number of seconds between two writes: epochs may be milliseconds long.
SECONDS = 1.0
_FIRST_LINE = b"skanomaly checkpoint 1\n"
#: Marks of values that are no plain containers, numbers or tensors.
_ARRAY, _WEIGHT = "skanomaly.array", "skanomaly.weight"
_PLAIN = (bool, int, float, str, bytes, type(None))

State = dict[str, Any]


class Checkpoint(Callback):
    """Writes the state of a run after its epochs, and restores it when the run begins.

    It has to be the last callback: the others are then complete. The state is that of
    modules, optimisers, random generators, history, and of all callbacks: their
    attributes that are numbers, texts, arrays, tensors, or containers of these. Other
    attributes stay as ``on_train_begin`` leaves them.

    Parameters
    ----------
    folder : Path
        An existing folder, for the files of all runs of a fit.
    key : str
        Identifies the fit. A file with another key is an error.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def on_train_begin(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Restore the state that an earlier process has written."""
        self.path = self.folder / f"{type(net).__name__}-{net.step_}.ckpt"
        self.written = monotonic()
        state = _read(self.path, self.key, str(net.device))
        if state is None:
            return
        try:
            _restore(net, state, self._others(net))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise InvalidFileError(
                f"{self.path} is a checkpoint of other networks. Delete it to begin "
                f"anew. {error}"
            ) from error

    def on_epoch_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Write the state, unless it was written less than a second ago."""
        if not is_first():
            return
        is_last = len(net.history) - net.run_start_ == net.max_epochs
        if is_last or monotonic() - self.written >= SECONDS:
            _write(self.path, self.key, _state(net, self._others(net)))
            self.written = monotonic()

    def _others(self, net: AlternatingNet) -> dict[str, Callback]:
        return {name: one for name, one in net.callbacks_ if one is not self}


# State ------------------------------------------------------------------------------


def _state(net: AlternatingNet, callbacks: dict[str, Callback]) -> State:
    """Return the state of a run between two epochs."""
    modules, frozen = {}, _frozen(net)
    for name, module in _modules(net).items():
        states = module.state_dict().items()
        modules[name] = {k: v for k, v in states if k not in frozen[name]}
    weights = {(t.data_ptr(), t.shape): name for name, t in _weights(net).items()}
    return {
        "modules": _portable(modules, {}),
        "optimizers": _portable(net.optimizer_.state_dict(), {}),
        "history": _portable([dict(row) for row in net.history], {}),
        "counts": [net.step_, net.ended_],
        "generators": [generator.get_state() for generator in _generators(net)],
        "run": _portable(net.run_state(), {}),
        "callbacks": {
            name: _attributes(one, weights) for name, one in callbacks.items()
        },
    }


def _restore(net: AlternatingNet, state: State, callbacks: dict[str, Callback]) -> None:
    """Restore the state of a run that has begun."""
    frozen = _frozen(net)
    for name, module in _modules(net).items():
        missing, unknown = module.load_state_dict(state["modules"][name], strict=False)
        if unknown or set(missing) != frozen[name]:
            raise ValueError(f"{name} has other weights: {unknown or missing}.")
    net.optimizer_.load_state_dict(state["optimizers"])
    n_before = net.step_
    net.history = History(state["history"])
    net.step_, net.ended_ = state["counts"]
    generators = zip(_generators(net), state["generators"], strict=True)
    for generator, of_generator in generators:
        generator.set_state(of_generator)
    net.load_run_state(_usable(state["run"], {}))
    weights = _weights(net)
    for name, one in callbacks.items():
        vars(one).update(_usable(state["callbacks"].get(name, {}), weights))
        if isinstance(one, ProgressBar):
            one.bar.skip(net.step_ - n_before)


def _modules(net: AlternatingNet) -> dict[str, nn.Module]:
    return {k: one for k, one in vars(net).items() if isinstance(one, nn.Module)}


def _frozen(net: AlternatingNet) -> dict[str, set[str]]:
    """Return the names of parameters that are not trained, by module."""
    trained = {id(p) for _, p in net.get_all_learnable_params()}
    return {
        name: {
            k
            for k, parameter in module.named_parameters(remove_duplicate=False)
            if id(parameter) not in trained
        }
        for name, module in _modules(net).items()
    }


def _generators(net: AlternatingNet) -> list[torch.Generator]:
    """Return the generators that a run draws from."""
    device = torch.device(net.device)
    own = [net.rng_, torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        own.append(torch.cuda.default_generators[index])
    return own


def _weights(net: AlternatingNet) -> dict[str, Tensor]:
    """Return parameters and buffers of the modules by name."""
    return {
        f"{name}.{k}": tensor
        for name, module in _modules(net).items()
        for k, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.numel()
    }


# Values -----------------------------------------------------------------------------


def _attributes(callback: Callback, weights: dict[Any, str]) -> State:
    """Return the attributes of a callback that a file can hold."""
    kept = {}
    for name, value in vars(callback).items():
        with suppress(TypeError):
            kept[name] = _portable(value, weights)
    return kept


def _portable(value: Any, weights: dict[Any, str]) -> Any:
    """Return a value for a file; `weights` are written by their name.

    Raises a TypeError if it is no number, text, array, tensor or container of these.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, Tensor):
        name = weights.get((value.data_ptr(), value.shape))
        return {_WEIGHT: name} if name and value.numel() else value.detach()
    if isinstance(value, dict):
        return {k: _portable(part, weights) for k, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_portable(part, weights) for part in value)
    raise TypeError(f"A checkpoint cannot hold a {type(value).__name__}.")


def _usable(value: Any, weights: dict[str, Tensor]) -> Any:
    """Return the value that :func:`_portable` was given."""
    if isinstance(value, dict):
        if _ARRAY in value:
            return value[_ARRAY].numpy(force=True)
        if _WEIGHT in value:
            return weights[value[_WEIGHT]]
        return {k: _usable(part, weights) for k, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_usable(part, weights) for part in value)
    return value


# Files ------------------------------------------------------------------------------


def _write(path: Path, key: str, state: State) -> None:
    """Write a file in one step; warn if that fails, since the run need not."""
    content = BytesIO()
    torch.save(state, content)
    data = content.getbuffer()
    lines = [_FIRST_LINE, f"{key}\n{sha256(data).hexdigest()}\n".encode()]
    try:
        try:
            replace_file(path, [*lines, data])
        except OSError:
            # Another process with the same fit may have ended, and removed the folder.
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, [*lines, data])
    except OSError as error:
        warn(f"The training goes on without this checkpoint: {error}")


def _read(path: Path, key: str, device: str) -> State | None:
    """Read a file, None if there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    delete = "Delete it to begin anew."
    first, _, rest = data.partition(b"\n")
    written_for, _, rest = rest.partition(b"\n")
    digest, _, content = rest.partition(b"\n")
    if first + b"\n" != _FIRST_LINE:
        raise InvalidFileError(f"{path} is no checkpoint of this version. {delete}")
    if sha256(content).hexdigest().encode() != digest:
        raise InvalidFileError(f"{path} is damaged. {delete}")
    if written_for != key.encode():
        raise InvalidFileError(f"{path} is a checkpoint of another fit. {delete}")

    def place(storage: Any, location: str) -> Any:
        # Numbers on the host stay there, such as states of generators.
        return storage if location == "cpu" else storage.to(device)

    try:
        state: State = torch.load(BytesIO(content), place, weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise InvalidFileError(f"{path} is no checkpoint. {delete}") from error
    return state
