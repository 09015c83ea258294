"""Draws mean ranks over data sets, with the critical difference of Nemenyi's test."""

from __future__ import annotations

from io import StringIO
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import studentized_range

#: Fewest detectors and data sets that are worth a picture.
MIN_DETECTORS, MIN_SETS = 3, 5
_LEVEL = 0.05
_GREY = "#808080"  # readable on white and on black


def mean_ranks(scores: pd.DataFrame) -> pd.Series:
    """Return the mean rank of each column over the rows; the highest score has 1."""
    return scores.rank(axis="columns", ascending=False).mean().sort_values()


def critical_difference(n_detectors: int, n_sets: int) -> float:
    """Return the difference of mean ranks from which on it is significant.

    Nemenyi's test at a level of .05: J. Demsar, "Statistical comparisons of classifiers
    over multiple data sets", JMLR 7, 2006, sec. 3.2.2.
    """
    q = studentized_range.ppf(1 - _LEVEL, n_detectors, np.inf) / 2**0.5
    return float(q * (n_detectors * (n_detectors + 1) / (6 * n_sets)) ** 0.5)


def cliques(ranks: pd.Series, difference: float) -> list[tuple[float, float]]:
    """Return the largest intervals of sorted ranks without a significant difference."""
    values = ranks.to_numpy()
    ends = [values[values <= low + difference].max() for low in values]
    intervals = [(low, high) for low, high in zip(values, ends, strict=True)]
    new = [True, *(high > before for (_, before), (_, high) in pairwise(intervals))]
    return [
        i for i, is_new in zip(intervals, new, strict=True) if is_new and i[0] < i[1]
    ]


def draw(scores: pd.DataFrame) -> str:
    """Return a picture of the mean ranks as SVG."""
    ranks = mean_ranks(scores)
    difference = critical_difference(scores.shape[1], len(scores))
    groups = cliques(ranks, difference)
    n_left = (len(ranks) + 1) // 2
    depth = 0.35 + 0.12 * len(groups)
    figure = Figure(figsize=(7, 0.7 + 0.24 * n_left + 0.1 * len(groups)))
    axes = figure.add_axes((0.27, 0.02, 0.46, 0.96))
    axes.axis("off")
    low, high = 1, len(ranks)
    bottom = -depth - 0.3 * n_left
    axes.set(xlim=(low, high), ylim=(bottom, 1.0))
    line = {"color": _GREY, "clip_on": False, "lw": 1}
    axes.plot([low, high], [0, 0], **line)
    for tick in range(low, high + 1):
        axes.plot([tick, tick], [0, 0.1], **line)
        axes.text(tick, 0.15, str(tick), color=_GREY, ha="center", va="bottom")
    axes.plot([low, low + difference], [0.7, 0.7], **line | {"lw": 3})
    text = f"critical difference {difference:.2f}"
    axes.text(low + difference + 0.1, 0.7, text, color=_GREY, va="center")
    for k, (first, last) in enumerate(groups):
        y = -0.15 - 0.12 * k
        axes.plot([first - 0.04, last + 0.04], [y, y], **line | {"lw": 3})
    for k, (name, rank) in enumerate(ranks.items()):
        is_left = k < n_left
        y = -depth - 0.3 * (k if is_left else len(ranks) - 1 - k)
        side = low - 0.1 if is_left else high + 0.1
        axes.plot([rank, rank, side], [0, y, y], **line)
        label = f"{name} ({rank:.2f})"
        align = "right" if is_left else "left"
        axes.text(side, y, f" {label} ", color=_GREY, ha=align, va="center")
    file = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ranks"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
