from . import datasets, exceptions, metrics, model_selection
from ._aa_bigan import AABiGAN
from ._adra import ADRA
from ._history_ad import HistoryAD
from ._joint_encoder_gan import JointEncoderGAN
from ._persistence import load, save
from ._transfer_ad import TransferAD
from ._version import show_versions
from .calibration import ConformalDetector
from .explanation import explain
from .export import export_onnx, score_module

__all__ = [
    "ADRA",
    "AABiGAN",
    "ConformalDetector",
    "HistoryAD",
    "JointEncoderGAN",
    "TransferAD",
    "datasets",
    "exceptions",
    "explain",
    "export_onnx",
    "load",
    "metrics",
    "model_selection",
    "save",
    "score_module",
    "show_versions",
]
