"""What goes on around the steps of a run: rates, averages, early stopping, a bar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor

from ..exceptions import StopTraining
from ._bar import Bar


class RateSchedule(Callback, ABC):
    """Change all learning rates along a run; a subclass says how."""

    @abstractmethod
    def share(self, progress: float) -> float:
        """Return the rate, as a share of the first one, at a progress in [0, 1]."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Remember the rates to start from."""
        self.groups_ = [
            (group, group.setdefault("initial_lr", group["lr"]))
            for name in net.configure_optimizers()
            for group in net._optimizer(name).param_groups
        ]
        self._set(0.0)

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        """Set the rates for the next step."""
        self._set(net.progress)

    def _set(self, progress):
        for group, lr in self.groups_:
            group["lr"] = lr * self.share(progress)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Let go of the optimisers."""
        del self.groups_


class LinearDecay(RateSchedule):
    """Lower all learning rates linearly over a run, or its last part.

    Parameters
    ----------
    final : float
        The last learning rate, as a share of the first one.
    begin : float
        Share of the run, in [0, 1), after which they fall.
    """

    def __init__(self, final: float = 0.1, begin: float = 0.0):
        self.final = final
        self.begin = begin

    def share(self, progress: float) -> float:
        """Return the rate as a share of the first one."""
        done = max(progress - self.begin, 0.0) / (1 - self.begin)
        return 1 - (1 - self.final) * done


class StepDecay(RateSchedule):
    """Lower all learning rates at certain points of a run.

    Parameters
    ----------
    points : sequence of float
        Shares of the run, in (0, 1).
    factor : float
        What the rates are multiplied by at each of them.
    """

    def __init__(self, points: Sequence[float] = (2 / 3, 5 / 6), factor: float = 0.1):
        self.points = points
        self.factor = factor

    def share(self, progress: float) -> float:
        """Return the rate as a share of the first one."""
        return self.factor ** sum(progress >= point for point in self.points)


class AverageWeights(Callback):
    """Keep a moving average of the weights; put it in place at the end.

    The weights of a game circle around what they are after; their average is
    nearer to it. Running means of batch normalisation are averaged with them.

    Parameters
    ----------
    decay : float
        In [0, 1): the share of itself that the average keeps at each step. Until
        1 / (1 - decay) steps are done, it is the plain mean of the weights after each.
    players : sequence of str or None
        Whose weights are averaged; None takes all players.
    """

    def __init__(self, decay: float, players: Sequence[str] | None = None):
        self.decay = decay
        self.players = players

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Start from the weights that there are."""
        players = net.configure_optimizers()
        names = players if self.players is None else self.players
        modules = [players[name].module for name in names]
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self.weights_ = [t for t in tensors if t.is_floating_point()]
        self.average_ = [t.detach().clone() for t in self.weights_]
        self.seen_ = 0

    @torch.no_grad()
    def on_batch_end(self, net, **kwargs):
        """Move the average."""
        share = 1 - self.decay_after(self.seen_)
        for average, weight in zip(self.average_, self.weights_, strict=True):
            average.lerp_(weight, share)
        self.seen_ += 1

    def decay_after(self, n_steps: int) -> float:
        """Return what the average keeps of itself after some steps."""
        return min(self.decay, n_steps / (n_steps + 1))

    @torch.no_grad()
    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Put what is kept in place."""
        for weight, kept in zip(self.weights_, self.kept(), strict=True):
            weight.copy_(kept)
        del self.weights_, self.average_, self.seen_

    def kept(self) -> list[Tensor]:
        """Return what takes the place of the weights."""
        return self.average_


class KeepBest(AverageWeights):
    """Stop when a held-out figure has stopped falling; keep the best weights.

    The weights before the first step take part, so that training cannot make the
    figure worse.

    Parameters
    ----------
    monitor : str
        Name of a figure that :meth:`AlternatingNet.validate` returns.
    patience : int
        Epochs to wait for a better one.
    decay : float
        In [0, 1). What is judged and kept is a moving average of the weights that
        keeps this share of itself at each step; 0 is the weights themselves.
    """

    def __init__(self, monitor="valid_loss", patience=5, decay=0.0):
        super().__init__(decay)
        self.monitor = monitor
        self.patience = patience

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Take the weights at the start as the best so far."""
        super().on_train_begin(net)
        self.lowest_, self.waited_ = np.inf, 0
        self._judge(net)

    def on_epoch_end(self, net, **kwargs):
        """Judge the average, and stop after too long a wait."""
        net.history.record(self.monitor, self._judge(net))
        net.history.record(f"{self.monitor}_best", self.waited_ == 0)
        if self.waited_ > self.patience:
            raise StopTraining

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Put the best weights in place."""
        super().on_train_end(net)
        del self.best_

    def decay_after(self, n_steps: int) -> float:
        """Return the same for all steps: the weights before the first one count."""
        return self.decay

    def kept(self) -> list[Tensor]:
        """Return the best weights."""
        return self.best_

    def _judge(self, net):
        self._swap()
        with torch.no_grad():
            value = float(net.validate()[self.monitor])
        self._swap()
        self.waited_ += 1
        if value <= self.lowest_:  # of equals the last: it has been trained longer
            self.lowest_, self.waited_ = value, 0
            self.best_ = [average.clone() for average in self.average_]
        return value

    def _swap(self):
        for average, weight in zip(self.average_, self.weights_, strict=True):
            average.data, weight.data = weight.data, average.data


class ProgressBar(Callback):
    """One bar over all stages of a fit: losses, epochs, the time left.

    Parameters
    ----------
    bar : Bar
        Counts steps; whoever made it closes it.
    label : str
        Name of the stage.
    """

    def __init__(self, bar: Bar, label: str):
        self.bar = bar
        self.label = label

    def on_epoch_begin(self, net, **kwargs):
        """Show stage and epoch."""
        self._tell(net)

    def on_batch_end(self, net, **kwargs):
        """Count a step."""
        self.bar.advance()

    def on_epoch_end(self, net, **kwargs):
        """Show the epoch's losses."""
        row = net.history[-1].items()
        self._tell(
            net, {k.removesuffix("_loss"): v for k, v in row if k.endswith("_loss")}
        )

    def _tell(self, net, losses=None):
        epoch = f"{len(net.history) - net.run_start_}/{net.max_epochs}"
        self.bar.tell(f"{self.label}, epoch {epoch}", losses)
