"""HistoryAD: the history, the detector's start, the paper's settings."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback
from torch import nn

import skanomaly
from skanomaly import HistoryAD
from skanomaly._history_ad import _estimator
from skanomaly._history_ad._net import DetectorNet, History, HistoryGAN
from skanomaly._history_ad._networks import Detector
from skanomaly.engine import DeviceDataset, KeepBest
from skanomaly.exceptions import (
    CoverageWarning,
    FitInterruptedWarning,
    StopTraining,
)
from skanomaly.networks import (
    SLOPE,
    ConvCritic,
    ConvGenerator,
    Ensemble,
    StackedCritic,
    StackedMLP,
    normalised_alike,
)
from skanomaly.objectives import coverage, history_weights

# Short runs and networks of one line cover little.
pytestmark = pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning")

SHORT = {"max_epochs": 4, "detector_epochs": 1, "width": 8, "random_state": 0}


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(160, 3))


class Line(nn.Module):
    """A critic without a bend, and a generator that moves noise."""

    def __init__(self, *shape):
        super().__init__()
        self.linear = nn.Linear(int(np.prod(shape[0])), 1)

    def forward(self, x):
        return self.linear(x)


class Shift(nn.Module):
    """A generator that adds an offset to its noise."""

    def __init__(self, latent_dim, shape):
        super().__init__()
        self.offset = nn.Parameter(torch.full(shape, 4.0))

    def forward(self, z):
        return z[:, : len(self.offset)] + self.offset


OWN = {"generator": Shift, "critic": Line}


class Watch(Callback):
    """Keeps the networks at every step, which the history must not do."""

    def __init__(self):
        self.states = []

    def on_batch_begin(self, net, **kwargs):
        self._keep(net)

    def on_train_end(self, net, **kwargs):
        self._keep(net)

    def _keep(self, net):
        if hasattr(net, "generator_"):
            state = net.critic_.state_dict()
            self.states.append({k: v.clone().double() for k, v in state.items()})


# The history -------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_the_running_average_is_the_average_of_snapshots(X, beta):
    watch = Watch()
    detector = HistoryAD(
        **SHORT, beta=beta, alpha=0.25, saves_per_epoch=2, callbacks=[watch]
    ).fit(X)
    times = torch.linspace(0, 1, 4 * 2 + 1)
    steps = torch.round(times * (len(watch.states) - 1)).long()
    weights = history_weights(times, 0.25, beta)
    for name, value in detector.gan_history_.critic_.items():
        values = (watch.states[step][name] for step in steps)
        offline = sum(w * value for w, value in zip(weights, values, strict=True))
        torch.testing.assert_close(value, offline)


def test_for_a_linear_critic_the_mean_of_weights_is_the_mean_of_values(X):
    watch = Watch()
    detector = HistoryAD(**SHORT, architecture=OWN, callbacks=[watch]).fit(X)
    critic = detector.gan_history_.critic_
    points = torch.randn(5, 3, dtype=torch.float64)
    times = torch.linspace(0, 1, 61)
    steps = torch.round(times * (len(watch.states) - 1)).long()
    weights = history_weights(times, 0.0, 1.0)

    def value(state):
        prefix = "members.0.linear"
        return points @ state[f"{prefix}.weight"].T + state[f"{prefix}.bias"]

    values = sum(
        w * value(watch.states[s]) for w, s in zip(weights, steps, strict=True)
    )
    torch.testing.assert_close(value(critic), values)


def test_samples_come_from_save_points_in_proportion_to_their_weight(X):
    def fit(beta):
        return HistoryAD(**SHORT, architecture=OWN, beta=beta, lr=0.3).fit(X)

    early, late = fit(50.0), fit(0.0)
    # The generator starts at 4 and comes down to 0: an early history lies further out.
    at_start = early.sample(500, from_history=True).mean()
    throughout = late.sample(500, from_history=True).mean()
    final = late.sample(500).mean()
    assert at_start > throughout > final


def test_case_2_draws_every_other_sample_from_wider_noise(X):
    usual = HistoryAD(**SHORT, architecture=OWN, beta=50.0).fit(X)
    wide = HistoryAD(**SHORT, architecture=OWN, beta=50.0, wide_latent=4.0).fit(X)
    spreads = [d.sample(2000, from_history=True).std() for d in (usual, wide)]
    assert spreads[1] / spreads[0] == pytest.approx(np.sqrt((1 + 16) / 2), rel=0.1)


def test_time_in_epochs_and_in_shares_of_the_run(X):
    def times(**params):
        return HistoryAD(**SHORT, **params).fit(X).gan_history_.times_

    assert times()[-1] == 1
    in_epochs = times(time_unit="epoch", alpha=1.0)
    assert in_epochs[-1] == 4
    assert len(in_epochs) == 4 * 50 + 1
    assert len(times(saves_per_epoch=3)) == 4 * 3 + 1
    with pytest.raises(ValueError, match=r"alpha=4\.5 leaves no save point"):
        times(time_unit="epoch", alpha=4.5)


def test_memory_does_not_grow_with_the_number_of_saves(X):
    sizes = []
    for saves in (1, 50):
        history = HistoryAD(**SHORT, saves_per_epoch=saves).fit(X).gan_history_
        kept = [history.samples_, *history.critic_.values()]
        sizes.append(sum(t.numel() for t in kept))
        assert not {"parts_", "sum_", "due_"} & vars(history).keys()
    assert sizes[0] == sizes[1]


def test_warm_start_continues_the_history(X):
    once = HistoryAD(**SHORT, architecture=OWN, beta=3.0, warm_start=True).fit(X)
    first = {k: v.clone() for k, v in once.gan_history_.critic_.items()}
    once.fit(X)
    times = once.gan_history_.times_
    assert times[-1] == 2
    share = history_weights(times, 0.0, 3.0)[: len(times) // 2].sum()
    assert 0.9 < share < 1
    # Most of the average is still that of the first run.
    for name, value in once.gan_history_.critic_.items():
        assert (value - first[name]).abs().max() < 0.2


def test_a_warm_start_does_not_count_a_save_point_twice(X):
    """The end of the first run was the start of the second: both were counted."""
    detector = HistoryAD(**SHORT, warm_start=True, saves_per_epoch=2).fit(X).fit(X)
    times = detector.gan_history_.times_
    expected = torch.linspace(0, 2, 2 * 8 + 1, dtype=torch.float64)
    torch.testing.assert_close(times, expected)
    assert detector.gan_history_.samples_.shape[1] == 2048
    one = detector.fit(X).gan_history_.times_
    torch.testing.assert_close(one, torch.linspace(0, 3, 25, dtype=torch.float64))


def test_two_runs_make_the_history_of_one_that_is_as_long(X):
    """Of eqs 3 and 14: the average over both is that of all save points."""
    watch = Watch()
    settings = SHORT | {"saves_per_epoch": 2, "beta": 0.7, "callbacks": [watch]}
    detector = HistoryAD(**settings, warm_start=True).fit(X).fit(X)
    n = len(watch.states) // 2
    # The networks at the end of the first run are those at the start of the second.
    states = watch.states[:n] + watch.states[n + 1 :]
    steps = torch.round(torch.linspace(0, 1, 17) * (len(states) - 1)).long()
    weights = history_weights(detector.gan_history_.times_, 0.0, 0.7)
    for name, value in detector.gan_history_.critic_.items():
        values = (states[step][name] for step in steps)
        offline = sum(w * value for w, value in zip(weights, values, strict=True))
        torch.testing.assert_close(value, offline)


def test_alpha_at_a_save_point_does_not_lose_it():
    """9 / 11 of a run was later than its tenth save point, by a rounding."""
    for n in (*range(1, 40), 60, 250):
        for duration in (1.0, float(n)):
            times = torch.linspace(0, 1, n + 1, dtype=torch.float64) * duration
            for k in range(n + 1):
                counted = (history_weights(times, k / n * duration, 0.0) > 0).sum()
                assert counted == n + 1 - k, (k, n, duration)


def test_no_weight_decays_unless_a_parameter_says_so(X):
    """That of the detector was the default of AdamW, which nothing told."""
    plain, none = HistoryAD(**SHORT).fit(X), HistoryAD(**SHORT, weight_decay=0).fit(X)
    for detector, decay in ((plain, 0.01), (none, 0)):
        groups = detector.net_.optimizer_detector_.param_groups
        assert [group["weight_decay"] for group in groups] == [decay]
        for player in ("critic", "generator"):
            groups = getattr(detector.gan_, f"optimizer_{player}_").param_groups
            assert [group["weight_decay"] for group in groups] == [0]


def test_a_run_that_ended_early_counts_by_its_length(X):
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise StopTraining

    settings = SHORT | {"max_epochs": 20, "alpha": 0, "beta": 0, "saves_per_epoch": 1}
    detector = HistoryAD(**settings, warm_start=True, callbacks=[Stop()]).fit(X)
    assert detector.gan_history_.times_[-1] == pytest.approx(0.05)
    n_first = len(detector.gan_history_.times_)
    detector.set_params(callbacks=None).fit(X)
    times = detector.gan_history_.times_
    assert times[-1] == pytest.approx(1.05)
    share = history_weights(times, 0.0, 0.0)[:n_first].sum()
    assert share < 0.2


def test_a_warm_start_of_an_untrained_detector_takes_the_new_history(X):
    settings = SHORT | {"detector_epochs": 0}
    detector = HistoryAD(**settings, warm_start=True).fit(X)
    first = detector.score_samples(X)
    detector.fit(X)
    assert not np.array_equal(detector.score_samples(X), first)
    critic = detector.net_.detector_.critic.state_dict()
    for name, value in detector.gan_history_.critic_.items():
        torch.testing.assert_close(critic[name], value.to(critic[name]))


# The detector ------------------------------------------------------------------------


def test_calibration_puts_data_at_minus_and_history_at_plus_one():
    torch.default_generator.manual_seed(0)
    detector = Detector(3, partial(StackedCritic, 3, (2, 8, 1)))
    data, history = torch.randn(3, 200, 2), torch.randn(3, 200, 2) + 30
    detector.calibrate(data, history)
    means = detector(data).mean(1), detector(history).mean(1)
    separated = (means[1] - means[0]).abs() > 1.9
    assert separated.any()
    torch.testing.assert_close(means[0] + means[1], torch.zeros(3), atol=1e-5, rtol=0)
    # Alike distributions are not blown up to be told apart.
    detector.calibrate(data, data.flip(1))
    assert detector(data).std(1).max() < 2


def test_no_training_leaves_the_calibrated_average(X):
    untrained = HistoryAD(**{**SHORT, "detector_epochs": 0}, init="average").fit(X)
    weights = untrained.net_.detector_.critic.state_dict()
    for name, value in untrained.gan_history_.critic_.items():
        torch.testing.assert_close(weights[name], value.float())
    assert untrained.net_.step_ == 0
    random = HistoryAD(**{**SHORT, "detector_epochs": 0}, init="random").fit(X)
    assert not np.allclose(untrained.score_samples(X), random.score_samples(X))


def test_scores_lie_in_the_range_of_eq_11_and_the_threshold_is_zero(toy):
    X_train, X_test, _ = toy
    params = {"init": "random", "detector_epochs": 40, "detector_lr": 1e-3}
    detector = HistoryAD(random_state=0, **params).fit(X_train)
    assert detector.offset_ == 0
    scores = detector.score_samples(np.r_[X_train, X_test])
    low, high = np.percentile(scores, [1, 99])
    assert -1.5 < low < 0 < high < 1.5


def test_untrained_detectors_of_images_are_averages_too():
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)
    detector = HistoryAD(**{**SHORT, "detector_epochs": 0}).fit(images)
    weights = detector.net_.detector_.critic.state_dict()
    for name, value in detector.gan_history_.critic_.items():
        torch.testing.assert_close(weights[name], value.float())


def test_the_one_dimensional_toy_of_the_paper():
    X = np.random.default_rng(0).normal(size=(2000, 1))
    detector = HistoryAD(random_state=0).fit(X)
    grid = np.linspace(-6, 6, 49)[:, None]
    values = -detector.score_samples(grid)
    assert values[24] < 0
    assert min(values[0], values[-1]) > 0
    assert spearmanr(np.abs(grid.ravel()), values).statistic > 0.9


def test_lam_changes_the_detector_but_not_the_history(X, tmp_path, monkeypatch):
    runs = []
    run = HistoryGAN.run
    monkeypatch.setattr(
        HistoryGAN, "run", lambda *a, **k: runs.append(1) or run(*a, **k)
    )
    scores = [
        HistoryAD(**SHORT, lam=lam, memory=str(tmp_path), init="random")
        .fit(X)
        .score_samples(X)
        for lam in (0.1, 1.0, 10.0)
    ]
    assert len(runs) == 1
    assert not np.allclose(scores[0], scores[2])
    for changed in ({"beta": 2.0}, {"random_state": 1}, {"lr": 0.1}):
        HistoryAD(**{**SHORT, **changed}, memory=str(tmp_path)).fit(X)
    HistoryAD(**SHORT, memory=str(tmp_path)).fit(X + 1)
    assert len(runs) == 5


# Coverage ----------------------------------------------------------------------------


@pytest.mark.parametrize("saves_per_epoch", [1, 500])
def test_half_of_the_samples_are_wide_whatever_the_save_points(saves_per_epoch, X):
    settings = SHORT | {"architecture": OWN, "alpha": 0, "beta": 0}
    settings |= {"saves_per_epoch": saves_per_epoch, "wide_latent": 1e6}
    history = HistoryAD(**settings).fit(X).gan_history_
    far = history.samples_.abs().amax(-1) > 1e4
    assert far.float().mean() == pytest.approx(0.5, abs=0.02)


class Normalised(nn.Module):
    """A generator that is nothing but batch normalisation, as those of images begin."""

    def __init__(self, latent_dim, shape, tracked=False):
        super().__init__()
        self.norm = nn.BatchNorm1d(latent_dim, track_running_stats=tracked)

    def forward(self, z):
        return self.norm(z)


@pytest.mark.parametrize("tracked", [False, True])
def test_batch_normalisation_does_not_make_wide_samples_narrow(tracked, X):
    """It divided wide and usual samples by the spread of both together."""
    own = OWN | {"generator": partial(Normalised, tracked=tracked)}
    settings = SHORT | {"architecture": own, "latent_dim": 3, "lr": 1e-9, "beta": 0}
    usual, wide = (
        HistoryAD(**settings, wide_latent=width, saves_per_epoch=1).fit(X).gan_history_
        for width in (None, 4.0)
    )
    usual, wide = usual.samples_, wide.samples_
    same = (usual == wide).all(-1)
    assert same.float().mean() == pytest.approx(0.5, abs=0.02)
    # One mean and one deviation for both, so that each sample is as far out as it is.
    torch.testing.assert_close(
        wide[~same].std() / usual[~same].std(), torch.tensor(4.0), rtol=0.02, atol=0
    )
    assert usual.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("bounded", [False, True])
def test_images_of_wide_noise_are_those_of_usual_statistics(bounded):
    torch.default_generator.manual_seed(0)
    network = ConvGenerator(6, (1, 8, 12), 4, bounded)
    noise = torch.randn(64, 6)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    first = network(noise)
    usual, same = normalised_alike(network, noise, noise)
    torch.testing.assert_close((usual, same), (first, first))
    wide = normalised_alike(network, noise, 5 * noise)[1]
    # The first normalisation gets five times the usual input, less the usual mean.
    inner, x = network.layers[:2], network.layers[:2](noise)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0)
    norm = network.layers[2]
    expected = (inner(5 * noise) - mean) / (std + norm.eps)[:, None, None].sqrt()
    seen = []
    # The next layer works in place.
    hook = norm.register_forward_hook(lambda _, inputs, out: seen.append(out.clone()))
    normalised_alike(network, noise, 5 * noise)
    hook.remove()
    torch.testing.assert_close(seen[1], expected)
    assert wide.std() > 1.1 * usual.std()
    # Nothing is left behind.
    assert network.state_dict().keys() == kept.keys()
    torch.testing.assert_close(network(noise), first)
    assert all("forward" not in vars(layer) for layer in network.modules())


def test_wide_samples_of_images_lie_further_out_than_usual_ones():
    images = np.random.default_rng(0).normal(size=(40, 1, 8, 8))
    settings = SHORT | {"scaling": "standard", "beta": 0, "alpha": 0, "lr": 1e-6}
    usual, wide = (
        HistoryAD(**settings, wide_latent=width)
        .fit(images)
        .gan_history_.samples_.float()
        for width in (None, 8.0)
    )
    same = (usual - wide).abs().amax((2, 3, 4)) < 1e-2
    assert same.float().mean() == pytest.approx(0.5, abs=0.02)
    assert wide[~same].std() > 2 * usual[~same].std()


def test_coverage_tells_a_wide_history_from_a_narrow_one():
    torch.default_generator.manual_seed(0)
    data = torch.randn(300, 4)
    assert coverage(data, 3 * torch.randn(1000, 4)) > 0.95
    assert coverage(data, 0.1 * torch.randn(1000, 4)) < 0.2
    assert coverage(data, torch.randn(1000, 4) + 20) < 0.2


def test_a_narrow_history_is_warned_about(X):
    with pytest.warns(CoverageWarning, match="spread"):
        narrow = HistoryAD(**SHORT, spread=0.01, lr=1e-6).fit(X)
    wide = HistoryAD(**SHORT).fit(X)
    assert narrow.coverage_ < 0.5 < wide.coverage_


# Networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 4, 5), (1, 28, 28)])
def test_image_networks_take_any_size(shape):
    images = ConvGenerator(6, shape, 4)(torch.randn(5, 6))
    assert images.shape == (5, *shape)
    assert images.abs().max() <= 1
    assert ConvCritic(shape, 4)(images).shape == (5, 1)


def test_the_paper_s_size_is_within_reach():
    shape = (3, 32, 32)
    for network in (ConvCritic(shape, 64), ConvGenerator(128, shape, 64)):
        n_parameters = sum(p.numel() for p in network.parameters())
        assert 2.5e6 < n_parameters < 7e6


def test_a_stack_is_an_ensemble():
    torch.default_generator.manual_seed(0)
    stack, x = StackedMLP(2, (3, 5, 4)), torch.randn(2, 6, 3)
    together = stack(x)
    for k in range(2):
        h = x[k] @ stack.weight_0[k] + stack.bias_0[k]
        h = nn.functional.leaky_relu(h, SLOPE)
        torch.testing.assert_close(together[k], h @ stack.weight_1[k] + stack.bias_1[k])
    members = Ensemble.of(2, partial(nn.Linear, 3, 4))
    parts = [m(part) for m, part in zip(members.members, x, strict=True)]
    torch.testing.assert_close(members(x), torch.stack(parts))


def test_stacked_histories_are_independent(X):
    """Each member is trained as if it were alone: same batches, same steps."""
    rows = DeviceDataset(X.astype(np.float32))
    build = {
        "generator": partial(Ensemble.of, 2, partial(Shift, 3, (3,))),
        "critic": partial(StackedCritic, 2, (3, 8, 1)),
    }
    gan = HistoryGAN(build, noise_dim=3, n_critic=1, n_estimators=2, batch_size=16)
    gan.run(rows, max_epochs=0, epoch_steps=1)
    gan.rng_ = torch.Generator().manual_seed(0)
    losses = dict(gan.training_step(rows[torch.arange(32).view(2, 16)]))
    loss = losses["critic"].sum()
    # The derivative of the summed loss by member 0 does not depend on member 1.
    first = torch.autograd.grad(loss, list(gan.critic_.parameters()))
    gan.rng_ = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gan.critic_.parameters():
            p[1] *= 7
    losses = dict(gan.training_step(rows[torch.arange(32).view(2, 16)]))
    loss = losses["critic"].sum()
    second = torch.autograd.grad(loss, list(gan.critic_.parameters()))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a[0], b[0])


# Training ---------------------------------------------------------------------------


def line_gan(cls=HistoryGAN, n_critic=1):
    """Return a GAN of a moved normal distribution and a linear critic."""
    build = {
        "generator": partial(Ensemble.of, 1, partial(Shift, 3, (3,))),
        "critic": partial(Ensemble.of, 1, partial(Line, (3,))),
    }
    sizes = {"noise_dim": 3, "n_estimators": 1, "batch_size": 16}
    return cls(build, n_critic=n_critic, **sizes)


def test_the_turns_are_those_of_eq_2_with_a_penalty(X):
    rows, gan = DeviceDataset(X.astype(np.float32)), line_gan()
    gan.run(rows, max_epochs=0, epoch_steps=1)
    x = rows[torch.arange(16)][None]
    gan.rng_ = torch.Generator().manual_seed(0)
    losses = dict(gan.training_step(x))
    gan.rng_.manual_seed(0)
    line, generated = gan.critic_.members[0], gan.generate(16)
    # The slope of a line is the same everywhere.
    penalty = 10 * (line.linear.weight.norm() - 1) ** 2
    expected = line(x).mean() - line(generated).mean() + penalty
    torch.testing.assert_close(losses["critic"], expected[None])
    torch.testing.assert_close(losses["generator"], line(generated).mean(1)[0])


def test_the_generator_plays_once_in_n_critic_steps(X):
    class Seen(HistoryGAN):
        def _update(self, pairs):
            vars(self).setdefault("seen", []).extend(name[0] for name, _ in pairs)
            super()._update(pairs)

    rows = DeviceDataset(X.astype(np.float32))
    for n_critic, turns in ((1, "cgcgcgcg"), (2, "ccgccg"), (3, "cccgc")):
        gan = line_gan(Seen, n_critic).run(rows, max_epochs=1, epoch_steps=4)
        assert "".join(gan.seen) == turns


def test_alpha_and_beta_of_a_run_are_in_its_unit():
    for unit, length in (("run", 1), ("epoch", 10)):
        detector = HistoryAD(time_unit=unit)
        detector._row_shape = (1, 8, 8)
        assert detector._make_history(10).alpha == pytest.approx(0.3 * length)
        detector._row_shape = (3,)
        assert detector._make_history(10).beta == pytest.approx(1 / length)
        detector.set_params(alpha=0.2, beta=0.5)
        history = detector._make_history(10)
        assert (history.alpha, history.beta) == (0.2, 0.5)


@pytest.mark.parametrize(
    ("calibration", "n_samples"), [(None, [144, 16]), ("auto", [141, 19])]
)
def test_held_out_samples_validate_the_detector_and_the_history(
    X, calibration, n_samples, monkeypatch
):
    seen, train = {}, DetectorNet.train

    def watched(net, rows, **settings):
        seen.update(settings, rows=rows, batch_size=net.batch_size)
        return train(net, rows, **settings)

    def covered(data, samples):
        seen["covered"] = data
        return coverage(data, samples)

    monkeypatch.setattr(DetectorNet, "train", watched)
    monkeypatch.setattr(_estimator, "coverage", covered)
    HistoryAD(**SHORT, batch_size=20, calibration=calibration).fit(X)
    parts = [set(seen[name].indices.tolist()) for name in ("rows", "held_out")]
    assert [len(part) for part in parts] == n_samples
    assert not parts[0] & parts[1]
    assert torch.equal(seen["covered"], seen["held_out"].head(1000))
    assert seen["batch_size"] == 2 * 20
    best = seen["callbacks"][0]
    assert isinstance(best, KeepBest)
    assert (best.patience, best.decay) == (20, 0.99)


def test_an_interrupted_gan_ends_the_training(X):
    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            if net.step_ == 5:
                raise KeyboardInterrupt

    with pytest.warns(FitInterruptedWarning):
        detector = HistoryAD(**SHORT, callbacks=[Interrupt()], on_interrupt="keep").fit(
            X
        )
    assert (detector.gan_.step_, detector.net_.step_) == (5, 0)
    assert {record["stage"] for record in detector.history_} == {"history"}


def test_rescaled_networks_have_the_given_spread():
    network, x = StackedMLP(2, (3, 8, 4)), torch.randn(2, 200, 3)
    network.rescale(x, 5.0)
    output = network(x)
    mean_square = output.var(1).mean(1)
    torch.testing.assert_close(mean_square, torch.full((2,), 25.0))
    assert not network.bias_1.any()
    assert network.bias_0.any()


# Samples -----------------------------------------------------------------------------


def test_samples_are_in_the_units_of_the_data(X):
    detector = HistoryAD(random_state=0).fit(X * 100 + 1e4)
    drawn = detector.sample(500)
    assert drawn.shape == (500, 3)
    assert np.abs(drawn.mean(0) - 1e4).max() < 300
    assert (drawn.std(0) > 30).all()
    assert (drawn.std(0) < 900).all()
    np.testing.assert_array_equal(detector.sample(5), detector.sample(5))
    other = detector.sample(5, random_state=1)
    assert not np.array_equal(detector.sample(5), other)


def test_the_history_is_there_in_the_units_of_the_data(X):
    detector = HistoryAD(**SHORT, n_estimators=2).fit(X * 100 + 1e4)
    history = detector.history_samples_
    assert history.shape == (2 * 2048, 3)
    assert np.abs(history.mean(0) - 1e4).max() < 1000
    drawn = detector.sample(50, from_history=True)
    assert (drawn[:, None] == history).all(-1).any(1).all()
    with pytest.raises(NotFittedError):
        HistoryAD().history_samples_  # noqa: B018


def test_image_samples_have_the_type_and_shape_of_the_data():
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)
    detector = HistoryAD(**SHORT).fit(images)
    assert detector.history_samples_.shape == (3000, 1, 9, 12)
    for from_history in (False, True):
        drawn = detector.sample(3, from_history=from_history)
        assert drawn.shape == (3, 1, 9, 12)
        assert drawn.dtype == np.uint8
    flat = images.reshape(len(images), -1) / 255
    detector = HistoryAD(**SHORT, image_shape=(1, 9, 12)).fit(flat)
    assert detector.sample(3).shape == (3, 108)


# The package -------------------------------------------------------------------------


def test_importing_the_package_does_not_import_torch():
    code = (
        "import sys, skanomaly; print('torch' in sys.modules, 'skorch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert printed.stdout.split() == ["False", "False"]
    assert set(skanomaly.__all__) - {"__version__"} <= set(dir(skanomaly))


def test_history_is_public_in_its_file_only():
    assert not hasattr(skanomaly, History.__name__)
