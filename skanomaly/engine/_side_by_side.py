"""Fits side by side: where several of them train nets of one kind, they train together.

Each fit runs in a thread of its own, one at a time, up to its next run of a net. When
all of them have come to a run, or to their end, runs that can be one are trained as
one, and all fits go on. So a fit needs to know nothing of the others: it may be one of
a pipeline, with stages, early stopping and calibration.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar, copy_context
from threading import Semaphore, Thread
from typing import Any, NamedTuple

import joblib
import torch
from sklearn import config_context, get_config

from ..utils._process import one_thread, single_precision, without_modes
from ._joint import Run, run_jointly
from ._net import RUN_BY, AlternatingNet

__all__ = ["Outcome", "fit_side_by_side", "stage_once"]

_FIT: ContextVar[_Fit | None] = ContextVar("fit", default=None)


class Outcome(NamedTuple):
    """The end of a fit.

    Attributes
    ----------
    result : object
        The result of the fit, or its Exception.
    n_together : int
        The least number of fits that were trained together, over the runs of the fit.
    """

    result: Any
    n_together: int


def fit_side_by_side(
    fits: Sequence[Callable[[], Any]], most: int = 128
) -> list[Outcome]:
    """Return the outcomes of fits, which train their nets together where they can.

    Parameters
    ----------
    fits : sequence of callable
        Functions without arguments. They run one at a time, in threads.
    most : int
        Fits side by side at most. More of them save no time, and take more memory.

    Returns
    -------
    list of Outcome
        In the order of `fits`. Results are equal, up to rounding, to those of the fits
        one by one.

    Raises
    ------
    KeyboardInterrupt
        If the training is interrupted.
    """
    stages: dict[Hashable, Any] = {}
    outcomes: list[Outcome] = []
    for start in range(0, len(fits), most):
        group = [_Fit(fit, stages) for fit in fits[start : start + most]]
        try:
            _complete(group)
        finally:
            for fit in group:
                fit.abort()
        outcomes += [Outcome(fit.result, fit.n_together) for fit in group]
    return outcomes


def _complete(fits: list[_Fit]) -> None:
    """Run fits to their ends."""
    while unfinished := [fit for fit in fits if not fit.done]:
        for fit in unfinished:
            fit.resume()
        together = defaultdict(list)
        for fit in fits:
            if fit.run is not None:
                together[fit.run.key() or id(fit)].append(fit)
        for part in together.values():
            _train(part)


def _train(fits: Sequence[_Fit]) -> None:
    """Train the nets that fits wait for."""
    runs = [fit.run for fit in fits if fit.run is not None]
    device = torch.device(runs[0].net.device).type
    with ExitStack() as contexts:
        for context in (one_thread(), single_precision(), without_modes(device)):
            contexts.enter_context(context)
        errors = run_jointly(runs) if len(runs) > 1 else [_run_alone(runs[0])]
    for fit, run, error in zip(fits, runs, errors, strict=True):
        fit.run, fit.error = None, error
        if run.plan["max_epochs"]:
            fit.n_together = min(fit.n_together or len(fits), len(fits))


def _run_alone(run: Run) -> Exception | None:
    try:
        run.net.run(run.dataset, callbacks=run.callbacks, **run.plan)
    except Exception as error:
        return error
    return None


class _AbortedError(BaseException):
    """Unwinds a fit that is not to be completed."""


class _Fit:
    """A fit in a thread, which runs when :meth:`resume` lets it.

    Parameters
    ----------
    function : callable
        The fit.
    stages : dict
        Results of stages that fits share, by key.
    """

    def __init__(self, function: Callable[[], Any], stages: dict[Hashable, Any]):
        self.function, self.stages = function, stages
        self.run: Run | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.done, self.n_together = False, 0
        self._may_run, self._has_paused = Semaphore(0), Semaphore(0)
        target, config = copy_context().run, get_config()
        self.thread = Thread(target=target, args=(self._main, config), daemon=True)

    def resume(self) -> None:
        """Let the fit run up to its next pause, or its end."""
        if self.thread.ident is None:
            self.thread.start()
        self._may_run.release()
        self._has_paused.acquire()

    def abort(self) -> None:
        """End a fit that waits."""
        if not self.done and self.thread.ident is not None:
            self.error = _AbortedError()
            self.resume()

    def pause(self) -> None:
        """Wait for the others; raise the error of the run that was waited for."""
        self._has_paused.release()
        self._may_run.acquire()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait_for_run(
        self, net: AlternatingNet, dataset: Any, plan: Any, callbacks: Any
    ) -> None:
        """Wait until a net is trained."""
        self.run = Run(net, dataset, plan, callbacks)
        self.pause()

    def _main(self, config: dict[str, Any]) -> None:
        self._may_run.acquire()
        try:
            if self.error is None:
                RUN_BY.set(self.wait_for_run)
                _FIT.set(self)
                with config_context(**config):
                    self.result = self.function()
        except _AbortedError:
            pass
        except Exception as error:
            self.result = error
        finally:
            self.done, self.run = True, None
            self._has_paused.release()


def stage_once(
    run: Callable[..., Any], stage: Callable[..., Any], arguments: Any, callbacks: Any
) -> Any:
    """Return ``run(stage, arguments, callbacks)``; fits side by side share it.

    Parameters
    ----------
    run : callable
        Runs the stage.
    stage : callable
        A function at module level. Its result depends on `arguments` alone.
    arguments : sequence
        Its arguments.
    callbacks : object
        Callbacks without influence on the result.
    """
    fit = _FIT.get()
    key = None if fit is None else _key(stage, arguments)
    if fit is None or key is None:
        return run(stage, arguments, callbacks)
    stages = fit.stages
    if key not in stages:
        stages[key] = None  # others wait
        try:
            result = run(stage, arguments, callbacks)
            stages[key] = pickle.dumps(result)
        except BaseException as error:
            stages[key] = error
            raise
        return result
    while stages[key] is None:
        fit.pause()
    if isinstance(stages[key], BaseException):
        raise stages[key]
    return pickle.loads(stages[key])


def _key(stage: Callable[..., Any], arguments: Any) -> Hashable:
    try:
        return stage.__qualname__, joblib.hash(arguments)
    except Exception:  # an argument that cannot be pickled
        return None
