"""Scores and Displays for detectors, with the anomaly as the positive class.

Everywhere in this package `y` holds +1 (normal) and -1 (anomaly), and a score is
higher for a more normal row: scikit-learn's conventions for outlier detection.

`dci_scores` judges latent codes by the factors that generate the samples.
"""

from ._anomaly_map import AnomalyMapDisplay
from ._curves import DetectorPrecisionRecallDisplay, DetectorRocDisplay
from ._disentanglement import dci_scores
from ._explanation import ExplanationDisplay
from ._score_distribution import ScoreDistributionDisplay
from ._scorer import (
    detector_average_precision,
    detector_average_precision_score,
    detector_roc_auc,
    detector_roc_auc_score,
)
from ._training_history import TrainingHistoryDisplay

__all__ = [
    "AnomalyMapDisplay",
    "DetectorPrecisionRecallDisplay",
    "DetectorRocDisplay",
    "ExplanationDisplay",
    "ScoreDistributionDisplay",
    "TrainingHistoryDisplay",
    "dci_scores",
    "detector_average_precision",
    "detector_average_precision_score",
    "detector_roc_auc",
    "detector_roc_auc_score",
]
