"""Warnings that name the user's line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

__all__ = ["warn"]

#: Packages between the line of a user and a warning, at any depth of the stack.
_BETWEEN = {"skanomaly", "sklearn", "skorch", "joblib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the latest line outside of the libraries in the stack.

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
