"""ADRA: residual adapters in a frozen pretrained network, with outlier exposure."""

from ._estimator import ADRA

__all__ = ["ADRA"]
