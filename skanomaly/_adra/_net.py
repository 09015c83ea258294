"""The network of ADRA, its head, and how its corrections are trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import AlternatingNet, Batches, Player, Rows
from ..objectives import hypersphere_classification_loss
from ._adapters import correction_of
from ._frozen import FrozenNetwork

_MOMENTUM = 0.9


class Adapters(nn.Module):
    r"""All that a detector adds to a backbone: corrections of its layers, and a head.

    The head is fixed before the training. It puts the features of normal rows around
    the origin, about as far in all directions, at a mean squared distance of 1:
    :math:`f = c \, \Sigma^{-1/2} (\phi - \mu)` with their mean and covariance. A share
    of the mean variance is added to each, so that directions in which normal rows do
    not differ count for more, but not for everything.

    Parameters
    ----------
    backbone : FrozenNetwork
        What they are for.
    n_experts : int
        Linear maps in each correction.
    shrinkage : float
        That share, in (0, 1].
    unit : bool
        Whether features are brought to unit length first.
    """

    def __init__(self, backbone: FrozenNetwork, n_experts, shrinkage, unit):
        super().__init__()
        self.corrections = nn.ModuleList(
            correction_of(layer.frozen, n_experts) for layer in backbone.layers.values()
        )
        self.shrinkage, self.unit = shrinkage, unit
        *copies, n_features = backbone.features_shape
        self.register_buffer("centre", torch.zeros(*copies, n_features))
        self.register_buffer("matrix", torch.zeros(*copies, n_features, n_features))

    def place(self, features: Tensor) -> None:
        """Fix the head by the features of normal rows, (n, l) or (n, k, l)."""
        if features.ndim == 3:
            features = features.transpose(0, 1)
        features = self._brought(features).double()
        centre = features.mean(-2, keepdim=True)
        around = features - centre
        covariance = around.mT @ around / features.shape[-2]
        variances, axes = torch.linalg.eigh(covariance)
        mean = variances.mean(-1, keepdim=True)
        added = torch.where(mean > 0, self.shrinkage * mean, 1.0)
        inverse = (variances.clamp_min(0) + added).rsqrt()
        matrix = (axes * inverse[..., None, :]) @ axes.mT
        squared = (around @ matrix).square().sum(-1).mean(-1)[..., None, None]
        matrix = matrix / torch.where(squared > 0, squared, 1.0).sqrt()
        self.centre.copy_(centre.squeeze(-2))
        self.matrix.copy_(matrix)

    def _brought(self, features):
        return F.normalize(features, dim=-1) if self.unit else features

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., n, l) to codes (..., n, l)."""
        around = self._brought(features) - self.centre[..., None, :]
        return around @ self.matrix


def frozen(build, example, adapt_from) -> FrozenNetwork:
    """Return the frozen form of the network that `build` returns."""
    network = build()
    first = next(network.parameters(), torch.empty(0))
    try:
        return FrozenNetwork(network, example.to(first.device), adapt_from)
    except RuntimeError as error:
        raise ValueError(
            f"backbone, a {type(network).__name__}, cannot take rows of shape "
            f"{tuple(example.shape[1:])}; input_size enlarges images. {error}"
        ) from error


class ResidualAdaptation(AlternatingNet):
    """Eq. 4: the loss of eq. 1, reduced by the adapters alone."""

    def __init__(
        self, modules, *, prepare, augment, corpus_batch, weight_decay, **engine
    ):
        super().__init__(modules, **engine)
        self.prepare = prepare
        self.augment = augment
        self.corpus_batch = corpus_batch
        self.weight_decay = weight_decay

    def initialize_module(self):
        self.backbone_ = self.modules["backbone"]()
        self.adapters_ = self.modules["adapters"](self.backbone_)
        self.backbone_.correct_by(self.adapters_.corrections)
        return self

    def players(self):
        sgd = partial(
            torch.optim.SGD,
            lr=self.lr,
            momentum=_MOMENTUM,
            weight_decay=self.weight_decay,
            foreach=True,
        )
        return {"adapters": Player(self.adapters_, sgd)}

    def turns(self, batch):
        n = batch.shape[-2] if self.n_copies else len(batch)
        rows = torch.cat([batch, *self.draw_corpus()], 1 if self.n_copies else 0)
        codes = self.codes(self.augment(rows, self.rng_))
        normal, apart = codes.tensor_split([n], -2)
        yield "adapters", hypersphere_classification_loss(normal, apart).sum()

    def features(self, batch: Tensor) -> Tensor:
        """Return what the frozen network makes of rows (n, ...): (n, l) or (n, k, l)."""
        made = self.backbone_(self.prepare(self.for_all(batch))).float()
        return made.transpose(0, 1) if self.n_copies else made

    def coded(self, batch: Tensor) -> Tensor:
        """Return the codes of rows (n, ...), by network: (n, k, l)."""
        codes = self.codes(self.for_all(batch))
        return codes.transpose(0, 1) if self.n_copies else codes[:, None]

    def codes(self, rows: Tensor) -> Tensor:
        """Return f of scaled rows: (n, ...) to (n, l), or (k, n, d) to (k, n, l)."""
        return self.adapters_(self.backbone_(self.prepare(rows)).float())

    def for_all(self, rows: Tensor) -> Tensor:
        """Return rows (n, ...) as the networks take them: side by side, (k, n, d)."""
        return rows.expand(self.n_copies, *rows.shape) if self.n_copies else rows

    def draw_corpus(self) -> list[Tensor]:
        """Return the next rows of each source, about as many of each."""
        if self.streams_ is None:
            self.streams_ = [iter(source) for source in self._batches_of_corpus()]
        return [next(stream) for stream in self.streams_]

    def _batches_of_corpus(self):
        n = len(self.corpus_)
        for k, source in enumerate(self.corpus_):
            size = max((self.corpus_batch + k) // n, 1)
            yield Batches(source, size, self.n_steps, self.n_copies, self.rng_)

    def run(self, rows, *, corpus: Sequence[Rows], **plan):
        """Train on `rows`, against the rows of each source in `corpus`."""
        self.corpus_, self.streams_ = corpus, None
        try:
            return super().run(rows, **plan)
        finally:
            del self.corpus_, self.streams_  # data has no place in a pickle
