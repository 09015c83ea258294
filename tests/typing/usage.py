"""A user's script, which ``mypy --strict`` accepts; ``make lint`` reads this file.

No type is ``Any`` where an array or the detector itself is meant: ``assert_type`` fails
for it.
"""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline

import skanomaly
from skanomaly import (
    ADRA,
    AABiGAN,
    ConformalDetector,
    HistoryAD,
    JointEncoderGAN,
    TransferAD,
    explain,
)
from skanomaly.datasets import fetch_odds, one_vs_rest
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

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

X: Floats = np.random.default_rng(0).normal(size=(100, 3))
y: Integers = np.ones(100, dtype=np.int64)
frame = pd.DataFrame(X, columns=["a", "b", "c"])

# Fit, and score ---------------------------------------------------------------------

detector = HistoryAD(random_state=0, max_epochs=3)
assert_type(detector.fit(X), HistoryAD)
assert_type(HistoryAD().fit(frame), HistoryAD)
assert_type(HistoryAD().fit([[1.0, 2.0], [3.0, 4.0]]), HistoryAD)
assert_type(detector.score_samples(X), Floats)
assert_type(detector.decision_function(frame), Floats)
assert_type(detector.predict(X), Integers)
assert_type(detector.fit_predict(X), Integers)
assert_type(detector.p_value(frame), Floats)
assert_type(detector.predict_fdr(X, 0.1), Integers)
assert_type(detector.set_threshold(false_alarm_rate=0.1), HistoryAD)
assert_type(detector.calibrate(X), HistoryAD)
assert_type(detector.calibration_scores_, Floats)
assert_type(detector.offset_, float)
assert_type(detector.n_features_in_, int)
assert_type(detector.n_iter_, int)
assert_type(detector.interrupted_, bool)
assert_type(detector.image_shape_, tuple[int, ...] | None)
assert_type(detector.net_.n_estimators, int)
assert_type(detector.set_params(lam=2.0), HistoryAD)
assert_type(detector.get_params(), dict[str, Any])

assert_type(AABiGAN().fit(X, y), AABiGAN)
assert_type(TransferAD().fit(X, X_source=X), TransferAD)
assert_type(TransferAD().fit(X, sample_domain=y), TransferAD)
assert_type(JointEncoderGAN().fit(X), JointEncoderGAN)
assert_type(ADRA(corpus=X).fit(X, y), ADRA)

# Methods of detectors with a generator or an encoder ---------------------------------

assert_type(detector.sample(3, random_state=0), NDArray[Any])  # bytes, or floats
assert_type(AABiGAN().encode(X), NDArray[np.float32])
assert_type(AABiGAN().transform(X), NDArray[np.float32])
assert_type(AABiGAN().inverse_transform(AABiGAN().transform(X)), NDArray[Any])
assert_type(JointEncoderGAN().reconstruct(X), NDArray[Any])
assert_type(JointEncoderGAN().anomaly_map(X), NDArray[np.float32])

# Data and metrics -----------------------------------------------------------------

data, labels = fetch_odds("wbc", return_X_y=True)
assert_type(data, NDArray[np.float32] | Floats)
X_train, X_test, y_train, y_test = one_vs_rest(X, y, normal_class=1, random_state=0)
scores = HistoryAD().fit(X_train).score_samples(X_test)
assert_type(detector_roc_auc_score(y_test, scores), float)
assert_type(detector_average_precision_score(y, scores, sample_weight=y), float)
assert_type(detector_roc_auc(detector, X, y), float)
detector_roc_auc_score(y, scores, weight=y)  # type: ignore[call-arg]
assert_type(DetectorRocDisplay.from_estimator(detector, X, y), DetectorRocDisplay)
assert_type(ScoreDistributionDisplay(y).y_score, Floats)
assert_type(TrainingHistoryDisplay.from_estimator(detector).name, str | None)
assert_type(dci_scores(X, X).disentanglement, float)
assert_type(dci_scores(X, X).importances, Floats)
for train, test in TargetKFold(y, n_splits=3).split(X, y):
    assert_type(train, NDArray[np.intp])
    assert_type(test, NDArray[np.intp])
assert_type(LeaveAnomalyKindOut(y).get_n_splits(y=y), int)
TargetKFold(folds=3)  # type: ignore[call-arg]

# Files --------------------------------------------------------------------------------

skanomaly.save(detector, Path("detector.safetensors"))
loaded = skanomaly.load("detector.safetensors")
assert_type(loaded.score_samples(X), Floats)
assert_type(loaded.predict(X), Integers)

# Calibration and explanations --------------------------------------------------------

calibrated = ConformalDetector(detector, false_alarm_rate=0.01)
assert_type(calibrated.fit(X), ConformalDetector)
assert_type(calibrated.p_value(X), Floats)
assert_type(calibrated.predict_fdr(X, level=0.1), Integers)
assert_type(
    calibrated.set_threshold(false_alarm_rate=0.1, confidence=0.9), ConformalDetector
)
assert_type(explain(detector, X, X), Floats)
assert_type(explain(detector, frame, frame), pd.DataFrame)

# Search -------------------------------------------------------------------------------

pipeline: Pipeline = make_pipeline(HistoryAD())
search: GridSearchCV = GridSearchCV(
    HistoryAD(),
    {"lam": [0.1, 1.0]},
    scoring=detector_roc_auc,
    cv=LeaveAnomalyKindOut(),
)
search.fit(X, y)
