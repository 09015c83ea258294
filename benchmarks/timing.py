"""Times of several ways to do the same, on a machine that is shared and noisy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def interleaved(
    ways: Mapping[str, Callable[[], object]], n_rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Return the seconds that each way took in each round, after one to warm up.

    The ways take turns, so that other work on the machine affects all of them.
    """
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(n_rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratios(seconds: dict[str, list[float]], way: str, base: str) -> list[float]:
    """Return by how much longer `way` took than `base`, round by round, sorted."""
    pairs = zip(seconds[way], seconds[base], strict=True)
    return sorted(a / b for a, b in pairs)


def milliseconds_per_step(seconds: dict[str, list[float]], n_steps: int) -> dict:
    """Return the medians by way, under the names that tables show."""
    return {
        f"{name}, ms per step": median(values) / n_steps * 1e3
        for name, values in seconds.items()
    }
