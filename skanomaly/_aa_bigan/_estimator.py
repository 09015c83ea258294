r"""AABiGAN: a bidirectional GAN that keeps away from known anomalies.

The paper is B. Tian, Q. Su and J. Yin, "Anomaly detection by leveraging incomplete
anomalous knowledge with anomaly-aware bidirectional GANs", IJCAI 2022; equation
numbers are its own.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base import BaseDeepDetector
from .._mixins import ReconstructionMixin, SamplingMixin
from ..engine import AverageWeights, KeepBest, LinearDecay
from ..networks import Role
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe
from ..utils._kinds import IMAGE, TABLE, ByKind
from ..utils._parameters import Auto, parameter
from ._net import AnomalyAwareBiGAN, HeldOut
from ._networks import image_networks, table_networks, working_shape

_CRITERIA = "reconstruction", "latent_norm"
#: Maximum number of held-out samples; minimum patience in epochs.
_ENOUGH, _PATIENCE = 1000, 10


@describe(
    auto_steps="500",
    auto_batch=" `known_per_batch` known anomalies are added to them.",
    auto_lr="It is that of encoder and generator; discriminators have a quarter of it. "
    '"auto" is 1e-3 for tables, where it stays, and 2e-3 for images, where it falls to '
    "0 in the second half.",
    roles=" Images have been resized to larger sides, for example from 28 to 32.",
    width="Hidden units of the widest layer for tables; for images channels of the "
    "encoder's finest layer, where 32 gives the paper's networks. "
    '"auto" is 64 or 16.',
    auto_offset="the median of the calibration scores less five times its distance to "
    "their first quartile",
)
class AABiGAN(SamplingMixin, ReconstructionMixin, BaseDeepDetector):
    r"""Bidirectional GAN that keeps away from known anomalies.

    A generator G and an encoder E learn the distribution of the normal samples, in
    which the few collected anomalies have no share. There are two discriminators D, of
    pairs (x, z) of samples and latent codes, and of pairs (x, x') of samples and
    reconstructions. They minimise (eq. 15)

    .. math:: E_{p^+}[(D - a)^2] + E_{p_G}[(D - b)^2]
              + E_{p^-}\Big[\Big(D - \frac{a + b}{2}\Big)^2\Big]

    where + stands for normal samples with their codes, - for anomalies with theirs, and
    G for generated samples with their noise. Generator and encoder bring the values of
    all of these to c (eq. 16). At the optimum, generated samples are distributed as the
    normal ones are, whatever the anomalies look like: unknown kinds of anomalies are
    far from them as well.

    Mark known anomalies by ``y == -1`` in :meth:`fit`; all other samples count as
    normal. Without any, this is an unsupervised bidirectional GAN.

    Parameters
    ----------
    %(parameters)s

    Attributes
    ----------
    criterion_ : {"reconstruction", "latent_norm", "map"}
        The score in use.
    usual_error_ : ndarray of shape (height, width), float32
        For images: the mean of ``anomaly_map`` over training samples.
    %(common_attributes)s

    See Also
    --------
    skanomaly.datasets.labelled_anomalies : Splits data as in the paper.
    skanomaly.model_selection.LeaveAnomalyKindOut : Cross-validation that keeps a kind
        of known anomalies out of the training.

    References
    ----------
    .. [1] B. Tian, Q. Su and J. Yin, "Anomaly detection by leveraging incomplete
       anomalous knowledge with anomaly-aware bidirectional GANs", IJCAI 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import AABiGAN
    >>> rng = np.random.default_rng(0)
    >>> X = np.r_[rng.normal(size=(300, 2)), [[5.0, 5.0], [6.0, 5.0]]]
    >>> y = np.r_[np.ones(300), -1, -1]  # two anomalies are known
    >>> detector = AABiGAN(random_state=0).fit(X, y)
    >>> detector.predict([[0.0, 0.0], [5.0, 6.0], [-9.0, 9.0]])
    array([ 1, -1, -1])
    """

    _reads_labels = True
    # In half precision, scores of images were worse.
    _faster_halved = ()
    _auto_values: ClassVar[ByKind] = {
        TABLE: {"max_epochs": 500, "lr": 1e-3, "averaging": 0.9, "width": 64},
        IMAGE: {"max_epochs": 500, "lr": 2e-3, "averaging": 0.98, "width": 16},
    }
    _settings: ClassVar[ByKind] = {
        TABLE: {"final_rate": 1.0, "beta2": 0.999},
        IMAGE: {"final_rate": 0.0, "beta2": 0.9},
    }

    _roles = {  # noqa: RUF012
        "encoder": Role(("shape", "latent_dim"), ("shape",), "latent_dim"),
        "generator": Role(("latent_dim", "shape"), ("latent_dim",), "shape"),
        "discriminator_xz": Role(("shape", "latent_dim"), ("shape", "latent_dim"), ""),
        "discriminator_xx": Role(("shape",), ("shape", "shape"), ""),
    }
    _fixed_by_fit = (*BaseDeepDetector._fixed_by_fit, "criterion")

    criterion: Literal["reconstruction", "latent_norm", "map", "auto"] = parameter(
        [sk.StrOptions({"auto", *_CRITERIA, "map"})],
        default="reconstruction",
        doc=r"""
        The score. "reconstruction" is the reconstruction error,
        :math:`\|x - G(E(x))\|^2`; "latent_norm" the distance of the latent code from
        the middle of the prior, :math:`\|E(x)\|^2`. For images, "map" finds small
        defects that the whole error may miss: it divides ``anomaly_map`` by
        ``usual_error_``, and takes the logarithm of the mean of the highest 2 % of the
        means of 3 x 3 pixels (:ref:`defects`). "auto" holds out a tenth of the training
        samples and of the known anomalies, and takes the norm if its AUROC on them
        exceeds that of the error by more than 0.01. Without known anomalies, or with a
        single one, it is "reconstruction".
        """,
    )
    a: float = parameter(
        [sk.FINITE],
        default=1.0,
        doc="Target of the discriminators for normal pairs (eq. 15).",
    )
    b: float = parameter(
        [sk.FINITE],
        default=0.0,
        doc="""
        Target of the discriminators for generated pairs; the target for known anomalies
        is (a + b) / 2.
        """,
    )
    c: float = parameter(
        [sk.FINITE],
        default=0.75,
        doc="Target of generator and encoder for all pairs (eq. 16).",
    )
    cycle_weight: float | Auto = parameter(
        sk.AUTO_NONNEGATIVE,
        default="auto",
        doc="""
        Weight of the pairs (x, G(E(x))) in the loss of generator and encoder, at
        least 0. "auto" is 1 for images; for tables it is 1/3 with known anomalies
        and 1/2 without, as the authors' code has it for images.
        """,
    )
    known_per_batch: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Number of known anomalies added to each batch, drawn with replacement. "auto" is
        a quarter of `batch_size`.
        """,
    )
    n_estimators: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Number of ensemble members, each with its own networks; the score is their mean.
        "auto" is 1 for images; for tables 8, and fewer from 257 columns on (2048 /
        n_features).
        """,
    )
    averaging: float | Auto = parameter(
        [sk.Interval(sk.Real, 0, 1, closed="left"), sk.AUTO],
        default="auto",
        doc="""
        Decay of the moving average of the weights, per step, in [0, 1). Scores use the
        average; 0 uses the last weights, as in the paper. "auto" is 0.9 for tables,
        0.98 for images.
        """,
    )
    early_stopping: bool = parameter(
        ["boolean"],
        default=False,
        doc="""
        Whether to hold out a tenth of the training samples and of the known anomalies,
        to stop when their AUROC has not risen for a fifth of the epochs, and at least
        ten, and to keep the best epoch. Without known anomalies, the reconstruction
        error is monitored instead.
        """,
    )
    latent_dim: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc=r"""
        Length of the latent codes. "auto" is :math:`\lceil \sqrt d \rceil` for tables
        with d columns, 100 for grey images and 128 for others.
        """,
    )
    batch_size: int = 64

    # Networks

    def _make_nets(self, device, seed):
        n_known = self._given("known_per_batch")
        if n_known == "auto":
            n_known = max(self._value("batch_size") // 4, 1)
        k = self._ensemble_size()
        net = AnomalyAwareBiGAN(
            self._builders(k),
            latent_dim=self._latent_dim(),
            prepare=self._preparation(),
            targets=(self.a, self.b, self.c),
            n_known=n_known,
            n_estimators=k,
            lr=self._value("lr"),
            beta2=self._setting("beta2"),
            **self._engine(device, seed),
        )
        return {"net_": net}

    def _latent_dim(self):
        if self.latent_dim != "auto":
            return self._given("latent_dim")
        n = self._row_shape[0]
        if self._kind == TABLE:
            return ceil(n**0.5)
        return 100 if n == 1 else 128

    def _preparation(self):
        """Return the preparation of scaled samples: clipped columns, resized images."""
        if self._kind.has_channels:
            return partial(_resized, sides=self._network_shape()[1:])
        return self._clipping()

    def _network_shape(self):
        is_image = self._kind == IMAGE
        return working_shape(self._row_shape) if is_image else self._row_shape

    def _table_builders(self, n_estimators):
        (n_columns,), width = self._row_shape, self._value("width")
        return table_networks(n_estimators, n_columns, self._latent_dim(), width)

    def _conv_builders(self):
        sizes = self._network_shape(), self._latent_dim(), self._value("width")
        return image_networks(*sizes, self._bounded())

    # Training

    def _train(self, rows, known, held_out, seed):
        net = self._nets_to_train(str(rows.device), seed)["net_"]
        self._check_criterion()
        by_map = self.criterion == "map"  # early stopping is by the error then
        criteria: tuple[str, ...] = _CRITERIA[:1] if by_map else (self.criterion,)
        if self.criterion == "auto":
            criteria = _CRITERIA
        validation = None
        if self.early_stopping or (len(criteria) > 1 and len(known) > 1):
            rows, held_out = self._validation(rows, held_out, seed)
            known, anomalous = self._validation_anomalies(known, seed)
            parts = held_out.head(_ENOUGH), anomalous.head(_ENOUGH)
            validation = HeldOut(*parts, criteria)
        plan = self._plan("max_epochs", len(rows))
        kept = rows, validation, criteria[0]
        with self._progress(plan) as callbacks:
            own = [
                LinearDecay(self._setting("final_rate"), begin=0.5),
                self._average(plan["max_epochs"]),
                *callbacks("training", lambda new, net: new._keep(net, *kept)),
            ]
            net.train(
                rows,
                known=known,
                cycle_weight=self._cycle_weight(known),
                held_out=validation,
                callbacks=own,
                **plan,
            )
        self._keep(net, *kept)
        self._record(training=net)

    def _keep(self, net, rows, validation, criterion):
        """Keep a trained net, and the criterion that suits it."""
        self.net_ = net
        self.criterion_ = validation.best(net) if validation else criterion
        if self.criterion == "map":
            self.criterion_ = "map"
        self._learn_usual_error(rows)

    def _average(self, n_epochs):
        """Return the callback that averages the weights, and may stop early."""
        decay = self._value("averaging")
        if not self.early_stopping:
            return AverageWeights(decay)
        return KeepBest(patience=max(n_epochs // 5, _PATIENCE), decay=decay)

    def _cycle_weight(self, known):
        if self.cycle_weight != "auto":
            return self._given("cycle_weight")
        if self._kind != TABLE:
            return 1.0
        return 1 / 3 if len(known) else 1 / 2

    def _validation_anomalies(self, known, seed):
        """Split known anomalies; a single one is more useful in training."""
        none = known.subset(torch.arange(0))
        return self._validation(known, none, seed) if len(known) > 1 else (known, none)

    # Scores, latent codes, samples

    def _score_batch(self, batch):
        if self.criterion_ == "map":
            return self._map_score(batch)
        return -self.net_.anomaly_score(batch, self.criterion_)

    def _encode_batch(self, batch):
        return self.net_.encoder_(self.net_.for_members(batch))

    def _decode_batch(self, codes):
        return _resized(self.net_.generator_(codes).mean(0), self._row_shape[1:])

    def _draw_rows(self, n, seed):
        samples = self.net_.sample(n, seed)
        resized = _resized(samples.flatten(0, 1), self._row_shape[1:])
        return resized.unflatten(0, samples.shape[:2])


def _resized(rows: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Resize images; tables, which have no sides, stay as they are."""
    if not sides or rows.shape[2:] == sides:
        return rows
    return F.interpolate(rows, size=sides, mode="bilinear")
