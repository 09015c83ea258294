"""Parameters that all detectors have, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Literal

from numpy.random import RandomState
from skorch.callbacks import Callback

from .utils._parameters import Auto, Declared, parameter
from .utils._sklearn_compat import (
    AUTO,
    AUTO_COUNT,
    AUTO_POSITIVE,
    HasMethods,
    Integral,
    Interval,
    Options,
    Real,
    StrOptions,
)

__all__ = ["CommonParameters"]


class CommonParameters(Declared):
    """Parameters that all detectors have.

    Detectors replace ``{name}`` in a description, see
    :func:`~skanomaly.utils._docstring.describe`.
    """

    max_epochs: int | Auto = parameter(
        AUTO_COUNT,
        default="auto",
        doc="""
        Number of passes over the data. "auto" trains for {auto_steps} optimiser steps,
        for any number of samples, and completes the last pass. If a pass has more
        steps, an epoch ends after that many.
        """,
    )
    batch_size: int = parameter(
        [Interval(Integral, 2, None, closed="left")],
        default=32,
        doc="""
        Samples per optimiser step, at least 2.{auto_batch} Of several processes that
        train together, each has that many.
        """,
    )
    lr: float | Auto = parameter(
        AUTO_POSITIVE,
        default="auto",
        doc="Initial learning rate, above 0. {auto_lr}",
    )
    scaling: Literal["auto", "minmax", "standard"] | None = parameter(
        [StrOptions({"auto", "minmax", "standard"}), None],
        default="auto",
        doc="""
        Method that scales the data, learned in ``fit``. "minmax" maps the range of the
        training data to [-1, 1]: column by column for tables, over all pixels for
        images, where uint8 has the range 0 to 255. "standard" gives each column, or
        channel, mean 0 and variance 1. "auto" is "standard" for tables and "minmax" for
        images; None does not scale.
        """,
    )
    image_shape: tuple[int, ...] | None = parameter(
        [tuple, list, None],
        default=None,
        doc="""
        Shape of the images that are samples of a table. ``(channels, height, width)``
        reads each sample as an image, so that images can pass through pipeline steps
        for tables; ``(channels, frames, height, width)`` reads it as a clip, if the
        detector takes clips. Arrays of images or clips do not need it.
        """,
    )
    architecture: Literal["auto", "mlp", "conv"] | dict[str, Callable] = parameter(
        [StrOptions({"auto", "mlp", "conv"}), dict],
        default="auto",
        doc="""
        Family of networks: "mlp" for tables, "conv" for images, "auto" by the shape of
        the data. A dict replaces networks of that family by your own: it maps roles to
        functions that build networks. {roles}
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
        Sets the threshold ``offset_``: samples with lower scores are outliers. A float
        in (0, 0.5] is the share of new samples like the training samples that
        ``predict`` flags: those with ``p_value(X) <= contamination``. 0 takes the
        lowest score in ``fit``; "auto" takes {auto_offset}.
        """,
    )
    calibration: float | Auto | None = parameter(
        [Interval(Real, 0, 1, closed="neither"), AUTO, None],
        default="auto",
        doc="""
        Samples that are held out from training: their scores, which are like those of
        new samples, set threshold and p-values. A float in (0, 1) is their share of the
        samples, known anomalies and source samples aside. "auto" is a tenth, at
        least 19 and as many as `contamination` needs, unless these are more than a
        third. None holds none out: the threshold comes from training samples, and
        there are no p-values before ``calibrate``.
        """,
    )
    device: str = parameter(
        [str],
        default="auto",
        doc="""
        Device for training and scoring: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a
        GPU if there is one.
        """,
    )
    precision: Literal["auto", "float32", "bfloat16"] = parameter(
        [StrOptions({"auto", "float32", "bfloat16"})],
        default="auto",
        doc="""
        Number format of the training steps. "auto" is "bfloat16" for images in
        HistoryAD and JointEncoderGAN, where it is as good, on a CPU with instructions
        for it, and "float32" otherwise. Scores are computed in float32, and returned
        as float64.
        """,
    )
    callbacks: list[Callback] | None = parameter(
        [list, tuple, None],
        default=None,
        doc="Callbacks of skorch, called in every stage of the training.",
    )
    checkpoint: str | PathLike[str] | None = parameter(
        [str, HasMethods(["__fspath__"]), None],
        default=None,
        doc="""
        Folder for the state of the training, which is written after every epoch, at
        most once a second. If the process is killed, the same ``fit`` goes on from
        there, to the same result; data, parameters and seed have to be the same, so
        that it needs an integer `random_state`. When a fit has ended, its files are
        removed.
        """,
        type_text="str, path-like or None",
    )
    on_interrupt: Literal["raise", "keep"] = parameter(
        [StrOptions({"raise", "keep"})],
        default="raise",
        doc="""
        Reaction to an interrupt from the keyboard (Ctrl-C) during training. "raise"
        raises the KeyboardInterrupt, and leaves the detector as before ``fit``. "keep"
        ends the training and keeps the networks as they are, with a
        :class:`~skanomaly.exceptions.FitInterruptedWarning`. Do not use "keep" in a
        search, which would treat the interrupted fit as a complete one.
        """,
    )
    warm_start: bool = parameter(
        ["boolean"],
        default=False,
        doc="Whether another ``fit`` continues where the last one ended.",
    )
    verbose: int = parameter(
        ["verbose"],
        default=0,
        doc="""
        Output during training: 0 shows nothing, 1 a progress bar with stage, epoch,
        losses and time left.
        """,
    )
    random_state: int | RandomState | None = parameter(
        ["random_state"],
        default=None,
        doc="""
        Seed of all random numbers. An int makes two fits on the same machine equal to
        the bit. The global states of NumPy and torch never change; the state of a
        RandomState instance does.
        """,
    )
