"""What the package's own networks are taught before they are frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import AlternatingNet, DeviceDataset, LinearDecay, Player
from ._adapters import StackedLinear


class JoinedRows:
    """Rows of one shape from several places, as if they stood one after the other.

    Parameters
    ----------
    parts : list of DeviceDataset
        The rows, on one device.
    """

    def __init__(self, parts: list[DeviceDataset]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the rows at `index`, of shape (m,)."""
        first, *others = self.parts
        rows, n_before = first[index.clamp(max=len(first) - 1)], len(first)
        for part in others:
            # Any row stands in for those of other parts: to look for them would wait
            # for the device.
            own = index - n_before
            some = part[own.clamp(0, len(part) - 1)]
            rows = torch.where(own.view(-1, *[1] * (rows.ndim - 1)) < 0, rows, some)
            n_before += len(part)
        return rows


class LabelledRows:
    """Rows with their classes, for batches of both.

    Parameters
    ----------
    rows : DeviceDataset
        The rows.
    labels : Tensor of shape (n,), int64
        Number of the class of each, on the device of `rows`.
    """

    def __init__(self, rows: DeviceDataset, labels: Tensor):
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and labels at `index`."""
        return self.rows[index], self.labels[index]

    def __getstate__(self) -> dict:
        """Say what they are made of; hashes rest on it, and differ for tensors."""
        return {"rows": self.rows, "labels": self.labels.numpy(force=True)}

    def __setstate__(self, state: dict) -> None:
        """Make them anew, on the host."""
        self.rows, self.labels = state["rows"], torch.from_numpy(state["labels"])


class Pretraining(AlternatingNet, ABC):
    """A network and a last layer on top of it, taught a task that needs no anomaly.

    Parameters
    ----------
    modules : dict
        "network": what builds the network.
    prepare, augment : callable
        What is done to rows before the network sees them.
    row_shape : tuple of int
        Shape of a row.
    n_outputs : int
        What the last layer returns.
    **engine
        Settings of the engine.
    """

    def __init__(self, modules, *, prepare, augment, row_shape, n_outputs, **engine):
        super().__init__(modules, **engine)
        self.prepare = prepare
        self.augment = augment
        self.row_shape = row_shape
        self.n_outputs = n_outputs

    def initialize_module(self):
        super().initialize_module()
        self.network_.to(memory_format=torch.channels_last)
        # Two rows, since batch normalisation cannot train on one.
        example = torch.zeros(self.n_estimators or 2, 2, *self.row_shape)
        example = self.prepare(example if self.n_estimators else example[0])
        with torch.no_grad():
            n_features = self.network_.eval()(example).shape[-1]
        self.last_ = self.last_layer(n_features)
        return self

    def last_layer(self, n_features: int) -> nn.Module:
        """Return what makes outputs of features."""
        return nn.Linear(n_features, self.n_outputs)

    def configure_optimizers(self):
        both = nn.ModuleList([self.network_, self.last_])
        adam = partial(torch.optim.Adam, lr=self.lr, fused=True)
        return {"pretraining": Player(both, adam)}

    def training_step(self, batch):
        inputs, wanted = self.posed(batch)
        yield "pretraining", self.loss(self.last_(self.network_(inputs)), wanted)

    @abstractmethod
    def posed(self, batch) -> tuple[Tensor, Tensor]:
        """Return what the network is given, and what it should say."""

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Return how far the outputs are from that."""
        return F.cross_entropy(outputs.float(), wanted)


class Supervised(Pretraining):
    """The task is to name the class of an image; batches are pairs with labels."""

    def posed(self, batch):
        images, labels = batch
        return self.prepare(self.augment(images, self.rng_)), labels


class Rotation(Pretraining):
    """The task is to say by how many quarters an image was turned."""

    def posed(self, batch):
        images = self.prepare(self.augment(batch, self.rng_))
        side = min(images.shape[2:])  # of the square in the middle, which can turn
        top, left = ((whole - side) // 2 for whole in images.shape[2:])
        images = images[:, :, top : top + side, left : left + side]
        turned = [torch.rot90(images[k::4], k, (2, 3)) for k in range(4)]
        quarters = torch.arange(len(images), device=images.device) % 4
        return torch.cat(turned), quarters.sort().values


class Denoising(Pretraining):
    """The task is to tell the rows of a table from rows with noise added."""

    def last_layer(self, n_features):
        layer = nn.Linear(n_features, self.n_outputs)
        if self.n_estimators:
            layer = StackedLinear(self.n_estimators, n_features, self.n_outputs)
        return nn.Sequential(nn.GELU(), layer)

    def posed(self, batch):
        rows = self.prepare(batch)
        draw = {"generator": self.rng_, "device": self.device}
        size = torch.rand(*rows.shape[:-1], 1, **draw)
        return rows + size * torch.randn(rows.shape, **draw), rows

    def loss(self, outputs, wanted):
        error = F.smooth_l1_loss(outputs.float(), wanted, reduction="none")
        return error.mean((-2, -1)).sum()


def pretrain(net: Pretraining, rows, plan, callbacks):
    """Teach a net its task; a stage, whose result `memory` may keep."""
    net.run(rows, callbacks=[LinearDecay(0.0), *callbacks], **plan)
    net.network_.to(memory_format=torch.contiguous_format)
    return (net,)
