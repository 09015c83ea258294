"""The exact properties of the losses and weights."""

import numpy as np
import pytest
import torch

from skanomaly.engine import input_gradient
from skanomaly.networks import StackedCritic
from skanomaly.objectives import (
    anomaly_aware_loss,
    gradient_penalty,
    history_weights,
    least_squares_loss,
    total_variation_loss,
    wasserstein_critic_loss,
)


@pytest.fixture
def pmfs():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(12), size=2)
    return torch.tensor(p), torch.tensor(q)


def expected_loss(values, p, q, lam):
    """Eq. 10 on a finite space, built from the mean over equal shares."""
    counts_p, counts_q = (p * 20000).round().long(), (q * 20000).round().long()
    on_p = values.repeat_interleave(counts_p)
    on_q = values.repeat_interleave(counts_q)
    return total_variation_loss(on_p, on_q, lam)


@pytest.mark.parametrize("lam", [1.0, 10.0])
def test_total_variation_loss_is_least_at_the_optimum_of_eq_11(pmfs, lam):
    counts = [(v * 20000).round() for v in pmfs]
    p, q = (c / c.sum() for c in counts)
    best = torch.sign(q - p) + (q - p) / (lam * (p + q))
    assert best.abs().max() <= 1 + 1 / lam

    values = best.clone().requires_grad_()
    loss = expected_loss(values, p, q, lam)
    loss.backward()
    torch.testing.assert_close(values.grad, torch.zeros_like(best), atol=1e-9, rtol=0)

    distance = 0.5 * (p - q).abs().sum()
    least = -2 * distance - ((q - p).square() / (q + p)).sum() / (2 * lam)  # eq. 12
    torch.testing.assert_close(loss.detach(), least, atol=1e-9, rtol=1e-9)


def test_total_variation_loss_gradient_inside_and_beyond_the_bound(pmfs):
    counts = [(v * 20000).round() for v in pmfs]
    p, q = (c / c.sum() for c in counts)
    lam = 10.0
    values = torch.linspace(-3, 3, 12, dtype=torch.float64).requires_grad_()
    expected_loss(values, p, q, lam).backward()
    v = values.detach()
    beyond = lam * (p + q) * (v.abs() - 1).clamp_min(0) * torch.sign(v)
    torch.testing.assert_close(values.grad, (p - q) + beyond)


def test_total_variation_loss_separates_the_members():
    on_data, on_history = torch.randn(3, 8), torch.randn(3, 5)
    together = total_variation_loss(on_data, on_history, 10.0)
    alone = [total_variation_loss(on_data[k], on_history[k], 10.0) for k in range(3)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_critic_is_to_be_low_on_data():
    loss = wasserstein_critic_loss(torch.tensor([-1.0, -3.0]), torch.tensor([2.0]))
    assert loss == -4


def test_gradient_penalty_of_a_linear_critic():
    direction = torch.tensor([3.0, 4.0])
    points = torch.randn(7, 2)
    slope = input_gradient(lambda x: x @ direction + 1, points)
    assert gradient_penalty(slope) == pytest.approx((5 - 1) ** 2)


def test_closed_form_input_gradient_is_autograd_s():
    torch.default_generator.manual_seed(0)
    critic = StackedCritic(3, (4, 8, 8, 1)).double()
    points = torch.randn(3, 5, 4, dtype=torch.float64)
    closed = input_gradient(critic, points)
    automatic = input_gradient(critic.forward, points)
    torch.testing.assert_close(closed, automatic)
    # and so are its derivatives by the weights, which training needs
    parameters = list(critic.parameters())
    gradients = [
        torch.autograd.grad(gradient_penalty(g).sum(), parameters, allow_unused=True)
        for g in (closed, automatic)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        if ours is None or theirs is None:
            assert all(g is None or not g.any() for g in (ours, theirs))
        else:
            torch.testing.assert_close(ours, theirs)


def test_history_weights_decay_by_the_rate():
    times = torch.arange(0, 251) / 50  # 5 epochs, 50 saves each, as in the paper
    weights = history_weights(times, alpha=1.0, beta=3.0)
    assert weights.sum() == pytest.approx(1)
    assert (weights[:50] == 0).all()
    ratios = weights[51:] / weights[50:-1]
    np.testing.assert_allclose(ratios, np.exp(-3 / 50), rtol=1e-5)
    # Mean time: alpha + 1 / beta - T exp(-beta T) / (1 - exp(-beta T)) with T = 4,
    # up to half the spacing of the sums.
    mean = float((weights * times).sum())
    tail = np.exp(-12)
    assert mean == pytest.approx(1 + 1 / 3 - 4 * tail / (1 - tail), abs=0.5 / 50)
    # Effective number of save points (1 + r) / (1 - r).
    r = np.exp(-3 / 50)
    assert float(1 / weights.square().sum()) == pytest.approx((1 + r) / (1 - r), 1e-3)


def test_history_weights_at_the_ends():
    times = torch.linspace(0, 1, 11)
    np.testing.assert_allclose(history_weights(times, 0.0, 0.0), 1 / 11)
    assert history_weights(times, 0.0, 1e4)[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="alpha=2"):
        history_weights(times, 2, 3.0)


# Anomaly-aware losses: p of normal samples, q of anomalies, r of generated ones -------


@pytest.fixture
def three_pmfs():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(600, rng.dirichlet(np.ones(9), size=3))
    return torch.tensor(counts)


def on_samples(values, counts):
    """Return the values on samples that occur as often as `counts` says."""
    return [values.repeat_interleave(n) for n in counts]


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.3, -2.0)])
def test_anomaly_aware_loss_is_least_at_the_weighted_mean_of_its_targets(
    three_pmfs, a, b
):
    normal, odd, generated = three_pmfs
    targets = a * normal + (a + b) / 2 * odd + b * generated
    best = (targets / three_pmfs.sum(0)).requires_grad_()
    on_normal, on_odd, on_made = on_samples(best, three_pmfs)
    loss = anomaly_aware_loss(on_normal, on_made, on_odd, a=a, b=b)
    loss.backward()
    torch.testing.assert_close(best.grad, torch.zeros(9), atol=1e-6, rtol=0)

    # A table of values that descends this loss ends there, wherever it starts.
    values = torch.full((9,), 5.0, requires_grad=True)
    optimizer = torch.optim.Adam([values], lr=0.1)
    for _ in range(800):
        on_normal, on_odd, on_made = on_samples(values, three_pmfs)
        optimizer.zero_grad()
        anomaly_aware_loss(on_normal, on_made, on_odd, a=a, b=b).backward()
        optimizer.step()
    torch.testing.assert_close(values.detach(), best.detach(), atol=1e-2, rtol=0)


def value_of_the_generator(p, q, r, a=1.0, b=0.0, c=0.75):
    """Compute eq. 16 at the best discriminator of eq. 15."""
    best = (a * p + (a + b) / 2 * q + b * r) / (p + q + r)
    samples = on_samples(best, torch.stack([p, q, r]))
    return sum(least_squares_loss(values, c) for values in samples)


def test_generators_do_best_when_they_match_the_normal_rows(three_pmfs):
    normal, odd, _ = three_pmfs
    bound = 3 * ((1.0 + 0.0) / 2 - 0.75) ** 2
    assert bound == 0.1875
    reached = value_of_the_generator(normal, odd, normal)
    torch.testing.assert_close(reached, torch.tensor(bound))
    rng = np.random.default_rng(1)
    for weights in rng.dirichlet(np.ones(9), size=20):
        other = torch.tensor(rng.multinomial(600, weights))
        assert value_of_the_generator(normal, odd, other) > bound + 1e-4


def test_without_anomalies_two_terms_are_left():
    values = torch.tensor([[0.0, 1.0], [2.0, 2.0]])
    loss = anomaly_aware_loss(values, values, a=1.0, b=0.0)
    torch.testing.assert_close(loss, torch.tensor([1.0, 5.0]))
    third = anomaly_aware_loss(values, values, values + 0.5, a=1.0, b=0.0)
    torch.testing.assert_close(third - loss, torch.tensor([0.5, 4.0]))
