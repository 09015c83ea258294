"""The attribute net_ as a net of skorch: its methods work, or are clearly absent."""

import io
from functools import cache
from inspect import getattr_static

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch import NeuralNet
from skorch.exceptions import NotInitializedError
from test_common import every_detector, short

from skanomaly.engine._skorch import _Unavailable

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no corpus|no domains)",
    "ignore::skanomaly.exceptions.CoverageWarning",
)
X = np.random.default_rng(0).normal(size=(80, 4))
PUBLIC = [name for name in dir(NeuralNet) if not name.startswith("_")]


@cache
def fitted(cls):
    return short(cls).fit(X)


def weights_in_a_file(net):
    file = io.BytesIO()
    net.save_params(f_params=file)
    file.seek(0)
    return file


def initialized(method):
    """Call a method that builds a part anew on a clone, which no detector uses."""

    def call(net):
        new = clone(net).initialize()
        getattr(new, method)()

    return call


WORKING = {
    "check_is_fitted": lambda net: net.check_is_fitted(),
    "check_training_readiness": lambda net: net.check_training_readiness(),
    "cuda_dependent_attributes_": lambda net: net.cuda_dependent_attributes_,
    "get_all_learnable_params": lambda net: dict(net.get_all_learnable_params()),
    "get_default_callbacks": lambda net: net.get_default_callbacks(),
    "get_params": lambda net: net.get_params(),
    "get_params_for": lambda net: net.get_params_for("module"),
    "get_params_for_optimizer": lambda net: net.get_params_for_optimizer(
        "optimizer", net.get_all_learnable_params()
    ),
    "history": lambda net: net.history[:, "epoch"],
    "init_context_": lambda net: net.init_context_,
    "initialized_instance": lambda net: net.initialized_instance(dict, {"a": 1}),
    "load_params": lambda net: net.load_params(f_params=weights_in_a_file(net)),
    "notify": lambda net: net.notify("on_batch_begin", batch=None),
    "prefixes_": lambda net: net.prefixes_,
    "save_params": lambda net: net.save_params(f_params=io.BytesIO()),
    "set_params": lambda net: net.set_params(batch_size=net.batch_size),
    "torch_compile": lambda net: net.torch_compile(net.module_, "module"),
}
WORKING |= {
    name: initialized(name)
    for name in PUBLIC
    if name.startswith("initialize") and name != "initialized_instance"
}
# Events of a run, which each fit sends to the net.
WORKING |= {name: callable for name in PUBLIC if name.startswith("on_")}


@every_detector
@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_method_works_or_names_that_of_the_detector(cls, name):
    net = fitted(cls).net_
    if isinstance(getattr_static(net, name), _Unavailable):
        assert not hasattr(net, name)
        with pytest.raises(AttributeError, match=rf"has no method {name}: .*Call the"):
            getattr(net, name)
    else:
        WORKING[name](net)


@every_detector
def test_a_clone_has_the_settings_and_is_untrained(cls):
    net = fitted(cls).net_
    new = clone(net)
    assert type(new) is type(net)
    assert new.get_params(deep=False).keys() == net.get_params(deep=False).keys()
    assert (new.seed, new.batch_size) == (net.seed, net.batch_size)
    with pytest.raises(NotInitializedError):
        new.check_is_fitted()


@every_detector
def test_weights_come_back_from_a_file(cls):
    net = fitted(cls).net_
    before = fitted(cls).score_samples(X)
    file = weights_in_a_file(net)
    with torch.no_grad():
        for _, parameter in net.get_all_learnable_params():
            parameter.add_(1)
    assert not np.array_equal(fitted(cls).score_samples(X), before)
    net.load_params(f_params=file)
    np.testing.assert_array_equal(fitted(cls).score_samples(X), before)
