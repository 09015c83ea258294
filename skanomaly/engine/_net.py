"""The training loop, with several optimisers.

This is the only file in which gradients are taken and optimisers step. A method
declares its players, a module and its optimiser each
(:meth:`AlternatingNet.configure_optimizers`), and the losses of one batch in their
order (:meth:`AlternatingNet.training_step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from threading import RLock
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, EpochTimer
from skorch.history import History
from torch import Tensor, nn

from ..exceptions import StopTraining, TrainingDivergedError
from ..utils._process import single_precision
from ..utils._warnings import warn
from ._dataset import Batches
from ._skorch import Optimizers, check_monitor, checked

Turn = tuple[str, Tensor] | tuple[tuple[str, Tensor], ...]

#: Held while torch's generator, of which there is one, is on loan to a net.
_RANDOMNESS = RLock()


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


class MomentumFreeAdam(torch.optim.RMSprop):
    """Adam whose first decay is 0, without the moment that is then the gradient.

    Half of Adam's memory, and the same steps: RMSprop with the bias of its running
    mean of squares corrected, in the rate and in `eps`.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
        What it moves.
    lr : float
        Learning rate.
    beta2 : float
        In [0, 1): what the running mean of squares keeps of itself at each step.
    eps : float
        Added to the root of that mean.
    """

    def __init__(self, params, lr: float, beta2: float = 0.99, eps: float = 1e-8):
        super().__init__(params, lr=lr, alpha=beta2, eps=eps, foreach=True)

    def step(self, closure=None):
        """Move the parameters that have a gradient."""
        before = [(group["lr"], group["eps"]) for group in self.param_groups]
        for group in self.param_groups:
            states = [self.state[p] for p in group["params"] if p in self.state]
            n_steps = 1 + max((float(state["step"]) for state in states), default=0.0)
            correction = (1 - group["alpha"] ** n_steps) ** 0.5
            group["lr"] *= correction
            group["eps"] *= correction
        try:
            return super().step(closure)
        finally:
            for group, (lr, eps) in zip(self.param_groups, before, strict=True):
                group.update(lr=lr, eps=eps)


class Player(NamedTuple):
    """One side of a game: the module whose parameters it moves, and how.

    Attributes
    ----------
    module : torch.nn.Module
        Its parameters, and no others, get gradients in this player's turns.
    optimizer : callable
        Takes the parameters, returns a :class:`torch.optim.Optimizer`.
    max_norm : float or None
        The longest gradient to follow; a longer one is shortened to that.
    """

    module: nn.Module
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    max_norm: float | None = None


class AlternatingNet(NeuralNet, ABC):
    """Several modules, trained in turns by several players.

    A subclass writes :meth:`configure_optimizers` and :meth:`training_step`, and may
    write :meth:`validate`. Each module given as ``modules={"critic": build}`` is built
    by the first :meth:`run` and is then found as ``self.critic_``.

    Parameters
    ----------
    modules : mapping of str to callable
        Name and, without arguments, the maker of each module.
    lr : float
        Learning rate, for :meth:`configure_optimizers` to read.
    batch_size : int
        Rows per batch.
    n_estimators : int
        Number of networks side by side, each with batches of its own; 0 for one
        network alone.
    seed : int
        Makes the initial weights and every later draw. The caller's random state
        is not moved.
    device : str
        Where to train.
    precision : {"float32", "bfloat16"}
        "bfloat16" runs the turns under :func:`torch.autocast`.
    on_interrupt : {"raise", "keep"}
        Whether an interrupt from the keyboard comes out of a run, or ends it.

    Attributes
    ----------
    step_, resumed_ : int
        Batches seen so far, and those of them that another net had seen, from which
        this one goes on.
    rng_ : torch.Generator
        For every draw in ``training_step``; on the device of the net.
    interrupted_, ended_ : bool
        Whether the last run was ended from the keyboard, or by a callback within an
        epoch.
    run_start_, first_step_ : int
        Epochs in ``history``, and steps, before the last run.
    """

    step_: int
    resumed_: int
    history: History
    #: The longest gradient of each player, in a run.
    _longest: Mapping[str, float | None] = MappingProxyType({})

    def __init__(
        self,
        modules: Mapping[str, Callable[[], nn.Module]],
        *,
        lr: float = 1e-3,
        batch_size: int = 64,
        n_estimators: int = 0,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "float32",
        on_interrupt: str = "raise",
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
        self.n_estimators = n_estimators
        self.seed = seed
        self.precision = precision
        self.on_interrupt = on_interrupt

    # What a method says ---------------------------------------------------------

    @abstractmethod
    def configure_optimizers(self) -> dict[str, Player]:
        """Return the players by name."""

    @abstractmethod
    def training_step(self, batch: Tensor) -> Iterator[Turn]:
        """Yield ``(player, loss)`` in the order of the paper's algorithm.

        After each yield the engine takes the gradient of `loss` for that player's
        parameters and steps. These have changed in place then, so that nothing which
        was computed with them before may be used in a loss after it. Several pairs
        in one yield are played at once: all gradients first, then all steps.
        """

    def validate(self) -> dict[str, Tensor]:
        """Return figures on held-out rows: "valid_loss" is what KeepBest looks at."""
        return {}

    # What it offers for that ----------------------------------------------------

    def for_members(self, batch: Tensor) -> Tensor:
        """Repeat a batch (n, ...) for each member of an ensemble, (k, n, ...)."""
        k = self.n_estimators
        return batch.expand(k, *batch.shape) if k else batch

    @contextmanager
    def temporary(self, **data: Any) -> Iterator[None]:
        """Set attributes for the length of a run, so that no pickle holds the data."""
        for name, value in data.items():
            setattr(self, name, value)
        try:
            yield
        finally:
            for name in data:
                delattr(self, name)

    def draw_noise(self, n: int, length: int, rng=None) -> Tensor:
        """Return standard normal numbers for networks side by side, (k, n, length)."""
        shape = self.n_estimators, n, length
        draw = {"generator": rng or self.rng_, "device": self.device}
        return torch.randn(shape, dtype=torch.float32, **draw)

    # The loop --------------------------------------------------------------------

    def run(self, rows, *, max_epochs: int, epoch_steps: int, callbacks=()):
        """Train for some epochs, from the start or on from the last run.

        Parameters
        ----------
        rows : DeviceDataset
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
        ValueError
            If a callback is for nets with one optimiser and predictions.
        KeyboardInterrupt
            If the run was interrupted, and is not to be kept.
        """
        self.max_epochs, self.epoch_steps = max_epochs, epoch_steps
        # Of a run without epochs there is nothing to be told.
        self.callbacks = [checked(callback) for callback in callbacks if max_epochs]
        if self.initialized_:
            self._initialize_callbacks()
        else:
            self.initialize()
        self.rng_ = torch.Generator(self.device).manual_seed(self.seed + self.step_)
        self.interrupted_ = self.ended_ = False
        self.run_start_ = len(self.history)
        self.first_step_ = self.step_
        try:
            with self._own_randomness():
                self.partial_fit(rows)
        finally:
            del self.rng_  # does not pickle
        # The net as a whole would have swallowed what came out of the loop.
        if self.interrupted_ and self.on_interrupt == "raise":
            raise KeyboardInterrupt
        return self

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
            frozen = dict(other.get_all_learnable_params())
            for name, parameter in self.get_all_learnable_params():
                parameter.requires_grad_(frozen[name].requires_grad)
        except RuntimeError as error:
            raise ValueError(
                "warm_start goes on with the networks that there are; a change of "
                f"their sizes needs a fit without it. {error}"
            ) from error
        for name in self.configure_optimizers():
            optimizer = self._optimizer(name)
            # A copy: torch keeps the tensors that it is given, and steps in place.
            state = deepcopy(other._optimizer(name).state_dict())
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({**state, "param_groups": groups})
        self.history, self.step_ = deepcopy(other.history), other.step_
        self.resumed_ = other.step_

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
        turns = self.training_step(batch)
        while True:
            with self._autocast():
                turn = next(turns, None)
            if turn is None:
                return
            self._update((turn,) if isinstance(turn[0], str) else turn)

    def _update(self, pairs):
        # A callback may have frozen some parameters, or all.
        moved = {
            name: [p for p in self._moved[name] if p.requires_grad] for name, _ in pairs
        }
        for k, (name, loss) in enumerate(pairs, 1):
            for parameter in self._moved[name]:
                parameter.grad = None
            if moved[name]:
                # Losses of one turn may share a graph: only the last may free it.
                loss.backward(inputs=moved[name], retain_graph=k < len(pairs))
        for name, loss in pairs:
            self.record(f"{name}_loss", loss.detach())
            if not moved[name]:
                continue
            self.notify("on_grad_computed", named_parameters=self._named[name])
            if (max_norm := self._longest.get(name)) is not None:
                nn.utils.clip_grad_norm_(moved[name], max_norm)
            self._optimizer(name).step()

    def record(self, name: str, value: Tensor) -> None:
        """Add `value` to the epoch's mean of `name`, without waiting for it."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value.float(), count + 1

    def run_single_epoch(self, iterator, training, prefix, step_fn, **fit_params):
        """Train on every batch, then read the losses: once an epoch."""
        if iterator is None:
            return
        if self.ended_:
            raise StopTraining
        self._set_training(True)
        self._sums = {}
        try:
            for batch in iterator:
                self.notify("on_batch_begin", batch=batch, training=True)
                step_fn(batch)
                self.step_ += 1
                self.notify("on_batch_end", batch=batch, training=True)
        except StopTraining:
            self.ended_ = True  # with this epoch, as short as it is
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
                    f"{name} became {value} in epoch {len(self.history)}."
                )
            self.history.record(name, value)
            if name.endswith("_loss"):  # as callbacks that keep the best want it
                least = self._least.get(name, np.inf)
                self.history.record(f"{name}_best", value < least)
                self._least[name] = min(value, least)

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Run the epochs; end early on a callback's or the user's word."""
        self._read_players()
        try:
            super().fit_loop(X, y, epochs, **fit_params)
        except StopTraining:
            pass
        except KeyboardInterrupt:
            self.interrupted_ = True
        finally:
            del self._named, self._moved, self._longest, self._least
            self._set_training(False)
        return self

    def _read_players(self):
        """Write down what each player moves in a run, and how far."""
        players, self._least = self.configure_optimizers(), {}
        names = {id(p): name for name, p in self.get_all_learnable_params()}
        self._moved = {k: list(p.module.parameters()) for k, p in players.items()}
        self._named = {
            k: [(names[id(p)], p) for p in moved] for k, moved in self._moved.items()
        }
        self._longest = {k: p.max_norm for k, p in players.items()}

    def notify(self, method_name, **cb_kwargs):
        """Call the net and its callbacks, which may end the run."""
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            if method_name == "on_epoch_end":
                check_monitor(callback, self.history[-1])
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt as interrupt:
                # That is how it stops a run; of all others it is the user's word.
                if isinstance(callback, EarlyStopping):
                    raise StopTraining from interrupt
                raise
            except StopTraining:
                if method_name not in ("on_train_begin", "on_train_end"):
                    raise
                self.ended_ = True  # outside of the loop, which has to be left

    # What callbacks of skorch ask for -------------------------------------------

    def get_all_learnable_params(self):
        """Yield name and value of what players move: "critic.layers.0.weight"."""
        return self.module_.named_parameters()

    @property
    def module_(self) -> nn.ModuleDict:
        """All networks that are trained, by name, as one."""
        players = self.configure_optimizers().values()
        moved = {id(p) for player in players for p in player.module.parameters()}
        return nn.ModuleDict(
            {
                name.removesuffix("_"): module
                for name, module in vars(self).items()
                if isinstance(module, nn.Module)
                and any(id(p) in moved for p in module.parameters())
            }
        )

    @property
    def optimizer_(self) -> Optimizers:
        """The optimizers of all players, as one."""
        return Optimizers(
            {name: self._optimizer(name) for name in self.configure_optimizers()}
        )

    @property
    def criterion_(self) -> nn.Module:
        """A loss without a state: those of the turns have none."""
        return nn.Identity()

    def save_params(self, *arguments, **options):
        """Write weights, momenta or history to files; warn where that fails."""
        try:
            super().save_params(*arguments, **options)
        except Exception as error:  # which skorch's callbacks pass over
            warn(f"A callback could not save a net: {error}")
            raise

    # What skorch asks for --------------------------------------------------------

    def initialize(self):
        """Build modules and optimisers, from the seed."""
        self.step_ = self.resumed_ = 0
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
        for name, player in self.configure_optimizers().items():
            optimizer = player.optimizer(list(player.module.parameters()))
            setattr(self, f"optimizer_{name}_", optimizer)
        return self

    def get_dataset(self, X, y=None):
        """Return the rows as they are."""
        return X

    def get_iterator(self, dataset, training=False):
        """Return batches that are slices of the resident rows."""
        return Batches(
            dataset, self.batch_size, self.epoch_steps, self.n_estimators, self.rng_
        )

    @property
    def _default_callbacks(self):
        return [("epoch_timer", EpochTimer())]

    def __getstate__(self):
        # Callbacks hold what does not pickle, such as a progress bar, and serve
        # the run that they were made for alone. What builds the modules may hold
        # modules itself, and has served as well. What an interrupt does is a matter of
        # a run too: a cache is to find a net whatever it is.
        gone = {
            "callbacks": [],
            "callbacks_": [],
            "on_interrupt": "raise",
            "modules": dict(self.modules),
        }
        if self.initialized_:
            gone["modules"] = dict.fromkeys(self.modules)
        return super().__getstate__() | gone

    def _optimizer(self, name):
        return getattr(self, f"optimizer_{name}_")

    @contextmanager
    def _autocast(self):
        if self.precision == "float32":
            yield
            return
        try:
            with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16):
                yield
        finally:
            # Inside of another autocast, torch would keep the casts of weights that
            # a step is about to change.
            torch.clear_autocast_cache()

    @contextmanager
    def _own_randomness(self):
        with _RANDOMNESS, single_precision(), self._seeded():
            yield

    @contextmanager
    def _seeded(self):
        device = torch.device(self.device)
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            seed = self.seed + self.resumed_
            torch.default_generator.manual_seed(seed)
            for index in cuda:
                with torch.cuda.device(index):
                    torch.cuda.manual_seed(seed)
            yield
