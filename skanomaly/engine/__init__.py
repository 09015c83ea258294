"""The training engine: rows on a device, players that take turns, callbacks."""

from ._bar import Bar
from ._callbacks import (
    AverageWeights,
    KeepBest,
    LinearDecay,
    ProgressBar,
    RateSchedule,
    StepDecay,
)
from ._net import AlternatingNet, MomentumFreeAdam, Player, input_gradient
from ._rows import HOST_BYTES, Batches, MappedRows, Rows

__all__ = [
    "HOST_BYTES",
    "AlternatingNet",
    "AverageWeights",
    "Bar",
    "Batches",
    "KeepBest",
    "LinearDecay",
    "MappedRows",
    "MomentumFreeAdam",
    "Player",
    "ProgressBar",
    "RateSchedule",
    "Rows",
    "StepDecay",
    "input_gradient",
]
