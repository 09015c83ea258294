r"""ADRA: residual adapters in a frozen pretrained network, with outlier exposure.

The paper is L. Deecke, L. Ruff, R. A. Vandermeulen and H. Bilen, "Deep anomaly
detection by residual adaptation", 2020; equation numbers are its own. f is the network
with its adapters and its head, h the radius of its latent codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from math import log, prod
from os import PathLike
from typing import Any, ClassVar, Literal

import torch
from joblib import Memory
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from .._base import BaseDeepDetector
from .._mixins import EncodingMixin, OcclusionMixin
from ..engine import DeviceDataset, StepDecay
from ..networks import Role, build_network
from ..objectives import hypersphere_radius
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe
from ..utils._kinds import IMAGE, TABLE, ByKind
from ..utils._parameters import Auto, parameter
from ..utils._state import on_shallow_copy
from ..utils._warnings import warn
from ._backbone import build_frozen
from ._corpus import AlteredSamples, match_source, read_corpus
from ._net import (
    Adapters,
    ResidualAdaptation,
    StopAtCollapse,
    augmentation_for,
    unchanged,
)
from ._networks import (
    ResNet26,
    Source,
    existing,
    find_backbone,
    preparation_for,
    shape_after,
    stacked_mlps,
)
from ._pretraining import (
    TASKS,
    Denoising,
    Rotation,
    pretrain,
    pretraining_data,
    task_for,
)

_OWN = "auto", "resnet26"
_PRETRAINING_RATE = 2e-3
#: Factor of spreads or locations from which a corpus seems to have other units.
_UNITS = 100.0
#: Maximum number of held-out samples for :class:`StopAtCollapse`.
_MAX_HELD_OUT = 500
_TINY = 1e-9
#: Parameters that clones share.
_SHARED = "backbone", "corpus"
#: Maximum number of normal samples that gates and head are fitted on.
_MAX_FITTED = 2000


@describe(
    auto_steps="300 (20 for images without a corpus)",
    auto_batch=" With a corpus, half of them are normal samples; the sources of the "
    "corpus share the other half.",
    auto_lr="It falls to a tenth after two thirds of the steps, and again after five "
    'sixths. "auto" is 6e-3 for images and 1e-3 for tables; without a corpus 2e-4 '
    "and 1e-4.",
    roles=" It is pretrained like the networks of the package.",
    width="Units of each layer for tables; for images channels of the first stage of "
    'the package\'s ResNet26, 64 in the paper. "auto" is 64 or 16.',
    auto_offset=":math:`-\\log 2` if there is a corpus, where normal and corpus are "
    "equally likely; without one, the median of the calibration scores less five times "
    "its distance to their first quartile",
)
class ADRA(OcclusionMixin, EncodingMixin, BaseDeepDetector):
    r"""Residual adapters in a frozen pretrained network, with outlier exposure.

    A network :math:`f_\theta` that was trained on other data knows how images vary. Its
    parameters and buffers are frozen. Beside each of its layers there is a small linear
    adapter, and the adapters alone are trained (eqs 2 and 3):

    .. math:: y_l = f_{\theta_l}(x) + \sum_{k=1}^{K} g_{lk}(x) \, h_{\alpha_{lk}}(x)

    with K experts, 1 x 1 convolutions :math:`h`, and gates :math:`g` that weigh them
    for each sample. They learn to put normal samples near the origin, and samples of a
    corpus Q, most of which are not normal, far from it (eqs 1 and 4; eq. 1 is
    misprinted in the paper, and corrected here):

    .. math:: \min_\alpha \; \frac{1}{N} \Big( \sum_{x \in S} h(f(x)) - \sum_{x \in Q}
              \log\big(1 - e^{-h(f(x))}\big) \Big), \quad
              h(f) = \sqrt{\|f\|^2 + 1} - 1

    The score is :math:`-h(f(x))`; :math:`e^{-h}` may be read as the probability that a
    sample is normal rather than of the corpus. Detectors of different normal classes
    share the memory of one network.

    The corpus is given by `corpus`, by known anomalies, which are samples with
    ``y == -1`` in :meth:`fit`, or by both. Without either this is UADRA, the
    unsupervised form: adapters pull normal samples together, and training ends before
    all latent codes are the same.

    A fixed head maps the features of the network to latent codes f. It brings features
    to unit length (images only), and whitens them by the mean and the covariance of the
    features of normal samples. So training starts from a Mahalanobis distance.

    Parameters
    ----------
    %(parameters)s

    Attributes
    ----------
    backbone_ : torch.nn.Module
        The frozen network without the adapters. It shares its weights, and can be given
        to other detectors as `backbone`.
    corpus_auroc_ : float or None
        AUROC of a linear classifier that tells the images of `corpus`, as the network
        sees them, from the normal ones by their source: spectrum, noise, colours and
        traces of compression. It is cross-validated on at most 500 images of each. Near
        .5 they have one source; above .9 a
        :class:`~skanomaly.exceptions.CorpusSourceWarning` says that they do not. None
        for tables, without `corpus`, and for less than 50 images of either.
    usual_image_ : ndarray of shape (channels, height, width), float32
        For images: the mean of scaled normal images, which ``anomaly_map`` compares
        others with.
    %(common_attributes)s

    See Also
    --------
    skanomaly.datasets.fetch_tiny_imagenet : A corpus of small photographs.
    skanomaly.save : Writes a detector with or without its backbone.

    Notes
    -----
    Some settings are fixed: gates are a softmax of a linear map of standardised means;
    the head; SGD with a momentum of .9 for images, where gradients are clipped to a
    norm of 10, and AdamW for tables; and the steps at which `lr` falls. In a given
    network, `backbone`, convolutions of images and linear layers have adapters if they
    are called. The layers in ``torch.nn.MultiheadAttention`` are not, since torch reads
    their weights. A warning says how much of a network has no adapters.

    References
    ----------
    .. [1] L. Deecke, L. Ruff, R. A. Vandermeulen and H. Bilen, "Deep anomaly detection
       by residual adaptation", 2020, arXiv:2010.02310.
    .. [2] L. Ruff et al., "Rethinking assumptions in deep anomaly detection", 2020,
       arXiv:2006.00339.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import ADRA
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> detector = ADRA(random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [5.0, 6.0], [-9.0, 9.0]])
    array([ 1, -1, -1])
    """

    #: Class of the net; a subclass may override it to change the training.
    net_class: ClassVar[type[ResidualAdaptation]] = ResidualAdaptation

    _reads_labels = True
    _frozen_modules = ("backbone",)
    _only_to_fit = ("corpus",)
    _fixed_by_fit = (
        *BaseDeepDetector._fixed_by_fit,
        *("n_experts", "adapt_from", "input_size", "normalization"),
    )
    _roles = {"backbone": Role(("shape",), ("shape",), "features")}  # noqa: RUF012
    _auto_values: ClassVar[ByKind] = {
        TABLE: {
            "pretrain_epochs": 400,
            "max_epochs": 300,
            "lr": 1e-3,
            "weight_decay": 1e-4,
            "width": 64,
        },
        IMAGE: {
            "pretrain_epochs": 500,
            "max_epochs": 300,
            "lr": 6e-3,
            "weight_decay": 0.1,
            "width": 16,
        },
    }
    #: The first two hold without corpus and known anomalies.
    _faster_halved = ()  # little of the time is in products
    _settings: ClassVar[ByKind] = {
        TABLE: {
            "lone_steps": 300,
            "lone_lr": 1e-4,
            "shrinkage": 0.003,
            "optimizer": "adam",
        },
        IMAGE: {
            "lone_steps": 20,
            "lone_lr": 2e-4,
            "shrinkage": 0.1,
            "optimizer": "sgd",
        },
    }

    backbone: nn.Module | str | PathLike = parameter(
        [nn.Module, str, sk.HasMethods(["__fspath__"])],
        default="auto",
        doc="""
        The pretrained network. A module with convolutions or linear layers that returns
        features (n_samples, n_features) or feature maps (n_samples, n_features, height,
        width), such as those of torchvision and timm; a linear layer at its very end, a
        classifier, is left out. The module is not changed; its weights are used, not
        copied. A name that ``torchvision.models.get_model`` knows stands for that
        network with its default weights, a path to a ``.safetensors`` file for a
        ResNet26 with the weights in it, the ``state_dict`` of `backbone_`. "resnet26"
        is the package's version of the network of the paper, which has to be
        pretrained: see `pretrain`. "auto" is that for images, and MLPs of three layers
        for tables.
        """,
        type_text="torch.nn.Module, str or path-like",
    )
    pretrain: Literal["auto", "supervised", "rotation", "denoising"] | None = parameter(
        [sk.StrOptions({"auto", *TASKS}), None],
        default="auto",
        doc="""
        The task that the package's own networks are trained on before they are frozen.
        "supervised": classify the corpus, if its classes are known. "rotation": predict
        by how many quarter turns an image is rotated. "denoising", for tables: remove
        noise from samples. "auto" is "denoising" for tables, and for images
        "supervised" where the corpus has classes, else "rotation"; None leaves the
        weights random. "rotation" uses all images, the normal ones included.
        """,
    )
    corpus: Any = parameter(
        ["array-like", tuple, str, None],
        default="auto",
        doc="""
        Samples for outlier exposure, of the same shape as those of ``fit``: an array,
        which cross-validation does not split; a pair (samples, classes); or the name of
        a data set, "tiny_imagenet" for :func:`skanomaly.datasets.fetch_tiny_imagenet`,
        whose images are converted to the size and the colours of yours. It may contain
        normal samples. Images from the same source as yours are best (`corpus_auroc_`);
        the spectrum of those from another source is matched, so that they are no
        sharper than the normal ones. "auto", for tables, alters normal samples: a half
        get some columns from other samples, a quarter get noise in some columns, a
        quarter are anywhere in a box around the data. For images "auto" is None.
        """,
        type_text="array-like, tuple, str or None",
    )
    n_experts: int = parameter(
        [sk.COUNT],
        default=2,
        doc="""
        K, experts in an adapter, mixed for each sample (eq. 3); 1 is eq. 2, and costs
        nothing when scoring. Among convolutions, those with larger kernels have
        mixtures; 1 x 1 ones have them only where nearly all others are depthwise.
        """,
    )
    adapt_from: int | str = parameter(
        [sk.Interval(sk.Integral, 0, None, closed="left"), str],
        default=0,
        doc="""
        First layer with an adapter: the number of layers before it, or the name of the
        first part of the network with adapters, such as "stage_2". A later start makes
        training faster, since gradients end there. If images are not augmented, and the
        network is a sequence of parts, the parts before are computed once for all
        steps.
        """,
    )
    n_estimators: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Members of the ensemble of MLPs for tables; the score is the geometric mean of
        theirs. "auto" is 8, and fewer from 257 columns on (2048 / n_features).
        """,
    )
    augment: Sequence[str] | Callable | None = parameter(
        [tuple, list, callable, None],
        default=("flip", "crop"),
        doc="""
        Random changes of images in training: "flip" mirrors them from left to right,
        "crop" moves them by up to an eighth. A callable maps scaled images to images.
        None, or an empty sequence, leaves them as they are.
        """,
        type_text='sequence of {"flip", "crop"}, callable or None',
    )
    input_size: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Shorter side to which images are resized for the network, in pixels. "auto"
        enlarges those below 64 for a given network, except for a ResNet26.
        """,
    )
    normalization: Sequence | Auto | None = parameter(
        [tuple, list, sk.StrOptions({"auto"}), None],
        default="auto",
        doc="""
        Mean and standard deviation of the channels that the network expects, for pixels
        in [0, 1]; None gives it pixels in [-1, 1]. "auto" takes those of networks of
        torchvision or timm, ImageNet's for other modules, and None for the package's
        networks and if `scaling` is not to a range.
        """,
        type_text='pair of (mean, std), None or "auto"',
    )
    weight_decay: float | Auto = parameter(
        sk.AUTO_NONNEGATIVE,
        default="auto",
        doc="""
        Decay of the adapters, at least 0. "auto" is 0.1 for images, about as strong as
        an L2-SP penalty of 1e-2, and 1e-4 for tables, as in the paper.
        """,
    )
    pretrain_epochs: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Number of passes over the data in the pretraining. "auto" makes 500 optimiser
        steps for images and 400 for tables.
        """,
    )
    memory: str | Memory | None = parameter(
        sk.MEMORY,
        default=None,
        doc="""
        Cache of the pretrained network. Candidates of a search over `n_experts` or `lr`
        share it; so do detectors of other normal samples, if it is trained on the
        classes of the corpus. Needs an integer `random_state`.
        """,
    )
    batch_size: int = 128
    max_epochs: int | Auto = parameter(
        [sk.Interval(sk.Integral, 0, None, closed="left"), sk.AUTO],
        default="auto",
        doc="""
        Passes over the data. "auto" makes {auto_steps} optimiser steps whatever the
        number of samples, and the rest of a started pass; where a single pass would
        be longer, an epoch is cut after that many. 0 trains no adapters: scores are
        those of the frozen network and the head.
        """,
    )

    def __sklearn_clone__(self):
        """Return an unfitted copy, which shares the network and the corpus."""
        params = {
            name: value if name in _SHARED else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        copy, state = type(self)(**params), vars(self)
        if "_metadata_request" in state:
            vars(copy)["_metadata_request"] = deepcopy(state["_metadata_request"])
        if "_skl_callbacks" in state:
            copy.set_callbacks(*state["_skl_callbacks"])
        return copy

    # Networks

    @property
    @on_shallow_copy
    def backbone_(self):
        """The frozen network without the adapters; it shares its weights."""
        check_is_fitted(self)
        network, prepare = self.net_.backbone_.base_network(), self.net_.prepare
        mean = getattr(prepare, "mean", None)
        # Other detectors then prepare its images as this one does.
        normalization = None if mean is None else (mean, prepare.spread)
        expected = normalization, self._source().least_side
        vars(network)["expected_images"] = expected
        return network

    def _is_own(self):
        """Return whether the network is the package's own, which has to be trained."""
        return isinstance(self.backbone, str) and self.backbone in _OWN

    def _source(self, weights=None):
        """Return the source of the frozen network; weights of a file are optional."""
        shape, mine = self._row_shape, self._own_networks()
        family, width = self._family(), self._value("width")
        if not self._is_own():
            if mine:
                raise ValueError(
                    "backbone is a pretrained network, and architecture an untrained "
                    "one: give only one of them."
                )
            return find_backbone(self.backbone, weights)
        if mine:
            return Source(partial(build_network, "backbone", mine["backbone"], shape))
        if family == "conv":
            return Source(partial(ResNet26, shape[0], width))
        if self.backbone != "auto":
            raise ValueError(
                f"backbone={self.backbone!r} takes images (see `image_shape`), and X "
                "is a table: use 'auto', which takes both."
            )
        n_estimators, (n_columns,) = self._ensemble_size(), shape
        build = partial(stacked_mlps, n_estimators, n_columns, width)
        return Source(build, n_estimators)

    def _make_nets(self, device, seed, weights=None):
        return {"net_": self._net(self._source(weights), device, seed)}

    def _nets_for_weights(self, device, saved):
        # If the file leaves the network out, it has a checksum instead of weights.
        weights = saved["net_"].modules["backbone"]
        return self._make_nets(device, 0, None if isinstance(weights, str) else weights)

    def _net(self, source, device, seed):
        """Return the net around a backbone."""
        prepare, batch_size = self._preparation(source), self._normal_per_batch()
        example = prepare(self._example(source))
        builders = {
            "backbone": partial(build_frozen, source.build, example, self.adapt_from),
            "adapters": partial(
                Adapters,
                n_experts=self.n_experts,
                shrinkage=self._setting("shrinkage"),
                unit=self._kind.has_channels,
            ),
        }
        return self.net_class(
            builders,
            prepare=prepare,
            augment=self._augmentation(),
            corpus_batch=self._value("batch_size") - batch_size,
            optimizer=self._setting("optimizer"),
            weight_decay=self._value("weight_decay"),
            n_estimators=source.n_estimators,
            lr=self._rate(),
            **self._engine(device, seed) | {"batch_size": batch_size},
        )

    def _example(self, source):
        """Return a random scaled sample with the input shape of the networks."""
        rng = torch.Generator().manual_seed(0)
        shape = 1, *self._row_shape
        row = 2 * torch.rand(shape, generator=rng, dtype=torch.float32) - 1
        return row.expand(source.n_estimators, *shape) if source.n_estimators else row

    def _rate(self):
        """Return the learning rate."""
        if self.lr != "auto":
            return self.lr
        return self._setting("lr" if self._has_corpus else "lone_lr")

    def _normal_per_batch(self):
        whole = self._value("batch_size")
        return whole - whole // 2 if self._has_corpus else whole

    def _preparation(self, source):
        """Return the preparation of scaled rows: columns clipped, or images resized."""
        if self._kind == TABLE:
            return self._clipping()
        normalization = self.normalization
        if isinstance(normalization, str):
            normalization = source.normalization if self._bounded() else None
        asked = self._row_shape, self.input_size, normalization
        return preparation_for(source, *asked, any_channels=self._is_own())

    def _augmentation(self):
        """Return the random changes of samples in training."""
        return unchanged if self._kind == TABLE else augmentation_for(self.augment)

    # Training

    def _train(self, rows, known, held_out, seed):
        self._learn_usual_image(rows)
        given, labels = self._read_corpus(rows)
        corpus = self._corpus(rows, known, given, seed)
        self._has_corpus = bool(corpus)
        lengths = {"batch_size": self._normal_per_batch()}
        if not corpus:
            lengths["steps"] = self._setting("lone_steps")
        plan = self._plan("max_epochs", len(rows), **lengths)
        plans, task = [plan], self._task(labels)
        goes_on = self._continues()
        source = self._source(self.net_.backbone_.state_dict() if goes_on else None)
        if task and not goes_on:
            data = pretraining_data(task, rows, known, given, labels)
            plans = [self._plan("pretrain_epochs", len(data)), plan]
        with self._progress(*plans) as callbacks:
            if len(plans) > 1:
                first = self._pretraining_net(task, source, labels, rows.device, seed)
                stage = pretrain, first, data, plans[0]
                (first,) = self._cached(*stage, callbacks=callbacks("pretraining"))
                self._record(pretraining=first)
                source = source._replace(build=partial(existing, first.network_))
                if first.interrupted_:
                    plan["max_epochs"] = 0
            net = self._net_to_adapt(source, rows, seed)
            trained = {"adaptation": net} if plan["max_epochs"] else {}
            if trained:
                own = callbacks("adaptation", type(self)._keep_net)
                self._adapt(net, rows, corpus, held_out, plan, own, seed)
            self._record(**trained)
            self.net_: ResidualAdaptation = net

    # The corpus

    def _gives_corpus(self):
        """Return whether the user gives a corpus."""
        is_auto = isinstance(self.corpus, str) and self.corpus == "auto"
        return self.corpus is not None and not is_auto

    def _expects_labels(self):
        # With a corpus, y may be given for the scorer of a search only.
        return not self._gives_corpus()

    def _read_corpus(self, rows):
        """Return the samples that `corpus` gives, and their classes, if it does."""
        if not self._gives_corpus():
            return None, None
        given = self.corpus
        frame = given[0] if isinstance(given, tuple) and given else given
        if hasattr(frame, "columns") and hasattr(self, "feature_names_in_"):
            try:
                validate_data(self, frame, reset=False, skip_check_array=True)
            except ValueError as error:
                raise ValueError(f"corpus does not match X: {error}") from error
        X, labels = read_corpus(self.corpus, rows.X)
        given = DeviceDataset(X, self.scaler_, rows.device)
        if self._kind == TABLE:  # images of another scale are refused
            self._check_units(given, rows, "the corpus", "the normal samples", _UNITS)
        if labels is None:
            return given, None
        return given, torch.from_numpy(labels).to(rows.device)

    def _corpus(self, rows, known, given, seed):
        """Return the sources of the corpus: known anomalies, and the given samples."""
        is_table = self._kind == TABLE
        corpus = [known] if len(known) else []
        self.corpus_auroc_ = None
        if given is not None and is_table:
            corpus.append(given)
        elif given is not None:
            given, self.corpus_auroc_ = match_source(rows, given, seed)
            corpus.append(given)
        elif is_table and self.corpus is not None:
            n_before = self.net_.step_ if self._continues() else 0
            corpus.append(AlteredSamples(rows, seed + 1 + n_before))
        elif self.corpus is not None and not corpus:
            warn(
                f"{type(self).__name__} was given no corpus and no known anomalies: it "
                "learns without supervision (UADRA). Give corpus, or mark samples by y "
                "== -1; corpus=None turns this warning off."
            )
        return corpus

    # Pretraining

    def _task(self, labels):
        """Return the task of the pretraining, None if there is none."""
        if self.pretrain is None or not self._is_own():
            return None
        return task_for(self.pretrain, self._kind, labels is not None)

    def _pretraining_net(self, task, source, labels, device, seed):
        n_outputs = {Rotation: 4, Denoising: prod(self._row_shape)}.get(task)
        return task(
            {"network": source.build},
            prepare=self._preparation(source),
            augment=self._augmentation(),
            row_shape=self._row_shape,
            n_outputs=n_outputs or 1 + int(labels.max()),
            n_estimators=source.n_estimators,
            lr=_PRETRAINING_RATE,
            **self._engine(str(device), seed),
        )

    # Adaptation

    def _net_to_adapt(self, source, rows, seed) -> ResidualAdaptation:
        """Return a net with new adapters, or for a warm start with the old ones."""
        net = self._net(source, str(rows.device), seed)
        if self._continues():
            # Other sources have the fitted weights, by `_source`.
            if isinstance(self.backbone, nn.Module):
                self._refuse_other_weights(net)
            net.resume(self.net_)
            return net
        net.initialize()
        if missed := net.backbone_.unadapted:
            warn(
                f"{type(self).__name__} adapts a part of backbone only, {missed}. "
                "Convolutions of images and linear layers have adapters if they are "
                "called; torch does not call those of nn.MultiheadAttention."
            )
        features = net.fit_gates(rows.subset(rows.spread_indices(_MAX_FITTED)))
        self._check_finite(features.numpy(force=True))
        net.adapters_.head.fit(net.swapped(features))
        return net

    def _refuse_other_weights(self, net):
        if net.initialize().backbone_.differs_from(self.net_.backbone_.state_dict()):
            raise ValueError(
                "warm_start continues with the fitted network, but backbone has other "
                "weights: fit with warm_start=False."
            )

    def _adapt(self, net, rows, corpus, held_out, plan, callbacks, seed):
        """Train the adapters."""
        own, validation = [StepDecay()], None
        if not corpus:
            own, validation = [*own, StopAtCollapse()], rows.head(_MAX_HELD_OUT)
            if len(rows) > _MAX_HELD_OUT // 10:  # else too few are left for training
                most = _MAX_HELD_OUT
                rows, held_out = self._validation(rows, held_out, seed, most)
                validation = held_out.head(most)
        own += callbacks
        net.train(rows, corpus=corpus, held_out=validation, callbacks=own, **plan)

    # Scores, latent codes

    def _caching(self):
        return self.net_.backbone_.merged()

    def _prepared_shape(self):
        return shape_after(self.net_.prepare, self._row_shape)

    def _natural_offset(self):
        # Without a corpus, the training moves no samples away from the origin.
        return -log(2) if self._has_corpus else None

    def _score_batch(self, batch):
        # A geometric mean, so that no member of an ensemble dominates.
        radius = hypersphere_radius(self.net_.encode_members(batch))
        return -(radius + _TINY).log().mean(0).exp()

    def _encode_batch(self, batch):
        return self.net_.encode_members(batch)
