r"""HistoryAD: a detector trained against the training history of a GAN.

The paper is P. Chatillon and C. Ballester, "History-based anomaly detector: an
adversarial approach to anomaly detection", 2020; equation numbers are its own.
Its sign is kept inside: a critic is low on data and high on generated samples.
"""

from __future__ import annotations

import warnings
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
        """Make the mean value -1 on `data` and +1 on `generated`."""
        low, high = self(data).mean(1, keepdim=True), self(generated).mean(1, keepdim=True)
        self.shift.copy_((low + high) / 2)
        self.stretch.copy_(2 / (high - low).clamp_min(1e-6))


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
    start, duration : float
        Time at the start of the run and from there to its end.
    n_saves : int
        Number of intervals between save points.
    alpha, beta : float
        Of eqs 3 and 13, in the same unit of time.
    n_samples : int
        Samples of the history, per generator.
    wide : float or None
        Deviation of the noise for every other sample (the paper's experimental
        case 2); None for the usual noise in all of them (case 1).
    earlier : History or None
        History of the runs before this one.

    Attributes
    ----------
    times_ : Tensor of shape (n_saves + 1,)
        All save points, those of earlier runs included.
    critic_ : dict of str to Tensor
        The averaged weights of the critics (eq. 14).
    samples_ : Tensor of shape (k, n_samples, ...)
        Drawn from the history (eq. 3).
    """

    def __init__(
        self, start, duration, n_saves, alpha, beta, n_samples, wide, earlier=None
    ):
        self.start = start
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
        times = self.start + self.duration * shares
        if self.earlier is not None:
            times = torch.cat([self.earlier.times_, times])
        weights = history_weights(times, self.alpha, self.beta)
        ends = torch.round(weights.cumsum(0) * self.n_samples).long()
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        n_old = len(times) - len(shares)
        self.times_, self.mass_, self.sum_, self.parts_ = times, 0.0, {}, []
        if self.earlier is not None:
            order = torch.randperm(self.n_samples, generator=net.rng_)
            samples = self.earlier.samples_[:, order[: int(counts[:n_old].sum())]]
            self._add(self.earlier.critic_, float(weights[:n_old].sum()), samples)
        steps = net.step_ + torch.round(shares * net.n_steps).long()
        self.due_ = zip(steps, weights[n_old:], counts[n_old:], strict=True)
        self.next_ = next(self.due_)

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
        del self.sum_, self.parts_, self.due_, self.next_, self.earlier

    def _save(self, net):
        while self.next_ is not None and self.next_[0] == net.step_:
            _, weight, count = self.next_
            if weight > 0:
                self._remember(net, float(weight), int(count))
            self.next_ = next(self.due_, None)

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

    def draw(self, shape) -> Tensor:
        """Return samples of the history for each copy."""
        m = len(self.samples_)
        index = torch.randint(m, shape, generator=self.rng_, device=self.device)
        return self.samples_[index].float()

    def run(self, rows, *, samples, held_out, **plan):
        """Train on `rows` against `samples`, (m, ...), of the history.

        A tenth of `samples`, and the rows `held_out`, serve validation alone.
        """
        share, several = max(len(samples) // 10, 1), (self.n_copies,)
        first = torch.arange(min(len(held_out), 2000), device=self.device)
        pair = held_out[first], samples[:share][:2000].float()
        self.held_out_ = [part.expand(several + part.shape) for part in pair]
        self.samples_ = samples[share:]
        try:
            return super().run(rows, **plan)
        finally:
            del self.samples_, self.held_out_  # data has no place in a pickle


# Stages ---------------------------------------------------------------------------


def record_history(gan, rows, history, plan, callbacks=()):
    """Train the GAN; return it, its history and the records of its epochs.

    What `lam` and all that concerns the detector alone cannot change: the result
    can be kept and shared between fits.
    """
    gan.run(rows, callbacks=[LinearDecay(), history, *callbacks], **plan)
    return gan, history


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

    _auto_steps = 1200

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
        "init": [StrOptions({"average", "random"})],
        "detector_epochs": [
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "detector_lr": [Interval(Real, 0, None, closed="neither")],
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
        init="average",
        detector_epochs="auto",
        detector_lr=1e-4,
        weight_decay=1e-4,
        n_critic=1,
        penalty=10.0,
        latent_dim="auto",
        max_epochs="auto",
        batch_size=64,
        lr=2e-3,
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
        shape = self._row_shape
        table, k = len(shape) == 1, self._n_histories()
        latent_dim = self.latent_dim
        if latent_dim == "auto":
            latent_dim = shape[0] if table else 64
        width = self.width
        if width == "auto":
            width = 64 if table else 8
        if table:
            generator = partial(
                TableGenerator, k, latent_dim, shape[0], width, self.spread
            )
            critic = partial(StackedMLP, k, (shape[0], width, width, 1))
        else:
            bounded = self.scaling in ("auto", "minmax")
            generator = partial(ConvGenerator, latent_dim, shape, width, bounded)
            critic = partial(ConvCritic, shape, width, 64)
            generator = partial(side_by_side, k, generator)
            critic = partial(side_by_side, k, critic)
        engine = {
            "batch_size": self.batch_size,
            "n_copies": k,
            "device": device,
            "precision": self.precision,
        }
        gan = HistoryGAN(
            {"generator": generator, "critic": critic},
            latent_dim=latent_dim,
            n_critic=self.n_critic,
            penalty=self.penalty,
            lr=self.lr,
            seed=seed,
            **engine,
        )
        net = DetectorNet(
            {"detector": partial(make_detector, critic, k)},
            lam=self.lam,
            weight_decay=self.weight_decay,
            lr=self.detector_lr,
            seed=seed + 1,
            **engine,
        )
        return {"gan_": gan, "net_": net}

    def _n_histories(self):
        if self.n_histories != "auto":
            return self.n_histories
        return 4 if len(self._row_shape) == 1 else 1

    # Training

    def _train(self, rows, y, seed):
        device = str(rows.device)
        order = torch.randperm(
            len(rows), generator=torch.Generator().manual_seed(seed)
        ).to(rows.device)
        n_held = max(len(rows) // 10, 1)
        held_out, train = rows.take(order[:n_held]), rows.take(order[n_held:])
        nets = self._make_nets(device, seed)
        epochs, steps = self._schedule(len(train))
        gan, net = nets["gan_"], nets["net_"]
        history = History(
            0.0,
            1.0 if self.time_unit == "run" else float(epochs),
            60,
            self.alpha,
            self.beta,
            4096,
            self.wide_latent,
        )
        with self._progress(epochs * steps + 500) as callbacks:
            gan, history = check_memory(self.memory).cache(
                record_history, ignore=["callbacks"]
            )(
                gan,
                train,
                history,
                {"max_epochs": epochs, "epoch_steps": steps},
                callbacks=callbacks("history"),
            )
            net.initialize()
            samples = history.samples_
            net.detector_.critic.load_state_dict(history.critic_)
            first = torch.arange(min(len(train), 4096), device=rows.device)
            data = train[first].expand(net.n_copies, -1, *([-1] * len(self._row_shape)))
            net.detector_.calibrate(data, samples.float())
            joint = samples.flatten(0, 1)
            joint = joint[
                torch.randperm(
                    len(joint), generator=torch.Generator().manual_seed(seed)
                ).to(rows.device)
            ]
            net.run(
                train,
                samples=joint,
                held_out=held_out,
                max_epochs=20,
                epoch_steps=25,
                callbacks=[KeepBest(), *callbacks("detector")],
            )
        self.gan_, self.net_, self._past = gan, net, history
        self.history_ = []
        self.n_iter_ = 0

    def _auto_offset(self, scores):
        return 0.0

    def _score_batch(self, batch):
        copies = batch.expand(self.net_.n_copies, *batch.shape)
        return -self.net_.detector_(copies).mean(0)


def side_by_side(n, build):
    return SideBySide([build() for _ in range(n)])


def make_detector(build, n):
    return Detector(build(), n)
