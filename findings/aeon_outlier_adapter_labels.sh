#!/usr/bin/env bash
# aeon 1.6.0: OutlierDetectionAdapter marks the normal series as anomalies.
#
# The adapter makes a detector of collections of series from any outlier detector of
# scikit-learn, whose predict is -1 for outliers and +1 for inliers. Its output is of
# type "binary": the documentation of the base classes has "anomalous (True/1) or not
# (False/0)". The adapter replaces -1 by 0 and leaves +1 as it is, and so returns 0 for
# outliers and 1 for inliers: who counts the ones counts the normal series.
#
# Expected: of 100 series of which 5 are far out, predict is 1 for about these 5.
#
# Seen: it is 0 for these 5, and 1 for 91 of the other 95.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet aeon==1.6.0 scikit-learn==1.9.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import aeon
import numpy as np
from aeon.anomaly_detection.collection import OutlierDetectionAdapter
from sklearn.ensemble import IsolationForest

X = np.random.default_rng(0).normal(size=(100, 1, 20))
X[:5] += 8
forest = IsolationForest(random_state=0)
labels = OutlierDetectionAdapter(forest).fit(X[5:]).predict(X)
own = forest.fit(X[5:, 0]).predict(X[:, 0])
print("aeon", aeon.__version__)
print("scikit-learn, outliers (-1):  ", np.sum(own[:5] == -1), "of the 5 far out,",
      np.sum(own[5:] == -1), "of the others")
print("adapter, anomalies (1):       ", np.sum(labels[:5] == 1), "of the 5 far out,",
      np.sum(labels[5:] == 1), "of the others")
assert (own[:5] == -1).all() and (own[5:] == -1).sum() < 10
assert (labels[:5] == 0).all()
assert (labels[5:] == 1).sum() > 85
PY
# Output seen (Python 3.11, x86_64):
#   aeon 1.6.0
#   scikit-learn, outliers (-1):   5 of the 5 far out, 4 of the others
#   adapter, anomalies (1):        0 of the 5 far out, 91 of the others
