"""AABiGAN: its networks, their training, the estimator."""

from ._estimator import AABiGAN

__all__ = ["AABiGAN"]
