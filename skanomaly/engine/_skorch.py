"""The interface of skorch: methods of its nets, and the callbacks that work here."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from itertools import takewhile
from typing import Any

import skorch.callbacks as of_skorch
import torch
from skorch import NeuralNet
from skorch.callbacks.scoring import ScoringBase
from skorch.exceptions import NotInitializedError

from ..utils._warnings import warn

_NEEDS_TARGETS = (
    "needs a net with one optimizer, targets and predictions. The nets of detectors "
    "have several optimizers, and record losses only: see net.history."
)
#: Callbacks that would do nothing, or fail, with the reason and an alternative.
_REFUSED: dict[type, str] = {
    of_skorch.LRScheduler: _NEEDS_TARGETS,
    ScoringBase: _NEEDS_TARGETS,
    of_skorch.PassthroughScoring: _NEEDS_TARGETS,
    of_skorch.LoadInitState: (
        "reads the weights of one net, and a detector may have several, one per stage. "
        "To continue training, load a detector by skanomaly.load and fit it with "
        "warm_start=True."
    ),
    of_skorch.InputShapeSetter: (
        "sets a parameter that the networks of detectors lack. They are built for the "
        "shape of X, which functions in `architecture` receive."
    ),
    of_skorch.ProgressBar: (
        "counts batches in net.history, which records epochs only. Use verbose=1."
    ),
}


class Optimizers:
    """The optimisers of all players, saved and loaded as one."""

    def __init__(self, by_player: Mapping[str, torch.optim.Optimizer]):
        self.by_player = by_player

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each optimiser, by player."""
        return {name: one.state_dict() for name, one in self.by_player.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of each optimiser."""
        for name, one in self.by_player.items():
            one.load_state_dict(state[name])


class _Unavailable:
    """A method of skorch's NeuralNet that a net with several modules lacks.

    ``hasattr`` is False on an instance, as with scikit-learn's ``available_if``:
    scikit-learn and skorch test for the abilities of an estimator by it.
    """

    def __init__(self, reason: str):
        self.reason = reason

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, net: Any, owner: type | None = None) -> _Unavailable:
        if net is None:
            return self
        raise AttributeError(
            f"{type(net).__name__} has no method {self.name}: {self.reason}"
        )


_TRAINED = "a detector trains its nets. Call the detector's fit."
_SCORED = (
    "a net has several modules and no predictions. Call the detector's score_samples, "
    "decision_function or predict."
)


class SeveralModulesNet(NeuralNet):
    """The part of skorch's NeuralNet that works with several modules.

    It consists of callbacks, history, parameters, and files of weights and optimiser
    states.
    """

    fit = _Unavailable(_TRAINED)
    partial_fit = _Unavailable(_TRAINED)
    fit_loop = _Unavailable(_TRAINED)
    run_single_epoch = _Unavailable(_TRAINED)
    train_step = _Unavailable(_TRAINED)
    train_step_single = _Unavailable(_TRAINED)
    get_train_step_accumulator = _Unavailable(_TRAINED)
    check_data = _Unavailable(_TRAINED)
    get_dataset = _Unavailable(_TRAINED)
    get_split_datasets = _Unavailable(_TRAINED)
    get_iterator = _Unavailable(_TRAINED)
    get_metadata_routing = _Unavailable(_TRAINED)
    set_fit_request = _Unavailable(_TRAINED)
    set_partial_fit_request = _Unavailable(_TRAINED)
    validation_step = _Unavailable(_SCORED)
    evaluation_step = _Unavailable(_SCORED)
    get_loss = _Unavailable(_SCORED)
    infer = _Unavailable(_SCORED)
    forward = _Unavailable(_SCORED)
    forward_iter = _Unavailable(_SCORED)
    predict = _Unavailable(_SCORED)
    predict_proba = _Unavailable(_SCORED)
    trim_for_prediction = _Unavailable(_SCORED)

    def check_is_fitted(
        self, attributes: Any = None, *, msg: str | None = None, **options: Any
    ) -> None:
        """Raise a NotInitializedError if the modules are not built yet."""
        if not self.initialized_:
            raise NotInitializedError(msg or "The modules are not built yet.")

    def save_params(self, *arguments: Any, **options: Any) -> None:
        """Write weights, optimiser states or history to files; warn of a failure."""
        try:
            super().save_params(*arguments, **options)
        except Exception as error:  # callbacks of skorch would hide it
            warn(f"A callback could not save a net: {error}")
            raise

    def _get_param_names(self) -> list[str]:
        """Return the parameters of the constructors of all subclasses of NeuralNet."""
        below = takewhile(lambda cls: cls is not NeuralNet, type(self).__mro__)
        parameters = {
            parameter.name: parameter.kind
            for cls in below
            if "__init__" in vars(cls)
            for parameter in signature(vars(cls)["__init__"]).parameters.values()
        }
        del parameters["self"]
        return [name for name, kind in parameters.items() if kind.name != "VAR_KEYWORD"]


def check_callback(callback: Any) -> Any:
    """Return a callback, or raise an error if it cannot work with these nets.

    Parameters
    ----------
    callback : skorch.callbacks.Callback, or tuple of str and Callback
        The callback, or a name and the callback.

    Raises
    ------
    ValueError
        If it is no callback, or one that needs targets, predictions or one optimiser.
    """
    named = isinstance(callback, tuple) and len(callback) == 2
    instance = callback[1] if named else callback
    if not isinstance(instance, of_skorch.Callback):
        raise ValueError(
            f"callbacks has {instance!r}; it takes instances of "
            "skorch.callbacks.Callback."
        )
    if reason := _reason(instance):
        name = type(instance).__name__
        raise ValueError(f"callbacks has {name} of skorch, which {reason}")
    return callback


def _reason(callback: of_skorch.Callback) -> str | None:
    """Return the reason to refuse a callback, or None."""
    for kind, reason in _REFUSED.items():
        if isinstance(callback, kind):
            return reason
    if isinstance(callback, of_skorch.PrintLog) and callback.sink is print:
        return (
            "prints nothing unless it is given a sink, as in "
            "PrintLog(sink=logging.info). verbose=1 shows a bar with the losses."
        )
    if getattr(callback, "f_pickle", None) is not None:
        return (
            "pickles a net together with the training data (f_pickle). Use "
            "skanomaly.save, or pickle the fitted detector."
        )
    if getattr(callback, "log_on_batch_end", False):
        return "logs batches (log_on_batch_end), and net.history records epochs only."
    return None


def check_monitor(callback: of_skorch.Callback, row: Mapping[str, Any]) -> None:
    """Raise an error if a callback monitors a loss that this stage does not record.

    Parameters
    ----------
    callback : skorch.callbacks.Callback
        A callback at the end of an epoch.
    row : mapping
        Record of that epoch in the history of the net.

    Raises
    ------
    ValueError
        If the epoch has losses, and the monitor is not in its record.
    """
    if not isinstance(callback, of_skorch.EarlyStopping | of_skorch.Checkpoint):
        return
    monitor = callback.monitor
    losses = sorted(name for name in row if name.endswith("_loss"))
    if not losses or not isinstance(monitor, str) or monitor in row:
        return
    best = isinstance(callback, of_skorch.Checkpoint)
    recorded = [f"{name}_best" if best else name for name in losses]
    raise ValueError(
        f"{type(callback).__name__} of skorch monitors {monitor!r}, which this stage "
        f"of the training does not record; it records {recorded}. Callbacks are called "
        "in all stages, and each of them has to record the monitor."
        + (" None, or a function of the net, works in all stages." if best else "")
        + " To monitor one stage, write a callback that ignores the others."
    )
