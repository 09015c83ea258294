"""Errors and warnings of the package."""

from __future__ import annotations

__all__ = [
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
    """A loss or a score became infinite or NaN while a detector was trained.

    The message names the loss, the epoch and what to change. The detector is
    left as it was before ``fit``.
    """


class InvalidFileError(ValueError):
    """A file is none that ``skanomaly.save`` wrote, or is not as it was written.

    It may have been changed, cut short or copied badly, be of something else, or hold
    what no detector of this version has.
    """


class StopTraining(Exception):  # noqa: N818
    """Raised by a callback to end a stage of the training early and regularly."""


class ConstantScoresWarning(UserWarning):
    """All training rows have the same score, so that the detector tells nothing.

    The rows are equal, or so nearly equal that nothing of it is left when they are
    scaled, or a parameter leaves the networks nothing to learn.
    """


class FitInterruptedWarning(UserWarning):
    """Training was interrupted from the keyboard; the detector is usable.

    It is what it was at that time, as ``on_interrupt="keep"`` asks for.
    """


class CoverageWarning(UserWarning):
    """The generated negatives leave a part of the data uncovered.

    The scores of rows in that part rest on extrapolation alone.
    """


class CorpusSourceWarning(UserWarning):
    """A corpus can be told from the normal images by how both were made.

    A detector that is to tell them apart may learn the camera, the format or the noise
    of images, and not what is normal; anomalies come from the source of normal images.
    """


class SaturatedWeightsWarning(UserWarning):
    """All importance weights are nearly 0, or all nearly 1.

    Then they tell no row from another: with 0 nothing is learned from the target
    domain, with 1 everything, its anomalies included.
    """


class NormDirectionWarning(UserWarning):
    """The length of codes may point the wrong way.

    A detector takes rows with short codes for anomalous, but real rows, which its
    encoder was not trained on, have longer ones than generated rows.
    """


class PixelRangeWarning(UserWarning):
    """A few images have pixels far beyond the range of all others.

    The scaling is learned without them, since it would leave hardly any contrast to
    the others; such pixels are cut off.
    """
