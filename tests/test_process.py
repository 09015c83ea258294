"""Settings of the process during a call, and the line of warnings."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from test_common import every_detector, short

from skanomaly.utils._process import one_thread, single_precision


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 1, 9, 12)).astype(np.uint8)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_first_to_leave_changes_nothing_for_the_other(double):
    first, second = single_precision(), single_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_default_dtype() == torch.float32
    second.__exit__(None, None, None)
    assert torch.get_default_dtype() == torch.float64


def test_the_number_of_threads_is_restored():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def compute():
        with one_thread():
            inside.set()
            leave.wait(60)
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    try:
        with one_thread():
            other = threading.Thread(target=compute)
            other.start()
            assert inside.wait(60)
        assert torch.get_num_threads() == 2
        leave.set()
        other.join()
        assert seen == [1, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def predicted(detector, images):
    return detector.predict(images)


def in_a_pipeline(detector, images):
    # Here scikit-learn calls the detector, which changes no line of the user's.
    pipeline = make_pipeline(FunctionTransformer(), detector)
    return pipeline.decision_function(images)


@every_detector
@pytest.mark.parametrize("use", [predicted, in_a_pipeline])
@pytest.mark.filterwarnings("ignore:.*(domains|corpus|history)")
def test_a_warning_names_the_line_of_the_user(cls, use, images):
    detector = short(cls).fit(images)
    with pytest.warns(UserWarning, match="pixels hardly have one scale") as caught:
        use(detector, images / 255)
    assert {warning.filename for warning in caught} == {__file__}


@every_detector
@pytest.mark.filterwarnings("ignore:.*(domains|corpus|history)")
def test_floats_of_another_scale_are_warned_about(cls, images):
    detector = short(cls).fit(images / 255)
    detector.predict(images[:9] / 255)
    with pytest.warns(UserWarning, match=r"X holds floats from \d to 25\d, "):
        detector.predict(images.astype(float))


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        partial(torch.device, "meta"),
    ],
    ids=["no gradients", "inference", "half precision", "other device"],
)
@every_detector
@pytest.mark.filterwarnings("ignore:.*(domains|corpus|history)")
def test_modes_of_the_caller_make_no_difference(cls, context, images):
    expected = short(cls).fit(images).score_samples(images)
    with context():
        scores = short(cls).fit(images).score_samples(images)
    np.testing.assert_array_equal(scores, expected)
