"""
Images with anomalies among them
================================

Nobody has cleaned the training images: one in twenty is an anomaly, and none is marked.
:class:`~skanomaly.JointEncoderGAN` is trained on them as they are. The figures follow
those of its paper: what the generator makes, what codes look like, which images come
back as what.

This page needs the data set Fashion-MNIST, in the folder that ``SKANOMALY_DATA``
names, and takes a minute or two.
"""

# %%
# Data and training
# -----------------
#
# Bags are normal. :func:`~skanomaly.datasets.contaminate` puts so many images of the
# other nine classes among them that these make 5 % of the training set. The labels are
# for the figures: the detector does not get them. It is fitted once, with its defaults,
# for the whole page.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.manifold import TSNE

from skanomaly import JointEncoderGAN
from skanomaly.datasets import contaminate, fetch_fashion_mnist
from skanomaly.metrics import ScoreDistributionDisplay, detector_roc_auc_score

BAG, N_NORMAL, N_TEST = 8, 2850, 1000
rng = np.random.default_rng(0)


def some(labels, n, *, bags):
    """Return the places of n images, of bags or of anything else, drawn at random."""
    return rng.choice(np.flatnonzero((labels == BAG) == bags), n, replace=False)


train, test = fetch_fashion_mnist(), fetch_fashion_mnist(subset="test")
bags = train.data[some(train.target, N_NORMAL, bags=True)]
others = train.data[some(train.target, N_NORMAL, bags=False)]
X_train, _, y_train, _ = contaminate(
    *(bags, others, np.ones(len(bags)), -np.ones(len(others))),
    contamination=0.05,
    random_state=0,
)
chosen = np.r_[
    some(test.target, N_TEST, bags=True), some(test.target, N_TEST, bags=False)
]
X_test, y_test = test.data[chosen], np.repeat([1, -1], N_TEST)
print(f"{len(X_train)} images to train, {np.sum(y_train == -1)} of them anomalies")

detector = JointEncoderGAN(random_state=0).fit(X_train)

# %%
# The networks begin with images of 8 x 8 pixels and grow. ``history_`` names the phase
# of each epoch as its stage.

stages = [record["stage"] for record in detector.history_]
for stage in dict.fromkeys(stages):
    seconds = sum(r["duration"] for r in detector.history_ if r["stage"] == stage)
    print(f"{stage:20} {seconds:4.0f} s")

# %%
# What the generator makes should look like what is frequent in the data, and not like
# the anomalies among them.

COLOURS = {1: "#0072B2", -1: "#D55E00", 0: "#009E73"}
NAMES = {1: "normal", -1: "anomalous", 0: "generated"}


def show(ax, image, colour="0.8", **options):
    """Draw one image without ticks, in a frame."""
    ax.imshow(image, **{"cmap": "gray_r", "vmin": 0, "vmax": 255} | options)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color(colour)


fig, axes = plt.subplots(4, 12, figsize=(11, 4), layout="constrained")
made = detector.sample(24)
rows = X_train[y_train == 1], X_train[y_train == -1], made[:12], made[12:]
for row, images, kind in zip(axes, rows, (1, -1, 0, 0), strict=True):
    row[0].set_ylabel(NAMES[kind], color=COLOURS[kind])
    for ax, image in zip(row, images, strict=False):
        show(ax, image[0], COLOURS[kind])

# %%
# Coefficients of codes, and their norm
# -------------------------------------
#
# The encoder was trained on generated images alone.

codes = {kind: detector.encode(X_test[y_test == kind]) for kind in (1, -1)}
codes[0] = detector.encode(detector.sample(N_TEST, random_state=1))

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
style = {"density": True, "histtype": "step", "linewidth": 1.8}
norms = {k: np.linalg.norm(z, axis=1) / np.sqrt(z.shape[1]) for k, z in codes.items()}
for kind in (1, -1, 0):
    options = {"color": COLOURS[kind], "label": NAMES[kind], **style}
    left.hist(codes[kind].ravel(), np.linspace(-8, 8, 161), **options)
    right.hist(norms[kind], 40, **options)
left.set(xlabel="coefficients of codes", ylabel="density")
right.set(xlabel=r"norm of codes, $-L_o = \|E(x)\|_2 / \sqrt{N_z}$")
right.legend(frameon=False)
for ax in (left, right):
    ax.set(yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
for kind, norm in norms.items():
    print(f"{NAMES[kind]:10} median norm {np.median(norm):.2f}")
print(f"norm_auroc_ {detector.norm_auroc_:.2f}")

# %%
# A map of the codes
# ------------------

shown = np.r_[:300, N_TEST : N_TEST + 300]
flat = TSNE(perplexity=30, random_state=0).fit_transform(detector.encode(X_test[shown]))
fig, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
for kind in (1, -1):
    points = flat[y_test[shown] == kind]
    ax.plot(*points.T, "o", ms=4, alpha=0.6, mew=0, color=COLOURS[kind])
    ax.plot([], [], "o", color=COLOURS[kind], label=NAMES[kind])
ax.set(xticks=[], yticks=[])
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

# %%
# Scores
# ------

residual, distance = detector.score_terms(X_test).T
forest = IsolationForest(random_state=0).fit(X_train.reshape(len(X_train), -1))
scores = {
    "sum of both terms, the default": detector.score_samples(X_test),
    "residual alone": -residual,
    "Mahalanobis distance alone": -distance,
    "norm of the code, eq. 4": np.r_[norms[1], norms[-1]],
    "IsolationForest, raw pixels": forest.score_samples(X_test.reshape(2 * N_TEST, -1)),
}
print("AUROC on test images")
for name, score in scores.items():
    print(f"  {name:32}{detector_roc_auc_score(y_test, score):.3f}")

fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
panels = {
    "log residual": (-np.log(residual), None),
    "log Mahalanobis distance": (-np.log(distance), None),
    "score_samples": (detector.score_samples(X_test), detector.offset_),
}
for ax, (name, (score, threshold)) in zip(axes, panels.items(), strict=True):
    ScoreDistributionDisplay.from_predictions(y_test, score, threshold=threshold, ax=ax)
    ax.set(title=name)

# %%
# Closest matches
# ---------------

kinds = [0, 1, 2, 3, 4, 5, 6, 7, 9]
others = [np.flatnonzero(test.target[chosen] == kind)[0] for kind in kinds]
shown = np.r_[:5, others]
images = X_test[shown]
rebuilt = detector.reconstruct(images)
fig, axes = plt.subplots(2, len(shown), figsize=(11, 2), layout="constrained")
for row, pictures, name in zip(axes, (images, rebuilt), ("query", "match"), strict=True):
    row[0].set_ylabel(name)
    for ax, picture, kind in zip(row, pictures, y_test[shown], strict=True):
        show(ax, picture[0], COLOURS[kind])

# %%
# Where the anomaly is
# --------------------

maps = detector.anomaly_map(images)
fig, axes = plt.subplots(2, len(shown), figsize=(11, 2), layout="constrained")
for ax, picture, kind in zip(axes[0], images, y_test[shown], strict=True):
    show(ax, picture[0], COLOURS[kind])
for ax, picture, kind in zip(axes[1], maps, y_test[shown], strict=True):
    show(ax, picture, COLOURS[kind], cmap="Reds", vmax=4)

plt.show()
