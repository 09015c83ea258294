r"""TransferAD: normal samples of one domain help to find anomalies in another.

The paper is C. Fan et al., "Importance weighted adversarial discriminative transfer for
anomaly detection", 2021; equation numbers are its own. F is the encoder, D the
decoder, C the classifier of domains; L is the reconstruction loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, exp, log
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from joblib import Memory
from numpy.typing import ArrayLike
from torch import Tensor

from .._base import BaseDeepDetector
from .._input import MIN_SAMPLES
from .._mixins import ReconstructionMixin
from ..engine import LinearDecay
from ..exceptions import SaturatedWeightsWarning
from ..networks import Role
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe
from ..utils._domains import checked_domains
from ..utils._kinds import CLIP, IMAGE, TABLE, ByKind
from ..utils._parameters import Auto, parameter
from ..utils._scaling import refuse_other_scale
from ..utils._warnings import warn
from ._net import TransferNet, Weighting, pretrain
from ._networks import conv_networks, natural_latent_dim, table_networks
from ._score import AnomalyScore

_CRITERIA = "combined", "reconstruction"
#: Steps between two updates of the weights, with ``transfer_epochs="auto"``.
_UPDATE_EVERY = 50
#: Factor between columns of two domains beyond which their units differ.
_UNITS = 5.0
#: Share of the target samples that count as normal with ``contamination="auto"``.
_TRUSTED = 0.4
#: Means beyond which weights hardly differ.
_SATURATED = 0.01, 0.99


# The estimator --------------------------------------------------------------------


@describe(
    auto_steps="300 (tables, images) or 200 (clips)",
    auto_batch=" With two domains, this is the number from each.",
    auto_lr='It falls to a tenth in the course of each stage. "auto" is 2e-3 for '
    "tables, 1e-2 for images (the paper's), 5e-3 for clips.",
    roles=" The classifier returns logits. Grey images have been repeated to 3 "
    "channels.",
    width="Hidden units of the widest layer for tables; channels of the first layer "
    "for images, where 32 makes the paper's networks, and for clips, where 96 does. "
    '"auto" is 64, 32 or 8.',
    auto_offset="the 65th percentile of the calibration scores less twice its distance "
    "to their 90th, which suits any share of anomalies up to a half; "
    "without the second stage, the score at which g exceeds its median by five times "
    "the distance from its median to its third quartile",
)
class TransferAD(ReconstructionMixin, BaseDeepDetector):
    r"""Detector for a domain without labels, with the help of another domain.

    The source domain has normal samples. The target domain, whose anomalies are to be
    found, has an unlabelled mixture of normal samples and anomalies. An autoencoder,
    encoder F and decoder D, is trained in two stages. The first (eqs 1 and 7) is to
    reconstruct source samples best and target anomalies worst:

    .. math:: \min_{F, D} \; E_{source}[L] + \lambda E_{target}[L], \quad
              L(x) = \|D(F(x)) - x\|^2 / d

    Then each target sample gets a weight (eq. 5), near 1 if it seems normal, and the
    second stage (eq. 8) learns to reconstruct weighted target samples. A classifier C
    learns to separate the domains by latent codes; the encoder learns to make codes of
    source and weighted target samples indistinguishable:

    .. math:: w = \sigma(\eta g + \beta), \quad
              \min_{F, D} \; E_{source}[L] + \lambda' E_{target}[w L]

    .. math:: \min_F \max_C \; E_{target}[w \log C(F)] + E_{source}[\log(1 - C(F))]

    In the paper g is the loss L, which is larger for busy images than for plain ones.
    For images and clips it has, by default, two terms: the loss relative to that of
    average pooling, to as many cells as a latent code has numbers; and the Mahalanobis
    distance of the latent code from those of the weighted target samples. The logarithm
    of g is the mean of their logarithms, each standardised among the weighted samples.
    The score is :math:`-\log g`.

    Domains are given to :meth:`fit` by `sample_domain`, or by `X_source`. Without
    either, this is a plain autoencoder.

    Parameters
    ----------
    %(parameters)s

    Attributes
    ----------
    sample_weight_ : ndarray of shape (n_target,), float32
        Weights of the target samples, in their order; not divided by their mean. Those
        of calibration samples, which are not trained on, follow from their scores. Only
        with a second stage.
    tau_ : float
        A quantile of g among the target samples. A weight is 1/2 there if `eta` is
        None, and with a given `eta` at -`beta` / `eta`.
    usual_error_ : ndarray of shape (height, width) or (frames, height, width), float32
        For images or clips: the mean of ``anomaly_map`` over target samples.
    %(common_attributes)s

    See Also
    --------
    skanomaly.datasets.across_domains : Splits data as in the paper.
    skanomaly.datasets.make_clips : Cuts video into clips.
    skanomaly.model_selection.TargetKFold : Cross-validates on the target alone.

    Notes
    -----
    In ``history_`` each epoch of the second stage has "effective_sample_size",
    :math:`(\sum w)^2 / \sum w^2`, and "mean_weight".

    References
    ----------
    .. [1] C. Fan, F. Zhang, P. Liu, X. Sun, H. Li, T. Xiao, W. Zhao and X. Tang,
       "Importance weighted adversarial discriminative transfer for anomaly
       detection", 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import TransferAD
    >>> rng = np.random.default_rng(0)
    >>> codes = rng.normal(size=(600, 1))
    >>> X = codes * [1.0, 2.0, -1.0] + 0.1 * rng.normal(size=(600, 3))
    >>> domain = np.repeat([1, -1], 300)
    >>> X[domain < 0] += 0.3  # the target differs from the source,
    >>> X[-60:] = rng.normal(size=(60, 3))  # and a fifth of it is anomalous
    >>> detector = TransferAD(random_state=0).fit(X, sample_domain=domain)
    >>> detector.predict([[0.3, 0.3, 0.3], [3.0, -3.0, 3.0]])
    array([ 1, -1])
    """

    # Domains of samples are metadata, which pipelines and searches pass on.
    __metadata_request__fit = {"sample_domain": True}  # noqa: RUF012

    # In half precision, scores of some images were slightly worse.
    _faster_halved = ()
    _auto_values: ClassVar[ByKind] = {
        TABLE: {
            "lam": 0.001,
            "transfer_lam": 0.3,
            "gate": "reconstruction",
            "criterion": "reconstruction",
            "max_epochs": 300,
            "transfer_epochs": 300,
            "lr": 2e-3,
            "width": 64,
        },
        IMAGE: {
            "lam": 0.1,
            "transfer_lam": 1.0,
            "gate": "combined",
            "criterion": "combined",
            "max_epochs": 300,
            "transfer_epochs": 300,
            "lr": 1e-2,
            "width": 32,
        },
        CLIP: {
            "lam": 0.0,
            "max_epochs": 200,
            "transfer_epochs": 200,
            "lr": 5e-3,
            "width": 8,
        },
    }

    _scored_by = ("criterion",)
    _roles = {  # noqa: RUF012
        "encoder": Role(("shape", "latent_dim"), ("shape",), "latent_dim"),
        "decoder": Role(("latent_dim", "shape"), ("latent_dim",), "shape"),
        "classifier": Role(("latent_dim",), ("latent_dim",), ""),
    }

    lam: float | Auto = parameter(
        sk.AUTO_NONNEGATIVE,
        default="auto",
        doc=r"""
        Weight of target samples in the first stage, beside 1 for source samples
        (:math:`\lambda` of eq. 1), at least 0. "auto" is 0.001 for tables, 0.1 for
        images, 0 for clips.
        """,
    )
    transfer_lam: float | Auto | None = parameter(
        [*sk.AUTO_NONNEGATIVE, None],
        default="auto",
        doc=r"""
        Weight of weighted target samples in the second stage (:math:`\lambda'` above),
        at least 0. None takes `lam`, as eq. 8 does. "auto" is 0.3 for tables, 1 for
        images and clips.
        """,
    )
    eta: float | None = parameter(
        [sk.Interval(sk.Real, None, 0, closed="neither"), None],
        default=None,
        doc=r"""
        Slope of the weights (eq. 5), below 0, per unit of g. None stands for
        ``-beta / tau_``, which makes the weights :math:`\sigma(\beta (1 - g/\tau))`,
        whatever the unit: a weight is 1/2 at :math:`\tau`, the 40 % quantile of g among
        the target samples. If `contamination` is a number, that share of them lies
        above :math:`\tau`.
        """,
    )
    beta: float | Sequence[float] = parameter(
        [sk.POSITIVE, tuple, list],
        default=20.0,
        doc="""
        Position of the weights (eq. 5), or their sharpness if `eta` is None; above 0.
        With a pair, beta starts at the first number and goes 0.46 of the way to the
        second, as in the authors' code.
        """,
        type_text="float or pair of float",
    )
    adversarial_weight: float = parameter(
        [sk.NONNEGATIVE],
        default=5e-4,
        doc="""
        Weight of the classifier's loss in the loss of the encoder, at least 0. The
        strength of its reversed gradient rises from 0 to 0.46 in the course of the
        stage.
        """,
    )
    gate: Literal["auto", "combined", "reconstruction"] = parameter(
        [sk.StrOptions({"auto", *_CRITERIA})],
        default="auto",
        doc="""
        Anomaly score g of the weights: both terms above, or the loss L. "auto" is
        "reconstruction" for tables, "combined" for images and clips.
        """,
    )
    criterion: Literal["auto", "combined", "reconstruction", "map"] = parameter(
        [sk.StrOptions({"auto", *_CRITERIA, "map"})],
        default="auto",
        doc="""
        Anomaly score g of ``score_samples``; "auto" is as for `gate`. For images and
        clips, "map" finds small defects that the others may miss: it divides
        ``anomaly_map`` by ``usual_error_``, and takes the mean of the highest 2 % of
        the means of 3 x 3 pixels (:ref:`defects`). It may be changed on a fitted
        detector, whose ``offset_`` then stays the same.
        """,
    )
    weight_source: bool = parameter(
        ["boolean"],
        default=False,
        doc="""
        Whether to weight source samples too, as the authors' code does for digits.
        """,
    )
    normalize_weights: bool = parameter(
        ["boolean"],
        default=False,
        doc="""
        Whether to divide the weights of the target by their mean. The classifier then
        measures a Jensen-Shannon divergence.
        """,
    )
    n_estimators: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Number of ensemble members, each an autoencoder; g is their mean. "auto" is 1
        for images and clips; for tables 8, and fewer from 257 columns on (2048 /
        n_features).
        """,
    )
    transfer_epochs: int | Auto = parameter(
        [sk.Interval(sk.Integral, 0, None, closed="left"), sk.AUTO],
        default="auto",
        doc="""
        Number of passes over the larger domain in the second stage; 0 omits this stage.
        "auto" makes as many optimiser steps as "auto" of `max_epochs`, which is for the
        first stage. Weights are updated at each epoch.
        """,
    )
    memory: str | Memory | None = parameter(
        sk.MEMORY,
        default=None,
        doc="""
        Cache of the first stage. Fits that differ only in parameters of the second, as
        in a grid search over `eta` and `beta`, share it. Needs an integer
        `random_state`.
        """,
    )
    latent_dim: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc=r"""
        Length of the latent codes. "auto" is :math:`\lceil \sqrt d \rceil` for tables
        with d columns, and for others the number of outputs of the convolutions: 72 for
        28 x 28 pixels.
        """,
    )
    batch_size: int = 32

    @sk.fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        sample_domain: ArrayLike | None = None,
        X_source: ArrayLike | None = None,
    ) -> Self:
        """Train the detector.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), \
                (n_samples, channels, height, width) or \
                (n_samples, channels, frames, height, width)
            Samples of both domains, with `sample_domain`; or of the target domain
            alone, with `X_source`.
        y : array-like of shape (n_samples,), default=None
            Not used to train, since target samples are unlabelled. A -1, an anomaly,
            for a source sample is an error.
        sample_domain : array-like of shape (n_samples,), default=None
            Above 0 for samples of the source domain, which have to be normal; below 0
            for samples of the target domain.
        X_source : array-like of shape (n_source_samples, ...), default=None
            Normal samples of the source domain, at least two, of the shape of those
            of `X`.

        Returns
        -------
        self
            The fitted detector.

        Raises
        ------
        ValueError
            If an argument or a parameter is invalid; if a domain has fewer than two
            samples, or samples of another shape than the other. Nothing has changed
            then.
        TrainingDivergedError
            If a loss or score became infinite or NaN. Nothing has changed then.

        Warns
        -----
        UserWarning
            If neither `sample_domain` nor `X_source` is given: all samples are then of
            one domain, and the detector is a plain autoencoder. If most numbers of the
            target are so far from the source that they are clipped, or most columns
            differ so much in spread or location that their units hardly agree.
        SaturatedWeightsWarning
            If the weights of the target samples are nearly all 0, or all 1.
        """
        with self._replaced_after_success(X, y) as new:
            new._beta_pair()
            samples = new._check_rows(
                X, reset=not new._continues(), min_samples=MIN_SAMPLES
            )
            n = len(samples)
            labels = None if y is None else new._label_column(y, n)
            is_source = new._check_domains(n, labels, sample_domain, X_source)
            source = None if X_source is None else new._check_source(X_source, samples)
            new._fit(samples, is_source, source)
        return self

    # Domains

    def _check_domains(self, n_rows, y, sample_domain, X_source):
        """Return the mask of the samples of the source domain."""
        nothing = np.zeros(n_rows, dtype=bool)
        if sample_domain is not None and X_source is not None:
            raise ValueError("Give sample_domain or X_source, not both.")
        if sample_domain is None:
            if X_source is None:
                warn(
                    f"{type(self).__name__} was given no domains, and takes all "
                    "samples as one domain: it is a plain autoencoder. Give "
                    "sample_domain (above 0 for source samples, below for target "
                    "samples) or X_source. A search or cross-validation needs "
                    "sample_domain too, to hand it on; cv=TargetKFold(sample_domain), "
                    "of skanomaly.model_selection, then tests on the target alone."
                )
            return nothing
        domain = checked_domains(sample_domain)
        if len(domain) != n_rows:
            raise ValueError(
                f"sample_domain has {len(domain)} values, but X has {n_rows} samples."
            )
        is_source = domain > 0
        for name, n in (("source", is_source.sum()), ("target", (~is_source).sum())):
            if n < 2:
                sign = "above" if name == "source" else "below"
                raise ValueError(
                    f"The {name} domain has {n} samples, and needs at least 2: those "
                    f"with sample_domain {sign} 0. In a cross-validation, TargetKFold "
                    "of skanomaly.model_selection keeps both in every training part."
                )
        if y is not None and self._contradicts(y, is_source):
            raise ValueError(
                "y marks samples of the source domain (sample_domain above 0) as "
                "anomalies (-1), but these have to be normal. Are the signs of "
                "sample_domain swapped?"
            )
        return is_source

    @staticmethod
    def _contradicts(y, is_source):
        """Return whether labels mark source samples as anomalies."""
        anomalous = y == -1
        # In skada, labels of -1 alone mean that nothing is known.
        return anomalous[is_source].any() and not anomalous.all()

    def _beta_pair(self):
        """Return beta at a ramp of 0, and at a ramp of 1."""
        beta = self.beta if isinstance(self.beta, tuple | list) else [self.beta] * 2
        if len(beta) != 2 or not all(map(sk.POSITIVE.is_satisfied_by, beta)):
            raise ValueError(
                f"beta={self.beta} has to be a finite number above 0, or a pair of "
                "such numbers: its start and its goal."
            )
        return tuple(beta)

    def _check_source(self, X_source, X):
        try:
            X_source = self._check_rows(X_source, reset=False)
        except ValueError as error:
            raise ValueError(f"X_source does not match X: {error}") from error
        if len(X_source) < 2:
            raise ValueError("The source domain, X_source, has fewer than 2 samples.")
        refuse_other_scale("X_source", X_source, X)
        return X_source

    def _scaler_samples(self, split):
        # Anomalies in the target would widen the scale and so hide themselves.
        X, is_source, _, X_source = split
        if X_source is not None:
            return X_source, np.ones(len(X_source), dtype=bool)
        return X, is_source if is_source.any() else split.is_training

    def _samples_in_range(self, split):
        X, _, is_calibration, X_source = split
        sets = [(X, ~is_calibration)]
        if X_source is not None:
            sets.append((X_source, np.ones(len(X_source), dtype=bool)))
        return sets

    # Networks

    def _make_nets(self, device, seed):
        k, latent_dim = self._ensemble_size(), self._latent_dim()
        builders = self._builders(k)
        builders["score"] = partial(AnomalyScore, k, latent_dim)
        net = TransferNet(
            builders,
            latent_dim=latent_dim,
            prepare=self._preparation(),
            n_estimators=k,
            lr=self._value("lr"),
            **self._engine(device, seed),
        )
        return {"net_": net}

    def _preparation(self):
        """Return the preparation of scaled samples: clipped columns, repeated grey."""
        if self._kind.has_channels:
            return partial(_repeated, n_channels=self._network_shape()[0])
        return self._clipping()

    def _network_shape(self):
        n_channels, *sides = self._row_shape
        grey_image = self._kind == IMAGE and n_channels == 1
        return 3 if grey_image else n_channels, *sides

    def _latent_dim(self):
        if self.latent_dim != "auto":
            return self._given("latent_dim")
        if self._kind == TABLE:
            return ceil(self._row_shape[0] ** 0.5)
        return natural_latent_dim(self._network_shape(), self._value("width"))

    def _table_builders(self, n_estimators):
        (n_columns,), width = self._row_shape, self._value("width")
        return table_networks(n_estimators, n_columns, self._latent_dim(), width)

    def _conv_builders(self):
        sizes = self._network_shape(), self._latent_dim(), self._value("width")
        return conv_networks(*sizes)

    # Training

    def _train(self, rows, source, held_out, seed):
        self._check_criterion()
        if len(source):
            self._check_units(rows, source, "the target", "the source", _UNITS)
        for name in ("sample_weight_", "tau_"):  # of an earlier fit
            vars(self).pop(name, None)
        # Without a source, the target is both domains, and eq. 7 trains an autoencoder.
        domains = (source if len(source) else rows), rows
        net = self._nets_to_train(str(rows.device), seed)["net_"]
        n = max(map(len, domains))
        first = self._plan("max_epochs", n)
        second = self._plan("transfer_epochs", n, length=max(_UPDATE_EVERY, n // 200))
        if not len(source):
            second["max_epochs"] = 0
        keep = partial(_keep, rows=rows, held_out=held_out)
        with self._progress(first, second) as callbacks:
            stage = pretrain, net, domains, self._value("lam"), first
            named = callbacks("pretraining", keep)
            (self.net_,) = self._cached(*stage, callbacks=named)
            self._record(pretraining=self.net_)
            if second["max_epochs"] and not self.net_.interrupted_:
                named = callbacks("transfer", keep)
                self._transfer(domains, held_out, second, named)
        self._learn_usual_error(rows)

    def _transfer(self, domains, held_out, plan, callbacks):
        share = self.contamination
        rule = Weighting(
            self._value("gate"),
            self.eta,
            self._beta_pair(),
            _TRUSTED if share == "auto" else 1 - share,
            self.normalize_weights,
            self.weight_source,
        )
        self.net_.train(
            domains,
            lam=self._value("lam" if self.transfer_lam is None else "transfer_lam"),
            weighting=rule,
            adversarial_weight=self.adversarial_weight,
            callbacks=[LinearDecay(), *callbacks],
            **plan,
        )
        self._record(transfer=self.net_)
        self._take_weights(domains[1], held_out)
        mean = self.sample_weight_.mean()
        if self.eta is not None and not _SATURATED[0] <= mean <= _SATURATED[1]:
            warn(
                f"The weights of the target samples have a mean of {mean:.2g}: "
                f"{'none' if mean < 0.5 else 'all'} of them count. A weight is 1/2 "
                "where g (see `gate`) is -beta / eta, which eta=None sets by the "
                "samples.",
                SaturatedWeightsWarning,
            )

    def _take_weights(self, rows, held_out):
        """Take the weights of the target samples from the net, to keep them once."""
        self.tau_ = exp(min(self.net_.log_tau_, 700))
        weights, order = self.net_.sample_weight_, rows.indices
        if len(held_out):
            weights = torch.cat([weights, self.net_.weights_of(held_out)])
            order = torch.cat([order, held_out.indices])
        self.sample_weight_ = weights[order.argsort()].numpy(force=True)
        self.net_.sample_weight_ = None

    def _auto_offset(self, scores):
        if hasattr(self, "sample_weight_"):
            # The half with the higher scores is normal, with few or many anomalies.
            middle, best = np.percentile(scores, [65, 90])
            return float(middle - 2 * (best - middle))
        middle, low = np.percentile(scores, [50, 25])
        high = exp(-low) - exp(-middle)  # of g, above its median
        # At most the median, in case most samples are equal up to rounding.
        return min(-log(exp(-middle) + 5 * high), float(middle))

    # Scores, latent codes, samples

    def _score_batch(self, batch):
        if self.criterion == "map":
            return self._map_score(batch)
        outputs, criterion = self.net_.outputs(batch), self._value("criterion")
        return -self.net_.score_(outputs, criterion)

    def _encode_batch(self, batch):
        return self.net_.encoder_(self.net_.for_members(batch))

    def _decode_batch(self, codes):
        rows = self.net_.decoder_(codes).mean(0)
        if rows.shape[1] == self._row_shape[0]:
            return rows
        return rows.mean(1, keepdim=True)  # of grey in three channels


def _keep(detector, net, rows, held_out):
    """Keep a net in training, as the end of its stage would."""
    detector.net_ = net
    net.weights_ = list(net.weights_)  # the net in training changes its own
    net.fit_score()
    if net.weighting_ is not None:
        detector._take_weights(rows, held_out)
    detector._learn_usual_error(rows)


def _repeated(rows: Tensor, n_channels: int) -> Tensor:
    """Repeat grey images to that many channels."""
    return rows.expand(-1, n_channels, *rows.shape[2:])
