r"""JointEncoderGAN: a progressive GAN whose encoder is trained along with it.

The paper is A. Berg, M. Felsberg and J. Ahlberg, "Unsupervised adversarial learning
of anomaly detection in the wild", 2019; equation numbers are its own. Q are images, z
are codes.
"""

from __future__ import annotations

import warnings
from functools import partial
from math import ceil

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_is_fitted

from .._base import BaseDeepDetector, ReconstructionMixin
from ..exceptions import NormDirectionWarning
from ..networks import SideBySide
from ..objectives import origin_distance
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe_common
from ._net import JointNet, Phase, train_phases
from ._networks import Frame, image_networks, table_networks
from ._score import Abnormality

_ROLES = "generator", "critic", "encoder"
#: Rows that are enough to learn from what is usual, and to compare norms on.
_ENOUGH = 5000
#: Below this, the norm of codes points the other way.
_MISLEADS = 0.5
#: The most rows of a batch at coarse levels, unless `batch_size` is more.
_LARGEST_BATCH = 128
#: Channels of the paper's networks, times the side of the image that they are of.
_PAPER_CHANNELS = 16384


@describe_common(
    auto_steps="x", batch_size="32", auto_lr="x", roles="x", width="x", auto_offset="x"
)
class JointEncoderGAN(ReconstructionMixin, BaseDeepDetector):
    r"""Progressive GAN with a jointly trained encoder."""

    _auto_values = {  # noqa: RUF012
        "lam": (0.5, 0.5),
        "residual_norm": ("rms", "rms"),
        "distance": ("mahalanobis", "mahalanobis"),
        "standardize": (True, True),
        "averaging": (0.99, 0.99),
        "latent_dim": (16, 64),
        "max_epochs": (100, 100),
        "last_epochs": (600, 300),
        "first_level": (0, 1),
        "lr": (1e-3, 3e-3),
        "width": (64, 8),
        "max_width": (64, 64),
    }
    #: The same for ``preset="paper"``.
    _paper_values = {  # noqa: RUF012
        "lam": 0.05,
        "residual_norm": "paper",
        "distance": "origin",
        "standardize": False,
        "averaging": 0.999,
        "latent_dim": 512,
        "first_level": 0,
        "lr": 1e-3,
        "max_width": 512,
    }

    _parameter_constraints: dict = {  # noqa: RUF012
        **BaseDeepDetector._parameter_constraints,
        "lam": [sk.Interval(sk.Real, 0, 1, closed="both"), sk.AUTO],
        "residual_norm": [sk.StrOptions({"auto", "paper", "rms"})],
        "distance": [sk.StrOptions({"auto", "mahalanobis", "origin"})],
        "standardize": ["boolean", sk.AUTO],
        "encoder_loss": [sk.StrOptions({"image", "latent"})],
        "encoder_training": [sk.StrOptions({"joint", "separate"})],
        "cycle_updates_generator": ["boolean"],
        "n_games": sk.AUTO_COUNT,
        "averaging": [sk.Interval(sk.Real, 0, 1, closed="left"), sk.AUTO],
        "preset": [sk.StrOptions({"paper"}), None],
        "max_width": sk.AUTO_COUNT,
        "memory": sk.MEMORY,
    }

    def __init__(
        self,
        *,
        lam="auto",
        residual_norm="auto",
        distance="auto",
        standardize="auto",
        encoder_loss="image",
        encoder_training="joint",
        cycle_updates_generator=False,
        n_games="auto",
        averaging="auto",
        preset=None,
        max_width="auto",
        memory=None,
        latent_dim="auto",
        max_epochs="auto",
        batch_size=32,
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
        self.lam = lam
        self.residual_norm = residual_norm
        self.distance = distance
        self.standardize = standardize
        self.encoder_loss = encoder_loss
        self.encoder_training = encoder_training
        self.cycle_updates_generator = cycle_updates_generator
        self.n_games = n_games
        self.averaging = averaging
        self.preset = preset
        self.max_width = max_width
        self.memory = memory
        self.latent_dim = latent_dim
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

    def _value(self, name):
        asked = getattr(self, name, "auto")
        of_paper = self._paper_values if self.preset == "paper" else {}
        if isinstance(asked, str) and asked == "auto" and name in of_paper:
            return of_paper[name]
        return super()._value(name)

    def _make_nets(self, device, seed):
        k, latent_dim = self._side_by_side(self.n_games), self._value("latent_dim")
        builders, frame = self._builders(k, latent_dim)
        builders["abnormality"] = partial(Abnormality, k, latent_dim)
        net = JointNet(
            builders,
            latent_dim=latent_dim,
            frame=frame,
            clip=self._clipping(),
            encoder_loss=self.encoder_loss,
            cycle_updates_generator=self.cycle_updates_generator,
            n_copies=k,
            lr=self._value("lr"),
            **self._engine(device, seed),
        )
        return {"net_": net}

    def _clipping(self):
        """Return what cuts columns, and what the generator makes of images."""
        bounded = self.scaling in ("auto", "minmax")
        if len(self._row_shape) > 1 and bounded:
            return partial(torch.clamp, min=-1.0, max=1.0)
        return super()._clipping()

    def _builders(self, k, latent_dim):
        """Return what builds k of each network, and the frame of images."""
        shape, frame = self._row_shape, None
        if self._family(_ROLES) == "mlp":
            builders = table_networks(k, *shape, latent_dim, self._value("width"))
        else:
            frame = Frame.of(shape)
            rectified = self.preset == "paper"  # codes that may be anywhere are better
            sizes = latent_dim, *self._widths(frame), rectified
            networks = image_networks(frame, *sizes)
            builders = {r: partial(SideBySide.of, k, b) for r, b in networks.items()}
            shape = shape[0], *frame.sides(frame.finest)
        sizes = {
            "generator": (latent_dim, shape),
            "critic": (shape,),
            "encoder": (shape, latent_dim),
        }
        return builders | self._own_builders(k, sizes), frame

    def _widths(self, frame):
        """Return the channels of the finest level, and the most of any."""
        most = self._value("max_width")
        if self.width == "auto" and self.preset == "paper":
            return max(_PAPER_CHANNELS // max(frame.sides(frame.finest)), 1), most
        return self._value("width"), most

    # Training

    def _train(self, rows, others, seed):
        net = self._nets_to_train(str(rows.device), seed)["net_"]
        train, held_out = self._hold_out(rows, seed)
        phases = self._phases(net, len(train))
        with self._progress(*(phase.plan for phase in phases)) as callbacks:
            stage = train_phases, net, train, phases, self._value("averaging")
            (self.net_,) = self._cached(*stage, callbacks=callbacks)
        self._record(training=self.net_)
        usual = self.net_.figures_of(train, self._value("residual_norm"), _ENOUGH)
        self.net_.abnormality_.adapt(usual, self._value("distance"))
        self._compare_norms(held_out, seed)

    def _phases(self, net, n_rows):
        """Return the phases that are left to train."""
        if self.encoder_training == "separate" and self.cycle_updates_generator:
            raise ValueError(
                "cycle_updates_generator=True needs encoder_training='joint': an "
                "encoder that is trained afterwards has no part in the generator's "
                "training."
            )
        finest = net.frame.finest if net.frame else 0
        # Networks of a user do not grow, and what plays with them does not either.
        grows = finest and not self._own_networks()
        first = min(self._value("first_level"), finest) if grows else finest
        phases = [
            self._phase(net, level, fading, n_rows)
            for level in range(first, finest + 1)
            for fading in ((True, False) if level > first else (False,))
        ]
        if net.initialized_:
            level, fade = net.grown()
            done = level, not fade
            phases = [p for p in phases if (p.level, not p.fading) >= done]
        if self.encoder_training == "separate":
            steps = sum(phase.max_epochs * phase.epoch_steps for phase in phases)
            n_epochs = ceil(steps / phases[-1].epoch_steps)
            alone = {"max_epochs": n_epochs, "name": "encoder", "turns": "encoder"}
            games = [phase._replace(turns="game") for phase in phases]
            phases = [*games, phases[-1]._replace(**alone)]
        return phases

    def _phase(self, net, level, fading, n_rows):
        finest, name = 0, "training"
        if net.frame is not None:
            finest = net.frame.finest
            height, width = net.frame.sides(level)
            name = f"{height} x {width}" + (", fading in" if fading else "")
        # Coarse images are cheap, and what is learned from them first has to be right.
        most = max(_LARGEST_BATCH, self.batch_size)
        batch_size = min(self.batch_size * 2 ** (finest - level), most)
        last = level == finest and not fading
        steps = self._value("last_epochs" if last else "max_epochs")
        plan = self._plan("max_epochs", n_rows, batch_size=batch_size, steps=steps)
        return Phase(level, fading, batch_size, **plan, name=name)

    def _compare_norms(self, held_out, seed):
        """Measure whether the norm of codes is a cue, and warn where it misleads."""
        held_out = held_out.head(_ENOUGH)
        net, n = self.net_, len(held_out)
        with torch.inference_mode():
            made = net.draw(n, seed)
            codes = net.encoder_(made), net.coded(held_out)
            distances = torch.cat([origin_distance(part) for part in codes], 1)
        y = np.repeat([0, 1], n)
        each = [roc_auc_score(y, far) for far in distances.numpy(force=True)]
        self.norm_auroc_ = float(np.mean(each))
        counts = self._value("distance") == "origin" and self._value("lam") < 1
        if counts and self.norm_auroc_ < _MISLEADS:
            warnings.warn(
                "Held-out rows have longer codes than generated ones (norm_auroc_ is "
                f"{self.norm_auroc_:.2f}), while this score takes rows with short "
                "codes for anomalies. distance='mahalanobis' or lam=1 do not.",
                NormDirectionWarning,
                stacklevel=6,
            )

    # Scores, codes, rows

    def _score_batch(self, batch):
        return -self.net_.abnormality_(
            self._figures(batch),
            self._value("lam"),
            self._value("distance"),
            self._value("standardize"),
        )

    def _figures(self, batch):
        return self.net_.figures(batch, self._value("residual_norm"))

    def _terms_batch(self, batch):
        distance = self._value("distance")
        return self.net_.abnormality_.terms(self._figures(batch), distance).T

    def _encode_batch(self, batch):
        return self.net_.coded(batch).transpose(0, 1).flatten(1)

    def _reconstruct_batch(self, batch):
        return self.net_.rebuilt(self.net_.coded(batch)).mean(0)

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
        return self._compute(self._terms_batch, X)

    def sample(self, n_samples=1, *, random_state=None):
        """Draw rows from the generator.

        Parameters
        ----------
        n_samples : int, default=1
            How many; each game makes its part of them.
        random_state : int, RandomState instance or None, default=None
            Draws the noise; None stands for the `random_state` of the detector.

        Returns
        -------
        ndarray of shape (n_samples, d) or (n_samples, c, h, w)
            In the units of the training data.
        """
        check_is_fitted(self)
        net = self.net_
        n_per_game = ceil(n_samples / net.n_copies)
        made = net.draw(n_per_game, self._sampling_seed(random_state))
        rows = net.shown(net.clip(made)).transpose(0, 1).flatten(0, 1)[:n_samples]
        return self._unscaled(rows.numpy(force=True))
