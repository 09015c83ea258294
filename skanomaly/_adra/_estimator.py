r"""ADRA: residual adapters in a frozen pretrained network, with outlier exposure.

The paper is L. Deecke, L. Ruff, R. A. Vandermeulen and H. Bilen, "Deep anomaly
detection by residual adaptation", 2020; equation numbers are its own. f is the network
with its corrections, h the radius of what it makes of a row.
"""

from __future__ import annotations

from functools import partial
from math import log, prod

import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._base import BaseDeepDetector
from ..engine import Rows, StepDecay
from ..objectives import hypersphere_radius
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe_common
from ._backbones import ResNet26, Source, find_backbone, itself, perceptrons
from ._corpus import AlteredRows, read_corpus
from ._images import Augmentation, ImagePreparation, changed_by, unchanged
from ._net import Adapters, ResidualAdaptation, frozen
from ._pretraining import LabelledRows, Masking, Rotation, Supervised, pretrain

_ROLES = ("backbone",)
_OWN = "auto", "resnet26"
_TASKS = {"supervised": Supervised, "rotation": Rotation, "masking": Masking}
_PRETRAINING_RATE = 2e-3
#: The shorter side, in pixels, to which images are enlarged for a given network.
_ENLARGED = 64
#: Rows that are enough to see where the normal ones are.
_ENOUGH = 2000


class ADRA(BaseDeepDetector):
    """ADRA."""

    _reads_labels = True
    _auto_values = {  # noqa: RUF012
        "pretrain_epochs": (300, 300),
        "max_epochs": (600, 300),
        "lr": (1e-3, 1e-2),
        "width": (64, 16),
        "shrinkage": (0.01, 0.1),
    }

    _parameter_constraints: dict = {  # noqa: RUF012
        **BaseDeepDetector._parameter_constraints,
        "backbone": [nn.Module, str, sk.HasMethods(["__fspath__"])],
        "pretrain": [sk.StrOptions({"auto", *_TASKS}), None],
        "corpus": ["array-like", tuple, str, None],
        "n_experts": [sk.COUNT],
        "adapt_from": [sk.Interval(sk.Integral, 0, None, closed="left"), str],
        "n_networks": sk.AUTO_COUNT,
        "augment": [tuple, list, callable, None],
        "input_size": sk.AUTO_COUNT,
        "normalization": [tuple, list, sk.StrOptions({"auto"}), None],
        "weight_decay": [sk.NONNEGATIVE],
        "pretrain_epochs": sk.AUTO_COUNT,
        "memory": sk.MEMORY,
    }
    del _parameter_constraints["latent_dim"]

    def __init__(
        self,
        *,
        backbone="auto",
        pretrain="auto",
        corpus="auto",
        n_experts=2,
        adapt_from=0,
        n_networks="auto",
        augment=("flip", "crop"),
        input_size="auto",
        normalization="auto",
        weight_decay=1e-4,
        pretrain_epochs="auto",
        memory=None,
        max_epochs="auto",
        batch_size=128,
        lr="auto",
        scaling="auto",
        image_shape=None,
        architecture="auto",
        width="auto",
        contamination="auto",
        device="auto",
        precision="float32",
        callbacks=None,
        warm_start=False,
        verbose=0,
        random_state=None,
    ):
        self.backbone = backbone
        self.pretrain = pretrain
        self.corpus = corpus
        self.n_experts = n_experts
        self.adapt_from = adapt_from
        self.n_networks = n_networks
        self.augment = augment
        self.input_size = input_size
        self.normalization = normalization
        self.weight_decay = weight_decay
        self.pretrain_epochs = pretrain_epochs
        self.memory = memory
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.scaling = scaling
        self.image_shape = image_shape
        self.architecture = architecture
        self.width = width
        self.contamination = contamination
        self.device = device
        self.precision = precision
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    # Networks

    @property
    def backbone_(self):
        """The frozen network without the adapters; it shares its weights."""
        check_is_fitted(self)
        return self.net_.backbone_.bare()

    def _is_own(self):
        """Return whether the network is one that this class makes and teaches."""
        return isinstance(self.backbone, str) and self.backbone in _OWN

    def _source(self):
        """Return where the frozen network comes from."""
        shape, mine = self._row_shape, self._own_networks()
        family, width = self._family(_ROLES), self._value("width")
        if not self._is_own():
            if mine:
                raise ValueError(
                    "backbone is a network that has been trained, and architecture "
                    "one that is yet to be: give one of them."
                )
            return find_backbone(self.backbone)
        if mine:
            return Source(partial(mine["backbone"], shape), None)
        if family == "conv":
            return Source(partial(ResNet26, shape[0], width), None)
        if self.backbone != "auto":
            raise ValueError(
                f"backbone={self.backbone!r} takes images (see `image_shape`), and X "
                "is a table; 'auto' has a network for either."
            )
        return Source(partial(perceptrons, self._n_copies(), *shape, width), None)

    def _n_copies(self):
        """Return how many networks stand side by side: 0 for one by itself."""
        is_table = len(self._row_shape) == 1
        if is_table and self._is_own() and not self._own_networks():
            return self._side_by_side(self.n_networks)
        return 0

    def _make_nets(self, device, seed):
        return {"net_": self._net(self._source(), device, seed)}

    def _net(self, source, device, seed):
        """Return the net around a backbone."""
        prepare, batch_size = self._preparation(source), self._normal_per_batch()
        builders = {
            "backbone": partial(
                frozen, source.build, self._example(prepare), self.adapt_from
            ),
            "adapters": partial(
                Adapters,
                n_experts=self.n_experts,
                shrinkage=self._value("shrinkage"),
                unit=len(self._row_shape) > 1,
            ),
        }
        return ResidualAdaptation(
            builders,
            prepare=prepare,
            augment=self._augmentation(),
            corpus_batch=self.batch_size - batch_size,
            weight_decay=self.weight_decay,
            n_copies=self._n_copies(),
            lr=self._value("lr"),
            **self._engine(device, seed) | {"batch_size": batch_size},
        )

    def _example(self, prepare):
        rows = torch.zeros(1, *self._row_shape)
        n_copies = self._n_copies()
        return prepare(rows.expand(n_copies, *rows.shape) if n_copies else rows)

    def _normal_per_batch(self):
        half = self.batch_size // 2
        return self.batch_size - half if self._has_corpus else self.batch_size

    def _preparation(self, source):
        """Return what is done to scaled rows: columns are clipped, images resized."""
        if len(self._row_shape) == 1:
            return self._clipping()
        sides, wanted = self._row_shape[1:], self.input_size
        if wanted == "auto":
            wanted = min(sides) if self._is_own() else max(min(sides), _ENLARGED)
        sides = tuple(round(side * wanted / min(sides)) for side in sides)
        asked = self.normalization
        if isinstance(asked, str):
            asked = source.normalization if self._bounded() else None
        return ImagePreparation(sides, *(asked or (None, None)))

    def _augmentation(self):
        """Return what changes rows at random in training."""
        if len(self._row_shape) == 1 or not self.augment:
            return unchanged
        if callable(self.augment):
            return partial(changed_by, self.augment)
        if unknown := sorted(set(self.augment) - {"flip", "crop"}):
            raise ValueError(f"augment has {unknown}; it may have 'flip' and 'crop'.")
        return Augmentation(tuple(self.augment))

    # Training

    def _train(self, rows, others, seed):
        corpus, labels = self._corpus_of(rows, others, seed)
        self._has_corpus = bool(corpus)
        source = self._source()
        plan = self._plan("max_epochs", len(rows), batch_size=self._normal_per_batch())
        plans, task, taught = [plan], self._task(labels), None
        if task and not self._goes_on():
            taught = rows if labels is None else LabelledRows(corpus[-1], labels)
            if labels is None and len(rows.row_shape) > 1:
                taught = max([rows, *corpus], key=len)
            plans = [self._plan("pretrain_epochs", len(taught)), plan]
        with self._progress(*plans) as callbacks:
            if taught is not None:
                net = self._pretraining(task, source, labels, rows.device, seed)
                stage = pretrain, net, taught, plans[0]
                (net,) = self._cached(*stage, callbacks=callbacks("pretraining"))
                self._record(pretraining=net)
                source = Source(partial(itself, net.network_), source.normalization)
                if net.interrupted_:
                    plan["max_epochs"] = 0
            self._adapt(source, rows, corpus, plan, callbacks("adaptation"), seed)

    def _corpus_of(self, rows, others, seed):
        """Return the rows to tell apart, by source, and classes of the last source."""
        given, is_table = self.corpus, len(rows.row_shape) == 1
        corpus, labels = ([others] if len(others) else []), None
        if isinstance(given, str) and given == "auto":
            corpus += [AlteredRows(rows, seed)] if is_table else []
        elif given is not None:
            X, labels = read_corpus(given, rows.X)
            corpus.append(Rows(X, self.scaler_, rows.device))
            if labels is not None:
                labels = torch.from_numpy(labels).to(rows.device)
        return corpus, labels

    def _task(self, labels):
        """Return what an own network is taught."""
        asked, is_table = self.pretrain, len(self._row_shape) == 1
        if asked is None or not self._is_own():
            return None
        if asked == "auto":
            asked = "rotation" if labels is None else "supervised"
            asked = "masking" if is_table else asked
        if is_table != (asked == "masking"):
            kind = "a table" if is_table else "images"
            raise ValueError(f"pretrain={asked!r} is no task for {kind}.")
        if asked == "supervised" and labels is None:
            raise ValueError(
                "pretrain='supervised' needs a corpus with classes: a pair (rows, "
                "classes), or the name of a data set."
            )
        return _TASKS[asked]

    def _pretraining(self, task, source, labels, device, seed):
        n_outputs = {Rotation: 4, Masking: prod(self._row_shape)}.get(task)
        return task(
            {"network": source.build},
            prepare=self._preparation(source),
            augment=self._augmentation(),
            row_shape=self._row_shape,
            n_outputs=n_outputs or 1 + int(labels.max()),
            n_copies=self._n_copies(),
            lr=_PRETRAINING_RATE,
            **self._engine(str(device), seed),
        )

    def _adapt(self, source, rows, corpus, plan, callbacks, seed):
        """Train the adapters, from the start or on from those that there are."""
        net = self._net(source, str(rows.device), seed)
        if self._goes_on():
            net.resume(self.net_)
        else:
            net.initialize()
            index = torch.arange(min(len(rows), _ENOUGH), device=rows.device)
            features = self._map_rows(net.features, rows.take(index))
            self._check_finite(features)
            net.adapters_.place(torch.from_numpy(features).to(rows.device))
        if plan["max_epochs"]:
            net.run(rows, corpus=corpus, callbacks=[StepDecay(), *callbacks], **plan)
            self._record(adaptation=net)
        self.net_ = net

    # Scores, codes

    def _auto_offset(self, scores):
        # Without a corpus nothing was moved beyond any radius.
        return -log(2) if self._has_corpus else super()._auto_offset(scores)

    def _score_batch(self, batch):
        return -hypersphere_radius(self.net_.coded(batch)).mean(1)

    def _encode_batch(self, batch):
        return self.net_.coded(batch).flatten(1)

    def encode(self, X):
        """Return the codes of rows, whose distance from the origin is the score.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows like those of ``fit``.

        Returns
        -------
        ndarray of shape (n, l), float32
            What the adapted network and its head make of each row; for networks side
            by side, the codes of one after those of the other.
        """
        return self._compute(self._encode_batch, X)
