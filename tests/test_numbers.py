"""Containers of data: those accepted, and the errors for all others."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
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
        (np.array([["cat", "1"]]), "X has to hold numbers: .*'cat'.*encode text"),
        (np.array([["cat", 1]], object), "X has to hold numbers: .*'cat'"),
        (np.array([[{}, 1]], object), "X has to hold numbers: float.*not 'dict'"),
        (np.array([[10**400, 1]], object), "X has to hold numbers: int too large"),
        (np.zeros(3, dtype=[("a", "f8")]), "X holds named fields"),
        (np.zeros((3, 2), "datetime64[s]"), "X holds dates"),
        (np.zeros((3, 2), "timedelta64[s]"), "X holds spans of time"),
        (SAMPLES + 1j, "Complex data not supported: X is of dtype complex128"),
        (np.ma.masked_greater(SAMPLES, 1), "X is a masked array"),
        (torch.tensor(SAMPLES).to_sparse(), "X is a tensor that is sparse"),
        (torch.tensor(SAMPLES).to("meta"), "X is a tensor without data"),
        (frame(b="cat"), "X has a column 'b' of .*'cat'.*: encode text"),
        (frame(b=pd.Categorical(["a"] * 20)), "X has a column 'b' of category"),
        (frame(b=pd.Timestamp("2026-01-01")), "X has a column 'b' of datetime64"),
        (frame().set_axis(["a", "b", "a"], axis=1), "X has 2 columns of the name 'a'"),
        (pl.DataFrame({"a": [1], "b": ["cat"]}), "X has a column 'b' of string: .*cat"),
        (pl.DataFrame({"a": [1]}).lazy(), r"X is a LazyFrame: give X\.collect\(\)"),
    ],
)
def test_data_without_numbers_raise_an_error(X, message):
    """All of these raised raw errors of NumPy, torch, pandas or polars."""
    with pytest.raises((TypeError, ValueError), match=message):
        HistoryAD().fit(X)
    if hasattr(X, "shape"):
        as_corpus = re.sub(r"\bX\b", "corpus", message)
        with pytest.raises((TypeError, ValueError), match=as_corpus):
            ADRA(corpus=X).fit(SAMPLES)


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
@pytest.mark.parametrize("cls", [AABiGAN, JointEncoderGAN, TransferAD])
@quiet
def test_outputs_are_finite_or_refused(cls):
    """Latent codes and reconstructions of samples far out were NaN, silently."""
    X = np.random.default_rng(0).random((20, 1, 8, 8))
    detector = tiny(cls).fit(X)
    X[3] *= 1e300
    for method in ("encode", "reconstruct", "anomaly_map"):
        with pytest.raises(
            ValueError, match=r"1 samples of X, the first of them X\[3\]"
        ):
            getattr(detector, method)(X)
    assert np.isfinite(detector.score_samples(X)).all()


def test_an_empty_tuple_as_corpus_raises_an_error():
    with pytest.raises(ValueError, match="corpus is a tuple of 0; a pair"):
        tiny(ADRA, corpus=()).fit(pd.DataFrame(SAMPLES, columns=list("abc")))
