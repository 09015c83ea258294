"""The GAN of HistoryAD, its history, and the training of the detector against it.

Equation numbers are those of the paper. Its sign is kept: a critic is low on data and
high on generated samples.
"""

from __future__ import annotations

from functools import partial

import torch
from skorch.callbacks import Callback
from torch import Tensor

from ..engine import (
    Adam,
    AlternatingNet,
    LinearDecay,
    Player,
    all_rows,
    input_gradient,
    n_processes,
    own_rows,
)
from ..networks import normalised_alike, one_per_sample
from ..objectives import (
    gradient_penalty,
    history_weights,
    total_variation_loss,
    wasserstein_critic_loss,
)
from ..utils._kinds import TABLE
from ..utils._state import shallow_copy

#: Weight of the gradient penalty, as in Gulrajani et al. (2017).
_PENALTY = 10.0
#: Samples that suffice to estimate a mean or a coverage.
ENOUGH = 1000


# The nets: players, and the order of their turns ----------------------------------


class HistoryGAN(AlternatingNet):
    """The GAN of eq. 2, with the gradient penalty of Gulrajani et al. (2017)."""

    per_member = ()

    def __init__(self, modules, *, noise_dim, n_critic, **engine):
        super().__init__(modules, **engine)
        self.noise_dim = noise_dim
        self.n_critic = n_critic

    def configure_optimizers(self):
        # Momentum makes the generator oscillate around the data (sec. 3.2).
        adam = partial(Adam, lr=self.lr, betas=(0.5, 0.9))
        return {
            "critic": Player(self.critic_, adam),
            "generator": Player(self.generator_, adam),
        }

    def training_step(self, data):
        n = data.shape[1]
        # Both turns have the same samples, which only the second one differentiates.
        trains_generator = (self.step_ + 1) % self.n_critic == 0
        with torch.set_grad_enabled(trains_generator):
            generated = self.generate(n)
        fixed = generated.detach()
        on_data, on_generated = self.value(data, fixed).split(n, dim=1)
        distance = wasserstein_critic_loss(on_data, on_generated)
        slope = input_gradient(self.critic_, self.between(data, fixed))
        yield "critic", distance + _PENALTY * gradient_penalty(slope.flatten(2))
        if trains_generator:
            yield "generator", self.value(generated).mean(1)

    def value(self, *parts: Tensor) -> Tensor:
        """Map samples, in parts of shape (k, n_i, ...), to the critics' values."""
        return one_per_sample(self.critic_(torch.cat(parts, dim=1))).float()

    def between(self, data: Tensor, generated: Tensor) -> Tensor:
        """Interpolate between half of the pairs of samples, which suffices."""
        half = -(-data.shape[1] // 2)
        data, generated = data[:, :half], generated[:, :half]
        shape = data.shape[:2] + (1,) * (data.ndim - 2)
        mix = self.draw_shares(data.shape[1]).view(shape)
        return torch.lerp(generated, data, mix)

    def generate(self, n: int, rng=None) -> Tensor:
        """Draw n samples of each generator, (k, n, ...)."""
        return self.generator_(self.draw_noise(n, self.noise_dim, rng)).float()

    @torch.no_grad()
    def generate_with_wide(self, n: int, wide: slice, spread: float) -> Tensor:
        """Draw n samples, those of `wide` from noise with deviation `spread`."""
        noise = self.draw_noise(n, self.noise_dim)
        # With their own batch statistics, samples of wide noise would be as narrow as
        # others.
        usual, wider = normalised_alike(
            self.generator_, noise, spread * noise[:, wide].contiguous()
        )
        usual[:, wide] = wider
        return usual.float()

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw n samples of each trained generator, (k, n, ...)."""
        rng = torch.Generator(self.device).manual_seed(seed)
        # Batches of one size, since batch statistics depend on it.
        batches = [self.generate(256, rng=rng) for _ in range(-(-n // 256))]
        return torch.cat(batches, dim=1)[:, :n]


class History(Callback):
    """The history of a GAN: the mean critic, and samples of all its generators.

    No network is kept. The weight of each save point is known in advance: the average
    of eq. 14 is a running sum, and samples for the mixture of eq. 3 are drawn when a
    save point is reached.

    Parameters
    ----------
    duration : float
        Time of the run, in the unit of `alpha`.
    n_saves : int
        Number of intervals between save points.
    alpha, beta : float
        Of eqs 3 and 13.
    n_samples : int
        Samples of the history, per generator.
    wide : float or None
        Deviation of the noise of every other sample (the paper's experimental case 2);
        None for the usual noise (case 1).
    earlier : History or None
        History of the runs before this one.

    Attributes
    ----------
    times_ : Tensor of shape (n_saves + 1,)
        All save points, those of earlier runs included.
    critic_ : dict of str to Tensor
        The averaged weights of the critics (eq. 14).
    samples_ : Tensor of shape (k, n_samples, ...)
        Drawn from the history (eq. 3), in random order.
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
        """Compute the weight and the number of samples of each save point."""
        shares = torch.linspace(0, 1, self.n_saves + 1, dtype=torch.float64)
        earlier, known, start = self.earlier, shares[:0], 0.0
        if earlier is not None:
            # This run starts with the networks at the end of the last one.
            known, shares = earlier.times_, shares[1:]
            start = float(known[-1])
        self.times_ = torch.cat([known, start + self.duration * shares])
        weights = history_weights(self.times_, self.alpha, self.beta)
        ends = torch.round(weights.cumsum(0) * self.n_samples).long()
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        old, self.mass_, self.sum_, self.parts_ = len(known), 0.0, {}, []
        self.n_drawn_ = 0
        if earlier is not None:
            samples = earlier.samples_[:, : int(counts[:old].sum())].to(net.device)
            self._add(earlier.critic_, float(weights[:old].sum()), samples)
        steps = net.step_ + torch.round(shares * net.n_steps).long()
        self.due_ = list(zip(steps, weights[old:], counts[old:], strict=True))

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        """Add the save points before this step."""
        self._save(net)

    def on_train_end(self, net, X=None, y=None, **kwargs):
        """Add the last save points, and complete the history."""
        self._save(net)
        # A run that was cut short has no later save points.
        self.times_ = self.times_[: len(self.times_) - len(self.due_)]
        if self.mass_ == 0:  # interrupted before the first save point that counts
            self._remember(net, 1.0, self.n_samples)
        self.critic_ = {k: v / self.mass_ for k, v in self.sum_.items()}
        samples = torch.cat(self.parts_, dim=1)
        # On the host, for machines without a GPU.
        order = torch.randperm(samples.shape[1], generator=net.rng_, device=net.device)
        self.samples_ = samples[:, order].cpu()
        del self.sum_, self.parts_, self.n_drawn_, self.due_, self.earlier

    def so_far(self, net) -> History:
        """Return the history as it would be if the run of `net` ended now."""
        history = shallow_copy(self)
        if hasattr(self, "parts_"):  # the run goes on
            history.sum_, history.parts_ = dict(self.sum_), list(self.parts_)
            history.due_ = list(self.due_)
            history.on_train_end(net)
        return history

    def _save(self, net):
        while self.due_ and self.due_[0][0] == net.step_:
            _, weight, count = self.due_.pop(0)
            if weight > 0:
                self._remember(net, float(weight), int(count))

    @torch.no_grad()
    def _remember(self, net, weight, count):
        # Statistics of a batch of few samples are useless.
        n = max(count, net.batch_size * n_processes())
        if self.wide is None:
            samples = net.generate(n)
        else:
            # Counted over all save points, since each may have a single sample.
            every_other = slice(self.n_drawn_ % 2, None, 2)
            samples = net.generate_with_wide(n, every_other, self.wide)
        self._add(net.critic_.state_dict(), weight, samples[:, :count])

    def _add(self, critic, weight, samples):
        self.mass_ += weight
        self.n_drawn_ += samples.shape[1]
        for name, value in critic.items():
            self.sum_[name] = self.sum_.get(name, 0) + weight * value.cpu().double()
        # float16 suffices for pixels, hardly any of which lies beyond its range.
        fits = torch.finfo(torch.float16).max
        has_pixels = samples[0].ndim > TABLE.ndim
        narrow = samples.clamp(-fits, fits).half() if has_pixels else samples
        self.parts_.append(narrow)


class DetectorNet(AlternatingNet):
    """The detector, trained to tell data from the history (eq. 10)."""

    per_member = ("lam",)
    draws = (*AlternatingNet.draws, "draw_history")

    def __init__(self, modules, *, lam, weight_decay, **engine):
        super().__init__(modules, **engine)
        self.lam = lam
        self.weight_decay = weight_decay

    def configure_optimizers(self):
        adam = partial(Adam, weight_decay=self.weight_decay)
        return {
            "detector": Player(
                self.detector_, partial(adam, lr=self.lr, betas=(0.5, 0.999))
            )
        }

    def training_step(self, data):
        yield "detector", self.loss(data, self.draw_history(data.shape[1]))

    def validate(self):
        return {"valid_loss": self.loss(*self.held_out_).sum()}

    def loss(self, data: Tensor, generated: Tensor) -> Tensor:
        """Compute the loss of eq. 10 for each member, (k,)."""
        sizes = data.shape[1], generated.shape[1]
        on_data, on_history = self.value(data, generated).split(sizes, dim=1)
        return total_variation_loss(on_data, on_history, self.lam)

    def value(self, *parts: Tensor) -> Tensor:
        """Map samples, in parts of shape (k, n_i, ...), to the detectors' values."""
        return self.detector_(torch.cat(parts, dim=1)).float()

    def draw_history(self, n: int) -> Tensor:
        """Draw n samples of the history for each member, (k, n, ...)."""
        m, size = len(self.samples_), (self.n_estimators, all_rows(n))
        index = torch.randint(m, size, generator=self.rng_, device=self.device)
        return self.samples_[own_rows(index, -1)].float()

    def train(self, rows, *, samples, held_out, **plan):
        """Train on `rows` against `samples`, (m, ...), of the history.

        A tenth of `samples`, and `held_out`, serve validation alone.
        """
        share = max(len(samples) // 10, 1)
        pair = held_out.head(ENOUGH), samples[:share][:ENOUGH].float()
        held_out = [self.for_members(part) for part in pair]
        with self.temporary(samples_=samples[share:], held_out_=held_out):
            return self.run(rows, **plan)


# Stages ---------------------------------------------------------------------------


def record_history(gan, rows, history, plan, callbacks=()):
    """Train the GAN, and return it with its history.

    The result does not depend on `lam` and the other parameters of the detector, so
    that fits that differ only in these share it.
    """
    gan.run(rows, callbacks=[LinearDecay(), history, *callbacks], **plan)
    return gan, history
