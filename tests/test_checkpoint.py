"""A fit that was killed goes on, and ends as one that was never killed."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EarlyStopping
from test_common import DETECTORS, every_detector, short
from torch import nn

from skanomaly import ADRA, AABiGAN, HistoryAD, JointEncoderGAN, TransferAD
from skanomaly._adra._net import CachedEmbeddings
from skanomaly.engine import AlternatingNet, DeviceDataset, _checkpoint
from skanomaly.exceptions import InvalidFileError, TrainingDivergedError

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.SaturatedWeightsWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]


class KilledError(BaseException):
    """Stands for the end of the process."""


class Steps:
    """Counts the steps of all trainings, and ends one of them before a step."""

    def __init__(self, monkeypatch):
        self.n, self.last, train = 0, None, AlternatingNet._train_on_batch

        def counted(net, batch):
            if self.n == self.last:
                raise KilledError
            self.n += 1
            train(net, batch)

        monkeypatch.setattr(AlternatingNet, "_train_on_batch", counted)

    def of(self, fit, last=None):
        """Return the number of steps, and the detector unless it was killed."""
        self.n, self.last = 0, last
        try:
            detector = fit()
        except KilledError:
            self.last = None
            return self.n, None
        self.last = None
        return self.n, detector


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.setattr(_checkpoint, "SECONDS", 0.0)
    return Steps(monkeypatch)


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)


def assert_same(detector, other):
    """Compare all weights and records of two detectors, to the bit."""
    for name, net in vars(detector).items():
        if not isinstance(net, AlternatingNet):
            continue
        twin = getattr(other, name)
        assert net.step_ == twin.step_
        rows = [[{**row, "dur": 0} for row in n.history] for n in (net, twin)]
        assert rows[0] == rows[1]
        for role in net.modules:
            one, two = (getattr(n, f"{role}_").state_dict() for n in (net, twin))
            for key in one:
                assert torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key]))
    records = [
        [{k: v for k, v in row.items() if k != "duration"} for row in each.history_]
        for each in (detector, other)
    ]
    assert records[0] == records[1]
    assert detector.offset_ == other.offset_


class Dropping(nn.Module):
    """A network of a user, with draws from torch's own generator."""

    def __init__(self, shape, latent_dim):
        super().__init__()
        layers = nn.Linear(shape[0], 16), nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.layers = nn.Sequential(*layers, nn.Linear(16, latent_dim))

    def forward(self, x):
        return self.layers(x)


class WithMemory(Callback):
    """Keeps numbers, an array, weights and a function; stops after some epochs."""

    def on_train_begin(self, net, **kwargs):
        self.means, self.total, self.log = [], np.zeros(3), print
        self.live = list(net.module_.parameters())
        self.before = [parameter.detach().clone() for parameter in self.live]

    def on_epoch_end(self, net, **kwargs):
        self.means.append(
            np.float64(np.mean([float(p.detach().mean()) for p in self.live]))
        )
        self.total += len(self.means)
        with torch.no_grad():  # the rest of the training depends on all of them
            for now, before in zip(self.live, self.before, strict=True):
                now.lerp_(before, 0.01 * self.total[1] / (1 + abs(self.means[0])))


CASES = {
    **{cls.__name__: (cls, {}, "X") for cls in DETECTORS},
    **{f"{cls.__name__}, images": (cls, {}, "images") for cls in DETECTORS},
    "known anomalies, early stopping": (
        AABiGAN,
        {"early_stopping": True, "max_epochs": 6},
        "X",
    ),
    "networks with dropout": (AABiGAN, {"architecture": {"encoder": Dropping}}, "X"),
    "callbacks": (AABiGAN, {"callbacks": [WithMemory()], "max_epochs": 6}, "X"),
    "a callback that stops": (
        TransferAD,
        {
            "callbacks": [
                EarlyStopping("reconstruction_loss", 2, threshold=0.5, sink=len)
            ],
            "max_epochs": 8,
        },
        "X",
    ),
    "wide noise": (HistoryAD, {"wide_latent": 3.0, "init": "average"}, "X"),
    "separate encoder": (JointEncoderGAN, {"encoder_training": "separate"}, "images"),
    "bfloat16": (JointEncoderGAN, {"precision": "bfloat16"}, "X"),
    "weights of the source": (
        TransferAD,
        {"weight_source": True, "normalize_weights": True, "transfer_epochs": 5},
        "X",
    ),
    "cached embeddings": (
        ADRA,
        {"augment": None, "adapt_from": "stage_2", "corpus": "images"},
        "images",
    ),
    "cached embeddings, bfloat16": (
        ADRA,
        {
            "augment": None,
            "adapt_from": "stage_2",
            "corpus": "images",
            "precision": "bfloat16",
        },
        "images",
    ),
    "two sources of a corpus": (ADRA, {"batch_size": 16}, "X"),
    "no corpus": (ADRA, {"corpus": None}, "X"),
}


def make_fit(cls, params, data, folder):
    """Return a function that fits a new detector."""
    if params.get("corpus") == "images":
        params = {**params, "corpus": np.roll(data, 3, 3)[::2]}

    def fit():
        detector = short(cls, checkpoint=folder, **params)
        if cls is TransferAD:
            return detector.fit(data, X_source=data[::2])
        takes_y = cls in (AABiGAN, ADRA) and "corpus" not in params
        y = np.where(np.arange(len(data)) < 6, -1, 1) if takes_y else None
        return detector.fit(data, y)

    return fit


@pytest.mark.parametrize("case", CASES)
def test_a_fit_goes_on_after_its_end_at_any_step(case, steps, tmp_path, request):
    cls, params, data = CASES[case]
    X = request.getfixturevalue(data)
    n_steps, expected = steps.of(make_fit(cls, params, X, None))
    again = make_fit(cls, params, X, tmp_path)
    most = max(net.epoch_steps for net in vars(expected).values() if is_net(net))
    for share in (0.3, 0.7, 0.95):
        n_before, _ = steps.of(again, int(share * n_steps))
        n_after, detector = steps.of(again)
        # One epoch is lost, and the last one of a stage that a callback has ended.
        assert n_before + n_after <= n_steps + 2 * most
        assert n_before < most or n_after < n_steps
        assert_same(detector, expected)
        np.testing.assert_array_equal(
            detector.score_samples(X), expected.score_samples(X)
        )
        assert not [*tmp_path.iterdir()]


def test_embeddings_are_computed_again_in_the_same_company():
    rows = torch.arange(10.0)[:, None]

    def embed(some):  # in the last bits, those of convolutions are like this
        return some - some.mean(0)

    whole = CachedEmbeddings(DeviceDataset(rows.numpy()), embed)
    first, then = torch.tensor([7, 2, 2, 4]), torch.tensor([2, 3, 9])
    whole[first], whole[then]
    again = CachedEmbeddings(DeviceDataset(rows.numpy()), embed)
    again[first]
    again.load_run_state(whole.run_state())
    every = torch.arange(10)
    assert torch.equal(again[every], whole[every])
    alone = CachedEmbeddings(DeviceDataset(rows.numpy()), embed)
    assert not torch.equal(alone[every], whole[every])


def is_net(value):
    return isinstance(value, AlternatingNet)


@every_detector
def test_a_fit_that_ends_again_and_again(cls, X, steps, tmp_path):
    """Each process makes one step more than the epoch that it was killed in."""
    n_steps, expected = steps.of(make_fit(cls, {"batch_size": 20}, X, None))
    again = make_fit(cls, {"batch_size": 20}, X, tmp_path)
    most = max(net.epoch_steps for net in vars(expected).values() if is_net(net))
    for _ in range(n_steps):
        _, detector = steps.of(again, most + 1)
        if detector is not None:
            break
    assert_same(detector, expected)


@every_detector
def test_stages_in_a_memory_are_left_out(cls, X, steps, tmp_path):
    if "memory" not in cls().get_params():
        pytest.skip("it has one stage")
    n_steps, expected = steps.of(make_fit(cls, {}, X, None))
    params = {"memory": str(tmp_path / "cache")}
    again = make_fit(cls, params, X, tmp_path / "checkpoints")
    for _ in range(2):
        steps.of(again, n_steps - 1)
    _, detector = steps.of(again)
    assert_same(detector, expected)


@every_detector
def test_a_warm_start_goes_on_too(cls, X, steps, tmp_path):
    params = {"warm_start": True, "calibration": None}
    first = [make_fit(cls, params, X, None)() for _ in range(2)]
    expected, detector = first
    n_steps, _ = steps.of(lambda: expected.fit(X))
    detector.set_params(checkpoint=tmp_path)
    steps.of(lambda: detector.fit(X), n_steps - 1)
    n_after, _ = steps.of(lambda: detector.fit(X))
    assert n_after < n_steps
    assert_same(detector, expected)


def test_another_fit_does_not_go_on(X, steps, tmp_path):
    fit = make_fit(AABiGAN, {}, X, tmp_path)
    n_steps, _ = steps.of(make_fit(AABiGAN, {}, X, None))
    steps.of(fit, n_steps - 1)
    others = [
        make_fit(AABiGAN, {"lr": 3e-3}, X, tmp_path),
        make_fit(AABiGAN, {"random_state": 1}, X, tmp_path),
        make_fit(AABiGAN, {"callbacks": [Callback()]}, X, tmp_path),
        make_fit(AABiGAN, {}, X + 1e-9, tmp_path),
        lambda: short(AABiGAN, checkpoint=tmp_path).fit(X),
    ]
    for other in others:
        assert steps.of(other)[0] == n_steps
    (folder,) = tmp_path.iterdir()  # that of the fit that has not ended
    assert folder.name.startswith("AABiGAN-")
    assert steps.of(make_fit(AABiGAN, {"verbose": 1}, X, tmp_path))[0] < n_steps


def killed(X, steps, tmp_path, **params):
    """Return the file of a fit that has not ended, and a function to go on."""
    fit = make_fit(AABiGAN, params, X, tmp_path)
    steps.of(fit, 2)
    (file,) = tmp_path.rglob("*.ckpt")
    return file, fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "is no checkpoint"),
        (lambda data: b"my notes\n", "is no checkpoint"),
        (lambda data: data[:-1], "is damaged"),
        (lambda data: data[:30], "is damaged"),
        (lambda data: data[:500] + b"\x00\x01" + data[502:], "is damaged"),
        (
            lambda data: data.replace(b"checkpoint 1", b"checkpoint 2"),
            "of this version",
        ),
    ],
)
def test_broken_files_are_refused_by_name(change, message, X, steps, tmp_path):
    file, fit = killed(X, steps, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(change(whole))
    with pytest.raises(InvalidFileError, match=message) as error:
        fit()
    assert str(file) in str(error.value)
    file.write_bytes(whole)
    fit()


def test_files_of_another_fit_are_refused_by_name(X, steps, tmp_path):
    file, fit = killed(X, steps, tmp_path)
    other, _ = killed(X, steps, tmp_path / "other", lr=1e-4)
    shutil.copy(other, file)
    with pytest.raises(InvalidFileError, match="of another fit") as error:
        fit()
    assert str(file) in str(error.value)


def test_files_do_not_run_code(X, steps, tmp_path):
    file, fit = killed(X, steps, tmp_path)
    key = file.read_bytes().split(b"\n")[1].decode()
    _checkpoint._write(file, key, Path(tmp_path))  # any class
    with pytest.raises(InvalidFileError) as error:
        fit()
    assert str(file) in str(error.value)


def test_a_folder_that_cannot_be_made_is_an_error(X, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        short(AABiGAN, checkpoint=tmp_path / "file").fit(X)


def test_a_full_disk_does_not_end_a_fit(X, steps, tmp_path, monkeypatch):
    def full(path, parts):
        raise OSError(28, "No space left on device")

    expected = short(AABiGAN).fit(X)
    monkeypatch.setattr(_checkpoint, "replace_file", full)
    with pytest.warns(UserWarning, match="without this checkpoint.*No space left"):
        detector = short(AABiGAN, checkpoint=tmp_path).fit(X)
    assert_same(detector, expected)


def test_a_training_that_diverged_leaves_no_files(X, steps, tmp_path):
    with pytest.raises(TrainingDivergedError):
        short(TransferAD, lr=1e30, max_epochs=9, checkpoint=tmp_path).fit(X)
    assert not [*tmp_path.iterdir()]


def test_invalid_arguments_leave_no_folder(X, steps, tmp_path):
    with pytest.raises(ValueError, match="criterion='map' is for images"):
        short(AABiGAN, criterion="map", checkpoint=tmp_path).fit(X)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match="defined at module level"):
        short(
            AABiGAN, architecture={"encoder": lambda shape, n: 0}, checkpoint=tmp_path
        ).fit(X)


def test_an_interrupted_fit_goes_on(X, steps, tmp_path):
    n_steps, expected = steps.of(make_fit(AABiGAN, {"max_epochs": 9}, X, None))

    class Interrupt(Callback):
        at = 5

        def on_epoch_begin(self, net, **kwargs):
            if net.step_ == type(self).at:
                raise KeyboardInterrupt

    params = {"max_epochs": 9, "callbacks": [Interrupt()]}
    fit = make_fit(AABiGAN, params, X, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit()
    keep = make_fit(AABiGAN, {**params, "on_interrupt": "keep"}, X, tmp_path)
    with pytest.warns(UserWarning, match="Training was interrupted"):
        keep()
    Interrupt.at = None
    n_after, detector = steps.of(fit)
    assert n_after == n_steps - 5
    assert_same(detector, expected)


def test_files_of_writes_that_were_killed_are_removed(X, steps, tmp_path):
    file, fit = killed(X, steps, tmp_path)
    (file.parent / ".skanomaly-12.tmp").touch()
    fit()
    assert not [*tmp_path.iterdir()]


def test_short_epochs_are_not_all_written(X, steps, tmp_path, monkeypatch):
    written, write = [], _checkpoint._write
    monkeypatch.setattr(
        _checkpoint, "_write", lambda *args: written.append(args) or write(*args)
    )
    short(AABiGAN, max_epochs=5, checkpoint=tmp_path).fit(X)
    assert len(written) == 5
    monkeypatch.setattr(_checkpoint, "SECONDS", 1e9)
    short(AABiGAN, max_epochs=5, checkpoint=tmp_path).fit(X)
    assert len(written) == 5 + 1  # the last epoch of the stage


def test_the_bar_begins_where_the_fit_goes_on(X, steps, tmp_path, capsys):
    fit = make_fit(AABiGAN, {"max_epochs": 8, "verbose": 1}, X, tmp_path)
    n_steps, _ = steps.of(make_fit(AABiGAN, {"max_epochs": 8}, X, None))
    steps.of(fit, n_steps // 2)
    capsys.readouterr()
    fit()
    assert "100%" in capsys.readouterr().err


def test_a_fit_leaves_no_trace_of_its_checkpoints(X, tmp_path):
    detector = short(AABiGAN, checkpoint=tmp_path).fit(X)
    assert "_checkpoint" not in vars(detector)
    assert detector.get_params()["checkpoint"] == tmp_path


# Processes that are killed ------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="it needs fork")


def killed_at_random(n_kills, seed, tmp_path):
    names = [cls.__name__ for cls in DETECTORS]
    here = Path(__file__).parent
    script = [sys.executable, str(here / "killed.py")]
    return subprocess.run(
        [*script, str(seed), str(n_kills), str(tmp_path), *names],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@needs_fork
@pytest.mark.slow
def test_five_kills(tmp_path):
    """One of each detector, at a random moment."""
    done = killed_at_random(1, 0, tmp_path)
    assert done.returncode == 0, done.stderr


@needs_fork
@pytest.mark.on_request
def test_fifty_kills(tmp_path):
    done = killed_at_random(10, 1, tmp_path)
    assert done.returncode == 0, done.stderr
    # Most kills came after a first checkpoint: 46 where this was written.
    assert sum(ast.literal_eval(done.stdout).values()) >= 25
