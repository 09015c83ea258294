"""Files of detectors hold numbers and names; other files are refused."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn import config_context
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_common import every_detector, short

from skanomaly import ADRA, HistoryAD, TransferAD, load, save
from skanomaly.exceptions import InvalidFileError
from skanomaly.utils._files import pack, read_packed

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
]


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def path(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    detector = HistoryAD(max_epochs=1, width=8, random_state=0).fit(X)
    save(detector, tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors"


def edit(path, change):
    """Rewrite a file after `change` of its header and tensors, with a digest of these.

    Only the digest shows that a file was edited; with a correct one, tests reach the
    other checks of `load`.
    """
    header, tensors = read_packed(path)
    del header["sha256"]
    change(header, tensors)
    path.write_bytes(b"".join(pack(header, tensors)))


def as_format_1(path):
    """Rewrite a file as the first format had it."""
    header, tensors = read_packed(path)
    gone = {"sha256", "scikit-learn", "numpy"}
    header = {k: v for k, v in header.items() if k not in gone} | {"format": 1}
    save_file(tensors, path, {"skanomaly": json.dumps(header)})


def test_the_header_has_class_and_versions(path):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["skanomaly"])
    assert header["class"] == "HistoryAD"
    assert {"skanomaly", "torch", "format", "params", "fitted"} <= header.keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: header.update({"class": "os.system"}),
        lambda header, tensors: header.update({"class": "save"}),
        lambda header, tensors: header.update(format=99),
        lambda header, tensors: header["fitted"]["dict"].update(x={"eval": "1"}),
        lambda header, tensors: header["params"]["dict"].update(unknown=1),
        lambda header, tensors: tensors.pop(sorted(tensors)[0]),
        lambda header, tensors: tensors.update(extra=torch.zeros(1)),
        lambda header, tensors: header.pop("fitted"),
    ],
    ids=["class", "function", "format", "kind", "param", "missing", "extra", "half"],
)
def test_a_changed_file_is_refused(path, change):
    load(path)
    edit(path, change)
    with pytest.raises(ValueError, match=r"skanomaly|format|detector"):
        load(path)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"nonsense": 1}, "Invalid parameter 'nonsense'"),
        ({"lr": "fast"}, "The 'lr' parameter of HistoryAD must be"),
        ({"device": "tpu"}, "device='tpu'"),
    ],
)
def test_the_error_of_a_wrong_parameter_does_not_blame_the_file(path, params, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load(path, **params)
    assert load(path, lr=0.5).lr == 0.5


def test_a_pipeline_is_refused_with_advice(path, tmp_path):
    with pytest.raises(TypeError, match=r"Pipeline is no detector.*pipeline\[-1\]"):
        save(make_pipeline(load(path)), tmp_path / "other")


def test_other_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("not a detector")
    torch.save({"a": 1}, tmp_path / "pickle")
    for name in ("other.safetensors", "text", "pickle"):
        with pytest.raises(ValueError, match=r"skanomaly\.save"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def test_an_unfitted_detector_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        save(HistoryAD(), tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def test_a_detector_with_a_metadata_request_is_saved(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    domain, path = np.repeat([1, -1], 30), tmp_path / "detector.safetensors"
    with config_context(enable_metadata_routing=True):
        detector = TransferAD(max_epochs=1, transfer_epochs=1, width=8, random_state=0)
        detector.set_fit_request(sample_domain=True).fit(X, sample_domain=domain)
        save(detector, path)
        scores = load(path).score_samples(X)
    np.testing.assert_array_equal(scores, detector.score_samples(X))


def test_a_subclass_is_refused(tmp_path):
    class Mine(HistoryAD):
        pass

    X = np.random.default_rng(0).normal(size=(60, 3))
    detector = Mine(max_epochs=1, width=8, random_state=0).fit(X)
    with pytest.raises(TypeError, match="Mine is a class of your own"):
        save(detector, tmp_path / "detector.safetensors")


def test_a_loaded_detector_does_not_change_with_its_file(path):
    X = np.random.default_rng(0).normal(size=(9, 3))
    detector = load(path)
    expected = detector.score_samples(X)
    size = path.stat().st_size
    with path.open("r+b") as file:  # in place, as tools that copy files do it
        file.write(bytes(size))
    np.testing.assert_array_equal(detector.score_samples(X), expected)


def test_paths_that_cannot_be_written_or_read_raise_an_error(path, tmp_path):
    with pytest.raises(OSError, match=r"nowhere.*cannot be written"):
        save(load(path), tmp_path / "nowhere" / "detector.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("params", [{"width": 4}, {"n_estimators": 3}])
def test_other_networks_than_the_parameters_are_not_saved(path, params, tmp_path):
    detector = load(path).set_params(**params)
    with pytest.raises(ValueError, match=r"changed after fit.*Fit again"):
        save(detector, tmp_path / "other.safetensors")
    save(
        detector.set_params(width=8, n_estimators="auto"),
        tmp_path / "other.safetensors",
    )


# Changes ------------------------------------------------------------------------------


def kinds(cls):
    """Yield (how a file was changed, its bytes), from a seed."""
    rng = np.random.default_rng(len(cls.__name__))

    def changed(data):
        n = len(data)
        head = 8 + int.from_bytes(data[:8], "little")
        # Half of them in the header, which is the smaller part.
        for k, place in enumerate(
            [*rng.integers(head, size=150), *rng.integers(n, size=150)]
        ):
            one = bytearray(data)
            bits = int(rng.integers(1, 256)) if k % 2 else 1 << int(rng.integers(8))
            one[place] ^= bits
            yield f"byte {place} ^ {bits}", bytes(one)
        for size in [*range(20), *rng.integers(n, size=20), n - 1]:
            yield f"{size} of {n} bytes", data[:size]
        for place in rng.integers(n, size=10):
            yield f"a byte more at {place}", data[:place] + b" " + data[place:]
            yield f"a byte less at {place}", data[:place] + data[place + 1 :]
            yield f"zeros at {place}", data[:place] + bytes(8) + data[place + 8 :]
        yield "a byte more", data + b"\0"
        yield "header and numbers apart", data[:head] + b" " * 8 + data[head:]

    return changed


@every_detector
def test_every_change_of_a_file_is_detected(cls, X, tmp_path):
    # Of 1410 changes 211 gave other scores in silence, 18 failed in score_samples.
    path = tmp_path / "detector"
    save(short(cls).fit(X), path)
    load(path)
    whole, n = path.read_bytes(), 0
    for how, data in kinds(cls)(whole):
        if data == whole:
            continue
        path.write_bytes(data)
        with pytest.raises(InvalidFileError):
            pytest.fail(f"{how}: {load(path)}")
        n += 1
    assert n > 350
    path.write_bytes(whole)
    load(path)


def test_the_spaces_behind_the_header_count_too(path):
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    assert data[end - 1 : end] in (b" ", b"}")
    for space in (b"\n", b"\t"):
        path.write_bytes(data[: end - 1] + space + data[end:])
        with pytest.raises(InvalidFileError):
            load(path)


def nested(key):
    deep = 10**5
    text = "[" * deep + "]" * deep
    if key == "outer":
        return '{"__metadata__": ' + text + "}"
    return json.dumps(
        {"__metadata__": {"skanomaly": '{"format": 1, "a": ' + text + "}"}}
    )


@pytest.mark.parametrize("key", ["outer", "inner"])
def test_a_deeply_nested_header_is_refused(key, tmp_path):
    # It was a RecursionError.
    text = nested(key).encode()
    path = tmp_path / "detector"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InvalidFileError, match="nested too deeply"):
        load(path)


def some_weight(tensors):
    return next(name for name in sorted(tensors) if "net_.modules" in name)


def with_fitted(name, value):
    return lambda header, tensors: header["fitted"]["dict"].update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda header, tensors: tensors.update(
            {some_weight(tensors): tensors[some_weight(tensors)].double()}
        ),
        lambda header, tensors: tensors.update(
            {some_weight(tensors): tensors[some_weight(tensors)][..., :-1].clone()}
        ),
        lambda header, tensors: tensors.update(
            {"fitted.scaler_.StandardScaler.mean_": torch.zeros(7)}
        ),
        with_fitted("scaler_", 5),
        with_fitted("net_", {"net": [0, {"dict": {}}]}),
        lambda header, tensors: header["params"]["dict"].update(width=-1),
        lambda header, tensors: header["params"]["dict"].update(width=3),
        lambda header, tensors: header.update(format="2"),
        lambda header, tensors: header.update(params=[[[]]]),
        lambda header, tensors: header.update(left_out=5),
    ],
    ids=[
        *("dtype", "shape", "scaling", "scaler", "net", "value", "width"),
        *("number", "params", "left_out"),
    ],
)
def test_a_file_that_describes_no_detector_is_refused(path, change):
    edit(path, change)
    with pytest.raises(InvalidFileError):
        load(path)


# Versions -----------------------------------------------------------------------------


def test_a_file_of_the_first_format_is_read():
    X = np.random.default_rng(0).normal(size=(60, 3))
    with pytest.warns(UserWarning, match="older version, without a digest"):
        detector = load(Path(__file__).parent / "data" / "format_1.safetensors")
    assert detector.criterion_ == "reconstruction"
    np.testing.assert_allclose(
        detector.decision_function(X[:4]),
        [5.50094044, 5.41932988, 2.09774828, 4.75964892],
        rtol=1e-4,
    )


@every_detector
def test_detectors_of_the_first_format_are_read(cls, X, tmp_path):
    detector, path = short(cls).fit(X), tmp_path / "detector"
    save(detector, path)
    as_format_1(path)
    with pytest.warns(UserWarning, match="without a digest"):
        other = load(path)
    np.testing.assert_array_equal(other.score_samples(X), detector.score_samples(X))


def test_a_digest_cannot_be_left_out(path):
    header, tensors = read_packed(path)
    del header["sha256"]
    save_file(tensors, path, {"skanomaly": json.dumps(header)})
    with pytest.raises(InvalidFileError):
        load(path)


def test_the_header_has_the_versions_of_the_writer(path):
    header, _ = read_packed(path)
    assert header["format"] == 2
    assert header["scikit-learn"] == sklearn.__version__
    assert header["numpy"] == np.__version__
    assert header["torch"] == torch.__version__


@pytest.mark.parametrize("version", ["0.1.1", "0.2", "1.0.0.dev0", "0.1.0.1"])
def test_a_newer_version_warns(path, version):
    edit(path, lambda header, tensors: header.update(skanomaly=version))
    with pytest.warns(UserWarning, match=f"skanomaly {version}, which is newer"):
        load(path)


@pytest.mark.parametrize("version", ["0.0.9", "0.1.0", "0.1", "0.1.0.dev0"])
def test_other_versions_do_not_warn(path, version):
    edit(path, lambda header, tensors: header.update(skanomaly=version))
    load(path)


def test_a_newer_format_asks_for_an_update(path):
    edit(path, lambda header, tensors: header.update(format=3, skanomaly="7.0"))
    with pytest.raises(ValueError, match=r"format 3 by skanomaly 7\.0.*update"):
        load(path)


@pytest.mark.filterwarnings("ignore:.*is newer than this:UserWarning")
def test_errors_of_files_of_newer_versions_name_both_versions(path):
    def change(header, tensors):
        header["params"]["dict"]["unknown"] = 1
        header["skanomaly"] = "0.2.0"

    edit(path, change)
    with pytest.raises(InvalidFileError, match=r"unknown.*skanomaly 0\.2\.0.*0\.1\.0"):
        load(path)


def test_a_scaler_of_another_scikit_learn_that_fails_is_an_error(path, monkeypatch):
    edit(path, lambda header, tensors: header.update({"scikit-learn": "0.19.2"}))
    load(path)  # it does not, and nothing is said

    def transform(self, X):
        return X * self.new_attribute_

    monkeypatch.setattr(StandardScaler, "transform", transform)
    with pytest.raises(
        InvalidFileError, match=r"new_attribute_.*scikit-learn 0\.19\.2"
    ):
        load(path)


# Parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contamination", 0.2),
        ("width", 3),
        ("n_estimators", 3),
        ("latent_dim", 5),
        ("scaling", "minmax"),
        ("scaling", None),
        ("image_shape", (1, 2, 2)),
        ("architecture", "mlp"),
        ("spread", None),
    ],
)
def test_load_refuses_parameters_that_contradict_the_fit(path, name, value):
    # Such parameters had no effect, or the file was blamed.
    held = load(path).get_params()[name]
    wanted = re.escape(f"{name}={value!r} was given to load") + ".*"
    with pytest.raises(
        ValueError, match=wanted + re.escape(f"{name}={held!r}")
    ) as info:
        load(path, **{name: value})
    assert not isinstance(info.value, InvalidFileError)
    assert "fit again" in str(info.value)
    assert ("offset_" in str(info.value)) == (name == "contamination")
    assert load(path, **{name: held}).get_params()[name] == held


OTHERS = {
    "ADRA": {"n_experts": 3, "adapt_from": 1, "input_size": 9, "normalization": None},
    "AABiGAN": {"criterion": "latent_norm"},
    "HistoryAD": {"spread": 2.0},
    "JointEncoderGAN": {"preset": "paper", "max_width": 3},
    "TransferAD": {"scaling": None},
}


@every_detector
def test_every_detector_lists_its_fixed_parameters(cls, X, tmp_path):
    path = tmp_path / "detector"
    save(short(cls).fit(X), path)
    assert set(cls._fixed_by_fit) - {"latent_dim"} < set(cls().get_params())
    for name, value in {
        "contamination": 0.2,
        "width": 3,
        **OTHERS[cls.__name__],
    }.items():
        with pytest.raises(ValueError, match=f"{name}=.* was given to load"):
            load(path, **{name: value})


LATER = {
    "ADRA": {"pretrain": None, "weight_decay": 0.5, "augment": None},
    "AABiGAN": {"a": 2.0, "averaging": 0.5, "early_stopping": True},
    "HistoryAD": {"lam": 3.0, "detector_lr": 0.1, "n_critic": 2},
    "JointEncoderGAN": {"lam": 0.7, "distance": "origin", "standardize": False},
    "TransferAD": {"criterion": "combined", "lam": 3.0, "eta": -2.0},
}


@every_detector
def test_load_takes_parameters_with_a_later_effect(cls, X, tmp_path):
    path, detector = tmp_path / "detector", short(cls).fit(X)
    save(detector, path)
    later = {"lr": 0.5, "max_epochs": 9, "device": "cpu", "verbose": 1, "callbacks": []}
    later |= {"random_state": 3, "batch_size": 16, "warm_start": True}
    later |= LATER.get(cls.__name__, {})
    other = load(path, **later)
    assert {name: other.get_params()[name] for name in later} == later
    scored = {"JointEncoderGAN", "TransferAD"}  # by other figures of the same networks
    same = np.array_equal(other.score_samples(X), detector.score_samples(X))
    assert same == (cls.__name__ not in scored)


def test_equal_values_of_other_types_are_no_contradiction(tmp_path):
    images = np.random.default_rng(0).normal(size=(30, 1, 8, 8))
    settings = {"max_epochs": 1, "transfer_epochs": 1, "width": 4}
    detector = TransferAD(**settings, image_shape=[1, 8, 8], contamination=0.1)
    with pytest.warns(UserWarning, match="given no domains"):
        detector.fit(images.reshape(30, -1))
    save(detector, tmp_path / "detector")
    given = {"image_shape": (1, 8, 8), "contamination": np.float32(0.1).item()}
    given |= {"width": np.int64(4), "contamination": 0.1}
    load(tmp_path / "detector", **given)


def test_the_error_of_another_network_size_does_not_blame_the_file(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))

    def critic(width):
        return lambda shape: torch.nn.Sequential(
            torch.nn.Linear(*shape, width), torch.nn.Linear(width, 1)
        )

    own = {"max_epochs": 1, "n_estimators": 1, "random_state": 0}
    detector = HistoryAD(**own, architecture={"critic": critic(8)}).fit(X)
    save(detector, tmp_path / "detector")
    load(tmp_path / "detector", architecture={"critic": critic(8)})
    with pytest.raises(ValueError, match="architecture, given to load") as info:
        load(tmp_path / "detector", architecture={"critic": critic(9)})
    assert not isinstance(info.value, InvalidFileError)


# Writing ------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_the_umask(path, tmp_path, mask):
    # It was 0600, whatever the umask.
    before = os.umask(mask)
    try:
        save(load(path), tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_keeps_its_mode(path, mode):
    detector = load(path)
    path.chmod(mode)
    save(detector, path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
def test_the_target_of_a_link_is_replaced(path, tmp_path):
    detector, link = load(path), tmp_path / "link"
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to(target)
    save(detector, link)
    assert link.is_symlink()
    assert load(target).get_params() == detector.get_params()
    assert [*target.parent.iterdir()] == [target]
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "folder" / "new")
    save(detector, dangling)
    assert dangling.is_symlink()
    load(tmp_path / "folder" / "new")


@posix
def test_a_pipe_is_written_to(path, tmp_path):
    detector, pipe = load(path), tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        save(detector, pipe)
        path.write_bytes(read.result())
    load(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "Full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_nothing_is_left_of_a_file_that_could_not_be_written(
    path, error, step, monkeypatch
):
    def failing(*args):
        raise error

    detector, whole = load(path), path.read_bytes()
    path.chmod(0o640)
    monkeypatch.setattr(f"skanomaly.utils._files.os.{step}", failing)
    expected = OSError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(
        expected, match="cannot be written: Full" if expected is OSError else None
    ) as info:
        save(detector, path)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert [*path.parent.iterdir()] == [path]
    if expected is OSError:
        assert info.value.errno == errno.ENOSPC


def test_a_folder_is_not_replaced(path, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="cannot be written"):
        save(load(path), tmp_path / "folder")
    assert not [*(tmp_path / "folder").iterdir()]


@posix
def test_a_file_without_permission_raises_an_error(path, monkeypatch):
    # It was a FileNotFoundError.
    detector = load(path)
    if os.geteuid() == 0:  # may read everything

        def refused(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", refused)
        monkeypatch.setattr("os.access", lambda *args: False)
    path.chmod(0)
    with pytest.raises(PermissionError, match="Permission denied"):
        load(path)
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="cannot be written: Permission denied"):
        save(detector, path)


@posix
def test_a_network_without_permission_raises_an_error(tmp_path, monkeypatch):
    path = tmp_path / "network.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    path.chmod(0)
    if os.geteuid() == 0:

        def refused(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError, match="Permission denied"):
        ADRA(backbone=path, corpus=None).fit(np.zeros((9, 1, 8, 8), dtype=np.uint8))


KILLED = """
import os, signal, sys, time
from skanomaly import load, save

path, detectors = sys.argv[1], [load(sys.argv[1]) for _ in range(2)]
folder = os.path.dirname(path)
for k, detector in enumerate(detectors):
    detector.set_params(random_state=k)
for n in range(12):
    left, size, end = len(os.listdir(folder)), os.path.getsize(path), time.time() + 5
    child = os.fork()
    if child == 0:
        while True:
            for detector in detectors:
                save(detector, path)
    # While something is being written: there is another file, or this one is short.
    while time.time() < end and len(os.listdir(folder)) == left:
        if os.path.getsize(path) != size:
            break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert load(path).random_state in (0, 1)
"""


@posix
def test_a_process_that_is_killed_loses_no_file(path):
    # With safetensors 0.4.3 most of such processes lost the old file.
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, path], check=True)
    assert load(path).random_state in (0, 1)
