"""The engine: gradients of each player, the history, the end of a run."""

import io
import pickle
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from torch import nn

from skanomaly.engine import (
    Adam,
    AlternatingNet,
    AverageWeights,
    Batches,
    DeviceDataset,
    KeepBest,
    LinearDecay,
    Player,
    StepDecay,
)
from skanomaly.exceptions import StopTraining, TrainingDivergedError
from skanomaly.utils._scaling import ImageScaler

SGD = partial(torch.optim.SGD, lr=0.1)


class Duel(AlternatingNet):
    """Two numbers: one approaches the mean of the data, the other the first."""

    def configure_optimizers(self):
        return {"first": Player(self.first_, SGD), "second": Player(self.second_, SGD)}

    def training_step(self, batch):
        yield "first", (self.first_.weight - batch.mean()).square().sum()
        self.seen.append(self.first_.weight.item())
        yield "second", (self.second_.weight - self.first_.weight).square().sum()


class AtOnce(Duel):
    def training_step(self, batch):
        apart = (self.second_.weight - self.first_.weight).square().sum()
        yield ("first", -apart), ("second", apart)


def make(cls=Duel, **engine):
    build = partial(nn.Linear, 1, 1, bias=False)
    net = cls({"first": build, "second": build}, batch_size=4, **engine)
    net.seen = []
    return net


@pytest.fixture
def rows():
    return DeviceDataset(np.full((10, 1), 2.0))


def test_each_yield_steps_before_the_next_loss(rows):
    net = make().run(rows, max_epochs=0, epoch_steps=1)
    a, b = net.first_.weight.item(), net.second_.weight.item()
    net.run(rows, max_epochs=1, epoch_steps=1)
    moved = a - 0.1 * 2 * (a - 2)
    assert net.seen == [pytest.approx(moved)]
    assert net.first_.weight.item() == pytest.approx(moved)
    assert net.second_.weight.item() == pytest.approx(b - 0.1 * 2 * (b - moved))


def test_an_update_changes_its_player_alone(rows):
    class OnlyFirst(Duel):
        def training_step(self, batch):
            yield "first", (self.first_.weight * self.second_.weight).sum()

    net = make(OnlyFirst).run(rows, max_epochs=0, epoch_steps=1)
    before = net.first_.weight.item(), net.second_.weight.item()
    net.run(rows, max_epochs=1, epoch_steps=3)
    assert net.first_.weight.item() != before[0]
    assert net.second_.weight.item() == before[1]
    assert net.second_.weight.grad is None


def test_pairs_in_one_yield_share_an_update(rows):
    net = make(AtOnce).run(rows, max_epochs=0, epoch_steps=1)
    a, b = net.first_.weight.item(), net.second_.weight.item()
    net.run(rows, max_epochs=1, epoch_steps=1)
    assert net.first_.weight.item() == pytest.approx(a - 0.1 * 2 * (b - a))
    assert net.second_.weight.item() == pytest.approx(b - 0.1 * 2 * (b - a))


def test_gradients_are_clipped_to_the_norm_of_the_player(rows):
    class Short(Duel):
        def configure_optimizers(self):
            first, second = super().configure_optimizers().values()
            return {"first": first._replace(max_norm=0.5), "second": second}

    net = make(Short).run(rows, max_epochs=0, epoch_steps=1)
    with torch.no_grad():
        net.first_.weight.fill_(9.0)  # its gradient is 14
        net.second_.weight.fill_(0.0)
    net.run(rows, max_epochs=1, epoch_steps=1)
    assert net.first_.weight.item() == pytest.approx(9 - 0.1 * 0.5)
    assert net.second_.weight.item() == pytest.approx(0.1 * 2 * 8.95)


def test_a_callback_may_end_a_run_within_an_epoch(rows):
    class Stop(Callback):
        def on_batch_end(self, net, **kwargs):
            if net.step_ == 5:
                raise StopTraining

    net = make().run(rows, max_epochs=4, epoch_steps=3, callbacks=[Stop()])
    assert net.step_ == 5
    assert [row["epoch"] for row in net.history if "dur" in row] == [1, 2]
    assert net.history[1]["first_loss"] >= 0
    assert not net.interrupted_
    net.run(rows, max_epochs=1, epoch_steps=3)
    assert net.step_ == 8


def test_losses_are_means_over_the_epoch(rows):
    net = make().run(rows, max_epochs=2, epoch_steps=3)
    assert [row["epoch"] for row in net.history] == [1, 2]
    assert {"first_loss", "second_loss", "dur"} <= set(net.history[0])
    assert net.history[1, "first_loss"] < net.history[0, "first_loss"]
    assert net.step_ == 6


def test_runs_go_on_where_the_last_one_ended(rows):
    once = make().run(rows, max_epochs=4, epoch_steps=2)
    twice = make().run(rows, max_epochs=2, epoch_steps=2)
    twice.run(rows, max_epochs=2, epoch_steps=2)
    assert twice.step_ == once.step_
    assert len(twice.history) == 4
    assert twice.first_.weight.item() == pytest.approx(once.first_.weight.item())


def test_a_seed_makes_runs_equal_and_leaves_the_caller_s_state(
    rows, torch_and_numpy_state
):
    one, other = (make(seed=3).run(rows, max_epochs=1, epoch_steps=2) for _ in "ab")
    assert torch.equal(one.first_.weight, other.first_.weight)
    different = make(seed=4).run(rows, max_epochs=1, epoch_steps=2)
    assert not torch.equal(one.first_.weight, different.first_.weight)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_divergence_raises_an_error(rows, bad):
    class Diverging(Duel):
        def training_step(self, batch):
            yield "second", self.second_.weight.sum() * bad

    with pytest.raises(TrainingDivergedError, match=r"second_loss.*epoch 1\."):
        make(Diverging).run(rows, max_epochs=3, epoch_steps=2)


def test_an_interrupt_ends_a_run_and_the_net_stays_usable(rows):
    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            if net.step_ == 3:
                raise KeyboardInterrupt

    net = make(on_interrupt="keep")
    net.run(rows, max_epochs=5, epoch_steps=2, callbacks=[Interrupt()])
    assert net.interrupted_
    assert net.step_ == 3
    assert np.isfinite(net.history[-1, "first_loss"])
    assert not net.first_.training
    assert not net.run(rows, max_epochs=1, epoch_steps=1).interrupted_


def test_early_stopping_of_skorch_is_no_interrupt(rows):
    stop = EarlyStopping("first_loss", patience=2, threshold=10.0, sink=str)
    net = make().run(rows, max_epochs=50, epoch_steps=1, callbacks=[stop])
    assert not net.interrupted_
    assert len(net.history) < 50


class StopAt(Callback):
    """Ends a run in a hook, by an interrupt or by StopTraining."""

    def __init__(self, hook, word):
        def called(net, *arguments, **options):
            raise word

        setattr(self, hook, called)


def test_an_interrupt_at_the_end_of_an_epoch_ends_the_run(rows):
    stop = StopAt("on_epoch_end", KeyboardInterrupt)
    net = make(on_interrupt="keep")
    net.run(rows, max_epochs=4, epoch_steps=1, callbacks=[stop])
    assert net.interrupted_
    assert net.step_ == 1


@pytest.mark.parametrize(("hook", "n_steps"), [("begin", 0), ("end", 3)])
def test_a_callback_may_end_a_run_around_the_loop(hook, n_steps, rows):
    stop = StopAt(f"on_train_{hook}", StopTraining)
    net = make().run(rows, max_epochs=3, epoch_steps=1, callbacks=[stop])
    assert net.step_ == n_steps
    net.run(rows, max_epochs=1, epoch_steps=1)
    assert net.step_ == n_steps + 1


def test_callbacks_may_change_the_gradients_of_each_player(rows):
    clip = GradientNormClipping(1e-9)
    net = make().run(rows, max_epochs=0, epoch_steps=1)
    before = net.first_.weight.item(), net.second_.weight.item()
    net.run(rows, max_epochs=1, epoch_steps=3, callbacks=[clip])
    after = net.first_.weight.item(), net.second_.weight.item()
    np.testing.assert_allclose(after, before, rtol=1e-6)


@pytest.mark.parametrize("callback", [LRScheduler(), ("score", EpochScoring("r2"))])
def test_callbacks_for_other_nets_are_refused(callback, rows):
    with pytest.raises(ValueError, match=r"several optimizers.*net\.history"):
        make().run(rows, max_epochs=1, epoch_steps=1, callbacks=[callback])


@pytest.mark.parametrize("callback", [1, EarlyStopping, ("name", 2)])
def test_other_objects_than_callbacks_are_refused(callback, rows):
    with pytest.raises(ValueError, match=r"instances of skorch\.callbacks\.Callback"):
        make().run(rows, max_epochs=1, epoch_steps=1, callbacks=[callback])


def test_means_of_half_precision_losses_are_float32(rows):
    class Half(Duel):
        def training_step(self, batch):
            yield "first", (10 + 0 * self.first_.weight.sum()).bfloat16()

    net = make(Half).run(rows, max_epochs=1, epoch_steps=1000)
    assert net.history[-1]["first_loss"] == pytest.approx(10)


def test_a_resumed_net_draws_other_numbers(rows):
    class Draw(Duel):
        def training_step(self, batch):
            self.seen.append(torch.rand(()).item())
            yield from super().training_step(batch)

    first = make(Draw).run(rows, max_epochs=1, epoch_steps=1)
    second = make(Draw)
    second.resume(first)
    second.run(rows, max_epochs=1, epoch_steps=1)
    assert first.seen[0] != second.seen[0]


def test_a_resumed_net_leaves_the_other_as_it_is(rows):
    class Adam(Duel):
        def configure_optimizers(self):
            return {
                name: player._replace(optimizer=torch.optim.Adam)
                for name, player in super().configure_optimizers().items()
            }

    first = make(Adam).run(rows, max_epochs=1, epoch_steps=3)
    second = make(Adam)
    second.resume(first)
    (state,) = first.optimizer_first_.state.values()
    before = {name: value.clone() for name, value in state.items()}
    second.run(rows, max_epochs=1, epoch_steps=3)
    assert {name: value.item() for name, value in state.items()} == {
        name: value.item() for name, value in before.items()
    }


def test_an_error_of_a_callback_comes_out(rows):
    class Broken(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        make().run(rows, max_epochs=1, epoch_steps=1, callbacks=[Broken()])


def test_keep_best_restores_the_best_and_counts_the_start(rows):
    class Worse(Duel):
        def training_step(self, batch):
            yield "first", -self.first_.weight.sum()

        def validate(self):
            return {"valid_loss": self.first_.weight.sum()}

    net = make(Worse).run(rows, max_epochs=0, epoch_steps=1)
    start = net.first_.weight.item()
    net.run(rows, max_epochs=20, epoch_steps=1, callbacks=[KeepBest(patience=3)])
    assert net.first_.weight.item() == start
    assert len(net.history) == 4


def test_keep_best_can_evaluate_a_moving_average(rows):
    class Falling(Duel):
        def training_step(self, batch):
            yield "first", self.first_.weight.sum()

        def validate(self):
            return {"valid_loss": self.first_.weight.sum()}

    net = make(Falling).run(rows, max_epochs=0, epoch_steps=1)
    weight = average = net.first_.weight.item()
    net.run(rows, max_epochs=4, epoch_steps=1, callbacks=[KeepBest(decay=0.5)])
    for _ in range(4):
        weight -= 0.1
        average = (average + weight) / 2
    assert net.first_.weight.item() == pytest.approx(average)


class Normalised(AlternatingNet):
    """One player with running means, and a metric given in advance."""

    def configure_optimizers(self):
        return {"norm": Player(self.norm_, SGD)}

    def training_step(self, batch):
        yield "norm", self.norm_(batch).square().mean() + self.norm_.bias.sum()

    def validate(self):
        self.judged.append(self.norm_.training)
        return {"valid_loss": self.figures.pop(0)}


def make_normalised(figures=()):
    net = Normalised({"norm": partial(nn.BatchNorm1d, 1)}, batch_size=8)
    net.figures, net.judged = [torch.tensor(float(f)) for f in figures], []
    return net


@pytest.mark.parametrize(
    ("decay", "shares"), [(0.5, (0.25, 0.25, 0.5)), (0.9, (1 / 3, 1 / 3, 1 / 3))]
)
def test_average_weights_averages_running_means_too(decay, shares, rows):
    callback = AverageWeights(decay)
    net = make_normalised().run(rows, max_epochs=3, epoch_steps=1, callbacks=[callback])
    states = [
        make_normalised().run(rows, max_epochs=k, epoch_steps=1).norm_.state_dict()
        for k in (1, 2, 3)
    ]
    for name in ("weight", "bias", "running_mean", "running_var"):
        parts = zip(shares, states, strict=True)
        average = sum(share * state[name] for share, state in parts)
        torch.testing.assert_close(net.norm_.state_dict()[name], average)
    assert not vars(callback).keys() - {"decay", "players"}


def test_keep_best_restores_running_means_and_evaluates_in_eval_mode(rows):
    figures = [3, 2, 1, 5, 5]
    net = make_normalised(figures)
    net.run(rows, max_epochs=4, epoch_steps=1, callbacks=[KeepBest(patience=9)])
    best = make_normalised().run(rows, max_epochs=2, epoch_steps=1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        state, expected = (n.norm_.state_dict()[name] for n in (net, best))
        assert torch.equal(state, expected)
    assert net.judged == [False] * 5


def test_linear_decay_ends_at_its_share(rows):
    net = make().run(rows, max_epochs=2, epoch_steps=5, callbacks=[LinearDecay(0.1)])
    assert net.optimizer_first_.param_groups[0]["lr"] == pytest.approx(0.01)


def test_linear_decay_may_begin_later(rows):
    net = make().run(rows, max_epochs=2, epoch_steps=5, callbacks=[LinearDecay(0, 0.5)])
    assert net.optimizer_first_.param_groups[0]["lr"] == 0

    class Rates(Callback):
        def on_batch_begin(self, net, **kwargs):
            seen.append(net.optimizer_first_.param_groups[0]["lr"])

    seen = []
    callbacks = [LinearDecay(0, 0.5), Rates()]
    make().run(rows, max_epochs=2, epoch_steps=5, callbacks=callbacks)
    np.testing.assert_allclose(seen, 0.1 * np.r_[np.ones(6), 0.8, 0.6, 0.4, 0.2])


def test_a_second_run_begins_with_the_first_rate(rows):
    class Rates(Callback):
        def on_batch_begin(self, net, **kwargs):
            seen.append(net.optimizer_first_.param_groups[0]["lr"])

    seen, net = [], make()
    for _ in range(2):
        plan = {"max_epochs": 1, "epoch_steps": 2}
        net.run(rows, callbacks=[LinearDecay(0.2), Rates()], **plan)
    np.testing.assert_allclose(seen, [0.1, 0.06] * 2)


def test_nets_pickle_after_a_run_with_callbacks(rows):
    class Unpicklable(Callback):
        def __init__(self):
            self.file = open(__file__)  # noqa: SIM115

    callback = Unpicklable()
    net = make().run(rows, max_epochs=1, epoch_steps=1, callbacks=[callback])
    callback.file.close()
    back = pickle.loads(pickle.dumps(net))
    assert torch.equal(back.first_.weight, net.first_.weight)
    back.run(rows, max_epochs=1, epoch_steps=1)
    assert back.step_ == 2


def test_bfloat16_computes_losses_under_autocast(rows):
    seen = []

    class Product(Duel):
        def training_step(self, batch):
            product = self.first_(batch)
            seen.append(product.dtype)
            yield "first", product.float().sum()

    make(Product, precision="bfloat16").run(rows, max_epochs=1, epoch_steps=1)
    make(Product).run(rows, max_epochs=1, epoch_steps=1)
    assert seen == [torch.bfloat16, torch.float32]


# Optimisers -------------------------------------------------------------------------


def copied(adam, state):
    return deepcopy(state)


def stored(adam, state):
    """Return the state from a file, as checkpoints have it."""
    file = io.BytesIO()
    parts = {
        index: {name: value.detach() for name, value in of_one.items()}
        for index, of_one in state["state"].items()
    }
    torch.save({**state, "state": parts}, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("between", [copied, stored])
def test_adam_is_that_of_torch_also_after_a_copy(between, decay):
    torch.manual_seed(0)
    shapes, dtypes = [(3, 2), (4,), (2, 5)], [torch.float32] * 2 + [torch.float64]
    ours, theirs = (
        [
            nn.Parameter(torch.ones(s, dtype=d))
            for s, d in zip(shapes, dtypes, strict=True)
        ]
        for _ in range(2)
    )
    settings = {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": decay}
    adam, reference = Adam(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(6):
        if step == 3:
            state = between(adam, adam.state_dict())
            adam = Adam(ours, **settings)
            adam.load_state_dict(state)
        trained = slice(1 if step == 4 else None)  # the others rest once
        for group in (ours, theirs):
            for p in group:
                p.grad = None
        for one, other in zip(ours[trained], theirs[trained], strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        adam.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


# Data and batches ------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [None, 0], ids=["resident", "streamed"])
def test_batches_pass_over_every_row(max_bytes):
    rows = DeviceDataset(np.arange(12.0)[:, None], max_bytes=max_bytes)
    rng = torch.Generator().manual_seed(0)
    batches = Batches(rows, 4, 3, None, rng)
    first, second = (torch.cat(list(batches)).ravel() for _ in "ab")
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


def test_batches_of_members_are_drawn_separately():
    rows = DeviceDataset(np.arange(12.0)[:, None])
    batches = list(Batches(rows, 4, 3, 2, torch.Generator().manual_seed(0)))
    assert [b.shape for b in batches] == [(2, 4, 1)] * 3
    together = torch.cat(batches, dim=1).squeeze(-1)
    assert together[0].tolist() != together[1].tolist()
    assert sorted(together[1].tolist()) == list(range(12))


def test_few_rows_repeat_to_fill_a_batch():
    rows = DeviceDataset(np.arange(3.0)[:, None])
    (batch,) = Batches(rows, 8, 1, None, torch.Generator())
    counts = np.bincount(batch.ravel().int())
    assert counts.sum() == 8
    assert counts.min() >= 2


def test_uint8_images_stay_bytes_and_are_scaled_per_batch():
    X = np.random.default_rng(0).integers(0, 256, (5, 2, 4, 4)).astype(np.uint8)
    scaler = ImageScaler().fit(X)
    resident, streamed = DeviceDataset(X, scaler), DeviceDataset(X, scaler, max_bytes=0)
    assert resident.resident.dtype == torch.uint8
    index = torch.tensor([3, 0])
    np.testing.assert_allclose(resident[index], X[[3, 0]] / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(streamed[index], resident[index], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler((-1, 1))], ids=str)
def test_columns_are_scaled_as_the_scaler_does(scaler, dtype):
    X = np.random.default_rng(0).normal(1e3, [[1, 10, 0.1]], (50, 3)).astype(dtype)
    given = X.copy()
    scaler.fit(X)
    expected = scaler.transform(X).astype(np.float32)
    streamed = DeviceDataset(X, scaler, max_bytes=0)
    for rows in (DeviceDataset(X, scaler), streamed):
        np.testing.assert_allclose(rows[slice(None)], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(X, given)


def test_subsets_share_the_data():
    rows = DeviceDataset(np.arange(6.0)[:, None])
    part = rows.subset(torch.tensor([5, 1])).subset(torch.tensor([1]))
    assert len(part) == 1
    assert part[torch.tensor([0])].item() == 1
    assert part.resident is rows.resident


def test_rates_drop_at_the_given_points(rows):
    seen = []

    class Look(Callback):
        def on_batch_begin(self, net, **kwargs):
            seen.append(net._optimizer("first").param_groups[0]["lr"])

    schedule = StepDecay(points=(0.5, 0.75), factor=0.1)
    make().run(rows, max_epochs=2, epoch_steps=4, callbacks=[Look(), schedule])
    np.testing.assert_allclose(seen, [0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    # By default after two thirds, and five sixths.
    assert [StepDecay().share(k / 12) for k in (0, 7, 8, 9, 10, 12)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
