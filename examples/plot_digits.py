"""
One digit is the anomaly
========================

:class:`~skanomaly.HistoryAD` on the 8 x 8 digits that come with scikit-learn, next to
two detectors of scikit-learn. They are fitted on nine of the digits, without labels;
the tenth occurs only in the test set.
"""

# %%
# The data
# --------
#
# :func:`~skanomaly.datasets.hold_one_out` splits the images: 60 % of those of the nine
# normal digits for training; the rest, and all images of the tenth, for the test. In
# ``y_test``, +1 is normal and -1 an anomaly.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from skanomaly import HistoryAD
from skanomaly.datasets import hold_one_out
from skanomaly.metrics import (
    DetectorRocDisplay,
    ScoreDistributionDisplay,
    TrainingHistoryDisplay,
)

ANOMALY = 6

X, y = load_digits(return_X_y=True)
X_train, X_test, _, y_test = hold_one_out(X, y, ANOMALY, random_state=0)
print(f"{len(X_train)} images to train; to test {len(X_test)}, ", end="")
print(f"{np.sum(y_test == -1)} of which show the digit {ANOMALY}")

# %%
# Three detectors
# ---------------
#
# All of them take samples of 64 features, the pixels. These have one scale in common:
# ``scaling="minmax"`` of :class:`~skanomaly.HistoryAD` maps the range of each to
# [-1, 1]. Its default for tables standardises the columns, which would magnify the
# pixels at the border, rarely more than 0. With ``image_shape=(1, 8, 8)`` the samples
# would be images for a convolutional network, which takes several times as long.

detectors = {
    "HistoryAD": HistoryAD(scaling="minmax", random_state=0),
    "IsolationForest": IsolationForest(random_state=0),
    "LocalOutlierFactor": LocalOutlierFactor(novelty=True),
}
for detector in detectors.values():
    detector.fit(X_train)

# %%
# The scores of the two classes
# -----------------------------
#
# Higher is more normal, and below the dashed line ``predict`` gives -1. Each of the
# three has its own rule for that threshold.

fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for ax, (name, detector) in zip(axes, detectors.items(), strict=True):
    score = detector.decision_function(X_test)
    ScoreDistributionDisplay.from_predictions(y_test, score, threshold=0, ax=ax)
    ax.set(xlabel="decision_function", title=name)
    ax.spines[["top", "right"]].set_visible(False)
    if ax is not axes[0]:
        ax.get_legend().remove()

# %%
# ROC curves, with the anomaly as the positive class, do not depend on the threshold;
# the dots show where it lies.

fig, ax = plt.subplots(figsize=(5.5, 5), layout="constrained")
for name, detector in detectors.items():
    DetectorRocDisplay.from_estimator(detector, X_test, y_test, name=name, ax=ax)
ax.spines[["top", "right"]].set_visible(False)

# %%
# :class:`~sklearn.neighbors.LocalOutlierFactor` is hard to beat here: there are few
# images, they are small and centred, and the distance between two vectors of pixels
# means something. Which digit is left out changes the order of the other two; change
# ``ANOMALY`` to see it, or read the mean over all ten under :ref:`benchmarks`.
#
# The most anomalous images
# -------------------------
#
# The test images that :class:`~skanomaly.HistoryAD` finds most anomalous, and most
# normal. The title of each says which digit it is.

kinds = hold_one_out(X, y, ANOMALY, return_kinds=True, random_state=0)[-1]
order = np.argsort(detectors["HistoryAD"].score_samples(X_test))

fig, axes = plt.subplots(4, 12, figsize=(11, 4.4))
fig.subplots_adjust(left=0.09, right=0.99, top=0.92, bottom=0.01, hspace=0.35)
for ax, row in zip(axes.flat, np.r_[order[:24], order[-24:][::-1]], strict=True):
    ax.imshow(X_test[row].reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
    odd = y_test[row] == -1
    ax.set_title(kinds[row], fontsize=9, pad=2, color="#D55E00" if odd else "0.4")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("#D55E00" if odd else "0.8")
for row, text in ((0, "most\nanomalous"), (2, "most\nnormal")):
    axes[row, 0].set_ylabel(text, rotation=0, ha="right", va="top", labelpad=8)

# %%
# The history in place of anomalies
# ---------------------------------
#
# The detector gets no anomalies. It learns from samples of its generator, drawn all
# along the training, the *history*. After the training the generated images are nearer
# to digits. ``sample`` draws from either.

detector = detectors["HistoryAD"]
panels = {
    "from the history": detector.sample(40, from_history=True, random_state=0),
    "from the trained generator": detector.sample(40, random_state=0),
    "training data": X_train[:40],
}
fig, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
for ax, (title, images) in zip(axes, panels.items(), strict=True):
    framed = np.zeros((40, 9, 9))
    framed[:, :8, :8] = images.reshape(-1, 8, 8)
    sheet = framed.reshape(5, 8, 9, 9).swapaxes(1, 2).reshape(45, 72)
    ax.imshow(sheet, cmap="gray_r", vmin=0, vmax=16)
    ax.set_title(title)
    ax.set_axis_off()

# %%
# ``coverage_`` is the share of held-out training images that have a sample of the
# history nearby. A low coverage causes a
# :class:`~skanomaly.exceptions.CoverageWarning`.

print(f"coverage: {detector.coverage_:.2f}")

# %%
# The losses over the epochs. The stage of the detector, if it is trained
# (``detector_epochs``), follows that of the GAN.

display = TrainingHistoryDisplay.from_estimator(detector)
display.figure_.set_size_inches(7, 3.5)

plt.show()
