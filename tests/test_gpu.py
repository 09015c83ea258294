"""On a GPU: the same contract, and models that travel to machines without one."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from skanomaly import (
    ADRA,
    AABiGAN,
    HistoryAD,
    JointEncoderGAN,
    TransferAD,
    load,
    save,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
]
SHORT = {
    HistoryAD: {"max_epochs": 3, "detector_epochs": 2},
    AABiGAN: {"max_epochs": 3},
    JointEncoderGAN: {"max_epochs": 1},
    TransferAD: {"max_epochs": 3, "transfer_epochs": 3},
    ADRA: {"max_epochs": 3, "pretrain_epochs": 1},
}


@pytest.fixture(params=SHORT, ids=lambda cls: cls.__name__)
def build(request):
    """Return a function that makes a detector with a short training on the GPU."""

    def make(**params):
        settings = {"random_state": 0, "device": "cuda", **SHORT[request.param]}
        return request.param(**settings | params)

    return make


@pytest.fixture(params=["table", "images"])
def data(request):
    rng = np.random.default_rng(0)
    if request.param == "table":
        return rng.normal(size=(200, 4))
    return rng.integers(0, 256, (80, 1, 9, 12)).astype(np.uint8)


def test_auto_takes_the_gpu_and_a_seed_makes_fits_equal(build, data):
    detector = build(device="auto")
    first = detector.fit(data).score_samples(data)
    assert detector.net_.device == "cuda"
    np.testing.assert_array_equal(detector.fit(data).score_samples(data), first)


def test_rows_do_not_depend_on_their_neighbours(build, data):
    detector = build().fit(data)
    alone = np.concatenate([detector.score_samples(row[None]) for row in data[:5]])
    np.testing.assert_allclose(detector.score_samples(data)[:5], alone, rtol=1e-5)


def test_bfloat16_trains(build, data):
    detector = build(precision="bfloat16").fit(data)
    assert np.isfinite(detector.score_samples(data)).all()


def test_a_model_from_the_gpu_scores_without_one(build, data, tmp_path):
    detector = build().fit(data)
    scores = detector.score_samples(data)
    (tmp_path / "d.pickle").write_bytes(pickle.dumps(detector))
    save(detector, tmp_path / "d.safetensors")
    np.save(tmp_path / "X.npy", data)
    on_cpu = load(tmp_path / "d.safetensors", device="cpu")
    np.testing.assert_allclose(on_cpu.score_samples(data), scores, rtol=1e-3, atol=1e-3)
    code = (
        "import numpy, pickle, sys, warnings; warnings.simplefilter('ignore')\n"
        "d = pickle.load(open(sys.argv[1] + '/d.pickle', 'rb'))\n"
        "X = numpy.load(sys.argv[1] + '/X.npy')\n"
        "numpy.save(sys.argv[1] + '/s.npy', d.score_samples(X))\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "s.npy"), scores, rtol=1e-3, atol=1e-3
    )


def test_known_anomalies_are_drawn_on_the_gpu(data):
    y = np.repeat([-1, 1], [10, len(data) - 10])
    settings = SHORT[AABiGAN] | {"random_state": 0, "device": "cuda"}
    detector = AABiGAN(**settings, criterion="auto", early_stopping=True)
    assert np.isfinite(detector.fit(data, y).score_samples(data)).all()
    assert detector.sample(5).shape == (5, *data.shape[1:])
    assert detector.reconstruct(data).shape == data.shape


def test_both_stages_of_a_transfer_run_on_the_gpu(data):
    settings = SHORT[TransferAD] | {"random_state": 0, "device": "cuda"}
    source, target = np.array_split(data, 2)
    detector = TransferAD(**settings, weight_source=True).fit(target, X_source=source)
    assert np.isfinite(detector.score_samples(target)).all()
    assert detector.sample_weight_.shape == (len(target),)
    assert detector.encode(target).shape[0] == len(target)
