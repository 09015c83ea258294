"""Errors of divergence advise changes that are not in force yet."""

import numpy as np
import pytest
from test_common import every_detector, short

from skanomaly.exceptions import TrainingDivergedError
from skanomaly.utils._advice import advice

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no corpus|no domains)",
    "ignore::skanomaly.exceptions.CoverageWarning",
)


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


def error_of(cls, X, **params):
    if cls.__name__ == "ADRA":  # whose product with the rate is checked before
        params["weight_decay"] = 0.0
    with pytest.raises(TrainingDivergedError) as caught:
        short(cls, **params).fit(X)
    return str(caught.value)


@every_detector
def test_the_advice_is_not_in_force_already(cls, X):
    # It was the same whatever the settings were.
    text = error_of(cls, X, lr=1e30)
    assert "a lower `lr` than 1e+30" in text
    assert "scaling" not in text
    assert "precision" not in text
    text = error_of(cls, X, lr=1e30, precision="bfloat16", scaling=None)
    assert "`scaling='auto'` instead of None" in text
    assert "`precision='float32'`" in text


def test_the_error_names_only_the_parameter_that_is_the_cause(X):
    defaults = {"lr": "auto", "a": 1.0, "scaling": "auto"}
    text = advice(defaults | {"a": 1e25}, defaults, {"lr": 1e-3})
    assert "a=1e+25 may be the cause" in text
    assert "lr" not in text
    both = advice(defaults | {"a": 1e25}, defaults, {"lr": 1e30})
    assert "a=1e+25 may be the cause" in both
    assert "a lower `lr` than 1e+30" in both
