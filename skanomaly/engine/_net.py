"""The training loop, with several optimisers.

This is the only file in which gradients are taken and optimisers step. A method
declares its players, each a module with its optimiser
(:meth:`AlternatingNet.configure_optimizers`), and yields the losses of one batch in
their order (:meth:`AlternatingNet.training_step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from skorch.callbacks import Callback, EarlyStopping, EpochTimer
from skorch.history import History
from torch import Tensor, nn

from ..exceptions import StopTraining, TrainingDivergedError
from ..utils._process import seeded, single_precision
from ._dataset import Batches
from ._processes import (
    Buffers,
    all_rows,
    average,
    begin_run,
    divided,
    n_processes,
    own_rows,
    same_weights,
)
from ._skorch import Optimizers, SeveralModulesNet, check_callback, check_monitor

PlayerLoss = tuple[str, Tensor]
#: A player with its loss, or several such pairs whose steps share their gradients.
Update = PlayerLoss | tuple[PlayerLoss, ...]

#: Takes the runs of this context, to train nets of several fits together.
RUN_BY: ContextVar[Callable[..., None] | None] = ContextVar("run_by", default=None)


def input_gradient(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return the differentiable gradient of `function` at `points`.

    Parameters
    ----------
    function : callable
        Maps each point to one value. If it has a method ``input_gradient``, that method
        computes the gradient.
    points : Tensor
        Arguments of the function.

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


class Player(NamedTuple):
    """A module, and the optimiser of its parameters.

    Attributes
    ----------
    module : torch.nn.Module
        The losses of this player train the parameters of this module only.
    optimizer : callable
        Takes the parameters, returns a :class:`torch.optim.Optimizer`.
    max_norm : float or None
        Gradients with a larger norm are clipped to this norm.
    """

    module: nn.Module
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    max_norm: float | None = None


class _Trained(NamedTuple):
    """The named parameters of a player, and the maximum norm of their gradient."""

    parameters: list[tuple[str, nn.Parameter]]
    max_norm: float | None


class AlternatingNet(SeveralModulesNet, ABC):
    """Modules that several players train in alternation, on data on the device.

    A subclass writes :meth:`configure_optimizers` and :meth:`training_step`, and may
    write :meth:`validate`. Each module given as ``modules={"critic": build}`` is built
    by the first :meth:`run` and is then the attribute ``critic_``.

    Callbacks, history, parameters and files of weights are those of skorch. Its methods
    for training and prediction assume a single module; they raise an AttributeError
    that names the method of the detector to call instead.

    Parameters
    ----------
    modules : mapping of str to callable
        Name of each module, and a function without arguments that builds it.
    lr : float
        Learning rate, for :meth:`configure_optimizers` to read.
    batch_size : int
        Samples per batch.
    n_estimators : int
        Members of an ensemble, each with its own batches; 0 means a single network.
    seed : int
        Seed of the initial weights and of all later draws. The caller's random state
        does not change.
    device : str
        Device of the modules.
    precision : {"float32", "bfloat16"}
        "bfloat16" computes losses under :func:`torch.autocast`.
    on_interrupt : {"raise", "keep"}
        Reaction of :meth:`run` to a KeyboardInterrupt: "raise" raises it, "keep"
        returns the net in the state reached.

    Attributes
    ----------
    step_, resumed_ : int
        Number of batches seen so far, and the part of it from before :meth:`resume`.
    rng_ : torch.Generator
        Generator of all random draws in :meth:`training_step`; it exists during a run
        only.
    interrupted_, ended_ : bool
        Whether a KeyboardInterrupt, or a callback within an epoch, ended the last run.
    stopped_ : bool
        Whether a callback of scikit-learn has ended a run.
    data_names_ : tuple of str
        Attributes that hold data during a run only.
    run_start_, first_step_ : int
        Epochs in ``history``, and steps, before the last run.
    """

    step_: int
    resumed_: int
    history: History
    rng_: torch.Generator
    stopped_: bool = False
    data_names_: tuple[str, ...] = ()
    _buffers: Buffers | None = None

    #: Attributes that may differ between nets that are trained side by side. Numbers
    #: among them become tensors (k,), one for each member, which ``training_step`` has
    #: to take; others are for each net alone. None: the nets are trained one by one.
    per_member: ClassVar[tuple[str, ...] | None] = None
    #: Modules that side by side are part of the larger ensemble, besides trained ones.
    frozen: ClassVar[tuple[str, ...]] = ()
    #: Methods that draw numbers or samples (k, ...), for each net from its own
    #: generator and data.
    draws: ClassVar[tuple[str, ...]] = ("draw_noise", "draw_shares")

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

    # Written by subclasses -------------------------------------------------------

    @abstractmethod
    def configure_optimizers(self) -> dict[str, Player]:
        """Return the players by name."""

    @abstractmethod
    def training_step(self, batch: Any) -> Iterator[Update]:
        """Yield ``(player, loss)`` in the order of the paper's algorithm.

        After each yield the engine takes the gradient of `loss` for the parameters of
        that player and steps. The step changes parameters in place: later losses must
        not use values computed before it. Several pairs in one yield share an update:
        all gradients are taken before the first step. The loss of an ensemble has the
        shape (k,), one number for each member, whose sum is minimised.
        """

    def validate(self) -> dict[str, Tensor]:
        """Return metrics of held-out samples; KeepBest monitors "valid_loss"."""
        return {}

    def make_batches(self, dataset: Any) -> Iterable[Any]:
        """Return the batches of an epoch, drawn anew each time they are iterated."""
        return Batches(
            dataset, self.batch_size, self.epoch_steps, self.n_estimators, self.rng_
        )

    def run_state(self) -> dict[str, Any]:
        """Return the state of a run besides modules and callbacks, for a checkpoint.

        The values are numbers, texts, tensors, or containers of these.
        """
        return {}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`run_state` returned, in a run that begins."""

    def connect(self) -> None:
        """Connect new modules that refer to each other."""

    def form_of_data(self) -> Any:
        """Return the part of the data that agrees in nets trained side by side."""
        return None

    # Helpers for subclasses ------------------------------------------------------

    def for_members(self, rows: Tensor) -> Tensor:
        """Repeat samples (n, ...) for each member of an ensemble, (k, n, ...)."""
        k = self.n_estimators
        return rows.expand(k, *rows.shape) if k else rows

    @contextmanager
    def temporary(self, **data: Any) -> Iterator[None]:
        """Set attributes within a context, so that pickles do not contain the data."""
        self.data_names_ = tuple(data)
        for name, value in data.items():
            setattr(self, name, value)
        try:
            yield
        finally:
            self.data_names_ = ()
            for name in data:
                delattr(self, name)

    def draw_noise(
        self, n: int, length: int, rng: torch.Generator | None = None
    ) -> Tensor:
        """Draw standard normal numbers for each member, (k, n, length)."""
        drawn = torch.randn(
            self._of_members(all_rows(n), length),
            dtype=torch.float32,
            generator=rng or self.rng_,
            device=self.device,
        )
        return own_rows(drawn, -2)

    def draw_shares(self, n: int) -> Tensor:
        """Draw uniform numbers in [0, 1) for each member, (k, n)."""
        size = self._of_members(all_rows(n))
        drawn = torch.rand(size, generator=self.rng_, device=self.device)
        return own_rows(drawn, -1)

    def _of_members(self, *sizes):
        return (self.n_estimators, *sizes) if self.n_estimators else sizes

    def record(self, name: str, value: Tensor) -> None:
        """Add `value` to the epoch's mean of `name`, without waiting for the device.

        Of values (k,), one for each member, the history has the sum.
        """
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value.float(), count + 1

    @property
    def n_steps(self) -> int:
        """Batches of one run."""
        return self.max_epochs * self.epoch_steps

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return (self.step_ - self.first_step_) / self.n_steps

    # The loop --------------------------------------------------------------------

    def run(
        self,
        dataset: Any,
        *,
        max_epochs: int,
        epoch_steps: int,
        callbacks: Sequence[Callback | tuple[str, Callback]] = (),
    ) -> Self:
        """Train for some epochs; another run continues where the last one ended.

        Parameters
        ----------
        dataset : DeviceDataset
            Data set, or another object that :meth:`make_batches` takes.
        max_epochs : int
            Epochs of this run.
        epoch_steps : int
            Batches per epoch.
        callbacks : sequence of skorch.callbacks.Callback
            Callbacks of this run.

        Returns
        -------
        self
            The trained net.

        Raises
        ------
        TrainingDivergedError
            If a loss is infinite or NaN at the end of an epoch.
        ValueError
            If a callback needs one optimiser, targets or predictions.
        KeyboardInterrupt
            If the run was interrupted and ``on_interrupt`` is "raise".
        """
        plan = {"max_epochs": max_epochs, "epoch_steps": epoch_steps}
        if (run := RUN_BY.get()) is not None:
            run(self, dataset, plan, callbacks)
            return self
        self._begin(callbacks, **plan)
        try:
            with single_precision(), seeded(self.seed + self.resumed_, self.device):
                self.notify("on_train_begin", X=dataset, y=None)
                self._buffers = begin_run(self, plan)
                self._run_epochs(dataset)
                self.notify("on_train_end", X=dataset, y=None)
                same_weights(self.module_)
        finally:
            del self.rng_  # generators do not pickle
            self._buffers = None
        if self.interrupted_ and self.on_interrupt == "raise":
            raise KeyboardInterrupt
        return self

    def _begin(self, callbacks, max_epochs, epoch_steps):
        """Begin a run, and initialize a new net."""
        self.max_epochs, self.epoch_steps = max_epochs, epoch_steps
        # Callbacks read the history at the end, and a run without epochs has none.
        self.callbacks = [check_callback(one) for one in callbacks if max_epochs]
        if self.initialized_:
            self._initialize_callbacks()
        else:
            self.initialize()
        self.rng_ = torch.Generator(self.device).manual_seed(self.seed + self.step_)
        self.interrupted_ = self.ended_ = False
        self.run_start_ = len(self.history)
        self.first_step_ = self.step_

    def _run_epochs(self, dataset):
        """Run the epochs, unless a StopTraining or KeyboardInterrupt ends the run."""
        self._read_players()
        self._read_lowest()
        batches = self.make_batches(dataset)
        datasets = {"dataset_train": dataset, "dataset_valid": None}
        try:
            for _ in range(len(self.history) - self.run_start_, self.max_epochs):
                self.notify("on_epoch_begin", **datasets)
                self._run_epoch(batches)
                self.notify("on_epoch_end", **datasets)
        except StopTraining:
            pass
        except KeyboardInterrupt:
            if n_processes() > 1:  # the others are in another step
                raise
            self.interrupted_ = True
        finally:
            del self._trained, self._lowest
            self._set_training(False)

    def _read_players(self):
        """List the parameters of each player, for one run."""
        names = {id(p): name for name, p in self.get_all_learnable_params()}
        self._trained = {
            name: _Trained(
                [(names[id(p)], p) for p in player.module.parameters()],
                player.max_norm,
            )
            for name, player in self.configure_optimizers().items()
        }
        self._lowest: dict[str, float] = {}

    def _read_lowest(self):
        """Read the lowest losses of a run that goes on."""
        for row in self.history[self.run_start_ :]:
            for name, value in row.items():
                if name.endswith("_loss"):
                    self._lowest[name] = min(value, self._lowest.get(name, np.inf))

    def _run_epoch(self, batches):
        """Train on every batch, then read all losses in one wait for the device."""
        if self.ended_:
            raise StopTraining
        self._set_training(True)
        self._sums = {}
        try:
            for batch in batches:
                self.notify("on_batch_begin", batch=batch, training=True)
                self._train_on_batch(batch)
                self.step_ += 1
                self.notify("on_batch_end", batch=batch, training=True)
        except StopTraining:
            self.ended_ = True  # the next epoch raises it, once this one is recorded
        except BaseException:
            if n_processes() == 1:  # otherwise a record needs the others
                self._record_epoch()
            raise
        self._record_epoch()

    def _train_on_batch(self, batch):
        """Step after each loss of a batch, before the next one is computed."""
        updates = self.training_step(batch)
        while True:
            with self._autocast(), divided():
                update = next(updates, None)
            if update is None:
                break
            one_player = isinstance(update[0], str)
            self._update((update,) if one_player else update)
        if self._buffers is not None:
            self._buffers.average()

    def _update(self, pairs):
        """Take the gradients of all losses, then the steps of all players."""
        # A callback may have frozen some parameters, or all.
        free = {
            name: [p for _, p in self._trained[name].parameters if p.requires_grad]
            for name, _ in pairs
        }
        for k, (name, loss) in enumerate(pairs, 1):
            for _, parameter in self._trained[name].parameters:
                parameter.grad = None
            if free[name]:
                # The losses may share a graph, which the last one frees.
                loss.sum().backward(inputs=free[name], retain_graph=k < len(pairs))
        average([p.grad for ps in free.values() for p in ps if p.grad is not None])
        for name, loss in pairs:
            self.record(f"{name}_loss", loss.detach())
            if not free[name]:
                continue
            trained = self._trained[name]
            self.notify("on_grad_computed", named_parameters=trained.parameters)
            if trained.max_norm is not None:
                nn.utils.clip_grad_norm_(free[name], trained.max_norm)
            self._optimizer(name).step()

    def _record_epoch(self):
        """Write the means of an epoch into the history, if they are finite."""
        self._set_training(False)
        means = self._means()
        if not means:
            return
        values = torch.stack([mean.sum() for mean in means.values()])
        self._write_losses(dict(zip(means, values.tolist(), strict=True)))

    def _means(self):
        """Return the means of an epoch so far, over all processes."""
        means = {name: total / n for name, (total, n) in self._sums.items()}
        average(list(means.values()))
        return means

    def _write_losses(self, losses):
        """Write the losses of an epoch into the history, if they are finite."""
        for name, value in losses.items():
            if not np.isfinite(value):
                raise TrainingDivergedError(
                    f"{name} became {value} in epoch {len(self.history)}."
                )
            self.history.record(name, value)
            if name.endswith("_loss"):  # Checkpoint monitors "<name>_best"
                lowest = self._lowest.get(name, np.inf)
                self.history.record(f"{name}_best", value < lowest)
                self._lowest[name] = min(value, lowest)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call a method of the net and of its callbacks, which may end the run."""
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            if method_name == "on_epoch_end":
                check_monitor(callback, self.history[-1])
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt as interrupt:
                # skorch's EarlyStopping raises it to end a run; any other is the
                # user's.
                if isinstance(callback, EarlyStopping):
                    raise StopTraining from interrupt
                raise
            except StopTraining:
                if method_name not in ("on_train_begin", "on_train_end"):
                    raise
                self.ended_ = True  # the loop is not running: _run_epoch reads this

    def resume(self, other: AlternatingNet) -> None:
        """Take weights, optimiser states and history from another net.

        Parameters
        ----------
        other : AlternatingNet
            A trained net with the same modules.

        Raises
        ------
        ValueError
            If the modules have other sizes.
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
                "warm_start continues with the fitted networks, whose sizes cannot "
                f"change: to change them, fit with warm_start=False. {error}"
            ) from error
        for name in self.configure_optimizers():
            optimizer = self._optimizer(name)
            # load_state_dict keeps the given tensors, and steps change them in place.
            state = deepcopy(other._optimizer(name).state_dict())
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({**state, "param_groups": groups})
        self.history, self.step_ = deepcopy(other.history), other.step_
        self.resumed_ = other.step_

    # Read by callbacks of skorch -------------------------------------------------

    def get_all_learnable_params(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield trained parameters with their names: "critic.layers.0.weight"."""
        return self.module_.named_parameters()

    @property
    def module_(self) -> nn.ModuleDict:
        """All modules with trained parameters, by name."""
        players = self.configure_optimizers().values()
        trained = {id(p) for player in players for p in player.module.parameters()}
        return nn.ModuleDict(
            {
                name.removesuffix("_"): module
                for name, module in vars(self).items()
                if isinstance(module, nn.Module)
                and any(id(p) in trained for p in module.parameters())
            }
        )

    @property
    def optimizer_(self) -> Optimizers:
        """The optimisers of all players."""
        return Optimizers(
            {name: self._optimizer(name) for name in self.configure_optimizers()}
        )

    @property
    def criterion_(self) -> nn.Module:
        """A placeholder for skorch: losses come from :meth:`training_step`."""
        return nn.Identity()

    # Required by skorch ----------------------------------------------------------

    def initialize(self) -> Self:
        """Build modules and optimisers, from the seed."""
        if None in self.modules.values():
            raise ValueError(
                "This net was unpickled without the functions that build its modules, "
                "and cannot be initialized again. Call the detector's fit, which makes "
                "a new net."
            )
        self.step_ = self.resumed_ = 0
        with single_precision(), seeded(self.seed + self.resumed_, self.device):
            super().initialize()
        self._set_training(False)  # scores may be computed before any run
        return self

    def initialize_module(self) -> Self:
        """Build the modules."""
        for name, build in self.modules.items():
            setattr(self, f"{name}_", build())
        self.connect()
        return self

    def initialize_criterion(self) -> Self:
        """Do nothing: losses come from :meth:`training_step`."""
        return self

    def initialize_optimizer(self, triggered_directly=None) -> Self:
        """Build an optimiser for each player."""
        for name, player in self.configure_optimizers().items():
            optimizer = player.optimizer(list(player.module.parameters()))
            setattr(self, f"optimizer_{name}_", optimizer)
        return self

    @property
    def _default_callbacks(self):
        return [("epoch_timer", EpochTimer())]

    def __getstate__(self):
        # Callbacks belong to one run, and some, such as a progress bar, do not pickle.
        # Functions that build modules may hold modules, and a built net does not need
        # them. Without on_interrupt, nets that differ in it alone share a cache entry.
        changed = {
            "callbacks": [],
            "callbacks_": [],
            "on_interrupt": "raise",
            "modules": dict(self.modules),
        }
        if self.initialized_:
            changed["modules"] = dict.fromkeys(self.modules)
        return super().__getstate__() | changed

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
            # Inside another autocast, torch would cache casts of weights that the next
            # step changes.
            torch.clear_autocast_cache()
