"""Contributions of columns: by hand, planted columns, broken pairs, data frames."""

import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from skanomaly import ConformalDetector, HistoryAD
from skanomaly.explanation import explain


class Linear:
    """Scores samples by a sum of their columns, with weights."""

    def __init__(self, *weights):
        self.weights = np.array(weights, float)

    def score_samples(self, X):
        return np.asarray(X, float) @ self.weights


RNG = np.random.default_rng(0)


def test_a_linear_score_by_hand():
    reference = np.array([[0.0, 0.0], [10.0, 1.0]])
    # Each sample has another nearest one.
    found = explain(Linear(2, 3), [[4.0, 0.1], [4.0, 0.9]], reference, n_neighbors=1)
    np.testing.assert_allclose(found, [[2 * -4, 3 * -0.1], [2 * 6, 3 * 0.1]])


def test_a_pair_that_acts_together_shares_its_effect():
    """Shapley values by hand: of x0 x2, 5 before and 0 after, each has a half."""

    class Product:
        def score_samples(self, X):
            return -X[:, 0] * X[:, 2] + 7 * X[:, 1]

    found = explain(Product(), np.array([[1.0, 2, 5]]), [[0.0, 3, 0]])
    np.testing.assert_allclose(found, [[2.5, 7.0, 2.5]])


def test_contributions_add_up():
    X, reference = RNG.normal(size=(40, 5)), RNG.normal(size=(60, 5))
    detector = IsolationForest(random_state=0).fit(reference)
    near = NearestNeighbors(n_neighbors=2).fit(reference / reference.std(0))
    nearest = near.kneighbors(X / reference.std(0), return_distance=False)
    usual = detector.score_samples(reference)[nearest].mean(1)
    total = explain(detector, X, reference, n_neighbors=2).sum(1)
    # Those nearest by bounded distances are mostly, but not always, nearest.
    agree = np.isclose(total, usual - detector.score_samples(X))
    assert agree.mean() > 0.7


def test_means_over_neighbours():
    reference = RNG.normal(size=(7, 3))
    X = RNG.normal(size=(4, 3))
    found = explain(Linear(1, 2, 3), X, reference, n_neighbors=7)
    expected = (reference.mean(0) - X) * [1, 2, 3]
    np.testing.assert_allclose(found, expected)
    more = explain(Linear(1, 2, 3), X, reference, n_neighbors=99)
    np.testing.assert_array_equal(more, found)


def test_a_planted_column_comes_first():
    X = RNG.normal(size=(400, 6)) * [1, 10, 100, 1e-3, 1, 1e6]
    detector = LocalOutlierFactor(novelty=True).fit(X[:300])
    planted = X[300:].copy()
    columns = np.arange(100) % 6
    planted[np.arange(100), columns] = 9 * X.std(0)[columns]
    scaled = make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True))
    detector = scaled.fit(X[:300])
    found = explain(detector, planted, X[:200])
    assert (found.argmax(1) == columns).mean() > 0.98


def test_both_columns_of_a_broken_relation_come_first():
    a = RNG.normal(size=300)
    X = np.c_[RNG.normal(size=(300, 3)), a, a + RNG.normal(scale=0.05, size=300)]
    detector = LocalOutlierFactor(novelty=True).fit(X)
    broken = np.c_[RNG.normal(scale=0.3, size=(20, 3)), np.ones(20), -np.ones(20)]
    assert np.abs(broken).max() < X.std(0).min() * 3  # no value is strange by itself
    ranks = explain(detector, broken, X).argsort(1)
    assert (np.sort(ranks[:, -2:], 1) == [3, 4]).all()


def test_columns_that_are_strange_together_are_named():
    """Each by itself would break the relation, if it alone took a usual value."""
    size = RNG.normal(size=(400, 1))
    related = size + RNG.normal(scale=0.1, size=(400, 3))
    X = np.c_[RNG.normal(size=(400, 3)), related]
    detector = LocalOutlierFactor(novelty=True).fit(X[:300])
    large = X[300:].copy()
    large[:, 3:] += 6 - size[300:]
    found = explain(detector, large, X[:300])
    assert (found[:, 3:] > 0).mean() > 0.95
    assert (found.argmax(1) >= 3).mean() > 0.95


def test_samples_are_independent():
    X, reference = RNG.normal(size=(50, 4)), RNG.normal(size=(30, 4))
    detector = Linear(1, 2, 3, 4)
    alone = np.concatenate([explain(detector, X[[k]], reference) for k in range(50)])
    np.testing.assert_allclose(explain(detector, X, reference), alone)


def test_nothing_is_changed():
    X, reference = RNG.normal(size=(5, 2)), RNG.normal(size=(9, 2))
    copies = X.copy(), reference.copy()
    explain(Linear(1, 1), X, reference)
    np.testing.assert_array_equal(X, copies[0])
    np.testing.assert_array_equal(reference, copies[1])


# Data frames --------------------------------------------------------------------------


@pytest.fixture
def frame():
    n = 300
    return pd.DataFrame(
        {
            "colour": pd.Categorical(RNG.choice(["red", "blue"], n)),
            "size": RNG.normal(10, 2, n),
            "day": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(RNG.integers(0, 300, n), "D"),
            "weight": np.where(RNG.random(n) < 0.1, np.nan, RNG.normal(size=n)),
            "shop": RNG.choice(["a", "b", "c"], n),
        },
        index=np.arange(n) * 7,
    )


@pytest.fixture
def pipeline(frame):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer(
        [
            ("kinds", OneHotEncoder(handle_unknown="ignore"), ["colour", "shop"]),
            ("numbers", numbers, ["size", "weight"]),
        ]
    )
    return make_pipeline(columns, LocalOutlierFactor(novelty=True)).fit(frame)


def test_a_frame_of_mixed_columns(frame, pipeline):
    strange = frame.iloc[:4].copy()
    strange["size"] = [99.0, 10, 10, 10]
    strange["weight"] = 0.0
    strange["shop"] = ["a", "unheard of", "b", "c"]
    strange.iloc[2, 3] = 40.0
    before = strange.copy()
    found = explain(pipeline, strange, frame.iloc[50:200])
    assert list(found.columns) == list(frame.columns)
    assert list(found.index) == list(strange.index)
    assert list(found.idxmax(axis=1)[:3]) == ["size", "shop", "weight"]
    # The pipeline leaves it out; distances are rounded otherwise in another batch.
    np.testing.assert_allclose(found["day"], 0, atol=1e-12)
    pd.testing.assert_frame_equal(strange, before)


def test_polars_frames():
    X = RNG.normal(size=(60, 3))
    X[0, 2] = 50
    frame = pl.DataFrame(X, schema=["a", "b", "c"])
    forest = IsolationForest(random_state=0).fit(frame[10:])
    found = explain(forest, frame[:5], frame[10:])
    assert isinstance(found, pl.DataFrame)
    assert found.columns == ["a", "b", "c"]
    np.testing.assert_array_equal(found[0].to_numpy().argmax(), 2)
    by_hand = explain(IsolationForest(random_state=0).fit(X[10:]), X[:5], X[10:])
    np.testing.assert_allclose(found.to_numpy(), by_hand)


class Weighted(OutlierMixin, BaseEstimator):
    """Scores the columns that `encoder` makes by a sum with weights."""

    def fit(self, X, y=None):
        self.n_features_in_ = X.shape[1]
        return self

    def score_samples(self, X):
        return X @ [1.0, 5.0, 2.0, 3.0, 4.0]


def encoder():
    return ColumnTransformer(
        [
            ("kinds", OneHotEncoder(), ["colour"]),
            ("grades", OrdinalEncoder(), ["grade"]),
            ("numbers", SimpleImputer(), ["size", "weight"]),
        ]
    )


def goods(library, rows):
    """Return a frame of categories and numbers, with missing weights."""
    columns = dict(
        zip(("colour", "grade", "size", "weight"), zip(*rows, strict=True), strict=True)
    )
    if library == "polars":
        kinds = {"colour": pl.Categorical, "grade": pl.Enum(["low", "top"])}
        return pl.DataFrame(columns, schema_overrides=kinds)
    kinds = {"colour": "category", "grade": pd.CategoricalDtype(["low", "top"])}
    return pd.DataFrame(columns).astype(kinds)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("conformal", [None, "inside", "outside"])
def test_a_pipeline_is_explained_in_the_columns_of_the_user(conformal, library):
    """Columns of categories are summed to their own, and missing values filled in."""
    held_out = {"calibration": 0.5, "random_state": 0}
    detector = Weighted()
    if conformal == "inside":
        detector = ConformalDetector(detector, **held_out)
    detector = make_pipeline(encoder(), detector)
    if conformal == "outside":
        detector = ConformalDetector(detector, **held_out)
    rows = [("red", "low", 9.0, None), ("blue", "top", 12.0, 2.0)] * 30
    detector.fit(goods(library, rows))
    frame = goods(library, rows[:2])
    found = explain(detector, frame[:1], frame[1:])
    assert isinstance(found, type(frame))
    assert list(found.columns) == ["colour", "grade", "size", "weight"]
    # From red to blue, from 0 to 1, from 9 to 12, from the mean of 2 to 2.
    np.testing.assert_allclose(found.to_numpy(), [[1 - 5, 2, 3 * 3, 0]], atol=1e-12)


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning")
def test_a_detector_of_ours_in_a_pipeline(frame, pipeline):
    detector = HistoryAD(max_epochs=3, detector_epochs=2, width=8, random_state=0)
    detector = make_pipeline(clone(pipeline[0]), detector).fit(frame)
    found = explain(detector, frame[:40], frame[40:])
    assert np.isfinite(found.to_numpy()).all()
    assert (found[["size", "weight"]].abs().max() > 0).all()
    np.testing.assert_allclose(found["day"], 0)  # which the pipeline leaves out


def test_missing_values_are_kept_apart():
    X = np.array([[np.nan, 1.0], [0.0, 1.0]])
    reference = np.array([[np.nan, 5.0], [0.0, 7.0], [0.2, 7.0]])

    found = explain(Second(), X, reference, n_neighbors=1)
    # Missing is nearest to missing.
    np.testing.assert_allclose(found[:, 1], [4.0, 6.0])


class Second:
    """Scores samples by their second column, and keeps them."""

    def __init__(self):
        self.given = []

    def score_samples(self, X):
        self.given.append(X)
        second = X.iloc[:, 1] if hasattr(X, "iloc") else np.asarray(X)[:, 1]
        return np.asarray(second, dtype=float)


def kinds_of_columns():
    day = pd.to_datetime(["2024-01-01", "2024-06-01", "2024-03-01"])
    return {
        "integers with NA": pd.array([1, 90, None], dtype="Int64"),
        "booleans with NA": pd.array([True, False, None], dtype="boolean"),
        "objects": np.array([1, 90, None], dtype=object),
        "times": day,
        "times of a zone": day.tz_localize("Europe/Stockholm"),
        "categories without samples": pd.Categorical([1, 2, 2], categories=[3, 2, 1]),
        "strings with NA": pd.array(["a", "b", None], dtype="string"),
        "nothing": np.full(3, np.nan),
    }


@pytest.mark.parametrize("name", kinds_of_columns())
def test_types_of_columns_are_kept(name):
    frame = pd.DataFrame({"a": kinds_of_columns()[name], "b": [1.0, 2.0, 3.0]})
    detector = Second()
    explain(detector, frame[:2], frame, n_neighbors=2)
    for given in detector.given:
        assert given.dtypes.equals(frame.dtypes)


@pytest.mark.parametrize(
    ("name", "near_the_second"),
    [
        ("integers with NA", 80),
        ("objects", 80),
        ("times", pd.Timestamp("2024-02-28")),
        ("times of a zone", pd.Timestamp("2024-02-28", tz="Europe/Stockholm")),
    ],
)
def test_numbers_and_times_are_compared_by_their_distance(name, near_the_second):
    column = pd.Series(kinds_of_columns()[name])
    reference = pd.DataFrame({"a": column, "b": [5.0, 7.0, 6.0]})
    near = pd.Series([near_the_second], dtype=column.dtype)
    strange = pd.DataFrame({"a": near, "b": [0.0]})
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        found = explain(Second(), strange, reference.iloc[order], n_neighbors=1)
        assert found["b"].item() == (6.0 if name.startswith("times") else 7.0)


def test_numbers_are_not_cut_off():
    """An array of integers takes the decimals of the reference samples."""
    found = explain(Second(), np.array([[1, 2]]), np.array([[0.0, 2.5]]))
    np.testing.assert_array_equal(found, [[0, 0.5]])
    detector = Second()
    explain(detector, np.array([["a", "1"]]), np.array([["longer", "22"]]))
    steps = [["longer", "1"], ["longer", "22"], ["a", "22"], ["longer", "22"]]
    assert detector.given[1].tolist() == steps


def test_the_largest_numbers():
    X = np.array([[1e308, 1.0], [-1e308, 2.0], [np.inf, 3.0], [5e-324, 4.0]])
    assert np.isfinite(explain(Second(), X, X, n_neighbors=2)).all()


def test_infinite_scores():
    class Lowest:
        def score_samples(self, X):
            return np.where(X[:, 0] > 5, -np.inf, X[:, 1])

    found = explain(Lowest(), np.array([[9.0, 1.0]]), [[0.0, 3.0]])
    # The second column counts after the first one, and not before it.
    np.testing.assert_array_equal(found, [[np.inf, 1.0]])


def test_a_rise_and_a_fall_without_bounds():
    class Corner:
        def score_samples(self, X):
            return np.where((X[:, 0] > 5) != (X[:, 1] > 5), -np.inf, 0.0)

    found = explain(Corner(), np.array([[9.0, 9.0]]), [[0.0, 0.0]])
    np.testing.assert_array_equal(found, [[0.0, 0.0]])


def test_memory_does_not_grow_with_the_samples():
    X = RNG.normal(size=(10_000, 10))
    tracemalloc.start()
    explain(Linear(*range(10)), X, X[:500])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e8  # of all differences at once 6e8


# Errors -------------------------------------------------------------------------------


def test_other_columns():
    frame = pd.DataFrame(RNG.normal(size=(9, 2)), columns=["a", "b"])
    with pytest.raises(ValueError, match=r"columns a, b, and the reference .* b, a"):
        explain(Linear(1, 1), frame, frame[["b", "a"]])


@pytest.mark.parametrize(
    ("X", "reference", "message"),
    [
        (pd.DataFrame({0: [1.0]}), [[1.0]], "X is a data frame of pandas.* an array"),
        ([[1.0]], pl.DataFrame({"a": [1.0]}), "an array.* frame without an index"),
        (pd.DataFrame({0: []}), pd.DataFrame({0: [1.0]}), "X has 0 samples"),
        (pd.DataFrame({0: [1.0]}), pd.DataFrame({0: []}), "reference has 0 samples"),
        (pd.DataFrame(index=[0]), pd.DataFrame(index=[0]), "X has 1 samples and 0 col"),
        (pd.DataFrame([[1.0, 2]], columns=["a", "a"]), [[1.0, 2]], "share a name.* a"),
        ([[np.nan]], [[1.0]], "1 of 1 scores of Linear are NaN"),
    ],
)
def test_samples_that_cannot_be_explained(X, reference, message):
    with pytest.raises(ValueError, match=message):
        explain(Linear(1), X, reference)


@pytest.mark.parametrize("which", [0, 1])
def test_lazy_frames_have_to_be_collected(which):
    frames = [pl.DataFrame({"a": [1.0, 2.0]})] * 2
    frames[which] = frames[which].lazy()
    name = ["X", "reference"][which]
    with pytest.raises(TypeError, match=rf"{name} is a LazyFrame: give {name}\.coll"):
        explain(Linear(1), *frames)


def test_a_detector_without_scores():
    with pytest.raises(ValueError, match="StandardScaler has neither score_samples"):
        explain(StandardScaler(), [[1.0]], [[1.0]])


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "x"])
def test_numbers_of_neighbours(n):
    with pytest.raises(ValueError, match="n_neighbors"):
        explain(Linear(1), [[1.0]], [[1.0]], n_neighbors=n)


def test_images_have_no_columns():
    with pytest.raises(ValueError, match=r"X has 4 dimensions.*anomaly_map\(X\)"):
        explain(Linear(1), np.zeros((2, 1, 3, 3)), np.zeros((2, 1, 3, 3)))
