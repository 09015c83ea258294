"""
The history of a GAN in one dimension
=====================================

:class:`~skanomaly.HistoryAD` learns what is anomalous from a generator on its way to
the data. In one dimension every step of it can be drawn. This page redraws Figs 3 and
4 of Chatillon & Ballester (2020): data from a normal law, and a generator that starts
beside them.
"""

# %%
# Watching the training
# ---------------------
#
# Callbacks are called in every stage of the training. This one keeps, at regular
# intervals of the first stage, samples of the generator and a copy of the critic. The
# detector itself keeps neither, but running sums.

from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import gaussian_kde, norm
from skorch.callbacks import Callback
from torch import nn

from skanomaly import HistoryAD
from skanomaly.metrics import detector_roc_auc_score

BLACK, RED, BLUE, ORANGE = "0.15", "#B2182B", "#0072B2", "#E69F00"


class Recorder(Callback):
    """Keeps samples of the generator, and critics, at regular intervals."""

    def __init__(self, every=20):
        self.every = every
        self.times, self.samples, self.critics = [], [], []

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Keep samples and the critic before this step."""
        if hasattr(net, "generator_") and net.step_ % self.every == 0:
            self.times.append(net.step_ / net.n_steps)
            with torch.no_grad():
                self.samples.append(net.generate(1000).flatten().numpy())
            self.critics.append(deepcopy(net.critic_))


# %%
# A generator that starts beside the data
# ---------------------------------------
#
# ``architecture`` takes networks of the user. This generator starts near
# :math:`N(16, 8^2)`; the data follow :math:`N(0, 4^2)`. The critic is the detector's
# default.
#
# The data of the paper have the standard deviation 1. Ours are wider, for the sake of
# the figures: the penalty holds a critic's slope near 1 or -1, and the slope changes
# sign only when the generator is off by about twice the weight of the penalty, 10,
# whatever the unit of the data. That is how far the swings go.


class Beside(nn.Module):
    """Normal noise, stretched and shifted, plus a small network."""

    def __init__(self, latent_dim, shape):
        super().__init__()
        self.bent = nn.Sequential(
            nn.Linear(latent_dim, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, *shape),
        )
        self.shift = nn.Parameter(torch.full(shape, 16.0))

    def forward(self, z):
        """Map (n, latent_dim) to (n, 1)."""
        return 8 * z + self.shift + self.bent(z)


X = np.random.default_rng(0).normal(0, 4, (2000, 1))


def fit(random_state, **params):
    """Return a detector, and the recorder of its training."""
    recorder = Recorder()
    detector = HistoryAD(
        architecture={"generator": Beside},
        n_estimators=1,
        latent_dim=1,
        width=64,
        batch_size=64,
        max_epochs=60,
        lr=2e-3,
        alpha=0.0,
        beta=1.0,
        init="average",
        detector_epochs=100,
        detector_lr=2e-3,
        scaling=None,
        device="cpu",
        callbacks=[recorder],
        random_state=random_state,
    )
    return detector.set_params(**params).fit(X), recorder


detector, recorder = fit(random_state=0)
print(f"coverage of the data by the history: {detector.coverage_:.0%}")

# %%
# The generator swings around the data, since its optimiser has momentum. Samples from
# all of these moments, early ones more often than late ones, make up the history
# (eq. 3): it lies around the data on both sides. Hypothesis (4) of the paper, that
# the history covers the data, holds here, as the coverage printed above shows.

times = np.array(recorder.times)
grid = np.linspace(-45, 45, 451)
history = detector.sample(4000, from_history=True)[:, 0]

fig, (left, right) = plt.subplots(
    1, 2, figsize=(9, 3.6), layout="constrained", width_ratios=[3, 2], sharey=True
)
low, lower, middle, upper, high = np.percentile(
    recorder.samples, [2.5, 25, 50, 75, 97.5], axis=1
)
left.fill_between(times, low, high, color=RED, alpha=0.15, lw=0, label="95 %")
left.fill_between(times, lower, upper, color=RED, alpha=0.3, lw=0, label="50 %")
left.plot(times, middle, color=RED, label="median")
left.axhspan(-8, 8, color=BLACK, alpha=0.08, lw=0, label="95 % of the data")
left.set(
    xlabel="Time (share of the training run)",
    ylabel="x",
    ylim=(-45, 45),
    xlim=(0, 1),
    title="Samples of the generator over time",
)
left.legend(ncols=4, loc="lower center", frameon=False, fontsize="small")
right.hist(
    history,
    80,
    density=True,
    orientation="horizontal",
    color=RED,
    alpha=0.4,
    label="history",
)
right.plot(norm.pdf(grid, scale=4), grid, color=BLACK, label="data")
right.set(xlabel="Density", title="Data and history")
right.legend(frameon=False)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)

# %%
# The detector beside its ideal
# -----------------------------
#
# The detector :math:`D_{TV}` is low where the data are denser than the history, and
# high where it is the other way round. Eq. 11 gives the minimum of its loss, from the
# densities :math:`p` of the data and :math:`q` of the history:
#
# .. math:: D^* = s + \frac{q - p}{\lambda (q + p)}, \quad s = \mathrm{sign}(q - p)
#
# Here :math:`p` is known and :math:`q` is estimated from samples. ``score_samples``
# is :math:`-D_{TV}`, so that the sign is turned for the figure.

p, q = norm.pdf(grid, scale=4), gaussian_kde(history, 0.1)(grid)
ideal = np.sign(q - p) + (q - p) / (detector.lam * (q + p))
d_tv = -detector.score_samples(grid[:, None])

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.fill_between(grid, 5 * p, color=BLACK, alpha=0.15, lw=0, label="data, density x 5")
ax.fill_between(grid, 5 * q, color=RED, alpha=0.3, lw=0, label="history, density x 5")
ax.plot(grid, ideal, color=ORANGE, ls="--", label="$D^*$ of eq. 11")
ax.plot(grid, d_tv, color=BLUE, lw=2, label="$D_{TV}$")
ax.axhline(0, color="0.6", lw=0.8)
ax.set(xlabel="x", xlim=(-45, 45), ylabel="Value")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
ax.spines[["top", "right"]].set_visible(False)

# %%
# A network of this size cannot jump, and :math:`D^*` is a step: the two agree where
# one of the densities is much larger than the other, and differ near the step. Where
# there is neither data nor history, eq. 11 says nothing. That the detector stays high
# there is extrapolation; nothing in the loss asks for it.
#
# The AUROC of the detector, for fresh data against the history and against points drawn
# evenly over the interval of the figure.

rng = np.random.default_rng(1)
fresh = rng.normal(0, 4, (1000, 1))
anomalies = {
    "history": detector.sample(1000, from_history=True),
    "even": rng.uniform(-45, 45, (1000, 1)),
}
y = np.repeat([1, -1], 1000)
for name, drawn in anomalies.items():
    score = detector_roc_auc_score(y, detector.score_samples(np.r_[fresh, drawn]))
    print(f"AUROC, data against {name}: {score:.2f}")

# %%
# Why the averaged critic is a start
# ----------------------------------
#
# Each critic alone points to the generator of its time: most are slopes. In the
# average, slopes to the left and slopes to the right nearly cancel. The detector may
# start from the average of the critics' *weights* (eq. 14), which is not the average of
# their outputs. The paper finds the two alike, for critics of one training, and both a
# valley around the data.

points = torch.tensor(grid, dtype=torch.float32)[None, :, None]
centre = len(grid) // 2


def critics_and_averages(recorder):
    """Return the critics, their average, and the critic of averaged weights."""
    weights = np.exp(-detector.beta * np.array(recorder.times))
    weights /= weights.sum()
    states = [critic.state_dict() for critic in recorder.critics]
    averaged = deepcopy(recorder.critics[0])
    averaged.load_state_dict(
        {
            name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
            for name in states[0]
        }
    )
    with torch.no_grad():
        values = [c(points).flatten().numpy() for c in (*recorder.critics, averaged)]
    # Critics are defined up to a constant: all are drawn from 0 at x = 0.
    *critics, of_weights = np.array(values) - np.array(values)[:, [centre]]
    return np.array(critics), weights @ critics, of_weights


# %%
# Here are some of the critics of the training above, and the two averages of it and of
# three others that differ in the seed alone.

recorders = [recorder] + [fit(seed, detector_epochs=0)[1] for seed in (1, 2, 3)]

fig, axes = plt.subplots(1, 5, figsize=(13, 3), layout="constrained")
for k, (ax, one) in enumerate(zip(axes[1:], recorders, strict=True)):
    critics, of_outputs, of_weights = critics_and_averages(one)
    ax.plot(grid, of_outputs, color=RED, lw=2, label="of outputs")
    ax.plot(grid, of_weights, color=BLUE, ls="--", lw=2, label="of weights")
    ax.set_title(f"averages, seed {k}")
    difference = np.abs(of_outputs - of_weights).mean() / np.abs(critics).mean()
    print(f"seed {k}: they differ by {difference:.0%} of the size of a critic")
    if k == 0:
        axes[0].plot(grid, critics[::8].T, color="0.7", lw=0.8)
axes[0].set(title="critics, seed 0", ylabel="Value, less that at 0")
axes[1].legend(frameon=False)
for ax in axes:
    ax.set(xlabel="x", xlim=(-45, 45))
    ax.spines[["top", "right"]].set_visible(False)

# %%
# Note the scales: compared with a critic, both averages are small, and in this sense
# alike. Their shapes differ. An average is a valley in one training and a slope in
# another, depending on where the generator spent its time, and the two need not lean to
# the same side. In one dimension the averaged critic is a start at most, and the
# detector above owes the rest to its own training. An average over critics of different
# trainings would mean nothing, and is never taken: with ``n_estimators > 1`` each
# member has a history and a detector of its own, and their scores are averaged.

plt.show()
