"""Type checkers know the metrics, splitters and files; `make lint` reads this."""

from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from skanomaly import HistoryAD, load, save
from skanomaly.metrics import (
    DetectorRocDisplay,
    ScoreDistributionDisplay,
    TrainingHistoryDisplay,
    dci_scores,
    detector_average_precision_score,
    detector_roc_auc,
    detector_roc_auc_score,
)
from skanomaly.model_selection import LeaveAnomalyKindOut, TargetKFold

X, y = np.zeros((9, 2)), np.ones(9)
detector = HistoryAD().fit(X)
save(detector, "detector.safetensors")
assert_type(load("detector.safetensors").decision_function(X), NDArray[np.float64])
assert_type(detector_roc_auc_score(y, y), float)
assert_type(detector_average_precision_score(y, y, sample_weight=y), float)
assert_type(detector_roc_auc(detector, X, y), float)
assert_type(DetectorRocDisplay.from_estimator(detector, X, y), DetectorRocDisplay)
assert_type(ScoreDistributionDisplay(y).y_score, NDArray[np.float64])
assert_type(TrainingHistoryDisplay.from_estimator(detector).name, str | None)
assert_type(dci_scores(X, X).disentanglement, float)
assert_type(dci_scores(X, X).importances, NDArray[np.float64])
for train, test in TargetKFold(y, n_splits=3).split(X, y):
    assert_type(train, NDArray[np.intp])
    assert_type(test, NDArray[np.intp])
assert_type(LeaveAnomalyKindOut(y).get_n_splits(y=y), int)
detector_roc_auc_score(y, y, weight=y)  # type: ignore[call-arg]
TargetKFold(folds=3)  # type: ignore[call-arg]
