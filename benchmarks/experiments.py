"""All experiments and their tables, from the modules that declare them."""

from __future__ import annotations

from . import (
    aa_bigan,
    aa_bigan_step,
    adra,
    adra_cifar10,
    adra_experts,
    adra_step,
    calibration,
    defects,
    engine_overhead,
    explain,
    history_ad,
    history_memory,
    joint_encoder_gan,
    joint_encoder_gan_step,
    latency,
    maps,
    scale,
    search,
    steps,
    transfer,
)
from .runner import Experiment
from .tables import Table

MODULES = (
    engine_overhead,
    steps,
    latency,
    calibration,
    history_memory,
    history_ad,
    aa_bigan_step,
    aa_bigan,
    joint_encoder_gan_step,
    joint_encoder_gan,
    defects,
    maps,
    transfer,
    adra_step,
    adra,
    adra_cifar10,
    adra_experts,
    explain,
    search,
    scale,
)
EXPERIMENTS: list[Experiment] = [e for module in MODULES for e in module.EXPERIMENTS]
TABLES: list[Table] = [table for module in MODULES for table in module.TABLES]
