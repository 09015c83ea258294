r"""HistoryAD: a detector trained against the training history of a GAN.

The paper is P. Chatillon and C. Ballester, "History-based anomaly detector: an
adversarial approach to anomaly detection", 2020; equation numbers are its own.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Any, ClassVar, Literal

import torch
from joblib import Memory
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from .._base import BaseDeepDetector
from .._mixins import OcclusionMixin
from ..engine import KeepBest
from ..exceptions import CoverageWarning
from ..networks import ConvCritic, ConvGenerator, Role, StackedCritic
from ..objectives import coverage
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe
from ..utils._kinds import IMAGE, TABLE, ByKind
from ..utils._parameters import Auto, parameter
from ..utils._random import own_random_state
from ..utils._state import on_shallow_copy
from ..utils._warnings import warn
from ._net import ENOUGH, DetectorNet, History, HistoryGAN, record_history
from ._networks import Detector, TableGenerator

_SAVES_PER_RUN, _SAVES_PER_EPOCH = 60, 50
#: Maximum standard deviation, so that squares of samples are precise in float32.
_WIDEST = 1e6
#: Decay of the moving average of the detector's weights, which oscillate.
_DECAY = 0.99
#: Validations without a lower loss; new detectors may stay on a plateau for long.
_PATIENCE = 20
#: Steps between two validations.
_VALIDATE_EVERY = 100


@describe(
    auto_steps="1200 (tables) or 3000 (images)",
    auto_batch=" Steps of the detector take twice as many.",
    auto_lr='It falls to a tenth. "auto" is 2e-3 for tables, 5e-4 for images.',
    width="Hidden units for tables, channels of the finest layer for images, where 64 "
    "gives generator and critic 3 and 6 million parameters at 32 x 32. "
    '"auto" is 64 or 8.',
    auto_offset="0, which lies between the -1 and +1 that eq. 10 aims at",
)
class HistoryAD(OcclusionMixin, BaseDeepDetector):
    r"""Detector trained against the training history of a GAN.

    A Wasserstein GAN is trained on normal samples. On its way to the data, its
    generator makes samples that are not quite normal. The mixture of all its states,
    the history (eq. 3), stands in for anomalies that nobody has collected. A critic,
    the detector, then learns to tell data from history by their total variation
    distance (eq. 10):

    .. math:: \min_D \; E_{data}[D] - E_{hist}[D] + \lambda \,
              E_{(data + hist) / 2}\big[d(D, [-1, 1])^2\big]

    It starts from the average of the GAN's critics (eq. 14), with the weights of the
    history. The score is :math:`-D(x)`: near 1 for normal samples, near -1 for
    anomalies. Training data should be free of anomalies; `y` is not read.

    Parameters
    ----------
    %(parameters)s

    Attributes
    ----------
    coverage_ : float
        Share of held-out samples that the history covers (the paper's hypothesis,
        eq. 4), in [0, 1]. Below 0.9 for tables, and 0.5 for images, there is a
        :class:`~skanomaly.exceptions.CoverageWarning`.
    gan_ : skorch.NeuralNet
        The GAN, with the modules ``generator_`` and ``critic_``.
    gan_history_ : object
        The history of the GAN: ``times_`` of its save points in `time_unit`, the
        average ``critic_`` (eq. 14) as a dict of tensors, and scaled ``samples_``
        (eq. 3), a tensor of shape (n_estimators, n_history, ...).
    history_samples_ : ndarray of shape (n_estimators * n_history, n_features) or \
            (n_estimators * n_history, channels, height, width)
        Samples of the history (eq. 3), one ensemble member after the other, in the
        units of the training data. There are 2048 per member for tables, 3000 for
        images.
    usual_image_ : ndarray of shape (channels, height, width), float32
        For images: the mean of scaled training images, which ``anomaly_map`` compares
        others with.
    %(common_attributes)s

    See Also
    --------
    skanomaly.metrics.TrainingHistoryDisplay : Shows the losses of both stages.

    References
    ----------
    .. [1] P. Chatillon and C. Ballester, "History-based anomaly detector: an
       adversarial approach to anomaly detection", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import HistoryAD
    >>> X = np.random.default_rng(0).normal(size=(300, 2))
    >>> detector = HistoryAD(random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [9.0, -9.0]])
    array([ 1, -1])
    """

    _auto_values: ClassVar[ByKind] = {
        TABLE: {
            "alpha": 0.0,
            "beta": 1.0,
            "init": "average",
            "max_epochs": 1200,
            "detector_epochs": 0,
            "lr": 2e-3,
            "detector_lr": 3e-5,
            "latent_dim": 16,
            "width": 64,
        },
        IMAGE: {
            "alpha": 0.3,
            "beta": 0.0,
            "init": "random",
            "max_epochs": 3000,
            "detector_epochs": 1500,
            "lr": 5e-4,
            "detector_lr": 1e-3,
            "latent_dim": 64,
            "width": 8,
        },
    }
    _settings: ClassVar[ByKind] = {
        TABLE: {"n_samples": 2048, "covered": 0.9},
        IMAGE: {"n_samples": 3000, "covered": 0.5},
    }
    _roles = {  # noqa: RUF012
        "generator": Role(("latent_dim", "shape"), ("latent_dim",), "shape"),
        "critic": Role(("shape",), ("shape",), ""),
    }
    _kept_classes = (History,)

    _fixed_by_fit = (*BaseDeepDetector._fixed_by_fit, "spread")

    lam: float = parameter(
        [sk.NONNEGATIVE],
        default=10.0,
        doc="""
        Weight of the bound on the detector's values (eqs 9 and 10), at least 0.
        """,
    )
    alpha: float | Auto = parameter(
        sk.AUTO_NONNEGATIVE,
        default="auto",
        doc="""
        Start of the history (eq. 3), a time of at least 0: earlier states do not count.
        "auto" is 0 for tables, and 0.3 of the run for images.
        """,
    )
    beta: float | Auto = parameter(
        sk.AUTO_NONNEGATIVE,
        default="auto",
        doc="""
        Decay rate of the weights of later states (eq. 3), per unit of time, at least 0.
        "auto" is 1 per run for tables, and 0 for images.
        """,
    )
    time_unit: Literal["run", "epoch"] = parameter(
        [sk.StrOptions({"run", "epoch"})],
        default="run",
        doc="Unit of `alpha` and `beta`: the whole run, or an epoch as in the paper.",
    )
    saves_per_epoch: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Save points of the history in each epoch. "auto" spreads 60 over the run, or
        with ``time_unit="epoch"`` takes the paper's 50 per epoch.
        """,
    )
    n_estimators: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Number of ensemble members, each a GAN with its own history and detector. The
        score is their mean. "auto" is 1 for images; for tables 8, and fewer from 65
        columns on (512 / n_features).
        """,
    )
    spread: float | None = parameter(
        [sk.Interval(sk.Real, 0, _WIDEST, closed="right"), None],
        default=5.0,
        doc="""
        Standard deviation of generated samples of tables before training, in standard
        deviations of the scaled data. A history that starts narrower than the data lies
        inside them, which makes the scores wrong. None leaves the usual initial
        weights, as in the paper.
        """,
    )
    wide_latent: float | None = parameter(
        [sk.Interval(sk.Real, 1, _WIDEST, closed="right"), None],
        default=None,
        doc="""
        Standard deviation of the noise of every other sample of the history, above 1
        (the paper's experimental case 2). None is case 1.
        """,
    )
    init: Literal["auto", "average", "random"] = parameter(
        [sk.StrOptions({"auto", "average", "random"})],
        default="auto",
        doc="""
        Initial weights of the detector: the average of the critics (eq. 14), or random.
        "auto" is "random" for images if the detector is trained, else "average".
        """,
    )
    detector_epochs: int | Auto = parameter(
        [sk.Interval(sk.Integral, 0, None, closed="left"), sk.AUTO],
        default="auto",
        doc="""
        Number of epochs of the detector, each with as many steps as one of the GAN; 0
        keeps its initial weights (the paper's "no training"). "auto" is 0 for tables,
        where training harms as often as it helps, and 1500 steps for images. The
        weights with the lowest loss on held-out samples are kept.
        """,
    )
    detector_lr: float | Auto = parameter(
        sk.AUTO_POSITIVE,
        default="auto",
        doc="""
        Learning rate of the detector. "auto" is 3e-5 for tables, 1e-3 for images.
        """,
    )
    weight_decay: float = parameter(
        [sk.Interval(sk.Real, 0, 1, closed="both")],
        default=0.01,
        doc="Decay of the detector's weights (AdamW), in [0, 1]. The paper has none.",
    )
    n_critic: int = parameter(
        [sk.COUNT],
        default=1,
        doc="Steps of the critic for each step of the generator.",
    )
    memory: str | Memory | None = parameter(
        sk.MEMORY,
        default=None,
        doc="""
        Cache of the trained GAN and its history. Fits that differ only in parameters of
        the detector, as in a grid search over `lam`, share them. Needs an integer
        `random_state`.
        """,
    )
    latent_dim: int | Auto = parameter(
        sk.AUTO_COUNT,
        default="auto",
        doc="""
        Length of the generators' noise. "auto" is 16 for tables, 64 for images.
        """,
    )
    batch_size: int = 32

    # Networks

    def _make_nets(self, device, seed):
        k = self._ensemble_size(n_columns=512)
        builders = self._builders(k)
        engine = self._engine(device, seed) | {"n_estimators": k}
        gan = HistoryGAN(
            builders,
            noise_dim=self._noise_dim(),
            n_critic=self.n_critic,
            lr=self._value("lr"),
            **engine,
        )
        # A step of the detector costs little compared with one of the GAN.
        engine |= {"batch_size": 2 * engine["batch_size"], "seed": seed + 1}
        net = DetectorNet(
            {"detector": partial(Detector, k, builders["critic"])},
            lam=self.lam,
            weight_decay=self.weight_decay,
            lr=self._value("detector_lr"),
            **engine,
        )
        return {"gan_": gan, "net_": net}

    def _noise_dim(self):
        """Return the length of a noise vector, which is longer for wide tables."""
        if self._kind != TABLE or "generator" in self._own_networks():
            return self._latent_dim()
        (n_columns,), width = self._row_shape, self._value("width")
        return TableGenerator.noise_dim(
            self._latent_dim(), n_columns, width, self.spread
        )

    def _table_builders(self, n_estimators):
        (n_columns,), width = self._row_shape, self._value("width")
        sizes = self._latent_dim(), n_columns, width, self.spread
        return {
            "generator": partial(TableGenerator, n_estimators, *sizes),
            "critic": partial(
                StackedCritic, n_estimators, (n_columns, width, width, 1)
            ),
        }

    def _conv_builders(self):
        shape, width = self._row_shape, self._value("width")
        sizes = self._latent_dim(), shape, width, self._bounded()
        return {
            "generator": partial(ConvGenerator, *sizes),
            "critic": partial(ConvCritic, shape, width),
        }

    # Training

    def _train(self, rows, reference, held_out, seed):
        self._learn_usual_image(rows)
        train, held_out = self._validation(rows, held_out, seed)
        nets = self._nets_to_train(str(rows.device), seed)
        first = self._plan("max_epochs", len(train))
        second = self._plan("detector_epochs", len(train), length=_VALIDATE_EVERY)
        with self._progress(first, second) as callbacks:
            history = self._make_history(first["max_epochs"])
            stage = record_history, nets["gan_"], train, history, first
            keep = partial(_keep, history=history, train=train, held_out=held_out)
            named = callbacks("history", None if self.init == "random" else keep)
            self.gan_, self.gan_history_ = self._cached(*stage, callbacks=named)
            self._record(history=self.gan_)
            if self.gan_.interrupted_:
                second["max_epochs"] = 0
            self.net_ = nets["net_"]
            named = callbacks("detector", type(self)._keep_net)
            self._fit_detector(train, held_out, second, named)
        self._record(detector=self.net_)

    def _make_history(self, n_epochs):
        in_run, per_epoch = self.time_unit == "run", self.saves_per_epoch
        length = 1.0 if in_run else float(n_epochs)
        if per_epoch == "auto":
            per_epoch = _SAVES_PER_RUN / n_epochs if in_run else _SAVES_PER_EPOCH
        # "auto" stands for a share of the run, and for a rate per run.
        alpha = self._value("alpha") * (length if self.alpha == "auto" else 1)
        beta = self._value("beta") / (length if self.beta == "auto" else 1)
        n_saves, n_samples = round(per_epoch * n_epochs), self._setting("n_samples")
        earlier = self.gan_history_ if self._continues() else None
        return History(
            length, n_saves, alpha, beta, n_samples, self._given("wide_latent"), earlier
        )

    def _fit_detector(self, train, held_out, plan, callbacks):
        net, history = self.net_, self.gan_history_
        if not net.initialized_:
            net.initialize()
        untrained = self.init == "auto" and plan["max_epochs"] == 0
        if net.step_ == 0 and (untrained or self._value("init") == "average"):
            net.detector_.critic.load_state_dict(history.critic_)
            data, samples = train.head(ENOUGH), history.samples_[:, :ENOUGH]
            net.detector_.calibrate(net.for_members(data), samples.to(data))
        samples = history.samples_.transpose(0, 1).flatten(0, 1).to(net.device)
        self.coverage_ = coverage(held_out.head(ENOUGH), samples[:ENOUGH].float())
        if self.coverage_ < self._setting("covered"):
            warn(
                f"The history covers {self.coverage_:.0%} of held-out samples; the "
                "scores of the others are extrapolated. Try more epochs, or, for "
                "tables, a wider `spread`.",
                CoverageWarning,
            )
        callbacks = [KeepBest(patience=_PATIENCE, decay=_DECAY), *callbacks]
        net.train(
            train, samples=samples, held_out=held_out, callbacks=callbacks, **plan
        )

    # Scores and samples

    def _natural_offset(self):
        return 0.0

    def _score_batch(self, batch):
        return -self.net_.value(self.net_.for_members(batch)).mean(0)

    @property
    def history_samples_(self) -> NDArray[Any]:
        """Samples of the history, in the units of the training data."""
        check_is_fitted(self)
        return self._unscaled(self._scaled_history().float().numpy())

    def _scaled_history(self):
        return self.gan_history_.samples_.flatten(0, 1)

    @on_shallow_copy
    def sample(
        self,
        n_samples: int = 1,
        *,
        from_history: bool = False,
        random_state: int | RandomState | None = None,
    ) -> NDArray[Any]:
        """Draw samples from the trained generators, or from their history.

        Parameters
        ----------
        n_samples : int, default=1
            Number of samples.
        from_history : bool, default=False
            Whether to draw from ``history_samples_``, with replacement, and not from
            the generators as they are after training.
        random_state : int, RandomState instance or None, default=None
            Draws the samples; None stands for the `random_state` of the detector.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            In the units of the training data.
        """
        check_is_fitted(self)
        sk.check_count(n_samples, "n_samples")
        rng = own_random_state(
            self.random_state if random_state is None else random_state
        )
        pool = self._scaled_history()
        if not from_history:
            n_per_member = ceil(n_samples / self.gan_.n_estimators)
            with self._computing():
                pool = self.gan_.sample(n_per_member, seed=rng.randint(2**31 - 1))
            pool = pool.flatten(0, 1)
        chosen = torch.from_numpy(
            rng.choice(len(pool), n_samples, replace=from_history)
        )
        return self._unscaled(pool[chosen].float().numpy(force=True))


def _keep(detector, gan, history, train, held_out):
    """Keep a GAN in training, with a detector that is not trained."""
    detector.net_ = detector._nets_to_train(str(train.device), gan.seed)["net_"]
    detector.gan_, detector.gan_history_ = gan, history.so_far(gan)
    detector._fit_detector(train, held_out, {"max_epochs": 0, "epoch_steps": 1}, [])
