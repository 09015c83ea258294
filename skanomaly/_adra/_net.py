"""The net of ADRA: the modules that a detector trains, and how it trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

from ..engine import (
    HOST_BYTES,
    Adam,
    AlternatingNet,
    Batches,
    DeviceDataset,
    Player,
    TransformedDataset,
    all_rows,
    n_processes,
    own_rows,
)
from ..exceptions import StopTraining
from ..objectives import hypersphere_classification_loss
from ._adapters import adapters_for
from ._backbone import FrozenNetwork, forward_hooks
from ._whitening import WhiteningHead

#: Samples to compute together.
_AT_ONCE = 128
#: Maximum norm of gradients; usual norms, for MobileNetV2, are 1 to 7.
_LONGEST = 10.0
#: Largest move of a crop, as a share of a side: 4 of 32 pixels.
_CROP = 1 / 8
#: By name: the paper's, and one whose steps do not depend on the size of gradients.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, foreach=True),
    "adam": Adam,
}


# Augmentation -----------------------------------------------------------------------


@dataclass(frozen=True)
class Augmentation:
    """Changes images at random, each in its own way, on their device.

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
            size = all_rows(n), 1
            values = torch.randint(low, high, size, generator=rng, device=device)
            return own_rows(values, 0)

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


def augmentation_for(augment) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return the augmentation for the parameter `augment`: names, or a function."""
    if callable(augment):
        return partial(changed_by, augment)
    if not augment:
        return unchanged
    if unknown := [kind for kind in augment if kind not in ("flip", "crop")]:
        raise ValueError(f"augment has {unknown}; it may have 'flip' and 'crop'.")
    return Augmentation(tuple(augment))


def changed_by(function, images: Tensor, rng: torch.Generator) -> Tensor:
    """Apply a user's augmentation, and check its result."""
    changed = function(images)
    if not isinstance(changed, Tensor) or changed.is_complex():
        found = f"a {type(changed).__name__}"
        found = "complex numbers" if isinstance(changed, Tensor) else found
        raise ValueError(
            f"augment returns {found}; it has to return images, a tensor of real "
            "numbers of the shape that it is given."
        )
    if changed.shape != images.shape:
        raise ValueError(
            f"augment returns {tuple(changed.shape)} for images of shape "
            f"{tuple(images.shape)}; it has to return as many, of the same size."
        )
    if not changed.is_floating_point():
        raise ValueError(
            f"augment returns {changed.dtype}; it has to return floats, like the "
            "scaled images that it is given."
        )
    if not changed.isfinite().all():
        raise ValueError("augment returns NaN, or infinite numbers.")
    return changed.to(images)


def unchanged(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Return samples as they are."""
    return rows


# Modules, data, the end of a run ------------------------------------------------------


class Adapters(nn.Module):
    """The modules that a detector adds to a backbone: adapters of layers, and a head.

    Parameters
    ----------
    backbone : FrozenNetwork
        The network.
    n_experts : int
        Experts in each adapter that is a mixture.
    shrinkage, unit : float and bool
        Settings of the :class:`WhiteningHead`.
    """

    def __init__(
        self, backbone: FrozenNetwork, n_experts: int, shrinkage: float, unit: bool
    ):
        super().__init__()
        layers = [layer.base_layer for layer in backbone.layers.values()]
        self.layers = adapters_for(layers, n_experts)
        self.head = WhiteningHead(backbone.features_shape, shrinkage, unit)

    @contextmanager
    def fitting_gates(self) -> Iterator[None]:
        """Fit the standardisation of gates to the samples computed in the context."""
        sums: dict[Any, list] = {
            one.gate: [0.0, 0.0, 0] for one in self.layers if hasattr(one, "gate")
        }

        def add(gate, inputs, output):
            # On the host: not every device has such numbers.
            rows = inputs[0].cpu().double()
            for k, values in enumerate((rows, rows.square())):
                sums[gate][k] += values.sum(-2, keepdim=rows.ndim > 2)
            sums[gate][2] += rows.shape[-2]

        with forward_hooks(sums, add):
            yield
        for gate, of_rows in sums.items():
            gate.fit(*of_rows)


class CachedEmbeddings:
    """The embeddings of samples, each computed once.

    On a CPU, an embedding is computed when its sample is first drawn. On other devices
    all are computed in advance, since a search for new samples would make each step
    wait.

    Parameters
    ----------
    rows : DeviceDataset
        The samples.
    embed : callable
        Maps them to embeddings.
    """

    def __init__(
        self,
        rows: DeviceDataset | TransformedDataset,
        embed: Callable[[Tensor], Tensor],
    ):
        self.rows, self.embed, self.device = rows, embed, rows.device
        self.embeddings: Tensor | None = None
        self.missing = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        self.n_missing, self.groups = len(rows), list[Tensor]()
        if self.device.type != "cpu":
            for part in torch.arange(len(rows), device=self.device).split(_AT_ONCE):
                self._add(part)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the embeddings of the samples at `index`, of shape (m,)."""
        if self.n_missing:
            new = index[self.missing[index]].unique()
            if len(new):
                self._add(new)
        assert self.embeddings is not None
        return self.embeddings[index]

    def run_state(self):
        """Return the groups of samples that were computed together."""
        return self.groups

    def load_run_state(self, groups):
        """Compute the same groups: the last bits depend on the others in a batch."""
        for group in groups[len(self.groups) :]:
            self._add(group)

    def _add(self, new):
        self.groups.append(new)
        embeddings = self.embed(self.rows[new])
        if self.embeddings is None:
            self.embeddings = embeddings.new_empty(len(self), *embeddings.shape[1:])
        self.embeddings[new] = embeddings
        self.missing[new] = False
        self.n_missing -= len(new)


class Stream:
    """Batches without end, pass by pass.

    Parameters
    ----------
    dataset : object
        With a length, and items at tensors of indices.
    batch_size, n_estimators, rng
        As of :class:`~skanomaly.engine.Batches`.
    """

    def __init__(
        self, dataset: Any, batch_size: int, n_estimators: int, rng: torch.Generator
    ):
        n_batches = max(len(dataset) // (batch_size * n_processes()), 1)
        self.batches = Batches(dataset, batch_size, n_batches, n_estimators, rng)
        self.left: list[Tensor] = []

    def __next__(self) -> Any:
        if not self.left:
            self.left = list(self.batches.indices_of_all())
        index, dataset = self.left.pop(0), self.batches.dataset
        if getattr(dataset, "for_batches", False):
            return own_rows(dataset[index], -2)
        return dataset[own_rows(index, -1)]


class StopAtCollapse(Callback):
    """Ends a run without a corpus before all samples have the same latent code.

    The loss is lowest at that point. The run ends when the variance of the codes of
    held-out samples is less than a share of their variance without adapters.

    Parameters
    ----------
    share : float
        That share, in (0, 1), of the sum of the variances.
    every : int
        Steps between two measurements.
    """

    def __init__(self, share: float = 0.7, every: int = 5):
        self.share = share
        self.every = every

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Measure the variance without adapters."""
        net.backbone_.set_adapters(None)
        self.least_ = self.share * float(net.validate()["spread"])
        net.backbone_.set_adapters(net.adapters_.layers)

    def on_batch_end(self, net, **kwargs):
        """Measure the variance, and stop the run if it is too low."""
        if net.step_ % self.every == 0:
            spread = net.validate()["spread"]
            net.record("spread", spread)
            if float(spread) < self.least_:
                raise StopTraining


# Training ---------------------------------------------------------------------------


class ResidualAdaptation(AlternatingNet):
    """Eq. 4: the loss of eq. 1, minimised over the adapters alone.

    Parameters
    ----------
    modules : dict
        "backbone" and "adapters": functions that build them, the second one from the
        first module.
    prepare : callable
        Maps scaled samples to the inputs of the network.
    augment : callable
        Changes samples at random in training.
    corpus_batch : int
        Samples of the corpus in a batch.
    optimizer : {"sgd", "adam"}
        The optimiser.
    weight_decay : float
        Weight decay of the adapters.
    **engine
        Settings of the engine.
    """

    per_member = ()
    frozen = ("backbone",)
    draws = (*AlternatingNet.draws, "draw_corpus")

    backbone_: FrozenNetwork
    adapters_: Adapters
    rows_: Any
    corpus_: list
    held_out_: Tensor
    streams_: list[Stream] | None

    def __init__(
        self,
        modules,
        *,
        prepare,
        augment,
        corpus_batch,
        optimizer,
        weight_decay,
        **engine,
    ):
        super().__init__(modules, **engine)
        self.prepare = prepare
        self.augment = augment
        self.corpus_batch = corpus_batch
        self.optimizer = optimizer
        self.weight_decay = weight_decay

    @property
    def latent_dim(self) -> int:
        """Length of the latent codes."""
        return self.backbone_.features_shape[-1]

    def initialize_module(self) -> ResidualAdaptation:
        builders: Mapping[str, Callable[..., Any]] = self.modules
        self.backbone_ = builders["backbone"]()
        self.adapters_ = builders["adapters"](self.backbone_)
        self.connect()
        return self

    def connect(self) -> None:
        self.backbone_.set_adapters(self.adapters_.layers)

    def configure_optimizers(self):
        rate, decay = self.lr, self.weight_decay
        if rate < 1 <= rate * decay:  # higher rates diverge by themselves
            raise ValueError(
                f"lr={rate:g} times weight_decay={decay:g} is 1 or more: a step would "
                "shrink the adapters to zero, or beyond. Lower one of them."
            )
        optimizer = partial(
            OPTIMIZERS[self.optimizer], lr=self.lr, weight_decay=self.weight_decay
        )
        # The gradient of a corpus sample at the centre is unbounded.
        max_norm = _LONGEST if self.optimizer == "sgd" else None
        return {"adapters": Player(self.adapters_, optimizer, max_norm)}

    def training_step(self, batch):
        n = batch.shape[-2] if self.n_estimators else len(batch)
        rows = torch.cat([batch, *self.draw_corpus()], 1 if self.n_estimators else 0)
        if not self.is_cached_:
            rows = self.embed(self.augment(rows, self.rng_))
        normal, corpus = self.encode_embeddings(rows).tensor_split([n], -2)
        yield "adapters", hypersphere_classification_loss(normal, corpus)

    def form_of_data(self):
        return len(self.corpus_)

    def draw_corpus(self) -> list[Tensor]:
        """Return the next samples of each source, about as many of each."""
        if self.streams_ is None:
            self.streams_ = self._begin_streams()
        return [next(stream) for stream in self.streams_]

    def _begin_streams(self) -> list[Stream]:
        n = len(self.corpus_)
        shares = [(self.corpus_batch + k) // n for k in range(n)]
        return [
            Stream(source, max(share, 1), self.n_estimators, self.rng_)
            for source, share in zip(self.corpus_, shares, strict=True)
        ]

    def run_state(self):
        return {
            "streams": [stream.left for stream in self.streams_ or []],
            "sources": [
                one.run_state() if hasattr(one, "run_state") else None
                for one in (self.rows_, *self.corpus_)
            ],
        }

    def load_run_state(self, state):
        self.streams_ = self._begin_streams()
        for stream, left in zip(self.streams_, state["streams"], strict=True):
            stream.left = left
        sources = zip((self.rows_, *self.corpus_), state["sources"], strict=True)
        for one, of_one in sources:
            if of_one is not None:
                one.load_run_state(of_one)

    def train(
        self,
        rows,
        *,
        max_epochs: int,
        epoch_steps: int,
        callbacks=(),
        corpus: Sequence,
        held_out: Tensor | None = None,
    ):
        """Train on normal `rows`, against each source of a corpus.

        Parameters
        ----------
        rows : DeviceDataset
            Normal samples.
        max_epochs, epoch_steps, callbacks
            As in ``run``.
        corpus : sequence of DeviceDataset
            The sources of the corpus.
        held_out : Tensor, optional
            Samples for :class:`StopAtCollapse`.
        """
        sources = [rows, *corpus]
        self.is_cached_ = self._may_cache(sources, max_epochs * epoch_steps)
        if self.is_cached_:
            sources = [CachedEmbeddings(source, self._embed) for source in sources]
        rows, *corpus = sources
        data = {"rows_": rows, "corpus_": corpus, "held_out_": held_out}
        with self.temporary(**data, streams_=None):
            plan = {"max_epochs": max_epochs, "epoch_steps": epoch_steps}
            return self.run(rows, callbacks=callbacks, **plan)

    def _may_cache(self, sources, n_steps):
        """Return whether embeddings are constant, fit in memory, and save time."""
        same = self.augment is unchanged and all(
            isinstance(source, DeviceDataset | TransformedDataset) for source in sources
        )
        if self.n_estimators or not (same and self.backbone_.n_fixed):
            return False
        n_drawn = n_steps * (self.batch_size + self.corpus_batch) * n_processes()
        if torch.device(self.device).type != "cpu" and n_drawn < sum(map(len, sources)):
            return False  # all would be computed, and most never drawn
        some = self.embed(sources[0][torch.arange(1, device=self.device)])
        return some.nbytes * sum(map(len, sources)) <= HOST_BYTES

    @torch.no_grad()
    def validate(self):
        parts = self.held_out_.split(_AT_ONCE)
        codes = torch.cat([self.encode_members(part) for part in parts], 1)
        return {"spread": codes.var(1, correction=0).sum(-1).mean()}

    # Features and latent codes ----------------------------------------------------

    @torch.no_grad()
    def fit_gates(self, rows: DeviceDataset) -> Tensor:
        """Fit gates to normal samples; return their features, (n, l) or (n, k, l)."""
        index = torch.arange(len(rows), device=self.device)
        with self.adapters_.fitting_gates():
            parts = [self.features(rows[part]) for part in index.split(_AT_ONCE)]
        return torch.cat(parts)

    def features(self, batch: Tensor) -> Tensor:
        """Return the features of samples by the network: (n, l), or (n, k, l)."""
        features = self.backbone_(self.prepare(self.for_members(batch))).float()
        return self.swapped(features)

    def swapped(self, features: Tensor) -> Tensor:
        """Return features with the axes of samples and members swapped, if any."""
        return features.transpose(0, 1) if self.n_estimators else features

    def encode_members(self, batch: Tensor) -> Tensor:
        """Return the latent codes of samples (n, ...) by each member: (k, n, l)."""
        codes = self.encode(self.for_members(batch))
        return codes if self.n_estimators else codes[None]

    def encode(self, rows: Tensor) -> Tensor:
        """Return the latent codes of scaled samples.

        Parameters
        ----------
        rows : Tensor of shape (n, ...), or (k, n, d) for an ensemble
            The samples.

        Returns
        -------
        Tensor of shape (n, l), or (k, n, l)
            f of the paper.
        """
        return self.encode_embeddings(self.embed(rows))

    def embed(self, rows: Tensor) -> Tensor:
        """Return the embeddings of scaled rows: the input of the first adapted part."""
        return self.backbone_.embed(self.prepare(rows))

    def _embed(self, rows: Tensor) -> Tensor:
        """Return embeddings in the precision of a step, also between two steps."""
        with self._autocast():
            return self.embed(rows)

    def encode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return the latent codes of embeddings."""
        features = self.backbone_.features(embeddings).float()
        # The head subtracts nearly equal numbers, which needs full precision.
        with torch.autocast(features.device.type, enabled=False):
            return self.adapters_.head(features)
