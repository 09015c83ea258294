"""
Known anomalies in two dimensions
=================================

There are normal samples and a few known anomalies, all of one kind; anomalies of other
kinds will follow. This page redraws Fig. 1 of Tian, Su & Yin (2022), with models
instead of sketches: a detector without labels, a classifier, and
:class:`~skanomaly.AABiGAN`, which learns the distribution of the normal samples and
uses the known anomalies.
"""

# %%
# The data
# --------
#
# Normal samples lie along an arc. The known anomalies are inside it, and the three
# other kinds are unknown. There are few normal samples, since labels help most where
# these alone do not suffice.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.svm import SVC

from skanomaly import AABiGAN
from skanomaly.metrics import detector_roc_auc_score

BLACK, RED, ORANGE = "0.15", "#B2182B", "#E69F00"
rng = np.random.default_rng(0)


def normal(n):
    """Draw samples along an arc."""
    t = rng.uniform(0, np.pi, n)
    return 3 * np.c_[np.cos(t), np.sin(t)] + rng.normal(0, 0.3, (n, 2))


def around(centre, n):
    """Draw samples around a point."""
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
# Not at all; as the only source; or in addition to the normal samples. The detectors
# have their default settings and the same seed.

models = {
    "without labels": AABiGAN(random_state=0).fit(X_normal),
    "classifier": SVC().fit(X, y),
    "AABiGAN with labels": AABiGAN(random_state=0).fit(X, y),
}


def score(model, samples):
    """Return scores, higher for the more normal, on the model's own scale."""
    return getattr(model, "score_samples", model.decision_function)(samples)


# %%
# The darker, the more normal: the colour is the share of normal test samples that score
# lower than the point. So the scales of the three do not matter, and white points are
# more anomalous than all of these samples.

side = np.linspace(-6, 6, 121)
points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)

fig, axes = plt.subplots(1, 3, figsize=(11, 4.4), layout="constrained", sharey=True)
for ax, (name, model) in zip(axes, models.items(), strict=True):
    found = {kind: score(model, samples) for kind, samples in tests.items()}
    share = np.searchsorted(np.sort(found["normal"]), score(model, points)) / 500
    ax.pcolormesh(side, side, share.reshape(121, 121), cmap="Blues", vmin=0, vmax=1.2)
    ax.plot(*X_normal.T, ".", ms=3, color=BLACK, label="normal")
    ax.plot(
        *tests["unseen kinds"][::4].T, "+", ms=4, color=ORANGE, label="unseen kinds"
    )
    if name != "without labels":
        ax.plot(*X_known.T, "x", ms=5, color=RED, label="known anomalies")
    aurocs = []
    for kind in ("seen kind", "unseen kinds"):
        labels = np.repeat([1, -1], [len(tests["normal"]), len(tests[kind])])
        values = np.r_[found["normal"], found[kind]]
        aurocs.append(f"{kind} {detector_roc_auc_score(labels, values):.3f}")
    print(f"AUROC, {name}: {', '.join(aurocs)}")
    if name == "classifier":
        ax.legend(loc="lower left", fontsize="small")
    ax.set(title=f"{name}\n{', '.join(aurocs)}", xticks=[], yticks=[], aspect="equal")

# %%
# The classifier has a boundary between the two training classes. On the one side all is
# anomalous, and everything else is normal, even more so than the normal samples: of the
# unseen kinds it finds the one that happens to lie behind the known anomalies. Both
# detectors follow the normal samples, and have no difficulty with the unseen kinds.
#
# The labels add little. In two dimensions the normal samples suffice nearly by
# themselves, and the detector without labels is hardly wrong about the inside of the
# arc. With another seed the gain is larger, or a loss. With more features the normal
# samples suffice less, and labels add more:
# :doc:`/auto_examples/plot_known_anomalies_digits`.

plt.show()
