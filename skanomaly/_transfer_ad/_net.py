r"""The training of TransferAD: batches, weights, two stages.

Equation numbers are those of the paper. F is the encoder, D the decoder, C the
classifier of domains; L is the loss of reconstruction.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..engine import (
    Adam,
    AlternatingNet,
    Batches,
    DeviceDataset,
    LinearDecay,
    Player,
)
from ..networks import one_per_sample, sample_by_sample
from ..objectives import (
    effective_sample_size,
    importance_weights,
    ramp,
    reconstruction_loss,
    reverse_gradient,
    transfer_loss,
    weighted_domain_loss,
)
from ..utils._kinds import TABLE
from ._score import Outputs, pooling_loss

#: Samples in a batch when all are passed through the networks.
_AT_ONCE = 512
#: Rounds in which the first weights are found, each with the score of the last one.
_ROUNDS = 5


# The net: players, and the order of their turns -----------------------------------


class PairedBatches(Batches):
    """Batches of both domains, with the current weights of their samples."""

    def __init__(self, source, target, weights, *sizes):
        super().__init__(target, *sizes)
        self.source, self.weights = Batches(source, *sizes), weights

    def __iter__(self):
        of_source, of_target = self.weights
        for i, j in zip(self.source.indices(), self.indices(), strict=True):
            yield self.source.dataset[i], self.dataset[j], of_source[i], of_target[j]


class Weighting(NamedTuple):
    """The rule by which the second stage weights samples.

    Attributes
    ----------
    gate : {"combined", "reconstruction"}
        The anomaly score g that replaces the loss in eq. 5.
    eta : float or None
        Of eq. 5; None stands for -beta / tau.
    beta : tuple of float
        Of eq. 5, at the start and where the ramp would be at 1.
    trusted : float
        Share of the target samples with a weight above 1/2, which sets tau.
    normalised : bool
        Whether weights are divided by their mean.
    of_source : bool
        Whether source samples are weighted too.
    """

    gate: str
    eta: float | None
    beta: tuple[float, float]
    trusted: float
    normalised: bool
    of_source: bool

    def weights(self, log_g: Tensor, log_tau: float, progress: float) -> Tensor:
        """Compute weights (eq. 5), which are not divided by their mean."""
        low, high = self.beta
        beta = low + (high - low) * ramp(progress)
        if self.eta is None:
            return importance_weights((log_g - log_tau).exp(), -beta, beta)
        return importance_weights(log_g.exp(), self.eta, beta)


class TransferNet(AlternatingNet):
    """The two stages, eqs 7 and 8, for an ensemble of k autoencoders."""

    per_member = "lam_", "adversarial_weight_", "weighting_"
    #: Maximum length of a tensor for torch.quantile; of longer ones, a part is used.
    max_sorted = 2**24

    def __init__(self, modules, *, latent_dim, prepare, **engine):
        super().__init__(modules, **engine)
        self.latent_dim = latent_dim
        self.prepare = prepare

    def configure_optimizers(self):
        adam = partial(Adam, lr=self.lr)
        # The classifier plays too: the reversal gives it a gradient of its own.
        modules = self.encoder_, self.decoder_, self.classifier_
        return {"coders": Player(nn.ModuleList(modules), adam)}

    def training_step(self, batch):
        source, target, of_source, of_target = batch
        x = self.prepared(torch.cat([source, target], 1))
        codes = self.encoder_(x)
        loss = reconstruction_loss(x, self.decoder_(codes)).float()
        weighted = loss * torch.cat([of_source, of_target], 1)
        on_source, on_target = weighted.chunk(2, 1)
        recon = transfer_loss(on_source, on_target, self.lam_)
        self.record("reconstruction_loss", recon.detach())
        if self.weighting_ is None or self.adversarial_weight_ is None:
            yield "coders", recon
            return
        # Both sides have one loss, of which one backward pass takes all gradients: for
        # the classifier they have weight 1, for the encoder they are reversed.
        weight = self.adversarial_weight_
        of_codes = weight[:, None, None] if isinstance(weight, Tensor) else weight
        reversed_ = reverse_gradient(codes, of_codes * ramp(self.progress))
        logits = one_per_sample(self.classifier_(reversed_)).float()
        on_source, on_target = logits.chunk(2, 1)
        domain = weighted_domain_loss(on_source, on_target, of_source, of_target)
        self.record("classifier_loss", domain.detach())
        yield "coders", recon + domain + (weight - 1) * domain.detach()

    def train(self, domains, *, lam, weighting=None, adversarial_weight=0.0, **plan):
        """Train on both domains; `weighting` makes it the second stage."""
        self.lam_, self.weighting_ = lam, weighting
        self.adversarial_weight_ = adversarial_weight or None
        self.sample_weight_ = None
        weights = [torch.ones(len(rows), device=rows.device) for rows in domains]
        with self.temporary(domains_=domains, weights_=weights):
            self.run(domains, **plan)
            self.fit_score()
        return self

    def fit_score(self) -> None:
        """Fit the anomaly score, and the weights of the second stage, to this net."""
        if self.weighting_ is None:
            _, target = self.domains_
            self.score_.fit(self.outputs_of_all(target), self.weights_[1])
        else:
            self.weigh(self.weighting_)

    def make_batches(self, dataset):
        sizes = self.batch_size, self.epoch_steps, self.n_estimators, self.rng_
        return PairedBatches(*dataset, self.weights_, *sizes)

    def on_epoch_begin(self, net, **kwargs):
        super().on_epoch_begin(net, **kwargs)
        if self.weighting_ is not None:
            weights = self.weigh(self.weighting_)
            n = effective_sample_size(weights)
            self.history.record("effective_sample_size", n)
            self.history.record("mean_weight", float(weights.mean()))

    def run_state(self):
        names = "weights_", "sample_weight_", "log_tau_"
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def load_run_state(self, state):
        self.weights_[:] = state.pop("weights_")  # the batches hold the list
        self.__dict__.update(state)

    def weigh(self, rule: Weighting) -> Tensor:
        """Fit the anomaly score to the present outputs, and weight samples by it."""
        source, target = self.domains_
        outputs, weights, n_rounds = self.outputs_of_all(target), self.sample_weight_, 1
        if weights is None:
            self.score_.fit(outputs, self.weights_[1])
            # Distances of codes are not informative while anomalies count fully.
            relative_loss = self.score_.terms(outputs)[0]
            weights, n_rounds = self.new_weights(relative_loss), _ROUNDS
        for _ in range(n_rounds):
            self.score_.fit(outputs, weights)
            weights = self.new_weights(self.score_(outputs, rule.gate))
        self.sample_weight_ = weights
        # Weights that are all 0 stay 0 after the division by their mean.
        mean = weights.mean().clamp_min(torch.finfo(weights.dtype).tiny)
        self.weights_[1] = weights / mean if rule.normalised else weights
        if rule.of_source:
            log_g = self.score_(self.outputs_of_all(source), rule.gate)
            self.weights_[0] = rule.weights(log_g, self.log_tau_, self.progress)
        return weights

    def weights_of(self, rows: DeviceDataset) -> Tensor:
        """Return the weights that samples besides the training samples would have."""
        log_g = self.score_(self.outputs_of_all(rows), self.weighting_.gate)
        return self.weighting_.weights(log_g, self.log_tau_, self.progress)

    def new_weights(self, log_g: Tensor) -> Tensor:
        """Set tau by the target samples, and return their weights."""
        rule = self.weighting_
        some = log_g[:: ceil(len(log_g) / self.max_sorted)]
        self.log_tau_ = float(torch.quantile(some, rule.trusted))
        return rule.weights(log_g, self.log_tau_, self.progress)

    def prepared(self, rows: Tensor) -> Tensor:
        """Prepare a batch (k, n, ...) for the networks."""
        return sample_by_sample(self.prepare, rows)

    def outputs(self, rows: Tensor) -> Outputs:
        """Pass samples (n, ...) through the networks."""
        x = self.for_members(rows)
        codes = self.encoder_(x)
        loss = reconstruction_loss(x, self.decoder_(codes))
        if rows.ndim == TABLE.ndim:
            return Outputs(loss, torch.ones_like(loss[0]), codes)
        return Outputs(loss, pooling_loss(rows, codes.shape[2]), codes)

    def for_members(self, rows: Tensor) -> Tensor:
        """Prepare samples (n, ...) for each autoencoder: (k, n, ...)."""
        return super().for_members(self.prepare(rows))

    @torch.no_grad()
    def outputs_of_all(self, rows: DeviceDataset) -> Outputs:
        """Pass all samples through the networks, batch by batch."""
        parts = torch.arange(len(rows), device=rows.device).split(_AT_ONCE)
        columns = zip(*(self.outputs(rows[index]) for index in parts), strict=True)
        loss, pooled, codes = columns
        return Outputs(torch.cat(loss, 1), torch.cat(pooled), torch.cat(codes, 1))


# Stages ---------------------------------------------------------------------------


def pretrain(net, domains, lam, plan, callbacks):
    """Train the autoencoders on both domains (eq. 7), and return the net.

    The result does not depend on the parameters of the second stage, so that fits that
    differ only in these share it.
    """
    return (net.train(domains, lam=lam, callbacks=[LinearDecay(), *callbacks], **plan),)
