#!/usr/bin/env bash
# crepes 0.9.1: online p-values without smoothing are those of other samples.
#
# predict_p_online tests samples one after the other, each against the calibration set
# and the samples before it. With smoothing=False and all_classes=False the p-value of
# the q-th new sample is computed from the q-th score of the calibration set instead of
# its own: calibration and new scores are one array, and the index lacks the length of
# the calibration set. With smoothing, or with p-values for all classes, it is right.
#
# Expected: the formula, (#{scores so far >= the sample's own} + 1) / (number so far + 1),
# which is also the limit of the smoothed p-value, and its column for the true class
# with all_classes=True.
#
# Seen: p-values for far outliers like those of any calibration sample.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet crepes==0.9.1 scikit-learn==1.9.1
"$folder/venv/bin/python" - <<'PY'
import crepes
import numpy as np
from crepes import ConformalClassifier

rng = np.random.default_rng(0)
calibration, new = rng.normal(size=99), np.full(5, 100.0) + np.arange(5)
classifier = ConformalClassifier().fit(calibration)
classes, y = np.array([0]), np.zeros(5, dtype=int)


def online(**options):
    return classifier.predict_p_online(new[:, None], classes, y, **options).ravel()


by_hand = np.array([1 / (99 + q + 1) for q in range(5)])  # each above all before it
every_class = online(smoothing=False, all_classes=True)
true_class = online(smoothing=False, all_classes=False)
smoothed = online(smoothing=True, all_classes=False, seed=0)
print("crepes", crepes.__version__)
print("by hand:           ", by_hand.round(3))
print("for all classes:   ", every_class.round(3))
print("smoothed:          ", smoothed.round(3))
print("for the true class:", true_class.round(3))
assert np.allclose(every_class, by_hand)
assert (smoothed <= by_hand).all()
of_calibration = [
    (np.sum(np.r_[calibration, new][: 99 + q + 1] >= calibration[q])) / (99 + q + 1)
    for q in range(5)
]
assert np.allclose(true_class, of_calibration)
assert not np.allclose(true_class, by_hand)
PY
# Output seen (Python 3.11, x86_64):
#   crepes 0.9.1
#   by hand:            [0.01 0.01 0.01 0.01 0.01]
#   for all classes:    [0.01 0.01 0.01 0.01 0.01]
#   smoothed:           [0.005 0.007 0.006 0.005 0.004]
#   for the true class: [0.49  0.584 0.314 0.515 0.721]
