"""Warnings that name the user's line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

__all__ = ["quiet", "warn"]

# The filters of the warnings module belong to all threads.
_LEFT_OUT: ContextVar[tuple[type[Warning], ...]] = ContextVar("left_out", default=())

#: Packages that are skipped in the search for the user's line.
_BETWEEN = {"skanomaly", "sklearn", "skorch", "joblib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line of the stack outside of these packages.

    Parameters
    ----------
    message : str
        Text of the warning.
    category : type, default=UserWarning
        Class of the warning.
    """
    if issubclass(category, _LEFT_OUT.get()):
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back and _package(frame) in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextmanager
def quiet(*categories: type[Warning]) -> Iterator[None]:
    """Leave out warnings of this package in this thread.

    Parameters
    ----------
    *categories : type
        Their classes; without any, all are left out.
    """
    before = _LEFT_OUT.set(_LEFT_OUT.get() + (categories or (Warning,)))
    try:
        yield
    finally:
        _LEFT_OUT.reset(before)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
