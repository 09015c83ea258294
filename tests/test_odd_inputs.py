"""Odd inputs, drawn by a seed: each gives scores, a warning or a clear error.

Every run has 500 cases. 3,000 more take minutes, and run on request:

    python -m pytest -m slow tests/test_odd_inputs.py
"""

import pickle
import random
import re
import signal
import warnings
from collections import Counter
from contextlib import chdir, contextmanager
from dis import opmap

import numpy as np
import odd_inputs
import pytest
import torch
from odd_inputs import TINY, draw_case
from sklearn.exceptions import NotFittedError

import skanomaly
from skanomaly import exceptions
from skanomaly.exceptions import ConstantScoresWarning, TrainingDivergedError

N_CASES, N_MANY = 100, 600  # for each of the five detectors
SECONDS = 60  # of a case, at most
#: Names in error messages, besides the parameters of a detector.
ARGUMENTS = {
    *("X", "y", "sample_domain", "X_source", "corpus", "Images", "Clips", "file"),
    *("n_samples", "random_state", "include_backbone", "detector", "path", "domain"),
}
OWN_ERRORS = tuple(
    one
    for name in exceptions.__all__
    if not issubclass(one := getattr(exceptions, name), Warning)
)
#: An ImportError names the package to install.
ERRORS = ValueError, TypeError, OSError, ImportError, NotFittedError, *OWN_ERRORS
HERE = {__file__, odd_inputs.__file__}


class FaultError(BaseException):
    """A forbidden result of a case; `except Exception` does not catch it."""


# Outcomes of a case ---------------------------------------------------------------


def outcome(case, folder):
    """Return the outcome, "scores", "warning" or "error", or raise a fault."""
    given = _fingerprint(case)
    with (
        warnings.catch_warnings(record=True) as caught,
        chdir(folder),  # where text for `memory` makes folders
        _process_left_alone(),
        _time_limit(),
    ):
        warnings.simplefilter("always")
        error = _run(case, folder, caught)
    _check_warnings(caught)
    if given != _fingerprint(case):
        raise FaultError("the input was changed")
    if error is not None:
        return "error"
    return "warning" if any(one.filename in HERE for one in caught) else "scores"


def _run(case, folder, caught):
    """Fit, score and call the function of a case; return the error, if there is one."""
    detector = case.detector()
    steps = (
        lambda: detector.fit(case.X, case.y, **case.fit_params),
        lambda: _check_scores(detector.score_samples(case.X), case, caught),
        lambda: case.then and _check_finite(case.then(detector, case, folder)),
    )
    for step in steps:
        # The call after the fit may set parameters.
        but = detector.get_params(deep=False) if step is steps[-1] else ()
        before = {k: one for k, one in vars(detector).items() if k not in but}
        try:
            step()
        except Exception as error:
            _check_error(error, case, folder)
            after = {k: one for k, one in vars(detector).items() if k not in but}
            if before.keys() != after.keys() or any(
                one is not after[k] for k, one in before.items()
            ):
                raise FaultError("the detector was changed by an error") from error
            return error
    return None


def _check_scores(scores, case, caught):
    _check_finite(scores)
    if scores.shape != (len(case.plain),) or scores.dtype != np.float64:
        raise FaultError(f"scores are {scores.dtype} of shape {scores.shape}")
    warned = any(one.category is ConstantScoresWarning for one in caught)
    if np.ptp(scores) == 0 and not warned:
        raise FaultError("constant scores in silence")
    if odd_inputs.SAME & set(case.oddities) and case.detector().random_state == 0:
        samples = np.asarray(case.X).copy()
        plain = case.detector().fit(samples, case.y, **case.fit_params)
        if not np.array_equal(scores, plain.score_samples(samples)):
            raise FaultError("scores differ from those of the same samples in an array")


def _check_finite(result):
    if result is not None and not np.isfinite(result).all():
        raise FaultError("scores are not finite")


def _check_error(error, case, folder):
    """Raise a fault unless the error is one of ours, or of scikit-learn's checks."""
    if isinstance(error, OSError) and error.filename is not None:
        return  # the system's, and names the file
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    code, message = frame.tb_frame.f_code, f"{type(error).__name__}: {error}"
    module = frame.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    checks = module in ("skanomaly", "sklearn")
    # An error of a compiled function appears at a line that only calls it.
    raised = code.co_code[frame.tb_lasti] == opmap["RAISE_VARARGS"]
    if not (isinstance(error, ERRORS) and raised and checks):
        place = f"{code.co_filename.rpartition('site-packages/')[-1]}:{frame.tb_lineno}"
        raise FaultError(f"raw error in {place}: {message}") from error
    words = set(re.findall(r"\w+", str(error)))
    if isinstance(error, TrainingDivergedError) and not words & set(case.params):
        raise FaultError(f"misleading advice: {message}") from error
    known = set(getattr(skanomaly, case.name)().get_params())
    named = words & (ARGUMENTS | known) or str(folder) in message
    if module == "skanomaly" and not named:
        raise FaultError(f"the error names no argument: {message}") from error


def _check_warnings(caught):
    """Raise a fault if a warning is neither ours nor one of scikit-learn's checks."""
    for one in caught:
        meant = one.filename in HERE or "sklearn" in one.filename
        if not (meant and issubclass(one.category, UserWarning)):
            place = f"{one.filename.rpartition('site-packages/')[-1]}:{one.lineno}"
            raise FaultError(f"stray {one.category.__name__} of {place}: {one.message}")


@contextmanager
def _process_left_alone():
    """Raise a fault if a case changes a random state or a setting of the process."""

    def state():
        return pickle.dumps(
            (
                np.random.get_state(),
                torch.get_rng_state().numpy(),
                random.getstate(),
                np.geterr(),
                torch.get_default_dtype(),
                torch.get_num_threads(),
                torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(),
                torch.is_autocast_enabled("cpu"),
            )
        )

    before = state()
    yield
    if state() != before:
        raise FaultError("a random state or a setting of the process was changed")


@contextmanager
def _time_limit():
    """Raise a fault after some time, where the system has alarms."""

    def stop(*_):
        raise FaultError(f"it hangs: {SECONDS} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def _fingerprint(case):
    """Return the contents of all inputs of a detector."""
    # A RandomState is meant to change.
    given = {"X": case.X, "y": case.y, **case.params, **case.fit_params}
    given.pop("random_state", None)
    return {name: _bytes(value) for name, value in given.items()}


def _bytes(value):
    if isinstance(value, torch.Tensor):
        dense = value.device.type == "cpu" and not value.is_sparse
        return value.detach().float().numpy().tobytes() if dense else id(value)
    if hasattr(value, "__array__"):
        return repr(np.asarray(value, dtype=object).tolist())
    if hasattr(value, "__next__"):
        return id(value)  # is used up
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return id(value)


# Faults -------------------------------------------------------------------------------


def _raises(error):
    def fit(detector, X, y=None):
        raise error

    return fit


def _leaves(**attributes):
    def fit(detector, X, y=None):
        vars(detector).update(attributes)
        raise ValueError("X is refused too late.")

    return fit


def _does(function, scores=np.arange):
    def fit(detector, X, y=None):
        function(X)
        detector.score_samples = lambda X: scores(len(X)).astype(float)

    return fit


@pytest.mark.parametrize(
    ("fit", "fault"),
    [
        (_does(lambda X: np.asarray(X) @ np.ones(99)), "raw error in .*matmul"),
        (_does(lambda X: {}["width"]), "raw error in .*KeyError"),
        (_does(lambda X: torch.ones(2) @ torch.ones(3)), "raw error in .*RuntimeError"),
        (_raises(ValueError("shapes do not fit")), "the error names no argument"),
        (_raises(RuntimeError("X is not fine")), "raw error in .*X is not fine"),
        (_raises(TrainingDivergedError("Lower `lr`.")), "misleading advice"),
        (_leaves(width=9), "the detector was changed by an error"),
        (_leaves(offset_=9), "the detector was changed by an error"),
        (_does(lambda X: np.float64(1e300) * 1e300), "stray RuntimeWarning"),
        (
            _does(lambda X: warnings.warn("hm", FutureWarning, stacklevel=1)),
            "stray FutureWarning",
        ),
        (_does(lambda X: np.random.rand()), "random state"),
        (_does(lambda X: torch.rand(1)), "random state"),
        (_does(lambda X: random.random()), "random state"),
        (_does(lambda X: X.sort()), "the input was changed"),
        (_does(id, np.zeros), "constant scores in silence"),
        (_does(id, lambda n: np.full(n, np.nan)), "not finite"),
        (_does(id, lambda n: np.arange(n + 1)), "of shape"),
    ],
)
def test_faults_are_found(fit, fault, monkeypatch, tmp_path):
    """Each kind of fault is recognised."""
    case = draw_case("HistoryAD", 0)
    case.X = case.plain = np.random.default_rng(0).normal(size=(20, 3))
    case.y, case.params, case.fit_params, case.then = None, {}, {}, None
    monkeypatch.setattr(skanomaly.HistoryAD, "fit", fit)
    # As if these functions stood in the package.
    monkeypatch.setitem(fit.__globals__, "__name__", "skanomaly.tested")
    with pytest.raises(FaultError, match=fault):
        outcome(case, tmp_path)


# The cases ----------------------------------------------------------------------------


def _run_cases(name, numbers, folder):
    """Return the number of cases by outcome, and the faults."""
    outcomes, faults = Counter(), []
    for number in numbers:
        own = folder / str(number)
        own.mkdir()
        odd_inputs.MAPS_FOLDER[0] = own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy deprecates matrices
            case = draw_case(name, number)
        try:
            outcomes[outcome(case, own)] += 1
        except FaultError as fault:
            faults.append(f"draw_case({name!r}, {number}), {case.oddities}: {fault}")
    return outcomes, faults


def _check_all(name, numbers, folder):
    outcomes, faults = _run_cases(name, numbers, folder)
    assert not faults, "\n".join([f"{len(faults)} faults, {dict(outcomes)}:", *faults])
    # Otherwise nearly all cases would be refused, and no fit tested.
    assert outcomes["scores"] + outcomes["warning"] > len(numbers) / 5
    assert outcomes["error"] > len(numbers) / 4


@pytest.mark.parametrize("name", TINY)
def test_odd_inputs(name, tmp_path):
    _check_all(name, range(N_CASES), tmp_path)


@pytest.mark.slow
@pytest.mark.on_request
@pytest.mark.parametrize("name", TINY)
def test_many_odd_inputs(name, tmp_path):
    _check_all(name, range(N_CASES, N_CASES + N_MANY), tmp_path)
