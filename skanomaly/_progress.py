"""The progress of a fit: a bar, and the tasks of scikit-learn's callbacks.

scikit-learn has callbacks since version 1.9. The tasks are a tree: the fit, its stages,
their epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from numpy.typing import ArrayLike
from skorch.callbacks import Callback

from .engine import AlternatingNet, Bar, Checkpoint, ProgressBar, ended_copy, is_first
from .exceptions import StopTraining, TrainingDivergedError
from .utils._sklearn_compat import tearing_down
from .utils._sklearn_types import CallbackSupportMixin
from .utils._state import shallow_copy
from .utils._warnings import quiet

__all__ = ["ProgressMixin"]

#: Makes a detector complete: with the net of a stage, or after the last stage.
Keep = Callable[[Any, AlternatingNet], None]
Finish = Callable[[Any], None]
#: Attributes that exist during a fit only.
_OF_A_FIT = {
    "_report",
    "_checkpoint",
    "_callback_fit_ctx",
    "_skl_callbacks_to_teardown",
}


class ProgressMixin(CallbackSupportMixin):
    """For detectors that are trained in stages."""

    callbacks: list[Callback] | None
    verbose: int
    net_: AlternatingNet
    _report: Report | None = None
    _checkpoint: Checkpoint | None = None

    @contextmanager
    def _reported(self, X: ArrayLike, y: ArrayLike | None) -> Iterator[None]:
        """Report a fit to scikit-learn's callbacks, if there are any."""
        if not hasattr(self, "_skl_callbacks"):
            yield
            return
        self._report = report = Report(self, X, y)
        try:
            with tearing_down(self):
                yield
                report.end_fit()
        finally:
            del self._report

    def _report_scores(self, finish: Finish) -> None:
        """Let callbacks have detectors that score, which `finish` completes."""
        if self._report is not None:
            self._report.finish = finish

    @contextmanager
    def _progress(
        self, *plans: Mapping[str, int]
    ) -> Iterator[Callable[..., list[Callback]]]:
        """Yield a function that maps a stage to its callbacks.

        Its arguments are the name of the stage, and optionally a function
        ``keep(detector, net)``. That sets the attributes that the detector would have
        if the training ended now, with `net` as it is. Without it, the monitors of
        scikit-learn have no detector that scores at this stage.
        """
        own = list(self.callbacks or [])
        makers: list[Callable[..., Callback]] = []
        with ExitStack() as stack:
            if self.verbose and is_first():
                n_steps = sum(
                    plan["max_epochs"] * plan["epoch_steps"] for plan in plans
                )
                bar = stack.enter_context(Bar(type(self).__name__, n_steps))
                makers.append(lambda stage, keep: ProgressBar(bar, stage))
            if self._report is not None:
                self._report.begin_fit(sum(plan["max_epochs"] > 0 for plan in plans))
                makers.append(partial(_Tasks, self._report))
            if self._checkpoint is not None:  # the last one, when others are complete
                makers.append(lambda stage, keep: self._checkpoint)
            yield lambda stage, keep=None: [
                *own,
                *(make(stage, keep) for make in makers),
            ]

    def _keep_net(self, net: AlternatingNet) -> None:
        """Keep a trained net, for methods whose net is all that scores need."""
        self.net_ = net

    def __getstate__(self) -> dict[str, Any]:
        # scikit-learn copies a detector in training for its callbacks.
        state = dict(super().__getstate__())  # type: ignore[call-overload]
        return {k: value for k, value in state.items() if k not in _OF_A_FIT}


class Report:
    """The tasks of a fit, for the callbacks of scikit-learn.

    Parameters
    ----------
    detector : BaseDeepDetector
        The detector in training.
    X, y : array-like
        The arguments of ``fit``.
    """

    def __init__(self, detector: Any, X: ArrayLike, y: ArrayLike | None):
        self.detector, self.data = detector, {"X": X, "y": y}
        self.finish: Finish = lambda detector: None

    def begin_fit(self, n_stages: int) -> None:
        """Begin the task of the whole fit."""
        self.fit = self.detector._init_callback_context(max_subtasks=n_stages)
        self.begin(self.fit)

    def end_fit(self) -> None:
        """End the task of the whole fit, with the fitted detector."""
        self.end(self.fit, {})

    def begin(self, task: Any) -> None:
        """Begin a task."""
        task.call_on_fit_task_begin(estimator=self.detector, **self.data)

    def end(
        self,
        task: Any,
        attributes: dict[str, Any] | Callable[[], dict[str, Any] | None] | None,
    ) -> bool:
        """End a task, and return whether a callback asks to stop.

        `attributes` are those of a detector that scores.
        """
        stop: bool = task.call_on_fit_task_end(
            estimator=self.detector, reconstruction_attributes=attributes, **self.data
        )
        return stop

    def attributes(
        self, stage: str, keep: Keep, net: AlternatingNet
    ) -> dict[str, Any] | None:
        """Return the attributes of a detector whose training ended now.

        They are None if the scores would not be finite.
        """
        detector = shallow_copy(self.detector)
        with quiet(), ended_copy(net) as copy:  # the training is not complete
            try:
                keep(detector, copy)
                detector._record(**{stage: copy})
                self.finish(detector)
            except TrainingDivergedError:
                return None
        return detector.__getstate__()


class _Tasks(Callback):
    """Reports a stage, and its epochs."""

    # It comes after all other callbacks: averages and best weights are up to date.

    def __init__(self, report: Report, stage: str, keep: Keep | None):
        self.report, self.stage, self.keep = report, stage, keep
        self.epoch: Any = None

    def on_train_begin(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Begin the stage."""
        epochs = {"max_subtasks": net.max_epochs}
        self.task = self.report.fit.subcontext(task_name=self.stage, **epochs)
        self.report.begin(self.task)

    def on_epoch_begin(self, net: AlternatingNet, **kwargs: Any) -> None:
        """Begin an epoch."""
        if net.ended_:  # within the last epoch: this one will have no steps
            return
        self.epoch = self.task.subcontext(task_name="epoch")
        self.report.begin(self.epoch)

    def on_epoch_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """End an epoch, and the stage if a callback asks to stop."""
        if self._end(self.epoch, net):
            net.stopped_ = True
            raise StopTraining

    def on_train_end(self, net: AlternatingNet, **kwargs: Any) -> None:
        """End the stage."""
        if (
            self.epoch is not None
        ):  # another callback, or an interrupt, has cut it short
            self._end(self.epoch, net)
        self._end(self.task, net)

    def _end(self, task: Any, net: AlternatingNet) -> bool:
        self.epoch = None
        if self.keep is None:
            return self.report.end(task, None)
        make = partial(self.report.attributes, self.stage, self.keep, net)
        return self.report.end(task, make)
