"""TransferAD: importance weighted adversarial transfer between two domains."""

from ._estimator import TransferAD

__all__ = ["TransferAD"]
