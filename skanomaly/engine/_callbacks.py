"""Callbacks of a run: learning rates, averages of weights, early stopping, a bar."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..exceptions import StopTraining
from ._bar import Bar

if TYPE_CHECKING:
    from ._net import AlternatingNet


class RateSchedule(Callback, ABC):
    """A schedule of all learning rates over a run, which a subclass defines."""

    # torch's LambdaLR takes 2.4 µs a step instead of 0.4, and warns if a player has not
    # stepped yet, such as a generator that waits for its critic.

    @abstractmethod
    def share(self, progress: float) -> float:
        """Return the factor of the initial rate at a progress in [0, 1]."""

    def on_train_begin(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Store the initial rates."""
        self.optimizers_ = [net._optimizer(name) for name in net.configure_optimizers()]
        for group in self._groups():
            group.setdefault("initial_lr", group["lr"])
        self._set(0.0)

    def on_batch_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Set the rates of the next step."""
        self._set(net.progress)

    def _set(self, progress: float) -> None:
        share = self.share(progress)
        for group in self._groups():
            group["lr"] = group["initial_lr"] * share

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers_:
            yield from optimizer.param_groups

    def on_train_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Release the optimisers."""
        del self.optimizers_


class LinearDecay(RateSchedule):
    """A linear decay of all learning rates over a run, or over its last part.

    Parameters
    ----------
    final : float
        The final rate, as a share of the initial rate.
    begin : float
        Share of the run, in [0, 1), with constant rates.
    """

    def __init__(self, final: float = 0.1, begin: float = 0.0):
        self.final = final
        self.begin = begin

    def share(self, progress: float) -> float:
        """Return the factor of the initial rate."""
        done = max(progress - self.begin, 0.0) / (1 - self.begin)
        return 1 - (1 - self.final) * done


class StepDecay(RateSchedule):
    """Learning rates that drop at given points of a run.

    Parameters
    ----------
    points : sequence of float
        Shares of the run, in (0, 1).
    factor : float
        Factor of the rates at each point.
    """

    def __init__(self, points: Sequence[float] = (2 / 3, 5 / 6), factor: float = 0.1):
        self.points = points
        self.factor = factor

    def share(self, progress: float) -> float:
        """Return the factor of the initial rate."""
        return self.factor ** sum(progress >= point for point in self.points)


class AverageWeights(Callback):
    """A moving average of the weights, which replaces them at the end of a run.

    The weights of adversarial networks circle around their optimum, and their average
    is nearer to it. The running statistics of batch normalisation are averaged too.

    Parameters
    ----------
    decay : float
        Weight of the old average at each step, in [0, 1). During the first
        1 / (1 - decay) steps the average is the arithmetic mean of the weights so far.
    players : sequence of str or None
        Players whose weights are averaged; None takes all players.
    """

    # torch's AveragedModel copies the modules, and takes 115 µs a step instead of 11.

    def __init__(self, decay: float, players: Sequence[str] | None = None):
        self.decay = decay
        self.players = players

    def on_train_begin(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Initialise the average with the current weights."""
        players = net.configure_optimizers()
        names = players if self.players is None else self.players
        modules = [players[name].module for name in names]
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self.weights_ = [t for t in tensors if t.is_floating_point()]
        self.average_ = [t.detach().clone() for t in self.weights_]
        self.n_averaged_ = 0

    def on_batch_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Update the average."""
        update = get_ema_multi_avg_fn(self.decay_after(self.n_averaged_))
        update(self.average_, self.weights_, self.n_averaged_)
        self.n_averaged_ += 1

    def decay_after(self, n_steps: int) -> float:
        """Return the weight of the old average after some steps."""
        return min(self.decay, n_steps / (n_steps + 1))

    @torch.no_grad()
    def on_train_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Replace the weights."""
        for weight, final in zip(self.weights_, self.final_weights(), strict=True):
            weight.copy_(final)
        del self.weights_, self.average_, self.n_averaged_

    def final_weights(self) -> list[Tensor]:
        """Return the weights for the end of the run."""
        return self.average_


class KeepBest(AverageWeights):
    """Early stopping on held-out samples, which restores the best weights.

    The initial weights are candidates too, so that training cannot make the metric
    worse.

    Parameters
    ----------
    monitor : str
        A metric that :meth:`AlternatingNet.validate` returns; lower is better.
    patience : int
        Epochs to wait for a lower value.
    decay : float
        Decay of the moving average that is evaluated and kept, in [0, 1). 0 evaluates
        the weights themselves.
    """

    def __init__(
        self, monitor: str = "valid_loss", patience: int = 5, decay: float = 0.0
    ):
        super().__init__(decay)
        self.monitor = monitor
        self.patience = patience

    def on_train_begin(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Take the initial weights as the best so far."""
        super().on_train_begin(net)
        self.lowest_, self.waited_ = np.inf, 0
        self._evaluate(net)

    def on_epoch_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Evaluate the average, and stop after `patience` epochs."""
        net.history.record(self.monitor, self._evaluate(net))
        net.history.record(f"{self.monitor}_best", self.waited_ == 0)
        if self.waited_ > self.patience:
            raise StopTraining

    def on_train_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Restore the best weights."""
        super().on_train_end(net)
        del self.best_

    def decay_after(self, n_steps: int) -> float:
        """Return a constant decay, which keeps the initial weights in the average."""
        return self.decay

    def final_weights(self) -> list[Tensor]:
        """Return the best weights."""
        return self.best_

    def _evaluate(self, net: AlternatingNet) -> float:
        self._swap()
        with torch.no_grad():
            value = float(net.validate()[self.monitor])
        self._swap()
        self.waited_ += 1
        if value <= self.lowest_:  # of equal values, the latest has trained longest
            self.lowest_, self.waited_ = value, 0
            self.best_ = [average.clone() for average in self.average_]
        return value

    def _swap(self) -> None:
        """Exchange weights and average in the modules."""
        for average, weight in zip(self.average_, self.weights_, strict=True):
            average.data, weight.data = weight.data, average.data


class ProgressBar(Callback):
    """A bar over all stages of a fit: losses, epochs, the time left.

    Parameters
    ----------
    bar : Bar
        The bar to advance; the caller closes it.
    label : str
        Name of the stage.
    """

    def __init__(self, bar: Bar, label: str):
        self.bar = bar
        self.label = label

    def on_epoch_begin(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Show stage and epoch."""
        self._show(net)

    def on_batch_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Count a step."""
        self.bar.advance()

    def on_epoch_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Show the epoch's losses."""
        row = net.history[-1].items()
        losses = {k.removesuffix("_loss"): v for k, v in row if k.endswith("_loss")}
        self._show(net, losses)

    def _show(
        self, net: AlternatingNet, losses: Mapping[str, float] | None = None
    ) -> None:
        epoch = f"{len(net.history) - net.run_start_}/{net.max_epochs}"
        self.bar.show(f"{self.label}, epoch {epoch}", losses)
