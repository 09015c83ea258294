"""The training engine: data on a device, alternating players, callbacks."""

from ._bar import Bar
from ._callbacks import (
    AverageWeights,
    KeepBest,
    LinearDecay,
    ProgressBar,
    RateSchedule,
    StepDecay,
)
from ._checkpoint import Checkpoint
from ._copy import ended_copy
from ._dataset import HOST_BYTES, Batches, DeviceDataset, TransformedDataset
from ._net import AlternatingNet, Player, input_gradient
from ._optimizers import Adam
from ._processes import (
    all_rows,
    begin_together,
    fail_together,
    is_first,
    n_processes,
    own_rows,
)
from ._side_by_side import Outcome, fit_side_by_side, stage_once

__all__ = [
    "HOST_BYTES",
    "Adam",
    "AlternatingNet",
    "AverageWeights",
    "Bar",
    "Batches",
    "Checkpoint",
    "DeviceDataset",
    "KeepBest",
    "LinearDecay",
    "Outcome",
    "Player",
    "ProgressBar",
    "RateSchedule",
    "StepDecay",
    "TransformedDataset",
    "all_rows",
    "begin_together",
    "ended_copy",
    "fail_together",
    "fit_side_by_side",
    "input_gradient",
    "is_first",
    "n_processes",
    "own_rows",
    "stage_once",
]
