"""Stages of a training, cached on disk.

A fit does not fail if the cache folder is damaged, full, shared or read-only: a stage
whose entry cannot be read is trained again, and a result that cannot be written is used
all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pickle import PicklingError
from typing import Any

from sklearn.utils.validation import check_memory

from ._warnings import warn

__all__ = ["run_or_recall"]

Result = tuple[Any, ...]


def run_or_recall(
    memory: Any,
    version: str,
    stage: Callable[..., Result],
    arguments: Sequence[Any],
    callbacks: Any,
) -> Result:
    """Return ``stage(*arguments, callbacks=callbacks)``, from the cache if possible.

    Parameters
    ----------
    memory : str, joblib.Memory or None
        The cache; None runs the stage without one.
    version : str
        Version of the code, a part of the key.
    stage : callable
        A function at module level. The first item that it returns is its net; the
        result of a net that was interrupted, or stopped by a callback, is not written.
    arguments : sequence
        The arguments that determine the result, the other parts of the key.
    callbacks : object
        Callbacks without influence on the result.

    Returns
    -------
    tuple
        The result of the stage.

    Raises
    ------
    ValueError
        If an argument cannot be pickled, such as a lambda.
    Exception
        Any error of the stage.

    Warns
    -----
    UserWarning
        If an entry cannot be read, and is replaced, or if the folder cannot be used or
        written to.
    """
    if memory is None:
        return stage(*arguments, callbacks=callbacks)
    run = _Run(callbacks)
    try:
        return _recalled(memory, run, version, stage, tuple(arguments))
    except _InterruptedError:
        return run.result
    except PicklingError as error:
        raise ValueError(
            "With `memory`, a function given as a parameter has to be defined at "
            f"module level, not as a lambda or inside another function: {error}"
        ) from error
    except Exception as error:
        if run.started and not run.result:
            raise  # an error of the stage
        cause = error
    if run.result:
        warn(
            "The result of a stage could not be written to `memory`, which may be full "
            f"or read-only. The detector is complete.{_in_brackets(cause)}"
        )
        return run.result
    warn(f"`memory` cannot be used: the stage is trained.{_in_brackets(cause)}")
    return stage(*arguments, callbacks=callbacks)


class _InterruptedError(Exception):
    """Keeps joblib from writing the result of a stage that was cut short."""


class _Run:
    """A run of a stage, which has the result even if joblib cannot write it."""

    def __init__(self, callbacks: Any):
        self.callbacks, self.started = callbacks, False
        self.result: Result = ()

    def __call__(self, stage: Callable[..., Result], arguments: Result) -> Result:
        self.started = True
        self.result = stage(*arguments, callbacks=self.callbacks)
        net = self.result[0]
        if net.interrupted_ or net.stopped_:
            raise _InterruptedError
        return self.result


def _run(
    version: str, stage: Callable[..., Result], arguments: Result, run: _Run
) -> Result:
    """Run a stage; joblib makes the key from the arguments of this function."""
    return run(stage, arguments)


def _recalled(memory: Any, run: _Run, *key: Any) -> Result:
    cache = check_memory(memory).cache(_run, ignore=["run"])
    try:
        entry = cache.call_and_shelve(*key, run)
    except ValueError:
        if run.started:
            raise
        # joblib's copy of the code of the function is broken. joblib clears the cache
        # if the code has changed, but not in this case.
        cache.clear(warn=False)
        entry = cache.call_and_shelve(*key, run)
    try:
        return _read(entry)
    except Exception as error:
        entry.clear()
        if run.started:
            raise  # a new entry that cannot be read: no use in trying again
        warn(
            "An entry of `memory` cannot be read, and is trained again. It may have "
            f"been cut short by a crash or a full disk.{_in_brackets(error)}"
        )
    return _read(cache.call_and_shelve(*key, run))


def _read(entry: Any) -> Result:
    result: Result = entry.get()
    if result[0].interrupted_:
        raise ValueError("The training was interrupted.")
    return result


def _in_brackets(error: Exception) -> str:
    """Return an error for the end of a warning."""
    # A KeyError means that there is no entry: joblib has warned that it cannot write.
    return "" if isinstance(error, KeyError) else f" ({type(error).__name__}: {error})"
