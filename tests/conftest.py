"""Fixtures of several test files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

# Scripts for type checkers, with errors on purpose.
collect_ignore = ["typing"]

# One thread: the networks of the tests are small, and the machine is shared.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Seed torch's own generator for each test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """Folder with the benchmark data; tests that ask for it skip without it."""
    named = os.environ.get("SKANOMALY_DATA")
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    for folder in ([Path(named)] if named else []) + [default]:
        if (folder / "mnist.npz").exists():
            return folder
    return pytest.skip("no benchmark data: set SKANOMALY_DATA to their folder")


@pytest.fixture
def toy():
    """Return (X_train, X_test, y_test): a curved band of normal samples, and noise."""
    rng = np.random.default_rng(0)

    def band(n):
        t = rng.uniform(-2, 2, n)
        X = np.c_[t, t**2 / 2, np.sin(2 * t)]
        return X + 0.1 * rng.standard_normal(X.shape)

    noise = rng.uniform([-3, -1, -2], [3, 4, 2], size=(200, 3))
    X_test = np.r_[band(200), noise]
    return band(600), X_test, np.r_[np.ones(200, int), -np.ones(200, int)]


@pytest.fixture
def torch_and_numpy_state():
    """Check afterwards that the caller's random state is unchanged."""
    before = torch.get_rng_state(), np.random.get_state()
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    for one, other in zip(before[1], np.random.get_state(), strict=True):
        np.testing.assert_array_equal(one, other)
