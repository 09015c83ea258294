"""What callbacks of skorch are given by a net here, and which of them ask in vain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import skorch.callbacks as of_skorch
import torch
from skorch.callbacks.scoring import ScoringBase

_LOSSES_ALONE = (
    "is for nets with one optimizer, targets and predictions. Those of a detector have "
    "several players, and losses alone: see net.history."
)
#: Callbacks that would do nothing, or fail: why, and what to do instead.
_REFUSED: dict[type, str] = {
    of_skorch.LRScheduler: _LOSSES_ALONE,
    ScoringBase: _LOSSES_ALONE,
    of_skorch.PassthroughScoring: _LOSSES_ALONE,
    of_skorch.LoadInitState: (
        "reads the weights of one net, and a detector may have several, one per stage. "
        "To go on with a detector, take one of skanomaly.load and fit it with "
        "warm_start=True."
    ),
    of_skorch.InputShapeSetter: (
        "sets a parameter that the networks of a detector do not have. They are built "
        "for the rows of fit; functions in `architecture` are told the shape."
    ),
    of_skorch.ProgressBar: (
        "counts batches in net.history, which has epochs alone. verbose=1 shows a bar."
    ),
}


class Optimizers:
    """The optimizers of all players, as if they were one that is saved and loaded."""

    def __init__(self, by_player: Mapping[str, torch.optim.Optimizer]):
        self.by_player = by_player

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each, by player."""
        return {name: one.state_dict() for name, one in self.by_player.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each of them back its state."""
        for name, one in self.by_player.items():
            one.load_state_dict(state[name])


def checked(callback):
    """Return a callback, unless it asks for what no net here has."""
    named = isinstance(callback, tuple) and len(callback) == 2
    called = callback[1] if named else callback
    if not isinstance(called, of_skorch.Callback):
        raise ValueError(
            f"callbacks has {called!r}, and is for instances of "
            "skorch.callbacks.Callback."
        )
    if reason := _reason(called):
        name = type(called).__name__
        raise ValueError(f"callbacks has {name} of skorch, which {reason}")
    return callback


def _reason(called):
    """Return why a callback is refused, or None."""
    for kind, reason in _REFUSED.items():
        if isinstance(called, kind):
            return reason
    if isinstance(called, of_skorch.PrintLog) and called.sink is print:
        return (
            "prints nothing unless it has a sink of its own, as in "
            "PrintLog(sink=logging.info). verbose=1 shows a bar with the losses."
        )
    if getattr(called, "f_pickle", None) is not None:
        return (
            "pickles a net (f_pickle) while it holds the rows. skanomaly.save and "
            "pickle keep the fitted detector."
        )
    if getattr(called, "log_on_batch_end", False):
        return "logs batches (log_on_batch_end), and net.history has epochs alone."
    return None


def check_monitor(callback, row: Mapping[str, Any]) -> None:
    """Raise an error if a callback watches what this stage does not record.

    Parameters
    ----------
    callback : skorch.callbacks.Callback
        It is about to look at the last row of a net's history.
    row : mapping
        That row.
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
        f"{type(callback).__name__} of skorch watches {monitor!r}, which this stage of "
        f"the training does not record; it has {recorded}. Callbacks are called in all "
        "stages, and a monitor has to be recorded in each of them"
        + ("; None, or a function of the net, always is." if best else ".")
        + " To watch one stage, write a callback that passes over the others."
    )
