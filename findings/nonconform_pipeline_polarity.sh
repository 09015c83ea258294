#!/usr/bin/env bash
# nonconform 2.0.0: the outliers of a scikit-learn pipeline have a p-value of 1.
#
# ConformalDetector knows the detectors of scikit-learn, whose scores are higher for
# normal samples, and turns them round: a bare IsolationForest gives outliers low
# p-values. Without score_polarity, an estimator that it does not know is taken to score
# outliers higher, in silence. A Pipeline is such an estimator, even if its last step is
# an IsolationForest: the same forest behind a StandardScaler has p-values that are
# upside down, and nothing is ever flagged. score_polarity="auto" would raise an error,
# and "higher_is_normal" is right; neither is the default.
#
# Expected: with and without a scaler, 50 samples far out have the lowest p-value, 1/91.
#
# Seen: with the scaler all of them have the p-value 1.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
# The package needs Python 3.12.
for python in python3 python3.14 python3.13 python3.12; do
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && break
done
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nonconform==2.0.0 scikit-learn==1.9.1
"$folder/venv/bin/python" - <<'PY'
import logging
from importlib.metadata import version

import numpy as np
from nonconform import ConformalDetector, Split
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

logging.disable(logging.WARNING)  # that a pipeline has no random_state
rng = np.random.default_rng(0)
X, far = rng.normal(size=(300, 4)), rng.normal(size=(50, 4)) + 9


def p_values(detector, **options):
    detector = ConformalDetector(
        detector=detector, strategy=Split(n_calib=0.3), seed=0, **options
    )
    detector.fit(X)
    return detector.compute_p_values(far)


forest = IsolationForest(random_state=0)
pipeline = make_pipeline(StandardScaler(), forest)
bare = p_values(forest)
scaled = p_values(pipeline)
told = p_values(pipeline, score_polarity="higher_is_normal")
print("nonconform", version("nonconform"))
print("highest p-value, forest:                      ", bare.max().round(3))
print("lowest p-value, pipeline:                     ", scaled.min().round(3))
print("highest p-value, pipeline, higher_is_normal:  ", told.max().round(3))
assert bare.max() < 0.02 and told.max() < 0.02
assert scaled.min() == 1
PY
# Output seen (Python 3.12, x86_64):
#   nonconform 2.0.0
#   highest p-value, forest:                       0.011
#   lowest p-value, pipeline:                      1.0
#   highest p-value, pipeline, higher_is_normal:   0.011
