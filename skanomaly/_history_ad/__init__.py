"""HistoryAD: its networks, the GAN and its history, the estimator."""

from ._estimator import HistoryAD

__all__ = ["HistoryAD"]
