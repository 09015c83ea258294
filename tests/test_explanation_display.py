"""The Display of explanations: bars of a sample, a map of many."""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError

from skanomaly import explain
from skanomaly.metrics import ExplanationDisplay

C = np.array([[0.1, -2.0, 0.5], [0.3, 1.0, -4.0], [0.0, 0.2, 0.1]])


@pytest.fixture
def plt():
    """Yield pyplot without a screen, and close its figures."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_bars_of_one_sample(plt):
    display = ExplanationDisplay.from_explanation(C[:1], [[1.0, 123456.0, 3.0]])
    assert [bar.get_width() for bar in display.bars_] == [-2.0, 0.5, 0.1]
    assert labels(display.ax_) == ["x1 = 1.235e+05", "x2 = 3", "x0 = 1"]
    assert display.ax_.get_xlabel() == "Contribution to the anomaly score"
    colors = [bar.get_facecolor() for bar in display.bars_]
    assert colors[0] != colors[1] == colors[2]
    top, *_, bottom = (bar.get_y() for bar in display.bars_)
    low, high = display.ax_.get_ylim()
    assert (top < bottom) == (high < low)  # the largest one is above
    assert display.image_ is display.colorbar_ is None
    assert display.figure_ is display.ax_.figure


def test_a_single_sample_may_be_a_vector(plt):
    display = ExplanationDisplay.from_explanation(C[0], [7, 8, 9], max_features=2)
    assert labels(display.ax_) == ["x1 = 8", "x2 = 9"]


def test_a_map_of_many_samples(plt):
    display = ExplanationDisplay.from_explanation(
        C, feature_names=["a", "b", "c"], max_features=2, name="mine"
    )
    # Mean absolute contributions are .13, 1.07 and 1.53.
    assert labels(display.ax_) == ["c", "b"]
    np.testing.assert_array_equal(display.image_.get_array(), C.T[[2, 1]])
    low, high = display.image_.get_clim()
    assert -low == high == np.quantile(np.abs(C[:, 1:]), 0.98)
    assert display.ax_.get_title() == "mine"
    assert display.bars_ is None


def test_one_of_many_samples(plt):
    display = ExplanationDisplay(C)
    assert display.plot(sample=1).bars_[0].get_width() == -4
    assert display.plot(sample=-1).bars_[0].get_width() == 0.2
    with pytest.raises(IndexError):
        display.plot(sample=3)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_values_of_data_frames(plt, library):
    columns = {
        "shop": ["Uppsala", "a shop of a very long name indeed"],
        "open": [True, None],
        "size": [None, 2.5],
    }
    X = pl.DataFrame(columns) if library == "polars" else pd.DataFrame(columns)
    names = list(columns)
    if library == "polars":
        contributions = pl.DataFrame(C[:2], schema=names)
    else:
        X.index = [17, 18]
        contributions = pd.DataFrame(C[:2], columns=names, index=X.index)
    display = ExplanationDisplay.from_explanation(contributions, X)
    assert labels(display.ax_) == ["size", "open", "shop"]
    first, second = (labels(display.plot(sample=k).ax_) for k in (0, 1))
    assert first[0] == "open = True"
    assert first[2] == "shop = Uppsala"
    assert second[0] == "size = 2.5"
    assert second[2] == "shop = a shop of a very long name …"


def test_from_estimator(plt):
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
    detector = IsolationForest(random_state=0).fit(X)
    strange = pd.DataFrame({"a": [0.0, 9.0], "b": [0.0, 0.0]}, index=[5, 9])
    display = ExplanationDisplay.from_estimator(detector, strange, X, n_neighbors=2)
    expected = explain(detector, strange, X, n_neighbors=2)
    np.testing.assert_array_equal(display.contributions, expected)
    assert display.ax_.get_title() == "IsolationForest"
    assert labels(display.plot(sample=1).ax_)[0] == "a = 9"


def test_an_unfitted_detector(plt):
    with pytest.raises(NotFittedError):
        ExplanationDisplay.from_estimator(IsolationForest(), C, C)
    assert not plt.get_fignums()


def test_infinite_contributions_are_drawn_beyond_the_others(plt):
    display = ExplanationDisplay.from_explanation([[np.inf, 2.0, -np.inf]])
    assert [bar.get_width() for bar in display.bars_] == pytest.approx([2.2, -2.2, 2])
    nothing_else = ExplanationDisplay.from_explanation([[np.inf, 0.0]])
    assert nothing_else.bars_[0].get_width() == 1
    assert ExplanationDisplay.from_explanation(np.zeros((3, 2))).image_ is not None


def test_given_axes_and_looks(plt):
    _, axes = plt.subplots(1, 2)
    display = ExplanationDisplay.from_explanation(C, ax=axes[0])
    display.plot(axes[1], sample=0, bar_kwargs={"color": "red"})
    assert display.ax_ is axes[1]
    assert display.bars_[0].get_facecolor() == (1, 0, 0, 1)
    image = display.plot(image_kwargs={"vmax": 9, "cmap": "PuOr"}).image_
    assert image.get_clim()[1] == 9
    assert image.get_cmap().name == "PuOr"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contributions": [[np.nan, 1.0]]}, "contributions holds NaN"),
        ({"contributions": C, "X": C[:2]}, r"shape \(2, 3\), .* \(3, 3\)"),
        ({"contributions": C, "feature_names": ["a"]}, "1 feature_names.* 3 columns"),
        (
            {
                "contributions": pd.DataFrame(C[:, :2], columns=["a", "b"]),
                "X": pd.DataFrame(C[:, :2], columns=["b", "a"]),
            },
            "other names of columns",
        ),
        ({"contributions": np.zeros((0, 2))}, "0 sample"),
    ],
)
def test_arrays_that_do_not_belong_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExplanationDisplay(**arguments)


@pytest.mark.parametrize("n", [0, 1.5, "all"])
def test_numbers_of_columns(plt, n):
    with pytest.raises(ValueError, match="max_features"):
        ExplanationDisplay(C).plot(max_features=n)
    assert not plt.get_fignums()


def test_without_matplotlib(monkeypatch):
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (
        lambda: ExplanationDisplay(C).plot(),
        lambda: ExplanationDisplay.from_explanation(C),
        # Not even fitted: it says so before the detector has scored for an hour.
        lambda: ExplanationDisplay.from_estimator(IsolationForest(), C, C),
    ):
        with pytest.raises(ImportError, match=r"pip install skanomaly\[plot\]"):
            call()
