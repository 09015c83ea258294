"""The training of AABiGAN, and its validation on held-out samples.

Equation numbers are those of the paper. x are samples, z are latent codes; D_xz and
D_xx are the discriminators of pairs (sample, code) and (sample, reconstruction).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ..engine import Adam, AlternatingNet, Player, all_rows, own_rows
from ..exceptions import TrainingDivergedError
from ..networks import one_per_sample, running_statistics, sample_by_sample
from ..objectives import anomaly_aware_loss, least_squares_loss
from ._networks import StackedPairs, shares_firsts

#: Learning rate of the discriminators, as a share of that of the other two.
_SLOWER = 0.25
#: Difference of AUROC from which one score is clearly better than another.
_CLEARLY = 0.01


# The net: players, and the order of their turns -----------------------------------


class AnomalyAwareBiGAN(AlternatingNet):
    """The training of eqs 15 and 16, on pairs of samples with codes or samples."""

    per_member = ("cycle_weight_",)
    draws = (*AlternatingNet.draws, "draw_known")

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
        adam = partial(Adam, betas=(0.5, self.beta2))
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
        # One batch has one normalisation: known anomalies and noise in it keep the
        # encoder from moving the codes of anomalies far away.
        z, z_known = self.encoder_(torch.cat([x, known], 1)).tensor_split([n], 1)
        decoded = self.generator_(torch.cat([z, noise], 1))
        reconstruction, generated = decoded.chunk(2, 1)
        d_xz, d_xx = self.discriminator_xz_, self.discriminator_xx_

        with_codes = (x, z), (generated, noise), (known, z_known)
        with_samples = (x, x), (x, reconstruction), (known, known)
        on_codes = self.discriminator_loss(d_xz, *with_codes)
        on_samples = self.discriminator_loss(d_xx, *with_samples)
        yield "discriminators", on_codes + on_samples

        # The pairs (x, x) and (known, known) do not depend on the coders.
        on_codes = self.coder_loss(d_xz, *with_codes)
        on_samples = self.coder_loss(d_xx, (x, reconstruction))
        yield "coders", on_codes + self.cycle_weight_ * on_samples

    def discriminator_loss(self, discriminator, *pairs) -> Tensor:
        """Compute eq. 15 on normal, generated and anomalous pairs."""
        # x stays one object, for `values` to see where pairs share it.
        fixed = [[t.detach() if t.requires_grad else t for t in pair] for pair in pairs]
        a, b, _ = self.targets
        return anomaly_aware_loss(*self.values(discriminator, *fixed), a=a, b=b)

    def coder_loss(self, discriminator, *pairs) -> Tensor:
        """Compute eq. 16."""
        values, c = self.values(discriminator, *pairs), self.targets[2]
        return torch.stack([least_squares_loss(v, c) for v in values]).sum(0)

    @staticmethod
    def values(discriminator, *pairs) -> list[Tensor]:
        """Compute a discriminator's values of each kind of pairs, if there are any."""
        pairs = tuple(pair for pair in pairs if pair[0].shape[1])
        if isinstance(discriminator, StackedPairs):  # no batch statistics
            sides = [torch.cat(side, 1) for side in zip(*pairs, strict=True)]
            sizes = [first.shape[1] for first, _ in pairs]
            return list(discriminator(*sides).float().split(sizes, 1))
        groups = [[pair] for pair in pairs]
        if shares_firsts(discriminator):
            by_first = groupby(pairs, key=lambda pair: id(pair[0]))
            groups = [list(group) for _, group in by_first]
        values: list[Tensor] = []
        for group in groups:
            first, seconds = group[0][0], [second for _, second in group]
            # A single anomaly has no batch statistics to be normalised by.
            is_one = first.shape[1] == 1
            with running_statistics(discriminator) if is_one else nullcontext():
                found = discriminator(first, *seconds).float()
            parts = found.unbind(1) if len(group) > 1 else [found]
            values += map(one_per_sample, parts)
        return values

    def prepared(self, rows: Tensor) -> Tensor:
        """Prepare a batch (k, n, ...) for the networks."""
        return sample_by_sample(self.prepare, rows)

    def form_of_data(self):
        return len(self.known_) > 0

    def draw_known(self) -> Tensor:
        """Draw known anomalies for each member, with replacement, if there are any."""
        size = self.n_estimators, all_rows(self.n_known) if len(self.known_) else 0
        high = max(len(self.known_), 1)
        index = torch.randint(high, size, generator=self.rng_, device=self.device)
        return self.prepared(self.known_[own_rows(index, -1)])

    def train(self, rows, *, known, cycle_weight, held_out=None, **plan):
        """Train on `rows` and the anomalies `known`; validate on `held_out`."""
        self.cycle_weight_ = cycle_weight
        with self.temporary(known_=known, held_out_=held_out):
            return self.run(rows, **plan)

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> Tensor:
        """Draw n samples of each generator, (k, n, ...)."""
        rng = torch.Generator(self.device).manual_seed(seed)
        noise = self.draw_noise(n, self.latent_dim, rng)
        return torch.cat([self.generator_(part) for part in noise.split(256, 1)], 1)

    def validate(self):
        return {"valid_loss": self.held_out_.loss(self)}

    def for_members(self, rows: Tensor) -> Tensor:
        """Prepare samples (n, ...) for each member: (k, n, ...)."""
        return super().for_members(self.prepare(rows))

    def anomaly_score(self, rows: Tensor, criterion: str) -> Tensor:
        """Compute the score of samples (n, ...), higher for the more anomalous."""
        x = self.for_members(rows)
        z = self.encoder_(x)
        if criterion == "latent_norm":
            return z.square().sum(2).mean(0)
        return (x - self.generator_(z)).square().flatten(2).sum(2).mean(0)


class HeldOut(NamedTuple):
    """Held-out samples for validation.

    Attributes
    ----------
    normal, anomalous : Tensor of shape (n, ...) and (m, ...)
        Scaled samples; m may be 0.
    criteria : tuple of str
        Scores to choose from.
    """

    normal: Tensor
    anomalous: Tensor
    criteria: tuple[str, ...]

    @torch.no_grad()
    def auroc(self, net: AnomalyAwareBiGAN, criterion: str) -> float:
        """Compute the AUROC of a score, anomalies against normal samples."""
        parts = [net.anomaly_score(x, criterion) for x in (self.normal, self.anomalous)]
        y = np.repeat([0, 1], [len(part) for part in parts])
        values = torch.cat(parts).numpy(force=True)
        if not np.isfinite(values).all():
            raise TrainingDivergedError(
                f"{criterion!r} of held-out samples is not finite."
            )
        return roc_auc_score(y, values)

    def best(self, net: AnomalyAwareBiGAN) -> str:
        """Choose the first score, unless another one is clearly better."""
        if not len(self.anomalous):
            return self.criteria[0]
        first, *others = self.criteria
        bar = self.auroc(net, first) + _CLEARLY
        return next((name for name in others if self.auroc(net, name) > bar), first)

    @torch.no_grad()
    def loss(self, net: AnomalyAwareBiGAN) -> float:
        """Compute 1 - AUROC of the best score; without anomalies, the mean error."""
        if not len(self.anomalous):
            return float(net.anomaly_score(self.normal, "reconstruction").mean())
        return 1 - max(self.auroc(net, criterion) for criterion in self.criteria)
