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
# detector itself keeps neither: it adds up what it needs while the training runs.

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
        """Keep what there is before this step."""
        if hasattr(net, "generator_") and net.step_ % self.every == 0:
            self.times.append(net.step_ / net.n_steps)
            with torch.no_grad():
                self.samples.append(net.generate(1000).flatten().numpy())
            self.critics.append(deepcopy(net.critic_))


# %%
# A generator that starts beside the data
# ---------------------------------------
#
# ``architecture`` takes networks of one's own. This generator starts near
# :math:`N(16, 8^2)`; the data follow :math:`N(0, 4^2)`. The critic is the one that the
# detector makes by itself.
#
# The data of the paper have the standard deviation 1. Ours are wider, for the sake of
# the figures: the penalty holds a critic's slope near 1 or -1, and to turn it over
# takes a generator that is off by about twice the weight of the penalty, 10, whatever
# the unit of the data. That is how far the swings go.


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

recorder = Recorder()
detector = HistoryAD(
    architecture={"generator": Beside},
    n_histories=1,
    latent_dim=1,
    width=64,
    batch_size=64,
    max_epochs=60,
    lr=2e-3,
    beta=1.0,
    init="average",
    detector_epochs=60,
    detector_lr=1e-3,
    scaling=None,
    device="cpu",
    callbacks=[recorder],
    random_state=0,
).fit(X)

print(f"coverage of the data by the history: {detector.coverage_:.0%}")

# %%
# The generator swings around the data, since its optimiser has momentum. Samples from
# all of these moments, early ones more often than late ones, make up the history
# (eq. 3): it lies around the data on both sides. Hypothesis (4) of the paper, that
# the history covers the data, holds here, as the figure printed above says.

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
right.set(xlabel="Density", title="What the detector compares")
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
# A network of this size cannot jump, and :math:`D^*` is a step: the two agree in sign,
# and differ near the step. Where there is neither data nor history, eq. 11 says
# nothing. That the detector stays high there is extrapolation; nothing in the loss
# asks for it.
#
# What remains is how well it tells fresh data from the history, and from points drawn
# evenly over the interval shown.

rng = np.random.default_rng(1)
fresh = rng.normal(0, 4, (1000, 1))
others = {
    "history": detector.sample(1000, from_history=True),
    "even": rng.uniform(-45, 45, (1000, 1)),
}
y = np.repeat([1, -1], 1000)
for name, other in others.items():
    score = detector_roc_auc_score(y, detector.score_samples(np.r_[fresh, other]))
    print(f"AUROC, data against {name}: {score:.2f}")

# %%
# Why the averaged critic is a start
# ----------------------------------
#
# Each critic alone points to where the generator was at the time: most are slopes. In
# the average, slopes to the left and slopes to the right nearly cancel, and something
# small is left. The detector may start from the average of the critics' *weights*
# (eq. 14), which is not the average of their outputs; for critics of one and the same
# training the two are alike.

weights = np.exp(-detector.beta * times)
weights /= weights.sum()

points = torch.tensor(grid, dtype=torch.float32)[None, :, None]
states = [critic.state_dict() for critic in recorder.critics]
averaged = deepcopy(recorder.critics[0])
averaged.load_state_dict(
    {
        name: sum(w * state[name] for w, state in zip(weights, states, strict=True))
        for name in states[0]
    }
)
with torch.no_grad():
    outputs = np.array([critic(points).flatten() for critic in recorder.critics])
    of_weights = averaged(points).flatten().numpy()

# Critics are defined up to a constant: all are drawn from 0 at x = 0.
centre = len(grid) // 2
centred = outputs - outputs[:, [centre]]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(grid, centred[::8].T, color="0.7", lw=0.8)
left.set(title="Single critics", ylabel="Critic, less its value at 0")
right.plot(grid, weights @ centred, color=RED, lw=2, label="average of outputs")
right.plot(
    grid,
    of_weights - of_weights[centre],
    color=BLUE,
    ls="--",
    lw=2,
    label="critic of averaged weights",
)
right.set(title="Two averages of all critics")
right.legend(frameon=False, loc="upper center")
for ax in (left, right):
    ax.set(xlabel="x", xlim=(-45, 45))
    ax.spines[["top", "right"]].set_visible(False)

# %%
# Note the two scales. That the averages are alike is a matter of experience, not a
# theorem. What they look like is none either: the paper shows a valley around the data;
# with other seeds and lengths this script also draws slopes and ridges, where the
# generator was longer on one side than on the other. A detector that starts there owes
# the rest to its own training. An average over critics of different trainings would
# mean nothing at all, and there is none: with ``n_histories`` above 1 each history has
# a detector of its own, and their scores are averaged.

plt.show()
