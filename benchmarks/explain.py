"""Explanations: planted columns, broken and moved pairs, beside shap's explainer.

It needs shap, which the extra ``tests`` installs.
"""

from __future__ import annotations

from statistics import median

import numpy as np
from scipy.stats import spearmanr
from sklearn.preprocessing import StandardScaler

from skanomaly import explain

from .detection import make_detector, table
from .runner import Experiment, grid
from .tables import Metric, Table
from .timing import interleaved, ratios

DETECTORS = ("HistoryAD", "AABiGAN", "TransferAD", "JointEncoderGAN", "ADRA")
#: Variants of `explain` were compared on these.
DEVELOPMENT = ("cardio", "optdigits", "pageblocks")
OTHERS = ("satellite", "shuttle", "spambase")
N_TRAIN, N_REFERENCE = 3000, 500
N_PAIRS, LEAST_CORRELATION, N_FAR = 10, 0.6, 5
N_ROUNDS, N_ROWS = 3, 4
#: A plant is visible if the score falls by this part of the deviation of scores.
LEAST_FALL = 0.3


# Rows whose strange columns are known: each returns rows and columns, (n, 1 or 2) -----


def planted(X_train, X, rng):
    """Move one column of each row to an end of its range that is rare in training."""
    low, high = X_train.min(0), X_train.max(0)
    ends = [
        (column, end)
        for column in np.flatnonzero(high > low)
        for end in (low[column], high[column])
        if is_rare(end, X_train[:, column])
    ]
    chosen = [ends[k] for k in rng.integers(len(ends), size=len(X))]
    columns = np.array([column for column, _ in chosen])
    rows = X.copy()
    rows[np.arange(len(X)), columns] = [end for _, end in chosen]
    return rows, columns[:, None]


def is_rare(end, values):
    """Return whether the tenth of the range at this end has less than 1 % of values."""
    return np.mean(np.abs(values - end) <= np.ptp(values) / 10) < 0.01


def broken(X_train, X, rng):
    """Give one column of a related pair the value of another row, off the relation.

    The value is one of the tenth that are furthest from the line of the pair, among
    those between the column's quantiles of 5 and 95 %.
    """
    pairs = related_pairs(X_train)
    rows = X.copy()
    columns = np.array(
        [rng.permutation(pairs[k]) for k in rng.integers(len(pairs), size=len(X))]
    )
    for row, (changed, kept) in zip(rows, columns, strict=True):
        values = X_train[:, changed]
        low, high = np.quantile(values, [0.05, 0.95])
        usual = values[(values >= low) & (values <= high)]
        line = np.polyfit(X_train[:, kept], values, 1)
        distance = np.abs(usual - np.polyval(line, row[kept]))
        row[changed] = rng.choice(usual[distance >= np.quantile(distance, 0.9)])
    return rows, columns


def moved(X_train, X, rng):
    """Give both columns of a related pair the values of a row far out on their line.

    Each value is strange, and the relation holds.
    """
    pairs = related_pairs(X_train)
    rows, columns = X.copy(), pairs[rng.integers(len(pairs), size=len(X))]
    for row, pair in zip(rows, columns, strict=True):
        first, second = StandardScaler().fit_transform(X_train[:, pair]).T
        along = np.abs(first + np.sign(first @ second) * second)
        row[pair] = X_train[rng.choice(np.argsort(-along)[:N_FAR])][pair]
    return rows, columns


def related_pairs(X_train):
    """Return the pairs of columns with the highest rank correlations, (n_pairs, 2)."""
    varied = np.flatnonzero([commonest(column) < 0.5 for column in X_train.T])
    related = np.abs(spearmanr(X_train[:, varied]).statistic)
    pairs = np.stack(np.triu_indices(len(varied), 1), 1)
    strength = related[tuple(pairs.T)]
    best = np.argsort(-strength)[:N_PAIRS]
    return varied[pairs[best[strength[best] >= LEAST_CORRELATION]]]


def commonest(column):
    """Return the share of the commonest value."""
    return np.unique(column, return_counts=True)[1].max() / len(column)


PLANTS = {"planted": planted, "broken": broken, "moved": moved}


# Measuring ----------------------------------------------------------------------------


def explanations(name, detector, seed):
    """Return by kind of plant how often each explanation ranks a planted column first.

    Of a pair, both columns count. Both explainers get the same rows, some at a
    time and in turns, and the same reference samples.
    """
    X_train, X_test, _, y_test = table(name, seed)
    X_train, normal = np.float64(X_train[:N_TRAIN]), np.float64(X_test[y_test == 1])
    model = make_detector(detector, "table", seed).fit(X_train)
    rng = np.random.default_rng(seed)
    X = normal[rng.permutation(len(normal))[: (N_ROUNDS + 1) * N_ROWS]]
    usual = model.score_samples(normal)
    found = {}
    for kind, plant in PLANTS.items():
        rows, columns = plant(X_train, X, rng)
        contributions, seconds = explained(model, rows, X_train[:N_REFERENCE])
        scores = model.score_samples(rows)
        visible = model.score_samples(X) - scores > LEAST_FALL * usual.std()
        metrics = {
            "visible": float(visible.mean()),
            "flagged": float(np.mean(scores < np.quantile(usual, 0.05))),
            "time_ratio": median(ratios(seconds, "shap", "explain")),
            "ms_per_row": median(seconds["explain"]) / N_ROWS * 1e3,
        }
        for way, values in contributions.items():
            first = (values.argmax(1)[:, None] == columns).any(1)
            metrics[way] = float(first.mean())
            if visible.any():
                metrics[f"{way}_visible"] = float(first[visible].mean())
            of_plant = np.take_along_axis(values, columns, 1)
            metrics[f"{way}_positive"] = float(np.mean(of_plant > 0))
        found[kind] = metrics
    return found


def explained(model, rows, reference):
    """Return contributions and seconds of both explainers.

    shap has its defaults: 500 samples per row, each with 100 of the reference samples.
    """
    import shap

    masker = shap.maskers.Independent(reference)
    permutation = shap.explainers.Permutation(model.score_samples, masker, seed=0)
    contributions = {"explain": [], "shap": []}
    parts = {way: iter(np.split(rows, N_ROUNDS + 1)) for way in contributions}

    def with_explain():
        found = explain(model, next(parts["explain"]), reference)
        contributions["explain"].append(found)

    def with_shap():
        found = permutation(next(parts["shap"]), silent=True)
        contributions["shap"].append(-found.values)

    seconds = interleaved({"explain": with_explain, "shap": with_shap}, N_ROUNDS)
    return {way: np.concatenate(part) for way, part in contributions.items()}, seconds


EXPERIMENTS = [
    Experiment(
        "explain",
        explanations,
        grid(name=DEVELOPMENT + OTHERS, detector=DETECTORS, seed=[0]),
        alone=True,
    )
]

SHARES = (
    Metric("explain", "explain", "mean", 2),
    Metric("shap", "shap", "mean", 2),
    Metric("visible", "Visible", "mean", 2),
    Metric("explain_visible", "explain, of the visible", "mean", 2),
    Metric("shap_visible", "shap, of the visible", "mean", 2),
    Metric("explain_positive", "explain, positive", "mean", 2),
    Metric("shap_positive", "shap, positive", "mean", 2),
    Metric("time_ratio", "Time of shap / explain", "median", 0),
)


def shares(kind, part, names):
    """Return the table of a kind of plant over some of the tables."""
    return Table(
        "explain",
        ("detector",),
        None,
        SHARES,
        "Detector",
        nested="kind",
        name=f"explain_{kind}_{part}",
        keep=lambda record: record["kind"] == kind and record["name"] in names,
    )


def by_table(metric, title):
    """Return the table of a share of the broken pairs, by table and detector."""
    return Table(
        "explain",
        ("name",),
        "detector",
        (Metric(metric, title, "mean", 2),),
        "Table",
        nested="kind",
        name=f"explain_broken_{metric}",
        keep=lambda record: record["kind"] == "broken",
    )


PARTS = {"development": DEVELOPMENT, "others": OTHERS}
TABLES = [
    *(shares(kind, part, names) for kind in PLANTS for part, names in PARTS.items()),
    by_table("explain", "Share of explain"),
    by_table("shap", "Share of shap"),
    by_table("visible", "Share of visible pairs"),
]
