"""Descriptions shared by the docstrings of several classes or functions."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from itertools import starmap
from typing import Any, TypeVar

from ._parameters import entry, parameter_entries

__all__ = ["describe", "fill_in"]

#: A class or a function.
Described = TypeVar("Described", bound=Any)

ATTRIBUTES = {
    "net_ : skorch.NeuralNet": (
        "The trained networks, with the history, parameters and ``save_params`` of "
        "skorch. Train and predict by the methods of the detector."
    ),
    "offset_ : float": (
        "Threshold: ``decision_function(X) = score_samples(X) - offset_``."
    ),
    "calibration_scores_ : ndarray of shape (n_calibration,)": (
        "Scores of the calibration samples, in ascending order; not set without any."
    ),
    "history_ : list of dict": (
        'One record per epoch: "stage", "epoch", "duration" in seconds, and the mean '
        "of each loss."
    ),
    "n_iter_ : int": "Number of epochs, over all stages.",
    "interrupted_ : bool": "Whether a KeyboardInterrupt ended the last ``fit``.",
    "image_shape_ : tuple of int or None": (
        "Shape ``(channels, height, width)`` of one image, None for tables."
    ),
    "scaler_ : transformer or None": "The fitted scaler.",
    "n_features_in_ : int": (
        "Number of columns; of images ``(n_samples, channels, height, width)``, the "
        "number of channels."
    ),
    "feature_names_in_ : ndarray of str": "Names of the columns, if `X` had any.",
}


def describe(**values: str) -> Callable[[Described], Described]:
    """Return a class decorator that writes the shared parts of a docstring.

    The marks ``%(parameters)s`` and ``%(common_attributes)s`` stand alone on their
    lines in the docstring of the class.

    Parameters
    ----------
    **values : str
        Text for ``{name}`` in the descriptions of parameters.
    """

    def described(cls: Described) -> Described:
        roles = " ".join(f'"{name}" {role}.' for name, role in cls._roles.items())
        words = {"roles": roles or "This detector takes none."}
        words |= {k: f"{words.get(k, '')}{v}" for k, v in values.items()}
        return fill_in(
            parameters="\n".join(parameter_entries(cls, words)),
            common_attributes="\n".join(starmap(entry, ATTRIBUTES.items())),
        )(cls)

    return described


def fill_in(**blocks: str) -> Callable[[Described], Described]:
    """Return a decorator that replaces marks in a docstring by text.

    Parameters
    ----------
    **blocks : str
        Lines of text, for a mark ``%(name)s`` alone on a line that is not indented.
    """

    def filled(described: Described) -> Described:
        if described.__doc__:
            # Since 3.13, Python removes the indentation itself.
            text = cleandoc(described.__doc__) + "\n"
            for name, block in blocks.items():
                text = text.replace(f"%({name})s", block)
            described.__doc__ = text
        return described

    return filled
