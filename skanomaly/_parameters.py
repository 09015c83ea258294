"""Parameters that all detectors have, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from numpy.random import RandomState
from skorch.callbacks import Callback

from .utils._parameters import Auto, Declared, parameter
from .utils._sklearn_compat import (
    AUTO,
    AUTO_COUNT,
    AUTO_POSITIVE,
    Integral,
    Interval,
    Options,
    Real,
    StrOptions,
)

__all__ = ["CommonParameters"]


class CommonParameters(Declared):
    """What every detector can be told.

    ``{name}`` in a text is filled in by the detectors, see
    :func:`~skanomaly.utils._docstring.describe`.
    """

    max_epochs: int | Auto = parameter(
        AUTO_COUNT,
        default="auto",
        doc="""
        Passes over the data. "auto" makes {auto_steps} optimiser steps whatever the
        number of rows, and the rest of a pass that has begun; where a single pass would
        be longer, an epoch is cut after that many.
        """,
    )
    batch_size: int = parameter(
        [Interval(Integral, 2, None, closed="left")],
        default=32,
        doc="Rows per optimiser step, at least 2.{auto_batch}",
    )
    lr: float | Auto = parameter(
        AUTO_POSITIVE,
        default="auto",
        doc="Learning rate at the start, above 0. {auto_lr}",
    )
    scaling: Literal["auto", "minmax", "standard"] | None = parameter(
        [StrOptions({"auto", "minmax", "standard"}), None],
        default="auto",
        doc="""
        "minmax" maps the range of the training data to [-1, 1]: column by column for
        tables, over all pixels for images, where uint8 has the range 0 to 255.
        "standard" gives each column, or channel, mean 0 and variance 1. "auto" is
        "standard" for tables and "minmax" for images; None leaves the numbers alone.
        """,
    )
    image_shape: tuple[int, ...] | None = parameter(
        [tuple, list, None],
        default=None,
        doc="""
        ``(c, h, w)``: reads each row of a table as an image, so that a detector for
        images can follow steps that work on tables; ``(c, t, h, w)`` as a clip, where
        the detector takes these. Arrays of such a shape need no hint.
        """,
    )
    architecture: Literal["auto", "mlp", "conv"] | dict[str, Callable] = parameter(
        [StrOptions({"auto", "mlp", "conv"}), dict],
        default="auto",
        doc="""
        "mlp" for tables, "conv" for images; "auto" chooses by the shape of the data. A
        dict of functions replaces networks of that family by your own, by role. {roles}
        """,
    )
    width: int | Auto = parameter(
        AUTO_COUNT,
        default="auto",
        doc="{width}",
    )
    contamination: float | Auto = parameter(
        [
            Interval(Real, 0, 0.5, closed="right"),
            Options(Real, {0}),
            AUTO,
        ],
        default="auto",
        doc="""
        Sets ``offset_``, below which a score means an outlier. A float in (0, 0.5] is
        the share of the training rows to fall below it; 0 takes the lowest training
        score; "auto" takes {auto_offset}.
        """,
    )
    device: str = parameter(
        [str],
        default="auto",
        doc="""
        "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU where there is one.
        """,
    )
    precision: Literal["float32", "bfloat16"] = parameter(
        [StrOptions({"float32", "bfloat16"})],
        default="float32",
        doc="""
        Number format of the training steps. Scores are float64 made from float32.
        """,
    )
    callbacks: list[Callback] | None = parameter(
        [list, tuple, None],
        default=None,
        doc="Called in every stage of the training.",
    )
    on_interrupt: Literal["raise", "keep"] = parameter(
        [StrOptions({"raise", "keep"})],
        default="raise",
        doc="""
        What becomes of an interrupt from the keyboard (Ctrl-C) during training. "raise"
        lets it out, and the detector stays what it was before ``fit``; "keep" ends the
        training and keeps what there is, with a
        :class:`~skanomaly.exceptions.FitInterruptedWarning`. Not for a search: the fit
        that was cut short would take part as a whole one.
        """,
    )
    warm_start: bool = parameter(
        ["boolean"],
        default=False,
        doc="Whether another ``fit`` goes on where the last one ended.",
    )
    verbose: int = parameter(
        ["verbose"],
        default=0,
        doc="1 shows one progress bar: stage, epoch, losses, time left.",
    )
    random_state: int | RandomState | None = parameter(
        ["random_state"],
        default=None,
        doc="""
        An int makes two fits on the same machine equal to the bit. The global states of
        NumPy and torch are never moved; a RandomState instance is.
        """,
    )
