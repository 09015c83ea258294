r"""HistoryAD: a detector trained against the training history of a GAN.

The paper is P. Chatillon and C. Ballester, "History-based anomaly detector: an
adversarial approach to anomaly detection", 2020; equation numbers are its own.
Its sign is kept inside: a critic is low on data and high on generated samples.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from skorch.callbacks import Callback
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import Tensor, nn

from ._base import BaseDeepDetector
from .engine import (
    AlternatingNet,
    KeepBest,
    LinearDecay,
    Player,
    Rows,
    input_gradient,
)
from .exceptions import CoverageWarning, FitInterruptedWarning
from .networks import ConvCritic, ConvGenerator, SideBySide, StackedMLP
from .objectives import (
    gradient_penalty,
    history_weights,
    total_variation_loss,
    wasserstein_critic_loss,
)
from .utils._docstring import describe_common
from .utils._sklearn_compat import Integral, Interval, Real, StrOptions

__all__ = ["HistoryAD"]

_SAVES_PER_RUN, _SAVES_PER_EPOCH = 60, 50
_IMAGE_LATENT = 64
#: Rows that are enough to estimate a mean or a coverage.
_ENOUGH = 1000
#: Steps between two looks at the held-out rows.
_VALIDATE_EVERY = 25
#: Least coverage without a warning.
_COVERED = 0.9


# Networks: k copies side by side, each with a history of its own ------------------


class TableGenerator(nn.Module):
    """Rows from noise: a linear map plus a perceptron.

    Parameters
    ----------
    n_copies, latent_dim, n_columns, width : int
        Number of copies; sizes of the noise, the row and the hidden layers.
    spread : float or None
        Standard deviation of a row's columns before training; None leaves out the
        linear map and starts from the usual small weights.
    """

    def __init__(self, n_copies, latent_dim, n_columns, width, spread):
        super().__init__()
        self.bent = StackedMLP(n_copies, (latent_dim, width, width, n_columns))
        self.straight = None
        if spread is not None:
            diagonal = torch.eye(latent_dim, n_columns).expand(n_copies, -1, -1)
            self.straight = nn.Parameter(spread * diagonal)

    def forward(self, z: Tensor) -> Tensor:
        """Map (k, n, latent_dim) to (k, n, n_columns)."""
        rows = self.bent(z)
        return rows if self.straight is None else torch.baddbmm(rows, z, self.straight)


class Detector(nn.Module):
    """A critic with its values shifted and stretched.

    Averaged critics (eq. 14) have any offset and scale, since the critics of a
    Wasserstein GAN have; eq. 10 wants values near -1 and +1.
    """

    def __init__(self, critic, n_copies):
        super().__init__()
        self.critic = critic
        self.register_buffer("shift", torch.zeros(n_copies, 1))
        self.register_buffer("stretch", torch.ones(n_copies, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (k, n, ...) to (k, n)."""
        return (self.critic(x).squeeze(-1) - self.shift) * self.stretch

    @torch.no_grad()
    def calibrate(self, data: Tensor, generated: Tensor) -> None:
        """Make the mean value -1 on `data` and +1 on `generated`, (k, n, ...).

        Where the two overlap so much that this would throw most values out of
        [-1, 1], their spread is taken for the unit instead.
        """
        values = self(data), self(generated)
        low, high = (v.mean(1, keepdim=True) for v in values)
        spread = sum(v.std(1, keepdim=True) for v in values) / 2
        self.shift.copy_((low + high) / 2)
        self.stretch.copy_(1 / torch.maximum((high - low) / 2, spread).clamp_min(1e-6))


# Nets: who plays, and in which order ----------------------------------------------


class HistoryGAN(AlternatingNet):
    """The game of eq. 2, with the gradient penalty of Gulrajani et al. (2017)."""

    def __init__(self, modules, *, latent_dim, n_critic, penalty, **engine):
        super().__init__(modules, **engine)
        self.latent_dim = latent_dim
        self.n_critic = n_critic
        self.penalty = penalty

    def players(self):
        # Momentum makes the generator swing around the data (sec. 3.2).
        adam = partial(torch.optim.Adam, lr=self.lr, betas=(0.5, 0.9), fused=True)
        return {
            "critic": Player(self.critic_, adam),
            "generator": Player(self.generator_, adam),
        }

    def turns(self, data):
        with torch.no_grad():
            generated = self.generate(self.batch_size)
        between = torch.lerp(generated, data, self.uniform_like(data))
        slope = input_gradient(self.critic_, between).flatten(2)
        distance = wasserstein_critic_loss(self.value(data), self.value(generated))
        yield "critic", (distance + self.penalty * gradient_penalty(slope)).sum()
        if (self.step_ + 1) % self.n_critic == 0:
            generated = self.generate(self.batch_size)
            yield "generator", self.value(generated).mean(1).sum()

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """Return n samples of each trained generator, (k, n, ...)."""
        self.rng_ = torch.Generator(self.device).manual_seed(seed)
        # Of one size, since batch statistics depend on it.
        batches = [self.generate(256) for _ in range(-(-n // 256))]
        del self.rng_
        return torch.cat(batches, dim=1)[:, :n]

    def value(self, x: Tensor) -> Tensor:
        """Return the critics' values, (k, n)."""
        return self.critic_(x).squeeze(-1)

    def generate(self, n: int, spread: float = 1.0) -> Tensor:
        """Return n samples of each generator; noise with deviation `spread`."""
        shape = self.n_copies, n, self.latent_dim
        z = torch.randn(shape, generator=self.rng_, device=self.device)
        return self.generator_(spread * z)

    def uniform_like(self, data: Tensor) -> Tensor:
        """Return one number in [0, 1] per row, broadcastable against `data`."""
        shape = data.shape[:2] + (1,) * (data.ndim - 2)
        return torch.rand(shape, generator=self.rng_, device=self.device)


class History(Callback):
    """The history of a GAN: the mean critic, and samples of all its generators.

    No network is kept. The weight of each save point is known in advance, so the
    average of eq. 14 is a running sum, and the samples that the mixture of eq. 3
    takes from a save point are drawn when it is reached.

    Parameters
    ----------
    duration : float
        Time that the run takes, in the unit of `alpha`.
    n_saves : int
        Number of intervals between save points.
    alpha, beta : float
        Of eqs 3 and 13.
    n_samples : int
        Samples of the history, per generator.
    wide : float or None
        Deviation of the noise for every other sample (the paper's experimental
        case 2); None for the usual noise in all of them (case 1).
    earlier : History or None
        History of the runs before this one, which goes on here.

    Attributes
    ----------
    times_ : Tensor of shape (n_saves + 1,)
        All save points, those of earlier runs included.
    critic_ : dict of str to Tensor
        The averaged weights of the critics (eq. 14).
    samples_ : Tensor of shape (k, n_samples, ...)
        Drawn from the history (eq. 3).
    """

    def __init__(self, duration, n_saves, alpha, beta, n_samples, wide, earlier=None):
        self.duration = duration
        self.n_saves = n_saves
        self.alpha = alpha
        self.beta = beta
        self.n_samples = n_samples
        self.wide = wide
        self.earlier = earlier

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Fix the weight and the number of samples of each save point."""
        shares = torch.linspace(0, 1, self.n_saves + 1, dtype=torch.float64)
        earlier = self.earlier
        known = shares[:0] if earlier is None else earlier.times_
        start = 0.0 if earlier is None else float(known[-1])
        self.times_ = torch.cat([known, start + self.duration * shares])
        weights = history_weights(self.times_, self.alpha, self.beta)
        ends = torch.round(weights.cumsum(0) * self.n_samples).long()
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        old, self.mass_, self.sum_, self.parts_ = len(known), 0.0, {}, []
        if earlier is not None:
            order = torch.randperm(earlier.samples_.shape[1], generator=net.rng_)
            samples = earlier.samples_[:, order[: int(counts[:old].sum())]]
            self._add(earlier.critic_, float(weights[:old].sum()), samples)
        steps = net.step_ + torch.round(shares * net.n_steps).long()
        self.due_ = list(zip(steps, weights[old:], counts[old:], strict=True))

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Save what is due before this step."""
        self._save(net)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Save what is due at the end, and close the history."""
        self._save(net)
        if self.mass_ == 0:  # interrupted before the first save point that counts
            self._remember(net, 1.0, self.n_samples)
        self.critic_ = {k: v / self.mass_ for k, v in self.sum_.items()}
        self.samples_ = torch.cat(self.parts_, dim=1)
        del self.sum_, self.parts_, self.due_, self.earlier

    def _save(self, net):
        while self.due_ and self.due_[0][0] == net.step_:
            _, weight, count = self.due_.pop(0)
            if weight > 0:
                self._remember(net, float(weight), int(count))

    @torch.no_grad()
    def _remember(self, net, weight, count):
        # Batch statistics of a handful of samples would be no statistics.
        spread = torch.ones(max(count, net.batch_size), 1, device=net.device)
        if self.wide is not None:
            spread[::2] = self.wide
        samples = net.generate(len(spread), spread)[:, :count]
        self._add(net.critic_.state_dict(), weight, samples)

    def _add(self, critic, weight, samples):
        self.mass_ += weight
        for name, value in critic.items():
            self.sum_[name] = self.sum_.get(name, 0) + weight * value.double()
        # Half the bytes will do for pixels.
        self.parts_.append(samples.half() if samples.ndim > 3 else samples)


class DetectorNet(AlternatingNet):
    """The detector, trained to tell data from the history (eq. 10)."""

    def __init__(self, modules, *, lam, weight_decay, **engine):
        super().__init__(modules, **engine)
        self.lam = lam
        self.weight_decay = weight_decay

    def players(self):
        adam = partial(
            torch.optim.AdamW,
            lr=self.lr,
            betas=(0.5, 0.999),
            weight_decay=self.weight_decay,
            fused=True,
        )
        return {"detector": Player(self.detector_, adam)}

    def turns(self, data):
        yield "detector", self.loss(data, self.draw(data.shape[:2]))

    def validate(self):
        return {"valid_loss": self.loss(*self.held_out_)}

    def loss(self, data: Tensor, generated: Tensor) -> Tensor:
        """Return the loss of eq. 10, summed over the copies."""
        sizes = data.shape[1], generated.shape[1]
        on_data, on_history = self.value(data, generated).split(sizes, dim=1)
        return total_variation_loss(on_data, on_history, self.lam).sum()

    def value(self, *parts: Tensor) -> Tensor:
        """Return the detectors' values on parts of shape (k, n_i, ...)."""
        return self.detector_(torch.cat(parts, dim=1))

    def for_all(self, rows: Tensor) -> Tensor:
        """Return the same rows for each copy, (k, n, ...)."""
        return rows.expand(self.n_copies, *rows.shape)

    def draw(self, shape) -> Tensor:
        """Return samples of the history for each copy."""
        m = len(self.samples_)
        index = torch.randint(m, shape, generator=self.rng_, device=self.device)
        return self.samples_[index].float()

    def run(self, rows, *, samples, held_out, **plan):
        """Train on `rows` against `samples`, (m, ...), of the history.

        A tenth of `samples`, and the rows `held_out`, serve validation alone.
        """
        share = max(len(samples) // 10, 1)
        pair = held_out.head(_ENOUGH), samples[:share][:_ENOUGH].float()
        self.held_out_ = [self.for_all(part) for part in pair]
        self.samples_ = samples[share:]
        try:
            return super().run(rows, **plan)
        finally:
            del self.samples_, self.held_out_  # data has no place in a pickle


# Stages ---------------------------------------------------------------------------


def record_history(gan, rows, history, plan, callbacks=()):
    """Train the GAN, and return it with its history.

    Nothing here depends on `lam` and the other parameters of the detector, so that
    fits which differ only in these can share the result.
    """
    gan.run(rows, callbacks=[LinearDecay(), history, *callbacks], **plan)
    return gan, history


def make_stack(n_copies, build):
    """Return `n_copies` modules side by side."""
    return SideBySide(build() for _ in range(n_copies))


def make_detector(n_copies, build):
    """Return a detector around new critics."""
    return Detector(build(), n_copies)


def coverage(data: Tensor, samples: Tensor) -> float:
    """Return the share of `data` that lies within reach of `samples`.

    The paper's hypothesis (eq. 4) is that the history covers the data. A row is
    covered if its nearest sample is no further away than the nearest neighbour of
    most samples (of all but 5 % of them) is from these.

    Parameters
    ----------
    data : Tensor of shape (n, ...)
        Rows that the generators have not seen.
    samples : Tensor of shape (m, ...)
        Samples of the history.

    Returns
    -------
    float
        In [0, 1].
    """
    data, samples = data.flatten(1), samples.flatten(1)
    among = torch.cdist(samples, samples).fill_diagonal_(torch.inf).amin(1)
    reach = torch.quantile(among, 0.95)
    return float((torch.cdist(data, samples).amin(1) <= reach).float().mean())


# The estimator --------------------------------------------------------------------


@describe_common(
    auto_steps="1200",
    batch_size="64",
    lr="0.002",
    roles='``{"generator": f, "critic": g}``, where ``f(latent_dim, shape)`` and '
    "``g(shape)`` return modules that map (n, latent_dim) to (n, *shape) and "
    "(n, *shape) to (n, 1)",
    width="Units of the hidden layers of tables; channels of the finest layer of "
    "images (64 gives about the paper's 5 million parameters at 32 x 32). "
    '"auto" is 64 and 8.',
    auto_offset="0, between the values -1 and +1 that eq. 10 aims at.",
    stage="the GAN and its history",
    later="`lam`, say",
)
class HistoryAD(BaseDeepDetector):
    """x

    Parameters
    ----------
    %(common_parameters)s

    Attributes
    ----------
    %(common_attributes)s
    """

    _auto_values = {  # noqa: RUF012
        "n_histories": (4, 3),
        "init": ("average", "random"),
        "max_epochs": (1200, 500),
        "detector_epochs": (300, 1250),
        "batch_size": (64, 32),
        "lr": (2e-3, 5e-4),
        "detector_lr": (3e-5, 1e-3),
        "width": (64, 8),
        "n_samples": (2048, 3000),
    }
    _kept_classes = (History,)

    _parameter_constraints: dict = {  # noqa: RUF012
        **BaseDeepDetector._parameter_constraints,
        "lam": [Interval(Real, 0, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "time_unit": [StrOptions({"run", "epoch"})],
        "saves_per_epoch": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "n_histories": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "spread": [Interval(Real, 0, None, closed="neither"), None],
        "wide_latent": [Interval(Real, 1, None, closed="neither"), None],
        "init": [StrOptions({"auto", "average", "random"})],
        "detector_epochs": [
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "detector_lr": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"auto"}),
        ],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "n_critic": [Interval(Integral, 1, None, closed="left")],
        "penalty": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        *,
        lam=10.0,
        alpha=0.0,
        beta=3.0,
        time_unit="run",
        saves_per_epoch="auto",
        n_histories="auto",
        spread=3.0,
        wide_latent=None,
        init="auto",
        detector_epochs="auto",
        detector_lr="auto",
        weight_decay=1e-4,
        n_critic=1,
        penalty=10.0,
        latent_dim="auto",
        max_epochs="auto",
        batch_size="auto",
        lr="auto",
        scaling="auto",
        image_shape=None,
        architecture="auto",
        width="auto",
        contamination="auto",
        device="auto",
        precision="float32",
        callbacks=None,
        memory=None,
        warm_start=False,
        verbose=0,
        random_state=None,
    ):
        self.lam = lam
        self.alpha = alpha
        self.beta = beta
        self.time_unit = time_unit
        self.saves_per_epoch = saves_per_epoch
        self.n_histories = n_histories
        self.spread = spread
        self.wide_latent = wide_latent
        self.init = init
        self.detector_epochs = detector_epochs
        self.detector_lr = detector_lr
        self.weight_decay = weight_decay
        self.n_critic = n_critic
        self.penalty = penalty
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
        self.memory = memory
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    # Networks

    def _make_nets(self, device, seed):
        engine = {
            "n_copies": self._value("n_histories"),
            "batch_size": self._value("batch_size"),
            "device": device,
            "precision": self.precision,
        }
        latent_dim = self.latent_dim
        if latent_dim == "auto":
            table = len(self._row_shape) == 1
            latent_dim = self._row_shape[0] if table else _IMAGE_LATENT
        builders = self._builders(latent_dim, engine["n_copies"])
        gan = HistoryGAN(
            builders,
            latent_dim=latent_dim,
            n_critic=self.n_critic,
            penalty=self.penalty,
            lr=self._value("lr"),
            seed=seed,
            **engine,
        )
        build = partial(make_detector, engine["n_copies"], builders["critic"])
        net = DetectorNet(
            {"detector": build},
            lam=self.lam,
            weight_decay=self.weight_decay,
            lr=self._value("detector_lr"),
            seed=seed + 1,
            **engine,
        )
        return {"gan_": gan, "net_": net}

    def _builders(self, latent_dim, k):
        """Return what builds k generators, and k critics, side by side."""
        shape, width = self._row_shape, self._value("width")
        if self._family(("generator", "critic")) == "mlp":
            sizes = latent_dim, *shape, width, self.spread
            builders = {
                "generator": partial(TableGenerator, k, *sizes),
                "critic": partial(StackedMLP, k, (*shape, width, width, 1)),
            }
        else:
            bounded = self.scaling in ("auto", "minmax")
            generator = partial(ConvGenerator, latent_dim, shape, width, bounded)
            critic = partial(ConvCritic, shape, width, 8 * width)
            builders = {
                "generator": partial(make_stack, k, generator),
                "critic": partial(make_stack, k, critic),
            }
        if isinstance(self.architecture, dict):
            sizes = {"generator": (latent_dim, shape), "critic": (shape,)}
            for role, own in self.architecture.items():
                builders[role] = partial(make_stack, k, partial(own, *sizes[role]))
        return builders

    # Training

    def _train(self, rows, y, seed):
        goes_on = self._goes_on()
        nets = self._make_nets(str(rows.device), seed)
        if goes_on:
            nets = {name: deepcopy(getattr(self, name)) for name in nets}
        order = np.random.RandomState(seed).permutation(len(rows))
        order = torch.from_numpy(order).to(rows.device)
        n_held_out = max(len(rows) // 10, 1)
        held_out, train = rows.take(order[:n_held_out]), rows.take(order[n_held_out:])
        plans = [
            self._plan("max_epochs", len(train)),
            self._plan("detector_epochs", len(train), longest=_VALIDATE_EVERY),
        ]
        n_steps = sum(plan["max_epochs"] * plan["epoch_steps"] for plan in plans)
        with self._progress(n_steps) as callbacks:
            cached = check_memory(self.memory).cache(
                record_history, ignore=["callbacks"]
            )
            self.gan_, self._past = cached(
                nets["gan_"],
                train,
                self._make_history(
                    plans[0]["max_epochs"], self._past if goes_on else None
                ),
                plans[0],
                callbacks=callbacks("history"),
            )
            self.net_ = nets["net_"]
            self._fit_detector(train, held_out, plans[1], callbacks("detector"))
        self.history_ = [
            *self._records(self.gan_, "history"),
            *self._records(self.net_, "detector"),
        ]
        self.n_iter_ = len(self.history_)

    def _make_history(self, n_epochs, earlier):
        in_run = self.time_unit == "run"
        n_saves = self.saves_per_epoch
        if n_saves == "auto":
            n_saves = _SAVES_PER_RUN if in_run else _SAVES_PER_EPOCH * n_epochs
        else:
            n_saves *= n_epochs
        return History(
            duration=1.0 if in_run else float(n_epochs),
            n_saves=n_saves,
            alpha=self.alpha,
            beta=self.beta,
            n_samples=self._auto_values["n_samples"][len(self._row_shape) > 1],
            wide=self.wide_latent,
            earlier=earlier,
        )

    def _fit_detector(self, train, held_out, plan, callbacks):
        net, past = self.net_, self._past
        samples = past.samples_.flatten(0, 1)
        order = np.random.RandomState(net.seed).permutation(len(samples))
        samples = samples[torch.from_numpy(order).to(samples.device)]
        few = samples[:_ENOUGH].float()
        if not net.initialized_:
            net.initialize()
            if self._value("init") == "average":
                net.detector_.critic.load_state_dict(past.critic_)
                pair = train.head(_ENOUGH), few
                net.detector_.calibrate(*map(net.for_all, pair))
        self.coverage_ = coverage(held_out.head(_ENOUGH), few)
        if self.coverage_ < _COVERED:
            warnings.warn(
                f"The history covers only {self.coverage_:.0%} of held-out training "
                "rows; scores of the others rest on extrapolation. A wider start "
                "(`spread`), `wide_latent` or a longer training help.",
                CoverageWarning,
                stacklevel=3,
            )
        if self.gan_.interrupted_:
            plan = plan | {"max_epochs": 0}
        callbacks = [KeepBest(), *callbacks]
        net.run(train, samples=samples, held_out=held_out, callbacks=callbacks, **plan)
        if self.gan_.interrupted_ or net.interrupted_:
            warnings.warn(
                "Training was interrupted; the detector is what it was at that time.",
                FitInterruptedWarning,
                stacklevel=3,
            )

    # Scores and samples

    def _auto_offset(self, scores):
        return 0.0

    def _score_batch(self, batch):
        return -self.net_.value(self.net_.for_all(batch)).mean(0)

    def sample(self, n_samples=1, *, from_history=False, random_state=None):
        """Draw rows from the trained generators, or from their history.

        Parameters
        ----------
        n_samples : int, default=1
            How many.
        from_history : bool, default=False
            Whether to draw from the history (eq. 3), the detector's idea of
            anomalies, and not from the generators as they are after training.
            The history is a finite sample; it is drawn from with replacement.
        random_state : int, RandomState instance or None, default=None
            Draws the samples; None stands for the `random_state` of the detector.

        Returns
        -------
        ndarray of shape (n_samples, d) or (n_samples, c, h, w)
            In the units of the training data.
        """
        check_is_fitted(self)
        chosen = self.random_state if random_state is None else random_state
        rng = check_random_state(chosen)
        pool = self._past.samples_
        if not from_history:
            per_copy = -(-n_samples // len(pool))
            pool = self.gan_.draw(per_copy, seed=rng.randint(2**31 - 1))
        pool = pool.flatten(0, 1)
        chosen = rng.choice(len(pool), n_samples, replace=from_history)
        return self._unscaled(pool[torch.from_numpy(chosen)].float().cpu().numpy())
