"""Training data on the device, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils import gen_batches
from torch import Tensor

from ._processes import n_processes, part_of_rows

#: Limit of the data kept in the host's memory; larger data are streamed.
HOST_BYTES = 4 * 2**30


class DeviceDataset:
    """The samples of an array, as scaled float32 tensors on a device.

    Data that fit stay on the device: tables are scaled once, uint8 images batch by
    batch. Larger data stay in their array, such as a memory map, and are read and
    scaled batch by batch.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features), (n_samples, channels, height, width) \
            or (n_samples, channels, frames, height, width)
        Finite numbers.
    scaler : fitted transformer or None
        Scaler of the samples; uint8 images need an
        :class:`~skanomaly.utils._scaling.ImageScaler`.
    device : str or torch.device
        Device of the batches.
    max_bytes : int or None
        Limit of the data kept on the device. None means half of the free memory of a
        CUDA device, and 4 GiB elsewhere.

    Attributes
    ----------
    resident : Tensor or None
        All data on the device; None if they are streamed.
    indices : Tensor of shape (len(self),), int64
        Positions in `X` of the samples of this data set.
    """

    def __init__(
        self,
        X: NDArray,
        scaler: Any = None,
        device: str | torch.device = "cpu",
        max_bytes: int | None = None,
    ):
        self.X, self.scaler = X, scaler
        self.device, self.max_bytes = torch.device(device), max_bytes
        self.resident = self._to_device() if self._fits() else None
        self.indices = torch.arange(len(X), device=self.device)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return the scaled samples at `index`, int64 of any shape."""
        return self.scaled(self.stored(self.indices[index]))

    def stored(self, index: Tensor) -> Tensor:
        """Return the samples at `index` of the whole `X`: uint8, or scaled float32."""
        if self.resident is not None:
            return self.resident[index]
        rows = self.X[index.flatten().cpu().numpy()]
        if rows.dtype == np.uint8:
            samples = torch.tensor(rows, device=self.device)
        else:
            samples = self._transformed(rows)
        return samples.unflatten(0, index.shape)

    def scaled(self, samples: Tensor) -> Tensor:
        """Return samples from :meth:`stored` as scaled float32."""
        if samples.dtype != torch.uint8:
            return samples
        scale, shift = self._affine
        return samples * scale + shift

    def subset(self, index: Tensor) -> DeviceDataset:
        """Return a data set of the samples at `index`, without a copy of the data."""
        part = object.__new__(type(self))
        vars(part).update(vars(self), indices=self.indices[index])
        return part

    def head(self, n: int) -> Tensor:
        """Return the first samples, n at most."""
        return self[slice(n)]

    def spread_indices(self, n: int) -> Tensor:
        """Return at most n evenly spaced indices, since `X` may be sorted."""
        n = min(n, len(self))
        return torch.arange(n, device=self.device) * len(self) // max(n, 1)

    def raw(self, index: Tensor) -> NDArray:
        """Return the unscaled samples at `index`."""
        return self.X[self.indices[index].cpu().numpy()]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.X.shape[1:]

    def __getstate__(self) -> dict[str, Any]:
        """Return the data without the device; cache keys are hashes of this."""
        return {
            "X": self.X,
            "scaler": self.scaler,
            "indices": self.indices.numpy(force=True),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the data set on the CPU."""
        DeviceDataset.__init__(self, state["X"], state["scaler"])
        self.indices = torch.from_numpy(state["indices"])

    def _fits(self) -> bool:
        limit = self.max_bytes
        if limit is None and self.device.type == "cuda":
            limit = torch.cuda.mem_get_info(self.device)[0] // 2
        elif limit is None:
            limit = HOST_BYTES
        return self.X.size * (1 if self.X.dtype == np.uint8 else 4) <= limit

    def _to_device(self) -> Tensor:
        if self.X.dtype != np.uint8:
            return self._transformed(self.X)
        # A view may have negative strides, which torch does not support.
        return torch.tensor(np.ascontiguousarray(self.X), device=self.device)

    @cached_property
    def _affine(self) -> tuple[Tensor | float, Tensor | float]:
        if self.scaler is None:
            return 1.0, 0.0
        scale, shift = (
            torch.as_tensor(values, dtype=torch.float32, device=self.device)
            for values in (self.scaler.scale_, self.scaler.min_)
        )
        return scale, shift

    def _transformed(self, rows: NDArray) -> Tensor:
        # The caller checks for infinite results.
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.ascontiguousarray(_scaled(self.scaler, rows))
        return torch.tensor(rows, dtype=torch.float32, device=self.device)


def _scaled(scaler: Any, X: NDArray) -> NDArray[Any]:
    """Return ``scaler.transform(X)`` for checked samples.

    The scalers of scikit-learn check them again, which takes as long as a small
    network.
    """
    if scaler is None:
        return X
    if type(scaler) is StandardScaler:
        mean, scale = (v.astype(X.dtype) for v in (scaler.mean_, scaler.scale_))
        return (X - mean) / scale
    if type(scaler) is MinMaxScaler:
        scale, shift = (v.astype(X.dtype) for v in (scaler.scale_, scaler.min_))
        return X * scale + shift
    return scaler.transform(X)


class TransformedDataset:
    """The images of a data set, transformed by a function.

    Images that stay on the device are transformed at once, others batch by batch.
    Transformed uint8 images are rounded to uint8.

    Parameters
    ----------
    dataset : DeviceDataset
        Images (n_samples, channels, height, width).
    function : callable
        Maps images, scaled or not, to images of another size, by padding or by means of
        pixels.
    """

    def __init__(self, dataset: DeviceDataset, function: Callable[[Tensor], Tensor]):
        self.dataset, self.function = dataset, function
        self.device = dataset.device
        self.resident = self._transform_all() if dataset.resident is not None else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the scaled images at `index`, int64 of any shape."""
        if self.resident is not None:
            return self.dataset.scaled(self.resident[index])
        images = self._transformed(index.flatten())
        return self.dataset.scaled(images).unflatten(0, index.shape)

    def _transformed(self, index: Tensor | slice) -> Tensor:
        stored = self.dataset.stored(self.dataset.indices[index])
        images = self.function(stored.float())
        if stored.dtype != torch.uint8:
            return images
        return images.round().clamp(0, 255).to(torch.uint8)

    def _transform_all(self) -> Tensor:
        first = self._transformed(slice(1))
        images = first.new_empty(len(self), *first.shape[1:])
        # In batches: as float32, all images would take four times the memory.
        for batch in gen_batches(len(self), max(2**20 // first[0].numel(), 1)):
            images[batch] = self._transformed(batch)
        return images


class Batches:
    """Batches of one epoch: slices of a random permutation of a data set.

    All batches have `batch_size` samples. A data set smaller than an epoch is
    permuted several times. Of several processes that train together, each gets its part
    of the batches of all.

    Parameters
    ----------
    dataset : DeviceDataset
        The data set, or another object with a length and items at tensors of indices.
    batch_size : int
        Samples per batch, in each process.
    n_batches : int
        Batches per epoch.
    n_estimators : int
        Members of an ensemble. Each has its own permutation, and batches have the shape
        (n_estimators, batch_size, ...). 0 means a single network, whose batches have no
        such first dimension.
    rng : torch.Generator
        Draws the permutations.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        n_batches: int,
        n_estimators: int,
        rng: torch.Generator,
    ):
        self.dataset, self.batch_size = dataset, batch_size
        self.n_batches, self.n_estimators, self.rng = n_batches, n_estimators, rng

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of fresh permutations."""
        for index in self.indices():
            yield self.dataset[index]

    def indices(self) -> Iterator[Tensor]:
        """Yield the indices of each batch, for this process."""
        return (part_of_rows(index, -1) for index in self.indices_of_all())

    def indices_of_all(self) -> Iterator[Tensor]:
        """Yield the indices of each batch, for all processes."""
        order = torch.stack([self._order() for _ in range(self.n_estimators or 1)])
        order = order if self.n_estimators else order[0]
        yield from order.split(self.batch_size * n_processes(), -1)

    def _order(self) -> Tensor:
        n = len(self.dataset)
        n_drawn = self.n_batches * self.batch_size * n_processes()
        n_passes = -(-n_drawn // n)
        permutations = [
            torch.randperm(n, generator=self.rng, device=self.rng.device)
            for _ in range(n_passes)
        ]
        return torch.cat(permutations)[:n_drawn]
