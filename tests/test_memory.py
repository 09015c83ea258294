"""A cache that is broken, full or read-only fails no fit, and changes no result."""

import errno
import warnings
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import joblib
import numpy as np
import pytest
from test_common import every_staged_detector, short

from skanomaly import TransferAD
from skanomaly.engine import AlternatingNet
from skanomaly.exceptions import FitInterruptedWarning, TrainingDivergedError

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
]


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def runs(monkeypatch):
    """Return a list that gets the class of each trained net."""
    trained, run = [], AlternatingNet.run

    def counted(net, *args, **kwargs):
        trained.append(type(net).__name__)
        return run(net, *args, **kwargs)

    monkeypatch.setattr(AlternatingNet, "run", counted)
    return trained


def scores_with(cls, memory, X, **params):
    detector = short(cls, memory=memory, **params)
    return detector.fit(X).score_samples(X)


def only(folder, name):
    (path,) = folder.rglob(name)
    return path


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@every_staged_detector
@pytest.mark.parametrize("size", [0, 10, 1000])
def test_an_entry_that_was_cut_short_is_trained_again(cls, size, X, tmp_path, runs):
    # It was an EOFError or the like in every later fit.
    expected = scores_with(cls, str(tmp_path), X)
    whole = len(runs)
    scores_with(cls, str(tmp_path), X)
    shared = len(runs) - whole
    assert shared < whole
    cut(only(tmp_path, "output.pkl"), size)
    with pytest.warns(UserWarning, match="entry of `memory` cannot be read"):
        again = scores_with(cls, str(tmp_path), X)
    np.testing.assert_array_equal(again, expected)
    assert len(runs) == 2 * whole + shared
    np.testing.assert_array_equal(scores_with(cls, str(tmp_path), X), expected)
    assert len(runs) == 2 * whole + 2 * shared  # it is there again


@pytest.mark.parametrize("content", [b"", b'{"durat', b"\xff"])
def test_other_files_of_an_entry_may_be_broken(X, tmp_path, runs, content):
    expected = scores_with(TransferAD, str(tmp_path), X)
    only(tmp_path, "metadata.json").write_bytes(content)
    np.testing.assert_array_equal(scores_with(TransferAD, str(tmp_path), X), expected)
    assert len(runs) == 1


def forget(monkeypatch):
    """Make joblib forget its functions, as in a new process."""
    monkeypatch.setattr("joblib.memory._FUNCTION_HASHES", WeakKeyDictionary())


@pytest.mark.filterwarnings("ignore::joblib.memory.JobLibCollisionWarning")
@pytest.mark.parametrize("size", [0, 10, 13, 14, 15, 40, "bytes"])
def test_a_broken_file_of_the_code_is_written_again(
    size,
    X,
    tmp_path,
    runs,
    monkeypatch,
):
    # Cut behind "# first line:" it was an "invalid literal for int()".
    forget(monkeypatch)
    expected = scores_with(TransferAD, str(tmp_path), X)
    note = only(tmp_path, "func_code.py")
    if size == "bytes":
        note.write_bytes(b"\xff" + note.read_bytes())
    else:
        cut(note, size)
    for n in (2, 2):  # the second finds what the first has written
        forget(monkeypatch)
        again = scores_with(TransferAD, str(tmp_path), X)
        np.testing.assert_array_equal(again, expected)
        assert len(runs) == n


class Full:
    """joblib's dump on a disk that is full after a few bytes."""

    def __init__(self, monkeypatch):
        self.full, self.dump = True, joblib.numpy_pickle.dump
        monkeypatch.setattr("joblib._store_backends.numpy_pickle.dump", self)

    def __call__(self, value, file, **kwargs):
        if not self.full:
            return self.dump(value, file, **kwargs)
        file.write(b"\x80\x04")
        raise OSError(errno.ENOSPC, "No space left on device")


@every_staged_detector
@pytest.mark.parametrize("joblib_warns", ["ignore", "error"])
def test_a_full_disk_fails_no_fit(cls, joblib_warns, X, tmp_path, monkeypatch):
    # It was a KeyError at the end of the training.
    expected = scores_with(cls, None, X)
    disk = Full(monkeypatch)

    def fitted():
        with warnings.catch_warnings():
            warnings.filterwarnings(joblib_warns, "Unable to cache")  # joblib's own
            return scores_with(cls, str(tmp_path), X)

    with pytest.warns(UserWarning, match="could not be written to `memory`") as seen:
        scores = fitted()
    assert any(warning.filename == __file__ for warning in seen)
    np.testing.assert_array_equal(scores, expected)
    disk.full = False
    for _ in range(2):
        np.testing.assert_array_equal(scores_with(cls, str(tmp_path), X), expected)
    if joblib_warns == "ignore":  # else joblib ends too soon to say where it wrote
        assert len([*tmp_path.rglob("output.pkl*")]) == 1


def refused(*args, **kwargs):
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("kind", ["name", "object"])
def test_a_folder_without_permission_is_not_used(kind, X, tmp_path, monkeypatch):
    expected = scores_with(TransferAD, None, X)
    memory = tmp_path / "cache"
    memory = str(memory) if kind == "name" else joblib.Memory(memory, verbose=0)
    monkeypatch.setattr("joblib._store_backends.mkdirp", refused)
    with pytest.warns(UserWarning, match="`memory` cannot be used.*Permission denied"):
        scores = scores_with(TransferAD, memory, X)
    np.testing.assert_array_equal(scores, expected)


@every_staged_detector
def test_an_interrupted_stage_is_never_written(cls, X, tmp_path, monkeypatch):
    # It was written and then taken away: another fit could find it between the two.
    def interrupted(net, batch):
        raise KeyboardInterrupt

    written = []
    monkeypatch.setattr(AlternatingNet, "_train_on_batch", interrupted)
    monkeypatch.setattr(
        "joblib._store_backends.FileSystemStoreBackend.dump_item",
        lambda *args, **kwargs: written.append(args),
    )
    with pytest.warns(FitInterruptedWarning):
        scores_with(cls, str(tmp_path), X, on_interrupt="keep")
    with pytest.raises(KeyboardInterrupt):
        scores_with(cls, str(tmp_path), X)
    assert not written


def test_errors_of_the_training_come_out_unchanged(X, tmp_path, runs):
    detector = short(TransferAD, memory=str(tmp_path), lr=1e30)
    with pytest.raises(TrainingDivergedError):
        detector.fit(X)
    assert len(runs) == 1
    assert not [*tmp_path.rglob("output.pkl")]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError])
def test_a_stage_that_fails_is_not_run_again(error, X, tmp_path, runs, monkeypatch):
    def failing(net, batch):
        raise error("of the training")

    monkeypatch.setattr(AlternatingNet, "_train_on_batch", failing)
    with pytest.raises(error, match="of the training"):
        scores_with(TransferAD, str(tmp_path), X)
    assert len(runs) == 1


@every_staged_detector
def test_names_and_objects_are_the_same_memory(cls, X, tmp_path, runs):
    expected = scores_with(cls, None, X)
    whole = len(runs)
    for memory in (str(tmp_path), joblib.Memory(str(tmp_path), verbose=0)):
        np.testing.assert_array_equal(scores_with(cls, memory, X), expected)
    assert whole < len(runs) - whole < 2 * whole or whole == 1
    nothing = joblib.Memory(None, verbose=0)
    np.testing.assert_array_equal(scores_with(cls, nothing, X), expected)


def test_several_may_write_one_entry(X, tmp_path):
    expected = scores_with(TransferAD, None, X)

    def fitted(_):
        return scores_with(TransferAD, str(tmp_path), X)

    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(fitted, range(8)):
            np.testing.assert_array_equal(scores, expected)
    assert only(tmp_path, "output.pkl")
