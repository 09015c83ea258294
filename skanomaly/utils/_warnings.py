"""Warnings that name the user's line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

__all__ = ["warn"]

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
    frame, level = sys._getframe(1), 2
    while frame.f_back and _package(frame) in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
