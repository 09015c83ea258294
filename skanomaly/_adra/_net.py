"""The network of ADRA, its head, and how its corrections are trained."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from skorch.callbacks import Callback
from torch import Tensor, nn

from ..engine import (
    HOST_BYTES,
    AlternatingNet,
    Batches,
    DeviceDataset,
    Player,
    TransformedDataset,
)
from ..exceptions import StopTraining
from ..objectives import hypersphere_classification_loss
from ._adapters import corrections_of
from ._frozen import FrozenNetwork, watched
from ._images import unchanged

#: Principal axes of the features that have a scale of their own.
_AXES = 128
#: Rows to look at together.
_AT_ONCE = 128
#: Longest gradient; usual ones, in training MobileNetV2, have a length of 1 to 7.
_LONGEST = 10.0
#: What is nothing beside the square of features, in float32.
_ROUNDING = 1e-10
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
        # On the host: not every device has such numbers, and the decomposition.
        brought = self._brought(features).cpu().double()
        n_rows, n_features = brought.shape[-2:]
        self.centre.copy_(brought.mean(-2, keepdim=True))
        around = brought - brought.mean(-2, keepdim=True)
        total = around.square().sum((-2, -1))[..., None, None] / n_rows
        # What float32 cannot tell from no difference is none.
        least = _ROUNDING * brought.square().mean((-2, -1))[..., None, None]
        added = (self.shrinkage * total / n_features).maximum(least)
        added = torch.where(added > 0, added, 1.0)
        variances, axes = _principal(around, self.axes.shape[-1])
        self.axes.copy_(axes)
        self.gains.copy_((variances + added).rsqrt())
        n_others = max(n_features - axes.shape[-1], 1)
        others = (total - variances.sum(-1, keepdim=True)).clamp_min(0) / n_others
        self.rest.copy_((others + added).rsqrt())
        squared = self(features).square().sum(-1).mean(-1)
        scale = torch.where(squared > 0, squared, 1.0).rsqrt()[..., None, None]
        self.gains.mul_(scale)
        self.rest.mul_(scale)

    def _brought(self, features):
        return F.normalize(features, dim=-1) if self.unit else features

    def forward(self, features: Tensor) -> Tensor:
        """Map features (..., n, l) to codes (..., n, l)."""
        around = self._brought(features) - self.centre
        along = around @ self.axes
        return self.rest * around + (along * (self.gains - self.rest)) @ self.axes.mT


def _principal(around, n_axes):
    """Return the largest variances (..., 1, m) of centred rows, and their axes."""
    n_rows, n_features = around.shape[-2:]
    if n_features <= n_rows:
        variances, axes = torch.linalg.eigh(around.mT @ around / n_rows)
    else:  # the same from the products of rows, which are fewer
        variances, axes = torch.linalg.eigh(around @ around.mT / n_rows)
        axes = F.normalize(around.mT @ axes, dim=-2)
    m = min(n_axes, variances.shape[-1])
    variances, axes = variances[..., -m:].flip(-1), axes[..., -m:].flip(-1)
    missing = n_axes - m
    return (
        F.pad(variances.clamp_min(0), (0, missing))[..., None, :],
        F.pad(axes, (0, missing)),
    )


class Adapters(nn.Module):
    """All that a detector adds to a backbone: corrections of its layers, and a head.

    Parameters
    ----------
    backbone : FrozenNetwork
        What they are for.
    n_experts : int
        Linear maps in each correction that is a mixture.
    shrinkage, unit : float and bool
        Settings of the :class:`Head`.
    """

    def __init__(self, backbone: FrozenNetwork, n_experts, shrinkage, unit):
        super().__init__()
        layers = [layer.frozen for layer in backbone.layers.values()]
        self.corrections = corrections_of(layers, n_experts)
        self.head = Head(backbone.features_shape, shrinkage, unit)

    @contextmanager
    def fits_gates(self):
        """Fix what gates take for usual by the rows that pass meanwhile."""
        sums = {
            one.gate: [0.0, 0.0, 0] for one in self.corrections if one.n_experts > 1
        }

        def called(gate, inputs, output):
            # On the host: not every device has such numbers.
            rows = inputs[0].cpu().double()
            for k, made in enumerate((rows, rows.square())):
                sums[gate][k] += made.sum(-2, keepdim=rows.ndim > 2)
            sums[gate][2] += rows.shape[-2]

        with watched(sums, called):
            yield
        for gate, of_rows in sums.items():
            gate.fit(*of_rows)


def frozen(build, example, adapt_from) -> FrozenNetwork:
    """Return the frozen form of the network that `build` returns."""
    network = build()
    first = next(network.parameters(), torch.empty(0))
    try:
        return FrozenNetwork(network, example.to(first.device), adapt_from)
    except (RuntimeError, AssertionError) as error:
        shape, images = tuple(example.shape[1:]), example.ndim == 4
        hint = "input_size enlarges images" if images else "images need image_shape"
        raise ValueError(
            f"backbone, a {type(network).__name__}, cannot be used on rows of shape "
            f"{shape}, as they are given to it; {hint}. {error}"
        ) from error


class StopAtCollapse(Callback):
    """End a run without a corpus before all rows have one and the same code.

    That is where the loss is lowest. The run ends when the codes of held-out rows are
    spread over less than a share of what they would be without corrections.

    Parameters
    ----------
    share : float
        In (0, 1), of the sum of the variances of codes.
    every : int
        Steps between two looks.
    """

    def __init__(self, share: float = 0.7, every: int = 5):
        self.share = share
        self.every = every

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Measure the spread without corrections."""
        net.backbone_.correct_by([None] * len(net.backbone_.layers))
        self.least_ = self.share * float(net.validate()["spread"])
        net.backbone_.correct_by(net.adapters_.corrections)

    def on_batch_end(self, net, **kwargs):
        """Measure it, and stop."""
        if net.step_ % self.every == 0:
            spread = net.validate()["spread"]
            net.record("spread", spread)
            if float(spread) < self.least_:
                raise StopTraining


class BegunRows:
    """What a network begins with of rows, each computed once.

    On a host a row is computed when it is drawn first. Elsewhere to look which rows are
    new would have each step wait for the device: all are computed ahead.

    Parameters
    ----------
    rows : DeviceDataset
        The rows.
    begun : callable
        Maps them to that.
    """

    def __init__(self, rows, begun):
        self.rows, self.begun, self.device = rows, begun, rows.device
        self.made = None
        self.missing = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        self.n_missing = len(rows)
        if self.device.type != "cpu":
            for part in torch.arange(len(rows), device=self.device).split(_AT_ONCE):
                self._make(part)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return it of the rows at `index`, of shape (m,)."""
        if self.n_missing:
            new = index[self.missing[index]].unique()
            if len(new):
                self._make(new)
        return self.made[index]

    def _make(self, new):
        made = self.begun(self.rows[new])
        if self.made is None:
            self.made = made.new_empty(len(self), *made.shape[1:])
        self.made[new] = made
        self.missing[new] = False
        self.n_missing -= len(new)


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

    @property
    def latent_dim(self) -> int:
        """Length of the embeddings."""
        return self.backbone_.features_shape[-1]

    def initialize_module(self):
        self.backbone_ = self.modules["backbone"]()
        self.adapters_ = self.modules["adapters"](self.backbone_)
        self.backbone_.correct_by(self.adapters_.corrections)
        return self

    def configure_optimizers(self):
        rate, decay = self.lr, self.weight_decay
        if rate < 1 <= rate * decay:  # a higher rate alone diverges
            raise ValueError(
                f"lr={rate:g} times weight_decay={decay:g} is 1 or more: a step would "
                "take all away from the corrections, and more. Make one of them lower."
            )
        optimizer = partial(
            OPTIMIZERS[self.optimizer], lr=self.lr, weight_decay=self.weight_decay
        )
        # A row of the corpus at the centre would have a gradient without bound.
        max_norm = _LONGEST if self.optimizer == "sgd" else None
        return {"adapters": Player(self.adapters_, optimizer, max_norm)}

    def training_step(self, batch):
        n = batch.shape[-2] if self.n_estimators else len(batch)
        rows = torch.cat([batch, *self.draw_corpus()], 1 if self.n_estimators else 0)
        if not self.is_kept_:
            rows = self.begun(self.augment(rows, self.rng_))
        codes = self.codes_of(rows)
        normal, apart = codes.tensor_split([n], -2)
        yield "adapters", hypersphere_classification_loss(normal, apart).sum()

    def features(self, batch: Tensor) -> Tensor:
        """Return what the frozen network makes of rows: (n, l) or (n, k, l)."""
        made = self.backbone_(self.prepare(self.for_members(batch))).float()
        return self.by_network(made)

    @torch.no_grad()
    def first_features(self, rows) -> Tensor:
        """Return those of normal rows, by which gates are fixed on the way."""
        index = torch.arange(len(rows), device=self.device)
        with self.adapters_.fits_gates():
            parts = [self.features(rows[part]) for part in index.split(_AT_ONCE)]
        return torch.cat(parts)

    def by_network(self, features: Tensor) -> Tensor:
        """Exchange rows and networks side by side, if there are any."""
        return features.transpose(0, 1) if self.n_estimators else features

    def coded(self, batch: Tensor) -> Tensor:
        """Return the codes of rows (n, ...), by network: (n, k, l)."""
        codes = self.codes(self.for_members(batch))
        return codes.transpose(0, 1) if self.n_estimators else codes[:, None]

    @torch.no_grad()
    def begun(self, rows: Tensor) -> Tensor:
        """Return scaled rows after what comes before all corrections."""
        return self.backbone_.before(self.prepare(rows))

    def codes_of(self, begun: Tensor) -> Tensor:
        """Return f of such rows."""
        features = self.backbone_.after(begun).float()
        # Along the first axes the head takes the difference of nearly equal numbers.
        with torch.autocast(features.device.type, enabled=False):
            return self.adapters_.head(features)

    def codes(self, rows: Tensor) -> Tensor:
        """Return f of scaled rows: (n, ...) to (n, l), or (k, n, d) to (k, n, l)."""
        return self.codes_of(self.begun(rows))

    def _may_keep(self, sources, n_steps):
        """Return whether what nothing corrects is to be computed once for all steps."""
        same = self.augment is unchanged and all(
            isinstance(source, DeviceDataset | TransformedDataset) for source in sources
        )
        if self.n_estimators or not (same and self.backbone_.n_fixed):
            return False
        n_drawn = n_steps * (self.batch_size + self.corpus_batch)
        if torch.device(self.device).type != "cpu" and n_drawn < sum(map(len, sources)):
            return False  # all would be computed ahead, and most never drawn
        some = self.begun(sources[0][torch.arange(1, device=self.device)])
        return some.nbytes * sum(map(len, sources)) <= HOST_BYTES

    @torch.no_grad()
    def validate(self):
        codes = torch.cat([self.coded(part) for part in self.held_out_.split(_AT_ONCE)])
        return {"spread": codes.var(0, correction=0).sum(-1).mean()}

    def draw_corpus(self):
        """Return the next rows of each source, about as many of each."""
        if self.streams_ is None:
            n = len(self.corpus_)
            shares = [(self.corpus_batch + k) // n for k in range(n)]
            self.streams_ = [
                self._stream(source, max(share, 1))
                for source, share in zip(self.corpus_, shares, strict=True)
            ]
        return [next(stream) for stream in self.streams_]

    def _stream(self, rows, size):
        """Yield batches without end, pass by pass."""
        n_batches = max(len(rows) // size, 1)
        while True:
            yield from Batches(rows, size, n_batches, self.n_estimators, self.rng_)

    def train(
        self, rows, *, corpus, max_epochs, epoch_steps, held_out=None, **settings
    ):
        """Train on `rows`, against the rows of each source in `corpus`."""
        sources = [rows, *corpus]
        self.is_kept_ = self._may_keep(sources, max_epochs * epoch_steps)
        if self.is_kept_:
            sources = [BegunRows(source, self.begun) for source in sources]
        rows, *corpus = sources
        with self.temporary(corpus_=corpus, streams_=None, held_out_=held_out):
            plan = {"max_epochs": max_epochs, "epoch_steps": epoch_steps}
            return self.run(rows, **plan, **settings)
