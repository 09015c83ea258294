"""The network of ADRA, its head, and how its corrections are trained."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from skorch.callbacks import Callback
from torch import Tensor, nn

from ..engine import HOST_BYTES, AlternatingNet, Batches, Player, StopTraining
from ..objectives import hypersphere_classification_loss
from ._adapters import correction_of
from ._frozen import FrozenNetwork
from ._images import unchanged

#: Principal axes of the features that have a scale of their own.
_AXES = 128
#: Rows to look at together when the fixed part of a network is computed once.
_KEPT_AT_ONCE = 256
#: By name: the paper's, and one whose steps do not depend on the size of gradients.
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, foreach=True),
    "adam": partial(torch.optim.AdamW, fused=True),
}


class Head(nn.Module):
    r"""What makes codes of features, fixed by the features of normal rows.

    It puts these around the origin, about as far in all directions, at a mean squared
    distance of 1, :math:`f = c \, \Sigma^{-1/2} (\phi - \mu)`, with their mean and
    covariance, to which a share of the mean variance is added, so that directions in
    which normal rows do not differ count for more, but not for everything. Beyond the
    first 128 principal axes, all directions are taken for equal.

    Parameters
    ----------
    shape : tuple of int
        Shape of the features of one row, (l,) or (k, l) for networks side by side.
    shrinkage : float
        That share, in (0, 1].
    unit : bool
        Whether features are brought to unit length first.
    """

    centre: Tensor
    axes: Tensor
    gains: Tensor
    rest: Tensor

    def __init__(self, shape: tuple[int, ...], shrinkage: float, unit: bool):
        super().__init__()
        *copies, n_features = shape
        n_axes = min(n_features, _AXES)
        self.shrinkage, self.unit = shrinkage, unit
        self.register_buffer("centre", torch.zeros(*copies, 1, n_features))
        self.register_buffer("axes", torch.zeros(*copies, n_features, n_axes))
        self.register_buffer("gains", torch.ones(*copies, 1, n_axes))
        self.register_buffer("rest", torch.ones(*copies, 1, 1))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Fix it by the features of normal rows, (n, l) or (k, n, l)."""
        features = self._brought(features).double()
        self.centre.copy_(features.mean(-2, keepdim=True))
        around = features - features.mean(-2, keepdim=True)
        covariance = around.mT @ around / features.shape[-2]
        variances, axes = (part.flip(-1) for part in torch.linalg.eigh(covariance))
        variances, n_axes = variances.clamp_min(0), self.axes.shape[-1]
        added = self.shrinkage * variances.mean(-1, keepdim=True)
        variances = variances + torch.where(added > 0, added, 1.0)
        first, others = variances.tensor_split([n_axes], -1)
        self.axes.copy_(axes[..., :n_axes])
        self.gains.copy_(first.rsqrt()[..., None, :])
        if others.shape[-1]:
            self.rest.copy_(others.mean(-1, keepdim=True).rsqrt()[..., None])
        squared = self(features.float(), brought=True).square().sum(-1).mean(-1)
        scale = torch.where(squared > 0, squared, 1.0).rsqrt()[..., None, None]
        self.gains.mul_(scale)
        self.rest.mul_(scale)

    def _brought(self, features):
        return F.normalize(features, dim=-1) if self.unit else features

    def forward(self, features: Tensor, brought: bool = False) -> Tensor:
        """Map features (..., n, l) to codes (..., n, l)."""
        features = features if brought else self._brought(features)
        around = features - self.centre
        along = around @ self.axes
        return self.rest * around + (along * (self.gains - self.rest)) @ self.axes.mT


class Adapters(nn.Module):
    """All that a detector adds to a backbone: corrections of its layers, and a head.

    Parameters
    ----------
    backbone : FrozenNetwork
        What they are for.
    n_experts : int
        Linear maps in each correction.
    shrinkage, unit : float and bool
        Settings of the :class:`Head`.
    """

    def __init__(self, backbone: FrozenNetwork, n_experts, shrinkage, unit):
        super().__init__()
        self.corrections = nn.ModuleList(
            correction_of(layer.frozen, n_experts) for layer in backbone.layers.values()
        )
        self.head = Head(backbone.features_shape, shrinkage, unit)


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


class StopAtCollapse(Callback):
    """End a run without a corpus before all rows have one and the same code.

    That is where the loss is lowest. The run ends with the epoch after which the codes
    of held-out rows are spread over less than a share of what they were at the start.

    Parameters
    ----------
    share : float
        In (0, 1), of the sum of the variances of codes.
    """

    def __init__(self, share: float = 0.7):
        self.share = share

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Measure the spread at the start."""
        self.least_ = self.share * self._spread(net)

    def on_epoch_end(self, net, **kwargs):
        """Measure it, and stop."""
        spread = self._spread(net)
        net.history.record("spread", spread)
        if spread < self.least_:
            raise StopTraining

    @staticmethod
    def _spread(net):
        return float(net.validate()["spread"])


class ResidualAdaptation(AlternatingNet):
    """Eq. 4: the loss of eq. 1, reduced by the adapters alone."""

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

    def initialize_module(self):
        self.backbone_ = self.modules["backbone"]()
        self.adapters_ = self.modules["adapters"](self.backbone_)
        self.backbone_.correct_by(self.adapters_.corrections)
        return self

    def players(self):
        optimizer = partial(
            OPTIMIZERS[self.optimizer], lr=self.lr, weight_decay=self.weight_decay
        )
        return {"adapters": Player(self.adapters_, optimizer)}

    def turns(self, batch):
        n = batch.shape[-2] if self.n_copies else len(batch)
        rows = torch.cat([batch, *self.draw_corpus()], 1 if self.n_copies else 0)
        codes = self.codes_of(rows if self.is_kept_ else self.begun(rows))
        normal, apart = codes.tensor_split([n], -2)
        yield "adapters", hypersphere_classification_loss(normal, apart).sum()

    def features(self, batch: Tensor) -> Tensor:
        """Return what the frozen network makes of rows: (n, l) or (n, k, l)."""
        made = self.backbone_(self.prepare(self.for_all(batch))).float()
        return self.by_network(made)

    def by_network(self, features: Tensor) -> Tensor:
        """Exchange rows and networks side by side, if there are any."""
        return features.transpose(0, 1) if self.n_copies else features

    def coded(self, batch: Tensor) -> Tensor:
        """Return the codes of rows (n, ...), by network: (n, k, l)."""
        codes = self.codes(self.for_all(batch))
        return codes.transpose(0, 1) if self.n_copies else codes[:, None]

    @torch.no_grad()
    def begun(self, rows: Tensor) -> Tensor:
        """Return rows, changed at random, as far as nothing corrects them."""
        changed = self.augment(rows, self.rng_)
        return self.backbone_.before(self.prepare(changed))

    def codes_of(self, begun: Tensor) -> Tensor:
        """Return f of rows that the network has begun with."""
        return self.adapters_.head(self.backbone_.after(begun).float())

    def codes(self, rows: Tensor) -> Tensor:
        """Return f of scaled rows: (n, ...) to (n, l), or (k, n, d) to (k, n, l)."""
        return self.codes_of(self.backbone_.before(self.prepare(rows)))

    @torch.no_grad()
    def kept(self, rows) -> Tensor | None:
        """Return what the fixed part makes of rows, unless that is too much to keep."""
        made: list[Tensor] = []
        index = torch.arange(len(rows), device=self.device)
        for part in index.split(_KEPT_AT_ONCE):
            made.append(self.backbone_.before(self.prepare(rows[part])))
            if made[0][0].nbytes * len(rows) > HOST_BYTES:
                return None
        return torch.cat(made)

    def for_all(self, rows: Tensor) -> Tensor:
        """Return rows (n, ...) as the networks take them: side by side, (k, n, d)."""
        return rows.expand(self.n_copies, *rows.shape) if self.n_copies else rows

    @torch.no_grad()
    def validate(self):
        codes = self.coded(self.held_out_)
        return {"spread": codes.var(0).sum(-1).mean()}

    def draw_corpus(self):
        """Return the next rows of each source, about as many of each."""
        if self.streams_ is None:
            self.streams_ = [iter(source) for source in self._batches_of_corpus()]
        return [next(stream) for stream in self.streams_]

    def _batches_of_corpus(self):
        n = len(self.corpus_)
        for k, source in enumerate(self.corpus_):
            size = max((self.corpus_batch + k) // n, 1)
            yield Batches(source, size, self.n_steps, self.n_copies, self.rng_)

    def run(self, rows, *, corpus, held_out=None, **plan):
        """Train on `rows`, against the rows of each source in `corpus`."""
        sources, self.is_kept_ = [rows, *corpus], False
        fixed = self.backbone_.n_fixed and not self.n_copies
        if fixed and self.augment is unchanged:
            kept = [self.kept(source) for source in sources]
            self.is_kept_ = all(part is not None for part in kept)
            sources = kept if self.is_kept_ else sources
        rows, *self.corpus_ = sources
        self.streams_, self.held_out_ = None, held_out
        try:
            return super().run(rows, **plan)
        finally:
            # Data has no place in a pickle.
            del self.corpus_, self.streams_, self.held_out_
