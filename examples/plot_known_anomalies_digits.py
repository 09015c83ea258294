"""
A few labelled anomalies
========================

Anomalies of two kinds have been collected, and three more kinds are unknown.
:class:`~skanomaly.AABiGAN` learns from normal samples and from the known anomalies.
Here it is compared with a classifier, which learns only from the labels, and with
detectors without labels.
"""

# %%
# The data
# --------
#
# The 8 x 8 digits of scikit-learn: 0 to 4 are normal. Of 5 and 6 a few images are known
# as anomalies; 7, 8 and 9 occur only in the test set.
# :func:`~skanomaly.datasets.one_vs_rest` holds out a part of the normal images, and
# :func:`~skanomaly.datasets.labelled_anomalies` moves some anomalies, with their
# labels, to the training set: in ``y_train``, -1 is a known anomaly. The digits
# themselves are returned as *kinds*, to score the kinds separately.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from skanomaly import AABiGAN
from skanomaly.datasets import labelled_anomalies, one_vs_rest
from skanomaly.metrics import (
    DetectorRocDisplay,
    ScoreDistributionDisplay,
    detector_roc_auc,
    detector_roc_auc_score,
)
from skanomaly.model_selection import LeaveAnomalyKindOut

NORMAL, SEEN, UNSEEN = [0, 1, 2, 3, 4], [5, 6], [7, 8, 9]

split = one_vs_rest(
    *load_digits(return_X_y=True), NORMAL, return_kinds=True, random_state=0
)
X_train, X_test, y_train, y_test, kinds_train, kinds_test = labelled_anomalies(
    *split, ratio=0.03, kinds=SEEN, random_state=0
)
known = y_train == -1
print(f"{np.sum(~known)} normal images to train, and {known.sum()} known anomalies")

# %%
# Five models
# -----------
#
# - A classifier, here a support vector machine, learns normal against known.
# - :class:`~sklearn.ensemble.IsolationForest` is fitted on the normal images only,
# - and so is :class:`~skanomaly.AABiGAN` without labels.
# - :class:`~skanomaly.AABiGAN` with labels is fitted on all images, with ``y_train``:
#   once as a table of 64 features, and once, with ``image_shape``, as images. Narrow
#   networks and a short training keep the convolutions quick.
#
# The pixels share a unit, so that tables of them are scaled to [-1, 1] rather than
# standardised.

models = {
    "classifier": make_pipeline(MinMaxScaler(), SVC()).fit(X_train, y_train),
    "IsolationForest": IsolationForest(random_state=0).fit(X_train[~known]),
    "AABiGAN, no labels": AABiGAN(scaling="minmax", random_state=0).fit(
        X_train[~known]
    ),
    "AABiGAN, labels": AABiGAN(scaling="minmax", random_state=0).fit(X_train, y_train),
    "AABiGAN, images": AABiGAN(
        image_shape=(1, 8, 8), width=8, max_epochs=60, random_state=0
    ).fit(X_train, y_train),
}
scores = {name: model.decision_function(X_test) for name, model in models.items()}

# %%
# Seen and unseen kinds
# ---------------------
#
# The AUROC of each kind of anomaly against the normal test images. The unseen kinds are
# the ones that matter: for the others, there are labels.


def auroc(name, kinds):
    """Return the AUROC of some kinds of anomalies."""
    tested = (y_test == 1) | np.isin(kinds_test, kinds)
    return detector_roc_auc_score(y_test[tested], scores[name][tested])


headings = ["seen", "unseen", *SEEN, *UNSEEN]
print(f"{'AUROC':18} " + "  ".join(f"{heading:>6}" for heading in headings))
for name in models:
    aurocs = [auroc(name, SEEN), auroc(name, UNSEEN)]
    aurocs += [auroc(name, kind) for kind in SEEN + UNSEEN]
    print(f"{name:18}", "  ".join(f"{value:6.2f}" for value in aurocs))

# %%
# The same as curves.

fig, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
for ax, title, kinds in zip(axes, ("seen", "unseen"), (SEEN, UNSEEN), strict=True):
    tested = (y_test == 1) | np.isin(kinds_test, kinds)
    for name, score in scores.items():
        DetectorRocDisplay.from_predictions(
            y_test[tested], score[tested], name=name, ax=ax
        )
    ax.set_title(f"{title} kinds: " + ", ".join(map(str, kinds)))
    ax.spines[["top", "right"]].set_visible(False)

# %%
# The classifier is nearly perfect at the seen kinds, and poor at the unseen ones, the 9
# above all. To the two detectors without labels all kinds are unseen. With labels,
# :class:`~skanomaly.AABiGAN` is as good as the classifier at the seen kinds, and no
# worse at the unseen ones than without labels: it keeps its knowledge of normal images.
# No more can be expected of labels, which tell nothing about these kinds.
# Convolutions help there: they use the samples as images.
#
# This is one split and one seed, on small images. :ref:`benchmarks` has many.
#
# Distributions of scores
# -----------------------
#
# The scores of the last model, for normal images and seen kinds, and for normal images
# and unseen kinds. Below the dashed line ``predict`` gives -1. Known anomalies do not
# move that line: it follows a rule of thumb on the normal samples. ``contamination``
# sets a share of false alarms instead.

fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharex=True)
for ax, title, kinds in zip(axes, ("seen", "unseen"), (SEEN, UNSEEN), strict=True):
    tested = (y_test == 1) | np.isin(kinds_test, kinds)
    ScoreDistributionDisplay.from_predictions(
        y_test[tested], scores["AABiGAN, images"][tested], threshold=0, ax=ax
    )
    ax.set(xlabel="decision_function", title=f"{title} kinds")
    ax.spines[["top", "right"]].set_visible(False)

# %%
# Reconstructions
# ---------------
#
# The error of reconstruction is the score. The generator has learned normal digits, and
# so it reconstructs an anomaly as a normal digit, or as a mixture of several. Here are
# the first test image of each digit, its reconstruction, and the ``anomaly_map``: the
# squared errors of pixels, in scaled units.

detector = models["AABiGAN, images"]
images = X_test[[np.flatnonzero(kinds_test == digit)[0] for digit in range(10)]]
panels = {
    "image": images,
    "reconstruction": detector.reconstruct(images),
    "error": detector.anomaly_map(images),
}
fig, axes = plt.subplots(3, 10, figsize=(11, 3.6), layout="constrained")
for row, (title, panel) in zip(axes, panels.items(), strict=True):
    row[0].set_ylabel(title)
    for digit, (ax, image) in enumerate(zip(row, panel, strict=True)):
        cmap, vmax = ("Reds", 2) if title == "error" else ("gray_r", 16)
        ax.imshow(image.reshape(8, 8), cmap=cmap, vmin=0, vmax=vmax)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("#D55E00" if digit not in NORMAL else "0.8")
        if title == "image":
            kind = "seen" if digit in SEEN else "unseen" if digit in UNSEEN else ""
            ax.set_title(f"{digit} {kind}", fontsize=9)

# %%
# Reconstructions of normal digits are close to the images. Those of the others are the
# nearest normal digit, or no digit at all. The error shows roughly where they differ.
#
# Model selection without unseen kinds
# ------------------------------------
#
# Above, the test set has shown which model is good at unseen kinds. In practice there
# is no such test set. The nearest substitute leaves out one of the *known* kinds in
# turn: :class:`~skanomaly.model_selection.LeaveAnomalyKindOut` trains with the known
# images of 5 and tests on those of 6, and the other way round. Here it compares the two
# scores of the method. To keep it short, the ensembles have two members instead of
# eight.

search = GridSearchCV(
    AABiGAN(scaling="minmax", n_estimators=2, random_state=0),
    {"criterion": ["reconstruction", "latent_norm"]},
    scoring=detector_roc_auc,
    cv=LeaveAnomalyKindOut(kinds_train, random_state=0),
    refit=False,
).fit(X_train, y_train)

results = search.cv_results_
for k, params in enumerate(results["params"]):
    folds = ", ".join(
        f"{kind} left out {results[f'split{fold}_test_score'][k]:.2f}"
        for fold, kind in enumerate(SEEN)
    )
    print(f"{params['criterion']:15}: {folds}")

# %%
# The norm of the latent code is fine for known kinds, and much worse for an unknown
# one, down to below one half. ``criterion="auto"`` would miss that, since the anomalies
# that it holds out are of known kinds. This cross-validation finds it, without any
# image of 7, 8 or 9. There are few anomalies per fold, so that only large differences
# count.

plt.show()
