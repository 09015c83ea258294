r"""JointEncoderGAN: a progressive GAN whose encoder is trained along with it.

The paper is A. Berg, M. Felsberg and J. Ahlberg, "Unsupervised adversarial learning
of anomaly detection in the wild", 2019; equation numbers are its own. Q are images, z
are latent codes.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import ClassVar, Literal

import numpy as np
import torch
from joblib import Memory
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from .._base import BaseDeepDetector
from .._mixins import ReconstructionMixin, SamplingMixin
from ..engine import n_processes
from ..exceptions import NormDirectionWarning
from ..networks import Role
from ..objectives import origin_distance
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe
from ..utils._kinds import IMAGE, TABLE, ByKind
from ..utils._parameters import Auto, parameter
from ..utils._state import on_shallow_copy
from ..utils._warnings import warn
from ._net import JointNet, Phase, train_phases
from ._networks import Frame, image_networks, table_networks
from ._score import DISTANCES, AnomalyScore, Outputs

#: Samples that suffice to fit the score, and to compare norms.
_ENOUGH = 5000
_ENOUGH_NORMS = 1000
#: Share of the training samples that the estimate of the bulk of codes leaves out.
_LEFT_OUT = 0.2
#: AUROC below which long codes seem to be anomalous, and not short ones.
_MISLEADS = 0.5
#: Epochs of each phase in the paper.
_PAPER_EPOCHS = 4


@describe(
    auto_steps="600 (tables), or for images 200 at the first resolution, 75 in each "
    "phase of growth and 250 in the last,",
    auto_batch=' For images, those at the finest resolution. "auto" is 32 for tables, '
    '16 for images, and 2048 over the longer side for images with ``preset="paper"``.',
    auto_lr='"auto" is 1e-3 for tables, 3e-3 for images, and 1e-3 for images with '
    '``preset="paper"``.',
    roles=" Images have been padded, for example from 28 x 28 to 32 x 32, and the "
    "networks do not grow.",
    width="Hidden units for tables; for images channels at the finest resolution, "
    'doubled at each coarser one up to `max_width`. "auto" is 64 or 8, and 16384 over '
    'the longer side for images with ``preset="paper"``.',
    auto_offset="the median of the calibration scores less three times its distance to "
    "their first quartile",
)
class JointEncoderGAN(SamplingMixin, ReconstructionMixin, BaseDeepDetector):
    r"""Progressive GAN with a jointly trained encoder, for contaminated data.

    A generator G and a critic D learn the distribution of the data. At the same time
    an encoder E learns to find the noise from which G reconstructs a sample (eqs 1 and
    6):

    .. math:: \min_{G, E} \max_D \; E_x[D(x)] - E_z[D(G(z))]
              + E_z\big[\|G(z) - G(E(G(z)))\|_1\big]

    with a gradient penalty on D. For images, all three networks begin with few pixels
    and grow: each finer resolution is faded in, then trained. Rare anomalies in the
    training data do little harm: E learns from generated samples, and G generates
    frequent ones.

    The score weighs two terms (eq. 5), the distance of a sample from its
    reconstruction, for images without brightness and contrast (eqs 2 and 3), and a
    distance L of its latent code,

    .. math:: a = \lambda \, \frac{1}{N_X} \|w(x) - w(G(E(x)))\|_2
              + (1 - \lambda) \, L(E(x))

    By default L is the Mahalanobis distance from the bulk of the codes of training
    samples, and both terms are standardised. In the paper it is
    :math:`L = -\|E(x)\|_2 / \sqrt{N_z}` (eq. 4): short codes are anomalous. But the
    training does not act on the length of codes, since G normalises it away, and which
    samples have short ones differs between data sets. `y` is not read.

    Parameters
    ----------
    %(parameters)s

    Attributes
    ----------
    norm_auroc_ : float
        AUROC in [0, 1] of short codes, for up to 1000 training samples against as many
        generated ones, from which the encoder learns. The paper's cue, short codes for
        unusual samples, needs it above 0.5. It is not a proof, since samples of both
        kinds are mostly normal.
    usual_error_ : ndarray of shape (height, width), float32
        For images: the mean of ``anomaly_map`` over training samples.
    %(common_attributes)s

    See Also
    --------
    skanomaly.datasets.contaminate : Puts anomalies among training samples.
    skanomaly.metrics.TrainingHistoryDisplay : Shows the losses of all phases.

    Notes
    -----
    Images grow from at most 8 pixels on the longer side. For 28 x 28 there are five
    phases: 8, 16 fading in, 16, 32 fading in, 32, of `max_epochs` epochs each. A batch
    is twice as large at each coarser resolution, up to 32 samples, or 128 with
    ``preset="paper"``. ``history_`` has the phase of each epoch as its stage, such as
    "16 x 16, fading in". Critic and encoder use the spread of images in groups of four:
    `batch_size` should be a multiple of 4.

    `lam`, `residual_norm`, `distance` and `standardize` are read when samples are
    scored. Set on a fitted detector they change its scores, but not its ``offset_``:
    for another threshold ``fit`` again, which with `memory` repeats no training.

    References
    ----------
    .. [1] A. Berg, M. Felsberg and J. Ahlberg, "Unsupervised adversarial learning of
       anomaly detection in the wild", 2019.
    .. [2] T. Karras, T. Aila, S. Laine and J. Lehtinen, "Progressive growing of GANs
       for improved quality, stability, and variation", ICLR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import JointEncoderGAN
    >>> rng = np.random.default_rng(0)
    >>> X = np.r_[rng.normal(size=(300, 2)), rng.uniform(-6, 6, size=(6, 2))]
    >>> detector = JointEncoderGAN(random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [9.0, -9.0]])
    array([ 1, -1])
    """

    _auto_values: ClassVar[ByKind] = {
        kind: {
            "lam": 0.25,
            "residual_norm": "rms",
            "distance": "mahalanobis",
            "standardize": True,
            "averaging": 0.99,
            "cycle_weight": None,  # makes the norm a mean
            "latent_dim": 64,
            "max_width": 64,
            **own,
        }
        for kind, own in {
            TABLE: {"max_epochs": 600, "batch_size": 32, "lr": 1e-3, "width": 64},
            IMAGE: {"max_epochs": 75, "batch_size": 16, "lr": 3e-3, "width": 8},
        }.items()
    }
    _settings: ClassVar[ByKind] = {
        kind: {"as_published": False, "largest_batch": 32, **own}
        for kind, own in {
            TABLE: {"first_epochs": 600, "last_epochs": 600, "first_level": 0},
            IMAGE: {"first_epochs": 200, "last_epochs": 250, "first_level": 1},
        }.items()
    }
    #: Values for ``preset="paper"``; other values do not change.
    _paper_values: ClassVar[ByKind] = {
        TABLE: {
            "lam": 0.05,
            "residual_norm": "paper",
            "distance": "origin",
            "standardize": False,
        },
        IMAGE: {
            "lam": 0.05,
            "residual_norm": "paper",
            "distance": "origin",
            "standardize": False,
            "averaging": 0.999,
            "cycle_weight": 1.0,
            "as_published": True,
            "latent_dim": 512,
            "first_level": 0,
            "largest_batch": 128,
            "lr": 1e-3,
            "max_width": 512,
            # These two over the longer side.
            "width": 16384,
            "batch_size": 2048,
        },
    }

    _roles = {  # noqa: RUF012
        "generator": Role(("latent_dim", "shape"), ("latent_dim",), "shape"),
        "critic": Role(("shape",), ("shape",), ""),
        "encoder": Role(("shape", "latent_dim"), ("shape",), "latent_dim"),
    }
    _fixed_by_fit = (*BaseDeepDetector._fixed_by_fit, "preset", "max_width")
    _scored_by = ("lam", "distance", "standardize", "residual_norm", "criterion")

    lam: float | Auto = parameter(
        [sk.Interval(sk.Real, 0, 1, closed="both"), sk.AUTO],
        default="auto",
        doc="""
        Weight of the residual in the score (eq. 5), in [0, 1]. "auto" is 0.25, and
        0.05 with ``preset="paper"``.
        """,
    )
    residual_norm: Literal["auto", "paper", "rms"] = parameter(
        [sk.StrOptions({"auto", "paper", "rms"})],
        default="auto",
        doc=r"""
        Divisor of the norm of a residual: "paper" is the number of pixels :math:`N_X`
        (eq. 2), which makes it a thousand times smaller than the other term; "rms" is
        :math:`\sqrt{N_X}`. It makes no difference for standardised terms. "auto" is
        "rms", and "paper" with ``preset="paper"``.
        """,
    )
    distance: Literal["auto", "mahalanobis", "origin"] = parameter(
        [sk.StrOptions({"auto", *DISTANCES})],
        default="auto",
        doc="""
        Distance of latent codes: from the bulk of the codes of training samples, which
        leaves out the furthest fifth, or `contamination` if that is more; or minus the
        distance from the origin (eq. 4). "auto" is "mahalanobis", and "origin" with
        ``preset="paper"``. With "origin", a
        :class:`~skanomaly.exceptions.NormDirectionWarning` is given if short codes seem
        to be normal; the sign is never changed.
        """,
    )
    standardize: bool | Auto = parameter(
        ["boolean", sk.AUTO],
        default="auto",
        doc="""
        Whether to replace the terms by their logarithms, minus the median and divided
        by the interquartile range of training samples. "auto" is True, and False with
        ``preset="paper"``.
        """,
    )
    criterion: Literal["combined", "map"] = parameter(
        [sk.StrOptions({"combined", "map"})],
        default="combined",
        doc="""
        Anomaly score: "combined" is both terms (eq. 5). For images, "map" finds small
        defects that these may miss: it divides ``anomaly_map`` by ``usual_error_``, and
        takes minus the logarithm of the mean of the highest 2 % of the means of 3 x 3
        pixels (:ref:`defects`). It may be changed on a fitted detector, whose
        ``offset_`` then stays the same.
        """,
    )
    encoder_loss: Literal["image", "latent"] = parameter(
        [sk.StrOptions({"image", "latent"})],
        default="image",
        doc=r"""
        Loss of the encoder: the difference of images (eq. 6) or that of latent codes,
        :math:`\|z - E(G(z))\|_1` (eq. 7).
        """,
    )
    encoder_training: Literal["joint", "separate"] = parameter(
        [sk.StrOptions({"joint", "separate"})],
        default="joint",
        doc="""
        Time of the encoder's training: "joint" is with the GAN, "separate" after it, on
        a fixed generator, as in other methods.
        """,
    )
    cycle_updates_generator: bool = parameter(
        ["boolean"],
        default=False,
        doc="""
        Whether the generator minimises the third term of eq. 1 too, as printed. In the
        authors' code, and so in the paper's results, only the encoder does.
        """,
    )
    cycle_weight: float | Auto = parameter(
        sk.AUTO_NONNEGATIVE,
        default="auto",
        doc="""
        Weight of the third term of eq. 1 in the loss of the generator, at least 0. The
        norm is a sum over the numbers of an image, as printed. It needs
        ``cycle_updates_generator=True``; the encoder, which has no other term, does not
        depend on it. "auto" is 1 over those numbers, at the current resolution, which
        makes the term a mean; and 1, as printed, for images with ``preset="paper"``.
        """,
    )
    n_estimators: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Number of ensemble members, each with its own networks; the score is that of
        their mean terms. "auto" is 1 for images; for tables 8, and fewer from 257
        columns on (2048 / n_features).
        """,
    )
    averaging: float | Auto = parameter(
        [sk.Interval(sk.Real, 0, 1, closed="left"), sk.AUTO],
        default="auto",
        doc="""
        Decay of the moving average of the weights, per step of the last phase, in
        [0, 1). Scores use the average. "auto" is 0.99, and 0.999 for images with
        ``preset="paper"``.
        """,
    )
    preset: Literal["paper"] | None = parameter(
        [sk.StrOptions({"paper"}), None],
        default=None,
        doc="""
        Values that "auto" stands for: "paper" takes the paper's networks and score:
        latent codes of 512 numbers after a LeakyReLU, 512 channels, growth from 4 x 4
        instead of 8 x 8 pixels, four epochs in each phase, eqs 2 to 5 as printed. On
        images of 32 x 32 these are 62 million parameters, for a GPU. For tables it
        changes the score alone.
        """,
    )
    max_width: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Maximum number of channels at any resolution of images. "auto" is 64, and 512
        with ``preset="paper"``.
        """,
    )
    memory: str | Memory | None = parameter(
        sk.MEMORY,
        default=None,
        doc="""
        Cache of the trained networks. Fits that differ only in the score (`lam`,
        `distance`, `standardize`, `residual_norm`, `criterion`) share them. Needs an
        integer `random_state`.
        """,
    )
    latent_dim: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Length of noise and latent codes. "auto" is 64, and 512 for images with
        ``preset="paper"``.
        """,
    )
    batch_size: int | Auto = parameter(  # type: ignore[assignment]
        [sk.Interval(sk.Integral, 2, None, closed="left"), sk.AUTO],
        default="auto",
        doc="""
        Samples per optimiser step, at least 2.{auto_batch} Of several processes that
        train together, each has that many.
        """,
    )

    # Networks

    def _setting(self, name):
        paper = self._paper_values[self._kind] if self.preset == "paper" else {}
        if name not in paper:
            return super()._setting(name)
        value = paper[name]
        if name in ("width", "batch_size"):
            value = max(value // max(self._frame().sides(self._frame().finest)), 2)
        return value

    def _frame(self):
        """Return the frame of images, or None for tables."""
        return Frame.of(self._row_shape) if self._kind == IMAGE else None

    def _make_nets(self, device, seed):
        k, latent_dim = self._ensemble_size(), self._latent_dim()
        builders = self._builders(k)
        builders["score"] = partial(AnomalyScore, k, latent_dim)
        net = JointNet(
            builders,
            latent_dim=latent_dim,
            frame=self._frame(),
            clip=self._clipping(),
            encoder_loss=self.encoder_loss,
            cycle_updates_generator=self.cycle_updates_generator,
            cycle_weight=self._value("cycle_weight"),
            as_published=self._setting("as_published"),
            n_estimators=k,
            lr=self._value("lr"),
            **self._engine(device, seed),
        )
        return {"net_": net}

    def _clipping(self):
        """Return the clipping of columns, and of generated images."""
        if self._kind.has_channels and self._bounded():
            return partial(torch.clamp, min=-1.0, max=1.0)
        return super()._clipping()

    def _network_shape(self):
        if frame := self._frame():
            return self._row_shape[0], *frame.sides(frame.finest)
        return self._row_shape

    def _table_builders(self, n_estimators):
        (n_columns,), width = self._row_shape, self._value("width")
        return table_networks(n_estimators, n_columns, self._latent_dim(), width)

    def _conv_builders(self):
        widths = self._value("width"), self._value("max_width")
        rectified = self.preset == "paper"  # codes of any sign are better
        return image_networks(self._frame(), self._latent_dim(), *widths, rectified)

    # Training

    def _train(self, rows, reference, held_out, seed):
        self._check_cycle()
        self._check_criterion()
        net = self._nets_to_train(str(rows.device), seed)["net_"]
        phases = self._phases(len(rows))
        with self._progress(*(phase.plan for phase in phases)) as callbacks:
            stage = train_phases, net, rows, phases, self._value("averaging")
            named = partial(self._phase_callbacks, callbacks, rows, seed)
            net, reached = self._cached(*stage, callbacks=named)
        self._record(training=net)
        self._keep(net, reached, rows, seed)

    def _phase_callbacks(self, callbacks, rows, seed, name):
        """Return the callbacks of a phase; there is no score without an encoder."""
        if self.encoder_training == "separate" and name != "encoder":
            return callbacks(name)
        return callbacks(name, partial(_keep_phase, rows=rows, seed=seed))

    def _keep(self, net, reached, rows, seed):
        """Keep a trained net, and fit the score to it."""
        self.net_, self._reached = net, reached
        # Most samples are normal; the bulk of codes must not contain anomalies.
        share = _LEFT_OUT if self.contamination == "auto" else self.contamination
        outputs = self._training_outputs(rows, seed)
        net.score_.fit(outputs, max(share, _LEFT_OUT))
        codes = outputs.codes[:, :_ENOUGH_NORMS]
        self._compare_norms(net.encode_generated(codes.shape[1], seed), codes)
        self._learn_usual_error(rows)

    def _training_outputs(self, rows, seed):
        """Pass up to 5000 training samples, drawn at random, through the networks."""
        order = np.random.default_rng(seed).permutation(len(rows))[:_ENOUGH]
        index = torch.from_numpy(order).to(rows.device)

        def outputs_of_batch(batch):
            residuals, codes = self._outputs(batch)
            return torch.cat([residuals[:, None], codes.transpose(0, 1).flatten(1)], 1)

        outputs = self._map_rows(outputs_of_batch, rows.subset(index))
        self._check_finite(outputs)
        table = torch.from_numpy(outputs)
        codes = table[:, 1:].unflatten(1, (self.net_.n_estimators, -1)).transpose(0, 1)
        return Outputs(*(t.to(rows.device) for t in (table[:, 0], codes)))

    def _check_cycle(self):
        """Check that the parameters of the third term of eq. 1 are compatible."""
        if self.cycle_weight != "auto" and not self.cycle_updates_generator:
            raise ValueError(
                f"cycle_weight={self.cycle_weight} weights the third term of eq. 1 in "
                "the loss of the generator, which needs cycle_updates_generator=True."
            )
        if self.encoder_training == "separate" and self.cycle_updates_generator:
            raise ValueError(
                "cycle_updates_generator=True needs encoder_training='joint': the "
                "generator's training cannot use an encoder that is trained afterwards."
            )

    def _phases(self, n_rows):
        """Return the phases that are left to train."""
        frame = self._frame()
        finest = frame.finest if frame else 0
        # Networks of a user do not grow, and then the others do not grow either.
        grows = finest and not self._own_networks()
        first = min(self._setting("first_level"), finest) if grows else finest
        phases = [
            self._phase(level, fading, n_rows, level == first)
            for level in range(first, finest + 1)
            for fading in ((True, False) if level > first else (False,))
        ]
        if self.encoder_training == "separate":
            steps = sum(phase.max_epochs * phase.epoch_steps for phase in phases)
            n_epochs = ceil(steps / phases[-1].epoch_steps)
            alone = {"max_epochs": n_epochs, "name": "encoder", "trained": "encoder"}
            before = [phase._replace(trained="gan") for phase in phases]
            phases = [*before, phases[-1]._replace(**alone)]
        if self._continues():
            keys = [phase.key for phase in phases]
            done = keys.index(self._reached) if self._reached in keys else -1
            phases = phases[done:]
        return phases

    def _phase(self, level, fading, n_rows, begins):
        finest, name = 0, "training"
        if frame := self._frame():
            finest, (height, width) = frame.finest, frame.sides(level)
            name = f"{height} x {width}" + (", fading in" if fading else "")
        full = self._value("batch_size")
        most = max(self._setting("largest_batch"), full)
        batch_size = min(full * 2 ** (finest - level), most)
        if self.preset == "paper" and frame:
            steps = _PAPER_EPOCHS * max(n_rows // (batch_size * n_processes()), 1)
        elif level == finest and not fading:
            steps = self._setting("last_epochs")
        else:
            steps = self._setting("first_epochs" if begins else "max_epochs")
        plan = self._plan("max_epochs", n_rows, batch_size=batch_size, steps=steps)
        length = plan["max_epochs"], plan["epoch_steps"]
        return Phase(level, fading, batch_size, *length, name)

    def _compare_norms(self, generated, training):
        """Compare the lengths of the codes of generated and training samples."""
        # No samples need be held out: the encoder learns from generated samples only.
        far = origin_distance(torch.cat([generated, training], 1)).numpy(force=True)
        self._check_finite(far)
        y = np.repeat([0, 1], generated.shape[1])
        each = [roc_auc_score(y, far_of_member) for far_of_member in far]
        self.norm_auroc_ = float(np.mean(each))
        counts = self._value("distance") == "origin" and self._value("lam") < 1
        if counts and self.criterion == "combined" and self.norm_auroc_ < _MISLEADS:
            warn(
                "Training samples have longer codes than generated ones (norm_auroc_ "
                f"is {self.norm_auroc_:.2f}), but in this score short codes are "
                "anomalous. Use distance='mahalanobis' or lam=1.",
                NormDirectionWarning,
            )

    # Scores, latent codes, samples

    def _auto_offset(self, scores):
        low, middle = np.percentile(scores, [25, 50])  # of logarithms, with short tails
        return float(middle - 3 * (middle - low))

    def _score_batch(self, batch):
        if self.criterion == "map":
            return self._map_score(batch)
        return -self.net_.score_(
            self._outputs(batch),
            self._value("lam"),
            self._value("distance"),
            self._value("standardize"),
        )

    def _outputs(self, batch):
        return self.net_.outputs(batch, self._value("residual_norm"))

    def _terms_batch(self, batch):
        distance = self._value("distance")
        return self.net_.score_.terms(self._outputs(batch), distance).T

    def _encode_batch(self, batch):
        return self.net_.encode(batch)

    def _decode_batch(self, codes):
        return self.net_.decode(codes).mean(0)

    @on_shallow_copy
    def score_terms(self, X: ArrayLike) -> NDArray[np.float32]:
        """Compute both terms of the score, neither standardised nor weighted.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples, 2), float32
            Residual (eq. 2) and distance of the latent code (eq. 4, or Mahalanobis),
            both higher for the more anomalous.

        Raises
        ------
        ValueError
            If a sample is so far out that its terms are not finite.
        """
        return self._finite(self._compute(self._terms_batch, X))

    def _draw_rows(self, n, seed):
        return self.net_.resized(self.net_.clip(self.net_.sample(n, seed)))


def _keep_phase(detector, net, rows, seed):
    """Keep a net in training, as the end of its phase would."""
    net.run_start_ = net.phases_start_
    detector._keep(net, net.phase_.key, rows, seed)
