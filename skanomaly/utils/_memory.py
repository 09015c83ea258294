"""Stages of a training, kept on disk where they are found again.

Folders of a cache lose power, run full, are shared and are not ours: none of that may
cost a fit. What cannot be read is trained; what cannot be written is used all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pickle import PicklingError
from typing import Any

from sklearn.utils.validation import check_memory

from ._warnings import warn

__all__ = ["run_or_recall"]


def run_or_recall(
    memory: Any, version: str, stage: Callable, arguments: Sequence, callbacks: Any
) -> tuple:
    """Return ``stage(*arguments, callbacks=callbacks)``, or what it was once before.

    Parameters
    ----------
    memory : str, joblib.Memory or None
        Where stages are kept; None keeps nothing.
    version : str
        What the code of the stage belongs to: others find nothing of its.
    stage : callable
        Defined at the top of a module. The first thing that it returns is its net; with
        ``interrupted_``, nothing is kept.
    arguments : sequence
        All that the result depends on.
    callbacks : object
        What the result does not depend on.

    Returns
    -------
    tuple
        What the stage returns.

    Raises
    ------
    ValueError
        If an argument has no name by which it could be found again.
    Exception
        Whatever the stage raises.

    Warns
    -----
    UserWarning
        If an entry cannot be read, which is then made anew; if the folder cannot be
        used, or nothing can be written to it.
    """
    if memory is None:
        return stage(*arguments, callbacks=callbacks)
    run = _Run(callbacks)
    try:
        return _recalled(memory, run, version, stage, tuple(arguments))
    except _CutShort:
        return run.result
    except PicklingError as error:
        raise ValueError(
            "With memory, functions that are parameters have to be defined at the "
            f"top of a module, and not as lambdas or inside of others: {error}"
        ) from error
    except Exception as error:
        if run.begun and run.result is None:
            raise  # of the stage itself
        cause = error
    if run.result is not None:
        warn(
            "What was trained could not be kept in `memory`, which may be full or "
            f"read-only; the detector is as it should be.{_said(cause)}"
        )
        return run.result
    warn(f"`memory` cannot be used, and the stage is trained.{_said(cause)}")
    return stage(*arguments, callbacks=callbacks)


class _CutShort(Exception):  # noqa: N818
    """Keeps joblib from writing what the user interrupted."""


class _Run:
    """A run of a stage, whose result is here whatever joblib makes of it."""

    def __init__(self, callbacks):
        self.callbacks, self.begun, self.result = callbacks, False, None

    def of(self, stage, arguments):
        self.begun = True
        self.result = stage(*arguments, callbacks=self.callbacks)
        if self.result[0].interrupted_:
            raise _CutShort
        return self.result


def _run(version, stage, arguments, run):
    """Run a stage; a function, as joblib wants it, whose arguments are the key."""
    return run.of(stage, arguments)


def _recalled(memory, run, *key):
    cache = check_memory(memory).cache(_run, ignore=["run"])
    try:
        entry = cache.call_and_shelve(*key, run)
    except ValueError:
        if run.begun:
            raise
        # joblib's note of the function's code is broken. Of code that has changed it
        # drops all entries, and of this it should.
        cache.clear(warn=False)
        entry = cache.call_and_shelve(*key, run)
    try:
        return _read(entry)
    except Exception as error:
        entry.clear()
        if run.begun:
            raise  # it was written a moment ago: there is no use in trying again
        warn(
            "An entry of `memory` cannot be read, and is made anew. It may have been "
            f"cut short by a crash or a full disk.{_said(error)}"
        )
    return _read(cache.call_and_shelve(*key, run))


def _read(entry):
    result = entry.get()
    if result[0].interrupted_:
        raise ValueError("The training was interrupted.")
    return result


def _said(error):
    # What joblib could not write it has warned of already, and there is no entry.
    return "" if isinstance(error, KeyError) else f" ({type(error).__name__}: {error})"
