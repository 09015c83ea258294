"""
Progress and scores during training
===================================

A search trains many detectors, and that takes a while. The callbacks of scikit-learn,
in version 1.9 or later, show how far each of them is, and how good after each epoch
(:ref:`sklearn_callbacks`).
"""

# %%
# Progress of a search
# --------------------
#
# The data are small images of digits, as tables: zeros to fours are normal. A few other
# digits are among them, marked in ``y``. :class:`~skanomaly.HistoryAD` does not read
# these marks; they serve to choose its learning rate.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split

from skanomaly import ADRA, HistoryAD
from skanomaly.metrics import detector_roc_auc

COLOURS = ["#92C5DE", "#4393C3", "#053061"]
BLACK, RED = "0.15", "#B2182B"

X, digit = load_digits(return_X_y=True)
y = np.where(digit < 5, 1, -1)
X_normal, X_anomalous = X[y == 1], X[y == -1][:60]
X_search = np.r_[X_normal, X_anomalous]
y_search = np.repeat([1, -1], [len(X_normal), len(X_anomalous)])

# %%
# The search runs in two processes. ``ProgressBar`` belongs to the search, which hands
# it on to the detectors. It shows a bar for each fit and each of its stages, which grow
# epoch by epoch. ``ScoringMonitor`` belongs to the detector, and its clones share it.

monitor = ScoringMonitor(scoring=detector_roc_auc)
rates = [1e-3, 2e-3, 4e-3]
search = GridSearchCV(
    HistoryAD(max_epochs=20, random_state=0).set_callbacks(monitor),
    {"lr": rates},
    scoring=detector_roc_auc,
    cv=StratifiedKFold(2, shuffle=True, random_state=0),
    n_jobs=2,
)
search.set_callbacks(ProgressBar()).fit(X_search, y_search)

# %%
# Each task has a path of numbers from the whole search down: here the third one is the
# number of the fit, fold by fold of each candidate, and the last one that of the epoch.
# The monitor scores the samples that a detector is trained on.

log = monitor.get_logs().data_as_pandas
epochs = log[log.task_name == "epoch"]
figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
of_search = epochs[[path[1] == 0 for path in epochs.task_id_path]]  # 1 is the refit
for k, scores in of_search.groupby([path[2] for path in of_search.task_id_path]):
    candidate, fold = divmod(k, 2)
    label = f"lr = {rates[candidate]}" if fold == 0 else None
    axes.plot(
        np.arange(len(scores)) + 1, scores.score, color=COLOURS[candidate], label=label
    )
axes.set(xlabel="epoch", ylabel="AUROC of training samples", xticks=range(5, 21, 5))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)

# %%
# Held-out samples, and a stop
# ----------------------------
#
# A callback of one's own may do more. This one scores held-out samples, and ends the
# stage if their AUROC has risen by less than .01 in ten epochs. ``fitted_estimator`` is
# the detector that the fit would return if it was interrupted there.


class HeldOut:
    """Follows the AUROC of held-out samples, and may stop a stage."""

    def __init__(self, X, y, least_rise):
        self.X, self.y, self.least_rise, self.aurocs = X, y, least_rise, []

    def setup(self, estimator, context):
        """Begin a fit."""

    def teardown(self, estimator, context):
        """End a fit."""

    def on_fit_task_begin(self, estimator, context):
        """Begin a stage or an epoch."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        """Score after an epoch, and return whether to stop."""
        if context.task_name != "epoch" or fitted_estimator is None:
            return False
        self.aurocs.append(detector_roc_auc(fitted_estimator, self.X, self.y))
        rises = np.subtract(self.aurocs[10:], self.aurocs[:-10])
        return len(rises) > 0 and rises[-1] < self.least_rise


X_train, X_valid, y_train, y_valid = train_test_split(
    X, y, test_size=0.3, stratify=y, random_state=0
)
X_train = X_train[y_train == 1]

figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
for cls, colour in ((HistoryAD, BLACK), (ADRA, RED)):
    whole = HeldOut(X_valid, y_valid, least_rise=-1)
    cls(random_state=0).set_callbacks(whole).fit(X_train)
    stopped = HeldOut(X_valid, y_valid, least_rise=0.01)
    cls(random_state=0).set_callbacks(stopped).fit(X_train)
    steps = np.arange(len(whole.aurocs)) + 1
    axes.plot(steps, whole.aurocs, color=colour, label=cls.__name__)
    axes.plot(len(stopped.aurocs), stopped.aurocs[-1], "o", color=colour)
    print(
        f"{cls.__name__}: {whole.aurocs[-1]:.3f} after {len(steps)} epochs, "
        f"{stopped.aurocs[-1]:.3f} after {len(stopped.aurocs)}"
    )
axes.set(xlabel="epoch", ylabel="AUROC of held-out samples")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)

# %%
# The dots are the ends of the trainings that were stopped. They lie on the curves of
# the others, since watching changes nothing.
