"""On a GPU: the same contract, and models that travel to machines without one."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from skanomaly import HistoryAD, load, save

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
]
SHORT = {"max_epochs": 3, "detector_epochs": 2, "random_state": 0, "device": "cuda"}


@pytest.fixture(params=["table", "images"])
def data(request):
    rng = np.random.default_rng(0)
    if request.param == "table":
        return rng.normal(size=(200, 4))
    return rng.integers(0, 256, (80, 1, 9, 12)).astype(np.uint8)


def test_auto_takes_the_gpu_and_a_seed_makes_fits_equal(data):
    detector = HistoryAD(**SHORT | {"device": "auto"})
    first = detector.fit(data).score_samples(data)
    assert detector.net_.device == "cuda"
    np.testing.assert_array_equal(detector.fit(data).score_samples(data), first)


def test_rows_do_not_depend_on_their_neighbours(data):
    detector = HistoryAD(**SHORT).fit(data)
    alone = np.concatenate([detector.score_samples(row[None]) for row in data[:5]])
    np.testing.assert_allclose(detector.score_samples(data)[:5], alone, rtol=1e-5)


def test_bfloat16_trains(data):
    detector = HistoryAD(**SHORT, precision="bfloat16").fit(data)
    assert np.isfinite(detector.score_samples(data)).all()


def test_a_model_from_the_gpu_scores_without_one(data, tmp_path):
    detector = HistoryAD(**SHORT).fit(data)
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
