"""Small pictures of one coloured shape, made from factors that are known.

Five factors, each with a few values that are drawn independently, determine the shape
on a black background. Embeddings of such pictures can be compared with the factors.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb

import numpy as np
from sklearn.utils import Bunch, check_random_state

SIDE = 32
SHAPES = ("square", "disc", "triangle", "cross")
# The number of values of each factor.
FACTORS = {"colour": 5, "shape": len(SHAPES), "x": 8, "y": 8, "size": 4}

# In pixels: where centres lie, and radii of the discs. All shapes of a size have the
# area of its disc, and stay inside the picture at every position.
_CENTRES = (9.0, 23.0)
_RADII = (3.0, 4.8)
_BLOCK = 1024  # pictures at a time, for the sake of memory


def make_shapes(n_samples: int, *, random_state=None) -> Bunch:
    """Draw factors, and render them.

    Parameters
    ----------
    n_samples : int
        Number of pictures.
    random_state : int or RandomState, default=None
        Draws the factors; pass an int for the same pictures each time.

    Returns
    -------
    Bunch
        `data`, uint8 of shape (n, 3, 32, 32); `target`, the factors, int64 of shape
        (n, 5); and `target_names`, the names of the factors.
    """
    rng = check_random_state(random_state)
    drawn = [rng.randint(n_values, size=n_samples) for n_values in FACTORS.values()]
    factors = np.stack(drawn, axis=1).astype(np.int64)
    return Bunch(data=render(factors), target=factors, target_names=list(FACTORS))


def render(factors) -> np.ndarray:
    """Render one picture for each sample of factors.

    Parameters
    ----------
    factors : array-like of shape (n, 5)
        Integers: the colour, the shape, its position from the left and from the top,
        and its size, each from 0 on, below the number in `FACTORS`.

    Returns
    -------
    ndarray of shape (n, 3, 32, 32)
        The pictures, uint8, in RGB order. Edges are smooth: a pixel is as bright as
        about the part of it that the shape covers.
    """
    factors = np.asarray(factors)
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(
            f"factors must be of shape (n, {len(FACTORS)}), got {factors.shape}."
        )
    if factors.dtype.kind not in "iu":
        raise ValueError(f"factors must be integers, got {factors.dtype}.")
    for (name, n_values), column in zip(FACTORS.items(), factors.T, strict=True):
        if not ((column >= 0) & (column < n_values)).all():
            raise ValueError(f"The factor {name} must be in 0 to {n_values - 1}.")

    hues = [hsv_to_rgb(k / FACTORS["colour"], 1, 1) for k in range(FACTORS["colour"])]
    colours = np.array(hues, dtype=np.float32)
    images = np.empty((len(factors), 3, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, len(factors), _BLOCK):
        block = slice(start, start + _BLOCK)
        covered = _coverage(*factors[block, 1:].T)[:, None]
        coloured = covered * colours[factors[block, 0], :, None, None]
        images[block] = np.rint(255 * coloured)
    return images


def _coverage(shape, x, y, size):
    """Return which part of each pixel a shape covers, of shape (n, h, w)."""

    def steps(ends, values, factor):
        return np.linspace(*ends, FACTORS[factor])[values].astype(np.float32)

    pixels = np.arange(SIDE, dtype=np.float32) + 0.5
    across = (pixels - steps(_CENTRES, x, "x")[:, None])[:, None, :]
    down = (pixels - steps(_CENTRES, y, "y")[:, None])[:, :, None]
    radius = steps(_RADII, size, "size")[:, None, None]
    covered = np.empty((len(shape), SIDE, SIDE), dtype=np.float32)
    for k, name in enumerate(SHAPES):
        mask = shape == k
        outside = _DISTANCES[name](across[mask], down[mask], radius[mask])
        # A pixel whose middle is on the edge is half covered.
        covered[mask] = np.clip(0.5 - outside, 0, 1)
    return covered


# How far a point is outside of each shape, negative inside; beyond corners it is the
# distance from the nearest side drawn on. `r` is the radius of the disc of that area.


def _disc(u, v, r):
    return np.hypot(u, v) - r


def _square(u, v, r):
    return np.maximum(abs(u), abs(v)) - np.sqrt(np.pi) / 2 * r


def _triangle(u, v, r):
    inner = np.sqrt(np.pi / np.sqrt(27)) * r
    return np.maximum(v, np.sqrt(0.75) * abs(u) - v / 2) - inner


def _cross(u, v, r):
    arm = np.sqrt(9 * np.pi / 20) * r  # three times as long as wide, each way
    u, v = abs(u), abs(v)
    return np.minimum(
        np.maximum(u - arm / 3, v - arm), np.maximum(u - arm, v - arm / 3)
    )


_DISTANCES = {
    "square": _square,
    "disc": _disc,
    "triangle": _triangle,
    "cross": _cross,
}
