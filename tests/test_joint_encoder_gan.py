"""JointEncoderGAN: the paper's networks and equations, growth, detection."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn

from skanomaly import JointEncoderGAN, load, save
from skanomaly._joint_encoder_gan import _estimator, _net
from skanomaly._joint_encoder_gan._net import JointNet, Phase
from skanomaly._joint_encoder_gan._networks import (
    Critic,
    DownConv,
    EqualizedConv,
    EqualizedLinear,
    Frame,
    Generator,
    MinibatchStdDev,
    PointwiseConv,
    Tower,
    UpConv,
    pixel_norm,
    upsampled,
)
from skanomaly._joint_encoder_gan._score import AnomalyScore, Outputs
from skanomaly._mahalanobis import Mahalanobis
from skanomaly.engine import Adam, DeviceDataset, TransformedDataset
from skanomaly.exceptions import (
    FitInterruptedWarning,
    NormDirectionWarning,
    TrainingDivergedError,
)
from skanomaly.networks import Ensemble
from skanomaly.objectives import (
    cycle_loss,
    drift,
    min_max_normalised,
    origin_distance,
    residual,
)

SHORT = {"random_state": 0, "max_epochs": 1, "width": 4, "max_width": 8}
short = partial(JointEncoderGAN, **SHORT)
SMALL = (4, 4), [8, 8, 4], 1  # coarse sides, channels, colours


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 16, 12)).astype(np.uint8)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def grown(network, level, fade=0.0):
    for module in network.modules():
        if hasattr(module, "fade"):
            module.level, module.fade = level, fade
    return network.eval()


def n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


# Networks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ((3, 32, 32), (20_719_628, 20_726_785, 20_726_272)),
        ((1, 64, 64), (22_485_765, 22_493_441, 22_492_928)),
    ],
)
def test_the_paper_s_networks_have_its_numbers_of_parameters(shape, counts):
    detector = JointEncoderGAN(preset="paper")
    detector._row_shape = shape
    builders = detector._builders(1)
    roles = "generator", "critic", "encoder"
    assert tuple(n_parameters(builders[role]()) for role in roles) == counts


def test_the_paper_s_preset():
    detector = JointEncoderGAN(preset="paper")
    detector._row_shape = (3, 32, 32)
    phases = detector._phases(5000)
    assert [phase.max_epochs for phase in phases] == [4] * 7
    assert [phase.batch_size for phase in phases] == [128] * 5 + [64] * 2
    assert [phase.epoch_steps for phase in phases] == [39] * 5 + [78] * 2
    assert detector._builders(1)["encoder"]().members[0].rectified
    score = [detector._value(k) for k in ("lam", "residual_norm", "distance")]
    assert score == [0.05, "paper", "origin"]
    assert detector._value("standardize") is False
    detector.set_params(preset=None)
    assert not detector._builders(1)["encoder"]().members[0].rectified
    # For tables it is the score alone.
    detector.set_params(preset="paper", width=8)
    detector._row_shape = (3,)
    assert detector._value("latent_dim") == 64
    assert detector._value("distance") == "origin"


def test_pixel_norm_makes_the_mean_square_one():
    x = pixel_norm(torch.randn(5, 7, 3, 3) * 9)
    torch.testing.assert_close(x.square().mean(1), torch.ones(5, 3, 3))


def test_pixel_norm_s_gradient_is_right():
    x = torch.randn(3, 5, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(pixel_norm, x)


def test_a_generator_depends_on_the_direction_of_noise_alone():
    # In float32 the normalisations of an untrained network make rounding visible.
    generator, z = grown(Generator(6, *SMALL), 2).double(), torch.randn(9, 6).double()
    torch.testing.assert_close(generator(5 * z), generator(z), rtol=1e-5, atol=1e-6)


def test_the_norm_of_codes_is_never_trained():
    generator = grown(Generator(6, *SMALL), 2)
    codes = torch.randn(9, 6, requires_grad=True)
    loss = cycle_loss(torch.randn(1, 9, 1, 16, 16), generator(codes)[None]).sum()
    (gradient,) = torch.autograd.grad(loss, codes)
    assert gradient.abs().max() > 1e-5
    assert (gradient * codes).sum(1).abs().max() < 1e-7


def test_weights_are_scaled_when_used():
    linear, conv = EqualizedLinear(6, 4, gain=3.0), EqualizedConv(6, 4)
    x = torch.randn(2, 6, 5, 5)
    by_hand = F.linear(x[..., 0, 0], linear.weight * 3 / 6**0.5)
    torch.testing.assert_close(linear(x[..., 0, 0]), by_hand)
    by_hand = F.conv2d(x, conv.weight * 2**0.5 / (6 * 9) ** 0.5, padding=1)
    torch.testing.assert_close(conv(x), by_hand)
    assert 0.8 < EqualizedLinear(50, 50).weight.std() < 1.2
    # The gain of the first layer is a quarter of that of the others.
    assert Generator(6, *SMALL).dense.scale == pytest.approx(2**0.5 / 4 / 6**0.5)


@pytest.mark.parametrize("n_colours", [1, 3])
def test_a_convolution_of_one_pixel_leaves_channels_last(n_colours):
    point, x = PointwiseConv(n_colours, 8), torch.randn(2, n_colours, 5, 5)
    kernel = (point.weight * point.scale)[:, :, None, None]
    torch.testing.assert_close(point(x), F.conv2d(x, kernel, point.bias))
    assert point(x).is_contiguous(memory_format=torch.channels_last)


def test_fused_convolutions_are_their_two_steps():
    x = torch.randn(3, 4, 6, 10)
    up, down = UpConv(4, 5), DownConv(4, 5)
    for layer in (up, down):
        nn.init.normal_(layer.bias)
    plain = EqualizedConv(4, 5)
    plain.load_state_dict(up.state_dict())
    torch.testing.assert_close(up(x), plain(upsampled(x)), rtol=1e-4, atol=1e-5)
    plain.load_state_dict(down.state_dict())
    torch.testing.assert_close(down(x), F.avg_pool2d(plain(x), 2), rtol=1e-4, atol=1e-5)


def test_the_ends_of_a_fade():
    generator, z = Generator(6, *SMALL), torch.randn(9, 6)
    below = upsampled(grown(generator, 1)(z))
    torch.testing.assert_close(grown(generator, 2, 1.0)(z), below)
    new = grown(generator, 2)(z)
    torch.testing.assert_close(grown(generator, 2, 0.25)(z), 0.75 * new + 0.25 * below)
    assert not torch.allclose(new, below, atol=0.1)

    for tower in (Tower(*SMALL, 6), Critic(*SMALL)):
        image = torch.randn(8, 1, 16, 16)
        small = grown(tower, 1)(F.avg_pool2d(image, 2))
        torch.testing.assert_close(grown(tower, 2, 1.0)(image), small)
        assert not torch.allclose(grown(tower, 2)(image), small, atol=1e-2)


def test_codes_are_rectified_or_not():
    tower, image = grown(Tower(*SMALL, 6), 2), torch.randn(9, 1, 16, 16)
    rectified, tower.rectified = tower(image), False
    codes = tower(image)
    assert (codes < 0).any()
    torch.testing.assert_close(rectified, F.leaky_relu(codes, 0.2))


def test_finer_levels_are_neither_computed_nor_trained():
    tower = grown(Tower(*SMALL, 6), 1)
    tower(torch.randn(4, 1, 8, 8)).sum().backward()
    assert tower.blocks[1][0].weight.grad is None
    assert tower.from_image[0].weight.grad is None
    assert tower.blocks[0][0].weight.grad is not None


def test_the_spread_of_a_minibatch():
    layer, x = MinibatchStdDev(), torch.randn(8, 3, 2, 2)
    with_spread = layer(x)
    torch.testing.assert_close(with_spread[:, :3], x)
    for group in (slice(0, 4), slice(4, 8)):
        figure = x[group].var(0, unbiased=False).add(1e-8).sqrt().mean()
        torch.testing.assert_close(
            with_spread[group, 3], figure.expand(4, 2, 2), rtol=1e-5, atol=1e-6
        )
    for _ in range(400):
        layer(x)
    layer.eval()
    alone, together = layer(x[:1]), layer(x)
    torch.testing.assert_close(alone, together[:1])
    torch.testing.assert_close(
        together[0, 3, 0, 0], with_spread[[0, 4], 3, 0, 0].mean(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("n", [4, 6, 7])
def test_any_number_of_images_forms_groups(n):
    assert MinibatchStdDev()(torch.randn(n, 3, 2, 2)).shape == (n, 4, 2, 2)


@pytest.mark.parametrize(
    ("shape", "coarse", "finest"),
    [
        ((1, 28, 28), (4, 4), 3),
        ((3, 32, 32), (4, 4), 3),
        ((1, 8, 8), (4, 4), 1),
        ((3, 8, 64), (1, 4), 4),
        ((1, 30, 47), (2, 3), 4),
    ],
)
def test_frames_hold_images_of_any_size(shape, coarse, finest, rng):
    frame = Frame.of(shape)
    assert (frame.coarse, frame.finest) == (coarse, finest)
    x = torch.rand(2, *shape, generator=rng)
    full = frame.shrunk(x, finest)
    assert full.shape[2:] == frame.sides(finest)
    torch.testing.assert_close(frame.enlarged(full, finest), x)
    assert frame.shrunk(x, 0).shape[2:] == coarse
    assert frame.enlarged(frame.shrunk(x, 0), 0).shape == x.shape
    if shape == (1, 28, 28):
        assert torch.equal(full[..., 2:30, 2:30], x)  # in the middle
    # Edges are repeated: there is nothing in the margins that is not in the image.
    assert full.amin() == x.amin()
    assert full.amax() == x.amax()


# Equations ----------------------------------------------------------------------------


def test_min_max_normalisation_ignores_brightness_and_contrast():
    x = torch.randn(4, 3, 5, 5)
    w = min_max_normalised(x)
    torch.testing.assert_close(w.flatten(1).amin(1), torch.zeros(4))
    torch.testing.assert_close(w.flatten(1).amax(1), torch.ones(4))
    torch.testing.assert_close(min_max_normalised(3 * x - 7), w, rtol=1e-4, atol=1e-5)
    flat = torch.stack([torch.full((1, 4, 4), v) for v in (0.0, 0.3, -1e4)])
    torch.testing.assert_close(min_max_normalised(flat), torch.zeros(3, 1, 4, 4))


def test_residuals_of_both_norms():
    x, y = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    torch.testing.assert_close(residual(x, y, "rms"), torch.ones(2))
    torch.testing.assert_close(residual(x, y, "paper"), torch.full((2,), 48**-0.5))
    assert not residual(x, x, "paper").any()


def test_origin_distance_and_drift():
    codes = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    expected = torch.tensor([-5 / 2**0.5, 0.0])
    torch.testing.assert_close(origin_distance(codes), expected)
    torch.testing.assert_close(2 * expected, origin_distance(2 * codes))
    torch.testing.assert_close(drift(torch.tensor([1.0, -3.0])), torch.tensor(5.0))


def test_cycle_losses_are_means():
    one, other = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    other[1] = -2
    torch.testing.assert_close(cycle_loss(one, other), torch.tensor([1.0, 2.0]))


def test_the_score_is_eq_5():
    outputs = Outputs(
        torch.tensor([0.1, 0.4]), torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
    )
    score = AnomalyScore(1, 2)
    l_o = torch.tensor([-5.0, -10.0]) / 2**0.5
    plain = partial(score, outputs, distance="origin", standardize=False)
    torch.testing.assert_close(plain(lam=1.0), outputs.residual)
    torch.testing.assert_close(plain(lam=0.0), l_o)
    torch.testing.assert_close(plain(lam=0.3), 0.3 * outputs.residual + 0.7 * l_o)


def test_standardised_terms_count_alike():
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(1, 500, 3, generator=rng) * 100
    outputs = Outputs(1e-3 * torch.rand(500, generator=rng), codes)
    for distance in ("origin", "mahalanobis"):
        score = AnomalyScore(1, 3)
        score.fit(outputs, 0.2)
        ranks = [
            score(outputs, lam, distance, True).argsort().argsort().double()
            for lam in (0.0, 0.5, 1.0)
        ]
        together = torch.corrcoef(torch.stack(ranks))[1]
        assert together[0] > 0.5
        assert together[2] > 0.5
        # Both ends are the terms themselves, in their order.
        terms = score.terms(outputs, distance)
        assert torch.equal(ranks[0], terms[1].argsort().argsort().double())
        assert torch.equal(ranks[2], terms[0].argsort().argsort().double())


def test_standardised_terms_have_median_zero_and_an_interquartile_range_of_one():
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(2, 500, 3, generator=rng) * 100
    outputs = Outputs(torch.rand(500, generator=rng), codes)
    score = AnomalyScore(2, 3)
    score.fit(outputs, 0.2)
    terms = (score.logs(score.all_terms(outputs)) - score.location) / score.spread
    low, middle, high = torch.quantile(terms, torch.tensor([0.25, 0.5, 0.75]), 1)
    torch.testing.assert_close(middle, torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(high - low, torch.ones(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("contamination", "left_out"), [("auto", 0.2), (0, 0.2), (0.1, 0.2), (0.4, 0.4)]
)
def test_more_is_left_out_where_more_is_anomalous(contamination, left_out, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Mahalanobis, "fit_trimmed", lambda distance, codes, share: seen.append(share)
    )
    X = np.random.default_rng(0).normal(size=(40, 3))
    short(contamination=contamination, n_estimators=1).fit(X)
    assert seen == [left_out]


def test_the_trimmed_estimate_does_not_widen_with_outliers():
    rng = torch.Generator().manual_seed(0)
    clean = torch.randn(950, 2, generator=rng)
    odd = torch.tensor([40.0, 0.0]) + clean[:50]
    distance = Mahalanobis(1, 2)
    distance.fit_trimmed(torch.cat([clean, odd])[None], 0.2)
    assert distance.centre.abs().max() < 0.2  # with the outliers, 2
    # A fifth left out makes the rest narrower; outliers would make it 9 wide.
    assert 0.5 < float(distance.precision[0, 0, 0]) ** -0.5 < 1.1
    distance.fit_trimmed(torch.zeros(1, 5, 2), 0.2)
    assert torch.isfinite(distance.precision).all()


# The optimiser ------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_adam_without_momentum_is_adam_with_half_the_memory(eps):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(7, 5)) for _ in range(2)]
    weights[1].data.copy_(weights[0].data)
    ours = Adam(weights[:1], lr=0.01, betas=(0.0, 0.99), eps=eps)
    adam = torch.optim.Adam(weights[1:], lr=0.01, betas=(0.0, 0.99), eps=eps)
    for _ in range(20):
        gradient = torch.randn(7, 5) * 10 ** float(torch.randn(()))
        for weight, optimizer in zip(weights, (ours, adam), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)
    assert ours.param_groups[0]["lr"] == 0.01
    held = [
        sum(value.numel() for state in o.state.values() for value in state.values())
        for o in (ours, adam)
    ]
    assert held == [36, 71]


# Training -----------------------------------------------------------------------------


def make_net(**params):
    sizes = (4, 4), [8, 4], 1
    builders = {
        "generator": partial(Ensemble.of, 1, partial(Generator, 6, *sizes)),
        "critic": partial(Ensemble.of, 1, partial(Critic, *sizes)),
        "encoder": partial(Ensemble.of, 1, partial(Tower, *sizes, 6)),
    }
    settings = {
        "latent_dim": 6,
        "frame": Frame.of((1, 8, 8)),
        "clip": partial(torch.clamp, min=-1.0, max=1.0),
        "encoder_loss": "image",
        "cycle_updates_generator": False,
        "cycle_weight": None,
        "as_published": False,
        "n_estimators": 1,
    }
    net = JointNet(builders, **settings | params)
    net.phase_ = Phase(1, False, 8, 1, 1, "8 x 8")
    net.initialize()
    net.grow(1, 0.0)
    net.rng_ = torch.Generator().manual_seed(0)
    return net


def state_of(net):
    modules = {role: getattr(net, f"{role}_") for role in net.configure_optimizers()}
    return {
        role: torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        for role, module in modules.items()
    }


def played(net, **phase):
    """Return the players, in their order, after checks that each moves alone."""
    net.phase_ = net.phase_._replace(**phase)
    net._read_players()
    net._sums, order = {}, []
    turns = net.training_step(torch.randn(1, 8, 1, 8, 8).clamp(-1, 1))
    for turn in turns:
        pairs = [turn] if isinstance(turn[0], str) else turn
        names = [player for player, _ in pairs]
        before = state_of(net)
        net._update(pairs)
        now = state_of(net)
        moved = [role for role in now if not torch.equal(now[role], before[role])]
        assert sorted(moved) == sorted(names)
        order.append("+".join(names))
    return order


@pytest.mark.parametrize("encoder_loss", ["image", "latent"])
def test_each_turn_moves_its_own_network(encoder_loss):
    order = played(make_net(encoder_loss=encoder_loss))
    assert order == ["generator", "encoder", "critic"]


@pytest.mark.parametrize(
    ("params", "trained", "order"),
    [
        ({}, "all", ["critic", "generator", "encoder"]),
        ({}, "gan", ["critic", "generator"]),
        ({}, "encoder", ["encoder"]),
        ({"cycle_updates_generator": True}, "all", ["critic", "generator+encoder"]),
    ],
)
def test_the_authors_order_of_turns(params, trained, order):
    """The authors' order was not available."""
    assert played(make_net(as_published=True, **params), trained=trained) == order


def test_the_authors_turns_are_each_on_noise_of_its_own():
    """Encoder and critic learned from the same generated samples."""
    for as_published, n_draws in ((False, 1), (True, 3)):
        net, drawn = make_net(as_published=as_published), []
        draw = net.draw_noise
        net.draw_noise = lambda *sizes, d=draw, to=drawn: to.append(d(*sizes)) or to[-1]
        net._read_players()
        net._sums = {}
        for turn in net.training_step(torch.zeros(1, 8, 1, 8, 8)):
            net._update([turn])
        assert len(drawn) == n_draws
        assert len({float(noise.sum()) for noise in drawn}) == n_draws


def test_eq_1_to_the_letter_trains_the_generator_by_the_cycle_too():
    losses = {}
    for literal in (False, True):
        net = make_net(cycle_updates_generator=literal)
        turns = list(net.training_step(torch.zeros(1, 8, 1, 8, 8)))
        losses[literal] = turns
    both, _ = losses[True]
    (generator, of_generator), (encoder, cycle) = both
    assert (generator, encoder) == ("generator", "encoder")
    (_, fooled), *_ = losses[False]
    torch.testing.assert_close(of_generator, fooled + cycle)
    net = make_net(cycle_updates_generator=True)
    generator_weight = next(net.generator_.parameters())
    (_, (_, cycle)), _ = net.training_step(torch.zeros(1, 8, 1, 8, 8))
    assert torch.autograd.grad(cycle, generator_weight)[0].abs().max() > 0


@pytest.mark.parametrize("encoder_loss", ["image", "latent"])
@pytest.mark.parametrize("level", [0, 1])
def test_the_third_term_of_eq_1_has_a_weight(level, encoder_loss):
    """It was a mean over pixels, 1 / (c h w) of the printed norm."""
    side = 4 * 2**level
    losses, printed = {}, []
    for weight in (None, 0.0, 0.5, 1.0):
        net = make_net(
            cycle_updates_generator=True, cycle_weight=weight, encoder_loss=encoder_loss
        )
        net.phase_ = net.phase_._replace(level=level)
        net.grow(level, 0.0)
        pairs, _ = net.training_step(torch.zeros(1, 8, 1, side, side))
        (_, (losses[weight],)), (_, (cycle,)) = pairs
        rng = torch.Generator().manual_seed(0)
        noise = net.draw_noise(8, 6, rng)
        with torch.no_grad():
            generated = net.generator_(noise)
            codes = net.encoder_(generated)
            gap = noise - codes if encoder_loss == "latent" else generated
            if encoder_loss == "image":
                gap = generated - net.generator_(codes)
        printed.append(gap.abs().flatten(2).sum(2).mean())  # the norm of each sample
        # The encoder has no other term, and its loss stays one of a size.
        torch.testing.assert_close(cycle.detach(), gap.abs().mean())
    losses = {weight: loss.detach() for weight, loss in losses.items()}
    norm, n_numbers = printed[0], 6 if encoder_loss == "latent" else side**2
    for weight, expected in ((0.5, 0.5), (1.0, 1.0), (None, 1 / n_numbers)):
        torch.testing.assert_close(losses[weight] - losses[0.0], expected * norm)


def test_the_paper_s_preset_has_the_norm_as_printed():
    """`cycle_updates_generator` did not follow eq. 1 to the letter."""
    detector = JointEncoderGAN()
    for shape, preset, expected in (
        ((3, 32, 32), None, None),
        ((3, 32, 32), "paper", 1.0),
        ((3,), "paper", None),
    ):
        detector._row_shape = shape
        assert detector.set_params(preset=preset)._value("cycle_weight") == expected
    assert (
        detector.set_params(cycle_weight=np.float32(0.5))._value("cycle_weight") == 0.5
    )


def test_a_weight_of_a_term_that_the_generator_has_not_is_an_error():
    X = np.zeros((4, 2))
    with pytest.raises(ValueError, match="cycle_updates_generator=True"):
        short(cycle_weight=1.0).fit(X)


class LinearCritic(nn.Module):
    """Values that are a sum of pixels, times a number, and one more number."""

    def __init__(self, slope, level):
        super().__init__()
        self.slope, self.level = slope, level

    def forward(self, x):
        return self.slope * x.flatten(2).sum(2) + self.level


def test_the_generator_raises_the_critic_s_values():
    net = make_net()
    net.critic_ = LinearCritic(0.0, 3.0)
    player, loss = next(net.training_step(torch.zeros(1, 8, 1, 8, 8)))
    assert (player, float(loss.detach())) == ("generator", -3.0)


@pytest.mark.parametrize("n", [8, 6])
def test_the_critic_s_loss_is_the_paper_s(n):
    net = make_net()
    net.critic_ = LinearCritic(0.25, 3.0)
    x, generated = torch.randn(2, 1, n, 1, 8, 8)
    on_data, on_generated = net.critic_(x), net.critic_(generated)
    # The slope is 0.25 for each of 64 pixels.
    penalty = 10 * (0.25 * 8 - 1) ** 2 + 1e-3 * on_data.square().mean()
    by_hand = on_generated.mean() - on_data.mean() + penalty
    torch.testing.assert_close(net.critic_loss(x, generated), by_hand[None])


def test_groups_of_the_critic_hold_one_kind_of_samples():
    net, seen = make_net(), []
    critic = net.critic_
    critic.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, generated = torch.ones(1, 6, 1, 8, 8), -torch.ones(1, 6, 1, 8, 8)
    net.critic_loss(x, generated)
    assert [len(part.unique()) for part in seen[:2]] == [1, 1]
    assert [part.shape[1] for part in seen] == [6, 6, 3]
    assert (seen[2].abs() < 1).all()  # between them
    seen.clear()
    net.critic_loss(x.repeat(1, 3, 1, 1, 1), generated.repeat(1, 3, 1, 1, 1))
    assert seen[-1].shape[1] == 8  # whole groups


def test_the_authors_penalty_is_that_of_whole_batches():
    """Half of the pairs were always left out."""
    net, seen = make_net(as_published=True), []
    net.critic_.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, generated = torch.randn(2, 1, 6, 1, 8, 8)
    (loss,) = net.critic_loss(x, generated)
    on_data, on_generated, points = seen
    net.rng_ = torch.Generator().manual_seed(0)
    share = torch.rand(1, 6, 1, 1, 1, generator=net.rng_)
    torch.testing.assert_close(points, x + share * (generated - x))
    points = points.detach().requires_grad_()
    (slope,) = torch.autograd.grad(net.critic_(points).sum(), points)
    penalty = (slope.flatten(2).norm(dim=2) - 1).square().mean()
    on_data, on_generated = net.critic_(on_data), net.critic_(on_generated)
    by_hand = on_generated.mean() - on_data.mean() + 10 * penalty
    by_hand = by_hand + 1e-3 * on_data.square().mean()
    torch.testing.assert_close(loss, by_hand)


# Growth -------------------------------------------------------------------------------


def test_growth_leaves_one_history(images):
    detector = short().fit(images)
    stages = [record["stage"] for record in detector.history_]
    assert stages == ["8 x 6", "16 x 12, fading in", "16 x 12"]
    assert [record["epoch"] for record in detector.history_] == [1, 2, 3]
    assert all("encoder_loss" in record for record in detector.history_)
    assert detector.net_.grown() == (2, 0.0)
    assert detector.n_iter_ == 3


def test_paper_s_growth_begins_at_the_coarsest_level(images):
    params = {**SHORT, "preset": "paper", "latent_dim": 8, "averaging": 0.9}
    detector = JointEncoderGAN(**params).fit(images)
    stages = [record["stage"] for record in detector.history_]
    assert stages[0] == "4 x 3"
    assert len(stages) == 2 * 3 - 1


def test_batches_double_towards_coarse_levels(images):
    seen = {}

    class Watch(Callback):
        def on_batch_begin(self, net, batch=None, **kwargs):
            seen[net.phase_.name] = tuple(batch.shape)

    short(callbacks=[Watch()], batch_size=8, preset="paper", latent_dim=8).fit(images)
    assert seen["4 x 3"] == (1, 32, 1, 4, 3)
    assert seen["8 x 6"] == seen["8 x 6, fading in"] == (1, 16, 1, 8, 6)
    assert seen["16 x 12"] == (1, 8, 1, 16, 12)


def test_data_fade_in_as_the_networks_do():
    net = make_net()
    x = torch.rand(1, 4, 1, 8, 8)
    net.grow(1, 0.25)
    coarse = upsampled(F.avg_pool2d(x[0], 2))[None]
    torch.testing.assert_close(net.prepared(x), 0.75 * x + 0.25 * coarse)
    net.grow(1, 0.0)
    assert torch.equal(net.prepared(x), x)


class Interrupt(Callback):
    """Interrupts the training in the middle of a phase."""

    def __init__(self, name, batches):
        self.name, self.batches = name, batches

    def on_batch_end(self, net, **kwargs):
        self.batches -= net.phase_.name == self.name
        if not self.batches:
            raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["8 x 6", "16 x 12, fading in", "16 x 12"])
def test_after_an_interrupt_a_detector_is_usable_and_can_continue(
    phase, images, tmp_path
):
    detector = short(
        max_epochs=2, batch_size=8, callbacks=[Interrupt(phase, 2)], on_interrupt="keep"
    )
    with pytest.warns(FitInterruptedWarning):
        detector.fit(images)
    assert detector.net_.phase_.name == phase
    scores = detector.score_samples(images)
    assert np.ptp(scores) > 0
    assert detector.anomaly_map(images).shape == (40, 16, 12)
    assert detector.reconstruct(images).shape == images.shape
    level, fade = detector.net_.grown()
    assert (fade > 0) == ("fading" in phase)
    save(detector.set_params(callbacks=None), tmp_path / "detector")
    again = load(tmp_path / "detector")
    assert again.net_.grown() == (level, fade)
    np.testing.assert_array_equal(again.score_samples(images), scores)
    n_before = detector.n_iter_
    detector.set_params(warm_start=True).fit(images)
    assert detector.history_[n_before]["stage"] == phase
    assert detector.net_.grown() == (2, 0.0)


def test_a_warm_start_continues_in_the_last_phase(images):
    detector = short(warm_start=True).fit(images)
    steps = detector.net_.step_

    def n_moves():
        state = detector.net_.optimizer_critic_.state
        return float(next(iter(state.values()))["step"])

    moves = n_moves()
    detector.fit(images)
    stages = [record["stage"] for record in detector.history_]
    assert stages == ["8 x 6", "16 x 12, fading in", "16 x 12", "16 x 12"]
    assert detector.net_.step_ > steps
    assert n_moves() == 2 * moves  # and so does the optimiser


@pytest.mark.parametrize("preset", [None, "paper"])
def test_the_authors_average_is_that_of_the_generator_alone(preset, images):
    """All three networks were always averaged."""
    last = {}

    class Watch(Callback):
        def on_batch_end(self, net, **kwargs):
            last.update({role: w.clone() for role, w in state_of(net).items()})

    own = {"preset": preset, "latent_dim": 8, "lam": 1.0, "batch_size": 8}
    detector = short(callbacks=[Watch()], averaging=0.9, **own).fit(images)
    now = state_of(detector.net_)
    averaged = [role for role in now if not torch.equal(now[role], last[role])]
    assert averaged == (["generator"] if preset else list(now))


def test_all_samples_take_part_in_the_training(images, monkeypatch):
    """A tenth of them was held out for `norm_auroc_`, which needs none."""
    seen, judged = [], []

    def watched(net, rows, *args, **kwargs):
        seen.append(rows.indices.sort().values.tolist())
        return train_phases(net, rows, *args, **kwargs)

    def compared(self, generated, real):
        judged.append((generated.shape, real.shape))
        compare(self, generated, real)

    train_phases = _estimator.train_phases
    compare = JointEncoderGAN._compare_norms
    monkeypatch.setattr(_estimator, "train_phases", watched)
    monkeypatch.setattr(JointEncoderGAN, "_compare_norms", compared)
    short(lam=1.0, calibration=None).fit(images)
    assert seen == [list(range(40))]
    assert judged == [((1, 40, 64), (1, 40, 64))]


@pytest.mark.parametrize(
    ("how", "averaged"),
    [("joint", ["16 x 12"]), ("separate", ["16 x 12", "encoder"])],
)
def test_weights_are_averaged_after_growth(how, averaged, images, monkeypatch):
    seen = []

    class Watched(_net.AverageWeights):
        def on_train_begin(self, net, *args, **kwargs):
            seen.append((net.phase_.name, self.decay))
            super().on_train_begin(net)

    monkeypatch.setattr(_net, "AverageWeights", Watched)
    short(encoder_training=how, averaging=0.7).fit(images)
    assert seen == [(name, 0.7) for name in averaged]


def test_a_separate_encoder_is_trained_after_the_gan(images):
    detector = short(encoder_training="separate").fit(images)
    before, alone = detector.history_[:3], detector.history_[3:]
    assert [record["stage"] for record in before] == [
        "8 x 6",
        "16 x 12, fading in",
        "16 x 12",
    ]
    assert not any("encoder_loss" in record for record in before)
    assert all("critic_loss" not in record for record in alone)
    assert all(record["stage"] == "encoder" for record in alone)
    assert "encoder_loss" in alone[0]
    with pytest.raises(ValueError, match="cycle_updates_generator"):
        detector.set_params(cycle_updates_generator=True).fit(images)
    phases = short(encoder_training="separate", max_epochs=5)
    phases._row_shape = images.shape[1:]
    phases = phases._phases(400)
    steps = [p.max_epochs * p.epoch_steps for p in phases]
    assert sum(steps[:-1]) <= steps[-1] < sum(steps[:-1]) + phases[-1].epoch_steps


def weights_of(detector, role):
    module = getattr(detector.net_, f"{role}_")
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


@pytest.mark.parametrize("phase", ["8 x 6", "16 x 12", "encoder"])
def test_an_interrupted_separate_encoder_can_continue(phase, images):
    params = {"encoder_training": "separate", "max_epochs": 2, "batch_size": 8}
    whole = [record["stage"] for record in short(**params).fit(images).history_]
    detector = short(**params, callbacks=[Interrupt(phase, 2)], on_interrupt="keep")
    with pytest.warns(FitInterruptedWarning):
        detector.fit(images)
    before, generator = detector.n_iter_, weights_of(detector, "generator")
    detector.set_params(warm_start=True, callbacks=None).fit(images)
    rest = [record["stage"] for record in detector.history_[before:]]
    assert rest == whole[whole.index(phase) :]
    same = torch.equal(weights_of(detector, "generator"), generator)
    assert same == (phase == "encoder")


class InterruptBetween(Callback):
    """Interrupts before the first step of a phase."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        if net.phase_.name == "16 x 12":
            raise KeyboardInterrupt


def test_interrupted_between_phases_it_is_usable(images):
    detector = short(callbacks=[InterruptBetween()], on_interrupt="keep")
    with pytest.warns(FitInterruptedWarning):
        detector.fit(images)
    assert np.ptp(detector.score_samples(images)) > 0
    stages = [record["stage"] for record in detector.history_]
    assert stages == ["8 x 6", "16 x 12, fading in"]
    detector.set_params(warm_start=True, callbacks=None).fit(images)
    assert [record["stage"] for record in detector.history_] == [*stages, "16 x 12"]


def test_images_are_shrunk_once_and_bytes_stay_bytes(images):
    shrunk = partial(Frame.of(images.shape[1:]).shrunk, level=1)
    chosen = torch.arange(5, 20)
    small = TransformedDataset(DeviceDataset(images).subset(chosen), shrunk)
    assert small.resident.dtype == torch.uint8
    assert len(small) == 15

    def exact(images):
        return F.avg_pool2d(torch.from_numpy(images).float(), 2)

    index = torch.tensor([[3, 1], [0, 14]])
    assert (small[index] - exact(images[5:20])[index]).abs().max() <= 0.5
    streamed = TransformedDataset(
        DeviceDataset(images, max_bytes=0).subset(chosen), shrunk
    )
    assert streamed.resident is None
    assert torch.equal(streamed[index], small[index])
    for most in (None, 0):
        floats = TransformedDataset(
            DeviceDataset(images / np.float32(255), max_bytes=most), shrunk
        )
        torch.testing.assert_close(floats[index], exact(images)[index] / 255)


def test_images_that_need_no_change_are_not_copied(monkeypatch):
    sizes = []

    def watched(rows, function):
        sizes.append(function.keywords["level"])
        return TransformedDataset(rows, function)

    monkeypatch.setattr(_net, "TransformedDataset", watched)
    X = np.random.default_rng(0).integers(0, 256, (20, 1, 16, 16)).astype(np.uint8)
    short().fit(X)
    assert sizes == [1]
    sizes.clear()
    short().fit(X[..., 1:])
    assert sizes == [1, 2, 2]


# The detector -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 17), (1, 28, 28), (2, 4, 9)])
def test_images_of_many_sizes(shape):
    X = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    detector = short().fit(X)
    assert detector.anomaly_map(X).shape == (20, *shape[1:])
    assert detector.reconstruct(X).shape == X.shape
    assert detector.sample(3).shape == (3, *shape)
    assert detector.encode(X).shape == (20, detector.net_.latent_dim)
    alone = np.concatenate([detector.score_samples(x[None]) for x in X[:4]])
    np.testing.assert_array_equal(alone, detector.score_samples(X)[:4])


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.NormDirectionWarning")
def test_terms_make_the_score(images):
    literal = {"distance": "origin", "residual_norm": "paper", "standardize": False}
    detector = short(lam=0.3, **literal).fit(images)
    residuals, distances = detector.score_terms(images).T
    assert (distances < 0).all()
    codes = detector.encode(images)
    by_hand = -np.linalg.norm(codes, axis=1) / codes.shape[1] ** 0.5
    np.testing.assert_allclose(distances, by_hand, rtol=1e-5)
    w = min_max_normalised(torch.from_numpy(images).float())
    again = detector._compute(detector._reconstruct_batch, images)
    w_again = min_max_normalised(torch.from_numpy(again))
    by_hand = (w - w_again).flatten(1).norm(dim=1) / (16 * 12)
    np.testing.assert_allclose(residuals, by_hand, rtol=1e-4)
    np.testing.assert_allclose(
        detector.score_samples(images), -0.3 * residuals - 0.7 * distances, rtol=1e-5
    )


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_the_direction_of_the_norm_is_measured_and_warned_about(share):
    rng = np.random.default_rng(0)

    def latent_codes(generated):
        # In `share` of the pairs, held-out samples have the shorter codes.
        short_ones = rng.random(2000) < share
        size = np.where(short_ones, 1.0, 3.0) if not generated else np.full(2000, 2.0)
        return torch.from_numpy(size)[None, :, None]

    detector = JointEncoderGAN(distance="origin")
    detector._row_shape = (4,)
    held_out = latent_codes(False)
    if share < 0.5:
        with pytest.warns(NormDirectionWarning, match="longer codes"):
            detector._compare_norms(latent_codes(True), held_out)
        detector.set_params(distance="mahalanobis")._compare_norms(
            latent_codes(True), held_out
        )
        detector.set_params(distance="origin", lam=1.0)._compare_norms(
            latent_codes(True), held_out
        )
    else:
        detector._compare_norms(latent_codes(True), held_out)
    assert detector.norm_auroc_ == pytest.approx(share, abs=0.03)


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.NormDirectionWarning")
def test_a_search_over_the_score_trains_once(images, tmp_path, monkeypatch):
    trained, train = [], JointNet.train

    def counted(self, *args, **kwargs):
        trained.append(1)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(JointNet, "train", counted)
    grid = {"lam": [0.0, 0.5, 1.0], "distance": ["mahalanobis", "origin"]}
    y = np.tile([1, 1, 1, -1], 10)
    search = GridSearchCV(
        short(memory=str(tmp_path)), grid, scoring="roc_auc", cv=2, refit=False
    )
    search.fit(images, y)
    assert len(trained) == 2 * 3  # folds, phases
    assert len(set(search.cv_results_["mean_test_score"])) > 1


def test_networks_of_a_user_do_not_grow(images):
    def encoder(shape, latent_dim):
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), latent_dim))

    detector = short(architecture={"encoder": encoder}).fit(images)
    assert [record["stage"] for record in detector.history_] == ["16 x 12"]
    assert detector.encode(images).shape == (40, 64)
    with pytest.raises(ValueError, match="discriminator"):
        short(architecture={"discriminator": encoder}).fit(images)


@pytest.mark.parametrize("n_estimators", [1, 2])
@pytest.mark.parametrize("ends", [nn.Flatten, nn.Identity])
def test_a_user_s_critic_and_generator_are_trained(n_estimators, ends, images):
    def generator(latent_dim, shape):
        return nn.Sequential(
            nn.Linear(latent_dim, int(np.prod(shape))), nn.Unflatten(1, shape)
        )

    def critic(shape):
        n = int(np.prod(shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(n, 1), ends(0))

    own = {"generator": generator, "critic": critic}
    detector = short(architecture=own, n_estimators=n_estimators).fit(images)
    assert np.ptp(detector.score_samples(images)) > 0
    assert detector.sample(3).shape == (3, 1, 16, 12)


@pytest.mark.parametrize(
    "params",
    [
        {"encoder_loss": "latent"},
        {"cycle_updates_generator": True},
        {"preset": "paper", "latent_dim": 8, "distance": "mahalanobis"},
        {"scaling": None},
        {"scaling": "standard", "n_estimators": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_variants_train_images(params, precision, images):
    X = images / 255 if "scaling" in params else images
    detector = short(**params, precision=precision).fit(X)
    assert np.ptp(detector.score_samples(X)) > 0


def test_a_late_divergence_raises_an_error(images):
    with pytest.raises(TrainingDivergedError, match="lr"):
        short(lr=1e10).fit(images[:8, :, :4, :4])


def test_the_threshold_without_a_known_contamination(images):
    detector = short().fit(images)
    low, middle = np.percentile(detector.calibration_scores_, [25, 50])
    assert detector.offset_ == pytest.approx(middle - 3 * (middle - low))


@pytest.mark.parametrize("level", [-9.0, 9.0])
def test_generated_images_stay_in_the_range_of_the_data(level, images):
    X = images / np.float32(255)
    detector = short().fit(X)
    for point in detector.net_.generator_.members[0].to_image:
        nn.init.constant_(point.bias, level)
    end = X.max() if level > 0 else X.min()
    for output in (detector.reconstruct(X[:3]), detector.sample(3)):
        np.testing.assert_allclose(output, end, atol=1e-6)
    assert np.isfinite(detector.score_samples(X)).all()


def test_a_flat_image_has_a_finite_score(images):
    detector = short().fit(images)
    flat = np.stack([np.full((1, 16, 12), v, np.uint8) for v in (0, 128, 255)])
    assert np.isfinite(detector.score_samples(flat)).all()


def test_the_progress_bar_names_phases(images, capsys):
    short(verbose=1).fit(images)
    printed = capsys.readouterr().err
    assert "16 x 12, epoch 1/1 100%" in printed


def test_anomalies_are_found_in_contaminated_images():
    rng = np.random.default_rng(0)

    def blobs(n, square):
        h, w = np.mgrid[:16, :16]
        x, y = rng.uniform(5, 10, (2, n, 1, 1))
        if square:
            shape = (abs(h - y) < 4) & (abs(w - x) < 4)
        else:
            shape = (h - y) ** 2 + (w - x) ** 2 < 10
        return (60 + 160 * shape + rng.normal(0, 8, shape.shape)).astype(np.uint8)

    X = np.concatenate([blobs(380, False), blobs(20, True)])[:, None]
    X_test = np.concatenate([blobs(100, False), blobs(100, True)])[:, None]
    detector = JointEncoderGAN(random_state=0, width=4, max_epochs=4).fit(X)
    is_square = np.repeat([0, 1], 100)
    for score in (-detector.score_samples(X_test), *detector.score_terms(X_test).T):
        assert roc_auc_score(is_square, score) > 0.9
