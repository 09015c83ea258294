"""Callbacks of skorch work over all networks and stages, or are refused."""

import io
import json
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import skorch.callbacks as of_skorch
import torch
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, Freezer
from test_common import every_detector, short
from test_engine import make

import skanomaly
from skanomaly.engine import DeviceDataset

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no corpus|no domains)",
    "ignore::skanomaly.exceptions.CoverageWarning",
)
BY_NET = "{net.__class__.__name__}.pt"
ROLES = {
    "HistoryGAN": {"critic", "generator"},
    "DetectorNet": {"detector"},
}


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def rows():
    return DeviceDataset(np.full((10, 1), 2.0))


def fit(X, *callbacks, cls="HistoryAD", **params):
    detector = short(getattr(skanomaly, cls), callbacks=list(callbacks), **params)
    return detector.fit(X)


class Weights(Callback):
    """Records the weights of each net before each epoch, and after the last."""

    def __init__(self):
        self.seen = {}

    def look(self, net):
        state = {k: p.detach().clone() for k, p in net.get_all_learnable_params()}
        self.seen.setdefault(type(net).__name__, []).append(state)

    def on_epoch_begin(self, net, **kwargs):
        self.look(net)

    def on_train_end(self, net, **kwargs):
        self.look(net)


class Recorder:
    """A writer, experiment or run that accepts any call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments, **options: self.calls.append(name)


REFUSED = {
    "LRScheduler": of_skorch.LRScheduler,
    "EpochScoring": partial(of_skorch.EpochScoring, "r2"),
    "BatchScoring": partial(of_skorch.BatchScoring, "r2"),
    "PassthroughScoring": partial(of_skorch.PassthroughScoring, "train_loss"),
    "LoadInitState": partial(of_skorch.LoadInitState, Checkpoint()),
    "InputShapeSetter": of_skorch.InputShapeSetter,
    "ProgressBar": of_skorch.ProgressBar,
    "PrintLog": of_skorch.PrintLog,
    "Checkpoint": partial(Checkpoint, f_pickle="net.pkl"),
    "TrainEndCheckpoint": partial(of_skorch.TrainEndCheckpoint, f_pickle="net.pkl"),
    "SacredLogger": partial(of_skorch.SacredLogger, Recorder(), log_on_batch_end=True),
}
WORKING = {
    "Callback", "Checkpoint", "EarlyStopping", "EpochTimer", "Freezer",
    "GradientNormClipping", "Initializer", "MlflowLogger", "NeptuneLogger",
    "ParamMapper", "PrintLog", "SacredLogger", "TensorBoard", "TrainEndCheckpoint",
    "Unfreezer", "WandbLogger",
}  # fmt: skip


def test_no_callback_of_skorch_is_left_out():
    known = {n for n in of_skorch.__all__ if n != "WarmRestartLR"}  # is no callback
    assert known == WORKING | REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_callbacks_without_effect_are_refused(name, X):
    with pytest.raises(ValueError, match=f"callbacks has {name} of skorch, which "):
        fit(X, REFUSED[name]())


def test_train_end_checkpoints_have_the_weights_of_each_net(X, tmp_path):
    # Nothing was written, without a warning.
    weights = Weights()
    end = of_skorch.TrainEndCheckpoint(
        dirname=str(tmp_path), f_params=BY_NET, f_optimizer="optimizer_" + BY_NET
    )
    fit(X, weights, end)
    for name, roles in ROLES.items():
        state = torch.load(tmp_path / f"train_end_{name}.pt", weights_only=True)
        assert {key.partition(".")[0] for key in state} == roles
        assert all(
            torch.equal(state[key], p) for key, p in weights.seen[name][-1].items()
        )
        momenta = torch.load(
            tmp_path / f"train_end_optimizer_{name}.pt", weights_only=True
        )
        assert momenta.keys() == roles
    history = json.loads((tmp_path / "train_end_history.json").read_text())
    assert len(history) == 2
    assert history[0]["detector_loss"] > 0


@pytest.mark.parametrize("safe", [False, True])
def test_a_checkpoint_of_the_best_epoch_is_read_back(safe, X, tmp_path):
    weights, loads = Weights(), []

    class Reads(Callback):
        def on_train_end(self, net, **kwargs):
            now = {k: p.detach().clone() for k, p in net.get_all_learnable_params()}
            loads.append((type(net).__name__, now))

    checkpoint = Checkpoint(
        monitor=lambda net: net.history[-1, "epoch"] == 1,
        dirname=str(tmp_path),
        f_params=BY_NET,
        f_optimizer=None,
        f_history=None,
        load_best=True,
        use_safetensors=safe,
    )
    fit(X, weights, checkpoint, Reads(), max_epochs=3, detector_epochs=3)
    assert [name for name, _ in loads] == list(ROLES)
    for name, state in loads:
        _, first, *_, last = weights.seen[name]  # after the first epoch, and the last
        for key, value in state.items():
            assert torch.equal(value, first[key])
        assert any(not torch.equal(value, last[key]) for key, value in state.items())


def test_a_checkpoint_can_monitor_the_lowest_loss(rows, tmp_path):
    checkpoint = Checkpoint(monitor="first_loss_best", dirname=str(tmp_path))
    net = make().run(rows, max_epochs=4, epoch_steps=1, callbacks=[checkpoint])
    losses = np.array(net.history[:, "first_loss"])
    least = losses == np.minimum.accumulate(losses)
    assert net.history[:, "event_cp"] == least.tolist()
    assert torch.load(tmp_path / "params.pt", weights_only=True).keys() == {
        "first.weight",
        "second.weight",
    }


def test_a_checkpoint_that_cannot_be_written_warns(rows, tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError("no space left")

    nothing = dict.fromkeys(("f_optimizer", "f_criterion", "f_history"))
    checkpoint = Checkpoint(monitor=None, f_params=Full(), **nothing)
    with pytest.warns(UserWarning, match="could not save a net"):
        make().run(rows, max_epochs=1, epoch_steps=1, callbacks=[checkpoint])


@pytest.mark.parametrize(
    ("cls", "monitor"), [(EarlyStopping, "valid_loss"), (Checkpoint, "valid_loss_best")]
)
def test_a_monitor_that_a_stage_does_not_record_is_refused(cls, monitor, X):
    with pytest.raises(ValueError, match=rf"{monitor}.*record.*'critic_loss"):
        fit(X, cls(monitor))


def test_early_stopping_restores_the_best_weights(rows):
    class Rises(Callback):
        """Records a metric that is best after the second epoch."""

        def on_epoch_end(self, net, **kwargs):
            net.history.record("metric", [3, 1, 2, 2, 2][len(net.history) - 1])
            seen.append(net.first_.weight.item())

    seen = []
    stop = EarlyStopping("metric", patience=2, load_best=True, sink=str)
    net = make().run(rows, max_epochs=5, epoch_steps=1, callbacks=[Rises(), stop])
    assert len(seen) == 4
    assert net.first_.weight.item() == seen[1] != seen[3]


@every_detector
@pytest.mark.parametrize("pattern", ["*", "all but one"])
def test_frozen_parameters_stay_as_they_are(cls, pattern, X):
    # No name matched, and all parameters were trained.
    weights = Weights()
    kept = []

    def matches(name):
        if pattern == "*" or not kept:
            kept.append(name)
        return pattern == "*" or name != kept[0]

    fit(X, weights, Freezer([matches]), cls=cls.__name__)
    for states in weights.seen.values():
        first, last = states[0], states[-1]
        assert all("." in name for name in first)
        moved = {k for k, v in first.items() if not torch.equal(v, last[k])}
        assert moved <= (set() if pattern == "*" else {kept[0]})


def test_frozen_parameters_may_be_unfrozen(X):
    weights = Weights()
    thaw = of_skorch.Unfreezer("*.weight_0", at=2)
    fit(X, weights, Freezer("*"), thaw, max_epochs=3, detector_epochs=3)
    for name, roles in ROLES.items():
        start, still, *_, last = weights.seen[name]
        assert all(torch.equal(v, still[k]) for k, v in start.items())
        moved = {k for k, v in start.items() if not torch.equal(v, last[k])}
        assert moved == {k for k in start if k.endswith(".weight_0")}
        assert {k.partition(".")[0] for k in moved} == roles


def test_a_warm_start_keeps_parameters_frozen(X):
    weights = Weights()
    detector = fit(X, weights, Freezer("*"), cls="AABiGAN", warm_start=True)
    n_epochs = len(weights.seen["AnomalyAwareBiGAN"])
    detector.fit(X)
    states = weights.seen["AnomalyAwareBiGAN"]
    assert len(states) == 2 * n_epochs
    assert all(torch.equal(v, states[-1][k]) for k, v in states[0].items())


def test_an_initializer_sets_the_first_weights(X):
    class Look(Callback):
        def on_batch_begin(self, net, batch=None, training=False, **kwargs):
            if net.step_ == 0:
                seen.extend(
                    (name, p.detach().clone())
                    for name, p in net.get_all_learnable_params()
                )

    seen = []
    start = of_skorch.Initializer(
        "*.bias_*", fn=partial(torch.nn.init.constant_, val=3)
    )
    fit(X, start, Look())
    found = {name.partition(".")[0] for name, p in seen if (p == 3).all()}
    assert found == {"critic", "generator", "detector"}


def test_gradients_have_the_names_of_parameters(X):
    class Names(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            seen.update(name for name, _ in named_parameters)

    seen = set()
    fit(X, Names(), cls="AABiGAN")
    assert {name.partition(".")[0] for name in seen} == {
        "encoder",
        "generator",
        "discriminator_xz",
        "discriminator_xx",
    }


def test_loggers_get_every_epoch(X):
    lines, writer, sacred = [], Recorder(), Recorder()
    fit(
        X,
        of_skorch.PrintLog(sink=lines.append),
        of_skorch.TensorBoard(writer),
        of_skorch.SacredLogger(sacred),
        of_skorch.EpochTimer(),
        of_skorch.GradientNormClipping(1.0),
    )
    assert "critic_loss" in lines[0]
    assert any("detector_loss" in line for line in lines)
    assert writer.calls.count("add_scalar") > 5
    assert sacred.calls.count("log_scalar") > 5


class Numbers(Recorder):
    """A client of MLflow, or a run of Neptune, for numbers alone."""

    def log_metric(self, run_id, key, value, step):
        self.calls.append((key, float(value)))

    def log_artifact(self, run_id, path):
        self.calls.append(path.name)

    def __getitem__(self, name):
        return self

    def __setitem__(self, name, value):
        self.calls.append(name)


@pytest.mark.parametrize("cls", ["HistoryAD", "JointEncoderGAN"])
def test_mlflow_gets_numbers_and_the_weights_of_each_net(cls, X):
    class Run:
        class info:  # noqa: N801
            run_id = 0

    client = Numbers()
    detector = fit(X, of_skorch.MlflowLogger(Run(), client), cls=cls)
    names = {call[0] for call in client.calls if isinstance(call, tuple)}
    assert {k for row in detector.history_ for k in row if "loss" in k} <= names
    assert "params.pth" in client.calls


def test_loggers_find_the_networks(X, monkeypatch):
    class Run(Recorder):
        def watch(self, module):
            watched.append({name for name, _ in module.named_children()})

    watched = []
    wandb = of_skorch.WandbLogger(Run(), save_model=False)
    fit(X, wandb)
    assert watched == list(ROLES.values())
    # Names from its own package, which is not installed.
    package = SimpleNamespace(File=Recorder(), Handler=int)
    for name in ("neptune", "neptune.handler", "neptune.types"):
        monkeypatch.setitem(sys.modules, name, package)
    neptune = Numbers()
    fit(X, of_skorch.NeptuneLogger(neptune))
    assert "model/model_type" in neptune.calls


@pytest.mark.parametrize(
    "make_callback",
    [
        lambda path: of_skorch.TrainEndCheckpoint(dirname=path),
        lambda path: EarlyStopping("generator_loss", load_best=True),
    ],
    ids=["TrainEndCheckpoint", "EarlyStopping"],
)
def test_a_stage_without_epochs_calls_no_callbacks(X, make_callback, tmp_path):
    """The detector of HistoryAD has none by default, and its history is empty."""
    detector = fit(X, make_callback(tmp_path), detector_epochs=0)
    assert detector.net_.step_ == 0


def test_a_monitor_that_one_stage_lacks_is_not_replaced_by_another(X):
    with pytest.raises(
        ValueError,
        match=r"each of them has to record the monitor\. To.*ignores the others",
    ):
        fit(X, EarlyStopping("generator_loss"))
