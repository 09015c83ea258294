"""Files hold numbers and names; what holds anything else is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn import config_context
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from skanomaly import HistoryAD, TransferAD, load, save


@pytest.fixture
def path(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 3))
    detector = HistoryAD(max_epochs=1, width=8, random_state=0).fit(X)
    save(detector, tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors"


def edit(path, change):
    """Rewrite a file after `change` of its header and tensors."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["skanomaly"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, {"skanomaly": json.dumps(header)})


def test_the_header_says_what_wrote_it(path):
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
def test_a_wrong_parameter_is_not_blamed_on_the_file(path, params, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load(path, **params)
    assert load(path, lr=0.5).lr == 0.5


def test_a_pipeline_is_told_what_to_give(path, tmp_path):
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


def test_a_class_that_could_not_be_found_again_is_refused(tmp_path):
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


def test_places_that_cannot_be_written_or_read_are_named(path, tmp_path):
    with pytest.raises(OSError, match=r"nowhere.*cannot be written"):
        save(load(path), tmp_path / "nowhere" / "detector.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("params", [{"width": 4}, {"n_copies": 3}])
def test_other_networks_than_the_parameters_are_not_saved(path, params, tmp_path):
    detector = load(path).set_params(**params)
    with pytest.raises(ValueError, match=r"changed after fit\. Fit again"):
        save(detector, tmp_path / "other.safetensors")
    save(detector.set_params(width=8, n_copies="auto"), tmp_path / "other.safetensors")
