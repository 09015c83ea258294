"""AABiGAN: its networks, the game they play, the estimator."""

from ._estimator import AABiGAN

__all__ = ["AABiGAN"]
