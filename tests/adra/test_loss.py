"""The loss of ADRA: eq. 1."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from skanomaly.objectives import hypersphere_classification_loss, hypersphere_radius

from .parts import double, ignore_missing_corpus

pytestmark = ignore_missing_corpus


def code(squared, dtype=torch.double):
    return torch.tensor([[squared**0.5, 0.0]], dtype=dtype)


def loss_of_normal(codes):
    return hypersphere_classification_loss(codes, codes[:0])


def loss_of_corpus(codes):
    return hypersphere_classification_loss(codes[:0], codes)


def test_the_radius_is_that_of_the_paper():
    assert hypersphere_radius(torch.zeros(2, 3)).tolist() == [0, 0]
    assert float(hypersphere_radius(code(3.0))) == pytest.approx(1, abs=1e-12)
    assert float(hypersphere_radius(code(1.0))) == pytest.approx(2**0.5 - 1, abs=1e-12)
    codes = double(2, 5, 4)
    expected = ((codes**2).sum(-1) + 1).sqrt() - 1
    torch.testing.assert_close(hypersphere_radius(codes), expected)
    short_code = hypersphere_radius(code(1e-8, torch.float32))
    assert float(short_code) == pytest.approx(5e-9, rel=1e-5)


@pytest.mark.parametrize(
    ("squared", "on_normal", "on_corpus", "dtype"),
    [
        (3.0, 1.0, 0.4586751, torch.double),
        (1.0, 0.4142136, 1.0813417, torch.double),
        (1e-8, 5e-9, 19.1138, torch.float32),
    ],
)
def test_values_of_the_loss(squared, on_normal, on_corpus, dtype):
    row, close = code(squared, dtype), partial(pytest.approx, rel=2e-6)
    assert float(loss_of_normal(row)) == close(on_normal)
    assert float(loss_of_corpus(row)) == close(on_corpus)


def test_the_loss_of_normal_samples_at_the_origin_is_zero():
    assert float(loss_of_normal(torch.zeros(3, 2))) == 0


def test_the_loss_is_the_mean_over_all_samples():
    normal, corpus = double(3, 4), double(5, 4)
    terms = [loss_of_normal(row[None]) for row in normal]
    terms += [loss_of_corpus(row[None]) for row in corpus]
    loss = hypersphere_classification_loss(normal, corpus)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert not torch.isclose(loss, hypersphere_classification_loss(corpus, normal))
    # Each member of an ensemble has its loss.
    stacked = hypersphere_classification_loss(
        torch.stack([normal, 2 * normal]), torch.stack([corpus, 2 * corpus])
    )
    twice = hypersphere_classification_loss(2 * normal, 2 * corpus)
    torch.testing.assert_close(stacked, torch.stack([loss, twice]))


def test_the_two_terms_are_cross_entropy_of_the_probability_to_be_normal():
    codes = double(9, 4)
    probability = (-hypersphere_radius(codes)).exp()
    for loss, label in ((loss_of_normal, 1.0), (loss_of_corpus, 0.0)):
        labels = torch.full_like(probability, label)
        expected = F.binary_cross_entropy(probability, labels)
        torch.testing.assert_close(loss(codes), expected)


def test_gradients_draw_normal_samples_to_the_origin_and_push_the_corpus_away():
    for loss, sign in ((loss_of_normal, 1), (loss_of_corpus, -1)):
        codes = double(6, 3).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(codes), codes)
        assert (sign * (gradient * codes).sum(1) > 0).all()


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-4, 1e4])
def test_gradients_are_finite_everywhere(size):
    codes = torch.full((4, 3), size, requires_grad=True)
    loss = hypersphere_classification_loss(codes[:2], codes[2:])
    (gradient,) = torch.autograd.grad(loss, codes)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
