"""Data on the device: rows, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

#: The most that data may take of the host's memory before they are streamed.
HOST_BYTES = 4 * 2**30


class Rows:
    """The rows of a table, or images, as scaled float32 batches on a device.

    What fits stays on the device: tables scaled once, images of dtype uint8 as
    they are and scaled batch by batch. What does not fit stays where it is, in a
    memory map for one, and is read and scaled batch by batch.

    Parameters
    ----------
    X : ndarray of shape (n, d), (n, c, h, w) or (n, c, t, h, w)
        Finite numbers.
    scaler : fitted transformer or None
        Applied to rows; for uint8 images an
        :class:`~skanomaly.utils._scaling.ImageScaler`.
    device : str or torch.device
        Where batches are wanted.
    max_bytes : int or None
        The most to keep on the device. None: half of what is free on a CUDA
        device, 4 GiB elsewhere.
    """

    def __init__(self, X, scaler=None, device="cpu", max_bytes=None):
        self.X, self.scaler = X, scaler
        self.device, self.max_bytes = torch.device(device), max_bytes
        self.resident = self._to_device() if self._fits() else None
        self.chosen = torch.arange(len(X), device=self.device)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the scaled rows at `index`, any shape of int64."""
        return self.gather(self.chosen[index])

    def gather(self, index: Tensor) -> Tensor:
        """Return the scaled rows at `index` into the whole of X."""
        return self.unpacked(self.stored(index))

    def stored(self, index: Tensor) -> Tensor:
        """Return the rows at `index` into the whole of X: bytes, or scaled numbers."""
        if self.resident is not None:
            return self.resident[index]
        rows = self.X[index.flatten().cpu().numpy()]
        if rows.dtype != np.uint8:
            made = self._scaled(rows)
        else:
            made = torch.tensor(rows, device=self.device)
        return made.unflatten(0, index.shape)

    def unpacked(self, rows: Tensor) -> Tensor:
        """Return bytes as scaled numbers, and what has been scaled as it is."""
        if rows.dtype != torch.uint8:
            return rows
        scale, shift = self._affine
        return rows * scale + shift

    def take(self, index: Tensor) -> Rows:
        """Return the rows at `index` as rows of their own, without a copy."""
        part = object.__new__(type(self))
        vars(part).update(vars(self), chosen=self.chosen[index])
        return part

    def head(self, n: int) -> Tensor:
        """Return the first rows, n at most."""
        return self[torch.arange(min(n, len(self)), device=self.device)]

    def evenly(self, n: int) -> Tensor:
        """Return the numbers of n rows at most, from all over: X may be sorted."""
        n = min(n, len(self))
        return torch.arange(n, device=self.device) * len(self) // max(n, 1)

    def raw(self, index: Tensor) -> np.ndarray:
        """Return the rows at `index` as they were given."""
        return self.X[self.chosen[index].cpu().numpy()]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.X.shape[1:]

    def __getstate__(self) -> dict:
        """Say what the rows are made of; hashes of rows rest on it."""
        return {
            "X": self.X,
            "scaler": self.scaler,
            "chosen": self.chosen.numpy(force=True),
        }

    def __setstate__(self, state: dict) -> None:
        """Make the rows anew, on the host."""
        Rows.__init__(self, state["X"], state["scaler"])
        self.chosen = torch.from_numpy(state["chosen"])

    def _fits(self) -> bool:
        limit = self.max_bytes
        if limit is None and self.device.type == "cuda":
            limit = torch.cuda.mem_get_info(self.device)[0] // 2
        elif limit is None:
            limit = HOST_BYTES
        return self.X.size * (1 if self.X.dtype == np.uint8 else 4) <= limit

    def _to_device(self) -> Tensor:
        if self.X.dtype != np.uint8:
            return self._scaled(self.X)
        # Views may run backwards, which torch does not know.
        return torch.tensor(np.ascontiguousarray(self.X), device=self.device)

    @cached_property
    def _affine(self):
        if self.scaler is None:
            return 1.0, 0.0
        both = self.scaler.scale_, self.scaler.min_
        form = {"dtype": torch.float32, "device": self.device}
        return tuple(torch.as_tensor(values, **form) for values in both)

    def _scaled(self, rows: np.ndarray) -> Tensor:
        if self.scaler is not None and len(rows):  # scikit-learn takes no empty table
            # What is not finite is looked at by those who gave the rows.
            with np.errstate(over="ignore", invalid="ignore"):
                rows = self.scaler.transform(rows)
        rows = np.ascontiguousarray(rows)
        return torch.tensor(rows, dtype=torch.float32, device=self.device)


class MappedRows:
    """Images that a function has been over, in the same order.

    Of rows that stay on the device, all are made at once; others are made batch by
    batch. What is made of bytes is rounded to bytes.

    Parameters
    ----------
    rows : Rows
        Images (n, c, h, w).
    function : callable
        Maps images to images of other sides, before their scaling or after it: it
        pads, or takes means of pixels.
    """

    def __init__(self, rows: Rows, function: Callable[[Tensor], Tensor]):
        self.rows, self.function, self.device = rows, function, rows.device
        self.made = self._make() if rows.resident is not None else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the scaled images at `index`, any shape of int64."""
        if self.made is not None:
            return self.rows.unpacked(self.made[index])
        made = self._changed(index.flatten())
        return self.rows.unpacked(made).unflatten(0, index.shape)

    def _changed(self, index):
        stored = self.rows.stored(self.rows.chosen[index])
        changed = self.function(stored.float())
        if stored.dtype != torch.uint8:
            return changed
        return changed.round().clamp(0, 255).to(torch.uint8)

    def _make(self):
        # Few at a time: all as numbers would take many times the memory of bytes.
        index = torch.arange(len(self), device=self.device)
        first = self._changed(index[:1])
        made = first.new_empty(len(self), *first.shape[1:])
        for part in index.split(max(2**20 // first[0].numel(), 1)):
            made[part] = self._changed(part)
        return made


class Batches:
    """One epoch of equal batches: slices of a random permutation of the rows.

    All batches have `batch_size` rows. With fewer rows than that, rows repeat.

    Parameters
    ----------
    rows : Rows
        Where batches come from.
    batch_size : int
        Rows per batch.
    n_batches : int
        Batches per epoch.
    n_estimators : int
        For networks side by side: an epoch is then that many permutations, and a
        batch has the shape (n_estimators, batch_size, ...). 0 for one network alone.
    rng : torch.Generator
        Draws the permutations.
    """

    def __init__(self, rows: Rows, batch_size, n_batches, n_estimators, rng):
        self.rows, self.batch_size, self.n_batches = rows, batch_size, n_batches
        self.n_estimators, self.rng = n_estimators, rng

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches of fresh permutations."""
        for index in self.numbers():
            yield self.rows[index]

    def numbers(self) -> Iterator[Tensor]:
        """Yield the numbers of the rows, batch by batch."""
        order = torch.stack([self._order() for _ in range(self.n_estimators or 1)])
        yield from (order if self.n_estimators else order[0]).split(self.batch_size, -1)

    def _order(self):
        n, wanted = len(self.rows), self.n_batches * self.batch_size
        passes = -(-wanted // n)
        parts = [
            torch.randperm(n, generator=self.rng, device=self.rng.device)
            for _ in range(passes)
        ]
        return torch.cat(parts)[:wanted]
