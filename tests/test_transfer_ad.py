"""TransferAD: the paper's weights and losses, its networks, and its behaviour."""

import math
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn

from skanomaly import TransferAD, objectives
from skanomaly._transfer_ad import _net
from skanomaly._transfer_ad._net import TransferNet
from skanomaly._transfer_ad._networks import Layers, StackedClassifier
from skanomaly._transfer_ad._score import AnomalyScore, Outputs, pooling_loss
from skanomaly.datasets import across_domains, fetch_mnist, fetch_usps
from skanomaly.exceptions import FitInterruptedWarning, SaturatedWeightsWarning
from skanomaly.metrics import detector_roc_auc
from skanomaly.model_selection import TargetKFold
from skanomaly.objectives import (
    effective_sample_size,
    importance_weights,
    ramp,
    reconstruction_loss,
    reverse_gradient,
    transfer_loss,
    weighted_domain_loss,
)
from skanomaly.utils._dropout import dropout_factors

SHORT = {"random_state": 0, "max_epochs": 3, "transfer_epochs": 3, "width": 8}
short = partial(TransferAD, **SHORT)


@pytest.fixture(scope="module")
def domains():
    """Return source samples, target samples and the labels of these, +1 or -1."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 6))

    def band(n, shift):
        codes = rng.normal(size=(n, 2))
        return codes @ mixing + 0.1 * rng.normal(size=(n, 6)) + shift

    shift = np.full(6, 0.5)
    odd = rng.normal(size=(60, 6)) * 2 + shift
    y = np.repeat([1, -1], [140, 60])
    order = rng.permutation(200)
    return band(200, 0), np.r_[band(140, shift), odd][order], y[order]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 40, 1, 9, 12)).astype(np.uint8)


# Equations ----------------------------------------------------------------------------


def test_weights_are_half_at_beta_over_eta_and_fall_with_the_loss():
    loss = torch.tensor([0.0, 1e-3, 2e-3, 4e-3], requires_grad=True)
    weights = importance_weights(loss, eta=-1e5, beta=200.0)
    assert float(weights[2]) == pytest.approx(0.5, abs=1e-5)
    assert (weights.diff() <= 0).all()
    assert ((weights >= 0) & (weights <= 1)).all()
    smooth = importance_weights(torch.linspace(0, 5, 30), -1.0, 2.0)
    assert (smooth.diff() < 0).all()
    assert ((smooth > 0) & (smooth < 1)).all()


def test_no_gradient_goes_through_the_weights():
    values = torch.linspace(0.1, 2, 5)
    gradients = []
    for weigh in (partial(importance_weights, eta=-3.0, beta=3.0), torch.detach):
        loss = values.clone().requires_grad_()
        weights = weigh(loss)
        assert not weights.requires_grad
        if weigh is torch.detach:
            weights = importance_weights(values, -3.0, 3.0)
        transfer_loss(loss, weights * loss, 0.5).backward()
        gradients.append(loss.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_loss_of_both_domains():
    on_source, on_target = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 8.0])
    assert transfer_loss(on_source, on_target, 0.5) == 2 + 0.5 * 6
    assert transfer_loss(on_source, on_target, 0.0) == 2
    rows = torch.arange(12.0).reshape(1, 2, 3, 2)
    expected = torch.tensor([[1.0, 4.0]])
    reconstruction = rows + torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(reconstruction_loss(rows, reconstruction), expected)


def test_the_best_classifier_and_the_value_of_the_game():
    # Three places; samples stand for densities by their weights.
    p_s = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    p_t = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    weights = torch.tensor([1.5, 2.0, 0.5], dtype=torch.float64)
    assert (weights * p_t).sum() == pytest.approx(1)
    best = weights * p_t / (weights * p_t + p_s)

    def loss(logits):
        n = len(logits)  # means over places, put right by the densities
        return weighted_domain_loss(logits, logits, n * p_s, n * weights * p_t)

    logits = torch.logit(best).requires_grad_()
    value = loss(logits)
    (slope,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(slope, torch.zeros(3, dtype=torch.float64))
    for change in torch.randn(20, 3, generator=torch.Generator().manual_seed(0)):
        assert loss(logits + change) > value
    middle = (weights * p_t + p_s) / 2
    divergence = (p_s * (p_s / middle).log()).sum() / 2
    divergence += (weights * p_t * (weights * p_t / middle).log()).sum() / 2
    assert float(value.detach()) == pytest.approx(
        2 * math.log(2) - 2 * float(divergence)
    )


def test_samples_of_weight_zero_do_not_count_and_of_weight_one_count_in_full():
    on_source, on_target = torch.randn(2, 8, requires_grad=True)
    ones = torch.ones(8)
    none = weighted_domain_loss(on_source, on_target, 1.0, 0 * ones)
    gradient = torch.autograd.grad(none, (on_source, on_target))
    assert (gradient[0] != 0).all()
    assert (gradient[1] == 0).all()
    everything = weighted_domain_loss(on_source, on_target, 1.0, ones)
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(on_source, 0 * ones) + bce(on_target, ones)
    torch.testing.assert_close(everything, expected)


def test_the_gradient_is_turned_round_and_nothing_else():
    x = torch.randn(7, requires_grad=True)
    y = reverse_gradient(x, 0.3)
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad((y * torch.arange(7.0)).sum(), x)
    torch.testing.assert_close(gradient, -0.3 * torch.arange(7.0))


def test_ramps():
    assert ramp(0) == 0
    assert ramp(1) == pytest.approx(0.46212, abs=1e-5)
    assert ramp(0.5) == pytest.approx(2 / (1 + math.exp(-0.5)) - 1)


def test_effective_sample_size():
    assert effective_sample_size(torch.ones(9)) == 9
    assert effective_sample_size(torch.tensor([1.0, 0, 0])) == 1
    assert effective_sample_size(torch.tensor([1.0, 1, 2])) == pytest.approx(16 / 6)
    assert effective_sample_size(torch.zeros(3)) == 0


# Networks -----------------------------------------------------------------------------


def test_digits_have_the_paper_s_networks():
    layers = Layers((3, 28, 28), 32)
    encoder, decoder = layers.encoder(72), layers.decoder(72)
    convolutions = [m for m in encoder if isinstance(m, nn.Conv2d)]
    sizes = [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convolutions]
    assert sizes == [(32, 3, 2), (16, 3, 2), (8, 3, 3)]
    back = [m for m in decoder if isinstance(m, nn.ConvTranspose2d)]
    sizes = [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in back]
    assert sizes == [(16, 3, 3), (32, 3, 2), (3, 3, 2)]
    assert isinstance(decoder[-1], nn.ConvTranspose2d)
    x = torch.randn(2, 3, 28, 28)
    assert encoder(x).shape == (2, 72)
    assert decoder(encoder(x)).shape == x.shape
    classifier = layers.classifier(72)
    linear = [m for m in classifier if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (72, 128),
        (128, 128),
        (128, 1),
    ]
    assert [m.p for m in classifier if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert classifier(encoder(x)).shape == (2,)


def test_clips_have_the_paper_s_networks():
    layers = Layers((1, 16, 256, 256), 96)
    assert layers.channels == [1, 96, 128, 256, 256]
    assert layers.strides == [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert layers.sides[-1] == (2, 16, 16)
    layers = Layers((1, 16, 32, 32), 6)
    x = torch.randn(2, 1, 16, 32, 32)
    latent_dim = math.prod(layers.code_shape)
    codes = layers.encoder(latent_dim)(x)
    assert layers.decoder(latent_dim)(codes).shape == x.shape
    assert layers.classifier(latent_dim)(codes).shape == (2,)


@pytest.mark.parametrize(
    "shape", [(1, 4, 5), (3, 9, 12), (2, 33, 64), (3, 130, 70), (1, 5, 9, 12)]
)
@pytest.mark.parametrize("latent_dim", ["natural", 7])
def test_samples_of_any_size_are_reconstructed_in_that_size(shape, latent_dim):
    layers = Layers(shape, 12)
    if latent_dim == "natural":
        latent_dim = math.prod(layers.code_shape)
    x = torch.randn(2, *shape)
    codes = layers.encoder(latent_dim)(x)
    assert codes.shape == (2, latent_dim)
    assert layers.decoder(latent_dim)(codes).shape == x.shape
    assert layers.classifier(latent_dim)(codes).shape == (2,)


def test_classifiers_of_tables_drop_units_in_training_alone():
    classifier = StackedClassifier(2, 3)
    x = torch.randn(2, 50, 3)
    assert not torch.equal(classifier(x), classifier(x))
    classifier.eval()
    assert torch.equal(classifier(x), classifier(x))
    assert classifier(x).shape == (2, 50)


def test_a_half_of_the_units_is_dropped_by_a_bit_each():
    torch.default_generator.manual_seed(0)
    x = torch.empty(0)
    factors = dropout_factors(x, (1000, 310), 0.5)
    assert set(factors.unique().tolist()) == {0.0, 2.0}
    signs = factors.flatten() - 1  # as many of each, at any of the 31 places of a word
    assert signs.view(-1, 31).mean(0).abs().max() < 5 * 10_000**-0.5
    for lag in (1, 2, 30, 31, 32, 62, 64, 310):
        assert abs(float((signs[lag:] * signs[:-lag]).mean())) < 5 * 310_000**-0.5
    assert not torch.equal(dropout_factors(x, (1000, 310), 0.5), factors)
    quarter = dropout_factors(x, (1000, 310), 0.25)
    assert (quarter > 0).float().mean() == pytest.approx(0.75, abs=0.01)
    assert quarter.max() == pytest.approx(4 / 3)


# The anomaly score ------------------------------------------------------------------


def random_outputs(rng, n=200, k=2, length=3):
    return Outputs(
        torch.from_numpy(rng.chisquare(3, (k, n))).float(),
        torch.from_numpy(rng.uniform(0.5, 2, n)).float(),
        torch.from_numpy(rng.normal(size=(k, n, length))).float(),
    )


def test_reconstruction_is_the_loss_itself():
    outputs = random_outputs(np.random.default_rng(0))
    log_g = AnomalyScore(2, 3)(outputs, "reconstruction")
    torch.testing.assert_close(log_g.exp(), outputs.loss.mean(0))


def test_the_loss_is_relative_to_that_of_pooling():
    outputs = random_outputs(np.random.default_rng(0))
    score = AnomalyScore(2, 3)
    score.fit(outputs, torch.ones(200))
    pooled = outputs.pooling_loss + 0.01 * outputs.pooling_loss.mean()
    expected = (outputs.loss / pooled).log().mean(0)
    torch.testing.assert_close(score.terms(outputs)[0], expected)


def test_samples_without_weight_do_not_count():
    rng = np.random.default_rng(0)
    outputs = random_outputs(rng)
    weights = torch.ones(200)
    weights[150:] = 0
    first, second = AnomalyScore(2, 3), AnomalyScore(2, 3)
    outputs = outputs._replace(pooling_loss=torch.ones(200))
    first.fit(outputs, weights)
    second.fit(
        Outputs(*(part[:, :150] if part.ndim > 1 else part[:150] for part in outputs)),
        torch.ones(150),
    )
    for one, other in zip(first.buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    log_g = first(outputs, "combined")[:150]
    # Both terms have mean 0 and deviation 1 among the samples that count.
    assert abs(log_g.mean()) < 1e-5
    terms = (first.terms(outputs)[:, :150] - first.location) / first.spread
    torch.testing.assert_close(terms.std(1, correction=0), torch.ones(2))


def test_the_distance_of_codes_is_mahalanobis():
    from scipy.spatial.distance import cdist

    outputs = random_outputs(np.random.default_rng(0), n=5000, k=1)
    score = AnomalyScore(1, 3)
    score.fit(outputs, torch.ones(5000))
    codes = outputs.codes[0].double().numpy()
    covariance = np.cov(codes.T, bias=True)
    covariance = 0.7 * covariance + 0.3 * np.trace(covariance) / 3 * np.eye(3)
    inverse = np.linalg.inv(covariance)
    distance = cdist(codes, codes.mean(0, keepdims=True), "mahalanobis", VI=inverse)
    found = score.terms(outputs)[1].exp().numpy()
    np.testing.assert_allclose(found, distance[:, 0] ** 2, rtol=1e-3)


def test_long_codes_are_pooled():
    rng = np.random.default_rng(0)
    short_codes = torch.from_numpy(rng.normal(size=(1, 50, 1024))).float()
    outputs = random_outputs(rng, n=50, k=1)._replace(codes=short_codes)
    longer = outputs._replace(codes=short_codes.repeat_interleave(3, 2))
    results = []
    for part in (outputs, longer):
        score = AnomalyScore(1, part.codes.shape[2])
        score.fit(part, torch.ones(50))
        assert score.distance.precision.shape == (1, 1024, 1024)
        results.append(score(part, "combined"))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning")
@pytest.mark.parametrize("kind", ["digits", "constant"])
def test_images_with_hardly_any_detail(kind):
    images = load_digits().images[:80, None]
    if kind == "constant":
        images = np.full((80, 1, 12, 12), 7.0)
        images[::2] = 9
    short(width=32).fit(images)
    domain = np.repeat([1, -1], 40)
    detector = short(width=32).fit(images, sample_domain=domain)
    assert np.isfinite(detector.score_samples(images)).all()
    assert detector.sample_weight_.max() > 0


def test_a_quantile_of_very_many_rows(monkeypatch):
    monkeypatch.setattr(_net.TransferNet, "max_sorted", 10)
    X = np.random.default_rng(0).normal(size=(120, 4))
    detector = short().fit(X[60:], X_source=X[:60])
    assert 0 < detector.sample_weight_.mean() < 1


def test_the_score_does_not_depend_on_units():
    outputs = random_outputs(np.random.default_rng(0))
    large = Outputs(outputs.loss * 1e6, outputs.pooling_loss * 1e6, outputs.codes * 1e3)
    results = []
    for part in (outputs, large):
        score = AnomalyScore(2, 3)
        score.fit(part, torch.ones(200))
        results.append(score(part, "combined"))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "latent_dim", "side"),
    [((1, 28, 28), 72, 4), ((3, 9, 13), 8, 4), ((1, 16, 32, 32), 256, 4)],
)
def test_pooling_loss_is_that_of_interpolated_means_of_cells(shape, latent_dim, side):
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    sides = shape[1:]
    pool = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[len(sides)]
    mode = {2: "bilinear", 3: "trilinear"}[len(sides)]
    means = pool(x, side, ceil_mode=True, count_include_pad=False)
    enlarged = nn.functional.interpolate(means, scale_factor=side, mode=mode)
    enlarged = enlarged[(..., *(slice(n) for n in sides))]
    expected = (x - enlarged).square().flatten(1).mean(1)
    torch.testing.assert_close(pooling_loss(x, latent_dim), expected)
    plain = torch.full_like(x, 3.0)
    torch.testing.assert_close(pooling_loss(plain, latent_dim), torch.zeros(4))
    torch.testing.assert_close(pooling_loss(5 * x - 2, latent_dim), 25 * expected)


@pytest.mark.parametrize("short_axis", [0, 1])
def test_cells_are_no_longer_than_images(short_axis):
    """With few numbers in a code, cells were longer than clips, and torch refused."""
    x = torch.randn(4, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    few, many = (x.repeat(1, 1, n, 1) for n in (2, 4))
    if short_axis:
        few, many = few.transpose(2, 3), many.transpose(2, 3)
    torch.testing.assert_close(pooling_loss(few, 2), pooling_loss(many, 4))
    clips = np.random.default_rng(0).random((20, 1, 4, 8, 8))
    domain = np.repeat([1, -1], 10)
    detector = short(latent_dim=2).fit(clips, sample_domain=domain)
    assert np.ptp(detector.score_samples(clips)) > 0


# Domains ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning")
def test_samples_that_are_mostly_equal_are_normal(images):
    X = np.concatenate([images[0][:1]] * 80 + [images[0][:20]])
    for seed in range(8):
        assert (short(random_state=seed).fit_predict(X)[:80] == 1).all()


@pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning")
def test_no_two_fits_train_one_network(domains):
    shared = torch.nn.Linear(6, 2)
    before = shared.weight.clone()
    detector = short(architecture={"encoder": lambda *sizes: shared}, latent_dim=2)
    one = detector.fit(domains[1]).score_samples(domains[1])
    other = detector.fit(domains[1]).score_samples(domains[1])
    assert torch.equal(shared.weight, before)
    np.testing.assert_array_equal(one, other)


def test_domains_are_given_in_two_ways(domains):
    source, target, _ = domains
    mixed = np.empty((400, 6))
    mixed[::2], mixed[1::2] = source, target
    marks = np.tile([3, -7], 200)
    by_mark = short().fit(mixed, sample_domain=marks)
    by_array = short().fit(target, X_source=source)
    np.testing.assert_array_equal(
        by_mark.score_samples(target), by_array.score_samples(target)
    )
    assert by_mark.offset_ == by_array.offset_
    np.testing.assert_array_equal(by_mark.sample_weight_, by_array.sample_weight_)
    assert by_mark.sample_weight_.shape == (200,)
    np.testing.assert_allclose(by_mark.scaler_.mean_, source.mean(0))


def test_without_domains_it_is_a_plain_autoencoder(domains):
    source, target, _ = domains
    # In a search it only recommended to "give sample_domain".
    says = r"was given no domains.*X_source\..*cv=TargetKFold\(sample_domain\)"
    with pytest.warns(UserWarning, match=says):
        detector = short(criterion="reconstruction").fit(source)
    assert {record["stage"] for record in detector.history_} == {"pretraining"}
    assert not hasattr(detector, "sample_weight_")
    twice = short(criterion="reconstruction").fit(target, X_source=source)
    with pytest.warns(UserWarning, match="was given no domains"):
        twice.fit(source)
    assert not {"sample_weight_", "tau_"} & vars(twice).keys()
    assert twice.offset_ == detector.offset_
    assert detector.score_samples(target).shape == (200,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_domain": np.ones(200)}, "The target domain has 0 samples"),
        ({"sample_domain": -np.ones(200)}, "The source domain has 0 samples"),
        (
            {"sample_domain": np.repeat([1, -1], [1, 199])},
            "source domain has 1 ",
        ),
        ({"sample_domain": np.repeat([0, 1], 100)}, r"np\.where\(is_target, -1, 1\)"),
        ({"sample_domain": np.full(200, np.nan)}, "positive for the source"),
        ({"sample_domain": np.ones(7)}, "7 values, but X has 200 samples"),
        ({"sample_domain": 1}, r"sample_domain .* each sample, got shape \(\)"),
        ({"sample_domain": np.ones((200, 2))}, r"sample_domain .* shape \(200, 2\)"),
        ({"y": np.ones(7)}, "y has 7 labels, but X has 200 samples"),
        ({"y": np.zeros((200, 6))}, "further samples by their own argument"),
        ({"X_source": np.zeros((50, 5))}, "X_source does not match X.*5 features"),
        ({"X_source": np.zeros((50, 1, 9, 9))}, "X_source does not match X"),
        ({"X_source": np.zeros((1, 6))}, "fewer than 2"),
        ({"X_source": np.full((9, 6), np.nan)}, "X_source.*NaN"),
        (
            {"sample_domain": np.repeat([1, -1], 100), "X_source": np.zeros((9, 6))},
            "not both",
        ),
    ],
)
def test_bad_domains_raise_an_error(domains, arguments, message):
    detector = short()
    with pytest.raises(ValueError, match=message):
        detector.fit(domains[1], **arguments)
    assert vars(detector).keys() == detector.get_params().keys()


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.ConstantScoresWarning")
def test_other_units_are_warned_about(domains):
    source, target, _ = domains
    with pytest.warns(UserWarning, match="same units"):
        short().fit(1.8 * target + 320, X_source=source)


def test_images_of_another_scale_are_refused(images):
    with pytest.raises(ValueError, match="X_source has dtype float64 and X has dtype"):
        short().fit(images[0], X_source=images[1] / 255)


def test_images_of_another_size_raise_an_error(images):
    with pytest.raises(ValueError, match=r"X_source.*\(1, 9, 11\)"):
        short().fit(images[0], X_source=images[1][..., :11])


def test_swapped_signs_are_seen_where_labels_tell(domains):
    source, target, y = domains
    X, y = np.r_[source, target], np.r_[np.ones(200), y]
    domain = np.repeat([1, -1], 200)
    short().fit(X, y, sample_domain=domain)
    with pytest.raises(ValueError, match="signs of sample_domain swapped"):
        short().fit(X, y, sample_domain=-domain)


# Weights ------------------------------------------------------------------------------


def plain_networks():
    """Return networks without batch normalisation, which would mix the domains."""
    return {
        "encoder": lambda shape, latent_dim: nn.Linear(*shape, latent_dim),
        "decoder": lambda latent_dim, shape: nn.Linear(latent_dim, *shape),
    }


#: Networks that are not trained.
FROZEN = {"architecture": plain_networks(), "lr": 1e-12, "n_estimators": 1}


def test_target_anomalies_weigh_less(domains):
    source, target, y = domains
    detector = TransferAD(random_state=0).fit(target, X_source=source)
    weights = detector.sample_weight_
    assert ((weights >= 0) & (weights <= 1)).all()
    assert weights[y == 1].mean() > weights[y == -1].mean() + 0.3
    assert roc_auc_score(y, detector.score_samples(target)) > 0.9
    assert np.mean(detector.predict(target)[y == 1] == 1) > 0.8


def test_nearly_as_many_anomalies_as_normal_samples_do_no_harm(domains):
    source, target, y = domains
    normal, odd = target[y == 1][:73], target[y == -1]
    X = np.r_[normal, odd]
    detector = TransferAD(random_state=0).fit(X, X_source=source)
    y = np.repeat([1, -1], [len(normal), len(odd)])
    assert roc_auc_score(y, detector.score_samples(X)) > 0.85


def test_weights_do_not_depend_on_the_unit(domains):
    source, target, _ = domains
    first = short().fit(target, X_source=source).sample_weight_
    second = short().fit(1024 * target, X_source=1024 * source).sample_weight_
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-5)
    images = np.random.default_rng(0).uniform(size=(2, 40, 1, 8, 8))
    first = short().fit(images[0], X_source=images[1]).sample_weight_
    second = short().fit(1000 * images[0], X_source=1000 * images[1]).sample_weight_
    np.testing.assert_allclose(second, first, rtol=1e-3, atol=1e-4)


def test_all_target_samples_count_on_request(domains):
    source, target, _ = domains
    detector = short(contamination=0).fit(target, X_source=source)
    assert (detector.sample_weight_ >= 0.5).all()
    assert (detector.predict(target) == 1).all()


@pytest.mark.parametrize(("eta", "mean"), [(-1e-9, 1), (-1e9, 0)])
def test_saturated_weights_are_warned_about(domains, eta, mean):
    source, target, _ = domains
    detector = short(gate="reconstruction", eta=eta, beta=20.0)
    with pytest.warns(SaturatedWeightsWarning, match="eta=None"):
        detector.fit(target, X_source=source)
    np.testing.assert_allclose(detector.sample_weight_, mean, atol=1e-6)


def test_eta_is_used_as_given(domains):
    source, target, _ = domains
    detector = short(gate="reconstruction", eta=-2.0, beta=3.0, **FROZEN)
    detector.fit(target, X_source=source)
    detector.set_params(criterion="reconstruction")
    loss = np.exp(-detector.score_samples(target))
    expected = 1 / (1 + np.exp(2 * loss - 3))
    np.testing.assert_allclose(detector.sample_weight_, expected, atol=1e-4)


def test_without_eta_half_the_weight_is_at_tau(domains):
    source, target, _ = domains
    detector = short(gate="reconstruction", beta=7.0, **FROZEN)
    detector.fit(target, X_source=source).set_params(criterion="reconstruction")
    g = np.exp(-detector.score_samples(target))
    expected = 1 / (1 + np.exp(np.clip(-7 * (1 - g / detector.tau_), None, 500)))
    np.testing.assert_allclose(detector.sample_weight_, expected, atol=1e-4)


def test_contamination_sets_tau(domains):
    source, target, _ = domains
    for contamination, trusted in (("auto", 0.4), (0.2, 0.8)):
        detector = short(contamination=contamination)
        weights = detector.fit(target, X_source=source).sample_weight_
        assert np.mean(weights > 0.5) == pytest.approx(trusted, abs=0.01)


def test_beta_may_rise(domains):
    source, target, _ = domains

    def fitted(beta):
        detector = short(beta=beta, gate="reconstruction", eta=-5.0, **FROZEN)
        return detector.fit(target, X_source=source).sample_weight_

    expected = fitted(5 + 4 * ramp(1))
    np.testing.assert_allclose(fitted((5.0, 9.0)), expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"beta=\('a', 'b'\)"):
        fitted(("a", "b"))
    with pytest.raises(ValueError, match="beta"):
        fitted((1.0, 2.0, 3.0))


class Spy(Callback):
    """Keeps the weights that the samples have at the start of each epoch."""

    def __init__(self):
        self.seen = []

    def on_epoch_begin(self, net, **kwargs):
        self.seen.append([part.clone() for part in net.weights_])


def test_weights_in_training(domains):
    source, target, _ = domains
    spy = Spy()
    short(callbacks=[spy]).fit(target, X_source=source)
    assert len(spy.seen) == 6
    assert all((part == 1).all() for epoch in spy.seen[:3] for part in epoch)
    assert all((of_source == 1).all() for of_source, _ in spy.seen[3:])
    assert all((weights < 1).any() for _, weights in spy.seen[3:])


class Pairs(Callback):
    """Checks that the samples of each batch come with their own weights."""

    def __init__(self):
        self.n_seen = 0

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        if net.weighting_ is None:
            return
        for rows, weights, domain, known in zip(
            batch[:2], batch[2:], net.domains_, net.weights_, strict=True
        ):
            nearest = torch.cdist(rows.flatten(0, 1), domain.head(400)).argmin(1)
            torch.testing.assert_close(weights.flatten(), known[nearest])
            self.n_seen += len(torch.unique(weights))


def test_samples_come_with_their_own_weights(domains):
    source, target, _ = domains
    pairs = Pairs()
    detector = short(callbacks=[pairs], weight_source=True, beta=3.0)
    detector.fit(target[:150], X_source=source)
    assert pairs.n_seen > 1000


def test_normalised_weights_and_weights_of_the_source(domains):
    source, target, _ = domains
    spy = Spy()
    detector = short(callbacks=[spy], normalize_weights=True, weight_source=True)
    detector.fit(target, X_source=source)
    for of_source, of_target in spy.seen[3:]:
        assert of_target.mean() == pytest.approx(1)
        assert (of_source < 1).any()
        assert of_source.shape == (200,)


def test_the_first_weights_come_from_the_loss_alone(images, monkeypatch):
    target, source = images
    seen, new_weights = [], _net.TransferNet.new_weights

    def spying(net, log_g):
        terms = net.score_.terms(net.outputs_of_all(net.domains_[1]))
        seen.append([torch.equal(log_g, term) for term in terms])
        return new_weights(net, log_g)

    monkeypatch.setattr(_net.TransferNet, "new_weights", spying)
    short(transfer_epochs=1).fit(target, X_source=source)
    assert seen[0] == [True, False]
    assert seen[1:] == [[False, False]] * (len(seen) - 1)


def test_history_has_the_effective_sample_size(domains):
    source, target, _ = domains
    detector = short().fit(target, X_source=source)
    stages = [record["stage"] for record in detector.history_]
    assert stages == ["pretraining"] * 3 + ["transfer"] * 3
    for record in detector.history_[3:]:
        assert 1 <= record["effective_sample_size"] <= 200
        assert 0 < record["mean_weight"] <= 1
        assert {"coders_loss", "classifier_loss", "reconstruction_loss"} < set(record)


# Limits -------------------------------------------------------------------------------


def weights_of(detector):
    modules = detector.net_.encoder_, detector.net_.decoder_
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def test_without_a_part_in_the_loss_the_target_has_no_influence(domains):
    source, target, _ = domains
    build = partial(
        short,
        architecture=plain_networks(),
        n_estimators=1,
        lam=0.0,
        transfer_lam=0.0,
    )
    first = build(adversarial_weight=0.0).fit(target, X_source=source)
    other = build(adversarial_weight=0.0).fit(target[::-1] * 3, X_source=source)
    assert torch.equal(weights_of(first), weights_of(other))
    pulled = build(adversarial_weight=1.0).fit(target, X_source=source)
    assert not torch.equal(weights_of(first), weights_of(pulled))
    counted = build(adversarial_weight=0.0).set_params(lam=0.1)
    assert not torch.equal(
        weights_of(first), weights_of(counted.fit(target, X_source=source))
    )


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.SaturatedWeightsWarning")
def test_samples_of_weight_zero_are_not_learned_and_of_weight_one_are(domains):
    source, target, _ = domains
    build = partial(
        short, architecture=plain_networks(), n_estimators=1, adversarial_weight=0.0
    )

    def fitted(**params):
        return weights_of(build(**params).fit(target, X_source=source))

    without = fitted(transfer_lam=0.0)
    assert torch.equal(fitted(eta=-1e9, beta=1e-9), without)
    in_full = fitted(eta=-1e-9, beta=1e3, transfer_lam=0.7)
    halved = fitted(eta=-1e-12, beta=1e-9, transfer_lam=1.4)
    torch.testing.assert_close(halved, in_full)
    assert not torch.allclose(in_full, without)
    assert not torch.allclose(in_full, fitted(transfer_lam=0.7))


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.SaturatedWeightsWarning")
def test_the_classifier_ignores_samples_of_weight_zero(domains):
    source, target, _ = domains
    build = partial(
        short,
        architecture=plain_networks(),
        n_estimators=1,
        lam=0.0,
        adversarial_weight=1.0,
    )
    none = build(eta=-1e9, beta=1e-9)
    first = weights_of(none.fit(target, X_source=source))
    assert torch.equal(weights_of(none.fit(3 * target[::-1], X_source=source)), first)
    some = build(transfer_lam=0.0)
    first = weights_of(some.fit(target, X_source=source))
    other = weights_of(some.fit(3 * target[::-1], X_source=source))
    assert not torch.equal(other, first)


def test_the_game_counts_by_its_weight(domains, monkeypatch):
    source, target, _ = domains
    losses, seen, training_step = defaultdict(list), [], TransferNet.training_step

    def spying(name):
        def function(*arguments):
            losses[name].append(getattr(objectives, name)(*arguments))
            return losses[name][-1]

        return function

    def watched(net, batch):
        for turn in training_step(net, batch):
            if domain := losses["weighted_domain_loss"][-1:]:
                # The weight of the game is not one of the classifier.
                whole, alone = (
                    torch.autograd.grad(
                        loss.sum(),
                        list(net.classifier_.parameters()),
                        retain_graph=True,
                    )
                    for loss in (turn[1], *domain)
                )
                torch.testing.assert_close(whole, alone)
            seen.append(turn)
            yield turn

    for name in ("transfer_loss", "weighted_domain_loss"):
        monkeypatch.setattr(_net, name, spying(name))
    monkeypatch.setattr(TransferNet, "training_step", watched)
    short(adversarial_weight=0.3).fit(target, X_source=source)
    assert [name for name, _ in seen] == ["coders"] * len(seen)
    games = losses["weighted_domain_loss"]
    assert len(games) == len(seen) / 2
    last = [losses["transfer_loss"][-len(games) :], games, seen[-len(games) :]]
    for reconstruction, domain, (_, loss) in zip(*last, strict=True):
        torch.testing.assert_close(loss, reconstruction + 0.3 * domain)


def test_the_threshold_depends_on_the_second_stage():
    detector, scores = TransferAD(), np.arange(101.0)
    detector.sample_weight_ = np.ones(101)
    assert detector._auto_offset(scores) == pytest.approx(65 - 2 * (90 - 65))
    del detector.sample_weight_  # all samples are of one domain, and normal
    losses = np.exp(-scores / 50)
    middle, high = np.percentile(losses, [50, 75])
    expected = -np.log(middle + 5 * (high - middle))
    assert detector._auto_offset(scores / 50) == pytest.approx(expected)


def test_the_reversed_gradient_gains_strength(domains, monkeypatch):
    source, target, _ = domains
    seen = []

    def spying(values, strength):
        seen.append(strength)
        return reverse_gradient(values, strength)

    monkeypatch.setattr(_net, "reverse_gradient", spying)
    short(transfer_epochs=2, adversarial_weight=0.3).fit(target, X_source=source)
    expected = [0.3 * ramp(k / len(seen)) for k in range(len(seen))]
    found = [float(strength) for strength in seen]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(seen) == 12


def test_it_is_the_loop_of_a_plain_autoencoder(domains):
    source, target, _ = domains
    detector = short(
        architecture=plain_networks(),
        n_estimators=1,
        lam=0.0,
        transfer_epochs=0,
        callbacks=[seen := Batches()],
    ).fit(target, X_source=source)
    net = detector.net_
    e, d = nn.Linear(6, 3), nn.Linear(3, 6)
    e.load_state_dict(seen.start[0])
    d.load_state_dict(seen.start[1])
    adam = torch.optim.Adam([*e.parameters(), *d.parameters()], seen.lr)
    for x, lr in zip(seen.batches, seen.rates, strict=True):
        adam.param_groups[0]["lr"] = lr
        adam.zero_grad()
        (d(e(x)) - x).square().mean().backward()
        adam.step()
    torch.testing.assert_close(
        net.encoder_.members[0].weight, e.weight, rtol=1e-4, atol=1e-6
    )


class Batches(Callback):
    """Keeps the source batches and the rates, and the weights at the start."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        modules = net.encoder_.members[0], net.decoder_.members[0]
        self.start = [
            {k: v.clone() for k, v in m.state_dict().items()} for m in modules
        ]
        self.batches, self.rates, self.lr = [], [], net.lr

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        self.batches.append(batch[0][0].clamp(-10, 10))
        self.rates.append(net._optimizer("coders").param_groups[0]["lr"])


def test_the_first_stage_does_not_know_the_second(domains, tmp_path, monkeypatch):
    source, target, y = domains
    stages, train = [], TransferNet.train

    def counting(net, *arguments, weighting=None, **keywords):
        stages.append(weighting is None)
        return train(net, *arguments, weighting=weighting, **keywords)

    monkeypatch.setattr(TransferNet, "train", counting)
    X, y = np.r_[source, target], np.r_[np.ones(200), y]
    domain = np.repeat([1, -1], 200)
    search = GridSearchCV(
        short(memory=str(tmp_path), gate="reconstruction"),
        {
            "beta": [5.0, 50.0],
            "adversarial_weight": [0.0, 1e-3],
            "eta": [None, -9.0],
        },
        scoring="roc_auc",
        cv=TargetKFold(domain, 2, random_state=0),
    )
    with config_context(enable_metadata_routing=True):
        search.fit(X, y, sample_domain=domain)
    assert sum(stages) == 3  # two folds, and the last fit on all samples
    assert len(stages) - sum(stages) == 17
    assert search.best_score_ > 0.5


# In pipelines -------------------------------------------------------------------------


def test_warnings_about_folds_recommend_target_k_fold(domains):
    """StratifiedKFold was recommended, which tests on the source too."""
    source, target, y = domains
    X, y = np.r_[source, target], np.r_[np.ones(200), y]
    domain = np.repeat([1, -1], 200)
    both = {"params": {"sample_domain": domain}, "scoring": detector_roc_auc}
    with pytest.warns(UndefinedMetricWarning, match=r"two domains .*TargetKFold"):
        cross_val_score(short(), X, y, cv=KFold(4), **both)
    with pytest.raises(ValueError, match=r"source domain has 0 samples.*TargetKFold"):
        cross_val_score(short(), X, y, cv=KFold(2), error_score="raise", **both)
    cv = TargetKFold(domain, 2, random_state=0)
    assert np.isfinite(cross_val_score(short(), X, y, cv=cv, **both)).all()


def test_pipelines_and_searches_pass_the_domains_on(domains):
    source, target, y = domains
    X, y = np.r_[source, target], np.r_[np.ones(200), y]
    domain = np.repeat([1, -1], 200)
    pipeline = make_pipeline(StandardScaler(), short())
    search = GridSearchCV(
        pipeline,
        {"transferad__lam": [0.0, 0.1]},
        scoring="roc_auc",
        cv=TargetKFold(domain, 2, random_state=0),
    )
    with config_context(enable_metadata_routing=True):
        routed = search.fit(X, y, sample_domain=domain).score(target, y[200:])
    plain = search.fit(X, y, transferad__sample_domain=domain)
    assert plain.score(target, y[200:]) == routed
    assert hasattr(plain.best_estimator_[-1], "sample_weight_")


def test_a_pipeline_can_transform_the_source_too(domains):
    source, target, _ = domains
    with config_context(enable_metadata_routing=True):
        detector = short().set_fit_request(X_source=True, sample_domain=False)
        steps = [("scale", StandardScaler()), ("detect", detector)]
        pipeline = Pipeline(steps, transform_input=["X_source"])
        pipeline.fit(target, X_source=source)
    scaler = StandardScaler().fit(target)
    by_hand = short().fit(scaler.transform(target), X_source=scaler.transform(source))
    np.testing.assert_array_equal(
        pipeline.score_samples(target),
        by_hand.score_samples(scaler.transform(target)),
    )


# Scores and other outputs -------------------------------------------------------------


def test_scoring_asks_neither_classifier_nor_weights(domains, monkeypatch):
    source, target, _ = domains
    detector = short().fit(target, X_source=source)
    scores = detector.score_samples(target)
    monkeypatch.setattr(StackedClassifier, "forward", None)
    np.testing.assert_array_equal(detector.score_samples(target), scores)


def test_reconstruction_is_the_paper_s_score(images):
    target, source = images
    detector = short(criterion="reconstruction").fit(target, X_source=source)
    scaled = target / 127.5 - 1
    public = detector.reconstruct(target)
    assert public.dtype == np.uint8
    assert public.shape == target.shape
    codes = detector.encode(target)
    assert len(codes) == 40
    x = torch.from_numpy(scaled).float().repeat(1, 3, 1, 1)
    with torch.inference_mode():
        encoder, decoder = (
            m.members[0] for m in (detector.net_.encoder_, detector.net_.decoder_)
        )
        reconstruction = decoder(encoder(x))
        loss = (reconstruction - x).square().mean((1, 2, 3))
    grey = (reconstruction.mean(1, keepdim=True).numpy() + 1) * 127.5
    np.testing.assert_allclose(public, grey.clip(0, 255), atol=0.51)
    np.testing.assert_allclose(
        detector.score_samples(target), -loss.log().numpy(), rtol=1e-4, atol=1e-5
    )
    found = detector.anomaly_map(target)
    assert found.shape == (40, 9, 12)
    assert (found >= 0).all()


def test_clips(images):
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 256, (2, 12, 1, 6, 9, 12)).astype(np.uint8)
    detector = short(width=4, batch_size=4).fit(target, X_source=source)
    scores = detector.score_samples(target)
    assert scores.shape == (12,)
    assert detector.anomaly_map(target).shape == (12, 6, 9, 12)
    assert detector.reconstruct(target).shape == target.shape
    assert detector.image_shape_ == (1, 6, 9, 12)
    flat = short(width=4, batch_size=4, image_shape=(1, 6, 9, 12))
    flat.fit(target.reshape(12, -1), X_source=source.reshape(12, -1))
    np.testing.assert_array_equal(flat.score_samples(target.reshape(12, -1)), scores)
    with pytest.raises(ValueError, match=r"\(channels, frames, height, width\)"):
        flat.set_params(image_shape=(6, 9)).fit(target.reshape(12, -1))


def test_colour_images_and_codes_of_a_given_length():
    rng = np.random.default_rng(0)
    source, target = rng.uniform(size=(2, 20, 3, 10, 8))
    detector = short(latent_dim=5).fit(target, X_source=source)
    assert detector.encode(target).shape == (20, 5)
    assert detector.reconstruct(target).shape == target.shape


def test_an_interrupted_second_stage_leaves_a_usable_detector(domains):
    source, target, _ = domains

    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            if net.weighting_ is not None:
                raise KeyboardInterrupt

    with pytest.warns(FitInterruptedWarning):
        detector = short(callbacks=[Interrupt()], on_interrupt="keep").fit(
            target, X_source=source
        )
    assert np.isfinite(detector.score_samples(target)).all()
    assert detector.sample_weight_.shape == (200,)


def test_one_lam_for_both_stages_on_request(domains):
    source, target, _ = domains
    scores = [
        short(lam=0.2, transfer_lam=lam)
        .fit(target, X_source=source)
        .score_samples(target)
        for lam in (None, 0.2, 0.9)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_an_epoch_is_a_pass_over_the_larger_domain(domains):
    source, target, _ = domains
    for X, X_source in ((target[:70], source), (target, source[:70])):
        detector = short(calibration=None).fit(X, X_source=X_source)
        assert detector.net_.epoch_steps == 200 // 32
        assert detector.net_.step_ == 6 * (200 // 32)


def test_the_bar_counts_the_epochs_of_each_stage(domains, capfd):
    source, target, _ = domains
    short(verbose=1).fit(target, X_source=source)
    printed = capfd.readouterr().err
    assert "transfer, epoch 3/3" in printed
    assert not any(f"epoch {k}/3" in printed for k in (4, 5, 6))


def test_no_second_stage(domains):
    source, target, _ = domains
    detector = short(transfer_epochs=0).fit(target, X_source=source)
    assert {record["stage"] for record in detector.history_} == {"pretraining"}
    assert np.isfinite(detector.score_samples(target)).all()


def test_values_of_auto(domains, images):
    source, target, _ = domains
    table = short().fit(target, X_source=source)
    scores = table.score_samples(target)
    table.set_params(criterion="reconstruction")
    np.testing.assert_array_equal(table.score_samples(target), scores)
    detector = short().fit(images[0], X_source=images[1])
    scores = detector.score_samples(images[0])
    detector.set_params(criterion="combined")
    np.testing.assert_array_equal(detector.score_samples(images[0]), scores)
    assert table.net_.n_estimators == 8
    assert detector.net_.n_estimators == 1


# Real data ----------------------------------------------------------------------------


@pytest.mark.slow
def test_zeros_of_usps_with_the_help_of_those_of_mnist(shared_data):
    """Above IsolationForest, and above the paper's .820, with 45 % of anomalies."""
    (X, y), (U, u), (T, t) = (
        fetch(subset=subset, return_X_y=True, data_home=shared_data)
        for fetch, subset in (
            (fetch_mnist, "train"),
            (fetch_usps, "train"),
            (fetch_usps, "test"),
        )
    )

    def enlarged(images):
        images = torch.from_numpy(images).float()
        large = nn.functional.interpolate(images, size=(28, 28), mode="bilinear")
        return large.round().byte().numpy()

    X_train, X_test, y_train, y_test, domain = across_domains(
        *(X, y, enlarged(U), u),
        normal_class=0,
        contamination=0.45,
        X_test=enlarged(T),
        y_test=t,
        random_state=5,
    )
    detector = TransferAD(random_state=5).fit(X_train, sample_domain=domain)
    auroc = roc_auc_score(y_test, detector.score_samples(X_test))
    forest = IsolationForest(random_state=5)
    forest.fit(X_train[domain < 0].reshape(-1, 784))
    other = roc_auc_score(y_test, forest.score_samples(X_test.reshape(-1, 784)))
    assert auroc > max(0.93, other)
    is_normal = y_train[domain < 0] == 1
    weights = detector.sample_weight_
    assert weights[~is_normal].mean() < 0.1 < 0.4 < weights[is_normal].mean()
