"""What is done to images before a backbone sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_COLOURS = 3
#: What a crop may cut off, as a share of a side: 4 of 32 pixels.
_CROP = 1 / 8


class ImagePreparation(NamedTuple):
    """Bring scaled images to what a backbone was trained on.

    Attributes
    ----------
    sides : tuple of int
        Height and width; images are interpolated.
    mean, spread : tuple of float, or None
        Mean and standard deviation of each channel, of pixels in [0, 1]; None leaves
        pixels in [-1, 1].
    """

    sides: tuple[int, int]
    mean: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Map scaled images (n, c, h, w) to images with those sides."""
        if images.shape[2:] != self.sides:
            images = resized(images, self.sides)
        if self.mean is not None:
            mean, spread = (
                images.new_tensor(values).view(-1, 1, 1)
                for values in (self.mean, self.spread)
            )
            images = ((images + 1) / 2 - mean) / spread
        return images.contiguous(memory_format=torch.channels_last)


def sides_for(row_shape, input_size, least_side: int) -> tuple[int, int]:
    """Return the sides to which images are brought; "auto" is at least `least_side`."""
    _, height, width = row_shape
    short = min(height, width)
    wanted = max(short, least_side) if input_size == "auto" else input_size
    return round(height * wanted / short), round(width * wanted / short)


def normalizing(sides, normalization, n_channels: int, as_many: bool):
    """Return a preparation with means and deviations, if they are that.

    Parameters
    ----------
    sides : tuple of int
        To which images are brought.
    normalization : pair of array-like
        What was given.
    n_channels : int
        Of the images.
    as_many : bool
        Whether the network takes no other number of channels.

    Raises
    ------
    ValueError
        If it is something else, or for other channels.
    """
    means, spreads = checked_pair(normalization, n_channels)
    n_given = max(len(means), len(spreads))
    if as_many and n_given not in (1, n_channels):
        raise ValueError(
            f"normalization is for {n_given} channels, and the own network for images "
            f"of {n_channels}: give one for these, or None."
        )
    return ImagePreparation(sides, means, spreads)


def checked_pair(normalization, n_channels: int) -> tuple[tuple, tuple]:
    """Return means and standard deviations of channels, if they are that.

    Parameters
    ----------
    normalization : pair of array-like
        What was given.
    n_channels : int
        Of the images.

    Raises
    ------
    ValueError
        If it is something else, or for other channels.
    """
    try:
        means, spreads = (np.ravel(np.asarray(part, float)) for part in normalization)
    except (TypeError, ValueError):
        means, spreads = np.empty(0), np.empty(0)
    sizes = {len(means), len(spreads)}
    finite = np.isfinite(means).all() and np.isfinite(spreads).all()
    positive = finite and (spreads > 0).all()
    if sizes not in ({1}, {_COLOURS}, {n_channels}) or not positive:
        raise ValueError(
            f"normalization={normalization!r} has to be a pair, means and standard "
            "deviations above 0, each of one number or one per channel, all finite."
        )
    if len(means) > 1 < n_channels != len(means):
        raise ValueError(
            f"The images have {n_channels} channels, and the normalization is for "
            f"{len(means)}: give one for yours, or normalization=None."
        )
    return tuple(means.tolist()), tuple(spreads.tolist())


def shape_after(prepare: Callable, row_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a row after a preparation, which may change its sides."""
    return row_shape[0], *getattr(prepare, "sides", row_shape[1:])


def resized(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return images (n, c, h, w) with other sides, interpolated."""
    # Enlarging needs no smoothing, which is slow.
    shrinks = any(new < old for new, old in zip(sides, images.shape[2:], strict=True))
    return F.interpolate(images, sides, mode="bilinear", antialias=shrinks)


class Augmentation(NamedTuple):
    """Change images at random, each in its own way, on their device.

    Attributes
    ----------
    kinds : sequence of {"flip", "crop"}
        "flip" mirrors half of the images from left to right; "crop" moves each by up
        to an eighth of its sides, and repeats its edges.
    """

    kinds: Sequence[str]

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return images of the same shape."""
        n, device = len(images), images.device
        *_, height, width = images.shape

        def drawn(low, high):
            return torch.randint(low, high, (n, 1), generator=rng, device=device)

        rows, columns = (
            torch.arange(side, device=device).expand(n, side)
            for side in (height, width)
        )
        if "flip" in self.kinds:
            columns = torch.where(drawn(0, 2) == 1, columns.flip(1), columns)
        if "crop" in self.kinds:
            far = [round(_CROP * side) for side in (height, width)]
            rows = (rows + drawn(-far[0], far[0] + 1)).clamp(0, height - 1)
            columns = (columns + drawn(-far[1], far[1] + 1)).clamp(0, width - 1)
        image = torch.arange(n, device=device)[:, None, None]
        moved = images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]
        return moved.permute(0, 3, 1, 2)


def augmentation_of(augment):
    """Return what changes images at random, for the names of changes, or a function."""
    if callable(augment):
        return partial(changed_by, augment)
    if not augment:
        return unchanged
    if unknown := [kind for kind in augment if kind not in ("flip", "crop")]:
        raise ValueError(f"augment has {unknown}; it may have 'flip' and 'crop'.")
    return Augmentation(tuple(augment))


def changed_by(function, images: Tensor, rng: torch.Generator) -> Tensor:
    """Return what a function of the user, which draws by itself, makes of images."""
    made = function(images)
    if not isinstance(made, Tensor) or made.is_complex():
        what = f"a {type(made).__name__}"
        what = "complex numbers" if isinstance(made, Tensor) else what
        raise ValueError(
            f"augment returns {what}; it has to return images, a tensor of real "
            "numbers of the shape that it is given."
        )
    if made.shape != images.shape:
        raise ValueError(
            f"augment returns {tuple(made.shape)} for images of shape "
            f"{tuple(images.shape)}; it has to return as many, of the same size."
        )
    if not made.is_floating_point():
        raise ValueError(
            f"augment returns {made.dtype}; it is given scaled images, floats around "
            "0, and has to return such ones."
        )
    if not made.isfinite().all():
        raise ValueError("augment returns NaN, or infinite numbers.")
    return made.to(images)


def unchanged(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Return rows as they are."""
    return rows
