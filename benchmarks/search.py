"""Searches: their cost in single fits, and the candidates that they choose.

A search side by side scores a few members of each candidate. Its cost is process time
on a CPU, in units of single fits with the defaults that are interleaved with it. The
regret is by how much the best mean score of whole fits exceeds that of the chosen
candidate.
"""

from __future__ import annotations

import time
import warnings
from statistics import median

import numpy as np

from skanomaly import ADRA, AABiGAN, HistoryAD, JointEncoderGAN, TransferAD
from skanomaly.metrics import detector_roc_auc
from skanomaly.model_selection import SideBySideGridSearchCV, TargetKFold

from . import domains
from .runner import Experiment, grid
from .tables import Metric, Table

MOST_ROWS = 1800
TABLES_WITH_DOMAINS = (
    *("annthyroid", "cardio", "satellite", "satimage-2", "thyroid", "pageblocks"),
)
#: Members of each candidate in the searches that are compared with whole fits.
FEW = (1, 2)
#: Detector and grid of 27 candidates, by name.
SEARCHES = {
    "TransferAD": (
        TransferAD,
        {"lam": [1e-3, 1e-2, 0.1], "eta": [None, -2.0, -10.0], "beta": [5, 20, 80]},
    ),
    "HistoryAD": (
        HistoryAD,
        {"alpha": [0, 0.3, 0.6], "beta": [0, 1, 5], "lam": [1, 10, 100]},
    ),
    "AABiGAN": (
        AABiGAN,
        {"cycle_weight": [round(0.1 * k, 1) for k in range(1, 28)]},
    ),
    "JointEncoderGAN": (
        JointEncoderGAN,
        {"cycle_weight": [round(0.1 * k, 1) for k in range(1, 28)]},
    ),
    "ADRA": (ADRA, {"weight_decay": [k / 1000 for k in range(27)]}),
}
FIXED = {"JointEncoderGAN": {"cycle_updates_generator": True}}


def samples(name, seed):
    """Return at most 1,800 samples, labels and domains, the target last."""
    problem = domains.table(name, "another site", 0.1, seed)
    rng, half = np.random.default_rng(seed), MOST_ROWS // 2
    source = rng.permutation(len(problem.source))[:half]
    target = rng.permutation(len(problem.target))[:half]
    X = np.concatenate([problem.source[source], problem.target[target]])
    y = np.r_[np.ones(len(source), int), problem.y_target[target]]
    return X, y, np.repeat([1, -1], [len(source), len(target)])


def cpu_seconds(function):
    """Return the result of a function, and the process time that it took."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = function()
    return result, time.process_time() - start


def cost(detector, seed):
    """Return the cost of a search over 27 candidates on 3 folds, refit included."""
    cls, candidates = SEARCHES[detector]
    one = cls(random_state=seed, **FIXED.get(detector, {}))
    X, y, domain = samples("cardio", seed)
    cv = TargetKFold(domain, 3, random_state=0)
    of_fit = {"sample_domain": domain} if cls is TransferAD else {}
    search = SideBySideGridSearchCV(one, candidates, cv=cv, scoring=detector_roc_auc)
    labels = y if cls is AABiGAN else None
    singles = []
    cls(random_state=seed, max_epochs=1).fit(X, **of_fit)  # warm up
    for is_search in (False, True, False):
        if is_search:
            _, seconds = cpu_seconds(lambda: search.fit(X, y, **of_fit))
        else:
            singles.append(cpu_seconds(lambda: one.fit(X, labels, **of_fit))[1])
    together = search.cv_results_["side_by_side"].mean()
    single = median(singles)
    return {
        "single_fits": seconds / single,
        "single_seconds": single,
        "together": float(together),
        "rows": len(X),
    }


def regret(name, seed):
    """Return the regrets of searches by few members, against one by whole fits."""
    _, candidates = SEARCHES["TransferAD"]
    X, y, domain = samples(name, seed)
    means = {}
    for members in (*FEW, None):
        search = SideBySideGridSearchCV(
            TransferAD(random_state=seed),
            candidates,
            members_per_candidate=members,
            cv=TargetKFold(domain, 3, random_state=0),
            scoring=detector_roc_auc,
            refit=False,
        )
        cpu_seconds(lambda search=search: search.fit(X, y, sample_domain=domain))
        means[members] = search.cv_results_["mean_test_score"]
    whole = means[None]
    found = {"best": float(np.nanmax(whole)), "worst": float(np.nanmin(whole))}
    for members in FEW:
        chosen = whole[int(np.nanargmax(means[members]))]
        found[f"regret_{members}"] = float(found["best"] - chosen)
    return found


EXPERIMENTS = [
    Experiment("search.cost", cost, grid(seed=range(3), detector=SEARCHES), alone=True),
    Experiment("search.regret", regret, grid(seed=range(2), name=TABLES_WITH_DOMAINS)),
]
COST = (
    Metric("single_fits", "Single fits", "median", 1),
    Metric("single_seconds", "Seconds of a single fit", "median", 1),
    Metric("together", "Candidates side by side", "mean", 2),
    Metric("rows", "Runs", "count"),
)
REGRET = (
    Metric("worst", "Worst candidate", "mean", average=True),
    Metric("best", "Best candidate", "mean", average=True),
    Metric("regret_1", "Regret with one member", "mean", 4, average=True),
    Metric("regret_2", "With two (the default)", "mean", 4, average=True),
    Metric("regret_2", "Runs", "count"),
)
TABLES = [
    Table("search.cost", ("detector",), None, COST, "Detector"),
    Table("search.regret", ("name",), None, REGRET, "Table"),
]
