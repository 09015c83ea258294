"""Training on two processes, against one with batches of twice the size."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

SCRIPT = Path(__file__).with_name("together.py")
SECONDS = 300
KINDS = "table", "image"
DETECTORS = "HistoryAD", "AABiGAN", "TransferAD", "JointEncoderGAN", "ADRA"

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the results of one process, and of each of two."""
    folder = tmp_path_factory.mktemp("together")
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(size), folder],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for size in (1, 2)
        for rank in range(size)
    ]
    try:
        for process in started:
            _, messages = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, messages
    finally:
        for process in started:
            process.kill()
    return [
        pickle.loads((folder / name).read_bytes()) for name in ("1-0", "2-0", "2-1")
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DETECTORS)
def test_two_processes_train_as_one_with_twice_the_batch(results, name, kind):
    (losses, scores, offset, unit), two, _ = (one[name, kind] for one in results)
    assert [one[:2] for one in two[0]] == [one[:2] for one in losses]
    found, expected = (np.array([one[2] for one in rows]) for rows in (two[0], losses))
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6)
    # Adam divides gradients by their size: where they are 0 but for rounding, as of a
    # bias before batch normalisation, rounding decides on whole steps.
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * largest)
    np.testing.assert_allclose(two[1] / unit, scores / unit, rtol=0, atol=0.02)
    np.testing.assert_allclose(two[2] / unit, offset / unit, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DETECTORS)
def test_all_processes_have_the_same_detector(results, name, kind):
    first, second = (one[name, kind] for one in results[1:])
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    assert first[2] == second[2]


def test_a_search_trains_on_all_processes(results):
    one, *two = (one["search"] for one in results)
    np.testing.assert_allclose(two[0], one, rtol=1e-3)
    np.testing.assert_array_equal(*two)


def test_processes_share_a_seed(results):
    np.testing.assert_array_equal(*(one["seeds"] for one in results[1:]))


def test_only_the_first_process_shows_progress(results):
    first, second = (one["shown"] for one in results[1:])
    assert "AABiGAN" in first
    assert not second


def test_a_fit_goes_on_from_the_checkpoint_of_the_first_process(results):
    for one in results[1:]:
        files, went_on, unbroken = one["resumed"]
        assert len(files) == 1
        assert went_on[0] == unbroken[0]
        np.testing.assert_array_equal(went_on[1], unbroken[1])


@pytest.mark.parametrize(
    ("reason", "errors"),
    [
        ("other X", [("ValueError", "X differs"), ("ValueError", "X differs")]),
        ("NaN in one", [("RuntimeError", "Another process"), ("ValueError", "NaN")]),
        ("other plan", [("ValueError", "The run differs")] * 2),
        ("callback of one", [("RuntimeError", "Another process"), ("Zero", "")]),
        ("keep", [("ValueError", "on_interrupt")] * 2),
    ],
)
def test_no_process_waits_for_one_that_fails(results, reason, errors):
    for one, (kind, message) in zip(results[1:], errors, strict=True):
        found = one["differences"][reason]
        assert found[0].startswith(kind)
        assert message in found[1]
