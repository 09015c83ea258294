"""ONNX files: the scores of detectors, in another runtime."""

import json
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_common import DETECTORS, short
from torch import nn

import skanomaly
from skanomaly import ConformalDetector, HistoryAD, export_onnx
from skanomaly.export import _Graph, _modules, _on_host
from skanomaly.utils._kinds import CLIP
from skanomaly.utils._state import shallow_copy

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
    # Samples far beyond the range, on purpose.
    pytest.mark.filterwarnings("ignore:X holds floats from:UserWarning"),
]

LOWEST = float(np.finfo(np.float32).min)
RNG = np.random.default_rng(0)
SAMPLES = {
    "table": (
        RNG.normal(size=(60, 5)) * [1, 9, 1e-3, 1, 1e4] + [0, 5, 0, 1e3, 0]
    ).astype(np.float32),
    "bytes": RNG.integers(0, 256, (40, 1, 4, 6)).astype(np.uint8),
    "floats": RNG.random((40, 2, 4, 6)).astype(np.float32),
    "clips": RNG.integers(0, 256, (30, 1, 4, 4, 4)).astype(np.uint8),
}
# An export takes seconds: floats differ from bytes by their scaling and range alone,
# which other tests look at without one.
CASES = [
    (cls, kind)
    for cls in DETECTORS
    for kind in SAMPLES
    if kind == "table"
    or (kind == "clips" and CLIP in cls._auto_values)
    or (kind == ("floats" if cls is HistoryAD else "bytes"))
]


class TinyBackbone(nn.Sequential):
    """A network with each kind of layer that adapters stand beside.

    The network of the package has 25 convolutions, and takes long to export.
    """

    def __init__(self, n_channels):
        super().__init__(
            *(nn.Conv2d(n_channels, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU()),
            *(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()),
        )
        # Features without a spread of their own would be compared by their rounding.
        for name, values in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(values)
            elif values.ndim > 1:
                nn.init.orthogonal_(values, gain=2)


def fitted(cls, kind):
    X, params = SAMPLES[kind], {}
    if cls.__name__ == "ADRA" and X.ndim == 4:
        params = {"backbone": TinyBackbone(X.shape[1]), "input_size": 8}
    elif X.ndim > 2:
        params = {"n_estimators": 1}  # ensembles of such networks are lists of them
    if kind == "bytes" and hasattr(cls, "anomaly_map") and CLIP in cls._auto_values:
        params["criterion"] = "map"  # its other scores are those of clips
    return short(cls, **params).fit(X)


def session_of(path, **settings):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def exported(detector, folder, **settings):
    path = folder / "detector.onnx"
    export_onnx(detector, path)
    return session_of(path, **settings)


def run(session, X, **inputs):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"X": X, **inputs}), strict=True))


def traced(detector, X, calibration_scores=None):
    """Return the outputs of the graph that would be exported, by torch."""
    graph = _Graph(detector, calibration_scores).eval()
    offset = torch.tensor([detector.offset_], dtype=torch.float64)
    with detector._computing("cpu"), torch.no_grad():
        outputs = graph(torch.from_numpy(X), offset)
    return {name: values.numpy() for name, values in outputs.items()}


def enlarged(X):
    """Return 300 samples: those of X and others, some far beyond their range."""
    rng = np.random.default_rng(1)
    if X.dtype == np.uint8:
        return rng.integers(0, 256, (300, *X.shape[1:])).astype(np.uint8)
    parts = X[rng.integers(0, len(X), (300, 2))]
    share = rng.random((300,) + (1,) * (X.ndim - 1))
    samples = (share * parts[:, 0] + (1 - share) * parts[:, 1]).astype(np.float32)
    samples[5] *= 3
    samples[6, 0] = 1e6
    samples[7] = -1e38
    return samples


def assert_close(got, expected):
    """Check that scores differ by 1e-5 of their size, or of their range if larger."""
    assert got.dtype == np.float64
    finite = expected > LOWEST
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    unit = np.maximum(np.abs(expected[finite]), np.ptp(expected[8:]))
    assert (np.abs(got - expected)[finite] / unit).max() < 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@pytest.mark.parametrize(
    ("cls", "kind"), CASES, ids=[f"{cls.__name__}-{kind}" for cls, kind in CASES]
)
def test_outputs_are_those_of_the_detector(cls, kind, folder, capfd):
    detector = fitted(cls, kind)
    X = enlarged(SAMPLES[kind])
    expected, labels = detector.score_samples(X), detector.predict(X)
    capfd.readouterr()
    random_state = torch.get_rng_state()
    session = exported(detector, folder)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert capfd.readouterr() == ("", "")
    whole = run(session, X)
    assert list(whole) == ["score", "decision", "label", "p_value"]
    assert_close(whole["score"], expected)
    np.testing.assert_array_equal(whole["decision"], whole["score"] - detector.offset_)
    near = np.abs(expected - detector.offset_) < 1e-5 * np.abs(expected).clip(1)
    np.testing.assert_array_equal(whole["label"][~near], labels[~near])
    distance = np.abs(expected[:, None] - detector.calibration_scores_).min(1)
    apart = distance > 1e-5 * np.abs(expected).clip(1)
    assert apart.mean() > 0.2
    p = detector.p_value(X)
    np.testing.assert_array_equal(whole["p_value"][apart], p[apart])
    np.testing.assert_array_equal(detector.score_samples(X), expected)
    for n in (1, 2, 7):  # the same bits, whatever the batch
        some = [run(session, X[k : k + n]) for k in range(0, 42, n)]
        for name in whole:
            joined = np.concatenate([part[name] for part in some])
            np.testing.assert_array_equal(joined, whole[name][: len(joined)])
    if X.dtype == np.uint8:
        return
    flat = X[:7].copy()
    flat.reshape(7, -1)[3, 1] = np.nan
    outputs = run(session, flat)
    assert (outputs["score"][3], outputs["label"][3]) == (LOWEST, -1)
    others = np.arange(7) != 3
    np.testing.assert_array_equal(outputs["score"][others], whole["score"][:7][others])
    flat.reshape(7, -1)[3, 1] = np.inf
    assert run(session, flat)["label"][3] == -1


@pytest.fixture(scope="module")
def detector():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return short(HistoryAD).fit(SAMPLES["table"])


@pytest.fixture(scope="module")
def conformal():
    names = ["a", "b", "c", "d", "ü"]
    frame = pd.DataFrame(enlarged(SAMPLES["table"])[8:], columns=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ConformalDetector(short(HistoryAD), calibration=0.3, random_state=0).fit(
            frame
        )


@pytest.fixture(scope="module")
def path(conformal, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "detector.onnx"
    path.write_bytes(b"other")
    export_onnx(conformal, path)
    return path


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_the_threshold_changes_without_an_export(conformal, path, level):
    level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = session_of(path, graph_optimization_level=level)
    X = SAMPLES["table"]
    usual = run(session, X)
    middle = np.array([np.median(usual["score"])])
    other = run(session, X, offset=middle)
    np.testing.assert_array_equal(other["score"], usual["score"])
    np.testing.assert_array_equal(other["decision"], usual["score"] - middle)
    assert (other["label"] == -1).sum() == len(X) // 2
    given = run(session, X, offset=np.array([conformal.offset_]))
    np.testing.assert_array_equal(given["decision"], usual["decision"])


def test_the_file_describes_itself(conformal, path):
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    model = onnx.load(path)
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert known["skanomaly"] == skanomaly.__version__
    assert known["torch"] == torch.__version__
    assert known["class"] == "HistoryAD"
    assert float(known["offset"]) == conformal.offset_
    assert json.loads(known["columns"]) == ["a", "b", "c", "d", "ü"]
    assert [(i.domain, i.version) for i in model.opset_import] == [("", 20)]
    session = session_of(path)
    X, offset = session.get_inputs()[0], session.get_overridable_initializers()[0]
    assert (X.name, X.type, X.shape) == ("X", "tensor(float)", ["n_samples", 5])
    assert (offset.name, offset.type, offset.shape) == ("offset", "tensor(double)", [1])
    assert {tuple(output.shape) for output in session.get_outputs()} == {("n_samples",)}
    content = path.read_bytes()
    assert b".py" not in content  # names of files of the exporting machine
    assert b"/home" not in content


def test_a_threshold_that_flags_nothing(detector, folder):
    """Its decisions are positive, and in the order of the scores."""
    lowest = shallow_copy(detector)
    lowest.offset_ = -np.inf
    X = SAMPLES["table"]
    outputs = run(exported(lowest, folder), X)
    np.testing.assert_allclose(
        outputs["decision"], lowest.decision_function(X), rtol=1e-5
    )
    assert (outputs["label"] == 1).all()


def test_p_values(conformal, path):
    X = enlarged(SAMPLES["table"])
    frame = pd.DataFrame(X, columns=conformal.feature_names_in_)
    outputs = run(session_of(path), X)
    assert list(outputs) == ["score", "decision", "label", "p_value"]
    expected = conformal.p_value(frame)
    # Rounding may exchange a score and that of the same sample in the calibration set.
    n = len(conformal.calibration_scores_)
    assert np.abs(outputs["p_value"] - expected).max() < 1.5 / (n + 1)
    assert (outputs["p_value"] == expected).mean() > 0.5
    assert len(set(expected)) > 20
    agrees = outputs["p_value"] <= conformal.false_alarm_rate
    np.testing.assert_array_equal(outputs["label"] == -1, agrees)
    X[0, 0] = np.nan
    assert run(session_of(path), X[:1])["p_value"] == 1 / (n + 1)
    (inner,) = conformal.estimators_
    exact = traced(inner, X[8:], conformal.calibration_scores_)["p_value"]
    assert np.abs(exact - expected[8:]).max() < 1.5 / (n + 1)
    assert (exact == expected[8:]).mean() > 0.5


# The graph, without an export -------------------------------------------------------


@pytest.mark.parametrize("cls", DETECTORS, ids=lambda c: c.__name__)
def test_floats_beyond_the_range(cls):
    detector = fitted(cls, "floats")
    X = enlarged(SAMPLES["floats"])
    assert_close(traced(detector, X)["score"], detector.score_samples(X))


@pytest.mark.parametrize("scaling", ["minmax", "standard", None])
def test_scaling_of_tables(scaling):
    X = enlarged(SAMPLES["table"])
    detector = short(HistoryAD, scaling=scaling).fit(SAMPLES["table"])
    assert_close(traced(detector, X)["score"], detector.score_samples(X))


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.PixelRangeWarning")
@pytest.mark.parametrize("scaling", ["minmax", "standard"])
def test_rare_pixels_are_cut_off(scaling):
    X = SAMPLES["floats"].copy()
    X[3, 1, 2, 2] = 1e3
    detector = short(HistoryAD, scaling=scaling).fit(X)
    assert detector.scaler_.clip_ is not None
    X = enlarged(X)
    assert_close(traced(detector, X)["score"], detector.score_samples(X))


def test_flat_images_of_bytes_without_scaling():
    X = SAMPLES["bytes"].reshape(40, -1)
    detector = short(HistoryAD, image_shape=(1, 4, 6), scaling=None).fit(X)
    assert _Graph(detector).example(flat=True)[0].dtype == torch.uint8
    assert_close(traced(detector, X)["score"], detector.score_samples(X))


def test_a_file_of_an_older_version_has_no_range(detector):
    X = enlarged(SAMPLES["table"])
    old = shallow_copy(detector)
    del old._range
    assert_close(traced(old, X)["score"], old.score_samples(X))


@pytest.mark.parametrize("kind", ["table", "bytes"])
@pytest.mark.parametrize("cls", DETECTORS, ids=lambda c: c.__name__)
def test_copies_for_the_host_have_the_same_scores(cls, kind):
    detector = fitted(cls, kind)
    assert _on_host(detector) is detector
    there = shallow_copy(detector)
    there.net_ = shallow_copy(detector.net_)
    there.net_.device = "meta"  # by name alone
    copy, X = _on_host(there), SAMPLES[kind]
    assert copy.net_.device == "cpu"
    weights = {
        p.data_ptr() for m in _modules(detector).values() for p in m.parameters()
    }
    copied = {p.data_ptr() for m in _modules(copy).values() for p in m.parameters()}
    assert weights.isdisjoint(copied)
    np.testing.assert_array_equal(copy.score_samples(X), detector.score_samples(X))


# Errors -----------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self, n_columns):
        super().__init__()
        self.layer = nn.Linear(n_columns, 1)

    def forward(self, x):
        y = self.layer(x)
        return y + 1 if y.sum() > 0 else y


class CountingRows(Branching):
    def forward(self, x):
        return self.layer(x).view(len(x), -1)


class WithoutOperator(Branching):
    def forward(self, x):
        return self.layer(x) + x.kthvalue(2, dim=1, keepdim=True).values


@pytest.mark.parametrize("own", [Branching, CountingRows, WithoutOperator])
def test_a_network_that_torch_cannot_export_is_named(own, tmp_path):
    detector = short(
        HistoryAD, architecture={"critic": lambda shape: own(shape[0])}, n_estimators=2
    ).fit(SAMPLES["table"])
    with pytest.raises(ValueError, match=rf"export {own.__name__} \(detector_\.critic"):
        export_onnx(detector, tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


def test_refusals(detector, tmp_path):
    path, X = tmp_path / "detector.onnx", SAMPLES["table"]
    with pytest.raises(NotFittedError):
        export_onnx(HistoryAD(), path)
    with pytest.raises(NotFittedError):
        export_onnx(ConformalDetector(HistoryAD()), path)
    with pytest.raises(TypeError, match=r"pipeline\[-1\]"):
        export_onnx(make_pipeline(StandardScaler(), detector), path)
    forest = ConformalDetector(IsolationForest(), calibration=0.5)
    with pytest.raises(TypeError, match="around IsolationForest is no detector"):
        export_onnx(forest.fit(X), path)
    folds = ConformalDetector(detector, calibration=2).fit(X)
    with pytest.raises(ValueError, match="2 detectors, one for each fold"):
        export_onnx(folds, path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export_onnx(detector, tmp_path)
    with pytest.raises(FileNotFoundError, match="folder that does not exist"):
        export_onnx(detector, tmp_path / "no" / "detector.onnx")
    with pytest.raises(TypeError, match="path is of type int"):
        export_onnx(detector, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(detector, missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*skanomaly\[onnx\]"):
        export_onnx(detector, tmp_path / "detector.onnx")
