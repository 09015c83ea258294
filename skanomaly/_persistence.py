"""Detectors as files that hold numbers and names, never code."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ._base import BaseDeepDetector
from ._version import __version__
from .utils._scaling import ImageScaler

__all__ = ["load", "save"]
