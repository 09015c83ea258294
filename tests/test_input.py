"""Detectors with inputs of unusual types, shapes, ranges and values."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.datasets import load_digits
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from test_common import DETECTORS, short

from skanomaly import ADRA, HistoryAD, TransferAD, load, save
from skanomaly._input import _has_channels_last
from skanomaly.exceptions import PixelRangeWarning
from skanomaly.model_selection import LeaveAnomalyKindOut
from skanomaly.utils._kinds import IMAGE
from skanomaly.utils._range import ValueRange
from skanomaly.utils._scaling import fit_by_parts, make_scaler

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]

READERS = [cls for cls in DETECTORS if cls._reads_labels]
every_reader = pytest.mark.parametrize("cls", READERS, ids=lambda c: c.__name__)


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(120, 4))


# Labels --------------------------------------------------------------------


def hint(value):
    return rf"np\.where\(np\.asarray\(y\) == {value}, -1, 1\)\."


TWO_VALUES = {
    "0 and 1": (np.r_[np.ones(8), np.zeros(112)], "1, the rarer value, .*" + hint(1)),
    "integers": (np.repeat([1, 0], [8, 112]), hint(1)),
    "1 and 0": (np.repeat([0, 1], [8, 112]), "0, the rarer value, .*" + hint(0)),
    "1 and 2": (np.repeat([2, 1], [8, 112]), hint(2)),
    "half": (np.arange(120) % 2, "If 1 means anomaly, give " + hint(1)),
    "list": ([1] * 8 + [0] * 112, hint(1)),
    "bool": (np.arange(120) < 8, r"np\.where\(y, -1, 1\)\."),
    "text": (np.array(["odd"] * 8 + ["normal"] * 112), hint("'odd'")),
    "text in a Series": (
        pd.Series(["odd"] * 8 + ["normal"] * 112, dtype=object),
        hint("'odd'"),
    ),
    "text of numbers": (np.array(["-1"] * 8 + ["1"] * 112), hint("'-1'")),
    "-1 and 2": (np.r_[-np.ones(8), np.full(112, 2)], r"has the values -1\.0, 2\.0\."),
}


@every_reader
@pytest.mark.parametrize("case", TWO_VALUES)
def test_two_labels_without_minus_1_raise_an_error(cls, X, case):
    """Known frauds under 0/1, bool or string labels were learned as normal."""
    y, message = TWO_VALUES[case]
    with pytest.raises(ValueError, match=message) as caught:
        short(cls).fit(X, y)
    if "np.where" in str(caught.value):  # which marks the eight, of lists too
        advice = (
            str(caught.value).partition("anomaly, give ")[2].partition(". Without")[0]
        )
        for given in (y, list(y)):
            converted = eval(advice, {"np": np, "y": given})
            assert np.sum(converted == -1) == (60 if case == "half" else 8)


@every_reader
@pytest.mark.parametrize(
    "missing", [np.nan, None, pd.NA], ids=["NaN", "None", "pandas.NA"]
)
def test_missing_labels_raise_an_error(cls, X, missing):
    """With one NaN, all known anomalies were learned as normal samples."""
    y = [-1] * 8 + [1] * 111 + [missing]
    with pytest.raises(ValueError, match="unlabelled sample, has missing"):
        short(cls).fit(X, y)
    series = pd.Series(y, dtype=object if missing is not pd.NA else "Int64")
    with pytest.raises(ValueError, match="unlabelled sample, has missing"):
        short(cls).fit(X, series)


@every_reader
@pytest.mark.parametrize(
    "y",
    [np.ones(40), np.zeros(40), np.arange(40) % 3, np.arange(40) % 2],
    ids=["1", "0", "classes", "as scikit-learn's checks have it"],
)
def test_labels_of_another_meaning_give_a_warning(cls, X, y):
    with pytest.warns(UserWarning, match="No sample is taken as a known anomaly"):
        detector = short(cls).fit(X[:40], y)
    expected = short(cls).fit(X[:40]).score_samples(X)
    np.testing.assert_array_equal(detector.score_samples(X), expected)


def test_two_labels_beside_a_corpus_give_a_warning(X):
    y = np.repeat([1, 0], [8, 112])
    with pytest.warns(UserWarning, match="No sample is taken.*" + hint(1)):
        short(ADRA, corpus=X + 3).fit(X, y)


def test_a_splitter_refuses_missing_labels():
    y = [-1, -1, 1, 1, np.nan]
    splitter = LeaveAnomalyKindOut(["a", "b", "c", "c", "c"])
    with pytest.raises(ValueError, match="unlabelled sample, has missing values"):
        list(splitter.split(np.zeros((5, 1)), y))


# Channels ------------------------------------------------------------------

every_detector = pytest.mark.parametrize("cls", DETECTORS, ids=lambda c: c.__name__)


@every_detector
@pytest.mark.parametrize(
    "shape",
    [(16, 16, 4), (64, 64, 4), (5, 5, 4), (64, 64, 12), (9, 12, 2), (9, 12, 1)],
    ids=str,
)
def test_channels_last_raise_an_error(cls, shape):
    """Images with four or more channels last were read as narrow images."""
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    message = rf"look like {shape[0]} x {shape[1]} with {shape[2]} channels. Channels "
    with pytest.raises(ValueError, match=message + "come first.*give image_shape="):
        short(cls).fit(images)
    with pytest.raises(ValueError, match=message):
        short(cls).fit(list(images))
    flat = images.reshape(12, -1)
    with pytest.raises(ValueError, match=message + r"come first.*give X in that shape"):
        short(cls, image_shape=shape).fit(flat)
    detector = short(cls, image_shape=shape)
    detector._check_rows(images, reset=True)  # says that they come first
    assert detector.image_shape_ == shape
    moved = np.moveaxis(images, -1, 1)
    assert short(cls)._check_rows(moved, reset=True).shape == moved.shape


@pytest.mark.parametrize(
    "shape",
    [
        (4, 64, 64),
        (12, 64, 64),
        (12, 64, 8),
        (64, 8, 8),
        (3, 4, 4),
        (4, 4, 4),
        (1, 64, 12),
        (3, 64, 12),
        (1, 9, 4),
        (3, 8, 64, 64),
        (1, 8, 16, 4),
    ],
    ids=str,
)
def test_channels_first_pass(shape):
    assert not _has_channels_last(shape)


@every_detector
@pytest.mark.parametrize("shape", [(16, 24, 5), (24, 16, 8)], ids=str)
def test_an_ambiguous_order_of_axes_gives_a_warning(cls, shape):
    """Images of 16 x 24 with 5 channels were read as 16 channels in silence."""
    images = np.random.default_rng(0).integers(0, 256, (60, *shape), dtype=np.uint8)
    a, b, c = shape
    message = (
        rf"are read as {a} channels of {b} x {c}: .*give image_shape=\({a}, {b}, {c}\)"
        rf".*{a} x {b} with {c} channels, np\.moveaxis\(X, -1, 1\)"
    )
    with pytest.warns(UserWarning, match=message):
        short(cls)._check_rows(images, reset=True)
    with pytest.warns(UserWarning, match=rf"{a} channels of .*give X in that shape"):
        short(cls, image_shape=shape)._check_rows(images.reshape(60, -1), reset=True)
    short(cls, image_shape=shape)._check_rows(images, reset=True)
    short(cls)._check_rows(np.moveaxis(images, -1, 1), reset=True)


def test_the_error_of_image_shape_explains_channels_last():
    """The error said that image_shape is for flat images, and not the cause."""
    images = np.random.default_rng(0).uniform(size=(60, 8, 8, 4))
    with pytest.raises(
        ValueError, match=r"channels to the front by np\.moveaxis\(X, -1, 1\)"
    ):
        short(ADRA, image_shape=(4, 8, 8)).fit(images)
    with pytest.raises(ValueError, match="leave it out"):
        short(ADRA, image_shape=(8, 4, 8)).fit(images)


def test_clips_with_channels_last_raise_an_error():
    clips = np.random.default_rng(0).integers(0, 256, (8, 8, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"Clips of.*8 x 16 x 16 with 3 channels"):
        short(TransferAD).fit(clips)


# Errors of columns --------------------------------------------------------

WITH_RECONSTRUCTION = [cls for cls in DETECTORS if hasattr(cls, "reconstruct")]


@pytest.mark.parametrize("cls", WITH_RECONSTRUCTION, ids=lambda c: c.__name__)
@pytest.mark.parametrize("scaling", ["auto", "minmax", None])
def test_errors_of_columns_do_not_depend_on_their_units(cls, scaling, X):
    """The hint named the column with the largest unit, whatever was odd."""
    units = np.array([1.0, 1e6, 1e-3, 1.0]) if scaling else np.ones(4)
    detector = short(cls, scaling=scaling).fit(X * units)
    with pytest.raises(ValueError, match="have no pixels") as caught:
        detector.anomaly_map(X * units)
    hint = str(caught.value).partition("Errors of columns are ")[2].rstrip(".")
    odd = X[:1].copy()
    odd[0, 2] += 30  # standard deviations
    errors = eval(hint, {"X": odd * units, "detector": detector})
    assert errors.argmax() == 2
    scaled = odd * units
    reconstruction = detector.reconstruct(scaled)
    if scaling:
        scaled, reconstruction = map(
            detector.scaler_.transform, (scaled, reconstruction)
        )
    np.testing.assert_allclose(
        errors, (scaled - reconstruction) ** 2, rtol=1e-3, atol=1e-6
    )
    assert isinstance(detector.scaler_, StandardScaler) == (scaling == "auto")


# Parameters given as pairs ------------------------------------------------


@pytest.mark.parametrize("beta", [(np.nan, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_a_pair_with_nan_raises_an_error(X, beta):
    """Training diverged, and the learning rate was blamed."""
    with pytest.raises(ValueError, match=r"beta=.* has to be a finite number above 0"):
        short(TransferAD, beta=beta).fit(X)


@pytest.mark.parametrize("pair", [(np.nan, 1.0), (0.0, np.nan), (np.inf, 1.0)])
def test_a_normalization_with_nan_raises_an_error(pair):
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"normalization=.*, all finite"):
        short(ADRA, normalization=pair).fit(images)


# The range of training ----------------------------------------------------


@pytest.fixture
def pictures():
    """Return images with values of [0, 1], dark at their edges."""
    rng = np.random.default_rng(0)
    images = np.zeros((60, 1, 8, 8))
    images[:, :, 2:6, 2:6] = rng.uniform(0.2, 1, size=(60, 1, 4, 4))
    images[0, 0, 3, 3] = 1
    return images


def with_pixel(images, value):
    images = images.copy()
    images[..., 3, 4] = value
    return images


FAR_IMAGES = {
    "three times as bright": lambda X: 3 * X,
    "far too bright": lambda X: 1e6 * X,
    "negative": lambda X: -3 * X,
    "dark offset": lambda X: X - 1,
    "bright offset": lambda X: X + 5,
    "a pixel at -1000": lambda X: with_pixel(X, -1000),
    "a pixel at 1000": lambda X: with_pixel(X, 1000),
    "a pixel at -1e300": lambda X: with_pixel(X, -1e300),
}


@every_detector
@pytest.mark.filterwarnings("ignore:X holds floats")
@pytest.mark.parametrize("contamination", ["auto", 0.1])
def test_images_far_beyond_the_range_are_outliers(cls, contamination, pictures):
    """A critic's scores were so close together that any image stayed an inlier."""
    detector = short(cls, contamination=contamination).fit(pictures)
    changed = {name: make(pictures) for name, make in FAR_IMAGES.items()}
    for name, images in changed.items():
        excess = ValueRange(*detector._range).excess(images)
        assert (detector.predict(images)[excess > 1] == -1).all(), name
        assert np.sum(excess > 1) > 30, name
    _, unit = detector._usual_scores
    detector.offset_ -= 100
    assert detector._usual_scores[1] == unit  # that of fit, whatever is set later
    assert (detector.predict(changed["three times as bright"]) == 1).any()


@pytest.mark.filterwarnings("ignore:X holds floats")
def test_bright_images_score_lower_than_other_digits():
    """Digits three times as bright came before other ones, and were inliers."""
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 1, 8, 8)
    normal = X[y == 3]
    detector = HistoryAD(
        max_epochs=3, detector_epochs=3, n_estimators=1, random_state=0
    ).fit(normal[:90])
    fresh = normal[90:]
    assert (detector.predict(fresh) == 1).all()
    others = detector.score_samples(X[y != 3])
    for far in (3 * fresh, 1e3 * fresh, fresh - 16, fresh + 16):
        scores = detector.score_samples(far)
        assert (scores < np.minimum(detector.offset_, np.quantile(others, 0.05))).all()


@every_detector
def test_table_samples_far_beyond_the_range_are_outliers(cls, X):
    detector = short(cls).fit(X)
    for j in range(4):
        for side in (-1e3, 1e3):
            assert (detector.predict(with_column(X, j, side)) == -1).all()


def with_column(X, j, value):
    far = X.copy()
    far[:, j] = value
    return far


FAR_SAMPLES = {
    "a column far above": lambda X: with_column(X, 1, 50),
    "a column far below": lambda X: with_column(X, 2, -50),
    "all columns": lambda X: 1e3 * X,
    "all columns, mirrored": lambda X: -1e3 * X,
    "an offset": lambda X: X + 100,
    "beyond any scale": lambda X: with_column(X, 0, 1e300),
}


def assert_low_scores(detector, X, changed):
    """Check that changed samples score low, alone and in a batch alike."""
    usual = np.median(detector.score_samples(X))
    scores = detector.score_samples(np.concatenate([X, *changed.values()]))
    assert np.isfinite(scores).all()
    assert np.median(scores[: len(X)]) == usual
    for name, some in zip(changed, np.split(scores, len(changed) + 1)[1:], strict=True):
        assert np.median(some) < usual, name
        assert (some <= usual).mean() > 0.9, name
    for k, far in enumerate(changed.values(), 1):
        assert detector.score_samples(far[:1]) == scores[k * len(X)]


@every_detector
@pytest.mark.filterwarnings("ignore:X holds floats")
@pytest.mark.parametrize(
    ("holds", "scaling"), [("floats", "auto"), ("floats", None), ("bytes", "auto")]
)
def test_images_beyond_the_training_range_score_low(cls, holds, scaling, pictures):
    """A critic found images three times as bright more normal than any other."""
    unit, pictures = 255 if holds == "bytes" else 1.0, pictures[:24]
    X = np.rint(unit * pictures).astype(np.uint8) if holds == "bytes" else pictures
    detector = short(cls, scaling=scaling).fit(X)
    changed = {name: unit * make(pictures) for name, make in FAR_IMAGES.items()}
    assert_low_scores(detector, X.astype(float), changed)


@pytest.mark.filterwarnings("ignore:X holds floats")
def test_clips_beyond_the_training_range_score_low(pictures):
    clips = np.repeat(pictures[:12, :, None], 4, axis=2)
    detector = short(TransferAD, criterion="reconstruction").fit(clips)
    changed = {name: make(clips) for name, make in FAR_IMAGES.items()}
    assert_low_scores(detector, clips, changed)


@every_detector
@pytest.mark.parametrize("scaling", ["auto", "minmax", None])
def test_table_samples_beyond_the_training_range_score_low(cls, scaling, X):
    detector = short(cls, scaling=scaling).fit(X)
    changed = {name: make(X) for name, make in FAR_SAMPLES.items()}
    assert_low_scores(detector, X, changed)


@every_detector
@pytest.mark.parametrize("kind", ["X", "pictures"])
def test_samples_inside_the_range_keep_the_scores_of_the_networks(cls, kind, request):
    data = request.getfixturevalue(kind)
    detector = short(cls).fit(data)
    np.testing.assert_array_equal(
        detector.score_samples(data), detector._scores_of(data)
    )
    low, high = (bound.ravel() for bound in detector._range[:2])
    axes = (0, *range(2, data.ndim))
    width = np.ptp(data, axes)
    assert (low < data.min(axes)).all() & (low > data.min(axes) - width).all()
    assert (high > data.max(axes)).all() & (high < data.max(axes) + width).all()
    del detector._range  # as in older files, without a range
    np.testing.assert_array_equal(
        detector.score_samples(data), detector._scores_of(data)
    )


@every_detector
def test_scores_are_continuous_at_the_bounds_of_the_range(cls, X):
    detector = short(cls).fit(X)
    row = X[:1].copy()
    row[0, 1] = detector._range[1][1]
    inside = detector.score_samples(row)
    spread = np.ptp(detector.score_samples(X))
    row[0, 1] += 1e-5
    assert detector.score_samples(row) == pytest.approx(inside, abs=1e-3 * spread)
    farther = [row + np.eye(4)[1] * far for far in (1, 10, 100, 1e3, 1e6)]
    scores = [detector.score_samples(far)[0] for far in farther]
    assert (np.diff([inside[0], *scores]) < 0).all()


@every_detector
@pytest.mark.parametrize("kind", ["X", "pictures"])
@pytest.mark.filterwarnings("ignore:X holds floats")
def test_files_and_pickles_keep_the_range(cls, kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    detector = short(cls).fit(data)
    expected = detector.score_samples(100 * data)
    save(detector, tmp_path / "detector.safetensors")
    loaded = load(tmp_path / "detector.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(100 * data), expected)
    copy = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(copy.score_samples(100 * data), expected)


@every_detector
def test_a_warm_start_joins_the_ranges(cls, X):
    detector = short(cls, warm_start=True).fit(X).fit(X[:50] + 4)
    for rows in (X[:50], X[:50] + 4):
        np.testing.assert_array_equal(
            detector.score_samples(rows), detector._scores_of(rows)
        )


def test_the_range_covers_both_domains(X):
    detector = short(TransferAD).fit(X, X_source=X + 0.5)
    assert (detector._range[0] < X.min(0)).all()
    assert (detector._range[1] > X.max(0) + 0.5).all()


@pytest.mark.parametrize("cls", READERS, ids=lambda c: c.__name__)
def test_the_range_excludes_known_anomalies(cls, X):
    y = np.repeat([-1, 1], [10, 110])
    X[y == -1] += 50
    detector = short(cls).fit(X, y)
    assert (detector._range[1] < 20).all()


@every_detector
@pytest.mark.parametrize("change", ["three times as bright", "a pixel at -1000"])
def test_pixels_far_below_or_above_the_range_give_a_warning(cls, change, pictures):
    detector = short(cls).fit(np.rint(255 * pictures).astype(np.uint8))
    with pytest.warns(UserWarning, match=r"X holds floats from .* have one scale"):
        detector.score_samples(255 * FAR_IMAGES[change](pictures))
    detector = short(cls).fit(pictures)
    with pytest.warns(UserWarning, match=r"X holds floats from -1000 to .* one scale"):
        detector.score_samples(with_pixel(pictures, -1000))


@every_detector
def test_pixels_are_compared_with_the_scale_of_their_channel(cls, pictures):
    """Channels in units of their own were warned about on the training images."""
    units = np.array([1000, 1]).reshape(1, 2, 1, 1)
    images = units * np.concatenate([pictures, pictures[::-1]], axis=1)
    detector = short(cls, scaling="standard").fit(images)
    detector.score_samples(images)
    images[:, 1] *= 100  # still in the range of the other
    with pytest.warns(UserWarning, match="pixels hardly have one scale"):
        detector.score_samples(images)


@pytest.mark.parametrize("shape", [(3,), (784,), (3, 16, 16), (1, 4, 8, 8)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_excess_does_not_depend_on_the_other_samples(shape, kind, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, *shape)).astype(kind)
    learned = ValueRange.of([(X[:100], np.ones(100, dtype=bool))])
    far = (3 * X).astype(kind)
    excess = learned.excess(far)
    assert (learned.excess(X[:100]) == 0).all()
    assert np.sum(excess > 0) > 30
    alone = np.concatenate([learned.excess(row[None]) for row in far])
    np.testing.assert_array_equal(alone, excess)
    np.testing.assert_array_equal(learned.excess(np.asfortranarray(far)), excess)
    monkeypatch.setattr("skanomaly.utils._parts._AT_ONCE", 7 * X[0].size)
    np.testing.assert_array_equal(learned.excess(far), excess)
    again = ValueRange.of([(X[:100], np.ones(100, dtype=bool))])
    for one, other in zip(learned, again, strict=True):
        np.testing.assert_array_equal(one, other)


# Floats --------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["minmax", "standard"])
@pytest.mark.parametrize("value", [10, 1000, -1000, 1e30])
def test_a_hot_pixel_does_not_set_the_range(scaling, value, pictures):
    """Other images had a hundredth of the range, and nothing was detected."""
    ordinary = make_scaler(scaling, IMAGE)
    fit_by_parts(ordinary, pictures, np.arange(60) != 7)
    assert ordinary.clip_ is None
    spoilt = pictures.copy()
    spoilt[7, 0, 2, 2] = value
    scaler = make_scaler(scaling, IMAGE)
    left_out = fit_by_parts(scaler, spoilt, np.ones(60, dtype=bool))
    assert "from 0 to 1 in 98.33% of the images, all but 1." in left_out
    assert scaler.clip_ == (0, 1)
    expected = ordinary.transform(np.clip(spoilt, 0, 1))
    tolerance = 1e-6 if scaling == "minmax" else 0.1  # a moment of one image more
    np.testing.assert_allclose(scaler.transform(spoilt), expected, atol=tolerance)


@pytest.mark.parametrize("unit", [1.0, 1e4])
def test_a_hot_pixel_is_found_in_the_unit_of_its_channel(unit, pictures):
    """A channel with large numbers hid it where each is scaled by itself."""
    units = np.array([unit, 1]).reshape(1, 2, 1, 1)
    images = units * np.concatenate([pictures, pictures[::-1]], axis=1)
    spoilt = images.copy()
    spoilt[7, 1, 2, 2] = 1000
    scaler = make_scaler("standard", IMAGE)
    left_out = fit_by_parts(scaler, spoilt, np.ones(60, dtype=bool))
    assert "Pixels of channel 1 go from 0 to 1000, but only from 0 to 1 in" in left_out
    assert [bound.ravel().tolist() for bound in scaler.clip_] == [
        [-np.inf, 0],
        [np.inf, 1],
    ]
    ordinary = make_scaler("standard", IMAGE).fit(images)
    np.testing.assert_allclose(
        scaler.transform(spoilt),
        ordinary.transform(np.minimum(spoilt, units)),
        atol=0.1,
    )
    few = np.arange(60) < 19  # of which one is more than one in twenty
    assert fit_by_parts(make_scaler("standard", IMAGE), spoilt, few) is None


@every_detector
@pytest.mark.filterwarnings("ignore:X holds floats")
def test_files_keep_the_clipping_of_a_channel(cls, pictures, tmp_path):
    units = np.array([1e4, 1]).reshape(1, 2, 1, 1)
    images = units * np.concatenate([pictures, pictures[::-1]], axis=1)
    images[7, 1, 2, 2] = 1000
    with pytest.warns(PixelRangeWarning, match=r"of channel 1 .*clipped"):
        detector = short(cls, scaling="standard").fit(images)
    scores = detector.score_samples(images)
    assert scores.argmin() == 7
    save(detector, tmp_path / "detector.safetensors")
    loaded = load(tmp_path / "detector.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(images), scores)


@every_detector
@pytest.mark.filterwarnings("ignore:X holds floats")
def test_a_hot_pixel_does_not_change_the_other_scores(cls, pictures):
    spoilt = pictures.copy()
    spoilt[7, 0, 2, 2] = 1000
    with pytest.warns(PixelRangeWarning, match=r"98\.33% of the images.*clipped"):
        detector = short(cls, contamination=0.1, calibration=None).fit(spoilt)
    cut = short(cls, calibration=None).fit(np.clip(spoilt, 0, 1))
    np.testing.assert_allclose(
        detector._scores_of(pictures), cut._scores_of(pictures), rtol=1e-5, atol=1e-6
    )
    scores = detector.score_samples(spoilt)
    assert scores.argmin() == 7
    assert np.sum(scores < detector.offset_) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda X: X,
        lambda X: X * np.linspace(0.5, 1, len(X)).reshape(-1, 1, 1, 1),
        lambda X: X**4 * 1000,
        lambda X: np.where(np.arange(64).reshape(8, 8) == 20, 1.0, 0.01 * X),
        lambda X: X * (np.arange(len(X)) == 7).reshape(-1, 1, 1, 1),
    ],
    ids=["plain", "brightness", "tails", "a bright dot in each", "all but one empty"],
)
def test_ordinary_and_sparse_images_keep_their_range(change, pictures):
    images = change(pictures)
    scaler = make_scaler("auto", IMAGE)
    fit_by_parts(scaler, images, np.ones(60, dtype=bool))
    assert scaler.clip_ is None
    scaled = scaler.transform(images)
    assert (scaled.min(), scaled.max()) == (-1, 1)


@pytest.mark.parametrize("scaling", ["minmax", "standard"])
def test_a_large_offset_of_all_pixels_is_removed(scaling, pictures, monkeypatch):
    """The content was lost in float32, before the offset was subtracted."""
    plain = make_scaler(scaling, IMAGE).fit(pictures)
    monkeypatch.setattr("skanomaly.utils._parts._AT_ONCE", 7 * 64)
    for offset, tolerance in ((1e7, 1e-6), (-1e10, 1e-4), (1e12, 1e-2)):
        scaler = make_scaler(scaling, IMAGE)
        fit_by_parts(scaler, pictures + offset, np.ones(60, dtype=bool))
        scaled = scaler.transform(pictures + offset)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, plain.transform(pictures), atol=tolerance)
        back = scaler.inverse_transform(scaled) - offset
        np.testing.assert_allclose(back, pictures, atol=tolerance)


# Units of two data sets ---------------------------------------------------------------

IN_OTHER_UNITS = {
    "far larger": lambda X: X * 1e10,
    "far smaller": lambda X: X * 1e-10,
    "raw beside standardised": lambda X: 50 + 10 * X,
    "another location": lambda X: X + 20,
}


@pytest.mark.parametrize("case", IN_OTHER_UNITS)
@pytest.mark.parametrize("given", ["X_source", "sample_domain"])
@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.ConstantScoresWarning")
def test_a_source_in_other_units_gives_a_warning(case, given, X):
    """All scores were equal, in silence, where the source has the larger numbers."""
    source, rows, domain = IN_OTHER_UNITS[case](X), X, {}
    if given == "X_source":
        domain["X_source"] = source
    else:
        rows, domain["sample_domain"] = np.r_[source, X], np.repeat([1, -1], len(X))
    with pytest.warns(
        UserWarning, match=r"target.*source.*Check that both have the same units"
    ):
        short(TransferAD).fit(rows, **domain)


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.ConstantScoresWarning")
def test_a_source_of_images_in_other_units_gives_a_warning(pictures):
    both = np.concatenate([pictures, 1e-3 * pictures])
    with pytest.warns(UserWarning, match=r"The numbers of the target .* same units"):
        short(TransferAD).fit(both, sample_domain=np.repeat([1, -1], 60))
    short(TransferAD).fit(pictures, X_source=pictures / 2 + 0.4)


def test_domains_that_differ_in_other_ways_give_no_warning(X):
    rng = np.random.default_rng(1)
    short(TransferAD).fit(X, X_source=3 * X)
    short(TransferAD).fit(X, X_source=X + 3)
    short(TransferAD).fit(np.r_[X, 8 * rng.normal(size=(60, 4))], X_source=X)
    sparse = np.where(rng.uniform(size=X.shape) < 0.9, 0, X)
    short(TransferAD).fit(sparse, X_source=2 * sparse)
    short(TransferAD).fit(np.c_[X, np.ones(120)], X_source=np.c_[X, np.zeros(120)])


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_a_corpus_in_other_units_gives_a_warning(factor, X):
    with pytest.warns(
        UserWarning, match=r"the corpus .* Check that both have the same units"
    ):
        short(ADRA, corpus=factor * X).fit(X)
    short(ADRA, corpus=5 * X + 3).fit(X)


def test_a_pipeline_that_does_not_transform_the_source_gives_a_warning(X):
    """The steps of a pipeline transform X alone; arrays gave no warning."""
    raw, source = 50 + 10 * X, 52 + 11 * X
    with pytest.warns(UserWarning, match=r"X only, unless its transform_input"):
        make_pipeline(StandardScaler(), short(TransferAD)).fit(
            raw, transferad__X_source=source
        )
    with config_context(enable_metadata_routing=True):
        detector = short(TransferAD).set_fit_request(X_source=True, sample_domain=False)
        steps = [("scale", StandardScaler()), ("detect", detector)]
        pipeline = Pipeline(steps, transform_input=["X_source"])
        pipeline.fit(raw, X_source=source)
    scaler = StandardScaler().fit(raw)
    by_hand = short(TransferAD).fit(
        scaler.transform(raw), X_source=scaler.transform(source)
    )
    expected = by_hand.score_samples(scaler.transform(raw))
    np.testing.assert_array_equal(pipeline.score_samples(raw), expected)
