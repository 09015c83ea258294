"""Descriptions that several classes or functions have, written once."""

from __future__ import annotations

from inspect import cleandoc
from textwrap import fill

__all__ = ["describe_common", "fill_in"]

# Name and type, then the description; the marks are filled in by each detector.
PARAMETERS = {
    'max_epochs : int or "auto", default="auto"': (
        'Passes over the data. "auto" makes {auto_steps} optimiser steps whatever the '
        "number of rows, and the rest of a pass that has begun; where a single pass "
        "would be longer, an epoch is cut after that many."
    ),
    "batch_size : {batch_size}": "Rows per optimiser step, at least 2.{auto_batch}",
    'lr : float or "auto", default="auto"': (
        "Learning rate at the start, above 0. {auto_lr}"
    ),
    'scaling : {{"auto", "minmax", "standard"}} or None, default="auto"': (
        '"minmax" maps the range of the training data to [-1, 1]: column by column '
        "for tables, over all pixels for images, where uint8 has the range 0 to 255. "
        '"standard" gives each column, or channel, mean 0 and variance 1. "auto" is '
        '"standard" for tables and "minmax" for images; None leaves the numbers alone.'
    ),
    "image_shape : tuple of int, default=None": (
        "``(c, h, w)``: reads each row of a table as an image, so that a detector for "
        "images can follow steps that work on tables; ``(c, t, h, w)`` as a clip, "
        "where the detector takes these. Arrays of such a shape need no hint."
    ),
    'architecture : {{"auto", "mlp", "conv"}} or dict, default="auto"': (
        '"mlp" for tables, "conv" for images; "auto" chooses by the shape of the '
        "data. A dict replaces networks of that family by your own: {roles}."
    ),
    'width : int or "auto", default="auto"': "{width}",
    'contamination : float or "auto", default="auto"': (
        "Sets ``offset_``, below which a score means an outlier. A float in (0, 0.5] "
        "is the share of the training rows to fall below it; 0 takes the lowest "
        'training score; "auto" takes {auto_offset}.'
    ),
    'device : str, default="auto"': (
        '"cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU where there is one.'
    ),
    'precision : {{"float32", "bfloat16"}}, default="float32"': (
        "Number format of the training steps. Scores are float64 made from float32."
    ),
    "callbacks : list of skorch.callbacks.Callback, default=None": (
        "Called in every stage of the training."
    ),
    'on_interrupt : {{"raise", "keep"}}, default="raise"': (
        "What becomes of an interrupt from the keyboard (Ctrl-C) during training. "
        '"raise" lets it out, and the detector stays what it was before ``fit``; '
        '"keep" ends the training and keeps what there is, with a '
        ":class:`~skanomaly.exceptions.FitInterruptedWarning`. Not for a search: the "
        "fit that was cut short would take part as a whole one."
    ),
    "warm_start : bool, default=False": (
        "Whether another ``fit`` goes on where the last one ended."
    ),
    "verbose : int, default=0": (
        "1 shows one progress bar: stage, epoch, losses, time left."
    ),
    "random_state : int, RandomState instance or None, default=None": (
        "An int makes two fits on the same machine equal to the bit. The global states "
        "of NumPy and torch are never moved; a RandomState instance is."
    ),
}

ATTRIBUTES = {
    "net_ : skorch.NeuralNet": "The trained networks that give the score.",
    "offset_ : float": "``decision_function(X) = score_samples(X) - offset_``.",
    "history_ : list of dict": (
        'One record per epoch: "stage", "epoch", "duration" in seconds, and the mean '
        "of each loss."
    ),
    "n_iter_ : int": "Number of epochs, over all stages.",
    "interrupted_ : bool": "Whether the last ``fit`` was cut short from the keyboard.",
    "image_shape_ : tuple of int or None": (
        "Shape ``(c, h, w)`` of one image, None for tables."
    ),
    "scaler_ : transformer or None": "The fitted scaler.",
    "n_features_in_ : int": (
        "Number of columns; for images of shape (n, c, h, w) the number of channels."
    ),
    "feature_names_in_ : ndarray of str": "Names of the columns, if `X` had any.",
}

_BLOCKS = {"common_parameters": PARAMETERS, "common_attributes": ATTRIBUTES}


def describe_common(**values: str):
    """Return a class decorator that fills in the shared descriptions.

    The marks ``%(common_parameters)s`` and ``%(common_attributes)s`` stand alone
    on their lines in the docstring of the class.

    Parameters
    ----------
    **values : str
        What differs between detectors in the shared descriptions.
    """
    blocks = {
        name: "\n".join(_entry(*item, values) for item in entries.items())
        for name, entries in _BLOCKS.items()
    }
    return fill_in(**blocks)


def fill_in(**blocks: str):
    """Return a decorator that puts text in the place of marks in a docstring.

    Parameters
    ----------
    **blocks : str
        Lines of text, for a mark ``%(name)s`` alone on a line that is not indented.
    """

    def filled(described):
        if described.__doc__:
            # Not indented, whether Python has taken the indentation away or not.
            text = cleandoc(described.__doc__) + "\n"
            for name, block in blocks.items():
                text = text.replace(f"%({name})s", block)
            described.__doc__ = text
        return described

    return filled


def _entry(head, text, values):
    indent = " " * 4
    body = fill(
        text.format(**values), 84, initial_indent=indent, subsequent_indent=indent
    )
    return f"{head.format(**values)}\n{body}"
