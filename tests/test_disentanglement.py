"""DCI: by hand from importances, then of codes with known factors."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LassoCV, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

from skanomaly.metrics import dci_scores
from skanomaly.metrics._disentanglement import disentanglement_and_completeness

# The benchmarks are no part of the package, and their folder need not be on the path.
_path = Path(__file__).parents[1] / "benchmarks" / "shapes.py"
_spec = importlib.util.spec_from_file_location("shapes", _path)
shapes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shapes)


def close(value):
    return pytest.approx(value, rel=0, abs=1e-12)


# ---------------------------------------------------------------- of importances


@pytest.mark.parametrize(
    "R",
    [
        np.eye(4),
        np.eye(4)[[2, 0, 3, 1]],
        np.eye(3) * [0.1, 7, 1e-9],
        [[0.0, 2.0], [0.5, 0.0]],
    ],
)
def test_one_code_per_factor_is_perfect(R):
    scores = disentanglement_and_completeness(R)
    assert scores["disentanglement"] == close(1)
    assert scores["completeness"] == close(1)
    assert scores["code_weights"] == close(np.sum(R, axis=1) / np.sum(R))


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (200, 7)])
def test_equal_importances_score_zero_and_never_less(shape):
    scores = disentanglement_and_completeness(np.full(shape, 1 / 3))
    for name in ("disentanglement", "completeness"):
        assert 0 <= scores[name] == close(0)


def test_values_by_hand():
    R = np.array([[0.75, 0.0], [0.25, 0.25], [0.0, 0.75]])
    scores = disentanglement_and_completeness(R)
    # The code in the middle is shared equally, and has a quarter of the importance.
    assert scores["code_weights"] == close([3 / 8, 1 / 4, 3 / 8])
    assert scores["code_disentanglement"] == close([1, 0, 1])
    assert scores["disentanglement"] == close(3 / 4)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(3)
    assert scores["factor_completeness"] == close([1 - entropy] * 2)
    assert scores["completeness"] == close(1 - entropy)


def test_the_base_is_the_number_of_factors_and_of_codes():
    R = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]])
    scores = disentanglement_and_completeness(R)
    thirds = -(np.log2(1 / 3) / 3 + np.log2(2 / 3) * 2 / 3) / 2
    assert scores["code_disentanglement"] == close([1 / 2, 1 - thirds])
    assert scores["disentanglement"] == close(2 / 5 / 2 + 3 / 5 * (1 - thirds))
    assert scores["completeness"] == close(1)


def test_a_duplicated_code_is_disentangled_but_not_complete():
    R = np.array([[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]])
    scores = disentanglement_and_completeness(R)
    assert scores["disentanglement"] == close(1)
    assert scores["completeness"] == close(1 / 2)  # log_4 2
    scores = disentanglement_and_completeness(R[[0, 1, 2]])
    assert scores["factor_completeness"] == close([1 - np.log(2) / np.log(3), 1])


def test_codes_and_factors_without_importance():
    R = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    scores = disentanglement_and_completeness(R)
    assert scores["code_disentanglement"] == close([1, 1, 0])
    assert scores["code_weights"] == close([1 / 3, 2 / 3, 0])
    assert scores["disentanglement"] == close(1)
    assert scores["factor_completeness"] == close([1, 1, 0])
    assert scores["completeness"] == close(2 / 3)
    scores = disentanglement_and_completeness(np.zeros((2, 3)))
    assert scores["disentanglement"] == scores["completeness"] == 0


def test_order_and_scale_do_not_matter():
    rng = np.random.RandomState(0)
    R = rng.exponential(size=(6, 4))
    scores = disentanglement_and_completeness(R)
    codes, factors = rng.permutation(6), rng.permutation(4)
    moved = disentanglement_and_completeness(3 * R[codes][:, factors])
    assert moved["disentanglement"] == close(scores["disentanglement"])
    assert moved["completeness"] == close(scores["completeness"])
    assert moved["code_weights"] == close(scores["code_weights"][codes])
    assert moved["factor_completeness"] == close(scores["factor_completeness"][factors])


# ---------------------------------------------------------------- of codes


@pytest.fixture(scope="module")
def known():
    """Return codes that are the factors and a little noise, and the factors."""
    rng = np.random.RandomState(0)
    factors = np.stack([rng.randint(n, size=600) for n in (3, 5, 4)], axis=1)
    return factors + rng.uniform(-0.3, 0.3, size=factors.shape), factors


def test_permuted_and_scaled_factors_are_perfect_codes(known):
    codes, factors = known
    for changed in (codes, codes[:, [2, 0, 1]], codes * [-1e6, 1, 1e-6] + 9):
        scores = dci_scores(changed, factors, random_state=0)
        assert scores.disentanglement == pytest.approx(1, abs=0.01)
        assert scores.completeness == pytest.approx(1, abs=0.01)
        assert scores.informativeness == 1
    assert scores.importances.shape == (3, 3)
    assert scores.importances.sum(axis=0) == close(1)
    assert scores.factor_informativeness.tolist() == [1, 1, 1]
    assert type(scores.disentanglement) is type(scores.completeness) is float
    assert type(scores.informativeness) is float


def test_rotated_codes_are_informative_but_not_disentangled(known):
    codes, factors = known
    turn, _ = np.linalg.qr(np.random.RandomState(0).normal(size=(3, 3)))
    standard = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    scores = dci_scores(standard @ turn, factors, random_state=0)
    assert scores.disentanglement < 0.4
    assert scores.completeness < 0.4
    assert scores.informativeness > 0.7


def test_noise_is_not_informative(known):
    _, factors = known
    noise = np.random.RandomState(1).normal(size=(600, 4))
    scores = dci_scores(noise, factors, random_state=0)
    assert scores.informativeness < 0.4
    assert scores.disentanglement < 0.1


def test_duplicated_and_constant_codes(known):
    codes, factors = known
    twice = np.c_[codes, codes, np.zeros(600)]
    scores = dci_scores(twice, factors, random_state=0)
    assert scores.disentanglement == pytest.approx(1, abs=0.01)
    assert scores.completeness == pytest.approx(1 - np.log(2) / np.log(7), abs=0.02)
    assert scores.code_weights[-1] == scores.code_disentanglement[-1] == 0


def test_order_of_factors_codes_and_rows(known):
    codes, factors = known
    turn = np.array([[1.0, 1, 0], [1, -1, 0], [0, 1, 1]])
    codes = codes @ turn
    scores = dci_scores(codes, factors, random_state=0)
    moved = dci_scores(codes, factors[:, [2, 0, 1]], random_state=0)
    assert moved.disentanglement == close(scores.disentanglement)
    np.testing.assert_array_equal(moved.importances, scores.importances[:, [2, 0, 1]])
    rows = np.random.RandomState(0).permutation(600)
    for moved in (
        dci_scores(codes[:, ::-1], factors, random_state=0),
        dci_scores(codes[rows], factors[rows], random_state=0),
    ):
        for name in ("disentanglement", "completeness", "informativeness"):
            assert moved[name] == pytest.approx(scores[name], abs=0.05)


def test_random_state(known):
    codes, factors = known
    codes = codes @ [[1, 1, 0], [1, -1, 0], [0, 1, 1]]
    before = np.random.get_state()
    dci_scores(codes, factors)
    # The position too: a few draws leave the words of the state as they are.
    for old, new in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(old, new)
    scores = dci_scores(codes, factors, random_state=3)
    for same in (3, np.random.RandomState(3)):
        again = dci_scores(codes, factors, random_state=same)
        np.testing.assert_array_equal(again.importances, scores.importances)
    other = dci_scores(codes, factors, random_state=4)
    assert not np.array_equal(other.importances, scores.importances)


@pytest.mark.parametrize(("test_size", "n_test"), [(0.25, 150), (0.5, 300), (7, 7)])
def test_rows_are_held_out_and_standardised_by_the_others(test_size, n_test, known):
    seen = []

    class Spy(DecisionTreeClassifier):
        def fit(self, X, y):
            seen.append(X)
            return super().fit(X, y)

        def score(self, X, y):
            seen.append(X)
            return super().score(X, y)

    codes, factors = known
    options = {"classifier": Spy(), "test_size": test_size, "random_state": 0}
    dci_scores(codes * [3, 1, 0.1] + 9, factors, **options)
    assert [len(rows) for rows in seen] == [600 - n_test, n_test] * 3
    for rows in seen[::2]:
        assert rows.mean(axis=0) == pytest.approx(0, abs=1e-9)
        assert rows.std(axis=0) == pytest.approx(1, abs=1e-9)


def test_kinds_of_factors():
    rng = np.random.RandomState(0)
    place, size = rng.uniform(size=400), rng.randint(4, size=400)
    colour = rng.choice(["red", "green", "blue"], size=400)
    codes = np.c_[place, size, np.unique(colour, return_inverse=True)[1]]
    codes = codes + rng.uniform(-0.01, 0.01, codes.shape)
    factors = pd.DataFrame({"place": place, "size": size, "colour": colour})
    scores = dci_scores(codes, factors, random_state=0)
    assert scores.disentanglement == pytest.approx(1, abs=0.01)
    # R² is never 1 to the last digit, an accuracy is.
    assert (scores.factor_informativeness == 1).tolist() == [False, True, True]
    assert scores.factor_informativeness[0] > 0.98

    as_objects = dci_scores(codes, factors.to_numpy(), random_state=0)
    np.testing.assert_array_equal(as_objects.importances, scores.importances)
    numbers = factors[["place", "size"]].to_numpy()
    options = {"regressor": LassoCV(random_state=0), "random_state": 0}
    smooth = dci_scores(codes, numbers, discrete_factors=False, **options)
    one = dci_scores(codes, numbers, discrete_factors=[False, True], **options)
    auto = dci_scores(codes, numbers, **options)
    assert 0.99 < smooth.factor_informativeness[1] < 1
    assert one.factor_informativeness[0] == smooth.factor_informativeness[0] < 1
    assert one.factor_informativeness[1] == 1
    np.testing.assert_array_equal(auto.importances, one.importances)


@pytest.mark.parametrize(
    "classifier",
    [
        GradientBoostingClassifier(n_estimators=5, random_state=0),
        LogisticRegression(C=0.1),
        GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [2, 3]}),
    ],
)
def test_other_classifiers(classifier, known):
    codes, factors = known
    options = {"classifier": classifier, "random_state": 0}
    scores = dci_scores(codes, factors, **options)
    turned = dci_scores(codes @ [[1, 1, 0], [1, -1, 0], [0, 1, 1]], factors, **options)
    assert (scores.importances >= 0).all()
    assert np.isfinite(scores.disentanglement)
    assert scores.disentanglement > max(0.7, turned.disentanglement)
    assert not hasattr(classifier, "classes_")


def test_lasso_of_the_paper():
    rng = np.random.RandomState(0)
    factors = rng.normal(size=(300, 3)) * [1, 100, 0.01]
    lasso = LassoCV(random_state=0)
    mixed = factors / [1, 100, 0.01] @ [[1, 1, 0], [1, -1, 0], [0, 0, 1]]
    shared = 1 - np.log(2) / np.log(3)  # half and half, of three
    for codes, expected in (
        (factors[:, [1, 2, 0]] * [-3, 1, 2], [1, 1, 1]),
        (mixed, [shared, shared, 1]),
    ):
        scores = dci_scores(codes, factors, regressor=lasso, random_state=0)
        assert scores.code_disentanglement == pytest.approx(expected, abs=0.15)
        assert scores.informativeness > 0.99
        # Factors are standardised, so that their units give none of them more weight.
        assert scores.code_weights == pytest.approx([1 / 3] * 3, abs=0.1)


def test_without_importances(known):
    hist = HistGradientBoostingClassifier(max_iter=2)
    with pytest.raises(ValueError, match="HistGradientBoostingClassifier has neither"):
        dci_scores(*known, classifier=hist)


def with_value(array, value):
    changed = array.astype(float)
    changed[3, 1] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, f: (z[1:], f), "inconsistent numbers of samples"),
        (lambda z, f: (z[:, :1], f), "codes must have two columns or more"),
        (lambda z, f: (z, f[:, :1]), "factors must have two columns or more"),
        (lambda z, f: (z, f[:, 0]), "Expected 2D array"),
        (lambda z, f: (z[:, :, None], f), "Found array with dim 3"),
        (lambda z, f: (with_value(z, np.nan), f), "codes contains NaN"),
        (lambda z, f: (with_value(z, np.inf), f), "codes contains infinity"),
        (lambda z, f: (z, with_value(f, np.nan)), "column 1 has missing values"),
        (lambda z, f: (z, pd.DataFrame(with_value(f, np.nan))), "column 1 has missing"),
        (lambda z, f: (z, with_value(f, np.inf)), "contains infinity"),
        (lambda z, f: (z, f * [1, 0, 1]), "factor in column 1 is constant"),
        (lambda z, f: (z * 0, f), "All codes are constant"),
        (lambda z, f: (z, np.where(f > 0, f, None)), "column 0 has missing values"),
        (lambda z, f: (z, np.where(f > 0, f, 1j)), "column 0 must be numbers or"),
        (lambda z, f: (z[:0], f[:0]), "0 sample"),
        (lambda z, f: (z, pd.Series(f[:, 0])), "2-dimensional"),
    ],
)
def test_broken_input_is_refused(change, message, known):
    with pytest.raises(ValueError, match=message):
        dci_scores(*change(*known), random_state=0)


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA])
def test_missing_strings_are_refused(nothing, known):
    codes, factors = known
    names = np.array(list("abcde"), object)[factors]
    names[3, 1] = nothing
    frame = pd.DataFrame(names)
    for given in (names, names.tolist(), frame):
        with pytest.raises(ValueError, match="factor in column 1 has missing values"):
            dci_scores(codes, given)
    for dtype in ("string", "category"):
        with pytest.raises(ValueError, match="factor in column 1 has missing values"):
            dci_scores(codes, frame.astype(dtype))


@pytest.mark.parametrize("wrong", ["all", 1, [True], [True, False, 0.5], None])
def test_unknown_discrete_factors(wrong, known):
    with pytest.raises(ValueError, match='discrete_factors must be "auto", True, Fal'):
        dci_scores(*known, discrete_factors=wrong)


def test_strings_are_not_continuous(known):
    codes, factors = known
    with pytest.raises(ValueError, match="column 0 holds strings: it is discrete"):
        dci_scores(codes, factors.astype(str), discrete_factors=False)


# ---------------------------------------------------------------- of rendered pictures


def test_renderer():
    generated = shapes.make_shapes(
        1100, random_state=0
    )  # more than are rendered at a time
    assert generated.data.shape == (1100, 3, 32, 32)
    assert generated.data.dtype == np.uint8
    assert generated.target.dtype == np.int64
    assert generated.target_names == ["colour", "shape", "x", "y", "size"]
    for column, n_values in zip(
        generated.target.T, shapes.FACTORS.values(), strict=True
    ):
        assert np.unique(column).tolist() == list(range(n_values))
    again = shapes.make_shapes(1100, random_state=np.random.RandomState(0))
    np.testing.assert_array_equal(generated.data, again.data)
    np.testing.assert_array_equal(
        shapes.render(generated.target[-9:]), generated.data[-9:]
    )
    assert not np.array_equal(generated.target, shapes.make_shapes(1100).target)


def test_factors_are_visible():
    *rest, sizes = np.meshgrid(*map(np.arange, shapes.FACTORS.values()), indexing="ij")
    factors = np.stack([f.ravel() for f in [*rest, sizes]], axis=1)
    images = shapes.render(factors)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    # Nothing is cut off, and only the size has to do with the area.
    assert images[:, :, [0, -1]].max() == images[:, :, :, [0, -1]].max() == 0
    brightness = images.max(axis=1).astype(float)
    areas = brightness.sum(axis=(1, 2)) / 255
    for size, radius in enumerate(np.linspace(*shapes._RADII, 4)):
        assert areas[factors[:, 4] == size] == pytest.approx(
            np.pi * radius**2, rel=0.05
        )
    # The centre of mass is where the factors say, except that pixels are coarse.
    places = np.linspace(*shapes._CENTRES, 8)
    for axis, factor in ((1, 2), (2, 3)):
        mass = brightness.sum(axis=axis) @ (np.arange(32) + 0.5) / areas / 255
        assert mass == pytest.approx(places[factors[:, factor]], abs=0.2)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([[0, 0, 0, 0]], r"shape \(n, 5\), got \(1, 4\)"),
        ([[0.5, 0, 0, 0, 0]], "must be integers, got float64"),
        ([[0, 4, 0, 0, 0]], "factor shape must be in 0 to 3"),
        ([[0, 0, 0, -1, 0]], "factor y must be in 0 to 7"),
    ],
)
def test_renderer_refuses(factors, message):
    with pytest.raises(ValueError, match=message):
        shapes.render(factors)


def test_factors_are_better_codes_of_pictures_than_pixels():
    generated = shapes.make_shapes(600, random_state=0)
    small = (
        generated.data.reshape(600, 3, 8, 4, 8, 4).mean(axis=(3, 5)).reshape(600, -1)
    )
    codes = {
        "factors": generated.target,
        "pixels": small,
        "components": PCA(10, random_state=0).fit_transform(small),
    }
    scores = {
        name: dci_scores(code, generated.target, random_state=0)
        for name, code in codes.items()
    }
    assert scores["factors"].disentanglement == pytest.approx(1, abs=0.01)
    assert scores["factors"].informativeness > 0.99
    for name in ("pixels", "components"):
        assert scores[name].disentanglement < 0.5
        assert scores[name].completeness < 0.5
        assert 0.4 < scores[name].informativeness < 0.95
    # The channels hold the colour, if anything does.
    assert scores["pixels"].factor_informativeness.argmax() == 0
