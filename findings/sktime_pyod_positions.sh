#!/usr/bin/env bash
# sktime 1.2.0: PyODDetector says that outliers are at position 1, wherever they are.
#
# A detector of the task "anomaly_detection" returns the positions of the anomalies:
# predict has a column "ilocs", which "contains the iloc index at which the event takes
# place". The adapter of PyOD's detectors collects the labels of the outliers instead,
# each of which is 1, and these are then read as positions. The example in its docstring
# does not show it: its only outlier is the second row, at position 1.
#
# Expected: predict returns the positions at which PyOD's own predict is 1, and
# transform marks these rows.
#
# Seen: with outliers at 40 and 50, PyOD finds 40 and 50; predict returns 1 and 1, and
# transform marks row 1.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sktime==1.2.0 pyod==3.6.7 scikit-learn==1.9.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import pandas as pd
import pyod
import sktime
from pyod.models.knn import KNN
from sktime.detection.adapters import PyODDetector

values = np.random.default_rng(0).normal(size=60)
values[[40, 50]] = 30
X = pd.DataFrame(values)

own = np.flatnonzero(KNN(contamination=0.03).fit(X.to_numpy()).predict(X.to_numpy()))
detector = PyODDetector(KNN(contamination=0.03)).fit(X)
positions = detector.predict(X)["ilocs"].tolist()
marked = np.flatnonzero(detector.transform(X)["labels"]).tolist()
print("sktime", sktime.__version__, "and pyod", pyod.__version__)
print("pyod itself:            ", own.tolist())
print("positions of predict:   ", positions)
print("rows that are marked:   ", marked)
assert own.tolist() == [40, 50]
assert positions == [1, 1]
assert marked == [1]
PY
# Output seen (Python 3.11, x86_64):
#   sktime 1.2.0 and pyod 3.6.7
#   pyod itself:             [40, 50]
#   positions of predict:    [1, 1]
#   rows that are marked:    [1]
