"""Type checkers know the parameters of detectors; `make lint` reads this file.

Each ``type: ignore`` stands for an error that mypy has to find: one that it does not is
reported as not needed.
"""

from skanomaly import ADRA, AABiGAN, HistoryAD, JointEncoderGAN, TransferAD

HistoryAD(lam=1, alpha="auto", latent_dim=3, max_epochs="auto", batch_size=7)
HistoryAD(lam="x")  # type: ignore[arg-type]
HistoryAD(lmbda=1)  # type: ignore[call-arg]
HistoryAD(10)  # type: ignore[call-arg]
AABiGAN(criterion="map", n_estimators="auto")
AABiGAN(criterion="other")  # type: ignore[arg-type]
TransferAD(beta=(1.0, 20.0), eta=None, transfer_lam="auto")
TransferAD(beta="x")  # type: ignore[arg-type]
JointEncoderGAN(preset="paper", batch_size="auto")
JointEncoderGAN(preset="papers")  # type: ignore[arg-type]
ADRA(n_experts=2, augment=None, corpus=[[1.0]])
ADRA(latent_dim=2)  # type: ignore[call-arg]

lam: float = HistoryAD().lam
