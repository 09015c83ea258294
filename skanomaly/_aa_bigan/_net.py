"""The game of AABiGAN, and what it is judged by while it is played.

Equation numbers are those of the paper. x are rows, z are codes; D_xz and D_xx are the
discriminators of pairs (row, code) and (row, reconstruction).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ..engine import AlternatingNet, Player
from ..exceptions import TrainingDivergedError
from ..networks import one_per_row, row_by_row, running_statistics
from ..objectives import anomaly_aware_loss, least_squares_loss

#: Learning rate of the discriminators, as a share of that of the other two.
_SLOWER = 0.25
#: By how much the AUROC of a few held-out anomalies has to differ to say anything.
_CLEARLY = 0.01


# The net: who plays, and in which order -------------------------------------------


class AnomalyAwareBiGAN(AlternatingNet):
    """The game of eqs 15 and 16, for pairs (row, code) and (row, reconstruction)."""

    def __init__(
        self,
        modules,
        *,
        latent_dim,
        prepare,
        targets,
        n_known,
        beta2,
        **engine,
    ):
        super().__init__(modules, **engine)
        self.latent_dim = latent_dim
        self.prepare = prepare
        self.targets = targets
        self.n_known = n_known
        self.beta2 = beta2

    def configure_optimizers(self):
        adam = partial(torch.optim.Adam, betas=(0.5, self.beta2), fused=True)
        fast, slow = partial(adam, lr=self.lr), partial(adam, lr=_SLOWER * self.lr)
        coders = nn.ModuleList([self.encoder_, self.generator_])
        discriminators = nn.ModuleList([self.discriminator_xz_, self.discriminator_xx_])
        return {
            "discriminators": Player(discriminators, slow),
            "coders": Player(coders, fast),
        }

    def training_step(self, batch):
        n = batch.shape[1]
        x, known = self.prepared(batch), self.draw_known()
        noise = self.draw_noise(n, self.latent_dim)
        # In one batch, and so with one normalisation, known anomalies and noise hold
        # back an encoder that would rather send the anomalies' codes far away.
        z, z_known = self.encoder_(torch.cat([x, known], 1)).tensor_split([n], 1)
        rebuilt, made = self.generator_(torch.cat([z, noise], 1)).chunk(2, 1)
        d_xz, d_xx = self.discriminator_xz_, self.discriminator_xx_

        on_codes = self.aware(d_xz, (x, z), (made, noise), (known, z_known))
        on_pairs = self.aware(d_xx, (x, x), (x, rebuilt), (known, known))
        yield "discriminators", on_codes + on_pairs

        # Of the pairs of rows, (x, x) are the same whatever the coders do.
        fooled = self.fooled(d_xz, (x, z), (made, noise), (known, z_known))
        yield "coders", fooled + self.cycle_weight_ * self.fooled(d_xx, (x, rebuilt))

    def aware(self, discriminator, *pairs) -> Tensor:
        """Return the loss of eq. 15, of normal, generated and anomalous pairs."""
        fixed = [(x.detach(), other.detach()) for x, other in pairs]
        a, b, _ = self.targets
        return anomaly_aware_loss(*self.values(discriminator, *fixed), a=a, b=b).sum()

    def fooled(self, discriminator, *pairs) -> Tensor:
        """Return the loss of eq. 16."""
        values, c = self.values(discriminator, *pairs), self.targets[2]
        return torch.stack([least_squares_loss(v, c) for v in values]).sum()

    @staticmethod
    def values(discriminator, *pairs) -> list[Tensor]:
        """Return a discriminator's values, of each kind of pairs that there is."""
        values = []
        for pair in pairs:
            if n := pair[0].shape[1]:
                # A single anomaly has no statistics of its own to be normalised by.
                alone = running_statistics(discriminator) if n == 1 else nullcontext()
                with alone:
                    values.append(one_per_row(discriminator(*pair).float()))
        return values

    def prepared(self, rows: Tensor) -> Tensor:
        """Return rows (k, n, ...) as the networks want them."""
        return row_by_row(self.prepare, rows)

    def draw_known(self) -> Tensor:
        """Return known anomalies for each copy, with replacement; none of none."""
        size = self.n_estimators, self.n_known if len(self.known_) else 0
        high = max(len(self.known_), 1)
        index = torch.randint(high, size, generator=self.rng_, device=self.device)
        return self.prepared(self.known_[index])

    def train(self, rows, *, known, cycle_weight, held_out=None, **plan):
        """Train on `rows` and the anomalies `known`; judge on the rows held out."""
        self.cycle_weight_ = cycle_weight
        with self.temporary(known_=known, held_out_=held_out):
            return self.run(rows, **plan)

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """Return n generated rows of each game, (k, n, ...)."""
        rng = torch.Generator(self.device).manual_seed(seed)
        noise = self.draw_noise(n, self.latent_dim, rng)
        return torch.cat([self.generator_(part) for part in noise.split(256, 1)], 1)

    def validate(self):
        return {"valid_loss": self.held_out_.loss(self)}

    def for_members(self, rows: Tensor) -> Tensor:
        """Return rows (n, ...), prepared, for each copy: (k, n, ...)."""
        return super().for_members(self.prepare(rows))

    @torch.no_grad()
    def abnormality(self, rows: Tensor, criterion: str) -> Tensor:
        """Return the score of rows (n, ...), higher for the more anomalous."""
        x = self.for_members(rows)
        z = self.encoder_(x)
        if criterion == "latent_norm":
            return z.square().sum(2).mean(0)
        return (x - self.generator_(z)).square().flatten(2).sum(2).mean(0)


class HeldOut(NamedTuple):
    """Rows that take no part in training: what a net is judged by.

    Attributes
    ----------
    normal, anomalous : Tensor of shape (n, ...) and (m, ...)
        Scaled rows; m may be 0.
    criteria : tuple of str
        The scores to choose from.
    """

    normal: Tensor
    anomalous: Tensor
    criteria: tuple[str, ...]

    def auroc(self, net: AnomalyAwareBiGAN, criterion: str) -> float:
        """Return how well a score tells the anomalies from the other rows."""
        parts = [net.abnormality(x, criterion) for x in (self.normal, self.anomalous)]
        y = np.repeat([0, 1], [len(part) for part in parts])
        values = torch.cat(parts).numpy(force=True)
        if not np.isfinite(values).all():
            raise TrainingDivergedError(
                f"{criterion!r} of held-out rows is not finite."
            )
        return roc_auc_score(y, values)

    def best(self, net: AnomalyAwareBiGAN) -> str:
        """Return the better score: the first one, unless another is clearly so."""
        if not len(self.anomalous):
            return self.criteria[0]
        first, *others = self.criteria
        bar = self.auroc(net, first) + _CLEARLY
        return next((other for other in others if self.auroc(net, other) > bar), first)

    def loss(self, net: AnomalyAwareBiGAN) -> float:
        """Return 1 - AUROC of the better score, or without anomalies the error."""
        if not len(self.anomalous):
            return float(net.abnormality(self.normal, "reconstruction").mean())
        return 1 - max(self.auroc(net, criterion) for criterion in self.criteria)
