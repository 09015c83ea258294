"""
One class of photographs
========================

Photographs of one kind are normal, and few of them are at hand. A network that was
trained on other photographs knows what may vary in them. :class:`~skanomaly.ADRA`
keeps that network as it is, and learns small corrections beside its layers, with the
help of photographs of all kinds, the corpus. The figures are the images that score
highest and lowest, ROC curves, the scores with their threshold, and the memory of ten
detectors, as in Fig. 3 of the paper.

This page needs the data sets CIFAR-10 and Tiny ImageNet, and the weights of
MobileNetV2, in the folder that ``SKANOMALY_DATA`` names. It is run from the root of a
checkout, and takes two to three minutes.
"""

# %%
# Data
# ----
#
# CIFAR-10 has photographs of ten classes, 32 x 32 pixels. Ships are normal for one
# detector, birds for another one, and the other nine classes are anomalies. 1,200
# images of its class train a detector; both are tested on the same 1,000 images, 100 of
# each class.
#
# The corpus is Tiny ImageNet without the classes that show what a class of CIFAR-10
# shows. CIFAR-10 as it is stored here was compressed by JPEG, and so the corpus is
# compressed in the same way: a network would otherwise learn to tell compression. The
# benchmarks have both, and the network, MobileNetV2 pretrained on ImageNet.

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import IsolationForest

sys.path.append(os.getcwd())  # the benchmarks are no package

from benchmarks.adra import n_bytes, tensors_of
from benchmarks.adra_setting import LEFT_OUT, mobilenet, photographs
from skanomaly import ADRA
from skanomaly.datasets import fetch_cifar10
from skanomaly.metrics import (
    DetectorRocDisplay,
    ScoreDistributionDisplay,
    detector_roc_auc_score,
)

NORMAL = {8: "ships", 2: "birds"}
N_TRAIN, N_TEST = 1200, 100
rng = np.random.default_rng(0)


def some(X, labels, c, n):
    """Return n images of a class, drawn at random."""
    return X[rng.choice(np.flatnonzero(labels == c), n, replace=False)]


X, labels = fetch_cifar10(return_X_y=True)
train = {name: some(X, labels, c, N_TRAIN) for c, name in NORMAL.items()}
X, labels = fetch_cifar10(subset="test", return_X_y=True)
X_test = np.concatenate([some(X, labels, c, N_TEST) for c in range(10)])
test_labels = np.repeat(np.arange(10), N_TEST)
y_test = {name: np.where(test_labels == c, 1, -1) for c, name in NORMAL.items()}
corpus, _ = photographs()
print(f"{len(corpus):,} images in the corpus, {len(LEFT_OUT)} classes left out")

COLOURS = {"normal": "#0072B2", "anomalous": "#D55E00", "corpus": "#009E73"}


def show(ax, image, kind):
    """Draw one image (c, h, w) without ticks, in a frame of its colour."""
    ax.imshow(image.transpose(1, 2, 0))
    ax.set(xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set(color=COLOURS[kind], linewidth=2)


fig, axes = plt.subplots(3, 12, figsize=(11, 3.1), layout="constrained")
rows = [(name, "normal", X) for name, X in train.items()]
rows.append(("corpus", "corpus", corpus))
for row, (name, kind, images) in zip(axes, rows, strict=True):
    row[0].set_ylabel(name, color=COLOURS[kind])
    for ax, image in zip(row, images, strict=False):
        show(ax, image, kind)

# %%
# Training
# --------
#
# Both detectors are given the same network, and share its weights, which they do not
# change. The images are enlarged to 64 x 64 pixels; ``normalization=None`` says that
# this network takes pixels in [-1, 1]. With torchvision, ``backbone="mobilenet_v2"``
# does the same with weights of its own, and needs neither module nor ``normalization``.
# Two passes over so few images are a short training.
#
# The detectors warn: the corpus has another source than the normal images, and a simple
# classifier tells them apart (``corpus_auroc_``). With one class normal, they learn
# what it shows as well. Images of the same source are a better corpus where there are
# any, and much better where many kinds are normal.

common = {
    "backbone": mobilenet(),
    "normalization": None,
    "input_size": 64,
    "corpus": corpus,
    "random_state": 0,
}
detectors = {name: ADRA(**common, max_epochs=2).fit(X) for name, X in train.items()}
for name, detector in detectors.items():
    seconds = sum(record["duration"] for record in detector.history_)
    print(f"{name}: {seconds:.0f} s of training")

# %%
# Next to them stand the frozen network with the same head and no corrections, whose
# score is a Mahalanobis distance of features, and an
# :class:`~sklearn.ensemble.IsolationForest` on raw pixels.

scores = {}
for name, X in train.items():
    forest = IsolationForest(random_state=0).fit(X.reshape(len(X), -1))
    scores[name] = {
        "ADRA": detectors[name].score_samples(X_test),
        "frozen network": ADRA(**common, max_epochs=0).fit(X).score_samples(X_test),
        "IsolationForest": forest.score_samples(X_test.reshape(len(X_test), -1)),
    }
    for detector, score in scores[name].items():
        print(
            f"{name}, {detector:16} {detector_roc_auc_score(y_test[name], score):.3f}"
        )

# %%
# Most normal, most anomalous
# ---------------------------
#
# The test images with the highest scores, and those with the lowest ones. Blue frames
# are normal images, orange ones anomalies.


def show_rows(rows):
    """Draw rows of test images: a title, which of them, and their labels."""
    size = {"figsize": (11, 1.02 * len(rows)), "layout": "constrained"}
    axes = plt.subplots(len(rows), 12, **size)[1]
    for row, (title, shown, labels) in zip(axes, rows, strict=True):
        row[0].set_ylabel(title, rotation=0, ha="right", va="center")
        for ax, k in zip(row, shown, strict=False):
            show(ax, X_test[k], "normal" if labels[k] == 1 else "anomalous")


order = {name: np.argsort(-score["ADRA"]) for name, score in scores.items()}
ends = [
    (f"{name},\n{end}", ranks, y_test[name])
    for name in train
    for end, ranks in (
        ("most normal", order[name]),
        ("most anomalous", order[name][::-1]),
    )
]
show_rows(ends)

# %%
# Most of the highest scores of the one detector belong to ships, and most of the lowest
# to animals. For birds the lowest ones belong to vehicles, and the highest are mixed:
# other animals in the green are among them. Classes that show such animals were left
# out of the corpus, so that nothing says that they are anomalies.
#
# Mistakes tell more: the anomalies with the highest scores, and the normal images with
# the lowest ones.

mistakes = [
    (f"{name},\n{end}", ranks[y_test[name][ranks] == label], y_test[name])
    for name in train
    for end, ranks, label in (
        ("anomalies", order[name], -1),
        ("normal", order[name][::-1], 1),
    )
]
show_rows(mistakes)

# %%
# Airplanes, cars and trucks under a light sky pass for ships, and animals in the green
# for birds. Ships in unusual places or seen from unusual sides are taken for anomalies,
# and so are birds close to the camera.
#
# ROC curves
# ----------

fig, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
for ax, (name, by_detector) in zip(axes, scores.items(), strict=True):
    for detector, score in by_detector.items():
        threshold = detectors[name].offset_ if detector == "ADRA" else None
        DetectorRocDisplay.from_predictions(
            *(y_test[name], score),
            threshold=threshold,
            name=detector,
            ax=ax,
            plot_chance_level=detector == "IsolationForest",
        )
    ax.set_title(f"{name} are normal")

# %%
# The frozen network ranks by a Mahalanobis distance of its features, and is ahead of a
# forest on raw pixels. The corrections are ahead of it on both classes, further where
# false alarms have to be few. The dot is the threshold of the next section. These are
# one split and one seed; :ref:`the benchmarks <adra_benchmarks>` have more classes, and
# what fine-tuning does.
#
# Scores and threshold
# --------------------
#
# The score is :math:`-h`, and :math:`e^{-h}` may be read as the probability that an
# image is normal rather than of the corpus. The threshold is where both are equally
# likely, at :math:`-\log 2`.

fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for ax, (name, by_detector) in zip(axes, scores.items(), strict=True):
    threshold = detectors[name].offset_
    ScoreDistributionDisplay.from_predictions(
        y_test[name], by_detector["ADRA"], threshold=threshold, ax=ax
    )
    ax.get_legend().remove()
    ax.set(title=f"{name} are normal", yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
    flagged = by_detector["ADRA"] < threshold
    normal = y_test[name] == 1
    print(
        f"{name}: {flagged[normal].mean():.0%} of the normal images are flagged, "
        f"{flagged[~normal].mean():.0%} of the anomalies"
    )
handles, names = axes[0].get_legend_handles_labels()
names = [name.partition(" (n")[0] for name in names]
_ = fig.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)

# %%
# Most images score near one of two ends. Scores have a lower end, since the head brings
# features to unit length, so that no image lies further than some radius from the
# origin. So :math:`e^{-h}` does not come near to 0, and is to be read by its order and
# its middle. Of the birds, which look more various, more are flagged than of the ships.
# :ref:`adra_threshold` says how to set another threshold.
#
# Memory of ten detectors
# -----------------------
#
# Detectors that are given the same network hold it once. Here are the bytes of ten
# tasks: one network and ten sets of corrections, against ten networks that were
# fine-tuned, as in Fig. 3 of the paper, left. ``n_experts`` is K, the number of
# corrections that are mixed. Bytes are counted on fitted detectors; those with K = 1
# and 4 are fitted on a few images for this alone.


def kept(detector):
    """Return the MiB of the network, of corrections and of the head."""
    net = detector.net_
    parts = {
        "networks": tensors_of([net.backbone_]),
        "corrections": tensors_of([net.adapters_.layers]),
        "heads": tensors_of([net.adapters_.head]),
    }
    return {name: n_bytes(tensors) / 2**20 for name, tensors in parts.items()}


ships, birds = detectors.values()
both = n_bytes(tensors_of([ships.net_.backbone_, birds.net_.backbone_])) / 2**20
one = kept(ships)
print(f"network of one detector {one['networks']:.1f} MiB, of both {both:.1f} MiB")

few = common | {"corpus": corpus[:16], "max_epochs": 1, "batch_size": 16}
tasks = {"ten networks": {name: 10 * size for name, size in one.items()}}
tasks["ten networks"]["corrections"] = 0
for k in (1, 2, 4):
    detector = ships if k == 2 else ADRA(**few, n_experts=k).fit(train["ships"][:16])
    parts = {name: 10 * size for name, size in kept(detector).items()}
    tasks[f"ADRA, K = {k}"] = parts | {"networks": one["networks"]}

fig, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
fills = {"networks": "#0072B2", "corrections": "#E69F00", "heads": "#999999"}
left = np.zeros(len(tasks))
for part, colour in fills.items():
    sizes = np.array([parts[part] for parts in tasks.values()])
    ax.barh(list(tasks), sizes, left=left, color=colour, label=part)
    left += sizes
for place, size in enumerate(left):
    ax.text(size + 1, place, f"{size:.0f} MiB", va="center")
ax.invert_yaxis()
ax.set(xlabel="MiB", xlim=(0, 1.12 * left.max()))
ax.spines[["top", "right"]].set_visible(False)
_ = fig.legend(loc="outside upper center", ncols=3, frameon=False)

# %%
# Nearly all weights of MobileNetV2 are in 1 x 1 convolutions. Beside these stands a
# single correction, with an eighth of the weights of the layer, whatever K is: mixtures
# are where kernels are larger, and there it has few weights. The convolutions of the
# paper's network have kernels of 3 x 3 pixels, beside which each correction has a ninth
# of the weights of the layer, so that memory grows with K. The :ref:`tables
# <adra_benchmarks>` have both.

plt.show()
