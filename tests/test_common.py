"""The common contract, tested on all detectors of the package."""

import copy
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from functools import partial
from inspect import signature

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import Callback

import skanomaly
from skanomaly._base import BaseDeepDetector
from skanomaly.engine import AlternatingNet
from skanomaly.exceptions import StopTraining
from skanomaly.utils._kinds import IMAGE, TABLE
from skanomaly.utils._scaling import fit_by_parts, make_scaler

DETECTORS = [
    cls
    for name in skanomaly.__all__
    if isinstance(cls := getattr(skanomaly, name), type)
    and issubclass(cls, BaseDeepDetector)
]

# The common tests fit hundreds of times: short runs, small networks.
SHORT = {
    "ADRA": {"max_epochs": 3, "pretrain_epochs": 1, "width": 8, "n_estimators": 2},
    "AABiGAN": {"max_epochs": 3, "width": 8, "n_estimators": 2},
    "HistoryAD": {"max_epochs": 3, "detector_epochs": 2, "width": 8},
    "JointEncoderGAN": {"max_epochs": 3, "width": 8, "n_estimators": 2},
    "TransferAD": {
        "max_epochs": 3,
        "transfer_epochs": 2,
        "width": 8,
        "n_estimators": 2,
    },
}
# Without these, a huge `lr` is refused: its product with the decay is checked first.
DIVERGING = {"ADRA": {"weight_decay": 0.0}}
# Learning rates besides `lr`, so small that all players stand still.
FROZEN = {
    "ADRA": {},
    "AABiGAN": {},
    "HistoryAD": {"detector_lr": 1e-12},
    "JointEncoderGAN": {},
    "TransferAD": {},
}
# AUROC on the toy data that a detector has to reach with its defaults.
TOY_AUROC = {
    "ADRA": 0.85,
    "AABiGAN": 0.85,
    "HistoryAD": 0.85,
    "JointEncoderGAN": 0.85,
    "TransferAD": 0.85,
}

# Expected here: short trainings cover little, and scikit-learn's checks pass labels
# without a -1, and no domains.
pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:No sample is taken as a known:UserWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]

GENERATORS = [cls for cls in DETECTORS if hasattr(cls, "sample")]
STAGED = [cls for cls in DETECTORS if "memory" in cls().get_params()]

every_staged_detector = pytest.mark.parametrize("cls", STAGED, ids=lambda c: c.__name__)
every_detector = pytest.mark.parametrize("cls", DETECTORS, ids=lambda c: c.__name__)


def short(cls, **params):
    return cls(**{"random_state": 0, **SHORT[cls.__name__], **params})


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)


def test_all_detectors_are_found():
    names = {cls.__name__ for cls in DETECTORS}
    assert {"ADRA", "AABiGAN", "HistoryAD", "JointEncoderGAN", "TransferAD"} <= names


@parametrize_with_checks([short(cls) for cls in DETECTORS])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@every_detector
def test_better_than_chance_with_the_defaults(cls, toy):
    X_train, X_test, y_test = toy
    detector = cls(random_state=0).fit(X_train)
    assert (
        roc_auc_score(y_test, detector.score_samples(X_test))
        > (TOY_AUROC[cls.__name__])
    )
    assert np.mean(detector.predict(X_train) == 1) > 0.8


@pytest.mark.parametrize("address", ["https://example.org/docs/", None])
@every_detector
def test_the_html_representation_links_to_the_documentation(cls, address, monkeypatch):
    """Without a published documentation there is no link, least of all a wrong one."""
    about = Message()
    about["Project-URL"] = "Source, https://example.org/source"
    if address:
        about["Project-URL"] = f"Documentation, {address}"
    monkeypatch.setattr("skanomaly.utils._documentation.metadata", lambda name: about)
    link = f"https://example.org/docs/generated/skanomaly.{cls.__name__}.html"
    assert cls()._get_doc_link() == (link if address else "")
    html = cls()._repr_html_()
    assert (link in html) == bool(address)
    assert 'href="https://scikit-learn.org' not in html


# Scores ------------------------------------------------------------------------------


@every_detector
def test_scores_decisions_and_predictions_agree(cls, X):
    detector = short(cls).fit(X)
    scores = detector.score_samples(X)
    assert scores.dtype == np.float64
    assert scores.shape == (len(X),)
    assert np.ptp(scores) > 0
    decisions = detector.decision_function(X)
    np.testing.assert_array_equal(decisions, scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(X), np.where(decisions < 0, -1, 1))


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_the_score_of_a_sample_does_not_depend_on_the_others(cls, kind, request):
    data = request.getfixturevalue(kind)
    detector = short(cls).fit(data)
    scores = detector.score_samples(data)
    alone = np.concatenate([detector.score_samples(row[None]) for row in data[:9]])
    np.testing.assert_array_equal(scores[:9], alone)
    np.testing.assert_array_equal(scores[::-1], detector.score_samples(data[::-1]))
    many = np.concatenate([data] * 20)
    np.testing.assert_array_equal(np.tile(scores, 20), detector.score_samples(many))


@every_detector
def test_contamination_sets_the_share_of_training_outliers(cls, X):
    assert np.sum(short(cls, contamination=0.1).fit_predict(X) == -1) == 8
    alike = short(cls, contamination=0.1, calibration=None).fit(X)
    assert np.sum(alike.predict(X) == -1) == 8
    none = short(cls, contamination=0).fit(X)
    assert np.sum(none.predict(X) == -1) == 0
    assert none.offset_ == none.score_samples(X).min()


@every_detector
def test_fit_predict_equals_fit_and_predict_with_labels_too(cls, X):
    y = np.repeat([-1, 1], [8, 72])
    expected = short(cls).fit(X, y).predict(X)
    np.testing.assert_array_equal(short(cls).fit_predict(X, y), expected)
    if cls._reads_labels:
        unmarked = short(cls).fit(X).score_samples(X)
        assert not np.array_equal(short(cls).fit(X, y).score_samples(X), unmarked)


# Images -------------------------------------------------------------------------------


@every_detector
def test_pixels_of_another_scale_give_a_warning(cls, images):
    detector = short(cls).fit(images)
    detector.score_samples(images.astype(np.float32))
    with pytest.warns(UserWarning, match=r"holds floats from 0 to 1, .*bytes"):
        detector.score_samples(images / images.max())
    detector = short(cls).fit(images / 255)
    with pytest.warns(UserWarning, match="holds bytes.*fitted on floats"):
        detector.score_samples(images)
    bits = (images > 127).astype(np.uint8)
    short(cls).fit(bits.astype(np.float32)).score_samples(bits)
    detector = short(cls, warm_start=True).fit(images)
    with pytest.warns(UserWarning, match=r"holds floats from 0 to 1, .*bytes"):
        detector.fit(images / images.max())


@every_detector
@pytest.mark.parametrize(
    "hold",
    [
        torch.from_numpy,
        list,
        lambda X: pd.DataFrame(X.reshape(len(X), -1)),
        lambda X: pd.DataFrame(X.reshape(len(X), -1)).astype("UInt8"),
        lambda X: pl.DataFrame(X.reshape(len(X), -1)),
    ],
    ids=["tensor", "list", "pandas", "pandas, with gaps", "polars"],
)
def test_uint8_images_are_recognised_in_all_containers(cls, hold, images):
    held = hold(images // 2)
    shape = {} if len(np.shape(held)) > 2 else {"image_shape": images.shape[1:]}
    detector = short(cls, **shape).fit(held)
    scores = detector.score_samples(held)
    assert detector.scaler_.bytes_
    expected = short(cls).fit(images // 2).score_samples(images // 2)
    np.testing.assert_array_equal(scores, expected)


@every_detector
def test_channels_last_raise_an_error(cls, images):
    last = np.moveaxis(np.repeat(images, 3, axis=1), 1, -1)
    with pytest.raises(ValueError, match="Channels come first"):
        short(cls).fit(last)
    with pytest.raises(ValueError, match=r"Images of shape \(12, 1, 9\), but"):
        short(cls).fit(images).predict(images.transpose(0, 3, 1, 2))


@every_detector
def test_samples_without_a_finite_score_are_outliers(cls, X):
    detector = short(cls, scaling=None).fit(X)
    far = [[1e300, -1e300, 1e300, 1.0]]
    assert detector.score_samples(far) == [np.finfo(np.float32).min]
    assert detector.predict(far) == [-1]


@every_detector
def test_images_with_negative_strides(cls, images):
    detector = short(cls).fit(np.ascontiguousarray(images[::-1]))
    expected = detector.score_samples(images)
    other = short(cls).fit(images[::-1])
    np.testing.assert_array_equal(other.score_samples(images), expected)
    np.testing.assert_array_equal(other.score_samples(images[::-1]), expected[::-1])


@every_detector
def test_a_wrong_image_shape_raises_an_error(cls, images):
    with pytest.raises(ValueError, match=r"\(1, 9, 12\), .* image_shape=\(1, 12, 9\)"):
        short(cls, image_shape=(1, 12, 9)).fit(images)
    short(cls, image_shape=(1, 9, 12)).fit(images)


@pytest.mark.parametrize("n_samples", [0, -1, 1.5])
@pytest.mark.parametrize("cls", GENERATORS, ids=lambda c: c.__name__)
def test_an_invalid_n_samples_raises_an_error(cls, X, n_samples):
    with pytest.raises((TypeError, ValueError), match="n_samples"):
        short(cls).fit(X).sample(n_samples)


# Randomness --------------------------------------------------------------------------


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_a_seed_makes_fits_equal_to_the_bit(cls, kind, request, torch_and_numpy_state):
    data = request.getfixturevalue(kind)
    detector = short(cls)
    first = detector.fit(data).score_samples(data)
    np.testing.assert_array_equal(detector.fit(data).score_samples(data), first)
    other = clone(detector).fit(data).score_samples(data)
    np.testing.assert_array_equal(other, first)
    different = short(cls, random_state=1).fit(data).score_samples(data)
    assert not np.array_equal(different, first)


@every_detector
def test_without_a_seed_fits_differ(cls, X, torch_and_numpy_state):
    one, two = (short(cls, random_state=None).fit(X).score_samples(X) for _ in "ab")
    assert not np.array_equal(one, two)


# Copies ------------------------------------------------------------------------------


@every_detector
def test_pickle_joblib_and_deepcopy_keep_the_scores(cls, X, tmp_path):
    detector = short(cls).fit(X)
    scores = detector.score_samples(X)
    joblib.dump(detector, tmp_path / "d.joblib")
    copies = [
        pickle.loads(pickle.dumps(detector)),
        joblib.load(tmp_path / "d.joblib"),
        copy.deepcopy(detector),
    ]
    for other in copies:
        np.testing.assert_array_equal(other.score_samples(X), scores)


@every_detector
def test_a_pickle_is_read_in_another_process(cls, X, tmp_path):
    detector = short(cls).fit(X)
    joblib.dump((detector, X), tmp_path / "d.joblib")
    code = (
        "import joblib, numpy, sys; d, X = joblib.load(sys.argv[1]);"
        "numpy.save(sys.argv[2], d.score_samples(X))"
    )
    files = [str(tmp_path / "d.joblib"), str(tmp_path / "s.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    np.testing.assert_array_equal(np.load(files[1]), detector.score_samples(X))


@every_detector
def test_training_data_is_not_in_the_pickle(cls):
    X = np.random.default_rng(0).normal(size=(20000, 4))
    steps = {"max_epochs": 1}
    if "detector_epochs" in cls().get_params():
        steps["detector_epochs"] = 0
    small = len(pickle.dumps(short(cls, **steps).fit(X[:5000])))
    large = len(pickle.dumps(short(cls, **steps).fit(X)))
    assert large - small < X[:5000].nbytes / 4


# Kinds of input ----------------------------------------------------------------------


@every_detector
def test_data_frames_keep_their_names(cls, X):
    frame = pd.DataFrame(X, columns=list("abcd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "TransferAD was given no domains")
        warnings.simplefilter("ignore", skanomaly.exceptions.FalseAlarmWarning)
        detector = short(cls).fit(frame)
        scores = detector.score_samples(frame)
    assert list(detector.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(scores, short(cls).fit(X).score_samples(X))
    with pytest.raises(ValueError, match="order"):
        detector.score_samples(frame[["b", "a", "c", "d"]])


@every_detector
def test_unusual_arrays_work(cls, X, tmp_path):
    reference = short(cls).fit(X).score_samples(X)
    frozen = X.copy()
    frozen.flags.writeable = False
    np.save(tmp_path / "X.npy", X)
    odd = [np.asfortranarray(X), frozen, np.load(tmp_path / "X.npy", mmap_mode="r")]
    for data in odd:
        scores = short(cls).fit(data).score_samples(data)
        np.testing.assert_array_equal(scores, reference)
    assert np.isfinite(short(cls).fit(X.astype(np.float32)).score_samples(X)).all()
    assert np.isfinite(short(cls).fit((X * 9).astype(int)).score_samples(X)).all()


@every_detector
def test_degenerate_tables_work(cls, X):
    constant = X.copy()
    constant[:, 1] = 7
    repeated = np.repeat(X[:4], 10, axis=0)
    for data in (constant, repeated, X[:2], X[:, :1]):
        assert np.isfinite(short(cls).fit(data).score_samples(data)).all()
    with pytest.warns(skanomaly.exceptions.ConstantScoresWarning):
        detector = short(cls).fit(np.zeros((5, 2)))
    assert np.isfinite(detector.score_samples(np.ones((5, 2)))).all()


@every_detector
def test_columns_of_any_unit_are_scaled(cls, X):
    scores = short(cls).fit(X).score_samples(X)
    moved = X * np.array([1e-6, 1.0, 1e6, 1.0]) + np.array([0, 1e6, 0, -5])
    rescaled = short(cls).fit(moved).score_samples(moved)
    np.testing.assert_allclose(rescaled, scores, rtol=1e-2, atol=1e-2)


@every_detector
def test_fit_sets_the_scaler(cls, X):
    for scaling in ("auto", "minmax", "standard", None):
        detector = short(cls, scaling=scaling).fit(X)
        assert (detector.scaler_ is None) == (scaling is None)
    low, high = short(cls, scaling="minmax").fit(X).scaler_.feature_range
    assert (low, high) == (-1, 1)


@every_detector
def test_images_of_many_types_and_shapes(cls, images):
    reference = short(cls).fit(images).score_samples(images)
    assert short(cls).fit(images).image_shape_ == (1, 9, 12)
    flat = images.reshape(len(images), -1)
    by_hint = short(cls, image_shape=(1, 9, 12)).fit(flat)
    np.testing.assert_array_equal(by_hint.score_samples(flat), reference)
    for data in (
        np.asfortranarray(images),
        images / 255.0,
        images.astype(np.float32),
        np.repeat(images, 3, axis=1),
        images[:, :, :4, :5],
    ):
        detector = short(cls).fit(data)
        assert np.isfinite(detector.score_samples(data)).all()


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_a_memory_map_larger_than_the_device_is_streamed(
    cls, kind, request, monkeypatch
):
    data = request.getfixturevalue(kind)
    reference = short(cls).fit(data).score_samples(data)
    monkeypatch.setattr("skanomaly.engine._dataset.HOST_BYTES", 100)
    scores = short(cls).fit(data).score_samples(data)
    np.testing.assert_allclose(scores, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaling", ["auto", "minmax", "standard"])
@pytest.mark.parametrize("kind", ["X", "images", "floats"])
def test_scalers_fitted_in_parts_equal_those_fitted_at_once(
    scaling, kind, X, images, monkeypatch
):
    data = {"X": X, "images": images, "floats": images.astype(np.float32)}[kind]
    chosen = np.arange(len(data)) % 3 > 0
    whole = make_scaler(scaling, TABLE if kind == "X" else IMAGE).fit(data[chosen])
    monkeypatch.setattr("skanomaly.utils._parts._AT_ONCE", 7 * data[0].size)
    parts = make_scaler(scaling, TABLE if kind == "X" else IMAGE)
    fit_by_parts(parts, data, chosen)
    np.testing.assert_allclose(parts.transform(data), whole.transform(data), 1e-5, 1e-5)


def test_constant_pixels_become_zero(images):
    for kind in (np.uint8, np.float32):
        data = np.repeat(images, 2, axis=1).astype(kind)
        data[:, 1] = 7
        scaled = make_scaler("standard", IMAGE).fit(data).transform(data)
        np.testing.assert_allclose(scaled[:, 1], 0, atol=1e-6)
        assert scaled[:, 0].std() == pytest.approx(1, rel=1e-4)
    grey = np.full((5, 1, 4, 4), 0.3, np.float32)
    scaled = make_scaler("minmax", IMAGE).fit(grey).transform(grey)
    np.testing.assert_allclose(scaled, 0, atol=1e-6)


# Bad input ---------------------------------------------------------------------------


def with_value(X, value):
    X = X.copy()
    X[3, 1] = value
    return X


BAD_INPUT = {
    "nan": (lambda X: with_value(X, np.nan), "NaN"),
    "inf": (lambda X: with_value(X, np.inf), "infinity"),
    "one sample": (lambda X: X[:1], "minimum of 2"),
    "no columns": (lambda X: X[:, :0], r"0 feature\(s\)"),
    "text": (lambda X: X.astype(str).astype(object) + "x", "text or categories"),
    "complex": (lambda X: X + 1j, "Complex"),
    "one dimension": (lambda X: X[:, 0], "Reshape your data"),
    "grey images without channel axis": (lambda X: X[:, None], r"X\[:, None\]"),
}


@every_detector
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_raises_an_error_and_changes_nothing(cls, X, case):
    spoil, message = BAD_INPUT[case]
    unfitted = short(cls)
    with pytest.raises(ValueError, match=message):
        unfitted.fit(spoil(X))
    assert vars(unfitted).keys() == unfitted.get_params().keys()

    fitted = short(cls).fit(X)
    scores = fitted.score_samples(X)
    with pytest.raises(ValueError, match=message):
        fitted.fit(spoil(X))
    np.testing.assert_array_equal(fitted.score_samples(X), scores)


@every_detector
def test_samples_of_another_shape_raise_an_error(cls, X, images):
    table, pictures = short(cls).fit(X), short(cls).fit(images)
    with pytest.raises(ValueError, match="3 features"):
        table.score_samples(X[:, :3])
    with pytest.raises(ValueError, match=r"4 dimensions.*fitted on \(n_samples, n_f"):
        table.score_samples(images)
    with pytest.raises(ValueError, match=r"\(1, 9, 11\).*\(1, 9, 12\)"):
        pictures.score_samples(images[..., :11])
    with pytest.raises(NotFittedError):
        short(cls).score_samples(X)


@every_detector
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lr": 0}, "'lr' parameter"),
        ({"max_epochs": -1}, "'max_epochs' parameter"),
        ({"batch_size": 1.5}, "'batch_size' parameter"),
        ({"contamination": 0.6}, "'contamination' parameter"),
        ({"scaling": "robust"}, "'scaling' parameter"),
        ({"precision": "float16"}, "'precision' parameter"),
        ({"device": "tpu"}, "device='tpu' is none of"),
        ({"device": "cuda:97"}, "torch sees"),
        ({"architecture": "conv"}, "architecture='conv'"),
        ({"image_shape": (1, 2, 3)}, "the number of columns"),
        ({"image_shape": (1, -2, -2)}, "integers with a product of 4"),
        ({"image_shape": (1.0, 2, 2)}, "integers with a product of 4"),
        ({"image_shape": ("a", "b", "c")}, "integers with a product of 4"),
        ({"architecture": {"painter": None}}, "'painter'"),
    ],
)
def test_bad_parameters_raise_an_error(cls, X, params, message):
    with pytest.raises(ValueError, match=message):
        short(cls, **params).fit(X)


@every_detector
def test_a_network_instead_of_a_function_raises_an_error(cls, X):
    for role in cls._roles:
        with pytest.raises(ValueError, match=f"'{role}'.*instance of Linear.*function"):
            short(cls, architecture={role: torch.nn.Linear(4, 4)}).fit(X)


class ScalarNetwork(torch.nn.Module):
    """A user's network with one number per sample, flat or as a column."""

    def __init__(self, *sizes, flat):
        super().__init__()
        self.flat, self.linear = flat, torch.nn.Linear(1, 1)

    def forward(self, *inputs):
        means = sum(rows.flatten(1).mean(1, keepdim=True) for rows in inputs)
        values = self.linear(means)
        return values[:, 0] if self.flat else values


SCALAR_ROLES = "critic", "classifier", "discriminator_xz", "discriminator_xx"


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_one_number_per_sample_may_be_flat_or_a_column(cls, kind, request):
    data = request.getfixturevalue(kind)
    roles = [role for role in cls._roles if role in SCALAR_ROLES]
    if not roles:
        pytest.skip("no network of this method ends on one number")
    takes_source = "X_source" in signature(cls.fit).parameters
    domains = {"X_source": data} if takes_source else {}
    scores = []
    for flat in (True, False):
        own = dict.fromkeys(roles, partial(ScalarNetwork, flat=flat))
        detector = short(cls, architecture=own).fit(data, **domains)
        scores.append(detector.score_samples(data))
    np.testing.assert_array_equal(*scores)


@every_detector
def test_images_too_small_for_the_networks_raise_an_error(cls):
    with pytest.raises(ValueError, match=r"3 x 9.*at least 4"):
        short(cls).fit(np.zeros((10, 1, 3, 9)))


# With scikit-learn -------------------------------------------------------------------


@every_detector
def test_pipelines_searches_and_cross_validation(cls, toy):
    _, X, y = toy
    pipeline = make_pipeline(MinMaxScaler(), short(cls))
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    scores = cross_val_score(pipeline, X, y, scoring="roc_auc", cv=folds)
    assert np.isfinite(scores).all()
    name = cls.__name__.lower()
    search = GridSearchCV(
        pipeline, {f"{name}__batch_size": [16, 32]}, scoring="roc_auc", cv=folds
    )
    assert search.fit(X, y).best_params_[f"{name}__batch_size"] in (16, 32)
    assert search.decision_function(X).shape == y.shape


@every_detector
def test_parameters_that_were_changed_after_fit_are_checked(cls, X):
    detector = short(cls).fit(X)
    detector.predict(X)  # parameters that did not change are not checked again
    detector.set_params(contamination=3)
    for _ in range(2):
        with pytest.raises(ValueError, match="'contamination' parameter"):
            detector.predict(X)


@every_detector
def test_changing_contamination_after_fit_gives_a_warning(cls, X):
    """It used to be without effect, silently."""
    detector = short(cls, contamination=0.1).fit(X)
    expected = detector.predict(X)
    detector.set_params(contamination=0.2).score_samples(X)
    changed = r"changed to 0.2 after fit.*threshold for 0.1"
    with pytest.warns(UserWarning, match=changed):
        np.testing.assert_array_equal(detector.predict(X), expected)
    flagged = detector.fit(X).p_value(X) <= 0.2
    np.testing.assert_array_equal(detector.predict(X) == -1, flagged)
    detector.set_params(contamination=0.3).offset_ = expected.min() - 1.0
    detector.predict(X)  # set by the user, it is that of no contamination


@every_detector
def test_constant_training_scores_give_a_warning(cls, X):
    for rows in (np.ones_like(X), 1e-200 * X):
        with pytest.warns(
            skanomaly.exceptions.ConstantScoresWarning, match="All 61 training samples"
        ):
            short(cls).fit(rows)


@every_detector
@pytest.mark.parametrize("device", ["cpu:0", "cpu"])
def test_names_of_the_cpu(cls, X, device, tmp_path):
    """With a number, copies used to fail."""
    detector = short(cls, device=device).fit(X)
    skanomaly.save(detector, tmp_path / "d")
    copies = [
        pickle.loads(pickle.dumps(detector)),
        copy.deepcopy(detector),
        skanomaly.load(tmp_path / "d"),
    ]
    for other in copies:
        assert other.device == device
        np.testing.assert_array_equal(other.score_samples(X), detector.score_samples(X))


@every_detector
def test_functions_that_return_no_network_raise_an_error(cls, X):
    for role in cls._roles:
        detector = short(cls, architecture={role: lambda *sizes: 3})
        with pytest.raises(ValueError, match=f"'{role}'.* returned a int"):
            detector.fit(X)
        detector.set_params(architecture={role: lambda: 3})
        with pytest.raises(ValueError, match=f"'{role}'.* when it was called with"):
            detector.fit(X)


@every_detector
def test_images_without_pixels_or_channels_raise_an_error(cls, images):
    for none in (images[:, :0], images[..., :0]):
        with pytest.raises(ValueError, match=r"X has shape \(40, .*samples are empty"):
            short(cls).fit(none)


@every_detector
def test_image_shape_lets_image_detectors_follow_table_steps(cls, images):
    flat = images.reshape(len(images), -1)
    pipeline = make_pipeline(MinMaxScaler(), short(cls, image_shape=(1, 9, 12)))
    assert pipeline.fit(flat).score_samples(flat).shape == (len(flat),)


# During training ---------------------------------------------------------------------


@every_detector
def test_history_has_a_record_per_epoch(cls, X):
    detector = short(cls).fit(X)
    assert detector.n_iter_ == len(detector.history_) > 0
    for record in detector.history_:
        assert {"stage", "epoch", "duration"} < record.keys()
        assert all(np.isfinite(v) for k, v in record.items() if k.endswith("_loss"))


@every_detector
def test_nothing_is_printed_unless_asked(cls, X, capfd):
    short(cls).fit(X)
    assert capfd.readouterr() == ("", "")
    short(cls, verbose=1).fit(X)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "epoch" in printed.err
    assert "loss" in printed.err
    assert "100%" in printed.err


class InterruptAt(Callback):
    def __init__(self, step):
        self.step = step
        self.seen = 0

    def on_batch_end(self, net, **kwargs):
        self.seen += 1
        if self.seen == self.step:
            raise KeyboardInterrupt


@every_detector
@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupt_leaves_a_usable_detector_on_request(cls, X, step):
    detector = short(
        cls, callbacks=[InterruptAt(step)], batch_size=24, on_interrupt="keep"
    )
    with pytest.warns(skanomaly.exceptions.FitInterruptedWarning):
        detector.fit(X)
    assert detector.interrupted_
    assert np.isfinite(detector.score_samples(X)).all()
    assert np.isin(detector.predict(X), [-1, 1]).all()
    assert not detector.set_params(callbacks=None).fit(X).interrupted_


@every_detector
@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interrupt_is_raised_and_changes_nothing(cls, X, step):
    detector = short(cls, batch_size=24).fit(X)
    before, scores = dict(vars(detector)), detector.score_samples(X)
    detector.set_params(callbacks=[InterruptAt(step)])
    with pytest.raises(KeyboardInterrupt):
        detector.fit(X)
    assert vars(detector) | {"callbacks": None} == before
    np.testing.assert_array_equal(detector.score_samples(X), scores)


@every_detector
def test_an_interrupt_ends_a_whole_search(cls, X, monkeypatch):
    """It ended a single fit, which the search then ranked as a complete one."""
    monkeypatch.setattr(AlternatingNet, "_train_on_batch", interrupted)
    search = GridSearchCV(
        short(cls), {"batch_size": [16, 32]}, scoring=lambda *_: 0.0, cv=2
    )
    with pytest.raises(KeyboardInterrupt):
        search.fit(X)
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(short(cls), X, scoring=lambda *_: 0.0, cv=2)
    assert not hasattr(search, "best_params_")


@every_staged_detector
def test_an_interrupted_stage_is_not_stored(cls, X, tmp_path):
    plain = short(cls).fit(X).score_samples(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlternatingNet, "_train_on_batch", interrupted)
        with pytest.warns(skanomaly.exceptions.FitInterruptedWarning):
            short(cls, memory=str(tmp_path), on_interrupt="keep").fit(X)
        with pytest.raises(KeyboardInterrupt):
            short(cls, memory=str(tmp_path)).fit(X)
    again = short(cls, memory=str(tmp_path)).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), plain)


def interrupted(net, batch):
    raise KeyboardInterrupt


@every_staged_detector
def test_on_interrupt_is_not_part_of_the_key_of_a_stage(cls, X, tmp_path, monkeypatch):
    plain = short(cls, memory=str(tmp_path)).fit(X).score_samples(X)
    detector = short(cls, memory=str(tmp_path), on_interrupt="keep").fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), plain)
    folders = list(tmp_path.rglob("output.pkl"))
    assert len(folders) == 1
    later = [n for n in vars(detector).values() if isinstance(n, AlternatingNet)]
    assert all(net.on_interrupt == "keep" for net in later)


@every_staged_detector
def test_a_stage_with_callbacks_is_not_stored(cls, X, tmp_path):
    plain = short(cls).fit(X).score_samples(X)
    short(cls, memory=str(tmp_path), callbacks=[StopAtOnce()]).fit(X)
    again = short(cls, memory=str(tmp_path)).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), plain)


class StopAtOnce(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise StopTraining


@every_detector
def test_fit_works_with_metadata_routing(cls, X):
    with config_context(enable_metadata_routing=True):
        assert short(cls).fit(X).score_samples(X).shape == (len(X),)


@every_detector
def test_divergence_changes_nothing(cls, X):
    detector = short(cls, **DIVERGING.get(cls.__name__, {})).fit(X)
    scores = detector.score_samples(X)
    detector.set_params(lr=1e30)
    with pytest.raises(skanomaly.exceptions.TrainingDivergedError, match="`lr`"):
        detector.fit(X)
    detector.set_params(lr=1e-3)
    np.testing.assert_array_equal(detector.score_samples(X), scores)


@every_detector
def test_divergence_in_a_warm_start_changes_nothing(cls, X):
    detector = short(cls, warm_start=True, **DIVERGING.get(cls.__name__, {})).fit(X)
    expected = copy.deepcopy(detector).fit(X).score_samples(X)
    detector.set_params(lr=1e30)
    with pytest.raises(skanomaly.exceptions.TrainingDivergedError, match="`lr`"):
        detector.fit(X)
    detector.set_params(lr="auto").fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), expected)


@every_detector
def test_a_warm_start_needs_two_samples(cls, X):
    detector = short(cls, warm_start=True).fit(X)
    with pytest.raises(ValueError, match="minimum of 2"):
        detector.fit(X[:1])


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_numpy_integers_are_accepted(cls, kind, request):
    data, params = request.getfixturevalue(kind), cls().get_params()
    numbers = {"batch_size": 16, "width": 8, "latent_dim": 3, "max_epochs": 1}
    given = {name: n for name, n in numbers.items() if name in params}
    plain = short(cls, **given).fit(data)
    same = short(cls, **{name: np.int64(n) for name, n in given.items()}).fit(data)
    np.testing.assert_array_equal(plain.score_samples(data), same.score_samples(data))


@every_detector
def test_fits_in_threads_equal_sequential_fits(cls, X, torch_and_numpy_state):
    def scores(_):
        return short(cls, max_epochs=1).fit(X).score_samples(X)

    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(scores, range(6)))
    for some in many:
        np.testing.assert_array_equal(some, scores(None))


@every_detector
def test_a_fit_in_another_thread_changes_a_detector_in_one_step(cls, X):
    """Scoring meanwhile used to end in AttributeError or NotFittedError."""
    # The two fits differ in scaling, networks and threshold.
    data, contaminations = (X, 50 * X - 7), (0.1, 0.4)
    known, wrong, done = [], [], []
    for rows, share in zip(data, contaminations, strict=True):
        other = short(cls, max_epochs=1, contamination=share).fit(rows)
        known.append((other.score_samples(X), other.decision_function(X)))
    detector = short(cls, max_epochs=1, contamination=contaminations[0]).fit(data[0])

    def refit():
        for k in range(6):
            detector.set_params(contamination=contaminations[1 - k % 2])
            detector.fit(data[1 - k % 2])
        done.append(True)

    def score():
        while not done:
            scores, decisions = detector.score_samples(X), detector.decision_function(X)
            wrong.extend(
                name
                for name, result, k in (
                    ("score", scores, 0),
                    ("decision", decisions, 1),
                )
                if not any(np.array_equal(result, pair[k]) for pair in known)
            )

    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("ignore")
        jobs = pool.submit(refit), pool.submit(score)
        for job in jobs:
            job.result()
    assert not wrong


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_a_process_may_compute_in_double_precision(cls, kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    expected = short(cls).fit(data)
    torch.set_default_dtype(torch.float64)
    try:
        detector = short(cls).fit(data)
        scores = detector.score_samples(data)
        skanomaly.save(detector, tmp_path / "detector.safetensors")
        loaded = skanomaly.load(tmp_path / "detector.safetensors")
        np.testing.assert_array_equal(loaded.score_samples(data), scores)
        if hasattr(cls, "sample"):
            pair = (d.sample(3, random_state=0) for d in (detector, expected))
            np.testing.assert_array_equal(*pair)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(scores, expected.score_samples(data))


def weights_of(net):
    return [w for name in net.modules for w in getattr(net, f"{name}_").parameters()]


@every_detector
def test_warm_start_continues_the_training(cls, X):
    detector = short(cls, warm_start=True).fit(X)
    first, n_iter = detector.score_samples(X), detector.n_iter_
    steps, stages = detector.net_.step_, [row["stage"] for row in detector.history_]
    detector.fit(X)
    assert detector.n_iter_ == len(detector.history_)
    again = [row["stage"] for row in detector.history_[n_iter:]]
    # A pretrained network is kept; every other stage goes on.
    assert again == [k for k in stages if cls.__name__ != "ADRA" or k == stages[-1]]
    assert detector.net_.step_ == 2 * steps
    assert not np.array_equal(detector.score_samples(X), first)
    with pytest.raises(ValueError, match="features"):
        detector.fit(X[:, :2])
    assert detector.set_params(warm_start=False).fit(X).n_iter_ == n_iter


@every_detector
def test_warm_start_takes_changed_parameters(cls, X):
    detector = short(cls, warm_start=True).fit(X)
    before = [weight.clone() for weight in weights_of(detector.net_)]
    frozen = detector.set_params(lr=1e-12, **FROZEN[cls.__name__]).fit(X)
    after = weights_of(frozen.net_)
    assert len(before) == len(after) > 3
    for one, other in zip(before, after, strict=True):
        pair = [w.numpy(force=True) for w in (one, other)]
        np.testing.assert_allclose(*pair, rtol=1e-6, atol=1e-12)
    with pytest.raises(ValueError, match="warm_start"):
        detector.set_params(width=5).fit(X)


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_precision_bfloat16_trains(cls, kind, request):
    data = request.getfixturevalue(kind)
    detector = short(cls, precision="bfloat16").fit(data)
    assert np.isfinite(detector.score_samples(data)).all()


# Files -------------------------------------------------------------------------------


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_save_and_load_keep_the_detector(cls, kind, request, tmp_path):
    data, path = request.getfixturevalue(kind), tmp_path / "detector.safetensors"
    detector = short(cls, contamination=0.1).fit(data)
    skanomaly.save(detector, path)
    other = skanomaly.load(path)
    np.testing.assert_array_equal(
        other.score_samples(data), detector.score_samples(data)
    )
    np.testing.assert_array_equal(other.predict(data), detector.predict(data))
    assert other.get_params() == detector.get_params()
    assert vars(other).keys() == vars(detector).keys()
    assert other.history_ == detector.history_
    other.set_params(warm_start=True).fit(data)
    assert other.n_iter_ > detector.n_iter_


@every_staged_detector
def test_load_asks_for_parameters_that_no_file_holds(cls, X, tmp_path):
    path, memory = tmp_path / "d.safetensors", joblib.Memory(tmp_path, verbose=0)
    skanomaly.save(short(cls, memory=memory).fit(X), path)
    with pytest.raises(ValueError, match="memory"):
        skanomaly.load(path)
    other = skanomaly.load(path, memory=None, max_epochs=7)
    assert other.memory is None
    assert other.max_epochs == 7


@every_staged_detector
def test_memory_shares_the_first_stage(cls, X, tmp_path):
    plain = short(cls).fit(X).score_samples(X)
    build = partial(short, cls, memory=str(tmp_path))
    for _ in range(2):
        np.testing.assert_array_equal(build().fit(X).score_samples(X), plain)
