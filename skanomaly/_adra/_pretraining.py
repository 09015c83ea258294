"""The pretraining of the package's own networks, before they are frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import Adam, AlternatingNet, DeviceDataset, LinearDecay, Player
from ..utils._kinds import TABLE, Kind
from ._adapters import StackedLinear


class JoinedRows:
    """Concatenation of data sets with samples of one shape.

    Parameters
    ----------
    parts : sequence of DeviceDataset
        The samples, on one device.
    """

    def __init__(self, parts: Sequence[DeviceDataset]):
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the samples at `index`, of shape (m,)."""
        first, *others = self.parts
        rows, n_before = first[index.clamp(max=len(first) - 1)], len(first)
        for part in others:
            # Indices of other parts select any sample, which torch.where drops: a
            # search for them would wait for the device.
            own = index - n_before
            some = part[own.clamp(0, len(part) - 1)]
            rows = torch.where(own.view(-1, *[1] * (rows.ndim - 1)) < 0, rows, some)
            n_before += len(part)
        return rows


class LabelledRows:
    """Samples with their classes, for batches of both.

    Parameters
    ----------
    rows : DeviceDataset
        The samples.
    labels : Tensor of shape (n,), int64
        Number of the class of each, on the device of `rows`.
    """

    def __init__(self, rows: DeviceDataset, labels: Tensor):
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples and labels at `index`."""
        return self.rows[index], self.labels[index]

    def __getstate__(self) -> dict:
        """Return the state without tensors, whose hashes for `memory` vary."""
        return {"rows": self.rows, "labels": self.labels.numpy(force=True)}

    def __setstate__(self, state: dict) -> None:
        """Restore the labels, on the host."""
        self.rows, self.labels = state["rows"], torch.from_numpy(state["labels"])


class Pretraining(AlternatingNet, ABC):
    """A network and a last layer on top of it, trained on a task without anomalies.

    Parameters
    ----------
    modules : dict
        "network": the function that builds the network.
    prepare, augment : callable
        Applied to samples before the network.
    row_shape : tuple of int
        Shape of a sample.
    n_outputs : int
        Outputs of the last layer.
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
        # Two samples, since batch normalisation cannot train on one.
        example = torch.zeros(self.n_estimators or 2, 2, *self.row_shape)
        example = self.prepare(example if self.n_estimators else example[0])
        with torch.no_grad():
            n_features = self.network_.eval()(example).shape[-1]
        self.last_ = self.last_layer(n_features)
        return self

    def last_layer(self, n_features: int) -> nn.Module:
        """Return a new layer from features to outputs."""
        return nn.Linear(n_features, self.n_outputs)

    def configure_optimizers(self):
        both = nn.ModuleList([self.network_, self.last_])
        adam = partial(Adam, lr=self.lr)
        return {"pretraining": Player(both, adam)}

    def training_step(self, batch):
        inputs, targets = self.make_task(batch)
        yield "pretraining", self.loss(self.last_(self.network_(inputs)), targets)

    @abstractmethod
    def make_task(self, batch) -> tuple[Tensor, Tensor]:
        """Return the inputs of the network, and the targets of its outputs."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the distance of the outputs from the targets."""
        return F.cross_entropy(outputs.float(), targets)


class Supervised(Pretraining):
    """The task is to name the class of an image; batches are pairs with labels."""

    def make_task(self, batch):
        images, labels = batch
        return self.prepare(self.augment(images, self.rng_)), labels


class Rotation(Pretraining):
    """The task is to predict by how many quarter turns an image is rotated."""

    def make_task(self, batch):
        images = self.prepare(self.augment(batch, self.rng_))
        side = min(images.shape[2:])  # of the square in the middle, which can turn
        top, left = ((whole - side) // 2 for whole in images.shape[2:])
        images = images[:, :, top : top + side, left : left + side]
        turned = [torch.rot90(images[k::4], k, (2, 3)) for k in range(4)]
        quarters = torch.arange(len(images), device=images.device) % 4
        return torch.cat(turned), quarters.sort().values


class Denoising(Pretraining):
    """The task is to recover the samples of a table from samples with noise added."""

    per_member = ()

    def last_layer(self, n_features):
        layer = super().last_layer(n_features)
        if self.n_estimators:
            layer = StackedLinear(self.n_estimators, n_features, self.n_outputs)
        return nn.Sequential(nn.GELU(), layer)

    def make_task(self, batch):
        rows = self.prepare(batch)
        n, n_columns = rows.shape[-2:]
        size = self.draw_shares(n)[..., None]
        return rows + size * self.draw_noise(n, n_columns), rows

    def loss(self, outputs, targets):
        error = F.smooth_l1_loss(outputs.float(), targets, reduction="none")
        return error.mean((-2, -1))


#: Tasks by their names in the parameter `pretrain`.
TASKS: dict[str, type[Pretraining]] = {
    "supervised": Supervised,
    "rotation": Rotation,
    "denoising": Denoising,
}


def task_for(name: str, kind: Kind, has_classes: bool) -> type[Pretraining]:
    """Return the task of a pretraining.

    Parameters
    ----------
    name : str
        The parameter `pretrain`: "auto", or the name of a task.
    kind : Kind
        The kind of the data.
    has_classes : bool
        Whether the classes of the corpus are known.

    Raises
    ------
    ValueError
        If the task is for another kind, or needs classes that are not known.
    """
    is_table = kind == TABLE
    if name == "auto":
        name = "supervised" if has_classes else "rotation"
        name = "denoising" if is_table else name
    if is_table != (name == "denoising"):
        raise ValueError(f"pretrain={name!r} is no task for {kind.name}.")
    if name == "supervised" and not has_classes:
        raise ValueError(
            "pretrain='supervised' needs a corpus with classes: a pair (samples, "
            "classes), or the name of a data set."
        )
    return TASKS[name]


def pretraining_data(
    task: type[Pretraining],
    rows: DeviceDataset,
    known: DeviceDataset,
    corpus: DeviceDataset | None,
    labels: Tensor | None,
) -> DeviceDataset | JoinedRows | LabelledRows:
    """Return the samples that a task is trained on.

    Parameters
    ----------
    task : type
        The task.
    rows, known : DeviceDataset
        Normal samples, and known anomalies.
    corpus : DeviceDataset or None
        Samples of the corpus.
    labels : Tensor or None
        Their classes.
    """
    if task is Denoising:
        return rows
    if task is Supervised and corpus is not None and labels is not None:
        return LabelledRows(corpus, labels)
    parts = [rows, known, *([] if corpus is None else [corpus])]
    return JoinedRows([part for part in parts if len(part)])


def pretrain(net: Pretraining, rows, plan, callbacks):
    """Train a net on its task: a stage, whose result `memory` may keep."""
    net.run(rows, callbacks=[LinearDecay(0.0), *callbacks], **plan)
    net.network_.to(memory_format=torch.contiguous_format)
    return (net,)
