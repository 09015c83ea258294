r"""The training of JointEncoderGAN, and the growth of its networks.

Equation numbers are those of the paper. G is the generator, D the critic, E the
encoder; the critic is high on data.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine import (
    Adam,
    AlternatingNet,
    AverageWeights,
    Player,
    TransformedDataset,
    input_gradient,
)
from ..networks import one_per_sample, sample_by_sample
from ..objectives import (
    cycle_loss,
    drift,
    gradient_penalty,
    min_max_normalised,
    residual,
    wasserstein_critic_loss,
)
from ._networks import GROUP, Growing, faded, keeps_apart, upsampled
from ._score import Outputs

#: Weights of the gradient penalty and of the critic's drift.
_PENALTY, _DRIFT = 10.0, 1e-3
#: Samples that are generated at once.
_AT_ONCE = 64


class Phase(NamedTuple):
    """A phase of the training, with one finest level.

    Attributes
    ----------
    level : int
        The finest level in use.
    fading : bool
        Whether that level is being faded in.
    batch_size, max_epochs, epoch_steps : int
        Its length.
    name : str
        For the progress bar and the history.
    trained : {"all", "gan", "encoder"}
        The networks that are trained: all three; or, with a separate encoder, first
        generator and critic, then the encoder.
    """

    level: int
    fading: bool
    batch_size: int
    max_epochs: int
    epoch_steps: int
    name: str
    trained: str = "all"

    @property
    def key(self) -> tuple[int, bool, str]:
        """Level, fading and trained networks, which identify a phase."""
        return self.level, self.fading, self.trained

    @property
    def plan(self) -> dict[str, int]:
        """Epochs, and the steps in each."""
        return {"max_epochs": self.max_epochs, "epoch_steps": self.epoch_steps}


class JointNet(AlternatingNet):
    """The training of eq. 1, for an ensemble of k.

    `as_published` follows the authors' code: critic, generator and encoder are trained
    on separate batches, the penalty is on whole batches, and only the generator is
    averaged. `cycle_weight` is for the norm as printed; None makes the norm a mean.
    """

    per_member = ("cycle_weight",)

    def __init__(
        self,
        modules,
        *,
        latent_dim,
        frame,
        clip,
        encoder_loss,
        cycle_updates_generator,
        cycle_weight,
        as_published,
        **engine,
    ):
        super().__init__(modules, **engine)
        self.latent_dim = latent_dim
        self.frame = frame
        self.clip = clip
        self.encoder_loss = encoder_loss
        self.cycle_updates_generator = cycle_updates_generator
        self.cycle_weight = cycle_weight
        self.as_published = as_published

    def configure_optimizers(self):
        adam = partial(Adam, lr=self.lr, betas=(0.0, 0.99))
        modules = self.critic_, self.generator_, self.encoder_
        names = "critic", "generator", "encoder"
        return {name: Player(m, adam) for name, m in zip(names, modules, strict=True)}

    def training_step(self, batch):
        self.grow(self.phase_.level, 1 - self.progress if self.phase_.fading else 0.0)
        x = self.prepared(batch)
        trains_gan = self.phase_.trained != "encoder"
        trains_encoder = self.phase_.trained != "gan"
        if trains_gan and self.as_published:
            yield "critic", self.critic_loss(x, self.generate(self.noise_for(x)))

        if trains_gan:
            noise = self.noise_for(x)
            generated = self.generator_(noise)
            loss = -self.values(generated).mean(1)
            if self.cycle_updates_generator:  # eq. 1
                cycle = self.cycle(noise, generated)
                both = loss + self.weight_of_cycle(generated) * cycle
                yield ("generator", both), ("encoder", cycle)
                trains_encoder = False
            else:
                yield "generator", loss

        if self.as_published:  # each on its own batch
            if trains_encoder:
                noise = self.noise_for(x)
                yield "encoder", self.cycle(noise, self.generate(noise))
            return
        # The other two learn from one batch: the one that the generator learned from.
        if trains_gan:
            generated = generated.detach().float()
        else:
            noise = self.noise_for(x)
            generated = self.generate(noise)
        if trains_encoder:
            yield "encoder", self.cycle(noise, generated)
        if trains_gan:
            yield "critic", self.critic_loss(x, generated)

    def noise_for(self, x: Tensor) -> Tensor:
        """Draw noise for as many samples as in `x`, (k, n, latent_dim)."""
        return self.draw_noise(x.shape[1], self.latent_dim)

    def weight_of_cycle(self, generated: Tensor) -> float | Tensor:
        """Return the weight of the third term of eq. 1, here a mean, not a sum."""
        if self.cycle_weight is None:
            return 1.0
        latent = self.encoder_loss == "latent"
        return self.cycle_weight * (
            self.latent_dim if latent else generated[0, 0].numel()
        )

    def generate(self, noise: Tensor) -> Tensor:
        """Map noise to generated samples, without a gradient for the generator."""
        with torch.no_grad():
            return self.generator_(noise).float()

    def values(self, rows: Tensor) -> Tensor:
        """Map samples to the critic's values, (k, n)."""
        return one_per_sample(self.critic_(rows)).float()

    def critic_loss(self, x: Tensor, generated: Tensor) -> Tensor:
        """Compute the critic's loss on data and generated samples."""
        n = x.shape[1]
        if keeps_apart(self.critic_, n):
            both = self.values(torch.cat([x, generated], 1))
            on_data, on_generated = both.split(n, 1)
        else:
            on_data, on_generated = self.values(x), self.values(generated)
        if not self.as_published:  # half a batch suffices for the penalty
            n = max(n // 2 - n // 2 % GROUP if n // 2 > GROUP else n // 2, 1)
        shape = (x.shape[0], n, *[1] * (x.ndim - 2))
        share = self.draw_shares(n).view(shape)
        points = torch.lerp(x[:, :n], generated[:, :n], share)
        slope = input_gradient(self.critic_, points).flatten(2).float()
        loss = _PENALTY * gradient_penalty(slope) + _DRIFT * drift(on_data)
        return loss - wasserstein_critic_loss(on_data, on_generated)

    def cycle(self, noise: Tensor, generated: Tensor) -> Tensor:
        """Compute the third term of eq. 1 (eq. 6), or eq. 7, on generated samples."""
        codes = self.encoder_(generated)
        if self.encoder_loss == "latent":
            return cycle_loss(noise, codes).float()
        return cycle_loss(generated, self.generator_(codes)).float()

    # Samples and noise

    def prepared(self, batch: Tensor) -> Tensor:
        """Prepare a batch (k, n, ...) of the current level for the networks."""
        if self.frame is None:
            return self.clip(batch)
        return sample_by_sample(self.blended, batch)

    def blended(self, images: Tensor) -> Tensor:
        """Blend images with coarser ones while the current level is being faded in."""
        _, fade = self.grown()
        if not fade:
            return images
        return faded(images, upsampled(F.avg_pool2d(images, 2)), fade)

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw n samples of each generator, (k, n, ...), at the current level."""
        return torch.cat(list(self.sample_batches(n, seed)), 1)

    def sample_batches(self, n: int, seed: int) -> Iterator[Tensor]:
        """Draw n samples of each generator, batch by batch."""
        rng = torch.Generator(self.device).manual_seed(seed)
        noise = self.draw_noise(n, self.latent_dim, rng)
        for part in noise.split(_AT_ONCE, 1):
            yield self.generator_(part)

    def for_members(self, rows: Tensor) -> Tensor:
        """Prepare samples (n, ...) in the size of the data for each member."""
        if self.frame is not None:
            rows = self.frame.shrunk(rows, self.grown()[0])
        return self.prepared(super().for_members(rows))

    def resized(self, rows: Tensor) -> Tensor:
        """Resize samples (k, n, ...) of the current level to the size of the data."""
        if self.frame is None:
            return rows
        return sample_by_sample(
            partial(self.frame.enlarged, level=self.grown()[0]), rows
        )

    def encode(self, rows: Tensor) -> Tensor:
        """Map samples (n, ...) to latent codes (k, n, l)."""
        return self.encoder_(self.for_members(rows))

    def decode(self, codes: Tensor) -> Tensor:
        """Map latent codes (k, n, l) to samples (k, n, ...) in the size of the data."""
        return self.resized(self.clip(self.generator_(codes)))

    def outputs(self, rows: Tensor, residual_norm: str) -> Outputs:
        """Pass samples (n, ...) through the networks."""
        x = self.for_members(rows)
        codes = self.encoder_(x)
        pairs = self.resized(x), self.decode(codes)
        images, reconstruction = (part.flatten(0, 1) for part in pairs)
        if self.frame is not None:  # only images have contrast
            images = min_max_normalised(images)
            reconstruction = min_max_normalised(reconstruction)
        far = residual(images, reconstruction, residual_norm)
        return Outputs(far.unflatten(0, codes.shape[:2]).mean(0), codes)

    @torch.no_grad()
    def encode_generated(self, n: int, seed: int) -> Tensor:
        """Compute latent codes of n samples of each generator, (k, n, l)."""
        parts = [self.encoder_(batch) for batch in self.sample_batches(n, seed)]
        return torch.cat(parts, 1)

    # Growth

    def grow(self, level: int, fade: float) -> None:
        """Use the networks up to `level`, with the share `fade` of the level below."""
        for module in self.growing():
            module.level, module.fade = level, fade

    def grown(self) -> tuple[int, float]:
        """Return the level in use, and the share of the level below."""
        if module := next(self.growing(), None):
            return module.level, module.fade
        return (self.frame.finest if self.frame else 0), 0.0

    def growing(self):
        """Yield the networks that grow: those for images, unless they are a user's."""
        for role in self.modules:
            for module in getattr(self, f"{role}_").modules():
                if isinstance(module, Growing):
                    yield module

    def train(self, rows, *, phase, **plan):
        """Train in one phase, on samples in the size of the data."""
        if self.initialized_:
            level, fade = self.grown()
            if (level, fade > 0) != (phase.level, phase.fading):
                self.initialize_optimizer()  # its state is that of other layers
        if self.frame is not None and self.frame.changes(phase.level):
            rows = TransformedDataset(
                rows, partial(self.frame.shrunk, level=phase.level)
            )
        self.phase_, self.batch_size = phase, phase.batch_size
        return self.run(rows, **phase.plan, **plan)

    def on_epoch_begin(self, net, **kwargs):
        super().on_epoch_begin(net, **kwargs)
        # Callbacks that log numbers ignore keys with "event_".
        self.history.record("event_stage", self.phase_.name)


def train_phases(net, rows, phases, decay, callbacks):
    """Train through all phases; return the net, and the key of the last phase."""
    start = net.phases_start_ = len(net.history) if net.initialized_ else 0
    averaged = ["generator"] if net.as_published else None
    for phase in phases:
        # Averages over steps in which nothing grows any more.
        done = not phase.fading and phase.level == phases[-1].level
        own = [AverageWeights(decay, averaged)] if done else []
        try:
            net.train(rows, phase=phase, callbacks=[*own, *callbacks(phase.name)])
        except KeyboardInterrupt:
            if phase is phases[0] or net.on_interrupt == "raise":
                raise  # no phase is complete, or none is to be kept
            net.interrupted_ = True  # between two phases
        if net.interrupted_:
            break
    net.run_start_ = start  # all phases are one run
    return net, phase.key
