"""Cases for `test_odd_inputs.py`: detectors with unusual and wrong inputs.

A case is an ordinary one with one to three oddities: of the shape, the values, the type
of the numbers, the container, the labels, the reference samples (domains, a corpus),
the parameters, the call after the fit, or a file. The number of a case is the seed of
its oddities, so each case can be run alone:

>>> from odd_inputs import draw_case
>>> draw_case("HistoryAD", 17).oddities
['...']
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skanomaly

#: Short trainings of small networks.
TINY = {
    "ADRA": {"pretrain_epochs": 1, "n_estimators": 1},
    "AABiGAN": {"n_estimators": 1},
    "HistoryAD": {"detector_epochs": 1},
    "JointEncoderGAN": {"n_estimators": 1},
    "TransferAD": {"transfer_epochs": 1, "n_estimators": 1},
}
COMMON = {"max_epochs": 1, "width": 4, "batch_size": 16, "random_state": 0}


@dataclass
class Case:
    """Inputs of a detector, and a function to call after its fit."""

    name: str
    rng: np.random.Generator
    X: Any = None
    #: The same samples in an array of NumPy.
    plain: Any = None
    y: Any = None
    params: dict = field(default_factory=dict)
    fit_params: dict = field(default_factory=dict)
    #: The call after the fit: a function of detector, case and a folder, which returns
    #: scores, another array that has to be finite, or None.
    then: Callable | None = None
    oddities: list[str] = field(default_factory=list)

    def detector(self):
        cls = getattr(skanomaly, self.name)
        return cls(**{**COMMON, **TINY[self.name], **self.params})

    @property
    def is_table(self):
        return isinstance(self.X, np.ndarray) and self.X.ndim == 2


def band(rng, n, d):
    """Return samples of a table that lie near a plane."""
    codes = rng.normal(size=(n, 2))
    return codes @ rng.normal(size=(2, d)) + 0.1 * rng.normal(size=(n, d))


def pictures(rng, shape, dtype=np.uint8):
    """Return images of bright spots on grey, bytes or floats from 0 to 1."""
    images = 100 + 40 * rng.random(shape)
    images[..., : shape[-2] // 2, : shape[-1] // 2] += 60
    images = np.round(images).astype(np.uint8)
    return images if dtype == np.uint8 else (images / 255).astype(dtype)


# Shapes -------------------------------------------------------------------------------

TABLE_SHAPES = {
    "one sample": lambda X, rng: X[:1],
    "two samples": lambda X, rng: X[:2],
    "three samples": lambda X, rng: X[:3],
    "no samples": lambda X, rng: X[:0],
    "one column": lambda X, rng: X[:, :1],
    "no columns": lambda X, rng: X[:, :0],
    "many columns": lambda X, rng: band(rng, 30, 300),
    "one dimension": lambda X, rng: X[:, 0],
    "a number": lambda X, rng: np.float64(3.0),
    "three dimensions": lambda X, rng: X[:, None],
    "six dimensions": lambda X, rng: X[:, :1, None, None, None, None],
    "two samples, one column": lambda X, rng: X[:2, :1],
    "samples as columns": lambda X, rng: X.T,
    "more samples than a batch by one": lambda X, rng: band(rng, 17, 3),
}
IMAGE_SHAPES = {
    "one image": lambda X, rng: X[:1],
    "two images": lambda X, rng: X[:2],
    "no images": lambda X, rng: X[:0],
    "one pixel": lambda X, rng: X[..., :1, :1],
    "3 x 3": lambda X, rng: X[..., :3, :3],
    "4 x 4": lambda X, rng: X[..., 2:6, 2:6],
    "5 x 7": lambda X, rng: X[..., :5, :7],
    "5 x 5": lambda X, rng: X[..., :5, :5],
    "6 x 6": lambda X, rng: X[..., :6, :6],
    "9 x 9": lambda X, rng: pictures(rng, (20, 1, 9, 9)),
    "17 x 5": lambda X, rng: pictures(rng, (20, 1, 17, 5)),
    "4 x 40": lambda X, rng: pictures(rng, (20, 1, 4, 40)),
    "2 x 32": lambda X, rng: pictures(rng, (20, 1, 2, 32)),
    "no side": lambda X, rng: X[..., :0],
    "no channels": lambda X, rng: X[:, :0],
    "two channels": lambda X, rng: np.repeat(X[:, :1], 2, axis=1),
    "seven channels": lambda X, rng: np.repeat(X[:, :1], 7, axis=1),
    "channels last, RGB": lambda X, rng: pictures(rng, (20, 8, 8, 3)),
    "channels last, RGBA": lambda X, rng: pictures(rng, (20, 16, 16, 4)),
    "no axis for channels": lambda X, rng: X[:, 0],
    "one image alone": lambda X, rng: X[0],
    "clips": lambda X, rng: np.repeat(X[:, :, None], 4, axis=2),
    "flat samples": lambda X, rng: X.reshape(len(X), -1),
}

# Values -------------------------------------------------------------------------------


def with_cell(value):
    """Return a function that puts a value into one cell of floats."""

    def put(X, rng):
        X = X.astype(np.float64)
        X.flat[rng.integers(X.size)] = value
        return X

    return put


def times(factor, plus=0.0):
    return lambda X, rng: X.astype(np.float64) * factor + plus


VALUES = {
    "a NaN": with_cell(np.nan),
    "an infinity": with_cell(np.inf),
    "a negative infinity": with_cell(-np.inf),
    "a 1e300": with_cell(1e300),
    "a -1e300": with_cell(-1e300),
    "a 1e38": with_cell(1e38),
    "one hot cell": with_cell(1e6),
    "one cold cell": with_cell(-1000.0),
    "a denormal": with_cell(5e-324),
    "times 1e300": times(1e300),
    "times 1e150": times(1e150),
    "times 1e40": times(1e40),
    "times 1e-40": times(1e-40),
    "times 1e-150": times(1e-150),
    "times 1e-200": times(1e-200),
    "times 1e-300": times(1e-300),
    "times 1e-310": times(1e-310),
    "plus 1e6": times(1, 1e6),
    "plus 1e12": times(1, 1e12),
    "plus 1e15": times(1, 1e15),
    "plus 1e18": times(1, 1e18),
    "negative": times(-1),
    "all zero": times(0),
    "all equal": times(0, 7.25),
    "all equal, and large": times(0, 1e20),
    "all equal but one": lambda X, rng: with_cell(1.0)(X * 0, rng),
    "zeros with a sign": lambda X, rng: np.copysign(0.0, X.astype(float) - 0.5),
    "samples repeated": lambda X, rng: X[rng.integers(2, size=len(X))],
    "one sample repeated": lambda X, rng: X[[0] * len(X)],
    "a column of one value": lambda X, rng: _with_column(X, 3.0),
    "a column of one large value": lambda X, rng: _with_column(X, 1e16),
    "a column of one-hot": lambda X, rng: _with_column(X, np.arange(len(X)) == 1),
    "a column of sample numbers": lambda X, rng: _with_column(X, np.arange(len(X))),
    "scales from 1e-12 to 1e12": lambda X, rng: (
        X.astype(float) * np.logspace(-12, 12, X.shape[-1])
    ),
    "heavy tails": lambda X, rng: X.astype(float) ** 15,
    "two clumps far apart": lambda X, rng: (
        X.astype(float) + 1e9 * (rng.random((len(X),) + (1,) * (X.ndim - 1)) < 0.5)
    ),
    "an outlier": lambda X, rng: np.concatenate([X[:-1], X[-1:] * 1e8 + 1e8]),
}


def _with_column(X, values):
    X = X.astype(np.float64)
    X[..., 0].T[...] = np.asarray(values)
    return X


# Types of numbers ---------------------------------------------------------------------


def integers(dtype, edge=False):
    info = np.iinfo(dtype)

    def convert(X, rng):
        if edge:
            return rng.choice([info.min, info.max, 0, 1], size=X.shape).astype(dtype)
        low = X - X.min()
        return (low / low.max() * min(info.max, 200)).astype(dtype)

    return convert


DTYPES = {
    **{
        name: integers(np.dtype(name))
        for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    },
    **{
        f"{name}, both ends": integers(np.dtype(name), edge=True)
        for name in ("i1", "u1", "i8", "u8")
    },
    "bool": lambda X, rng: np.greater(X, np.median(X)),
    "float16": lambda X, rng: X.astype(np.float16),
    "float16, near its end": lambda X, rng: (X / X.max() * 6e4).astype(np.float16),
    "float32": lambda X, rng: X.astype(np.float32),
    "float32, near its end": lambda X, rng: (X / X.max() * 3e38).astype(np.float32),
    "longdouble": lambda X, rng: X.astype(np.longdouble),
    "longdouble, beyond float64": lambda X, rng: X * np.longdouble("1e400"),
    "complex": lambda X, rng: X + 1j,
    "datetime": lambda X, rng: (X * 1e6).astype("datetime64[s]"),
    "timedelta": lambda X, rng: (X * 1e6).astype("timedelta64[s]"),
    "text of numbers": lambda X, rng: X.astype("U8"),
    "text": lambda X, rng: np.full(X.shape, "cat"),
    "bytes of text": lambda X, rng: X.astype("S8"),
    "other byte order": lambda X, rng: X.astype(">f8"),
    "other byte order, integers": lambda X, rng: (X * 50).astype(">i2"),
    "objects": lambda X, rng: X.astype(object),
    "objects, integers": lambda X, rng: (X * 50).astype(int).astype(object),
    "objects with None": lambda X, rng: _objects(X, None),
    "objects with text": lambda X, rng: _objects(X, "cat"),
    "objects with a list": lambda X, rng: _objects(X, [1, 2]),
    "objects with a dict": lambda X, rng: _objects(X, {"a": 1}),
    "objects beyond int64": lambda X, rng: _objects(X, 2**70),
    "objects beyond float64": lambda X, rng: _objects(X, 10**400),
    "named fields": lambda X, rng: np.zeros(len(X), dtype=[("a", "f8"), ("b", "i4")]),
}


def _objects(X, value):
    X = X.astype(object)
    X.flat[0] = value
    return X


# Containers ---------------------------------------------------------------------------


def _mapped(X, rng):
    path = Path(MAPS_FOLDER[0]) / f"{rng.integers(2**60)}.npy"
    np.save(path, X)
    return np.load(path, mmap_mode="r")


def _locked(X, rng):
    X = X.copy()
    X.flags.writeable = False
    return X


def _frame(X, rng, **changes):
    frame = pd.DataFrame(X.reshape(len(X), -1))
    frame.columns = [f"c{k}" for k in range(frame.shape[1])]
    for name, function in changes.items():
        frame = function(frame) if name == "all" else frame.assign(**{name: function})
    return frame


def _flat(X):
    """Return flat samples, of a type that other libraries support."""
    known = X.dtype.isnative and X.dtype.itemsize in (1, 4, 8)
    return (X if known else X.astype(np.float64)).reshape(len(X), -1)


def _tensor(X):
    known = X.dtype.isnative and X.dtype.itemsize <= 8
    return torch.tensor(X if known else X.astype(np.float64))


def _polars(X, rng, **columns):
    flat = _flat(X)
    frame = pl.DataFrame({f"c{k}": flat[:, k] for k in range(flat.shape[1])})
    return frame.with_columns(**columns)


#: Containers that keep the numbers and their type, and so the scores.
SAME = {
    *("Fortran's order", "backwards", "every second of", "locked", "memory map"),
    *("tuple of arrays", "masked, nothing hidden", "tensor", "pandas", "polars"),
    *("pandas, names of numbers", "pandas, index twice", "matrix"),
}
#: Folder of memory maps, set by the test.
MAPS_FOLDER = [""]
CONTAINERS = {
    "list": lambda X, rng: X.tolist(),
    "tuple of arrays": lambda X, rng: tuple(X),
    "list of uneven samples": lambda X, rng: [X[0].ravel().tolist()[:-1], *X.tolist()],
    "iterator": lambda X, rng: iter(X),
    "set": lambda X, rng: {1.0, 2.0},
    "dict": lambda X, rng: {"a": X},
    "text": lambda X, rng: "rows.csv",
    "None": lambda X, rng: None,
    "Fortran's order": lambda X, rng: np.asfortranarray(X),
    "backwards": lambda X, rng: X[::-1, ::-1],
    "every second of": lambda X, rng: np.repeat(X, 2, axis=0)[::2],
    "one sample for all": lambda X, rng: np.broadcast_to(X[:1], X.shape),
    "locked": _locked,
    "memory map": _mapped,
    "matrix": lambda X, rng: np.asmatrix(X.reshape(len(X), -1)),
    "masked": lambda X, rng: np.ma.masked_less(X, X.mean()),
    "masked, nothing hidden": lambda X, rng: np.ma.masked_array(X),
    "tensor": lambda X, rng: _tensor(X),
    "tensor, bfloat16": lambda X, rng: _tensor(X).bfloat16(),
    "tensor, half": lambda X, rng: _tensor(X).half(),
    "tensor with a gradient": lambda X, rng: _tensor(X).float().requires_grad_(),
    "tensor without data": lambda X, rng: _tensor(X).to("meta"),
    "tensor, sparse": lambda X, rng: _tensor(X).double().to_sparse(),
    "list of tensors": lambda X, rng: list(_tensor(X)),
    "sparse samples": lambda X, rng: scipy.sparse.csr_matrix(_flat(X)),
    "sparse array": lambda X, rng: scipy.sparse.coo_array(_flat(X)),
    "pandas": _frame,
    "pandas, text": lambda X, rng: _frame(X, rng, c0="cat"),
    "pandas, category": lambda X, rng: _frame(
        X, rng, c0=pd.Categorical(["a"] * len(X))
    ),
    "pandas, times": lambda X, rng: _frame(X, rng, c0=pd.Timestamp("2026-01-01")),
    "pandas, NA": lambda X, rng: _frame(
        X, rng, c0=pd.array([pd.NA] + [1.5] * (len(X) - 1), dtype="Float64")
    ),
    "pandas, Float64": lambda X, rng: _frame(X, rng, all=lambda f: f.astype("Float64")),
    "pandas, one name twice": lambda X, rng: _frame(
        X, rng, all=lambda f: f.set_axis(["a"] * f.shape[1], axis=1)
    ),
    "pandas, names of numbers": lambda X, rng: pd.DataFrame(X.reshape(len(X), -1)),
    "pandas, names of both": lambda X, rng: _frame(
        X, rng, all=lambda f: f.rename(columns={"c0": 0})
    ),
    "pandas, index twice": lambda X, rng: _frame(
        X, rng, all=lambda f: f.set_axis([0] * len(f))
    ),
    "pandas, Series": lambda X, rng: pd.Series(X.reshape(len(X), -1)[:, 0]),
    "polars": _polars,
    "polars, nulls": lambda X, rng: _polars(X, rng, c0=pl.lit(None, dtype=pl.Float64)),
    "polars, text": lambda X, rng: _polars(X, rng, c0=pl.lit("cat")),
    "polars, lazy": lambda X, rng: _polars(X, rng).lazy(),
}

# Labels -------------------------------------------------------------------------------


def _mixed(rng, n, *values):
    """Return labels that have all of the values, if there are enough samples."""
    return np.array(values)[rng.permutation(np.arange(n) % len(values))]


LABELS = {
    "0 and 1": lambda n, rng: (rng.random(n) < 0.2).astype(int),
    "bool": lambda n, rng: rng.random(n) < 0.2,
    "text": lambda n, rng: _mixed(rng, n, "normal", "fraud"),
    "text of -1": lambda n, rng: _mixed(rng, n, "1", "-1"),
    "NaN": lambda n, rng: _mixed(rng, n, 1.0, 1.0, -1.0, np.nan),
    "infinity": lambda n, rng: _mixed(rng, n, 1.0, -1.0, np.inf),
    "None": lambda n, rng: _mixed(rng, n, 1, 1, -1, None),
    "pandas.NA": lambda n, rng: pd.array([-1, *[1] * (n - 2), pd.NA], dtype="Int64"),
    "floats": lambda n, rng: _mixed(rng, n, 1.0, 1.0, 1.0, -1.0),
    "halves": lambda n, rng: _mixed(rng, n, 0.5, -1.0, 1.0),
    "too short": lambda n, rng: _mixed(rng, n, 1, 1, -1)[1:],
    "too long": lambda n, rng: _mixed(rng, n + 3, 1, 1, -1),
    "none at all": lambda n, rng: [],
    "one number": lambda n, rng: -1,
    "a column": lambda n, rng: _mixed(rng, n, 1, 1, -1)[:, None],
    "two columns": lambda n, rng: np.ones((n, 2), int),
    "all -1": lambda n, rng: -np.ones(n, int),
    "all -1 but one": lambda n, rng: np.r_[1, -np.ones(n - 1, int)],
    "all -1 but two": lambda n, rng: np.r_[1, 1, -np.ones(n - 2, int)],
    "one -1": lambda n, rng: np.r_[-1, np.ones(n - 1, int)],
    "all 1": lambda n, rng: np.ones(n, int),
    "all 0": lambda n, rng: np.zeros(n, int),
    "0 and -1": lambda n, rng: _mixed(rng, n, 0, 0, 0, -1),
    "classes": lambda n, rng: _mixed(rng, n, 0, 1, 2, 3),
    "uint8": lambda n, rng: _mixed(rng, n, 1, 255).astype(np.uint8),
    "int8": lambda n, rng: _mixed(rng, n, 1, 1, -1).astype(np.int8),
    "complex": lambda n, rng: _mixed(rng, n, 1, -1) + 0j,
    "list": lambda n, rng: _mixed(rng, n, 1, 1, -1).tolist(),
    "tensor": lambda n, rng: torch.tensor(_mixed(rng, n, 1, 1, -1)),
    "pandas": lambda n, rng: pd.Series(_mixed(rng, n, 1, 1, -1), index=[5] * n),
    "category": lambda n, rng: pd.Series(_mixed(rng, n, "a", "b"), dtype="category"),
    "dates": lambda n, rng: pd.Series(pd.Timestamp("2026-01-01"), index=range(n)),
    "a dict": lambda n, rng: {"a": 1},
    "text alone": lambda n, rng: "labels",
}

# Reference samples: domains and corpora -----------------------------------------------

DOMAINS = {
    "text": lambda n, rng: _mixed(rng, n, "source", "target"),
    "bool": lambda n, rng: np.arange(n) < n // 2,
    "0 and 1": lambda n, rng: np.arange(n) % 2,
    "NaN": lambda n, rng: np.r_[np.nan, _mixed(rng, n - 1, 1.0, -1.0)],
    "infinities": lambda n, rng: _mixed(rng, n, np.inf, -np.inf),
    "None among them": lambda n, rng: np.r_[[None], _mixed(rng, n - 1, 1, -1)],
    "too short": lambda n, rng: _mixed(rng, n, 1, -1)[1:],
    "too long": lambda n, rng: _mixed(rng, n + 3, 1, -1),
    "none at all": lambda n, rng: [],
    "one number": lambda n, rng: 1,
    "a column": lambda n, rng: _mixed(rng, n, 1, -1)[:, None],
    "two columns": lambda n, rng: np.ones((n, 2), int),
    "source alone": lambda n, rng: np.ones(n, int),
    "target alone": lambda n, rng: -np.ones(n, int),
    "one source sample": lambda n, rng: np.r_[1, -np.ones(n - 1, int)],
    "one target sample": lambda n, rng: np.r_[-1, np.ones(n - 1, int)],
    "two target samples": lambda n, rng: np.r_[-1, -1, np.ones(n - 2, int)],
    "two source samples": lambda n, rng: np.r_[1, 1, -np.ones(n - 2, int)],
    "int8": lambda n, rng: _mixed(rng, n, 1, -128).astype(np.int8),
    "tiny": lambda n, rng: _mixed(rng, n, 1e-300, -1e-300),
    "complex": lambda n, rng: _mixed(rng, n, 1, -1) + 0j,
    "list": lambda n, rng: _mixed(rng, n, 2, -3).tolist(),
    "tensor": lambda n, rng: torch.tensor(_mixed(rng, n, 1, -1)),
    "pandas": lambda n, rng: pd.Series(_mixed(rng, n, 1, -1), index=[5] * n),
    "a dict": lambda n, rng: {"a": 1},
    "text alone": lambda n, rng: "domains",
}
#: Samples of the source, or of a corpus.
REFERENCES = {
    "other columns": lambda X, rng: np.concatenate([X, X], axis=-1),
    "of one dimension": lambda X, rng: X.ravel(),
    "a number": lambda X, rng: 3.0,
    "one sample": lambda X, rng: X[:1],
    "two samples": lambda X, rng: X[:2],
    "none": lambda X, rng: X[:0],
    "one sample repeated": lambda X, rng: X[[0] * len(X)],
    "the same samples": lambda X, rng: X.copy(),
    "times 1e10": lambda X, rng: X.astype(float) * 1e10,
    "times 1e-10": lambda X, rng: X.astype(float) * 1e-10,
    "times 1e300": lambda X, rng: X.astype(float) * 1e300,
    "plus 1e9": lambda X, rng: X.astype(float) + 1e9,
    "a NaN": with_cell(np.nan),
    "an infinity": with_cell(np.inf),
    "all zero": lambda X, rng: X * 0,
    "bytes": integers(np.dtype("u1")),
    "float32": lambda X, rng: X.astype(np.float32),
    "complex": lambda X, rng: X + 1j,
    "text": lambda X, rng: np.full(X.shape, "cat"),
    "text alone": lambda X, rng: "no such corpus",
    "empty list": lambda X, rng: [],
    "list": lambda X, rng: X.tolist(),
    "pandas": _frame,
    "tensor": lambda X, rng: _tensor(X),
    "sparse": lambda X, rng: scipy.sparse.csr_matrix(_flat(X)),
    "a dict": lambda X, rng: {"a": X},
    "a tuple of numbers": lambda X, rng: (1, 2),
}

# Parameters ---------------------------------------------------------------------------

_VALUES = {
    "True": True,
    "False": False,
    "-1": -1,
    "0": 0,
    "-0.0": -0.0,
    "1": 1,
    "3": 3,
    "1.0": 1.0,
    "0.5": 0.5,
    "1.5": 1.5,
    "NumPy's 2": np.int64(2),
    "NumPy's .1": np.float32(0.1),
    "NumPy's True": np.True_,
    "an array of one": np.array([2]),
    "an array without axes": np.array(2),
    "a tensor": torch.tensor(2),
    "NaN": float("nan"),
    "infinity": float("inf"),
    "1e300": 1e300,
    "1e30": 1e30,
    "1e-300": 1e-300,
    "text of 3": "3",
    "text": "nonsense",
    "no text": "",
    "bytes": b"auto",
    "a list": [1],
    "a pair": (1, 2),
    "a pair of NaN": (float("nan"), float("nan")),
    "an empty tuple": (),
    "a dict": {"a": 1},
    "None": None,
    "an object": object(),
    "a class": int,
    "a function": len,
    "complex": 1j,
}


def _own_values():
    """Return further values by parameter, new ones in each call: many are mutable."""
    return {
        "width": {"10**12": 10**12},
        "latent_dim": {"10**12": 10**12, "300": 300},
        "batch_size": {"2": 2, "3": 3, "1000": 1000},
        "known_per_batch": {"2": 2, "5": 5, "100": 100},
        "device": {
            "cpu:0": "cpu:0",
            "meta": "meta",
            "cuda:99": "cuda:99",
            "gpu": "gpu",
        },
        "precision": {"float16": "float16", "bfloat16": "bfloat16"},
        "image_shape": {
            "(8, 8)": (8, 8),
            "(1, 8, 8)": (1, 8, 8),
            "[1, 8.0, 8]": [1, 8.0, 8],
            "(-1, 8, 8)": (-1, 8, 8),
        },
        "architecture": {
            "mlp": "mlp",
            "conv": "conv",
            "no such role": {"no such role": nn.Identity},
            "a module": {"encoder": nn.Linear(2, 2), "critic": nn.Linear(2, 2)},
            "no module": {
                role: lambda *sizes: None
                for role in ("encoder", "generator", "decoder", "network")
            },
            "one output": {
                role: lambda *sizes: nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
                for role in ("encoder", "decoder", "generator", "network")
            },
        },
        "random_state": {
            "2**40": 2**40,
            "a generator": np.random.default_rng(0),
            "a RandomState": np.random.RandomState(0),
        },
        "contamination": {"0.7": 0.7, "1e-9": 1e-9},
        "callbacks": {"a class": [int], "a text": "abc", "a function": [len]},
        "backbone": {
            "resnet": "resnet",
            "no such file": "missing.pt",
            "a layer": nn.Flatten(),
            "a linear layer": nn.Linear(3, 3),
        },
        "augment": {
            "gives None": lambda images: None,
            "gives float64": lambda images: images.double(),
            "unknown": ("flip", "rotate"),
        },
        "normalization": {
            "of three": ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
            "of zero": ((0.5,), (0.0,)),
            "imagenet": "imagenet",
        },
        "input_size": {"32": 32, "2": 2},
    }


#: Parameters that are left out: they print.
_LEFT_OUT = {"verbose"}


def parameters(name):
    """Return each parameter of a detector with each value to try, in one list."""
    given = getattr(skanomaly, name)().get_params()
    own = _own_values()
    return [
        (parameter, label, value)
        for parameter in sorted(set(given) - _LEFT_OUT)
        for label, value in {**_VALUES, **own.get(parameter, {})}.items()
    ]


# After the fit ------------------------------------------------------------------------


def scoring(change, method="score_samples"):
    """Return a function that scores changed samples."""

    def then(detector, case, folder):
        samples = np.asarray(case.plain)
        if samples.dtype.kind not in "iufb":
            samples = samples.astype(np.float64)
        with np.errstate(all="ignore"):
            changed = change(samples, case.rng)
        return getattr(detector, method)(changed)

    return then


def fitting(change, **params):
    """Return a function that fits changed samples and scores them."""

    def then(detector, case, folder):
        with np.errstate(all="ignore"):
            samples = change(np.asarray(case.plain), case.rng)
        detector.set_params(**params).fit(samples)
        return detector.score_samples(samples)

    return then


def setting(**params):
    def then(detector, case, folder):
        return detector.set_params(**params).score_samples(case.plain)

    return then


def calling(method, *arguments, **keywords):
    def then(detector, case, folder):
        if hasattr(detector, method):
            getattr(detector, method)(*arguments, **keywords)

    return then


def asking(method, change):
    """Return a function that calls a method, if there is one, with changed floats."""

    def then(detector, case, folder):
        if hasattr(detector, method):
            samples = np.asarray(case.plain).astype(np.float64)
            with np.errstate(all="ignore"):
                changed = change(samples)
            return getattr(detector, method)(changed)
        return None

    return then


def _copied(copy):
    def then(detector, case, folder):
        scores = copy(detector).score_samples(case.plain)
        if not np.array_equal(scores, detector.score_samples(case.plain)):
            raise AssertionError("the copy scores otherwise")
        return scores

    return then


AFTER = {
    "scores a sample": scoring(lambda X, rng: X[:1]),
    "scores no samples": scoring(lambda X, rng: X[:0]),
    "scores a sample without its axis": scoring(lambda X, rng: X[0]),
    "scores fewer columns": scoring(lambda X, rng: X[..., 1:]),
    "scores more columns": scoring(lambda X, rng: np.concatenate([X, X], axis=-1)),
    "scores one axis more": scoring(lambda X, rng: X[..., None]),
    "scores a NaN": scoring(with_cell(np.nan)),
    "scores an infinity": scoring(with_cell(np.inf)),
    **{
        f"scores {label}": scoring(VALUES[label])
        for label in ("a 1e300", "times 1e300", "times 1e40", "plus 1e12", "all zero")
    },
    **{
        f"scores {label}": scoring(DTYPES[label])
        for label in ("i1", "u1", "u8", "bool", "float16", "longdouble", "complex")
    },
    **{f"scores {label}": scoring(DTYPES[label]) for label in ("text", "objects")},
    **{
        f"scores {label}": scoring(CONTAINERS[label])
        for label in ("list", "pandas", "polars", "tensor", "sparse samples", "masked")
    },
    "scores text": scoring(lambda X, rng: "rows.csv"),
    "scores None": scoring(lambda X, rng: None),
    "predicts backwards": scoring(lambda X, rng: X[::-1], "predict"),
    "decides on float32": scoring(DTYPES["float32"], "decision_function"),
    "encodes a sample": asking("encode", lambda X: X[:1]),
    "encodes a NaN": asking("encode", lambda X: X * np.nan),
    "encodes 1e300": asking("encode", lambda X: X * 1e300),
    "reconstructs 1e300": asking("reconstruct", lambda X: X * 1e300),
    "reconstructs text": asking("reconstruct", lambda X: "rows.csv"),
    "maps a sample": asking("anomaly_map", lambda X: X[:1]),
    "maps no samples": asking("anomaly_map", lambda X: X[:0]),
    "samples none": calling("sample", 0),
    "samples -1": calling("sample", -1),
    "samples 1.5": calling("sample", 1.5),
    "samples True": calling("sample", True),
    "samples text": calling("sample", "3"),
    "samples with text for a seed": calling("sample", 2, random_state="seed"),
    "samples three": calling("sample", 3, random_state=0),
    "fits a sample": fitting(lambda X, rng: X[:1]),
    "fits other columns": fitting(lambda X, rng: np.concatenate([X, X], axis=-1)),
    "fits a NaN": fitting(with_cell(np.nan)),
    "fits infinities": fitting(with_cell(-np.inf)),
    "fits text": fitting(lambda X, rng: "rows.csv"),
    "goes on": fitting(lambda X, rng: X, warm_start=True),
    "goes on with a sample": fitting(lambda X, rng: X[:1], warm_start=True),
    "goes on with fewer columns": fitting(lambda X, rng: X[..., 1:], warm_start=True),
    "goes on times 1e6": fitting(times(1e6), warm_start=True),
    "goes on with a wider network": fitting(lambda X, rng: X, warm_start=True, width=6),
    "goes on for text epochs": fitting(
        lambda X, rng: X, warm_start=True, max_epochs="3"
    ),
    "is set to a nonsense lr": setting(lr="nonsense"),
    "is set to lr=-1": setting(lr=-1.0),
    "is set to another contamination": setting(contamination=0.2),
    "is set to another width": setting(width=9),
    "is set to another scaling": setting(scaling=None),
    "is set to another device": setting(device="cuda:99"),
    "is set to another image_shape": setting(image_shape=(1, 2, 2)),
    "is fitted and predicts": lambda d, c, f: clone(d).fit_predict(
        c.X, c.y, **c.fit_params
    ),
    "stands in a pipeline": lambda d, c, f: (
        make_pipeline(StandardScaler(), clone(d))
        .fit(np.reshape(c.plain, (len(c.plain), -1)))
        .decision_function(np.reshape(c.plain, (len(c.plain), -1)))
    ),
    "is cross-validated": lambda d, c, f: cross_val_predict(
        clone(d), c.plain, method="score_samples", cv=2
    ),
    "is fitted in half precision": lambda d, c, f: (
        clone(d).set_params(precision="bfloat16").fit(c.plain).score_samples(c.plain)
    ),
    "is copied": _copied(lambda d: pickle.loads(pickle.dumps(d))),
    "is cloned and not fitted": lambda d, c, f: clone(d).score_samples(c.plain),
    "is fitted by its clone": lambda d, c, f: _copied(
        lambda d: clone(d).fit(c.X, c.y, **c.fit_params)
    )(d, c, f),
}

# Files --------------------------------------------------------------------------------


def _saved(change, **params):
    """Return a function that saves a detector, changes the bytes, and loads it."""

    def then(detector, case, folder):
        path = folder / "detector.safetensors"
        skanomaly.save(detector, path)
        given = path.read_bytes()
        path.write_bytes(change(given, case.rng))
        left_out = {
            name: value
            for name, value in detector.get_params(deep=False).items()
            if not isinstance(value, int | float | str | type(None))
        }
        loaded = skanomaly.load(path, **{**left_out, **params})
        scores = loaded.score_samples(case.plain)
        if path.read_bytes() == given and not np.array_equal(
            scores, detector.score_samples(case.plain)
        ):
            raise AssertionError("the detector of a file scores otherwise")
        if path.read_bytes() != given:
            raise AssertionError("a changed file was loaded")
        return scores

    return then


def _flipped(data, rng, start=0, stop=None):
    data = bytearray(data)
    data[rng.integers(start, stop or len(data))] ^= 1 << rng.integers(8)
    return bytes(data)


def _to(path, **keywords):
    """Return a function that saves to a path in a folder."""

    def then(detector, case, folder):
        skanomaly.save(detector, path(folder), **keywords)

    return then


def _from(path):
    def then(detector, case, folder):
        skanomaly.load(path(folder))

    return then


def _written(folder, content):
    path = folder / "other.safetensors"
    path.write_bytes(content)
    return path


def _remembered(cut):
    """Return a function that fits with `memory`, damages the entry, and fits again."""

    def then(detector, case, folder):
        detector = clone(detector)
        if "memory" not in detector.get_params():
            return None
        detector.set_params(memory=str(folder / "memory"))
        scores = detector.fit(case.X, case.y, **case.fit_params).score_samples(
            case.plain
        )
        for path in (folder / "memory").rglob("*.pkl"):
            path.write_bytes(cut(path.read_bytes(), case.rng))
        again = detector.fit(case.X, case.y, **case.fit_params)
        if not np.array_equal(again.score_samples(case.plain), scores):
            raise AssertionError("a fit with memory scores otherwise")
        return scores

    return then


FILES = {
    "saved and loaded": _saved(lambda data, rng: data),
    "a bit flipped": _saved(_flipped),
    "a bit of the header flipped": _saved(lambda d, rng: _flipped(d, rng, 8, 2000)),
    "a bit of the length flipped": _saved(lambda d, rng: _flipped(d, rng, 0, 8)),
    "a bit of the end flipped": _saved(lambda d, rng: _flipped(d, rng, len(d) - 400)),
    "cut": _saved(lambda data, rng: data[: rng.integers(len(data))]),
    "cut to nothing": _saved(lambda data, rng: b""),
    "cut to ten bytes": _saved(lambda data, rng: data[:10]),
    "longer by a byte": _saved(lambda data, rng: data + b"\0"),
    "written twice": _saved(lambda data, rng: data + data),
    "zeros": _saved(lambda data, rng: bytes(len(data))),
    "noise": _saved(lambda data, rng: rng.bytes(len(data))),
    "loaded with another width": _saved(lambda data, rng: data, width=9),
    "loaded with a nonsense lr": _saved(lambda data, rng: data, lr="nonsense"),
    "loaded with no such parameter": _saved(lambda data, rng: data, no_such=1),
    "loaded to no such device": _saved(lambda data, rng: data, device="cuda:99"),
    "loaded with a number": _from(lambda folder: 3),
    "loaded with None": _from(lambda folder: None),
    "loaded from nowhere": _from(lambda folder: folder / "missing"),
    "loaded from a folder": _from(lambda folder: folder),
    "loaded from text": _from(lambda folder: _written(folder, b"a,b\n1,2\n")),
    "loaded from a pickle": _from(
        lambda folder: _written(folder, pickle.dumps({"a": 1}))
    ),
    "saved to a folder": _to(lambda folder: folder),
    "saved to a number": _to(lambda folder: 3.5),
    "saved to None": _to(lambda folder: None),
    "saved nowhere": _to(lambda folder: folder / "missing" / "detector"),
    "saved without a backbone": _to(
        lambda folder: folder / "short", include_backbone=False
    ),
    "not fitted, and saved": lambda d, c, f: skanomaly.save(clone(d), f / "none"),
    "a text saved": lambda d, c, f: skanomaly.save("detector", f / "none"),
    "memory": _remembered(lambda data, rng: data),
    "memory cut to nothing": _remembered(lambda data, rng: b""),
    "memory cut to ten bytes": _remembered(lambda data, rng: data[:10]),
    "memory cut": _remembered(lambda data, rng: data[: rng.integers(len(data))]),
    "memory of noise": _remembered(lambda data, rng: rng.bytes(len(data))),
    "joblib": lambda d, c, f: _copied(
        lambda d: (joblib.dump(d, f / "dump"), joblib.load(f / "dump"))[1]
    )(d, c, f),
}

# Cases --------------------------------------------------------------------------------

#: In the order in which they are applied.
AXES = (
    "shape",
    "values",
    "dtype",
    "container",
    "labels",
    "reference",
    "params",
    "then",
)
#: Order of the first oddities; axes with more options come several times.
TURNS = (*AXES, "params", "params", "then", "then", "values", "dtype")


def draw_case(name, number):
    """Return a case of a detector by its number.

    The first oddity takes all axes in turn, and all options of each; up to two more are
    drawn at random.
    """
    position = list(TINY).index(name)
    rng = np.random.default_rng([20261130, position, number])
    case = _ordinary(name, rng)
    axis, turn = _turn(number + 100 * position)
    chosen = {axis: turn}
    for _ in range(rng.choice(3, p=[0.5, 0.35, 0.15])):
        chosen.setdefault(AXES[rng.integers(len(AXES))], rng.integers(2**30))
    for axis in AXES:
        if axis in chosen:
            _ODD[axis](case, chosen[axis])
        if axis == "dtype":
            case.plain = case.X
            _ordinary_rest(case)
    return case


def _turn(number):
    """Return the axis of the first oddity, and the number of its earlier turns."""
    n_rounds, turn = divmod(number, len(TURNS))
    axis = TURNS[turn]
    return axis, n_rounds * TURNS.count(axis) + TURNS[:turn].count(axis)


def _ordinary(name, rng):
    case = Case(name, rng)
    kind = rng.random()
    if kind < 0.6:
        case.X = band(rng, rng.integers(20, 61), rng.integers(2, 7))
    else:
        dtype = np.uint8 if kind < 0.8 else np.float32
        channels = 3 if rng.random() < 0.2 else 1
        case.X = pictures(rng, (rng.integers(20, 31), channels, 8, 8), dtype)
        case.params["augment"] = None
    if name == "TransferAD" and kind > 0.9:
        case.X = np.stack([case.X, np.roll(case.X, 1, -1)] * 2, axis=2)
    if name != "ADRA":
        case.params.pop("augment", None)
    return case


def _ordinary_rest(case):
    """Add labels, domains and a corpus that fit the samples."""
    X, rng = case.X, case.rng
    n = len(X) if X.ndim else 0
    if rng.random() < 0.3 and n > 4:
        case.y = np.where(np.arange(n) % 7 == 3, -1, 1)
    if case.name == "TransferAD":
        case.y = None
        domain = np.where(np.arange(n) % 2 == 0, 1, -1)
        case.fit_params = {"sample_domain": domain}
    if case.name == "ADRA" and rng.random() < 0.5 and X.ndim in (2, 4) and X.size:
        numbers = X if X.dtype.kind in "iuf" else np.zeros(X.shape)
        case.params["corpus"] = numbers[rng.permutation(n)][..., ::-1].copy()


def _pick(options, at):
    label = list(options)[at % len(options)]
    return label, options[label]


def _changed_samples(options):
    def change(case, at):
        if not (case.X.ndim and case.X.size):
            return  # odd already
        label, function = _pick(options(case) if callable(options) else options, at)
        with np.errstate(all="ignore"):
            case.X = function(case.X, case.rng)
        case.oddities.append(label)

    return change


def _odd_container(case, at):
    if not (case.X.ndim and case.X.size and case.X.dtype.kind in "iuf"):
        return  # odd already, and no other library takes it
    shape = case.X.shape
    _changed_samples(CONTAINERS)(case, at)
    if len(shape) > 2 and len(getattr(case.X, "shape", shape)) == 2:
        case.params["image_shape"] = shape[1:]
        case.plain = case.plain.reshape(len(case.plain), -1)


def _odd_labels(case, at):
    label, function = _pick(LABELS, at)
    n = _length(case)
    if n > 2:
        case.y = function(n, case.rng)
        case.oddities.append(f"y: {label}")


def _odd_reference(case, at):
    X = case.plain
    if case.name == "ADRA" and X.ndim and X.size and X.dtype.kind in "iuf":
        label, function = _pick(REFERENCES, at)
        with np.errstate(all="ignore"):
            case.params["corpus"] = function(X, case.rng)
        case.oddities.append(f"corpus: {label}")
    elif case.name != "TransferAD" or _length(case) < 3:
        _odd_labels(case, at)
    elif at % 2 and X.dtype.kind in "iuf" and X.size:
        label, function = _pick(REFERENCES, at // 2)
        with np.errstate(all="ignore"):
            case.fit_params = {"X_source": function(X, case.rng)}
        case.oddities.append(f"X_source: {label}")
    else:
        label, function = _pick(DOMAINS, at // 2)
        case.fit_params = {"sample_domain": function(_length(case), case.rng)}
        case.oddities.append(f"sample_domain: {label}")


def _length(case):
    return len(case.plain) if case.plain.ndim else 0


def _odd_params(case, at):
    # Neighbours in the list share a parameter, so consecutive cases jump.
    options = parameters(case.name)
    parameter, label, value = options[at * 97 % len(options)]
    case.params[parameter] = value
    case.oddities.append(f"{parameter}: {label}")


def _odd_then(case, at):
    label, case.then = _pick({**AFTER, **FILES}, at)
    case.oddities.append(label)


_ODD = {
    "shape": _changed_samples(lambda c: TABLE_SHAPES if c.is_table else IMAGE_SHAPES),
    "values": _changed_samples(VALUES),
    "dtype": _changed_samples(DTYPES),
    "container": _odd_container,
    "labels": _odd_labels,
    "reference": _odd_reference,
    "params": _odd_params,
    "then": _odd_then,
}
