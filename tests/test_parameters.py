"""Parameters of all detectors: invalid numbers, and networks with wrong outputs."""

import copy
import pickle
from contextlib import contextmanager
from inspect import signature
from math import prod

import numpy as np
import pytest
import torch
from sklearn.base import clone
from test_common import DETECTORS, SCALAR_ROLES, ScalarNetwork, every_detector, short
from torch import nn

import skanomaly
from skanomaly.utils import _sklearn_compat as sk

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.SaturatedWeightsWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]

BRIEF = {"max_epochs": 1, "pretrain_epochs": 1, "transfer_epochs": 1}
BRIEF |= {"width": 2, "max_width": 4}
NOT_A_NUMBER = {
    "nan": np.nan,
    "nan of numpy": np.float64("nan"),
    "inf": np.inf,
    "-inf": -np.inf,
    "1e300": 1e300,
    "-1e300": -1e300,
    "True": True,
    "x": "x",
    "list": [1.0],
    "None": None,
}


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(20, 4))


def brief(cls, **params):
    names = cls().get_params()
    settings = {name: value for name, value in BRIEF.items() if name in names}
    return short(cls, **{**settings, **params})


def fit(detector, X):
    """Fit a detector; one that knows domains is given two."""
    takes_source = "X_source" in signature(detector.fit).parameters
    return detector.fit(X, X_source=X[::2]) if takes_source else detector.fit(X)


def numbers_of(cls, kind):
    """Return the parameters that may be numbers of a kind."""
    return [
        name
        for name, constraints in cls._parameter_constraints.items()
        for constraint in constraints
        if isinstance(constraint, sk.Interval) and constraint.type is kind
    ]


# Numbers -----------------------------------------------------------------------------


@every_detector
@pytest.mark.parametrize("case", NOT_A_NUMBER)
def test_invalid_numbers_raise_an_error_with_the_parameter(cls, X, case):
    value = NOT_A_NUMBER[case]
    names = [*numbers_of(cls, sk.Real), *numbers_of(cls, sk.Integral)]
    assert {"lr", "contamination", "max_epochs"} <= set(names)
    for name in names:
        allowed = cls._parameter_constraints[name]
        if value is None and None in allowed:
            continue
        if isinstance(value, str | list) and type(value) in allowed:
            continue
        with pytest.raises(ValueError, match=f"'{name}' parameter"):
            brief(cls, **{name: value}).fit(X)


@every_detector
def test_the_bounds_of_parameters_train_or_raise_an_error(cls, X):
    """The error, if there is one, names the parameter."""
    for name in numbers_of(cls, sk.Real):
        for bound in bounds(cls, name):
            detector = brief(cls, **{name: bound})
            error = error_of(fit, detector, X)
            if isinstance(error, skanomaly.exceptions.TrainingDivergedError):
                assert name in ("lr", "detector_lr")
            elif error is not None:
                assert f"{name}=" in str(error)
            else:
                assert np.ptp(detector.score_samples(X)) > 0


def error_of(function, *arguments):
    """Return the error that a call raises, or None."""
    try:
        function(*arguments)
    except (ValueError, skanomaly.exceptions.TrainingDivergedError) as error:
        return error
    return None


def bounds(cls, name):
    """Yield the bounds of the intervals of a parameter."""
    for interval in cls._parameter_constraints[name]:
        if isinstance(interval, sk.Interval):
            for value in (interval.left, interval.right):
                if interval.is_satisfied_by(float(value)):
                    yield float(value)


@every_detector
def test_numpy_floats_are_accepted(cls, X):
    given = {"lr": 0.001, "contamination": 0.25}
    plain = fit(brief(cls, **given), X)
    same = fit(brief(cls, **{k: np.float64(v) for k, v in given.items()}), X)
    np.testing.assert_array_equal(plain.score_samples(X), same.score_samples(X))
    for name in numbers_of(cls, sk.Real):
        if name != "wide_latent":
            value = np.float32(-0.5 if name == "eta" else 0.5)
            error = error_of(fit, brief(cls, **{name: value}), X)
            # Some have no meaning without another parameter.
            assert error is None or f"{name}=0.5 " in str(error)


@pytest.mark.parametrize(
    "pair", [(np.nan, 20.0), (20.0, np.nan), (1, np.inf), (1, True)]
)
def test_nan_in_a_pair_raises_an_error(X, pair):
    with pytest.raises(ValueError, match=r"beta=.*a finite number above 0, or a pair"):
        fit(brief(skanomaly.TransferAD, beta=pair), X)


def test_weights_that_are_all_zero_are_not_normalised(X):
    """The loss was NaN, and the learning rate was blamed."""
    detector = brief(skanomaly.TransferAD, eta=-1e30, normalize_weights=True)
    with pytest.warns(skanomaly.exceptions.SaturatedWeightsWarning):
        detector.fit(X, X_source=X[::2])


@every_detector
@pytest.mark.parametrize("value", [False, np.False_])
def test_contamination_false_raises_an_error(cls, X, value):
    with pytest.raises(ValueError, match="'contamination' parameter"):
        brief(cls, contamination=value).fit(X)


@every_detector
def test_true_as_a_count_raises_an_error(cls, X):
    with pytest.raises(ValueError, match="image_shape"):
        brief(cls, image_shape=(True, 2, 2)).fit(X)
    if hasattr(cls, "sample"):
        with pytest.raises(ValueError, match="n_samples=True"):
            brief(cls).fit(X).sample(True)


# Networks of a user ------------------------------------------------------------------


class Own(nn.Module):
    """A user's network from samples of one shape to samples of another."""

    def __init__(self, inputs, outputs, normalised=True):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.linear = nn.Linear(prod(inputs), prod(outputs))
        self.norm = nn.BatchNorm1d(prod(outputs)) if normalised else nn.Identity()

    def forward(self, x):
        return self.norm(self.linear(x.flatten(1))).unflatten(1, self.outputs)


class Lazy(nn.Module):
    """The same with lazy layers, which get their sizes from the first batch."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.LazyLinear(prod(outputs)),
            nn.LazyBatchNorm1d(),
            nn.Unflatten(1, outputs),
        )

    def forward(self, x):
        return self.layers(x)


def as_shape(size):
    return size if isinstance(size, tuple) else (size,)


def builder(network):
    """Return a function that builds a network from two sizes."""
    return lambda first, second: network(as_shape(first), as_shape(second))


# The network of ADRA may have features of any length.
WITH_NETWORKS = [cls for cls in DETECTORS if cls.__name__ != "ADRA"]
ROLES = [
    pytest.param(cls, role, id=f"{cls.__name__}-{role}")
    for cls in WITH_NETWORKS
    for role in cls._roles
]
VECTOR_ROLES = [case for case in ROLES if case.values[1] not in SCALAR_ROLES]


@pytest.mark.parametrize(("cls", "role"), VECTOR_ROLES)
@pytest.mark.parametrize("kind", ["X", "images"])
def test_a_network_with_one_output_is_not_broadcast(cls, role, kind, request):
    """A decoder with one output was compared with whole samples, silently."""
    data = request.getfixturevalue(kind)
    one = builder(lambda i, o: Own(i, (1,) * len(o)))
    message = rf"'{role}'.*float32 of shape \(2, 1.*has to return floats of shape \(2, "
    if role == "encoder" or kind == "X":
        with pytest.raises(ValueError, match=message):
            fit(brief(cls, architecture={role: one}, latent_dim=3), data)
    too_many = builder(lambda i, o: Own(i, (*o[:-1], o[-1] + 1)))
    with pytest.raises(ValueError, match=message.replace("1.*h", ".*h")):
        fit(brief(cls, architecture={role: too_many}, latent_dim=3), data)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 1, 6, 8)).astype(np.uint8)


class TwoNumbers(nn.Module):
    """A network with two numbers per sample instead of one."""

    def __init__(self, *sizes):
        super().__init__()
        self.network = ScalarNetwork(flat=False)

    def forward(self, *inputs):
        return self.network(*inputs).expand(-1, 2)


@pytest.mark.parametrize(("cls", "role"), ROLES)
def test_networks_with_wrong_outputs_raise_an_error(cls, role, X):
    def fails(network, message):
        with pytest.raises(ValueError, match=f"'{role}'.*{message}"):
            fit(brief(cls, architecture={role: lambda *sizes: network}), X)

    fails(nn.LSTM(4, 4), "fails on two samples of shape|returns a tuple")
    fails(nn.Linear(97, 1), "fails on two samples of shape .*RuntimeError|TypeError")
    if role in SCALAR_ROLES:
        fails(TwoNumbers(), r"float32 of shape \(2, 2\).* \(2,\) or \(2, 1\)")


class Counting(Own):
    """A network that draws random numbers, and counts the samples that it has seen."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x) + torch.rand(())


@pytest.mark.parametrize(("cls", "role"), VECTOR_ROLES)
def test_checking_a_network_leaves_it_and_random_states_unchanged(cls, role, X):
    given, state = Counting((4,), (4,)), torch.get_rng_state()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    detector = brief(cls, architecture={role: lambda *sizes: given}, latent_dim=4)
    detector._row_shape = (4,)
    for net in detector._make_nets("cpu", 0).values():
        for name, build in net.modules.items():
            if name == role:
                with torch.random.fork_rng():
                    torch.default_generator.manual_seed(1)
                    expected = torch.get_rng_state()
                    built = build().members[0]
                    assert torch.equal(torch.get_rng_state(), expected)
                assert built.training
                for key, value in built.state_dict().items():
                    assert torch.equal(value, before[key])
    for key, value in given.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("cls", "role"), VECTOR_ROLES)
def test_lazy_networks_get_their_sizes_before_the_optimisers(
    cls, role, X, torch_and_numpy_state
):
    build = builder(Lazy)
    scores = []
    for _ in "ab":
        detector = brief(cls, architecture={role: build}, latent_dim=3, lr=0.05)
        scores.append(fit(detector, X).score_samples(X))
    np.testing.assert_array_equal(*scores)
    net = getattr(detector, "gan_", detector.net_)
    network = getattr(net, f"{role}_").members[0]
    norm = network.layers[2]
    assert len(norm.bias) == len(network.layers[1].bias)
    assert norm.bias.abs().max() > 0.01  # trained
    assert norm.num_batches_tracked < 50


# Modes of torch ----------------------------------------------------------------------


@contextmanager
def double_precision():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "double precision": double_precision,
}


def results_of(detector, data, path):
    """Return the results of all public methods of a fitted detector, by name."""
    methods = ["score_samples", "decision_function", "predict", "encode"]
    methods += ["reconstruct", "anomaly_map", "score_terms"]
    if data.ndim == 2:
        methods.remove("anomaly_map")
    results = {k: getattr(detector, k)(data) for k in methods if hasattr(detector, k)}
    if hasattr(detector, "sample"):
        results["sample"] = detector.sample(5, random_state=0)
    if "from_history" in signature(getattr(detector, "sample", len)).parameters:
        history = {"from_history": True, "random_state": 0}
        results["from_history"] = detector.sample(5, **history)
    skanomaly.save(detector, path)
    loaded = skanomaly.load(path)
    results["loaded"] = loaded.score_samples(data)
    results["copy"] = copy.deepcopy(detector).score_samples(data)
    results["pickle"] = pickle.loads(pickle.dumps(detector)).score_samples(data)
    if hasattr(detector, "backbone_"):
        weights = detector.backbone_.state_dict()
        results["backbone_"] = np.array(
            [float(w.double().sum()) for w in weights.values()]
        )
    loaded.set_params(warm_start=True)
    results["warm start"] = fit(loaded, data).score_samples(data)
    results["fit"] = fit(clone(detector), data).score_samples(data)
    return results


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_modes_of_torch_do_not_change_results(cls, kind, request, tmp_path):
    """``sample`` failed, or computed in half precision, under autocast."""
    data, path = request.getfixturevalue(kind), tmp_path / "d.safetensors"
    detector = fit(brief(cls), data)
    expected = results_of(detector, data, path)
    for name, mode in MODES.items():
        with mode():
            results = results_of(detector, data, path)
        assert results.keys() == expected.keys()
        for method, values in results.items():
            assert values.dtype == expected[method].dtype, (name, method)
            message = f"{method} in {name}"
            np.testing.assert_array_equal(values, expected[method], err_msg=message)


# Small batches -----------------------------------------------------------------------


@every_detector
@pytest.mark.parametrize("sides", [(4, 4), (5, 5), (9, 17)])
def test_the_smallest_batches_train_at_any_size(cls, sides):
    """Batch normalisation of a single known anomaly failed where one pixel is left."""
    images = np.random.default_rng(0).integers(0, 256, (9, 1, *sides)).astype(np.uint8)
    for batch_size in (2, 3):
        detector = brief(cls, batch_size=batch_size)
        takes_source = "X_source" in signature(detector.fit).parameters
        labels = {} if takes_source else {"y": np.repeat([1, -1], [8, 1])}
        domains = {"X_source": images[:4]} if takes_source else {}
        detector.fit(images, **labels, **domains)
        assert np.ptp(detector.score_samples(images)) > 0
