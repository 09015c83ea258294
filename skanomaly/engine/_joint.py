"""Runs of several nets as one: their ensembles are members of a larger one.

Small networks cost a call each, whatever they compute. Nets that differ only in their
data, their weights and some numbers are trained by one product instead of many. Each
has the draws, batches, losses and callbacks of a run of its own, so that its weights
are equal, up to rounding, to those that :meth:`AlternatingNet.run` would leave.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from numbers import Real
from typing import Any, NamedTuple

import joblib
import torch
from skorch.callbacks import Callback
from skorch.history import History
from torch import Tensor, nn

from ..exceptions import StopTraining, TrainingDivergedError
from ..utils._state import shallow_copy
from ._callbacks import AverageWeights, RateSchedule
from ._net import AlternatingNet

__all__ = ["Run", "run_jointly"]

#: Attributes of modules that count their members, or channels of all members.
_SIZES = "n_estimators", "num_features", "n_alike"


class Run(NamedTuple):
    """The arguments of :meth:`AlternatingNet.run`.

    Attributes
    ----------
    net : AlternatingNet
        The net to train.
    dataset : DeviceDataset
        Data set, or another object that the net makes batches of.
    plan : mapping of str to int
        The epochs, and the steps in each.
    callbacks : sequence of skorch.callbacks.Callback
        Callbacks of this run.
    """

    net: AlternatingNet
    dataset: Any
    plan: Mapping[str, int]
    callbacks: Sequence[Callback]

    def key(self) -> Hashable:
        """Return a key that is equal for runs that can be one; None for no other."""
        net, plan = self.net, self.plan
        if net.per_member is None or not (net.n_estimators and plan["max_epochs"]):
            return None
        if not net.initialized_:
            net.initialize()
        clipped = any(
            p.max_norm is not None for p in net.configure_optimizers().values()
        )
        modules = [module for one in _parts(net).values() for module in one.modules()]
        if clipped or any(getattr(one, "one_by_one", False) for one in modules):
            return None  # members share a norm, or each computes by itself
        names = set(net._get_param_names()) - {"modules", *net.per_member}
        shapes = [
            (tuple(t.shape), t.requires_grad)
            for module in modules
            for t in module.parameters(recurse=False)
        ]
        own = [_form(getattr(net, name)) for name in net.per_member]
        shared = [(type(one), vars(one)) for one in self.callbacks if _is_shared(one)]
        parts = (
            [(name, getattr(net, name)) for name in sorted(names)],
            *(shapes, own, shared, sorted(plan.items())),
            *(net.step_, net.resumed_, net.form_of_data()),
        )
        try:
            return type(net), joblib.hash(parts)
        except Exception:  # a setting that cannot be pickled, and so not be compared
            return None


def run_jointly(runs: Sequence[Run]) -> list[Exception | None]:
    """Train nets whose runs have one key; return the error of each, or None.

    Parameters
    ----------
    runs : sequence of Run
        At least one run.

    Returns
    -------
    list of Exception or None
        A net whose loss became infinite or NaN has a TrainingDivergedError.
    """
    for run in runs:
        own = [one for one in run.callbacks if not _is_shared(one)]
        run.net._begin(own, **run.plan)
        run.net._lowest = {}
    joint = _joined([run.net for run in runs])
    shared = [one for one in runs[0].callbacks if _is_shared(one)]
    try:
        joint.run([run.dataset for run in runs], callbacks=shared, **runs[0].plan)
    finally:
        for index, run in enumerate(runs):
            joint._release(index)
            del run.net.rng_, run.net._lowest
    return joint.errors_


def _is_shared(callback: Callback) -> bool:
    """Return whether a callback treats each number alone, and all members alike."""
    return isinstance(callback, RateSchedule) or type(callback) is AverageWeights


def _form(value: Any) -> Any:
    """Return the part of a value that has to agree in all nets."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return bool(value)  # a term with a weight of 0 may be left out
    return type(value).__name__


class _Joint(AlternatingNet):
    """Several nets as one. Nets are trained by a class of this and of their own."""

    nets_: list[AlternatingNet]
    errors_: list[Exception | None]
    active_: list[bool]

    def make_batches(self, dataset: Sequence[Any]) -> _JointBatches:
        pairs = zip(self.nets_, dataset, strict=True)
        return _JointBatches([net.make_batches(own) for net, own in pairs])

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        # Each net does its own part.
        AlternatingNet.on_epoch_begin(self, net, **kwargs)
        for one in self.nets_:
            one._sums = {}

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        super().notify(method_name, **cb_kwargs)
        of_batch = method_name in ("on_batch_begin", "on_batch_end")
        if method_name == "on_grad_computed":
            return
        for index, net in enumerate(self.nets_):
            if not self.active_[index]:
                continue
            net.step_ = self.step_
            if of_batch and not _hears(net, method_name):
                continue
            try:
                net.notify(method_name, **cb_kwargs)
            except StopTraining:
                if of_batch:  # the record of this epoch ends here
                    self._write(index, self._losses()[index])
                    net.notify("on_epoch_end")
                self._end(index)
            except Exception as error:
                self._drop(index, error)

    def _set_training(self, training: bool = True) -> None:
        super()._set_training(training)
        for net in self.nets_:
            net._set_training(training)

    def _record_epoch(self) -> None:
        self._set_training(False)
        for index, losses in enumerate(self._losses()):
            if self.active_[index]:
                try:
                    self._write(index, losses)
                except TrainingDivergedError as error:
                    self._drop(index, error)

    def _losses(self) -> list[dict[str, float]]:
        """Return the means of this epoch so far, for each net."""
        n = len(self.nets_)
        means = self._means()
        if not means:
            return []
        table = torch.stack([mean.view(n, -1).sum(1) for mean in means.values()], 1)
        return [dict(zip(means, row, strict=True)) for row in table.tolist()]

    def _write(self, index: int, losses: dict[str, float]) -> None:
        """Write an epoch into the history of a net, with its own records."""
        net = self.nets_[index]
        own = {name: float(total / n) for name, (total, n) in net._sums.items()}
        net._write_losses(losses | own)

    def _drop(self, index: int, error: Exception) -> None:
        """Leave out a net that failed; the others go on."""
        self.errors_[index], self.active_[index] = error, False
        self.ended_ = not any(self.active_)

    def _end(self, index: int) -> None:
        """End the run of a net whose callback stops it; the others go on."""
        self._release(index)
        self.active_[index] = False
        self.nets_[index]._set_training(False)
        self.nets_[index].notify("on_train_end", X=None, y=None)
        self.ended_ = not any(self.active_)

    def _release(self, index: int) -> None:
        """Give a net weights and optimiser states of its own, once."""
        if index in self.released_:
            return
        self.released_.add(index)
        net, n = self.nets_[index], len(self.nets_)
        modules = [m for one in _parts(net).values() for m in one.modules()]
        for module in modules:
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.data = parameter.data.clone()
            for name, values in module._buffers.items():
                if values is not None:
                    module._buffers[name] = values.clone()
        for name in self.configure_optimizers():
            groups = self._optimizer(name), net._optimizer(name)
            for whole, part in zip(*(o.param_groups for o in groups), strict=True):
                part.update({k: v for k, v in whole.items() if k != "params"})
                for p, own in zip(whole["params"], part["params"], strict=True):
                    state = groups[0].state.get(p, {})
                    groups[1].state[own] = {
                        key: _part(value, index, n) for key, value in state.items()
                    }


class _JointBatches:
    """Batches of all nets, one after the other along the axis of members."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = parts

    def __iter__(self) -> Iterator[Any]:
        for batches in zip(*self.parts, strict=True):
            yield _side_by_side(batches)


def _side_by_side(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return tuple(map(_side_by_side, zip(*parts, strict=True)))


def _hears(net: AlternatingNet, method_name: str) -> bool:
    """Return whether a callback of a net listens to batches."""
    idle = getattr(Callback, method_name)
    return any(
        getattr(type(callback), method_name) is not idle
        for _, callback in net.callbacks_
    )


def _joined(nets: list[AlternatingNet]) -> _Joint:
    """Return a net whose members are those of all nets, with views of its weights."""
    first, n = nets[0], len(nets)
    joint: Any = shallow_copy(first)
    joint.__class__ = type("Joint", (_Joint, type(first)), {})
    state = vars(joint)
    for name in _parts(first):
        modules = [getattr(net, f"{name}_") for net in nets]
        state[f"{name}_"] = _stacked(modules)
    joint.connect()
    state |= {
        "nets_": nets,
        "active_": [True] * n,
        "errors_": [None] * n,
        "released_": set(),
        "n_estimators": n * first.n_estimators,
        "history": History(),
        "on_interrupt": "raise",
    }
    state |= {name: _Draw(nets, name) for name in first.draws}
    for name in first.per_member or ():
        values = [getattr(net, name) for net in nets]
        if isinstance(values[0], Real) and len(set(values)) > 1:
            numbers = torch.tensor(values, dtype=torch.float32, device=first.device)
            state[name] = numbers.repeat_interleave(first.n_estimators)
    joint.initialize_optimizer()
    for name in joint.configure_optimizers():
        _join_states(joint._optimizer(name), [net._optimizer(name) for net in nets])
    return joint


def _parts(net: AlternatingNet) -> dict[str, nn.Module]:
    """Return the modules of a net that become part of a larger ensemble."""
    frozen = {name: getattr(net, f"{name}_") for name in net.frozen}
    return frozen | dict(net.module_.named_children())


class _Draw:
    """Draws of all nets, each by its own method."""

    def __init__(self, nets: Sequence[AlternatingNet], name: str):
        self.nets, self.name = nets, name

    def __call__(self, *sizes: int) -> Any:
        return _side_by_side([getattr(net, self.name)(*sizes) for net in self.nets])


def _stacked(modules: Sequence[nn.Module]) -> nn.Module:
    """Return a module with the weights of all, which get views of them."""
    n, stacked = len(modules), deepcopy(modules[0])
    for whole, *parts in zip(
        stacked.modules(), *(module.modules() for module in modules), strict=True
    ):
        for name, first in whole._parameters.items():
            if first is None:
                continue
            own = [part._parameters[name] for part in parts]
            data = torch.cat([tensor.detach() for tensor in own])
            whole._parameters[name] = nn.Parameter(data, first.requires_grad)
            for tensor, view in zip(own, data.chunk(n), strict=True):
                tensor.data = view
        for name, first in whole._buffers.items():
            if first is None:
                continue
            views: Sequence[Tensor] = [first] * n
            if first.ndim:
                data = torch.cat([part._buffers[name] for part in parts])
                whole._buffers[name], views = data, data.chunk(n)
            for part, view in zip(parts, views, strict=True):
                part._buffers[name] = view
        for size in _SIZES:
            if hasattr(whole, size):
                setattr(whole, size, n * getattr(whole, size))
    return stacked


def _join_states(
    joint: torch.optim.Optimizer, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Give an optimiser the states of all, from earlier runs."""
    groups = joint.param_groups, *(o.param_groups for o in optimizers)
    for whole, *parts in zip(*groups, strict=True):
        whole.update({k: v for k, v in parts[0].items() if k != "params"})
        columns = whole["params"], *(part["params"] for part in parts)
        for p, *own in zip(*columns, strict=True):
            states = [o.state.get(q, {}) for o, q in zip(optimizers, own, strict=True)]
            if states[0]:
                joint.state[p] = {
                    key: _whole([state[key] for state in states]) for key in states[0]
                }


def _whole(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim else first.clone()
    return first


def _part(value: Any, index: int, n: int) -> Any:
    if isinstance(value, Tensor):
        return (value.chunk(n)[index] if value.ndim else value).clone()
    return value
