"""Fixtures that several tests of ADRA share."""

import numpy as np
import pytest


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(60, 4))


@pytest.fixture
def images():
    """Colour images that are not square, and a corpus of as many."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (2, 40, 3, 10, 12)).astype(np.uint8)


@pytest.fixture(params=[1, 3], ids=["one expert", "three experts"])
def n_experts(request):
    return request.param


@pytest.fixture
def corpus():
    return np.random.default_rng(1).normal(size=(50, 4)) * 3
