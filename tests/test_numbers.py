"""Containers of data: those accepted, and the errors for all others."""

import datetime as dt
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
from sklearn import compose, impute, pipeline, preprocessing
from sklearn.exceptions import DataConversionWarning

from skanomaly import (
    ADRA,
    AABiGAN,
    HistoryAD,
    JointEncoderGAN,
    TransferAD,
    load,
    save,
)
from skanomaly.utils._numbers import as_numbers

SAMPLES = np.random.default_rng(0).normal(size=(20, 3))


def frame(**columns):
    return pd.DataFrame(SAMPLES, columns=list("abc")).assign(**columns)


@pytest.mark.parametrize(
    "X",
    [
        SAMPLES,
        SAMPLES.astype(">f8"),
        SAMPLES > 0,
        np.ma.masked_array(SAMPLES),
        np.float64(3.0),
        scipy.sparse.csr_matrix(SAMPLES),
        frame(),
        frame(a=pd.array([pd.NA] * 20, dtype="Float64"), b=True, c="1.5"),
        pl.DataFrame({"a": [1, 2], "b": [1.0, None], "c": [True, False]}),
    ],
)
def test_numbers_are_not_converted(X):
    assert as_numbers(X) is X


@pytest.mark.parametrize(
    ("X", "expected"),
    [
        (SAMPLES.tolist(), SAMPLES),
        (torch.tensor(SAMPLES), SAMPLES),
        (torch.tensor(SAMPLES).requires_grad_(), SAMPLES),
        (torch.tensor(SAMPLES).float().bfloat16(), None),
        (SAMPLES.astype(object), SAMPLES),
        (np.array([["1.5", "2"]]), [[1.5, 2]]),
        (SAMPLES.astype(np.longdouble), SAMPLES),
        (np.full((2, 2), np.longdouble("1e400")), np.full((2, 2), np.inf)),
    ],
)
def test_conversions_to_numbers(X, expected):
    """Tensors of bfloat16 or with a gradient, and large numbers, raised raw errors."""
    converted = as_numbers(X)
    assert converted.dtype in (np.float64, np.float32)
    expected = X.float().numpy() if expected is None else expected
    np.testing.assert_array_equal(converted, expected)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (None, "X is None, and has to be an array, a DataFrame or a list"),
        ("rows.csv", "X is of type str"),
        (iter(SAMPLES), "X is of type"),
        ({1.0, 2.0}, "X is of type set"),
        ({"a": SAMPLES}, "X is of type dict"),
        ([[1.0, 2.0], [1.0]], "X has samples of different lengths"),
        (np.array([["cat", "1"]]), r"text or categories in X\[:, 0\] \(such as 'cat'"),
        (np.array([["cat", 1]], object), r"text or categories in X\[:, 0\] .*'cat'"),
        (np.array(["cat"]), "X has to hold numbers: .*'cat'"),
        (np.array([[{}, 1]], object), r"objects in X\[:, 0\]: float.*not 'dict'"),
        (np.array([[10**400, 1]], object), r"objects in X\[:, 0\]: int too large"),
        (np.zeros(3, dtype=[("a", "f8")]), "X has to .* named fields: pandas"),
        (np.zeros((3, 2), "datetime64[s]"), "X has to hold numbers, and holds dates"),
        (np.zeros((3, 2), "timedelta64[s]"), "X has to .* and holds spans of time"),
        (SAMPLES + 1j, "Complex data not supported: X is of dtype complex128"),
        (np.ma.masked_greater(SAMPLES, 1), "X is a masked array"),
        (torch.tensor(SAMPLES).to_sparse(), "X is a tensor that is sparse"),
        (torch.tensor(SAMPLES).to("meta"), "X is a tensor without data"),
        (frame(b="cat"), r"X has .* text or categories in 'b' \(such as 'cat'\)"),
        (frame(b=pd.Categorical(["a"] * 20)), "X has .* categories in 'b'"),
        (frame(b=pd.Timestamp("2026-01-01")), "X has .* dates or times in 'b'"),
        (frame(b=pd.interval_range(0, 20)), "X has .* objects in 'b': .*Interval"),
        (frame().set_axis(["a", "b", "a"], axis=1), "X has 2 columns of the name 'a'"),
        (pl.DataFrame({"a": [1], "b": ["cat"]}), "X has .* categories in 'b' .*cat"),
        (pl.DataFrame({"a": [1]}).lazy(), r"X is a LazyFrame: give X\.collect\(\)"),
    ],
)
def test_data_without_numbers_raise_an_error(X, message):
    """All of these raised raw errors of NumPy, torch, pandas or polars."""
    with pytest.raises((TypeError, ValueError), match=message):
        HistoryAD().fit(X)
    if hasattr(X, "shape"):
        as_corpus = re.sub(r"\bX\b(?!\\\[)", "corpus", message)
        with pytest.raises((TypeError, ValueError), match=as_corpus):
            ADRA(corpus=X).fit(SAMPLES)


# The code of messages -----------------------------------------------------------------

STAFF = {
    "age": [31.0, None, 45.0, 52.0] * 10,
    "job": ["nurse", "cook", None, "smith"] * 10,
    "day": [dt.datetime(2026, 5, day, 9) for day in (1, 2, 3, 4)] * 10,
    "shift": [dt.timedelta(hours=h) for h in (8, 8, 4, 9)] * 10,
    "income": ["1.5", "2.5", "?", "0.5"] * 10,
    "left": [False, True, False, False] * 10,
}


def as_objects(columns):
    """Return an array of objects, of which each column has values of one class."""
    return np.array(list(columns.values()), dtype=object).T


TABLES = {
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "array": as_objects,
    "pandas, categories": lambda columns: pd.DataFrame(columns).astype(
        {"job": "category"}
    ),
    "pandas, objects": lambda columns: pd.DataFrame(columns, dtype=object),
    "pandas, time zone": lambda columns: pd.DataFrame(columns).assign(
        day=lambda frame: frame["day"].dt.tz_localize("UTC")
    ),
    "pandas, names of numbers": lambda columns: pd.DataFrame(columns).set_axis(
        range(len(columns)), axis=1
    ),
    "polars, categories": lambda columns: pl.DataFrame(columns).with_columns(
        pl.col("job").cast(pl.Categorical), pl.col("day").dt.date()
    ),
    "polars, times": lambda columns: pl.DataFrame(columns).with_columns(
        pl.col("day").dt.time()
    ),
}


def with_advice(X, detector):
    """Follow the lines of code in errors until a pipeline fits, and return both."""
    names = {"X": X, "detector": detector, "pandas": pd}
    for module in (compose, impute, pipeline, preprocessing):
        names |= vars(module)
    messages = []
    while len(messages) < 4:
        try:
            return names["detector"].fit(names["X"]), names["X"], messages
        except ValueError as error:
            messages.append(str(error))
            exec("\n".join(re.findall(r"(?m)^    (.*)$", str(error))), names)
    raise AssertionError(messages)


@pytest.mark.parametrize("kind", TABLES)
def test_the_code_of_the_messages_mends_a_table(kind):
    """Errors were those of NumPy: could not convert string to float: 'nurse'."""
    X = TABLES[kind](STAFF)
    names = list(getattr(X, "columns", [f"X[:, {j}]" for j in range(6)]))
    named = [name if kind == "array" else repr(name) for name in names]
    fitted, X, messages = with_advice(X, tiny(AABiGAN))
    assert len(messages) == 1  # all columns at once, and missing values too
    for kind_of_column, j in (
        ("text or categories", 1),
        ("dates or times", 2),
        ("spans of time", 3),
        ("numbers and text", 4),
    ):
        assert f"{kind_of_column} in {named[j]}" in messages[0]
    assert named[0] not in messages[0].partition("Convert")[0]
    scores = fitted.score_samples(X)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == 4
    inner = fitted[-1]
    assert inner.n_features_in_ == 4 + 5  # one-hot, and None is a category


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, as_objects])
def test_errors_about_missing_values_count_them_by_column(make):
    columns = {"age": [31.0, None, 45.0] * 10, "b": [1.0, 2.0, 3.0] * 10}
    name = "X\\[:, 0\\]" if make is as_objects else "'age'"
    with pytest.raises(ValueError, match=f"Input X contains NaN: 10 in {name}. Fill"):
        tiny(AABiGAN).fit(make(columns))
    fitted, X, messages = with_advice(make(columns), tiny(AABiGAN))
    assert len(messages) == 1
    assert np.isfinite(fitted.score_samples(X)).all()


def test_errors_about_many_columns_are_short():
    X = np.full((30, 200), np.nan)
    with pytest.raises(ValueError, match=r"in X\[:, 4\] and 195 more columns\. Fill"):
        tiny(AABiGAN).fit(X)
    X = pd.DataFrame({f"c{j}": ["cat"] * 30 for j in range(200)})
    with pytest.raises(ValueError, match=r"'c4' and 195 more columns \(such as 'cat'"):
        tiny(AABiGAN).fit(X)


def test_markers_of_missing_values_among_objects_are_mended():
    X = frame(b=pd.array([pd.NA] + [1.5] * 19, dtype=object))
    _, X, messages = with_advice(X, tiny(AABiGAN))
    assert "numbers and NA in 'b'" in messages[0]
    assert "NaN: 1 in 'b'" in messages[1]
    assert X["b"].isna().sum() == 1


def test_missing_values_of_images_name_the_first_image():
    X = np.zeros((20, 1, 8, 8))
    X[[3, 7]] = np.nan
    with pytest.raises(ValueError, match=r"NaN, in 2 of 20 samples, .* X\[3\]"):
        tiny(AABiGAN).fit(X)
    X[3, 0, 2] = np.inf
    with pytest.raises(ValueError, match=r"infinity, in 2 of 20 samples, .* X\[3\]"):
        tiny(AABiGAN).fit(X)


def test_a_fitted_detector_names_the_columns_too():
    detector = tiny(AABiGAN).fit(frame())
    with pytest.raises(ValueError, match="NaN: 20 in 'b'"):
        detector.score_samples(frame(b=np.nan))
    with pytest.raises(ValueError, match="NaN: 1 in 'a' and infinity: 20 in 'c'"):
        detector.score_samples(frame(a=[np.nan] + [1] * 19, c=-np.inf))


@pytest.mark.parametrize(
    "X",
    [
        np.array([[np.inf, 1.0], [-np.inf, 2.0]]),
        np.full((20, 3), 3e38, np.float32) * np.resize([1, -1], (20, 1)),
    ],
)
def test_sums_that_overflow_give_no_warning(X):
    """The check for infinities gave a warning of NumPy."""
    with np.errstate(all="raise"):
        if np.isinf(X).any():
            with pytest.raises(ValueError, match="Input X contains infinity"):
                HistoryAD().fit(X)
        else:
            HistoryAD(max_epochs=1, detector_epochs=1)._check_rows(X, reset=True)


def test_a_column_of_labels_gives_a_warning_at_the_user_s_line():
    y = np.repeat([1, -1], [15, 5])[:, None]
    with pytest.warns(DataConversionWarning, match=r"shape \(20, 1\)") as record:
        AABiGAN(max_epochs=1, width=4, n_estimators=1).fit(SAMPLES, y)
    assert record[0].filename == __file__


@pytest.mark.parametrize("path", [None, 3, b"detector", ["detector"]])
def test_paths_of_another_type_raise_an_error(path):
    with pytest.raises(TypeError, match="path is of type"):
        load(path)
    with pytest.raises(TypeError, match="path is of type"):
        save(HistoryAD(), path)


# Numbers beyond single precision ----------------------------------------------------

DETECTORS = AABiGAN, ADRA, HistoryAD, JointEncoderGAN, TransferAD
STAGES = {
    "ADRA": {"pretrain_epochs": 1},
    "HistoryAD": {"detector_epochs": 1},
    "TransferAD": {"transfer_epochs": 1},
}


def tiny(cls, **params):
    common = {"max_epochs": 1, "width": 4, "n_estimators": 1, "random_state": 0}
    return cls(**common, **STAGES.get(cls.__name__, {}), **params)


every_detector = pytest.mark.parametrize("cls", DETECTORS, ids=lambda c: c.__name__)
quiet = pytest.mark.filterwarnings("ignore:.* was given no:UserWarning")


@quiet
@every_detector
@pytest.mark.parametrize(
    "X",
    [
        SAMPLES * 1e300,
        np.r_[SAMPLES, np.full((1, 3), -1e300)],
        np.random.default_rng(0).random((20, 1, 8, 8)) * 1e-310,
    ],
    ids=["large", "one", "images"],
)
def test_numbers_that_lose_their_digits_are_refused(cls, X):
    """The losses became NaN, NumPy warned, and a lower `lr` was advised."""
    with pytest.raises(ValueError, match=r"X holds numbers from .* too large"):
        tiny(cls).fit(X)


@quiet
@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning")
@pytest.mark.filterwarnings("ignore:X holds floats:UserWarning")
@pytest.mark.parametrize("factor", [1e-150, 1e40, 1e150])
@every_detector
def test_images_of_any_unit_are_scaled(cls, factor):
    """In single precision the scale was infinite, and the losses became NaN."""
    X = np.random.default_rng(0).random((20, 1, 8, 8))
    detector = tiny(cls).fit(X * factor)
    assert np.ptp(detector.score_samples(X * factor)) > 0
    detector.score_samples(X * factor * 1e100)  # without a warning of NumPy


@pytest.mark.filterwarnings("ignore:X holds floats:UserWarning")
@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning")
@every_detector
@quiet
def test_outputs_are_finite_or_refused(cls):
    """Latent codes and reconstructions of samples far out were NaN, silently."""
    X = np.random.default_rng(0).random((20, 1, 8, 8))
    detector = tiny(cls).fit(X)
    X[3] *= 1e300
    for method in ("encode", "reconstruct", "anomaly_map"):
        if hasattr(detector, method):
            with pytest.raises(
                ValueError, match=r"1 samples of X, the first of them X\[3\]"
            ):
                getattr(detector, method)(X)
    assert np.isfinite(detector.score_samples(X)).all()


def test_an_empty_tuple_as_corpus_raises_an_error():
    with pytest.raises(ValueError, match="corpus is a tuple of 0; a pair"):
        tiny(ADRA, corpus=()).fit(pd.DataFrame(SAMPLES, columns=list("abc")))
