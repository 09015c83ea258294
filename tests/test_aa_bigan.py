"""AABiGAN: training, the networks of the paper, labels, scores."""

import gc
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn

from skanomaly import AABiGAN
from skanomaly._aa_bigan._net import AnomalyAwareBiGAN, HeldOut
from skanomaly._aa_bigan._networks import (
    DoublingConv,
    StackedPairs,
    image_networks,
    working_shape,
)
from skanomaly.engine import DeviceDataset
from skanomaly.model_selection import LeaveAnomalyKindOut
from skanomaly.networks import Ensemble, StackedMLP

SMALL = {"max_epochs": 4, "width": 8, "n_estimators": 2, "random_state": 0}


@pytest.fixture
def data():
    """Return samples and labels: 8 known anomalies, far to one side."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    X[:8] += 4
    return X, np.repeat([-1, 1], [8, 112])


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)


# Training ---------------------------------------------------------------------------


class Coder(nn.Sequential):
    """A network without batch normalisation."""

    def __init__(self, n_in, n_out):
        super().__init__(nn.Linear(n_in, 6), nn.Tanh(), nn.Linear(6, n_out))


class Pairs(nn.Module):
    def __init__(self, n_in):
        super().__init__()
        self.layers = Coder(n_in, 1)

    def forward(self, first, second):
        return self.layers(torch.cat([first, second], 1)).squeeze(1)


def plain_net(cls=AnomalyAwareBiGAN, **settings):
    """Return a net for tables of 3 columns and 2 codes, nothing normalised."""
    modules = {
        "encoder": partial(Coder, 3, 2),
        "generator": partial(Coder, 2, 3),
        "discriminator_xz": partial(Pairs, 5),
        "discriminator_xx": partial(Pairs, 6),
    }
    builders = {k: partial(Ensemble.of, 2, build) for k, build in modules.items()}
    given = {
        "latent_dim": 2,
        "prepare": torch.clone,
        "targets": (1.0, 0.0, 0.75),
        "n_known": 5,
        "beta2": 0.999,
        "n_estimators": 2,
        "batch_size": 16,
    }
    return cls(builders, **given | settings)


class Recorder(AnomalyAwareBiGAN):
    """Writes down which modules each turn moves."""

    def _update(self, pairs):
        before = self.weights()
        super()._update(pairs)
        after = self.weights()
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        vars(self).setdefault("seen", []).append(({name for name, _ in pairs}, moved))

    def weights(self):
        return {
            name: nn.utils.parameters_to_vector(getattr(self, f"{name}_").parameters())
            for name in self.modules
        }


def rows_and_known():
    rng = np.random.default_rng(0)
    return DeviceDataset(rng.normal(size=(40, 3))), DeviceDataset(
        rng.normal(size=(7, 3)) + 3
    )


class Normed(nn.Module):
    """A discriminator whose values are normalised, or pass a single pixel that is."""

    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4))

    def forward(self, first, second):
        return self.layers(torch.cat([first, second], 1)).mean(1)


def test_a_single_anomaly_is_normalised_by_running_means():
    """It has no statistics of its own: with one pixel left there was an error."""
    net = plain_net(n_known=1)
    network = Ensemble.of(2, Normed)
    network(torch.zeros(2, 9, 3), torch.zeros(2, 9, 2))
    many = torch.randn(2, 16, 3), torch.randn(2, 16, 2)
    one = torch.randn(2, 1, 3), torch.randn(2, 1, 2)
    on_many, on_one = net.values(network, many, one)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    torch.testing.assert_close(on_one, net.values(network.eval(), one)[0])
    net.values(network.train(), one)
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[name])
    assert all(module.training for module in network.modules())
    # All others take the statistics of their batch.
    assert on_many.mean(1).abs().max() < 1e-5


@pytest.mark.parametrize("n_channels", [1, 3])
def test_one_known_anomaly_per_batch_trains_on_images_of_any_size(n_channels):
    rng = np.random.default_rng(0)
    y = np.repeat([1, -1], [8, 2])
    for side in (4, 5, 6, 7, 9, 12, 17, 24, 33):
        images = rng.integers(0, 256, (10, n_channels, side, side)).astype(np.uint8)
        detector = AABiGAN(known_per_batch=1, max_epochs=2, width=2, random_state=0)
        assert np.ptp(detector.fit(images, y).score_samples(images)) > 0


def test_one_known_anomaly_per_batch_suits_normalised_networks_of_a_user(data):
    own = dict.fromkeys(["discriminator_xz", "discriminator_xx"], Normed)
    detector = AABiGAN(**SMALL, architecture=own, known_per_batch=1).fit(*data)
    assert np.ptp(detector.score_samples(data[0])) > 0


@pytest.mark.parametrize("n_known", [7, 0])
def test_each_turn_moves_its_own_networks(n_known):
    rows, known = rows_and_known()
    known = known.subset(torch.arange(n_known))
    given = {"known": known, "cycle_weight": 0.5, "max_epochs": 1, "epoch_steps": 2}
    net = plain_net(Recorder).train(rows, **given)
    discriminators = {"discriminator_xz", "discriminator_xx"}
    coders = {"encoder", "generator"}
    turns = [({"discriminators"}, discriminators), ({"coders"}, coders)]
    assert net.seen == turns * 2


def play(net, x, known):
    """Return the losses of one step as the net has them, without any update."""
    net.known_, net.cycle_weight_ = known, 1 / 3 if len(known) else 1 / 2
    net.rng_ = torch.Generator().manual_seed(3)
    (_, discriminators), (_, coders) = net.training_step(x)
    return discriminators.sum(), coders.sum()  # over the ensemble


def gradients(net, loss, name):
    """Return the gradient of a loss for one of the modules."""
    parameters = list(getattr(net, f"{name}_").parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    return nn.utils.parameters_to_vector(found)


@pytest.mark.parametrize("n_known", [7, 0])
def test_each_module_descends_its_loss_of_the_authors_turns(n_known):
    rows, known = rows_and_known()
    known = known.subset(torch.arange(n_known))
    net = plain_net().initialize()
    x = rows[torch.arange(32).reshape(2, 16)]
    discriminators, coders = play(net, x, known)

    # By hand, term by term as card and code have them, from the same draws: there,
    # generator and encoder have a loss each.
    net.rng_ = torch.Generator().manual_seed(3)
    a, b, c, m = 1.0, 0.0, 0.75, 0.5
    neg, noise = net.draw_known(), net.draw_noise(16, net.latent_dim)
    encode, generate = net.encoder_, net.generator_
    d_xz, d_xx = net.discriminator_xz_, net.discriminator_xx_

    def mse(values, target):
        return ((values - target) ** 2).mean(1).sum()

    z, generated = encode(x), generate(noise)
    reconstruction = generate(z)
    loss_d = mse(d_xz(x, z), a) + mse(d_xz(generated, noise), b)
    loss_d = loss_d + mse(d_xx(x, x), a) + mse(d_xx(x, reconstruction), b)
    cycle = mse(d_xx(x, x), c) + mse(d_xx(x, reconstruction), c)
    loss_e = mse(d_xz(x, z), c)
    if n_known:
        codes = encode(neg)
        loss_d = loss_d + mse(d_xz(neg, codes), m) + mse(d_xx(neg, neg), m)
        loss_e = loss_e + mse(d_xz(neg, codes), c)
        cycle = cycle + mse(d_xx(neg, neg), c)
    weight = 1 / 3 if n_known else 1 / 2
    loss_g = mse(d_xz(generated, noise), c) + weight * cycle
    loss_e = loss_e + weight * cycle

    torch.testing.assert_close(discriminators, loss_d)
    for name, found, expected in (
        ("discriminator_xz", discriminators, loss_d),
        ("discriminator_xx", discriminators, loss_d),
        ("generator", coders, loss_g),
        ("encoder", coders, loss_e),
    ):
        torch.testing.assert_close(
            gradients(net, found, name), gradients(net, expected, name)
        )


def test_the_generator_does_not_feel_the_anomalies():
    rows, known = rows_and_known()
    net = plain_net().initialize()
    x = rows[torch.arange(32).reshape(2, 16)]
    (_, one), (_, other) = (
        play(net, x, k) for k in (known, DeviceDataset(known.X - 9))
    )
    felt = [gradients(net, loss, "generator") for loss in (one, other)]
    torch.testing.assert_close(*felt)
    felt = [gradients(net, loss, "encoder") for loss in (one, other)]
    assert not torch.allclose(*felt)


def test_discriminators_learn_on_fixed_pairs():
    rows, known = rows_and_known()
    net = plain_net().initialize()
    loss, _ = play(net, rows[torch.arange(32).reshape(2, 16)], known)
    loss.backward()
    for name in ("encoder", "generator"):
        for weight in getattr(net, f"{name}_").parameters():
            assert weight.grad is None


def test_known_anomalies_share_a_batch_with_normal_samples(data):
    X, y = data
    net = AABiGAN(**SMALL, batch_size=20).fit(X, y).net_
    seen = []
    for name in ("encoder", "generator"):
        module = getattr(net, f"{name}_")
        module.register_forward_hook(lambda _, x, z: seen.append(x[0].shape[1]))
    rows, known = DeviceDataset(X), DeviceDataset(X[:8])
    net.train(rows, known=known, cycle_weight=0.5, max_epochs=1, epoch_steps=1)
    assert seen == [20 + 5, 2 * 20]  # samples and anomalies, latent codes and noise
    # And then they are part of its statistics.
    encoder, x = net.encoder_.train(), torch.randn(2, 16, 4)
    together = encoder(torch.cat([x, x[:, :4] + 5], 1))[:, :16]
    assert not torch.allclose(encoder(x), together)


def test_weights_and_rates_that_auto_stands_for(data, images):
    X, y = data
    labelled, table = AABiGAN(**SMALL).fit(X, y), AABiGAN(**SMALL).fit(X)
    pictures = AABiGAN(**SMALL).fit(images)
    weights = [d.net_.cycle_weight_ for d in (labelled, table, pictures)]
    assert weights == [1 / 3, 1 / 2, 1.0]
    assert AABiGAN(**SMALL, cycle_weight=0.2).fit(X).net_.cycle_weight_ == 0.2

    def rate(detector, player):
        return detector.net_._optimizer(player).param_groups[0]["lr"]

    assert rate(table, "coders") == 1e-3
    assert rate(table, "discriminators") == 1e-3 / 4
    assert rate(pictures, "coders") == rate(pictures, "discriminators") == 0


def test_columns_are_clipped_unless_scaling_is_off(data):
    X, _ = data
    wild = np.full((2, 4), [[1e3], [1e6]])
    one, other = AABiGAN(**SMALL).fit(X).encode(wild)
    np.testing.assert_array_equal(one, other)
    one, other = AABiGAN(**SMALL, scaling=None).fit(X).encode(wild)
    assert not np.array_equal(one, other)


def test_mlps_have_the_paper_s_slope(data):
    net = AABiGAN(**SMALL).fit(data[0]).net_
    mlps = [m for m in net.encoder_.modules() if isinstance(m, StackedMLP)]
    assert [m.slope for m in mlps] == [0.1]
    plain, x = StackedMLP(1, (1, 1, 1), slope=0.1), torch.ones(1, 1, 1)
    for weight in plain.parameters():
        nn.init.constant_(weight, -1.0)
    assert plain(x).item() == pytest.approx(-1 - 0.1 * -2)


def test_fixed_statistics_become_part_of_the_weights():
    mlp, x = StackedMLP(2, (3, 5, 4), normalised=True), torch.randn(2, 50, 3)
    with torch.no_grad():
        for parameter in mlp.norm_0.parameters():
            parameter.uniform_(0.5, 2)
        mlp(x)  # updates the running statistics
        hidden = x @ mlp.weight_0 + mlp.bias_0
        hidden = mlp.norm_0.eval()(hidden.transpose(0, 1).flatten(1))
        hidden = hidden.unflatten(1, (2, -1)).transpose(0, 1)
        expected = F.leaky_relu(hidden, mlp.slope) @ mlp.weight_1 + mlp.bias_1
        torch.testing.assert_close(mlp.eval()(x), expected)


# The paper's networks ---------------------------------------------------------------


def weight_shapes(module, kind):
    return [tuple(m.weight.shape) for m in module.modules() if isinstance(m, kind)]


def test_grey_networks_are_the_paper_s():
    build = image_networks((1, 32, 32), 100, 32, True)
    networks = {role: maker() for role, maker in build.items()}
    assert weight_shapes(networks["encoder"], nn.Conv2d) == [
        (32, 1, 3, 3),
        (64, 32, 3, 3),
        (128, 64, 3, 3),
        (256, 128, 3, 3),
        (512, 256, 3, 3),
    ]
    assert weight_shapes(networks["encoder"], nn.Linear) == [(100, 512)]
    assert weight_shapes(networks["generator"], nn.ConvTranspose2d) == [
        (100, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 32, 4, 4),
        (32, 1, 4, 4),
    ]
    tower = [(64, 1, 4, 4)] + 3 * [(64, 64, 4, 4)]
    assert weight_shapes(networks["discriminator_xz"], nn.Conv2d) == tower
    assert weight_shapes(networks["discriminator_xz"], nn.Linear) == [
        (512, 100),
        (1024, 768),
        (1, 1024),
    ]
    assert weight_shapes(networks["discriminator_xx"], nn.Conv2d) == 2 * tower
    assert weight_shapes(networks["discriminator_xx"], nn.Linear) == [
        (1024, 512),
        (1, 1024),
    ]


def test_colour_networks_are_the_paper_s():
    build = image_networks((3, 32, 32), 128, 32, True)
    networks = {role: maker() for role, maker in build.items()}
    tower = [(32, 3, 5, 5), (64, 32, 5, 5), (128, 64, 5, 5)]
    assert weight_shapes(networks["encoder"], nn.Conv2d) == tower
    assert weight_shapes(networks["encoder"], nn.Linear) == [(128, 2048)]
    assert weight_shapes(networks["generator"], nn.ConvTranspose2d) == [
        (8, 128, 5, 5),
        (128, 64, 5, 5),
        (64, 32, 5, 5),
        (32, 3, 5, 5),
    ]
    assert weight_shapes(networks["generator"], nn.Linear) == []
    assert weight_shapes(networks["discriminator_xz"], nn.Linear) == [
        (512, 128),
        (1024, 2560),
        (1, 1024),
    ]
    assert weight_shapes(networks["discriminator_xx"], nn.Conv2d) == 2 * tower
    assert weight_shapes(networks["discriminator_xx"], nn.Linear) == [
        (1024, 4096),
        (1, 1024),
    ]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((28, 28), (32, 32)),
        ((32, 32), (32, 32)),
        ((4, 5), (4, 6)),
        ((9, 12), (12, 12)),
        ((4, 40), (32, 48)),
        ((64, 64), (64, 64)),
    ],
)
def test_networks_for_images_of_any_size(channels, sides, expected):
    shape = working_shape((channels, *sides))
    assert shape == (channels, *expected)
    networks = {k: build() for k, build in image_networks(shape, 7, 4, True).items()}
    x = torch.randn(3, *shape)
    z = networks["encoder"](x)
    reconstruction = networks["generator"](z)
    assert z.shape == (3, 7)
    assert reconstruction.shape == x.shape
    assert reconstruction.abs().max() <= 1
    assert networks["discriminator_xz"](x, z).shape == (3,)
    assert networks["discriminator_xx"](x, reconstruction).shape == (3,)


def test_a_doubling_convolution_is_its_two_steps():
    layer, x = DoublingConv(5, 3), torch.randn(2, 5, 4, 6, requires_grad=True)
    wide = F.interpolate(x, scale_factor=2.0)
    expected = F.conv_transpose2d(wide, layer.weight, padding=2)
    torch.testing.assert_close(layer(x), expected)
    weights, parameters = torch.randn_like(expected), (x, *layer.parameters())
    found, wanted = (
        torch.autograd.grad((weights * y).sum(), parameters)
        for y in (layer(x), expected)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["table", "images"])
def test_pairs_in_one_call_are_computed_separately(kind):
    torch.default_generator.manual_seed(0)
    if kind == "table":
        network, shape = StackedPairs(1, 10, 8), (1, 6, 5)
    else:
        build = image_networks((3, 8, 8), 7, 4, True)["discriminator_xx"]
        network, shape = Ensemble.of(1, build), (1, 6, 3, 8, 8)
    x, other, known = (torch.randn(shape) + k for k in range(3))
    pairs = [(x, x), (x, other), (known, known)]
    values = AnomalyAwareBiGAN.values(network, *pairs)
    expected = [network(*pair) for pair in pairs]
    torch.testing.assert_close(list(values), expected)


def test_own_networks_take_their_places(data):
    X, y = data
    own = {
        "encoder": lambda shape, latent_dim: Coder(*shape, latent_dim),
        "generator": lambda latent_dim, shape: Coder(latent_dim, *shape),
        "discriminator_xz": lambda shape, latent_dim: Pairs(shape[0] + latent_dim),
        "discriminator_xx": lambda shape: Pairs(2 * shape[0]),
    }
    detector = AABiGAN(**SMALL, architecture=own).fit(X, y)
    assert isinstance(detector.net_.encoder_.members[0], Coder)
    assert isinstance(detector.net_.discriminator_xx_.members[1], Pairs)
    assert detector.encode(X).shape == (120, 2 * 2)


# Labels -------------------------------------------------------------------------------


def test_a_label_changes_the_fit_and_lowers_the_score():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    X[:6, 0] += 4  # few, and not far: without labels they are learned as normal
    y = np.repeat([-1, 1], [6, 194])
    settings = {"random_state": 0, "max_epochs": 60, "n_estimators": 2}
    labelled = AABiGAN(**settings).fit(X, y).score_samples(X)
    unlabelled = AABiGAN(**settings).fit(X).score_samples(X)
    assert not np.array_equal(labelled, unlabelled)
    ranks = [np.argsort(np.argsort(s))[:6].mean() for s in (labelled, unlabelled)]
    assert ranks[0] < ranks[1]


def test_other_labels_are_not_misread_in_silence(data):
    X, _ = data
    with pytest.warns(UserWarning, match=r"No sample is taken.*has the values 1\.0\.$"):
        detector = AABiGAN(**SMALL).fit(X, np.ones(120))
    expected = AABiGAN(**SMALL).fit(X).score_samples(X)
    np.testing.assert_array_equal(detector.score_samples(X), expected)


def test_labels_of_the_wrong_kind_raise_an_error(data):
    X, y = data
    with pytest.raises(ValueError, match="119 labels, but X has 120 samples"):
        AABiGAN(**SMALL).fit(X, y[1:])
    with pytest.raises(ValueError, match="0 of 120 samples are not marked"):
        AABiGAN(**SMALL).fit(X, -np.ones(120))
    with pytest.raises(ValueError, match=r"y has shape \(120, 2\)"):
        AABiGAN(**SMALL).fit(X, np.c_[y, y])


def test_zero_and_one_mean_the_same(data):
    X, y = data
    mixed = np.where(y == -1, -1, np.arange(120) % 2)
    expected = AABiGAN(**SMALL).fit(X, y).score_samples(X)
    np.testing.assert_array_equal(
        AABiGAN(**SMALL).fit(X, mixed).score_samples(X), expected
    )


@pytest.mark.parametrize("n_known", [1, 2, 5, 118])
@pytest.mark.parametrize("criterion", ["auto", "reconstruction"])
def test_any_number_of_known_anomalies(data, n_known, criterion):
    X, _ = data
    y = np.repeat([-1, 1], [n_known, 120 - n_known])
    detector = AABiGAN(**SMALL, criterion=criterion, early_stopping=True).fit(X, y)
    assert np.isfinite(detector.score_samples(X)).all()


def test_known_anomalies_have_no_part_in_scaling_and_threshold(data):
    X, y = data
    X[y == -1] *= 1e6
    detector = AABiGAN(**SMALL, contamination=0, calibration=None).fit(X, y)
    np.testing.assert_allclose(detector.scaler_.mean_, X[y == 1].mean(0))
    assert detector.offset_ == detector.score_samples(X[y == 1]).min()
    assert np.isfinite(detector.score_samples(X)).all()


def test_memory_does_not_grow_with_the_epochs(data):
    def n_tensors(max_epochs):
        detector = AABiGAN(**SMALL | {"max_epochs": max_epochs}).fit(*data)
        gc.collect()
        alive = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        del detector
        return len(alive), sum(t.numel() for t in alive)

    n_tensors(1)
    assert n_tensors(2) == n_tensors(30)


# Scores -----------------------------------------------------------------------------


def test_scores_by_hand(data):
    X, y = data
    detector = AABiGAN(**SMALL).fit(X, y)
    assert detector.criterion_ == "reconstruction"
    x = torch.from_numpy(detector.scaler_.transform(X)).float().clamp(-10, 10)
    with torch.no_grad():
        z = detector.net_.encoder_(x.expand(2, *x.shape))
        reconstruction = detector.net_.generator_(z)
    errors = (x - reconstruction).square().sum(2).mean(0)
    inside = y == 1  # the known anomalies lie beyond the range of the others
    scores = detector.score_samples(X[inside])
    np.testing.assert_allclose(-scores, errors[inside], rtol=1e-4)
    np.testing.assert_allclose(
        detector.encode(X), np.concatenate(list(z.numpy()), 1), rtol=1e-4, atol=1e-5
    )
    units = detector.scaler_.inverse_transform(reconstruction.mean(0).numpy())
    np.testing.assert_allclose(detector.reconstruct(X), units, rtol=1e-4, atol=1e-5)
    norms = AABiGAN(**SMALL, criterion="latent_norm").fit(X, y)
    np.testing.assert_allclose(
        -norms.score_samples(X[inside]), z.square().sum(2).mean(0)[inside], rtol=1e-4
    )


def test_a_perfect_autoencoder_finds_nothing():
    class Same(nn.Linear):
        def __init__(self, shape, latent_dim):
            super().__init__(latent_dim, latent_dim, bias=False)
            nn.init.eye_(self.weight)

    net = plain_net()
    net.modules |= {
        name: partial(Ensemble.of, 2, partial(Same, None, 3))
        for name in ("encoder", "generator")
    }
    net.initialize()
    x = torch.randn(9, 3)
    with torch.no_grad():
        errors = net.anomaly_score(x, "reconstruction")
        norms = net.anomaly_score(x, "latent_norm")
    torch.testing.assert_close(errors, torch.zeros(9))
    torch.testing.assert_close(norms, x.square().sum(1))


def test_auto_takes_the_score_that_tells_held_out_anomalies_better():
    class Stub:
        aurocs = {"reconstruction": 0.0, "latent_norm": 1.0}  # noqa: RUF012

        def anomaly_score(self, x, criterion):
            sign = 2 * self.aurocs[criterion] - 1
            return sign * x[:, 0]

    normal, anomalous = torch.zeros(5, 2), torch.ones(3, 2)
    names = tuple(Stub.aurocs)
    held_out = HeldOut(normal, anomalous, names)
    assert held_out.best(Stub()) == "latent_norm"
    assert held_out.loss(Stub()) == 0
    assert held_out._replace(criteria=names[:1]).loss(Stub()) == 1
    nobody = held_out._replace(anomalous=anomalous[:0])
    assert nobody.best(Stub()) == "reconstruction"
    assert nobody._replace(normal=anomalous).loss(Stub()) == -1  # the mean error


@pytest.mark.parametrize("labelled", [True, False])
def test_early_stopping_keeps_the_best_epoch(data, labelled):
    X, y = data
    y = y if labelled else None
    settings = SMALL | {"max_epochs": 60, "early_stopping": True, "averaging": 0.0}
    detector = AABiGAN(**settings).fit(X, y)
    losses = np.array([row["valid_loss"] for row in detector.net_.history])
    assert labelled or len(losses) < 60
    last_best = np.flatnonzero(losses == losses.min())[-1] + 1
    other = AABiGAN(**settings | {"max_epochs": int(last_best)})
    np.testing.assert_array_equal(
        other.fit(X, y).score_samples(X), detector.score_samples(X)
    )


def test_held_out_samples_do_not_train(data):
    X, y = data
    detector = AABiGAN(**SMALL).fit(X, y)
    rows, known = DeviceDataset(X[y == 1]), DeviceDataset(X[y == -1])
    none = rows.subset(torch.arange(0))
    left, normal = detector._validation(rows, none, seed=0)
    left_known, anomalous = detector._validation_anomalies(known, seed=0)
    for whole, part, apart in (
        (rows, left, normal),
        (known, left_known, anomalous),
    ):
        assert len(part) + len(apart) == len(whole)
        trained = {tuple(row) for row in part.head(200).tolist()}
        assert trained.isdisjoint({tuple(row) for row in apart.head(200).tolist()})
    assert len(anomalous) == 1
    single = known.subset(torch.arange(1))
    left_known, anomalous = detector._validation_anomalies(single, seed=0)
    assert (len(left_known), len(anomalous)) == (1, 0)


def test_calibration_samples_validate(data):
    X, _ = data
    rows = DeviceDataset(X)
    left, held_out = (rows.subset(torch.arange(*ends)) for ends in ((0, 30), (30, 36)))
    assert AABiGAN._validation(left, held_out, seed=0) == (left, held_out)


def test_maps_and_reconstructions_of_images(images):
    detector = AABiGAN(**SMALL).fit(images)
    reconstruction = detector.reconstruct(images)
    assert reconstruction.shape == images.shape
    assert reconstruction.dtype == np.uint8
    maps = detector.anomaly_map(images)
    assert maps.shape == (40, 9, 12)
    expected = ((images / 127.5 - reconstruction / 127.5) ** 2).sum(1)
    np.testing.assert_allclose(maps, expected, atol=0.02)  # bytes are rounded
    assert maps.max() > 0.1

    flat = images.reshape(40, -1)
    by_hint = AABiGAN(**SMALL, image_shape=(1, 9, 12)).fit(flat)
    np.testing.assert_array_equal(by_hint.anomaly_map(flat), maps)
    np.testing.assert_array_equal(
        by_hint.reconstruct(flat), reconstruction.reshape(40, -1)
    )


def test_tables_have_no_maps(data):
    with pytest.raises(ValueError, match="no pixels"):
        AABiGAN(**SMALL).fit(*data).anomaly_map(data[0])


def test_samples_come_from_all_games_and_obey_the_seed(data):
    X, y = data
    detector = AABiGAN(**SMALL).fit(X * 10 + 5, y)
    rows = detector.sample(301, random_state=1)
    assert rows.shape == (301, 4)
    np.testing.assert_array_equal(rows, detector.sample(301, random_state=1))
    assert not np.array_equal(rows, detector.sample(301, random_state=2))
    assert abs(rows.mean() - 5) < 5


# With scikit-learn --------------------------------------------------------------------


def test_a_search_judges_by_a_kind_that_was_not_collected(data):
    X, y = data
    kinds = np.where(y == -1, np.arange(120) % 2, -1)
    search = GridSearchCV(
        AABiGAN(**SMALL),
        {"cycle_weight": [0.0, 0.5]},
        scoring="roc_auc",
        cv=LeaveAnomalyKindOut(kinds, random_state=0),
    ).fit(X, y)
    assert search.n_splits_ == 2
    scores = search.best_estimator_.score_samples(X)
    assert roc_auc_score(y, scores) > 0.5


def test_known_anomalies_help_against_their_own_kind():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(600, 8))
    # Inside the cloud column by column, beside it in the correlation of two.
    normal[:, 1] = normal[:, 0] + 0.3 * rng.normal(size=600)
    odd = rng.normal(size=(200, 8))
    odd[:, 1] = -odd[:, 0] + 0.3 * rng.normal(size=200)
    X, y = np.r_[normal[:400], odd[:8]], np.repeat([1, -1], [400, 8])
    X_test, y_test = np.r_[normal[400:], odd[8:]], np.repeat([1, -1], [200, 192])
    scores = [
        AABiGAN(random_state=0, n_estimators=2).fit(X, labels).score_samples(X_test)
        for labels in (y, None)
    ]
    with_labels, without = (roc_auc_score(y_test, s) for s in scores)
    assert with_labels > without + 0.02


def test_optimisers_and_averages_follow_the_description():
    for shape, lr, beta2, decay in (
        ((3,), 1e-3, 0.999, 0.9),
        ((1, 8, 8), 2e-3, 0.9, 0.98),
    ):
        detector = AABiGAN()
        detector._row_shape = shape
        net = detector._make_nets("cpu", 0)["net_"].initialize()
        for name, share in (("coders", 1), ("discriminators", 0.25)):
            (group,) = getattr(net, f"optimizer_{name}_").param_groups
            assert (group["lr"], group["betas"]) == (share * lr, (0.5, beta2))
        assert detector._average(100).decay == decay
        best = detector.set_params(early_stopping=True)._average(100)
        assert (best.decay, best.patience) == (decay, 20)
        assert detector._average(10).patience == 10


def test_rates_of_images_fall_in_the_second_half():
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    for data, last in ((images, 0.2), (images.reshape(40, -1)[:, :5], 1.0)):
        rates = []

        class Rates(Callback):
            def on_batch_begin(self, net, **kwargs):
                rates.append(net.optimizer_coders_.param_groups[0]["lr"])  # noqa: B023

        settings = {"max_epochs": 5, "batch_size": 20, "width": 4, "lr": 1e-3}
        settings["calibration"] = None
        AABiGAN(**settings, callbacks=[Rates()], random_state=0).fit(data)
        assert len(rates) == 10
        np.testing.assert_allclose(rates[:6], 1e-3)
        assert rates[-1] == pytest.approx(last * 1e-3)
