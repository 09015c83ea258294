r"""The game of JointEncoderGAN, and how its networks grow.

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
    AlternatingNet,
    AverageWeights,
    MomentumFreeAdam,
    Player,
    TransformedDataset,
    input_gradient,
)
from ..networks import one_per_row, row_by_row
from ..objectives import (
    cycle_loss,
    drift,
    gradient_penalty,
    min_max_normalised,
    residual,
    wasserstein_critic_loss,
)
from ._abnormality import Figures
from ._networks import GROUP, Growing, faded, upsampled

#: Weights of the gradient penalty and of the critic's drift.
_PENALTY, _DRIFT = 10.0, 1e-3
#: Rows that are generated at once.
_AT_ONCE = 64


class Phase(NamedTuple):
    """A part of the training in which nothing grows but the share of one level.

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
    turns : {"all", "game", "encoder"}
        Who plays: all three, or for an encoder that is trained separately the other
        two before, and the encoder alone afterwards.
    """

    level: int
    fading: bool
    batch_size: int
    max_epochs: int
    epoch_steps: int
    name: str
    turns: str = "all"

    @property
    def key(self) -> tuple[int, bool, str]:
        """What tells it from the others."""
        return self.level, self.fading, self.turns

    @property
    def plan(self) -> dict[str, int]:
        """Epochs, and the steps in each."""
        return {"max_epochs": self.max_epochs, "epoch_steps": self.epoch_steps}


class JointNet(AlternatingNet):
    """The game of eq. 1, for k games side by side.

    With `as_published` it is played as in the authors' code: critic, generator,
    encoder, each on rows of its own; the penalty of whole batches; and an average of
    the generator alone. `cycle_weight` is that of the norm as printed, and None stands
    for 1 over its numbers.
    """

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
        adam = partial(MomentumFreeAdam, lr=self.lr)
        modules = self.critic_, self.generator_, self.encoder_
        names = "critic", "generator", "encoder"
        return {name: Player(m, adam) for name, m in zip(names, modules, strict=True)}

    def training_step(self, batch):
        self.grow(self.phase_.level, 1 - self.progress if self.phase_.fading else 0.0)
        x = self.prepared(batch)
        plays, coded = self.phase_.turns != "encoder", self.phase_.turns != "game"
        if plays and self.as_published:
            yield "critic", self.critic_loss(x, self.made(self.noise_for(x)))

        if plays:
            noise = self.noise_for(x)
            made = self.generator_(noise)
            fooled = -self.values(made).mean(1).sum()
            if self.cycle_updates_generator:  # eq. 1
                cycle = self.cycle(noise, made)
                both = fooled + self.weight_of_cycle(made) * cycle
                yield ("generator", both), ("encoder", cycle)
                coded = False
            else:
                yield "generator", fooled

        if self.as_published:  # each turn on rows of its own
            if coded:
                noise = self.noise_for(x)
                yield "encoder", self.cycle(noise, self.made(noise))
            return
        # Begun with the generator, the other two can learn from the same rows.
        noise = self.noise_for(x)
        made = self.made(noise)
        if coded:
            yield "encoder", self.cycle(noise, made)
        if plays:
            yield "critic", self.critic_loss(x, made)

    def noise_for(self, x: Tensor) -> Tensor:
        """Return as much noise as there are rows, (k, n, latent_dim)."""
        return self.draw_noise(x.shape[1], self.latent_dim)

    def weight_of_cycle(self, made: Tensor) -> float:
        """Return the weight of the third term of eq. 1, of which we have the mean."""
        if self.cycle_weight is None:
            return 1.0
        latent = self.encoder_loss == "latent"
        return self.cycle_weight * (self.latent_dim if latent else made[0, 0].numel())

    def made(self, noise: Tensor) -> Tensor:
        """Return generated rows that the generator does not learn from."""
        with torch.no_grad():
            return self.generator_(noise).float()

    def values(self, rows: Tensor) -> Tensor:
        """Return the critic's values of rows, (k, n)."""
        return one_per_row(self.critic_(rows)).float()

    def critic_loss(self, x: Tensor, made: Tensor) -> Tensor:
        """Return what the critic minimises, on data and generated rows."""
        # One after the other: the critic's groups must not hold rows of both kinds.
        on_data, on_made = self.values(x), self.values(made)
        n = x.shape[1]
        if not self.as_published:  # half is as good for the penalty, at half its price
            n = max(n // 2 - n // 2 % GROUP if n // 2 > GROUP else n // 2, 1)
        shape = (x.shape[0], n, *[1] * (x.ndim - 2))
        share = torch.rand(shape, generator=self.rng_, device=self.device)
        points = torch.lerp(x[:, :n], made[:, :n], share)
        slope = input_gradient(self.critic_, points).flatten(2).float()
        loss = _PENALTY * gradient_penalty(slope) + _DRIFT * drift(on_data)
        return (loss - wasserstein_critic_loss(on_data, on_made)).sum()

    def cycle(self, noise: Tensor, made: Tensor) -> Tensor:
        """Return the third term of eq. 1 (eq. 6), or eq. 7, of generated rows."""
        codes = self.encoder_(made)
        if self.encoder_loss == "latent":
            return cycle_loss(noise, codes).float().sum()
        return cycle_loss(made, self.generator_(codes)).float().sum()

    # Rows and noise

    def prepared(self, batch: Tensor) -> Tensor:
        """Return a batch (k, n, ...) of the present level as the networks want it."""
        if self.frame is None:
            return self.clip(batch)
        return row_by_row(self.blended, batch)

    def blended(self, images: Tensor) -> Tensor:
        """Return images as they are while the present level is being faded in."""
        _, fade = self.grown()
        if not fade:
            return images
        return faded(images, upsampled(F.avg_pool2d(images, 2)), fade)

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """Return n generated rows of each game, (k, n, ...), at the present level."""
        return torch.cat(list(self.drawn(n, seed)), 1)

    def drawn(self, n: int, seed: int) -> Iterator[Tensor]:
        """Yield n generated rows of each game, some at a time."""
        rng = torch.Generator(self.device).manual_seed(seed)
        noise = self.draw_noise(n, self.latent_dim, rng)
        for part in noise.split(_AT_ONCE, 1):
            yield self.generator_(part)

    def for_members(self, rows: Tensor) -> Tensor:
        """Return rows (n, ...) of the size of the data, prepared, for each game."""
        if self.frame is not None:
            rows = self.frame.shrunk(rows, self.grown()[0])
        return self.prepared(super().for_members(rows))

    def shown(self, rows: Tensor) -> Tensor:
        """Return rows (k, n, ...) as the networks have them in the size of the data."""
        if self.frame is None:
            return rows
        return row_by_row(partial(self.frame.enlarged, level=self.grown()[0]), rows)

    def coded(self, rows: Tensor) -> Tensor:
        """Return the codes of rows (n, ...), (k, n, l)."""
        return self.encoder_(self.for_members(rows))

    def rebuilt(self, codes: Tensor) -> Tensor:
        """Return rows in the size of the data from codes: (k, n, ...)."""
        return self.shown(self.clip(self.generator_(codes)))

    def figures(self, rows: Tensor, residual_norm: str) -> Figures:
        """Return what the networks say of rows (n, ...)."""
        x = self.for_members(rows)
        codes = self.encoder_(x)
        pairs = self.shown(x), self.rebuilt(codes)
        seen, again = (part.flatten(0, 1) for part in pairs)
        if self.frame is not None:  # contrast is a matter of images
            seen, again = min_max_normalised(seen), min_max_normalised(again)
        far = residual(seen, again, residual_norm)
        return Figures(far.unflatten(0, codes.shape[:2]).mean(0), codes)

    @torch.no_grad()
    def codes_of_made(self, n: int, seed: int) -> Tensor:
        """Return the codes of n generated rows of each game, (k, n, l)."""
        return torch.cat([self.encoder_(made) for made in self.drawn(n, seed)], 1)

    # Growth

    def grow(self, level: int, fade: float) -> None:
        """Use the networks up to `level`, with the share `fade` of the one below."""
        for module in self.growing():
            module.level, module.fade = level, fade

    def grown(self) -> tuple[int, float]:
        """Return the level in use, and the share of the one below."""
        if module := next(self.growing(), None):
            return module.level, module.fade
        return (self.frame.finest if self.frame else 0), 0.0

    def growing(self):
        """Yield the networks that grow; those of a user do not, nor do tables'."""
        for role in self.modules:
            for module in getattr(self, f"{role}_").modules():
                if isinstance(module, Growing):
                    yield module

    def train(self, rows, *, phase, **plan):
        """Train in one phase, on rows of the size of the data."""
        if self.initialized_:
            level, fade = self.grown()
            if (level, fade > 0) != (phase.level, phase.fading):
                self.initialize_optimizer()  # its state speaks of other layers
        if self.frame is not None and self.frame.changes(phase.level):
            rows = TransformedDataset(
                rows, partial(self.frame.shrunk, level=phase.level)
            )
        self.phase_, self.batch_size = phase, phase.batch_size
        return self.run(rows, **phase.plan, **plan)

    def on_epoch_begin(self, net, **kwargs):
        super().on_epoch_begin(net, **kwargs)
        # Callbacks that log numbers pass over events.
        self.history.record("event_stage", self.phase_.name)


def train_phases(net, rows, phases, decay, callbacks):
    """Train through all phases, and return the net and the last phase begun."""
    start = len(net.history) if net.initialized_ else 0
    averaged = ["generator"] if net.as_published else None
    for phase in phases:
        # Averages over steps in which nothing grows any more.
        done = not phase.fading and phase.level == phases[-1].level
        own = [AverageWeights(decay, averaged)] if done else []
        try:
            net.train(rows, phase=phase, callbacks=[*own, *callbacks(phase.name)])
        except KeyboardInterrupt:
            if phase is phases[0] or net.on_interrupt == "raise":
                raise  # nothing is there, or is to be kept
            net.interrupted_ = True  # between two phases
        if net.interrupted_:
            break
    net.run_start_ = start  # all phases are one run
    return net, phase.key
