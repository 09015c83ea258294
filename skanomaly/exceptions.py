"""Errors and warnings of the package."""

from __future__ import annotations

__all__ = [
    "CalibrationWarning",
    "ConstantScoresWarning",
    "CorpusSourceWarning",
    "CoverageWarning",
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
    """A file was not written by ``skanomaly.save``, or has changed since.

    It may have been edited, cut short or copied badly, describe something else, or hold
    attributes that no detector of this version has.
    """


class StopTraining(Exception):  # noqa: N818
    """An exception for callbacks, which ends a stage of the training without error."""


class CalibrationWarning(UserWarning):
    """Calibration samples are too few, or too much alike, for the rate asked for.

    The message has their number, the least rate that they support, and the number that
    the rate needs.
    """


class ConstantScoresWarning(UserWarning):
    """All training samples have the same score, so that the detector is of no use.

    The samples are equal, or are equal once they are scaled, or a parameter leaves the
    networks nothing to learn.
    """


class FitInterruptedWarning(UserWarning):
    """Training was interrupted from the keyboard, and the detector is usable.

    With ``on_interrupt="keep"`` it is fitted as far as the training came.
    """


class CoverageWarning(UserWarning):
    """The generated negatives leave a part of the data uncovered.

    The scores in that part are extrapolated.
    """


class CorpusSourceWarning(UserWarning):
    """The corpus differs from the normal images in camera, format or noise.

    A detector trained on both may learn this difference of sources instead of normal
    content, whereas anomalies come from the source of the normal images.
    """


class SaturatedWeightsWarning(UserWarning):
    """All importance weights are nearly 0, or all nearly 1.

    They then do not select samples: with 0 nothing is learned from the target domain,
    with 1 everything, its anomalies included.
    """


class NormDirectionWarning(UserWarning):
    """The norm of latent codes may order samples the wrong way.

    A detector takes samples with short codes for anomalous, but real samples, on which
    its encoder was not trained, have longer codes than generated ones.
    """


class PixelRangeWarning(UserWarning):
    """A few images have pixels far beyond the range of all others.

    The scaling is learned without these pixels, which are clipped: with them, the other
    images would have hardly any contrast.
    """
