"""JointEncoderGAN: a progressive GAN whose encoder is trained along with it."""

from ._estimator import JointEncoderGAN

__all__ = ["JointEncoderGAN"]
