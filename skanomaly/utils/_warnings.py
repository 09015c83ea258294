"""Warnings that name the user's line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]

#: Code between a user's call and a warning of ours: how deep it is says nothing.
_BETWEEN = {"skanomaly", "sklearn", "skorch", "joblib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside of the libraries that led here.

    Parameters
    ----------
    message : str
        What is to be known.
    category : type, default=UserWarning
        Class of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back and _package(frame) in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _package(frame):
    return frame.f_globals.get("__name__", "").partition(".")[0]
