"""
Known anomalies in two dimensions
=================================

There are normal rows and a few known anomalies, all of one kind, while anomalies of
other kinds are still to come. This page redraws Fig. 1 of Tian, Su & Yin (2022), with
models in the place of sketches: a detector without labels, a classifier, and
:class:`~skanomaly.AABiGAN`, which learns the distribution of the normal rows and hears
of the known anomalies.
"""

# %%
# The data
# --------
#
# Normal rows lie along an arc. The known anomalies are inside it, and nobody has seen
# the three other kinds. There are few normal rows, as labels matter most where these
# alone do not settle the matter.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.svm import SVC

from skanomaly import AABiGAN
from skanomaly.metrics import detector_roc_auc_score

BLACK, RED, ORANGE = "0.15", "#B2182B", "#E69F00"
rng = np.random.default_rng(0)


def normal(n):
    """Draw rows along an arc."""
    t = rng.uniform(0, np.pi, n)
    return 3 * np.c_[np.cos(t), np.sin(t)] + rng.normal(0, 0.3, (n, 2))


def around(centre, n):
    """Draw rows around a point."""
    return rng.normal(centre, 0.5, (n, 2))


INSIDE, OUTSIDE = (0, 1.2), [(-4, 4), (4, 4), (0, -3)]

X_normal, X_known = normal(150), around(INSIDE, 15)
X = np.r_[X_normal, X_known]
y = np.repeat([1, -1], [len(X_normal), len(X_known)])

tests = {
    "normal": normal(500),
    "seen kind": around(INSIDE, 300),
    "unseen kinds": np.concatenate([around(centre, 100) for centre in OUTSIDE]),
}

# %%
# Three ways to use the labels
# ----------------------------
#
# Not at all; as all there is to learn; or as a hint. The detectors have their default
# settings, with one and the same seed.

models = {
    "without labels": AABiGAN(random_state=0).fit(X_normal),
    "classifier": SVC().fit(X, y),
    "AABiGAN with labels": AABiGAN(random_state=0).fit(X, y),
}


def score(model, rows):
    """Return how normal the rows are, on the model's own scale."""
    return getattr(model, "score_samples", model.decision_function)(rows)


# %%
# The darker, the more normal: what is drawn is the share of normal test rows that score
# lower than a point does. So the scales of the three do not matter, and what is white
# is more anomalous than all of these rows.

side = np.linspace(-6, 6, 121)
points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)

fig, axes = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained", sharey=True)
for ax, (name, model) in zip(axes, models.items(), strict=True):
    found = {kind: score(model, rows) for kind, rows in tests.items()}
    share = np.searchsorted(np.sort(found["normal"]), score(model, points)) / 500
    ax.pcolormesh(side, side, share.reshape(121, 121), cmap="Blues", vmin=0, vmax=1.2)
    ax.plot(*X_normal.T, ".", ms=3, color=BLACK, label="normal")
    ax.plot(
        *tests["unseen kinds"][::4].T, "+", ms=4, color=ORANGE, label="unseen kinds"
    )
    if name != "without labels":
        ax.plot(*X_known.T, "x", ms=5, color=RED, label="known anomalies")
    figures = []
    for kind in ("seen kind", "unseen kinds"):
        labels = np.repeat([1, -1], [len(tests["normal"]), len(tests[kind])])
        values = np.r_[found["normal"], found[kind]]
        figures.append(f"{kind} {detector_roc_auc_score(labels, values):.3f}")
    print(f"AUROC, {name}: {', '.join(figures)}")
    if name == "classifier":
        ax.legend(loc="lower left", fontsize="small")
    ax.set(title=f"{name}\n{', '.join(figures)}", xticks=[], yticks=[], aspect="equal")

# %%
# The classifier has drawn a line between what it was shown. On the known side of it are
# anomalies, and everything else is normal, even more so than the normal rows: of the
# unseen kinds it finds the one that happens to lie behind the known anomalies. Both
# detectors keep to the normal rows, and have no difficulty with the unseen kinds.
#
# What the labels add is modest. In two dimensions the normal rows say nearly everything
# themselves, and the detector without labels is hardly wrong about the inside of the
# arc. With another seed the gain is larger, or a loss. With more columns the
# normal rows say less, and labels do more:
# :doc:`/auto_examples/plot_known_anomalies_digits`.

plt.show()
