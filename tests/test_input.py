"""What detectors make of input that is not what it should be."""

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler
from test_common import DETECTORS, short

from skanomaly import ADRA, TransferAD
from skanomaly._input import _has_channels_last
from skanomaly.model_selection import LeaveAnomalyKindOut

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


# Labels (point 5) --------------------------------------------------------------------

TWO_VALUES = {
    "0 and 1": (np.r_[np.ones(8), np.zeros(112)], r"np\.where\(y == 1, -1, 1\)\."),
    "integers": (np.repeat([1, 0], [8, 112]), r"np\.where\(y == 1, -1, 1\)\."),
    "1 and 0": (np.repeat([0, 1], [8, 112]), r"np\.where\(y == 1, -1, 1\)\."),
    "1 and 2": (np.repeat([2, 1], [8, 112]), r"np\.where\(y == 2, -1, 1\)\."),
    "half": (np.arange(120) % 2, r"np\.where\(y == 1, -1, 1\)\."),
    "bool": (np.arange(120) < 8, r"np\.where\(y, -1, 1\)\."),
    "text": (
        np.array(["odd"] * 8 + ["normal"] * 112),
        r"np\.where\(y == 'odd', -1, 1\)\.",
    ),
    "text in a Series": (
        pd.Series(["odd"] * 8 + ["normal"] * 112, dtype=object),
        r"np\.where\(y == 'odd', -1, 1\)\.",
    ),
    "text of numbers": (
        np.array(["-1"] * 8 + ["1"] * 112),
        r"np\.where\(y == '-1', -1, 1\)\.",
    ),
    "-1 and 2": (np.r_[-np.ones(8), np.full(112, 2)], r"it holds -1\.0, 2\.0\."),
}


@every_reader
@pytest.mark.parametrize("case", TWO_VALUES)
def test_labels_that_mark_no_anomaly_are_an_error(cls, X, case):
    """Known frauds under 0/1, bool or string labels were learned as normal."""
    y, message = TWO_VALUES[case]
    with pytest.raises(ValueError, match=message):
        short(cls).fit(X, y)


@every_reader
@pytest.mark.parametrize(
    "missing", [np.nan, None, pd.NA], ids=["NaN", "None", "pandas.NA"]
)
def test_missing_labels_are_an_error(cls, X, missing):
    """One NaN among -1 and +1 made all known anomalies normal rows."""
    y = [-1] * 8 + [1] * 111 + [missing]
    with pytest.raises(ValueError, match="unlabelled row, has missing"):
        short(cls).fit(X, y)
    series = pd.Series(y, dtype=object if missing is not pd.NA else "Int64")
    with pytest.raises(ValueError, match="unlabelled row, has missing"):
        short(cls).fit(X, series)


@every_reader
@pytest.mark.parametrize(
    "y",
    [np.ones(40), np.zeros(40), np.arange(40) % 3, np.arange(40) % 2],
    ids=["1", "0", "classes", "as scikit-learn's checks have it"],
)
def test_targets_that_may_be_anything_are_warned_about(cls, X, y):
    with pytest.warns(UserWarning, match="Nothing is taken as known"):
        detector = short(cls).fit(X[:40], y)
    expected = short(cls).fit(X[:40]).score_samples(X)
    np.testing.assert_array_equal(detector.score_samples(X), expected)


def test_a_corpus_does_without_labels(X):
    y = np.repeat([1, 0], [8, 112])
    with pytest.warns(UserWarning, match=r"Nothing is taken.*where\(y == 1, -1, 1\)"):
        short(ADRA, corpus=X + 3).fit(X, y)


def test_missing_labels_are_not_normal_rows_of_a_splitter():
    y = [-1, -1, 1, 1, np.nan]
    splitter = LeaveAnomalyKindOut(["a", "b", "c", "c", "c"])
    with pytest.raises(ValueError, match="unlabelled row, has missing values"):
        list(splitter.split(np.zeros((5, 1)), y))


# Channels (point 7) ------------------------------------------------------------------

every_detector = pytest.mark.parametrize("cls", DETECTORS, ids=lambda c: c.__name__)


@every_detector
@pytest.mark.parametrize(
    "shape",
    [(16, 16, 4), (64, 64, 4), (5, 5, 4), (64, 64, 12), (9, 12, 2), (9, 12, 1)],
    ids=str,
)
def test_channels_that_come_last_are_named(cls, shape):
    """Four channels and more were read as channels of narrow images."""
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    message = rf"look like {shape[0]} x {shape[1]} with {shape[2]} channels. Channels "
    with pytest.raises(ValueError, match=message + "come first.*image_shape=.* says"):
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
def test_channels_that_come_first_pass(shape):
    assert not _has_channels_last(shape)


def test_channels_of_clips_that_come_last_are_named():
    clips = np.random.default_rng(0).integers(0, 256, (8, 8, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"Clips of.*8 x 16 x 16 with 3 channels"):
        short(TransferAD).fit(clips)


# Errors of columns (point 10) --------------------------------------------------------

MAPPERS = [cls for cls in DETECTORS if hasattr(cls, "anomaly_map")]


@pytest.mark.parametrize("cls", MAPPERS, ids=lambda c: c.__name__)
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
    rebuilt = detector.reconstruct(scaled)
    if scaling:
        scaled, rebuilt = map(detector.scaler_.transform, (scaled, rebuilt))
    np.testing.assert_allclose(errors, (scaled - rebuilt) ** 2, rtol=1e-3, atol=1e-6)
    assert isinstance(detector.scaler_, StandardScaler) == (scaling == "auto")


# Parameters given as pairs (point 24) ------------------------------------------------


@pytest.mark.parametrize("beta", [(np.nan, 1.0), (1.0, np.nan), (1.0, np.inf)])
def test_a_pair_with_nan_is_named(X, beta):
    """Training diverged, and the learning rate was blamed."""
    with pytest.raises(ValueError, match=r"beta=.* has to be a finite number above 0"):
        short(TransferAD, beta=beta).fit(X)


@pytest.mark.parametrize("pair", [(np.nan, 1.0), (0.0, np.nan), (np.inf, 1.0)])
def test_a_normalization_with_nan_is_named(pair):
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"normalization=.*, all finite"):
        short(ADRA, normalization=pair).fit(images)
