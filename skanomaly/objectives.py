r"""Losses, weights and scores of the papers, as pure functions of tensors.

Each section of this file names the paper whose equation numbers it uses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "anomaly_aware_loss",
    "coverage",
    "cycle_loss",
    "drift",
    "effective_sample_size",
    "gradient_penalty",
    "history_weights",
    "hypersphere_classification_loss",
    "hypersphere_radius",
    "importance_weights",
    "least_squares_loss",
    "min_max_normalised",
    "origin_distance",
    "ramp",
    "reconstruction_loss",
    "residual",
    "reverse_gradient",
    "total_variation_loss",
    "transfer_loss",
    "upper_error",
    "wasserstein_critic_loss",
    "weighted_domain_loss",
]

# Chatillon & Ballester (2020), "History-based anomaly detector: an adversarial
# approach to anomaly detection". Their critic is LOW on data and HIGH on generated
# samples, the reverse of most code.


def wasserstein_critic_loss(on_data: Tensor, on_generated: Tensor) -> Tensor:
    r"""Compute the loss of the critic (eq. 2), without the gradient penalty.

    .. math:: E_{x \sim P_{data}}[D(x)] - E_{x \sim P_G}[D(x)]

    Parameters
    ----------
    on_data, on_generated : Tensor of shape (..., n)
        The critic's values.

    Returns
    -------
    Tensor of shape (...)
        Minus the estimate of the Wasserstein-1 distance.
    """
    return on_data.mean(-1) - on_generated.mean(-1)


def gradient_penalty(slope: Tensor) -> Tensor:
    r"""Compute the penalty on slopes other than 1 (Gulrajani et al. 2017, eq. 3).

    .. math:: E_{\hat x}[(\|\nabla_{\hat x} D(\hat x)\|_2 - 1)^2],
              \quad \hat x = u x + (1 - u) G(z)

    Parameters
    ----------
    slope : Tensor of shape (..., n, d)
        The gradient at n points between data and generated samples.

    Returns
    -------
    Tensor of shape (...)
        The mean over the n points; 0 where every slope is 1.
    """
    return (slope.norm(dim=-1) - 1).square().mean(-1)


def history_weights(times: Tensor, alpha: float, beta: float) -> Tensor:
    r"""Compute the share of each save point in the history (eqs 3 and 13).

    .. math:: w_i \propto 1[t_i \ge \alpha] \, e^{-\beta t_i}

    Parameters
    ----------
    times : Tensor of shape (n,)
        Times of the save points, equally spaced.
    alpha : float
        Earliest time with a weight, up to rounding, in the unit of `times`.
    beta : float
        Rate of decay, per unit of `times`.

    Returns
    -------
    Tensor of shape (n,), float64
        Nonnegative weights with sum 1.

    Raises
    ------
    ValueError
        If no save point lies at `alpha` or later.
    """
    times = times.double()
    # Up to rounding: 9 / 11 of a run is not less than `alpha=9 / 11`.
    counted = times >= alpha - 1e-9 * times.max()
    if not counted.any():
        raise ValueError(
            f"alpha={alpha} leaves no save point: the last one is at {times.max()}."
        )
    logits = torch.where(counted, -beta * times, -torch.inf)
    return torch.softmax(logits, 0)


def total_variation_loss(on_data: Tensor, on_history: Tensor, lam: float) -> Tensor:
    r"""Compute the loss of the detector (eq. 10).

    .. math:: E_{P_{data}}[D] - E_{P_{hist}}[D] + \lambda \,
              E_{(P_{data} + P_{hist})/2} [d(D, [-1, 1])^2]

    Its minimum over all functions (eqs 11, 12) is reached at
    :math:`D^* = s + (q - p) / (\lambda (q + p))` with the densities p of the data,
    q of the history and :math:`s = sign(q - p)`.

    Parameters
    ----------
    on_data, on_history : Tensor of shape (..., n)
        The detector's values.
    lam : float
        Weight of the bound on the values.

    Returns
    -------
    Tensor of shape (...)
        At least :math:`-2 \delta - 1 / \lambda`, with the total variation
        distance :math:`\delta` in [0, 1].
    """
    beyond = [torch.relu(v.abs() - 1).square().mean(-1) for v in (on_data, on_history)]
    distance = wasserstein_critic_loss(on_data, on_history)
    return distance + lam * 0.5 * (beyond[0] + beyond[1])


def coverage(data: Tensor, samples: Tensor) -> float:
    """Compute the share of `data` within reach of `samples` (eq. 4).

    The paper's hypothesis is that the history covers the data. Here a data point is
    covered if its nearest sample is within the 95th percentile of the distances of
    the samples to their own nearest neighbours.

    Parameters
    ----------
    data : Tensor of shape (n, ...)
        Data that the generators have not seen.
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


# Tian, Su & Yin (2022), "Anomaly detection by leveraging incomplete anomalous
# knowledge with anomaly-aware bidirectional GANs". Values are not bounded.


def least_squares_loss(values: Tensor, target: float) -> Tensor:
    r"""Compute one term of the least-squares losses (eqs 15 and 16).

    .. math:: E[(D - t)^2]

    Parameters
    ----------
    values : Tensor of shape (..., n)
        A discriminator's values.
    target : float
        Their target, t.

    Returns
    -------
    Tensor of shape (...)
        At least 0.
    """
    return (values - target).square().mean(-1)


def anomaly_aware_loss(
    on_normal: Tensor,
    on_generated: Tensor,
    on_anomalies: Tensor | None = None,
    *,
    a: float,
    b: float,
) -> Tensor:
    r"""Compute the loss of a discriminator (eq. 15).

    .. math:: E_{p^+}[(D - a)^2] + E_{p_G}[(D - b)^2]
              + E_{p^-}\Big[\Big(D - \frac{a + b}{2}\Big)^2\Big]

    Its minimum over all functions is reached at
    :math:`D^* = (a p^+ + \frac{a + b}{2} p^- + b p_G) / (p^+ + p^- + p_G)`. The
    generator and the encoder then do best with :math:`p_G = p^+`, in spite of the
    anomalies, even if these overlap the normal samples (Theorem 3).

    Parameters
    ----------
    on_normal, on_generated : Tensor of shape (..., n)
        The discriminator's values on normal samples, and on generated ones.
    on_anomalies : Tensor of shape (..., m) or None
        Its values on known anomalies. None leaves out the third term, as for a
        least-squares GAN.
    a, b : float
        Targets of normal and generated samples.

    Returns
    -------
    Tensor of shape (...)
        At least 0.
    """
    loss = least_squares_loss(on_normal, a) + least_squares_loss(on_generated, b)
    if on_anomalies is not None:
        loss = loss + least_squares_loss(on_anomalies, (a + b) / 2)
    return loss


# Fan et al. (2021), "Importance weighted adversarial discriminative transfer for
# anomaly detection". F is the encoder, D the decoder, C the classifier of domains:
# near 0 on the source, near 1 on the target.


def reconstruction_loss(samples: Tensor, reconstruction: Tensor) -> Tensor:
    r"""Compute the mean squared error of each sample (eq. 4).

    .. math:: L(x) = \|D(F(x)) - x\|^2 / d

    Parameters
    ----------
    samples, reconstruction : Tensor of shape (k, n, ...)
        Samples of d numbers, and their reconstructions by k networks.

    Returns
    -------
    Tensor of shape (k, n)
        At least 0.
    """
    return (samples - reconstruction).square().flatten(2).mean(2)


def transfer_loss(on_source: Tensor, on_target: Tensor, lam: float) -> Tensor:
    r"""Compute the loss of encoder and decoder (eqs 1, 7 and 8).

    .. math:: E_{p_s}[L] + \lambda E_{p_t}[w L]

    Parameters
    ----------
    on_source, on_target : Tensor of shape (..., n)
        Losses of samples of each domain; those of the target times their weights.
    lam : float
        Weight of the target, beside 1 for the source.

    Returns
    -------
    Tensor of shape (...)
        At least 0.
    """
    return on_source.mean(-1) + lam * on_target.mean(-1)


def importance_weights(loss: Tensor, eta: float, beta: float) -> Tensor:
    r"""Compute the weight of each sample as a normal one (eq. 5).

    .. math:: \tilde w = \sigma(\eta L + \beta)

    With :math:`\eta = -\beta / \tau` this is
    :math:`\sigma(\beta (1 - L / \tau))`, which does not depend on the unit of L.

    Parameters
    ----------
    loss : Tensor of shape (...)
        The loss L of each sample, or an anomaly score in its place.
    eta : float
        Slope, below 0.
    beta : float
        Above 0. Samples with :math:`L = -\beta / \eta` have a weight of 1/2.

    Returns
    -------
    Tensor of shape (...)
        In [0, 1], falling with the loss. Without a gradient.
    """
    return torch.sigmoid(eta * loss + beta).detach()


def effective_sample_size(weights: Tensor) -> float:
    r"""Compute the effective number of weighted samples (Kish).

    .. math:: (\sum w)^2 / \sum w^2

    Parameters
    ----------
    weights : Tensor of shape (n,)
        At least 0.

    Returns
    -------
    float
        In [1, n]; 0 if all weights are.
    """
    total = weights.double().sum().square()
    return float(total / weights.double().square().sum().clamp(min=1e-300))


def weighted_domain_loss(
    on_source: Tensor,
    on_target: Tensor,
    source_weight: Tensor | float,
    target_weight: Tensor,
) -> Tensor:
    r"""Compute the loss of the classifier of domains (minus eq. 6).

    .. math:: -E_{p_t}[w \log C] - E_{p_s}[\log(1 - C)]

    Its minimum over all functions is reached at :math:`C^* = w p_t / (w p_t + p_s)`.
    There it is :math:`2 \log 2 - 2 JS(w p_t, p_s)`, with the Jensen-Shannon
    divergence, if :math:`E_{p_t}[w] = 1`; the encoder makes it as large as it can.

    Parameters
    ----------
    on_source, on_target : Tensor of shape (..., n)
        The classifier's logits.
    source_weight, target_weight : Tensor of shape (n,), or float
        Weight of each sample; the paper has 1 for the source.

    Returns
    -------
    Tensor of shape (...)
        At least 0.
    """
    source_loss = source_weight * F.softplus(on_source)
    target_loss = target_weight * F.softplus(-on_target)
    return source_loss.mean(-1) + target_loss.mean(-1)


def reverse_gradient(values: Tensor, strength: float | Tensor) -> Tensor:
    """Return `values`, with a reversed gradient in the backward pass.

    Parameters
    ----------
    values : Tensor
        Any values.
    strength : float or Tensor
        Factor of the gradient, besides -1; a tensor is broadcast.

    Returns
    -------
    Tensor
        Equal to `values` to the bit.
    """
    return values.detach() + strength * (values.detach() - values)


def ramp(progress: float) -> float:
    r"""Compute the height of a rising schedule (the authors' code).

    .. math:: 2 / (1 + e^{-p}) - 1

    Parameters
    ----------
    progress : float
        Share p of the stage that is done, in [0, 1].

    Returns
    -------
    float
        0 at the start, 0.462 at the end.
    """
    return math.tanh(progress / 2)


# Lengths of latent codes and maps of errors, for several methods.


_UPPER, _BLOCK = 0.02, 3  # share of the blocks that count; their side in pixels
_LEAST_ERROR = 0.1  # added to the usual error, as a share of its mean over the pixels


def upper_error(errors: Tensor, usual: Tensor) -> Tensor:
    r"""Compute the highest errors of each image, relative to usual errors.

    .. math:: \operatorname{mean}_{2 \%} B_3\Big(\frac{e}{u + 0.1 \, \bar u}\Big)

    :math:`B_3` takes means of blocks of 3 x 3 pixels. The mean is over the highest
    2 % of the blocks of an image, so that a small defect raises it.

    Parameters
    ----------
    errors : Tensor of shape (n, h, w) or (n, t, h, w)
        Squared errors e.
    usual : Tensor of shape (h, w) or (t, h, w)
        Mean errors u of normal images, with the mean :math:`\bar u`.

    Returns
    -------
    Tensor of shape (n,)
        At least 0.
    """
    unit = (usual + _LEAST_ERROR * usual.mean()).clamp(min=1e-12)
    frames = (errors / unit).flatten(0, -3)[:, None]
    blocks = F.avg_pool2d(frames, _BLOCK, 1, _BLOCK // 2, count_include_pad=False)
    blocks = blocks.view(errors.shape[0], -1)  # exporters take len for a constant
    return blocks.topk(math.ceil(_UPPER * blocks.shape[1]), 1).values.mean(1)


# Berg, Felsberg & Ahlberg (2019), "Unsupervised adversarial learning of anomaly
# detection in the wild". G is the generator, E the encoder. The critic is HIGH on data.


def drift(on_data: Tensor) -> Tensor:
    r"""Compute the penalty on the drift of a critic's values (Karras et al. 2017).

    .. math:: E_{x \sim p_{data}}[D(x)^2]

    Parameters
    ----------
    on_data : Tensor of shape (..., n)
        The critic's values.

    Returns
    -------
    Tensor of shape (...)
        At least 0.
    """
    return on_data.square().mean(-1)


def cycle_loss(before: Tensor, after: Tensor) -> Tensor:
    r"""Compute the loss of the encoder (eq. 6, or with latent codes eq. 7).

    .. math:: d_I = \|G(z) - G(E(G(z)))\|_1, \quad d_z = \|z - E(G(z))\|_1

    Norms are means here, as in the authors' code, and do not depend on the size of
    images.

    Parameters
    ----------
    before, after : Tensor of shape (k, n, ...)
        Images, or latent codes, before and after encoder and generator.

    Returns
    -------
    Tensor of shape (k,)
        At least 0.
    """
    return (before - after).abs().flatten(1).mean(1)


def min_max_normalised(images: Tensor) -> Tensor:
    r"""Scale each image to the range [0, 1] (eq. 3).

    .. math:: w(X) = \frac{X - \min(X)}{\max(X) - \min(X)}

    Parameters
    ----------
    images : Tensor of shape (n, ...)
        Images; minimum and maximum are over all pixels and channels.

    Returns
    -------
    Tensor of shape (n, ...)
        Scaled images, the same for :math:`aX + b` with :math:`a > 0`; 0 for a constant
        image.
    """
    flat = images.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    # An image that is constant up to rounding counts as constant.
    size = torch.maximum(low.abs(), high.abs())
    constant = high - low <= 1e-6 * size
    scaled = (flat - low) / torch.where(constant, torch.inf, high - low)
    return scaled.view_as(images)


def residual(samples: Tensor, reconstruction: Tensor, norm: str) -> Tensor:
    r"""Compute the distance of each sample from its reconstruction (eq. 2 or 8).

    .. math:: L_n = \frac{1}{N_X} \|w(Q) - w(G(E(Q)))\|_2

    Parameters
    ----------
    samples, reconstruction : Tensor of shape (n, ...)
        Samples Q of :math:`N_X` numbers and their reconstructions; normalised by
        :func:`min_max_normalised` for eq. 2, as they are for eq. 8.
    norm : {"paper", "rms"}
        "paper" divides by :math:`N_X` as printed, "rms" by :math:`\sqrt{N_X}`, for a
        root mean square.

    Returns
    -------
    Tensor of shape (n,)
        At least 0.
    """
    difference = (samples - reconstruction).flatten(1)
    n_numbers = difference.shape[1]
    size = n_numbers if norm == "paper" else n_numbers**0.5
    return difference.norm(dim=1) / size


def origin_distance(codes: Tensor) -> Tensor:
    r"""Compute minus the distance of each latent code from the origin (eq. 4).

    .. math:: L_o = -\frac{1}{\sqrt{N_z}} \|\hat z\|_2

    Parameters
    ----------
    codes : Tensor of shape (..., l)
        Latent codes of :math:`N_z` numbers.

    Returns
    -------
    Tensor of shape (...)
        At most 0.
    """
    return -codes.norm(dim=-1) / codes.shape[-1] ** 0.5


# Deecke, Ruff, Vandermeulen & Bilen (2020), "Deep anomaly detection by residual
# adaptation". Their eq. 1 has two misprints: the labels are swapped, and the minus sign
# of the second term is missing, so that the loss as printed has no lower bound. This is
# the loss of their reference, Ruff et al. (2020), "Rethinking assumptions in deep
# anomaly detection".

_LEAST_RADIUS = 1e-9  # of samples of the corpus: the gradient grows as 1 / h


def hypersphere_radius(codes: Tensor) -> Tensor:
    r"""Return the distance of each latent code from the origin, as a smooth radius.

    .. math:: h(f) = \sqrt{\|f\|^2 + 1} - 1

    Parameters
    ----------
    codes : Tensor of shape (..., l)
        Latent codes f.

    Returns
    -------
    Tensor of shape (...)
        At least 0: :math:`\|f\|^2 / 2` near the origin, :math:`\|f\| - 1` far away.
    """
    squared = codes.square().sum(-1)
    # In float32 the formula of the docstring is 0 for short codes.
    return squared / ((squared + 1).sqrt() + 1)


def hypersphere_classification_loss(on_normal: Tensor, on_corpus: Tensor) -> Tensor:
    r"""Return the loss that separates normal samples from a corpus by a sphere (eq. 1).

    .. math:: \frac{1}{N} \Big( \sum_{x \in S} h(f(x))
              - \sum_{x \in Q} \log\big(1 - e^{-h(f(x))}\big) \Big)

    It is the cross-entropy, with :math:`e^{-h}` as the probability that a sample is
    normal: one half at :math:`h = \log 2`.

    Parameters
    ----------
    on_normal : Tensor of shape (..., n, l)
        Latent codes of normal samples S.
    on_corpus : Tensor of shape (..., m, l)
        Latent codes of samples of the corpus Q; m may be 0.

    Returns
    -------
    Tensor of shape (...)
        The mean over the :math:`N = n + m` samples.
    """
    inside = hypersphere_radius(on_normal)
    outside = hypersphere_radius(on_corpus).clamp_min(_LEAST_RADIUS)
    outside = -torch.log(-torch.expm1(-outside))
    return torch.cat([inside, outside], -1).mean(-1)
