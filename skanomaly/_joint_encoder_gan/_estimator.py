r"""JointEncoderGAN: a progressive GAN whose encoder is trained along with it.

The paper is A. Berg, M. Felsberg and J. Ahlberg, "Unsupervised adversarial learning
of anomaly detection in the wild", 2019; equation numbers are its own. Q are images, z
are codes.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import ClassVar, Literal

import numpy as np
import torch
from joblib import Memory
from sklearn.metrics import roc_auc_score

from .._base import BaseDeepDetector
from .._mixins import ReconstructionMixin, SamplingMixin
from ..exceptions import NormDirectionWarning
from ..networks import Role
from ..objectives import origin_distance
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe
from ..utils._kinds import IMAGE, TABLE, ByKind
from ..utils._parameters import Auto, parameter
from ..utils._state import of_one_state
from ..utils._warnings import warn
from ._net import JointNet, Phase, train_phases
from ._networks import Frame, image_networks, table_networks
from ._score import DISTANCES, AnomalyScore, Outputs

#: Rows that are enough to learn from what is usual, and to compare norms on.
_ENOUGH = 5000
_ENOUGH_NORMS = 1000
#: Share of the training rows without which the bulk of the codes is found.
_LEFT_OUT = 0.2
#: Below this, the norm of codes points the other way.
_MISLEADS = 0.5
#: Epochs of each phase in the paper, as at full resolution.
_PAPER_EPOCHS = 4


@describe(
    auto_steps="600 (tables), or for images 200 at the first resolution, 75 in each "
    "phase of growth and 250 in the last,",
    auto_batch=' For images, those at the finest resolution. "auto" is 32 for tables, '
    '16 for images, and 2048 over the longer side for images with ``preset="paper"``.',
    auto_lr='"auto" is 1e-3 for tables, 3e-3 for images, and 1e-3 for images with '
    '``preset="paper"``.',
    roles=" Images have been padded, 28 x 28 to 32 x 32 for one, and nothing grows "
    "then.",
    width="Hidden units for tables; for images channels at the finest resolution, "
    'doubled at each coarser one up to `max_width`. "auto" is 64 or 8, and 16384 over '
    'the longer side for images with ``preset="paper"``.',
    auto_offset="the median of the training scores less three times its distance to "
    "their first quartile",
)
class JointEncoderGAN(SamplingMixin, ReconstructionMixin, BaseDeepDetector):
    r"""Progressive GAN with a jointly trained encoder, for contaminated data.

    A generator G learns, against a critic D, what rows look like; an encoder E learns
    at the same time to find the noise from which G makes an image that looks the same
    (eqs 1 and 6):

    .. math:: \min_{G, E} \max_D \; E_x[D(x)] - E_z[D(G(z))]
              + E_z\big[\|G(z) - G(E(G(z)))\|_1\big]

    with a gradient penalty on D. For images, all three networks begin with few pixels
    and grow: each finer resolution is faded in, then trained. Rare anomalies among the
    training rows do little harm, since E learns from generated rows and G makes what
    is frequent.

    The score weighs two terms (eq. 5): how far a row is from its reconstruction, images
    seen without brightness and contrast (eqs 2 and 3), and where its code lies,

    .. math:: a = \lambda \, \frac{1}{N_X} \|w(x) - w(G(E(x)))\|_2
              + (1 - \lambda) \, L(E(x))

    By default L is the Mahalanobis distance of a code from the bulk of the codes of
    training rows, and both terms are put on one scale. In the paper it is
    :math:`L = -\|E(x)\|_2 / \sqrt{N_z}` (eq. 4): short codes are anomalous. Nothing in
    the training moves the length of codes, since G sees their direction alone, and
    which rows have short ones differs from data to data. `y` is not read.

    Parameters
    ----------
    %(parameters)s

    Attributes
    ----------
    norm_auroc_ : float
        Share of the pairs of a generated row and a training row, one of up to 1000, in
        which the training row has the shorter code, in [0, 1]. The encoder learns from
        generated rows alone. The paper's cue, short codes for what is unusual, wants
        it above 0.5; but both kinds are mostly normal, so that it is no proof either
        way.
    usual_error_ : ndarray of shape (h, w), float32
        Of detectors of images: the mean of ``anomaly_map`` over training rows.
    %(common_attributes)s

    See Also
    --------
    skanomaly.datasets.contaminate : Puts anomalies among training rows.
    skanomaly.metrics.TrainingHistoryDisplay : Shows the losses of all phases.

    Notes
    -----
    Images grow from at most 8 pixels on the longer side, 28 x 28 for one in five
    phases: 8, 16 fading in, 16, 32 fading in, 32. In each, `max_epochs` passes are made
    over the data. A batch is twice as large at each coarser resolution, up to 32 rows,
    or 128 with ``preset="paper"``. ``history_`` names the phase of each epoch as its
    stage, "16 x 16, fading in" for one. Critic and encoder see how different the images
    of groups of four are, so that `batch_size` had better be a multiple of 4.

    `lam`, `residual_norm`, `distance` and `standardize` are read when rows are scored.
    Set on a fitted detector they change its scores, and not its ``offset_``: for
    another threshold ``fit`` it again, which with `memory` trains nothing anew.

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
    #: The same for ``preset="paper"``; others are as without it.
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
        What the norm of a residual is divided by: "paper" is the number of pixels
        :math:`N_X` (eq. 2), which makes it a thousand times smaller than the other
        term; "rms" is :math:`\sqrt{N_X}`. It makes no difference once the terms are
        standardised. "auto" is "rms", and "paper" with ``preset="paper"``.
        """,
    )
    distance: Literal["auto", "mahalanobis", "origin"] = parameter(
        [sk.StrOptions({"auto", *DISTANCES})],
        default="auto",
        doc="""
        What is measured on codes: the distance from the bulk of those of the training
        rows, of which the furthest fifth, or `contamination` if that is more, is left
        out; or how near they are to the origin (eq. 4). "auto" is "mahalanobis",
        and "origin" with ``preset="paper"``. With "origin", a
        :class:`~skanomaly.exceptions.NormDirectionWarning` tells if short codes seem
        to be the normal ones; the sign is never changed.
        """,
    )
    standardize: bool | Auto = parameter(
        ["boolean", sk.AUTO],
        default="auto",
        doc="""
        Whether the terms are replaced by their logarithms, less the median and over
        the interquartile range of training rows. "auto" is True, and False
        with ``preset="paper"``.
        """,
    )
    criterion: Literal["combined", "map"] = parameter(
        [sk.StrOptions({"combined", "map"})],
        default="combined",
        doc="""
        What the score is made of: both terms (eq. 5); or, for images, the map where it
        is highest, which small defects raise, and the sum may miss. "map" takes
        ``anomaly_map`` over ``usual_error_``, in means of 3 x 3 pixels, and of these
        the mean of the highest 2 %. The score is minus its logarithm. A fitted detector
        can be set to another one; its ``offset_`` stays what it was. See
        :ref:`defects`.
        """,
    )
    encoder_loss: Literal["image", "latent"] = parameter(
        [sk.StrOptions({"image", "latent"})],
        default="image",
        doc=r"""
        What the encoder minimises: the difference of images (eq. 6) or that of codes,
        :math:`\|z - E(G(z))\|_1` (eq. 7).
        """,
    )
    encoder_training: Literal["joint", "separate"] = parameter(
        [sk.StrOptions({"joint", "separate"})],
        default="joint",
        doc="""
        "separate" trains the encoder when the game is over, on a generator that does
        not change any more, as other methods do.
        """,
    )
    cycle_updates_generator: bool = parameter(
        ["boolean"],
        default=False,
        doc="""
        Whether the generator minimises the third term of eq. 1 too, as the equation
        has it. The authors' code, and so the figures in the paper, have it for the
        encoder alone.
        """,
    )
    cycle_weight: float | Auto = parameter(
        sk.AUTO_NONNEGATIVE,
        default="auto",
        doc="""
        Weight of the third term of eq. 1 in the loss of the generator, at least 0: of
        the norm as printed, which is a sum over the numbers of an image. It needs
        ``cycle_updates_generator=True``; the steps of the encoder, which has no other
        term, do not depend on it. "auto" is 1 over those numbers, c h w at the
        present resolution, which makes the term a mean; and 1, as printed, for images
        with ``preset="paper"``.
        """,
    )
    n_estimators: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Games that are played side by side, each with networks of its own; the score
        is that of their mean terms. "auto" is 1 for images; for tables 8, and fewer
        from 257 columns on (2048 / d).
        """,
    )
    averaging: float | Auto = parameter(
        [sk.Interval(sk.Real, 0, 1, closed="left"), sk.AUTO],
        default="auto",
        doc="""
        In [0, 1): the share of itself that the moving average of the weights keeps at
        each step of the last phase. The average is what scores. "auto" is 0.99, and
        0.999 for images with ``preset="paper"``.
        """,
    )
    preset: Literal["paper"] | None = parameter(
        [sk.StrOptions({"paper"}), None],
        default=None,
        doc="""
        "paper" makes "auto" stand for the paper's networks and score: codes of 512
        numbers that end in a LeakyReLU, 512 channels, growth from 4 x 4 pixels and not
        from 8 x 8, four epochs in each phase, eqs 2 to 5 as printed. On images of
        32 x 32 these are 62 million parameters, for a GPU. For tables it is the score
        alone.
        """,
    )
    max_width: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        The most channels at any resolution of images. "auto" is 64, and 512 with
        ``preset="paper"``.
        """,
    )
    memory: str | Memory | None = parameter(
        sk.MEMORY,
        default=None,
        doc="""
        Where to keep the trained networks, so that fits which differ only in the
        score (`lam`, `distance`, `standardize`, `residual_norm`, `criterion`) share
        them. Needs an
        integer `random_state`.
        """,
    )
    latent_dim: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Length of noise and codes. "auto" is 64, and 512 for images with
        ``preset="paper"``.
        """,
    )
    batch_size: int | Auto = parameter(  # type: ignore[assignment]
        [sk.Interval(sk.Integral, 2, None, closed="left"), sk.AUTO],
        default="auto",
        doc="Rows per optimiser step, at least 2.{auto_batch}",
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
        """Return the frame of images, None of tables."""
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
        """Return what cuts columns, and what the generator makes of images."""
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
        rectified = self.preset == "paper"  # codes that may be anywhere are better
        return image_networks(self._frame(), self._latent_dim(), *widths, rectified)

    # Training

    def _train(self, rows, reference, seed):
        self._check_cycle()
        self._check_criterion()
        net = self._nets_to_train(str(rows.device), seed)["net_"]
        phases = self._phases(len(rows))
        with self._progress(*(phase.plan for phase in phases)) as callbacks:
            stage = train_phases, net, rows, phases, self._value("averaging")
            self.net_, self._reached = self._cached(*stage, callbacks=callbacks)
        self._record(training=self.net_)
        # Most samples are normal; anomalies must have no part in the bulk of codes.
        share = _LEFT_OUT if self.contamination == "auto" else self.contamination
        outputs = self._training_outputs(rows, seed)
        self.net_.score_.fit(outputs, max(share, _LEFT_OUT))
        codes = outputs.codes[:, :_ENOUGH_NORMS]
        self._compare_norms(self.net_.encode_generated(codes.shape[1], seed), codes)
        self._learn_usual_error(rows)

    def _training_outputs(self, rows, seed):
        """Pass up to 5000 training samples, drawn at random, through the networks."""
        order = np.random.default_rng(seed).permutation(len(rows))[:_ENOUGH]
        index = torch.from_numpy(order).to(rows.device)

        def outputs_of_batch(batch):
            residuals, codes = self._outputs(batch)
            return torch.cat([residuals[:, None], codes.transpose(0, 1).flatten(1)], 1)

        table = self._map_rows(outputs_of_batch, rows.subset(index))
        self._check_finite(table)
        table = torch.from_numpy(table)
        codes = table[:, 1:].unflatten(1, (self.net_.n_estimators, -1)).transpose(0, 1)
        return Outputs(*(t.to(rows.device) for t in (table[:, 0], codes)))

    def _check_cycle(self):
        """Check that the parameters of the third term of eq. 1 go together."""
        if self.cycle_weight != "auto" and not self.cycle_updates_generator:
            raise ValueError(
                f"cycle_weight={self.cycle_weight} is for the loss of the generator, "
                "which has the third term of eq. 1 with cycle_updates_generator=True "
                "alone."
            )
        if self.encoder_training == "separate" and self.cycle_updates_generator:
            raise ValueError(
                "cycle_updates_generator=True needs encoder_training='joint': an "
                "encoder that is trained afterwards has no part in the generator's "
                "training."
            )

    def _phases(self, n_rows):
        """Return the phases that are left to train."""
        frame = self._frame()
        finest = frame.finest if frame else 0
        # Networks of a user do not grow, and what plays with them does not either.
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
        if self._goes_on():
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
            steps = _PAPER_EPOCHS * max(n_rows // batch_size, 1)
        elif level == finest and not fading:
            steps = self._setting("last_epochs")
        else:
            steps = self._setting("first_epochs" if begins else "max_epochs")
        plan = self._plan("max_epochs", n_rows, batch_size=batch_size, steps=steps)
        return Phase(level, fading, batch_size, **plan, name=name)

    def _compare_norms(self, generated, training):
        """Compare the lengths of the codes of generated and training samples."""
        # None need be held out for it: the encoder learns from generated ones alone.
        far = origin_distance(torch.cat([generated, training], 1)).numpy(force=True)
        self._check_finite(far)
        y = np.repeat([0, 1], generated.shape[1])
        each = [roc_auc_score(y, far_of_member) for far_of_member in far]
        self.norm_auroc_ = float(np.mean(each))
        counts = self._value("distance") == "origin" and self._value("lam") < 1
        if counts and self.criterion == "combined" and self.norm_auroc_ < _MISLEADS:
            warn(
                "Training rows have longer codes than generated ones (norm_auroc_ is "
                f"{self.norm_auroc_:.2f}), while this score takes rows with short "
                "codes for anomalies. distance='mahalanobis' or lam=1 do not.",
                NormDirectionWarning,
            )

    # Scores, codes, rows

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

    @of_one_state
    def score_terms(self, X):
        """Return what the score is made of, before it is standardised and weighted.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows like those of ``fit``.

        Returns
        -------
        ndarray of shape (n, 2), float32
            Residual (eq. 2) and distance of the code (eq. 4, or Mahalanobis), both
            higher for the more anomalous.
        """
        return self._finite(self._compute(self._terms_batch, X))

    def _draw_rows(self, n, seed):
        return self.net_.resized(self.net_.clip(self.net_.sample(n, seed)))
