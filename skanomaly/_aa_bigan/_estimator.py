r"""AABiGAN: a bidirectional GAN that keeps away from known anomalies.

The paper is B. Tian, Q. Su and J. Yin, "Anomaly detection by leveraging incomplete
anomalous knowledge with anomaly-aware bidirectional GANs", IJCAI 2022; equation
numbers are its own. x are rows, z are codes; D_xz and D_xx are the discriminators of
pairs (row, code) and (row, reconstruction).
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from .._base import BaseDeepDetector
from .._mixins import ReconstructionMixin, SamplingMixin
from ..engine import AlternatingNet, AverageWeights, KeepBest, LinearDecay, Player
from ..networks import SideBySide, one_per_row, row_by_row
from ..objectives import anomaly_aware_loss, least_squares_loss
from ..utils import _sklearn_compat as sk
from ..utils._docstring import describe_common
from ._networks import image_networks, table_networks, working_shape

#: Learning rate of the discriminators, as a share of that of the other two.
_SLOWER = 0.25
_CRITERIA = "reconstruction", "latent_norm"
#: By how much the AUROC of a few held-out anomalies has to differ to say anything.
_CLEARLY = 0.01
#: Rows that are enough to judge by; the fewest epochs to wait for a better one.
_ENOUGH, _PATIENCE = 1000, 10
_ROLES = "encoder", "generator", "discriminator_xz", "discriminator_xx"


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
        cycle_weight,
        n_known,
        beta2,
        **engine,
    ):
        super().__init__(modules, **engine)
        self.latent_dim = latent_dim
        self.prepare = prepare
        self.targets = targets
        self.cycle_weight = cycle_weight
        self.n_known = n_known
        self.beta2 = beta2

    def players(self):
        adam = partial(torch.optim.Adam, betas=(0.5, self.beta2), fused=True)
        fast, slow = partial(adam, lr=self.lr), partial(adam, lr=_SLOWER * self.lr)
        coders = nn.ModuleList([self.encoder_, self.generator_])
        discriminators = nn.ModuleList([self.discriminator_xz_, self.discriminator_xx_])
        return {
            "discriminators": Player(discriminators, slow),
            "coders": Player(coders, fast),
        }

    def turns(self, batch):
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
        given = [discriminator(*pair).float() for pair in pairs if pair[0].shape[1]]
        return [one_per_row(values) for values in given]

    def prepared(self, rows: Tensor) -> Tensor:
        """Return rows (k, n, ...) as the networks want them."""
        return row_by_row(self.prepare, rows)

    def draw_known(self) -> Tensor:
        """Return known anomalies for each copy, with replacement; none of none."""
        size = self.n_copies, self.n_known if len(self.known_) else 0
        high = max(len(self.known_), 1)
        index = torch.randint(high, size, generator=self.rng_, device=self.device)
        return self.prepared(self.known_[index])

    def run(self, rows, *, known, held_out=None, **plan):
        """Train on `rows` and the anomalies `known`; judge on the rows held out."""
        self.known_, self.held_out_ = known, held_out
        self.cycle_weight_ = self.cycle_weight
        if self.cycle_weight == "auto":
            of_table = 1 / 3 if len(known) else 1 / 2
            self.cycle_weight_ = of_table if len(rows.row_shape) == 1 else 1.0
        try:
            return super().run(rows, **plan)
        finally:
            del self.known_, self.held_out_  # data has no place in a pickle

    @torch.no_grad()
    def draw(self, n: int, seed: int) -> Tensor:
        """Return n generated rows of each game, (k, n, ...)."""
        rng = torch.Generator(self.device).manual_seed(seed)
        noise = self.draw_noise(n, self.latent_dim, rng)
        return torch.cat([self.generator_(part) for part in noise.split(256, 1)], 1)

    def validate(self):
        return {"valid_loss": self.held_out_.loss(self)}

    def for_all(self, rows: Tensor) -> Tensor:
        """Return rows (n, ...), prepared, for each copy: (k, n, ...)."""
        return super().for_all(self.prepare(rows))

    @torch.no_grad()
    def abnormality(self, rows: Tensor, criterion: str) -> Tensor:
        """Return the score of rows (n, ...), higher for the more anomalous."""
        x = self.for_all(rows)
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
        return roc_auc_score(y, torch.cat(parts).numpy(force=True))

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


# The estimator --------------------------------------------------------------------


@describe_common(
    auto_steps="500",
    batch_size="int, default=64",
    auto_batch=" Those of `known_per_batch` join them.",
    auto_lr="For encoder and generator; that of the discriminators is a quarter of it. "
    '"auto" is 1e-3 for tables, where it stays, and 2e-3 for images, where it falls to '
    "0 in the second half.",
    roles='``{"encoder": e, "generator": g, "discriminator_xz": d, '
    '"discriminator_xx": f}``, where ``e(shape, latent_dim)`` returns a module that '
    "maps (n, \\*shape) to (n, latent_dim), ``g(latent_dim, shape)`` one for the way "
    "back, and ``d(shape, latent_dim)`` and ``f(shape)`` ones that map pairs (x, z) "
    "and (x, x') to (n,) or (n, 1). Sides of images have been rounded up, 28 to 32 "
    "for one",
    width="Hidden units of the widest layer for tables; for images channels of the "
    "encoder's finest layer, where 32 gives the paper's networks. "
    '"auto" is 64 or 16.',
    auto_offset="the median of the training scores less five times its distance to "
    "their first quartile",
)
class AABiGAN(SamplingMixin, ReconstructionMixin, BaseDeepDetector):
    r"""Bidirectional GAN that keeps away from known anomalies.

    A generator G and an encoder E learn the distribution of the normal rows, and
    learn that the few collected anomalies have no share in it. Two discriminators
    take part, of pairs (x, z) of rows and codes and of pairs (x, x') of rows and
    reconstructions. They reduce (eq. 15)

    .. math:: E_{p^+}[(D - a)^2] + E_{p_G}[(D - b)^2]
              + E_{p^-}\Big[\Big(D - \frac{a + b}{2}\Big)^2\Big]

    where + are normal rows with their codes, - are anomalies with theirs, and G are
    generated rows with the noise they were made from; generator and encoder bring
    all of these to the value c (eq. 16). At the optimum the generated rows are
    distributed as the normal ones are, whatever the anomalies look like, so that
    anomalies of kinds which nobody has collected are far from them as well.

    Mark known anomalies by ``y == -1`` in :meth:`fit`; all other rows are taken for
    normal ones. Without any, this is an unsupervised bidirectional GAN.

    Parameters
    ----------
    criterion : {"auto", "reconstruction", "latent_norm"}, default="reconstruction"
        What makes a row anomalous: the error of its reconstruction,
        :math:`\|x - G(E(x))\|^2`, or the distance of its code from the middle of the
        prior, :math:`\|E(x)\|^2`. "auto" holds out a tenth of the training rows and
        of the known anomalies, and takes the norm if its AUROC on them is higher by
        more than 0.01. Without known anomalies, or with a single one, it is
        "reconstruction".
    a : float, default=1.0
        What the discriminators aim at for normal pairs (eq. 15).
    b : float, default=0.0
        What they aim at for generated pairs; halfway to `a` for known anomalies.
    c : float, default=0.75
        What generator and encoder want them to say of every pair (eq. 16).
    cycle_weight : float or "auto", default="auto"
        Weight of the pairs (x, G(E(x))) in the loss of generator and encoder, at
        least 0. "auto" is 1 for images; for tables it is 1/3 with known anomalies
        and 1/2 without, as the authors' code has it for images.
    known_per_batch : int or "auto", default="auto"
        Known anomalies that join each batch, drawn with replacement. "auto" is a
        quarter of `batch_size`.
    n_copies : int or "auto", default="auto"
        Games that are played side by side, each with networks of its own; the score
        is the mean of theirs. "auto" is 1 for images; for tables 8, and fewer from 257
        columns on (2048 / d).
    averaging : float or "auto", default="auto"
        In [0, 1): the share of itself that the moving average of the weights keeps
        at each step. The average is what scores; 0 takes the last weights, as in the
        paper. "auto" is 0.9 for tables, 0.98 for images.
    early_stopping : bool, default=False
        Whether to hold out a tenth of the training rows and of the known anomalies,
        to stop when for a fifth of the epochs these have not been told apart better,
        and to keep the best epoch. Without known anomalies, the error of
        reconstruction is what counts.
    latent_dim : int or "auto", default="auto"
        Length of the codes. "auto" is :math:`\lceil \sqrt d \rceil` for tables with
        d columns, 100 for grey images and 128 for others.
    %(common_parameters)s

    Attributes
    ----------
    criterion_ : {"reconstruction", "latent_norm"}
        What the score is.
    %(common_attributes)s

    See Also
    --------
    skanomaly.datasets.labelled_anomalies : Splits data as in the paper.
    skanomaly.model_selection.LeaveAnomalyKindOut : Cross-validation that keeps a kind
        of known anomalies out of the training.

    References
    ----------
    .. [1] B. Tian, Q. Su and J. Yin, "Anomaly detection by leveraging incomplete
       anomalous knowledge with anomaly-aware bidirectional GANs", IJCAI 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import AABiGAN
    >>> rng = np.random.default_rng(0)
    >>> X = np.r_[rng.normal(size=(300, 2)), [[5.0, 5.0], [6.0, 5.0]]]
    >>> y = np.r_[np.ones(300), -1, -1]  # two anomalies are known
    >>> detector = AABiGAN(random_state=0).fit(X, y)
    >>> detector.predict([[0.0, 0.0], [5.0, 6.0], [-9.0, 9.0]])
    array([ 1, -1, -1])
    """

    _reads_labels = True
    _auto_values = {  # noqa: RUF012
        "max_epochs": (500, 500),
        "lr": (1e-3, 2e-3),
        "final_rate": (1.0, 0.0),
        "beta2": (0.999, 0.9),
        "averaging": (0.9, 0.98),
        "width": (64, 16),
    }

    _parameter_constraints: dict = {  # noqa: RUF012
        **BaseDeepDetector._parameter_constraints,
        "criterion": [sk.StrOptions({"auto", *_CRITERIA})],
        "a": [sk.Real],
        "b": [sk.Real],
        "c": [sk.Real],
        "cycle_weight": sk.AUTO_NONNEGATIVE,
        "known_per_batch": sk.AUTO_COUNT,
        "n_copies": sk.AUTO_COUNT,
        "averaging": [sk.Interval(sk.Real, 0, 1, closed="left"), sk.AUTO],
        "early_stopping": ["boolean"],
    }

    def __init__(
        self,
        *,
        criterion="reconstruction",
        a=1.0,
        b=0.0,
        c=0.75,
        cycle_weight="auto",
        known_per_batch="auto",
        n_copies="auto",
        averaging="auto",
        early_stopping=False,
        latent_dim="auto",
        max_epochs="auto",
        batch_size=64,
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
        self.criterion = criterion
        self.a = a
        self.b = b
        self.c = c
        self.cycle_weight = cycle_weight
        self.known_per_batch = known_per_batch
        self.n_copies = n_copies
        self.averaging = averaging
        self.early_stopping = early_stopping
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

    def _make_nets(self, device, seed):
        n_known = self._given("known_per_batch")
        if n_known == "auto":
            n_known = max(self._value("batch_size") // 4, 1)
        net = AnomalyAwareBiGAN(
            self._builders(),
            latent_dim=self._latent_dim(),
            prepare=self._preparation(),
            targets=(self.a, self.b, self.c),
            cycle_weight=self.cycle_weight,
            n_known=n_known,
            n_copies=self._side_by_side(),
            lr=self._value("lr"),
            beta2=self._value("beta2"),
            **self._engine(device, seed),
        )
        return {"net_": net}

    def _latent_dim(self):
        if self.latent_dim != "auto":
            return self._given("latent_dim")
        n, *sides = self._row_shape
        if not sides:
            return ceil(n**0.5)
        return 100 if n == 1 else 128

    def _preparation(self):
        """Return what is done to scaled rows: columns are clipped, images resized."""
        if len(self._row_shape) > 1:
            return partial(_resized, sides=working_shape(self._row_shape)[1:])
        return self._clipping()

    def _builders(self):
        k, width, latent_dim = (
            self._side_by_side(),
            self._value("width"),
            self._latent_dim(),
        )
        shape = self._row_shape
        if self._family(_ROLES) == "mlp":
            builders = table_networks(k, *shape, latent_dim, width)
        else:
            shape = working_shape(shape)
            networks = image_networks(shape, latent_dim, width, self._bounded())
            builders = {r: partial(SideBySide.of, k, b) for r, b in networks.items()}
        sizes = {
            "encoder": (shape, latent_dim),
            "generator": (latent_dim, shape),
            "discriminator_xz": (shape, latent_dim),
            "discriminator_xx": (shape,),
        }
        return builders | self._own_builders(k, sizes)

    # Training

    def _train(self, rows, known, seed):
        net = self._nets_to_train(str(rows.device), seed)["net_"]
        criteria = _CRITERIA if self.criterion == "auto" else (self.criterion,)
        held_out = None
        if self.early_stopping or (len(criteria) > 1 and len(known) > 1):
            rows, known, held_out = self._hold_out_both(rows, known, criteria, seed)
        plan = self._plan("max_epochs", len(rows))
        with self._progress(plan) as callbacks:
            average = AverageWeights(self._value("averaging"))
            if self.early_stopping:
                patience = max(plan["max_epochs"] // 5, _PATIENCE)
                average = KeepBest(patience=patience, decay=average.decay)
            own = [
                LinearDecay(self._value("final_rate"), begin=0.5),
                average,
                *callbacks("training"),
            ]
            net.run(rows, known=known, held_out=held_out, callbacks=own, **plan)
        self.net_ = net
        self.criterion_ = held_out.best(net) if held_out else criteria[0]
        self._record(training=net)

    def _hold_out_both(self, rows, known, criteria, seed):
        rows, normal = self._hold_out(rows, seed)
        anomalous = known.take(torch.arange(0))
        if len(known) > 1:  # the only one is worth more in training
            known, anomalous = self._hold_out(known, seed)
        parts = (part.head(_ENOUGH) for part in (normal, anomalous))
        return rows, known, HeldOut(*parts, criteria)

    # Scores, codes, rows

    def _score_batch(self, batch):
        return -self.net_.abnormality(batch, self.criterion_)

    def _encode_batch(self, batch):
        codes = self.net_.encoder_(self.net_.for_all(batch))
        return codes.transpose(0, 1).flatten(1)

    def _reconstruct_batch(self, batch):
        codes = self.net_.encoder_(self.net_.for_all(batch))
        return _resized(self.net_.generator_(codes).mean(0), self._row_shape[1:])

    def _draw_rows(self, n, seed):
        made = self.net_.draw(n, seed)
        rows = _resized(made.flatten(0, 1), self._row_shape[1:])
        return rows.unflatten(0, made.shape[:2])


def _resized(rows: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return images with those sides; tables, which have none, as they are."""
    if not sides or rows.shape[2:] == sides:
        return rows
    return F.interpolate(rows, size=sides, mode="bilinear")
