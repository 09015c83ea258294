"""Warnings that name the user's line."""

from __future__ import annotations

import sys
import warnings
from os.path import dirname, join

import joblib
import sklearn
import skorch

__all__ = ["warn"]

# Code between a user's call and a warning of ours: its own depth says nothing.
_HERE = dirname(__file__)
_BETWEEN = tuple(
    join(dirname(path), "")
    for path in (_HERE, sklearn.__file__, skorch.__file__, joblib.__file__)
)


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
    while frame.f_back and frame.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
