"""The training engine: players take turns.

This is the only file in which gradients are taken and optimisers step. A method
says who plays (:meth:`AlternatingNet.players`) and in which order losses are to be
reduced (:meth:`AlternatingNet.turns`); the loop around them stands here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer
from skorch.history import History
from torch import Tensor, nn

from .exceptions import TrainingDivergedError

__all__ = [
    "AlternatingNet",
    "AverageWeights",
    "Batches",
    "KeepBest",
    "LinearDecay",
    "Player",
    "ProgressBar",
    "Rows",
    "StopTraining",
    "input_gradient",
]

#: The most that data may take of the host's memory before they are streamed.
HOST_BYTES = 4 * 2**30

Turn = tuple[str, Tensor] | tuple[tuple[str, Tensor], ...]


def input_gradient(function, points: Tensor) -> Tensor:
    """Return the gradient of `function` at `points`, itself differentiable.

    Parameters
    ----------
    function : callable
        Maps points to one value per point. One with a method ``input_gradient``
        of its own is asked for it instead.
    points : Tensor
        Where to take it.

    Returns
    -------
    Tensor with the shape of `points`
        The gradient at each point.
    """
    if hasattr(function, "input_gradient"):
        return function.input_gradient(points)
    points = points.detach().requires_grad_()
    value = function(points).sum()
    return torch.autograd.grad(value, points, create_graph=True)[0]


class StopTraining(Exception):  # noqa: N818
    """Raised by a callback to end a run early and regularly."""


class Player(NamedTuple):
    """One side of a game: the module whose parameters it moves, and how.

    Attributes
    ----------
    module : torch.nn.Module
        Its parameters, and no others, get gradients in this player's turns.
    optimizer : callable
        Takes the parameters, returns a :class:`torch.optim.Optimizer`.
    """

    module: nn.Module
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Rows:
    """The rows of a table, or images, as scaled float32 batches on a device.

    What fits stays on the device: tables scaled once, images of dtype uint8 as
    they are and scaled batch by batch. What does not fit stays where it is, in a
    memory map for one, and is read and scaled batch by batch.

    Parameters
    ----------
    X : ndarray of shape (n, d), (n, c, h, w) or (n, c, t, h, w)
        Finite numbers.
    scaler : fitted transformer or None
        Applied to rows; for uint8 images an
        :class:`~skanomaly.utils._scaling.ImageScaler`.
    device : str or torch.device
        Where batches are wanted.
    max_bytes : int or None
        The most to keep on the device. None: half of what is free on a CUDA
        device, 4 GiB elsewhere.
    """

    def __init__(self, X, scaler=None, device="cpu", max_bytes=None):
        self.X, self.scaler = X, scaler
        self.device, self.max_bytes = torch.device(device), max_bytes
        self.resident = self._to_device() if self._fits() else None
        self.chosen = torch.arange(len(X), device=self.device)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the scaled rows at `index`, any shape of int64."""
        return self.gather(self.chosen[index])

    def gather(self, index: Tensor) -> Tensor:
        """Return the scaled rows at `index` into the whole of X."""
        if self.resident is None:
            return self._scaled(self.X[index.cpu().numpy()])
        batch = self.resident[index]
        if batch.dtype == torch.uint8:
            scale, shift = self._affine
            batch = batch * scale + shift
        return batch

    def take(self, index: Tensor) -> Rows:
        """Return the rows at `index` as rows of their own, without a copy."""
        part = object.__new__(Rows)
        vars(part).update(vars(self), chosen=self.chosen[index])
        return part

    def head(self, n: int) -> Tensor:
        """Return the first rows, n at most."""
        return self[torch.arange(min(n, len(self)), device=self.device)]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.X.shape[1:]

    def __getstate__(self) -> dict:
        """Say what the rows are made of; hashes of rows rest on it."""
        return {
            "X": self.X,
            "scaler": self.scaler,
            "chosen": self.chosen.numpy(force=True),
        }

    def __setstate__(self, state: dict) -> None:
        """Make the rows anew, on the host."""
        Rows.__init__(self, state["X"], state["scaler"])
        self.chosen = torch.from_numpy(state["chosen"])

    def _fits(self) -> bool:
        limit = self.max_bytes
        if limit is None and self.device.type == "cuda":
            limit = torch.cuda.mem_get_info(self.device)[0] // 2
        elif limit is None:
            limit = HOST_BYTES
        return self.X.size * (1 if self.X.dtype == np.uint8 else 4) <= limit

    def _to_device(self) -> Tensor:
        if self.X.dtype != np.uint8:
            return self._scaled(self.X)
        scaler = self.scaler
        self._affine = (
            (1.0, 0.0)
            if scaler is None
            else (
                torch.as_tensor(scaler.scale_, device=self.device),
                torch.as_tensor(scaler.min_, device=self.device),
            )
        )
        return torch.tensor(self.X, device=self.device)

    def _scaled(self, rows: np.ndarray) -> Tensor:
        if self.scaler is not None:
            rows = self.scaler.transform(rows)
        return torch.tensor(rows, dtype=torch.float32, device=self.device)


class Batches:
    """One epoch of equal batches: slices of a random permutation of the rows.

    All batches have `batch_size` rows. With fewer rows than that, rows repeat.

    Parameters
    ----------
    rows : Rows
        Where batches come from.
    batch_size : int
        Rows per batch.
    n_batches : int
        Batches per epoch.
    n_copies : int
        For networks side by side: an epoch is then that many permutations, and a
        batch has the shape (n_copies, batch_size, ...). 0 for one network alone.
    rng : torch.Generator
        Draws the permutations.
    """

    def __init__(self, rows: Rows, batch_size, n_batches, n_copies, rng):
        self.rows, self.batch_size, self.n_batches = rows, batch_size, n_batches
        self.n_copies, self.rng = n_copies, rng

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches of fresh permutations."""
        for index in self.numbers():
            yield self.rows[index]

    def numbers(self) -> Iterator[Tensor]:
        """Yield the numbers of the rows, batch by batch."""
        order = torch.stack([self._order() for _ in range(self.n_copies or 1)])
        yield from (order if self.n_copies else order[0]).split(self.batch_size, -1)

    def _order(self):
        n, wanted = len(self.rows), self.n_batches * self.batch_size
        passes = -(-wanted // n)
        parts = [
            torch.randperm(n, generator=self.rng, device=self.rng.device)
            for _ in range(passes)
        ]
        return torch.cat(parts)[:wanted]


class AlternatingNet(NeuralNet, ABC):
    """Several modules, trained in turns by several players.

    A subclass writes :meth:`players` and :meth:`turns`, and may write
    :meth:`validate`. Each module given as ``modules={"critic": build}`` is built
    by the first :meth:`run` and is then found as ``self.critic_``.

    Parameters
    ----------
    modules : mapping of str to callable
        Name and, without arguments, the maker of each module.
    lr : float
        Learning rate, for :meth:`players` to read.
    batch_size : int
        Rows per batch.
    n_copies : int
        Number of networks side by side, each with batches of its own; 0 for one
        network alone.
    seed : int
        Makes the initial weights and every later draw. The caller's random state
        is not moved.
    device : str
        Where to train.
    precision : {"float32", "bfloat16"}
        "bfloat16" runs the turns under :func:`torch.autocast`.

    Attributes
    ----------
    step_ : int
        Batches seen so far.
    rng_ : torch.Generator
        For every draw in ``turns``; on the device of the net.
    interrupted_ : bool
        Whether the last run was ended from the keyboard.
    run_start_, first_step_ : int
        Epochs in ``history``, and steps, before the last run.
    """

    step_: int
    history: History

    def __init__(
        self,
        modules: Mapping[str, Callable[[], nn.Module]],
        *,
        lr: float = 1e-3,
        batch_size: int = 64,
        n_copies: int = 0,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "float32",
    ):
        super().__init__(
            module=None,
            criterion=None,
            lr=lr,
            batch_size=batch_size,
            train_split=None,
            predict_nonlinearity=None,
            verbose=0,
            device=device,
        )
        self.modules = modules
        self.n_copies = n_copies
        self.seed = seed
        self.precision = precision

    # What a method says ---------------------------------------------------------

    @abstractmethod
    def players(self) -> dict[str, Player]:
        """Return the players by name."""

    @abstractmethod
    def turns(self, batch: Tensor) -> Iterator[Turn]:
        """Yield ``(player, loss)`` in the order of the paper's algorithm.

        After each yield the engine takes the gradient of `loss` for that player's
        parameters and steps. These have changed in place then, so that nothing which
        was computed with them before may be used in a loss after it. Several pairs
        in one yield are played at once: all gradients first, then all steps.
        """

    def validate(self) -> dict[str, Tensor]:
        """Return figures on held-out rows, for :class:`KeepBest`."""
        return {}

    # The loop --------------------------------------------------------------------

    def run(self, rows, *, max_epochs: int, epoch_steps: int, callbacks=()):
        """Train for some epochs, from the start or on from the last run.

        Parameters
        ----------
        rows : Rows
            Where batches come from.
        max_epochs : int
            Epochs to train.
        epoch_steps : int
            Batches per epoch.
        callbacks : sequence of skorch.callbacks.Callback
            Called at the usual places of this run.

        Returns
        -------
        self
            The trained net.

        Raises
        ------
        TrainingDivergedError
            If a loss is infinite or NaN at the end of an epoch.
        """
        self.max_epochs, self.epoch_steps = max_epochs, epoch_steps
        self.callbacks = list(callbacks)
        if self.initialized_:
            self._initialize_callbacks()
        else:
            self.initialize()
        self.rng_ = torch.Generator(self.device).manual_seed(self.seed + self.step_)
        self.interrupted_, self.run_start_ = False, len(self.history)
        self.first_step_ = self.step_
        try:
            with self._own_randomness():
                return self.partial_fit(rows)
        finally:
            del self.rng_  # does not pickle

    def resume(self, other: AlternatingNet) -> None:
        """Go on from another net: its weights, momenta, history; own settings.

        Parameters
        ----------
        other : AlternatingNet
            A trained net with the same modules.

        Raises
        ------
        ValueError
            If the modules are of other sizes.
        """
        self.initialize()
        try:
            for name in self.modules:
                state = getattr(other, f"{name}_").state_dict()
                getattr(self, f"{name}_").load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                "warm_start goes on with the networks that there are; a change of "
                f"their sizes needs a fit without it. {error}"
            ) from error
        for name in self.players():
            optimizer, state = (
                self._optimizer(name),
                other._optimizer(name).state_dict(),
            )
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({**state, "param_groups": groups})
        self.history, self.step_ = deepcopy(other.history), other.step_

    @property
    def n_steps(self) -> int:
        """Batches in one run."""
        return self.max_epochs * self.epoch_steps

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return (self.step_ - self.first_step_) / self.n_steps

    def train_step(self, batch, **fit_params):
        """Play all turns of one batch."""
        turns = self.turns(batch)
        while True:
            with self._autocast():
                turn = next(turns, None)
            if turn is None:
                return
            self._play((turn,) if isinstance(turn[0], str) else turn)

    def _play(self, pairs):
        for k, (name, loss) in enumerate(pairs, 1):
            for parameter in self._moved[name]:
                parameter.grad = None
            # Losses of one turn may share a graph: only the last may free it.
            loss.backward(inputs=self._moved[name], retain_graph=k < len(pairs))
        for name, loss in pairs:
            self._optimizer(name).step()
            self.record(f"{name}_loss", loss.detach())

    def record(self, name: str, value: Tensor) -> None:
        """Add `value` to the epoch's mean of `name`, without waiting for it."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value, count + 1

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train on every batch, then read the losses: once an epoch."""
        if iterator is None:
            return
        self._set_training(True)
        self._sums = {}
        try:
            for batch in iterator:
                self.notify("on_batch_begin", batch=batch, training=True)
                step_fn(batch)
                self.step_ += 1
                self.notify("on_batch_end", batch=batch, training=True)
        finally:
            self._record_epoch()

    def _record_epoch(self):
        self._set_training(False)
        means = {name: total / n for name, (total, n) in self._sums.items()}
        if not means:
            return
        values = torch.stack([torch.as_tensor(v).float() for v in means.values()])
        for name, value in zip(means, values.tolist(), strict=True):
            if not np.isfinite(value):
                raise TrainingDivergedError(
                    f"{name} became {value} in epoch {len(self.history)} of "
                    f"{type(self).__name__}. A lower `lr`, scaled inputs "
                    f"(`scaling='auto'`) or `precision='float32'` help."
                )
            self.history.record(name, value)

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Run the epochs; end early on a callback's or the user's word."""
        players = self.players()
        self._moved = {k: list(p.module.parameters()) for k, p in players.items()}
        try:
            super().fit_loop(X, y, epochs, **fit_params)
        except StopTraining:
            pass
        except KeyboardInterrupt:
            self.interrupted_ = True
        finally:
            del self._moved
            self._set_training(False)
        return self

    def notify(self, method_name, **cb_kwargs):
        """Call the callbacks; one that interrupts at an epoch's end ends the run."""
        try:
            super().notify(method_name, **cb_kwargs)
        except KeyboardInterrupt as interrupt:
            # skorch's EarlyStopping stops a run by this exception.
            if method_name == "on_epoch_end":
                raise StopTraining from interrupt
            raise

    # What skorch asks for --------------------------------------------------------

    def initialize(self):
        """Build modules and optimisers, from the seed."""
        self.step_ = 0
        with self._own_randomness():
            super().initialize()
        self._set_training(False)  # what is not being trained is to be judged
        return self

    def initialize_module(self):
        """Build the modules."""
        for name, build in self.modules.items():
            setattr(self, f"{name}_", build())
        return self

    def initialize_criterion(self):
        """Do nothing: losses come from the turns."""
        return self

    def initialize_optimizer(self, triggered_directly=None):
        """Give each player its own optimiser."""
        for name, player in self.players().items():
            optimizer = player.optimizer(list(player.module.parameters()))
            setattr(self, f"optimizer_{name}_", optimizer)
        return self

    def get_dataset(self, X, y=None):
        """Return the rows as they are."""
        return X

    def get_iterator(self, dataset, training=False):
        """Return batches that are slices of the resident rows."""
        return Batches(
            dataset, self.batch_size, self.epoch_steps, self.n_copies, self.rng_
        )

    @property
    def _default_callbacks(self):
        return [("epoch_timer", EpochTimer())]

    def __getstate__(self):
        # Callbacks hold what does not pickle, such as a progress bar, and serve
        # the run that they were made for alone.
        return super().__getstate__() | {"callbacks": [], "callbacks_": []}

    def _optimizer(self, name):
        return getattr(self, f"optimizer_{name}_")

    def _autocast(self):
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    @contextmanager
    def _own_randomness(self):
        device = torch.device(self.device)
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(self.seed)
            for index in cuda:
                with torch.cuda.device(index):
                    torch.cuda.manual_seed(self.seed)
            yield


class LinearDecay(Callback):
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

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Remember the rates to start from."""
        self.groups_ = [
            (group, group.setdefault("initial_lr", group["lr"]))
            for name in net.players()
            for group in net._optimizer(name).param_groups
        ]
        self._set(0.0)

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        """Set the rates for the next step."""
        self._set(max(net.progress - self.begin, 0.0) / (1 - self.begin))

    def _set(self, done):
        for group, lr in self.groups_:
            group["lr"] = lr * (1 - (1 - self.final) * done)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Let go of the optimisers."""
        del self.groups_


class AverageWeights(Callback):
    """Keep a moving average of the weights; put it in place at the end.

    The weights of a game circle around what they are after; their average is
    nearer to it. Running means of batch normalisation are averaged with them.

    Parameters
    ----------
    decay : float
        In [0, 1): the share of itself that the average keeps at each step. Until
        that many steps are done, it is the plain mean of the weights after each.
    """

    def __init__(self, decay: float):
        self.decay = decay

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Start from the weights that there are."""
        modules = [player.module for player in net.players().values()]
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
    bar : tqdm.tqdm
        Counts steps; whoever made it closes it.
    label : str
        Name of the stage.
    """

    def __init__(self, bar, label: str):
        self.bar = bar
        self.label = label

    def on_epoch_begin(self, net, **kwargs):
        """Show stage and epoch."""
        epoch = f"{len(net.history) - net.run_start_}/{net.max_epochs}"
        self.bar.set_description(f"{self.label}, epoch {epoch}", refresh=False)

    def on_batch_end(self, net, **kwargs):
        """Count a step."""
        self.bar.update()

    def on_epoch_end(self, net, **kwargs):
        """Show the epoch's losses."""
        row = net.history[-1]
        shown = {k: f"{v:.3g}" for k, v in row.items() if k.endswith("_loss")}
        self.bar.set_postfix(shown, refresh=False)
