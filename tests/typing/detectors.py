"""Type checkers know the results of detectors; `make lint` reads this file."""

from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from skanomaly import ADRA, AABiGAN, HistoryAD, JointEncoderGAN, TransferAD

X = np.zeros((10, 2))

assert_type(HistoryAD().fit(X), HistoryAD)
assert_type(AABiGAN().fit(X, [1] * 10), AABiGAN)
assert_type(JointEncoderGAN().fit(X), JointEncoderGAN)
assert_type(ADRA().fit(X), ADRA)
assert_type(TransferAD().fit(X, X_source=X), TransferAD)

detector = HistoryAD().set_params(lam=1)
assert_type(detector, HistoryAD)
assert_type(detector.score_samples(X), NDArray[np.float64])
assert_type(detector.decision_function(X), NDArray[np.float64])
assert_type(detector.predict(X), NDArray[np.int64])
assert_type(detector.fit_predict([[1.0], [2.0]]), NDArray[np.int64])
assert_type(detector.offset_, float)
assert_type(detector.n_iter_, int)
assert_type(detector.n_features_in_, int)
assert_type(detector.interrupted_, bool)
assert_type(detector.image_shape_, tuple[int, ...] | None)
assert_type(detector.net_.n_estimators, int)
