"""Settings of the process during a call, the line of warnings, and versions."""

import builtins
import subprocess
import sys
import threading
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from test_common import every_detector, short

import skanomaly
from skanomaly import _version, show_versions
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


# -------------------------------------------------------------------------- versions


def printed_versions(capsys):
    """Return the lines of show_versions as a dict of sections."""
    assert show_versions() is None
    blocks = capsys.readouterr().out.strip("\n").split("\n\n")
    return {
        title.rstrip(":"): dict(line.strip().split(": ", 1) for line in lines)
        for title, *lines in (block.splitlines() for block in blocks)
    }


def test_versions_of_all_packages_are_printed(capsys):
    sections = printed_versions(capsys)
    assert sections["System"]["python"] == sys.version.replace("\n", " ")
    assert sections["System"]["executable"] == sys.executable
    assert sections["Package"] == {"skanomaly": skanomaly.__version__}
    required = sections["Required packages"]
    assert {"numpy", "scikit-learn", "skorch", "torch"} <= set(required)
    for name, found in required.items():
        assert found == version(name)
    optional = sections["Optional packages"]
    assert optional["pillow"] == version("pillow")
    assert {"matplotlib", "pandas", "skada"} <= set(optional)
    assert not {"pytest", "sphinx", "ruff", "torch"} & set(optional)
    torch_ = sections["torch"]
    assert torch_["CPU capability"] == torch.backends.cpu.get_cpu_capability()
    assert torch_["threads"] == str(torch.get_num_threads())
    assert torch_["CUDA"] == str(torch.version.cuda)


def test_versions_of_packages_that_are_missing(capsys, monkeypatch):
    wanted = [
        "numpy>=1",
        'no-such-package[some]>=1; extra == "plot"',
        "no.other (>=2) ; python_version > '3' and extra == 'x'",
        'ruff; extra == "lint"',
    ]
    monkeypatch.setattr(_version, "requires", lambda name: wanted)
    sections = printed_versions(capsys)
    assert sections["Required packages"] == {"numpy": np.__version__}
    missing = {"no-such-package": "None", "no.other": "None"}
    assert sections["Optional packages"] == missing


def test_versions_without_an_installation(capsys, monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_version, "requires", requires)
    sections = printed_versions(capsys)
    assert "not installed" in sections["Packages"]["unknown"]
    assert sections["torch"]


def test_versions_name_the_gpus(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "GPU {}".format)
    assert printed_versions(capsys)["torch"]["CUDA devices"] == "GPU 0, GPU 1"


def test_versions_without_a_torch_that_works(capsys, monkeypatch):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    sections = printed_versions(capsys)
    assert sections["torch"]["import"].startswith("failed: libtorch.so")
    assert sections["Required packages"]["torch"] == version("torch")


def test_versions_import_torch_alone():
    others = "skorch", "pandas", "matplotlib", "PIL", "skada", "sklearn"
    code = (
        "import sys, skanomaly; skanomaly.show_versions(); "
        f"assert not set({others}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
