"""Errors and warnings of the package."""

from __future__ import annotations

__all__ = [
    "CalibrationWarning",
    "ConstantScoresWarning",
    "CorpusSourceWarning",
    "CoverageWarning",
    "FalseAlarmWarning",
    "FitInterruptedWarning",
    "InvalidFileError",
    "NormDirectionWarning",
    "PixelRangeWarning",
    "SaturatedWeightsWarning",
    "StopTraining",
    "TrainingDivergedError",
]


class TrainingDivergedError(RuntimeError):
    """A loss or a score became infinite or NaN in the training of a detector.

    The message names the loss, the epoch and possible remedies. The detector is the
    same as before ``fit``.
    """


class InvalidFileError(ValueError):
    """A file of a detector, or a checkpoint, was not written here, or has changed.

    It may have been edited, truncated or copied badly, or it may not describe a
    detector of this version, or the same fit.
    """


class StopTraining(Exception):  # noqa: N818
    """An exception for callbacks, which ends a stage of the training without error."""


class CalibrationWarning(UserWarning):
    """Calibration samples are too few, or too similar, for the requested rate.

    The message states their number, the lowest rate that they support, and the number
    that the requested rate needs.
    """


class ConstantScoresWarning(UserWarning):
    """All training samples have the same score, which makes the detector useless.

    The samples are equal, before or after scaling, or a parameter keeps the networks
    from learning.
    """


class FalseAlarmWarning(UserWarning):
    """The threshold that a method's theory gives flags many normal samples.

    The message states the share, measured on samples that were held out. A number for
    `contamination`, or ``set_threshold``, sets a threshold that keeps its rate.
    """


class FitInterruptedWarning(UserWarning):
    """Training was interrupted from the keyboard, and the detector is usable.

    ``on_interrupt="keep"`` keeps the state that the training had reached.
    """


class CoverageWarning(UserWarning):
    """The generated negatives leave a part of the data uncovered.

    The scores in that part are extrapolated.
    """


class CorpusSourceWarning(UserWarning):
    """The corpus differs from the normal images in camera, format or noise.

    A detector trained on both may learn this difference instead of normal content,
    whereas anomalies come from the source of the normal images.
    """


class SaturatedWeightsWarning(UserWarning):
    """All importance weights are nearly 0, or all nearly 1.

    Such weights do not select samples: with 0 the detector learns nothing from the
    target domain, with 1 also its anomalies.
    """


class NormDirectionWarning(UserWarning):
    """The norm of latent codes may rank samples the wrong way.

    The score assumes that anomalies have short codes, but real samples, on which the
    encoder was not trained, have longer codes than generated ones.
    """


class PixelRangeWarning(UserWarning):
    """A few images have pixels far beyond the range of all others.

    These pixels are clipped and do not affect the scaling: otherwise the other images
    would have hardly any contrast.
    """
