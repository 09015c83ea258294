"""Scores, scorers and Displays: the sign, the labels, and the drawings."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import OutlierMixin
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError, UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skanomaly import HistoryAD, metrics
from skanomaly.metrics import (
    AnomalyMapDisplay,
    DetectorPrecisionRecallDisplay,
    DetectorRocDisplay,
    ScoreDistributionDisplay,
    TrainingHistoryDisplay,
    detector_average_precision,
    detector_average_precision_score,
    detector_roc_auc,
    detector_roc_auc_score,
)

SCORES = [detector_roc_auc_score, detector_average_precision_score]
SCORERS = [detector_roc_auc, detector_average_precision]
CURVES = [DetectorRocDisplay, DetectorPrecisionRecallDisplay]
SCORE_DISPLAYS = [ScoreDistributionDisplay, *CURVES]

# Two anomalies, four normal samples: below 0 are both anomalies and one normal sample.
Y = np.array([1, 1, 1, 1, -1, -1])
S = np.array([0.9, 0.8, -0.2, 0.4, -0.5, -0.1])


@pytest.fixture
def plt():
    """Yield pyplot without a screen, and close its figures."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    """Return clean training samples, and test samples with 20 far anomalies."""
    rng = np.random.default_rng(0)
    X_train = rng.normal(size=(200, 2))
    X = np.r_[rng.normal(size=(80, 2)), rng.normal(5, 1, size=(20, 2))]
    return X_train, X, np.r_[np.ones(80), -np.ones(20)]


@pytest.fixture(scope="module")
def forest(data):
    return IsolationForest(n_estimators=20, random_state=0).fit(data[0])


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("score", SCORES)
def test_perfect_detector_scores_one(score):
    assert score([1, 1, 1, -1], [3.0, 2.0, 1.0, -1.0]) == 1.0


def test_inverted_detector_scores_zero_area_and_the_worst_precision():
    y, inverted = [1, 1, 1, -1], [-3.0, -2.0, -1.0, 1.0]
    assert detector_roc_auc_score(y, inverted) == 0.0
    assert detector_average_precision_score(y, inverted) == 0.25


@pytest.mark.parametrize("score", SCORES)
def test_constant_scores_are_chance(score):
    chance = {detector_roc_auc_score: 0.5, detector_average_precision_score: 1 / 3}
    assert score(Y, np.zeros(6)) == pytest.approx(chance[score])


def test_values_by_hand():
    # Of the 8 pairs of anomaly and normal sample, one is the wrong way round.
    assert detector_roc_auc_score(Y, S) == 7 / 8
    # The anomalies stand at ranks 1 and 3: precisions 1/1 and 2/3.
    assert detector_average_precision_score(Y, S) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("weight", [None, [1, 2, 3, 1, 2, 5]])
def test_same_as_sklearn_with_the_anomaly_positive(weight):
    for ours, theirs in zip(
        SCORES, [roc_auc_score, average_precision_score], strict=True
    ):
        expected = theirs(Y == -1, -S, sample_weight=weight)
        got = ours(Y, S, sample_weight=weight)
        assert got == expected
        assert type(got) is float


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", [list, np.float32, "column", "unsigned"])
def test_takes_any_kind_of_array(score, kind):
    y, s = Y, np.array([9, 8, 3, 5, 0, 4])
    kinds = {
        list: (y.tolist(), s.tolist()),
        np.float32: (y.astype("f4"), s.astype("f4")),
        "column": (y.astype(object), s.reshape(-1, 1)),
        "unsigned": (y.astype("i1"), s.astype("u1")),
    }
    assert score(*kinds[kind]) == score(y, s / 10)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "y",
    [[0, 0, 1], [0, 0, 0], [-1, 0, 1], [True, True], ["1", "1", "-1"], [1, 2]],
)
def test_other_labels_are_refused_with_the_way_to_convert(score, y):
    with pytest.raises(ValueError, match=r"np\.where\(y == 1, -1, 1\)"):
        score(y, np.arange(len(y)))


@pytest.mark.parametrize("score", SCORES)
def test_the_advised_conversion_gives_the_right_score(score):
    y = np.array([0, 0, 0, 1])
    assert score(np.where(y == 1, -1, 1), [3, 2, 1, 0]) == 1.0


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("y", "s", "match"),
    [
        ([1, -1], [0.0, np.nan], "NaN"),
        ([1, -1], [0.0, np.inf], "infinity"),
        ([1, -1], [0.0], "inconsistent"),
        ([1, -1], np.zeros((2, 2)), "1d array"),
        ([], [], "0 sample"),
    ],
)
def test_broken_input_is_refused(score, y, s, match):
    with pytest.raises(ValueError, match=match):
        score(y, s)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("label", [1, -1])
def test_one_class_gives_nan_and_a_warning(score, label):
    with pytest.warns(UndefinedMetricWarning, match="Only one class") as record:
        assert np.isnan(score([label] * 3, [1, 2, 3]))
    assert record[0].filename == __file__


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("weight", [Y == 1, Y == -1, np.zeros(6)])
def test_one_class_with_a_weight_gives_nan_and_a_warning(score, weight):
    with pytest.warns(UndefinedMetricWarning, match="Only one class"):
        assert np.isnan(score(Y, S, sample_weight=weight.astype(float)))


@pytest.mark.parametrize("score", SCORES)
def test_weights_that_are_refused(score):
    with pytest.raises(ValueError, match="inconsistent"):
        score(Y, S, sample_weight=[1.0])
    with pytest.raises(ValueError, match="sample_weight contains NaN"):
        score(Y, S, sample_weight=[np.nan] * 6)


# ---------------------------------------------------------------- scorers


class Density(OutlierMixin, KernelDensity):
    """A detector without a decision_function."""


@pytest.mark.parametrize("scorer", SCORERS)
def test_scorer_takes_decision_function_pipelines_and_score_samples(scorer, data):
    X_train, X, y = data
    detectors = [
        IsolationForest(n_estimators=20, random_state=0),
        make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True)),
        Density(),
    ]
    for detector in detectors:
        assert scorer(detector.fit(X_train), X, y) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("scorer", "score"), list(zip(SCORERS, SCORES, strict=True)))
def test_scorer_in_cross_validation(scorer, score, data):
    _, X, y = data
    detector, cv = IsolationForest(n_estimators=5, random_state=0), StratifiedKFold(3)
    expected = [
        score(y[test], detector.fit(X[train]).decision_function(X[test]))
        for train, test in cv.split(X, y)
    ]
    assert cross_val_score(detector, X, y, scoring=scorer, cv=cv).tolist() == expected


def test_scorers_in_a_grid_search(data):
    _, X, y = data
    search = GridSearchCV(
        IsolationForest(n_estimators=5, random_state=0),
        {"max_features": [1, 2]},
        scoring={"auroc": detector_roc_auc, "ap": detector_average_precision},
        refit="auroc",
        cv=StratifiedKFold(3),
    ).fit(X, y)
    assert search.best_score_ == search.cv_results_["mean_test_auroc"].max() > 0.9
    assert search.cv_results_["mean_test_ap"].min() > 0.5
    assert search.score(X, y) == detector_roc_auc(search.best_estimator_, X, y)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_request_leaves_the_shared_scorer_as_it_is(scorer, data, forest):
    _, X, y = data
    weight = np.linspace(0, 1, len(y))
    with config_context(enable_metadata_routing=True):
        one = scorer.set_score_request(sample_weight=True)
        other = one.set_score_request(sample_weight="w")
        assert other is one
        requests = one.get_metadata_routing().score.requests
        shared = scorer.get_metadata_routing().score.requests
    assert requests == {"sample_weight": "w"}
    assert shared.get("sample_weight") is None
    assert one(forest, X, y, sample_weight=weight) == scorer(
        forest, X, y, sample_weight=weight
    )
    assert repr(one) == repr(scorer) == repr(pickle.loads(pickle.dumps(scorer)))


def test_scorer_refuses_other_labels(data, forest):
    _, X, y = data
    with pytest.raises(ValueError, match="convert them"):
        detector_roc_auc(forest, X, y == -1)


# ---------------------------------------------------------------- Displays of scores


@pytest.mark.parametrize("display_class", SCORE_DISPLAYS)
@pytest.mark.parametrize("pipeline", [False, True])
def test_from_estimator_is_from_predictions_at_threshold_zero(
    plt, data, display_class, pipeline
):
    X_train, X, y = data
    detector = LocalOutlierFactor(novelty=True)
    if pipeline:
        detector = make_pipeline(StandardScaler(), detector)
    score = detector.fit(X_train).decision_function(X)
    display = display_class.from_estimator(detector, X, y)
    expected = display_class.from_predictions(y, score, threshold=0)
    assert display.name == type(detector).__name__
    assert expected.name is None
    for key in vars(expected).keys() - {"name"}:
        if not key.endswith("_"):
            np.testing.assert_equal(getattr(display, key), getattr(expected, key))
    assert display.figure_ is display.ax_.figure


@pytest.mark.parametrize("display_class", SCORE_DISPLAYS)
def test_detector_without_decision_function_has_no_threshold(plt, data, display_class):
    X_train, X, y = data
    display = display_class.from_estimator(KernelDensity().fit(X_train), X, y)
    assert not any("threshold" in text for text in legend(display.ax_))


@pytest.mark.parametrize("display_class", SCORE_DISPLAYS)
def test_draws_on_the_given_axes_and_again(plt, display_class):
    _, axes = plt.subplots(1, 2)
    display = display_class.from_predictions(Y, S, ax=axes[0], name="one")
    assert display.ax_ is axes[0]
    assert display.plot(ax=axes[1]) is display
    assert display.ax_ is axes[1]
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("display_class", SCORE_DISPLAYS)
def test_unfitted_detector(plt, data, display_class):
    _, X, y = data
    for detector in [
        IsolationForest(),
        make_pipeline(StandardScaler(), KernelDensity()),
    ]:
        with pytest.raises(NotFittedError):
            display_class.from_estimator(detector, X, y)
    assert not plt.get_fignums()


@pytest.mark.parametrize("display_class", SCORE_DISPLAYS)
@pytest.mark.parametrize(
    ("y", "s", "match"),
    [
        ([0, 1], [1, 2], "convert them"),
        ([1, -1], [1], "inconsistent"),
        ([1, -1], [1, np.nan], "NaN"),
    ],
)
def test_display_refuses_broken_input(plt, display_class, y, s, match):
    with pytest.raises(ValueError, match=match):
        display_class.from_predictions(y, s)
    assert not plt.get_fignums()


@pytest.mark.parametrize("display_class", CURVES)
@pytest.mark.parametrize("y", [[1, 1], [-1, -1], None])
def test_curve_needs_both_classes(plt, display_class, y):
    with pytest.raises(ValueError, match=r"one class|needs labels"):
        display_class.from_predictions(y, [0.0, 1.0])


def test_score_distribution(plt):
    display = ScoreDistributionDisplay.from_predictions(
        Y, S, threshold=0, name="mine", bins=[-1, 0, 1]
    )
    assert list(display.histograms_) == ["normal", "anomaly"]
    normal = display.histograms_["normal"].get_data()
    assert normal.values.tolist() == [0.25, 0.75]
    assert normal.edges.tolist() == [-1, 0, 1]
    assert display.histograms_["anomaly"].get_data().values.tolist() == [1, 0]
    assert list(display.line_.get_xdata()) == [0, 0]
    assert legend(display.ax_) == [
        "mine: normal (n = 4)",
        "mine: anomaly (n = 2)",
        "mine: threshold (0)",
    ]
    assert display.ax_.get_xlabel() == "Score (higher = more normal)"
    assert display.ax_.get_ylabel() == "Density"
    assert display.y_true.tolist() == Y.tolist()
    assert display.y_score.tolist() == S.tolist()


def test_score_distribution_is_a_density_in_the_same_bins(plt, data, forest):
    _, X, y = data
    display = ScoreDistributionDisplay.from_estimator(forest, X, y, bins=7)
    drawn = [patch.get_data() for patch in display.histograms_.values()]
    for values, edges, _ in drawn:
        assert np.sum(values * np.diff(edges)) == pytest.approx(1)
        assert edges.tolist() == drawn[0].edges.tolist()


def test_score_distribution_without_labels_or_threshold(plt, data, forest):
    display = ScoreDistributionDisplay.from_estimator(forest, data[1])
    assert display.y_true is None
    name = "IsolationForest"
    assert legend(display.ax_) == [
        f"{name}: all samples (n = 100)",
        f"{name}: threshold (0)",
    ]
    display = ScoreDistributionDisplay.from_predictions(None, S)
    assert display.line_ is None
    assert list(display.histograms_) == ["all samples"]
    display = ScoreDistributionDisplay(S, threshold=0).plot(plot_threshold=False)
    assert display.line_ is None


def test_score_distribution_of_one_class_and_outside_the_bins(plt):
    display = ScoreDistributionDisplay.from_predictions([1, 1], [0.0, 0.0])
    assert list(display.histograms_) == ["normal"]
    display = ScoreDistributionDisplay.from_predictions([1, -1], [0, 9], bins=[-1, 1])
    assert display.histograms_["anomaly"].get_data().values.tolist() == [0]


def test_rows_too_far_out_to_compute_leave_the_others_visible(plt):
    far = np.finfo(np.float32).min
    display = ScoreDistributionDisplay([0.0, 1.0, 2.0, far]).plot(bins=2)
    drawn = display.histograms_["all samples"].get_data()
    assert drawn.edges.tolist() == [0, 1, 2]
    assert drawn.values.tolist() == [0.25, 0.5]
    assert legend(display.ax_) == ["all samples (n = 4)"]
    assert ScoreDistributionDisplay([far, far]).plot(bins=2).histograms_


def test_hist_kwargs_win(plt):
    display = ScoreDistributionDisplay(S).plot(hist_kwargs={"label": "x", "hatch": "/"})
    assert display.histograms_["all samples"].get_hatch() == "/"
    assert legend(display.ax_) == ["x"]


def test_one_colour_is_that_of_face_and_edge(plt):
    display = ScoreDistributionDisplay(S).plot(hist_kwargs={"color": "red"})
    drawn = display.histograms_["all samples"]
    assert drawn.get_edgecolor() == (1, 0, 0, 1)
    assert drawn.get_facecolor() == (1, 0, 0, 0.35)
    options = {"color": "red", "facecolor": "blue"}
    drawn = display.plot(hist_kwargs=options).histograms_["all samples"]
    assert drawn.get_facecolor() == (0, 0, 1, 1)


def test_roc_curve(plt):
    display = DetectorRocDisplay.from_predictions(Y, S, threshold=0, name="mine")
    drawn = display.line_.get_xydata().tolist()
    assert drawn == [[0, 0], [0, 0.5], [0.25, 0.5], [0.25, 1], [1, 1]]
    assert drawn == np.c_[display.fpr, display.tpr].tolist()
    assert display.roc_auc == detector_roc_auc_score(Y, S)
    assert display.operating_point == (0.25, 1.0)
    assert display.operating_point_.get_xydata().tolist() == [[0.25, 1.0]]
    assert display.chance_level_.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert legend(display.ax_) == [
        "mine (AUROC = 0.88)",
        "chance (AUROC = 0.50)",
        "detector's threshold",
    ]
    assert "False positive rate" in display.ax_.get_xlabel()
    assert "True positive rate" in display.ax_.get_ylabel()


def test_precision_recall_curve(plt):
    display = DetectorPrecisionRecallDisplay.from_predictions(Y, S, threshold=0)
    drawn = display.line_.get_xydata()
    assert drawn.tolist() == np.c_[display.recall, display.precision].tolist()
    rank_by_rank = [[1, 2 / 6], [1, 2 / 5], [1, 2 / 4], [1, 2 / 3], [0.5, 1 / 2]]
    assert drawn.tolist() == [*rank_by_rank, [0.5, 1], [0, 1]]
    assert display.line_.get_drawstyle() == "steps-post"
    assert display.average_precision == detector_average_precision_score(Y, S)
    assert display.prevalence == pytest.approx(1 / 3)
    assert display.operating_point == (1.0, pytest.approx(2 / 3))
    assert display.operating_point_.get_xydata().tolist() == [[1.0, 2 / 3]]
    assert list(display.chance_level_.get_ydata()) == [display.prevalence] * 2
    assert legend(display.ax_) == [
        "AP = 0.83",
        "chance (prevalence = 0.33)",
        "detector's threshold",
    ]
    assert "Recall" in display.ax_.get_xlabel()
    assert "Precision" in display.ax_.get_ylabel()


@pytest.mark.parametrize("display_class", CURVES)
def test_operating_point_is_that_of_predict_and_lies_on_the_curve(
    plt, data, forest, display_class
):
    _, X, y = data
    display = display_class.from_estimator(forest, X, y)
    flagged = forest.predict(X) == -1
    recall = np.mean(flagged[y == -1])
    expected = {
        DetectorRocDisplay: (np.mean(flagged[y == 1]), recall),
        DetectorPrecisionRecallDisplay: (recall, np.mean(y[flagged] == -1)),
    }
    assert display.operating_point == pytest.approx(expected[display_class])
    if display_class is DetectorPrecisionRecallDisplay:
        assert display.operating_point in map(tuple, display.line_.get_xydata())


@pytest.mark.parametrize("display_class", CURVES)
def test_weights_of_a_curve_are_repetitions(plt, data, forest, display_class):
    _, X, y = data
    times = np.arange(len(y)) % 4
    often = np.repeat(np.arange(len(y)), times)
    plain = display_class.from_estimator(forest, X, y)
    one = display_class.from_estimator(forest, X, y, sample_weight=times)
    other = display_class.from_estimator(forest, X[often], y[often])
    for name in ("roc_auc", "average_precision", "prevalence", "operating_point"):
        if hasattr(other, name):
            assert getattr(one, name) == pytest.approx(getattr(other, name))
    assert one.operating_point != plain.operating_point
    drawn = [np.unique(d.line_.get_xydata().round(9), axis=0) for d in (one, other)]
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_weights_of_a_distribution(plt):
    display = ScoreDistributionDisplay.from_predictions(
        Y, S, sample_weight=[1, 2, 3, 4, 0, 0], bins=[-1, 0, 1]
    )
    assert list(display.histograms_) == ["normal"]
    assert display.histograms_["normal"].get_data().values.tolist() == [0.3, 0.7]


@pytest.mark.parametrize("display_class", CURVES)
def test_curve_needs_weights_in_both_classes(plt, display_class):
    with pytest.raises(ValueError, match="among the samples with a weight"):
        display_class.from_predictions(Y, S, sample_weight=(Y == 1).astype(float))
    with pytest.raises(ValueError, match="inconsistent"):
        display_class.from_predictions(Y, S, sample_weight=[1.0])


def test_score_on_the_threshold_is_not_flagged(plt):
    display = DetectorRocDisplay.from_predictions([1, -1], [0, -1], threshold=0)
    assert display.operating_point == (0.0, 1.0)


def test_no_row_flagged_has_no_precision(plt):
    display = DetectorPrecisionRecallDisplay.from_predictions(Y, S, threshold=-9)
    assert display.operating_point is display.operating_point_ is None
    assert DetectorRocDisplay.from_predictions(Y, S, threshold=-9).operating_point == (
        0.0,
        0.0,
    )


@pytest.mark.parametrize("display_class", CURVES)
def test_curve_options(plt, display_class):
    display = display_class.from_predictions(
        Y,
        S,
        threshold=0,
        plot_chance_level=False,
        plot_operating_point=False,
        curve_kwargs={"color": "red", "label": "curve"},
    )
    assert display.chance_level_ is display.operating_point_ is None
    assert display.line_.get_color() == "red"
    assert legend(display.ax_) == ["curve"]
    assert legend(display.plot(name="other").ax_)[0].startswith("other (A")


@pytest.mark.parametrize("display_class", CURVES)
def test_two_detectors_share_one_plot(plt, display_class):
    one = display_class.from_predictions(Y, S, threshold=0, name="one")
    two = display_class.from_predictions(Y, -S, threshold=0, name="two", ax=one.ax_)
    texts = legend(one.ax_)
    assert [text.split()[0] for text in texts] == ["one", "two", "chance", "detector's"]
    assert one.line_.get_color() != two.line_.get_color()
    assert two.operating_point_.get_color() == two.line_.get_color()


def test_curve_of_bare_arrays(plt):
    display = DetectorPrecisionRecallDisplay(precision=[0.5, 1], recall=[1, 0]).plot()
    assert display.chance_level_ is None
    assert display.ax_.get_legend() is None


# ---------------------------------------------------------------- training history


class Trained:
    """A stand-in for a fitted detector."""

    def __init__(self, history):
        self.history_ = history


TWO_STAGES = [
    {"epoch": 1, "stage": "gan", "duration": 0.1, "critic_loss": 3.0, "best": True},
    {"epoch": 2, "stage": "gan", "duration": 0.1, "critic_loss": 2.0},
    {"epoch": 1, "stage": "detector", "detector_loss": 1.0, "valid_loss": 4.0},
    {"epoch": 2, "stage": "detector", "detector_loss": 0.5},
    {"epoch": 3, "stage": "detector", "detector_loss": 0.4, "valid_loss": 5.0},
]


def test_history_with_stages(plt):
    display = TrainingHistoryDisplay.from_estimator(Trained(TWO_STAGES))
    drawn = {name: line.get_xydata().tolist() for name, line in display.lines_.items()}
    assert drawn == {
        "critic_loss": [[1, 3], [2, 2]],
        "detector_loss": [[3, 1], [4, 0.5], [5, 0.4]],
        "valid_loss": [[3, 4], [5, 5]],
    }
    np.testing.assert_equal(display.losses["valid_loss"], [np.nan] * 2 + [4, np.nan, 5])
    assert display.epochs.tolist() == [1, 2, 3, 4, 5]
    assert [line.get_xdata()[0] for line in display.stage_lines_] == [2.5]
    assert [text.get_text() for text in display.ax_.texts] == ["gan", "detector"]
    assert [text.xy[0] for text in display.ax_.texts] == [1, 2.5]
    assert legend(display.ax_) == list(display.losses)
    assert display.ax_.get_title() == "Trained"
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("Epoch", "Loss")
    assert display.figure_ is display.ax_.figure
    assert not display.plot(plot_stages=False).stage_lines_


def test_history_line_breaks_between_stages(plt):
    stages = ["a", "a", "b", "a"]
    display = TrainingHistoryDisplay([1, 2, 3, 4], {"loss": [4, 3, np.nan, 1]})
    assert display.plot().lines_["loss"].get_xdata().tolist() == [1, 2, 4]
    assert display.lines_["loss"].get_marker() == "None"
    display.stages = stages
    line = display.plot().lines_["loss"]
    np.testing.assert_equal(line.get_xdata(), [1, 2, np.nan, 4])
    np.testing.assert_equal(line.get_ydata(), [4, 3, np.nan, 1])
    assert line.get_marker() == "."
    assert line.get_markevery() == [False, False, False, True]
    assert [line.get_xdata()[0] for line in display.stage_lines_] == [2.5, 3.5]


def test_history_without_stages_keeps_the_recorded_epochs(plt):
    history = [{"epoch": 10 * i, "loss": np.float32(1 / i)} for i in (1, 2, 3)]
    display = TrainingHistoryDisplay.from_estimator(Trained(history), name="mine")
    assert display.lines_["loss"].get_xdata().tolist() == [10, 20, 30]
    assert display.stage_lines_ == []
    assert not display.ax_.texts
    assert display.ax_.get_title() == "mine"


def test_history_of_one_epoch_shows_a_dot_and_axes_are_kept(plt):
    _, ax = plt.subplots()
    display = TrainingHistoryDisplay.from_estimator(Trained([{"loss": 1.0}]), ax=ax)
    assert display.ax_ is ax
    assert display.lines_["loss"].get_marker() == "."


def test_the_history_display_draws_losses_by_default(plt):
    trained = Trained([{"epoch": 1, "a_loss": 1.0, "mean_weight": 0.4}])
    assert list(TrainingHistoryDisplay.from_estimator(trained).lines_) == ["a_loss"]
    names = ["mean_weight"]
    display = TrainingHistoryDisplay.from_estimator(trained, names=names)
    assert list(display.lines_) == names
    for record in trained.history_:
        del record["a_loss"]
    assert list(TrainingHistoryDisplay.from_estimator(trained).lines_) == names


def test_history_names(plt):
    trained = Trained(TWO_STAGES)
    names = ["valid_loss", "critic_loss"]
    display = TrainingHistoryDisplay.from_estimator(
        trained, names=names, curve_kwargs={"linewidth": 5}
    )
    assert list(display.lines_) == names
    assert display.lines_["valid_loss"].get_linewidth() == 5
    display = TrainingHistoryDisplay.from_estimator(trained, names="critic_loss")
    assert list(display.lines_) == ["critic_loss"]
    with pytest.raises(ValueError, match=r"named \['los'\]; there are \['critic_loss'"):
        TrainingHistoryDisplay.from_estimator(trained, names=["los"])


@pytest.mark.parametrize("history", [[], [{"epoch": 1, "duration": 1.0}]])
def test_history_without_a_loss(plt, history):
    with pytest.raises(ValueError, match=r"[Tt]he history"):
        TrainingHistoryDisplay.from_estimator(Trained(history))


def test_history_of_other_estimators(plt, forest):
    with pytest.raises(NotFittedError):
        TrainingHistoryDisplay.from_estimator(IsolationForest())
    with pytest.raises(AttributeError, match="IsolationForest has no `history_`"):
        TrainingHistoryDisplay.from_estimator(forest)


# ---------------------------------------------------------------- maps


class Mapped:
    """A detector whose map is the first channel, and whose score is minus its mean."""

    image_shape_ = (1, 6, 4)

    def anomaly_map(self, X):
        return np.asarray(X).reshape(len(X), *self.image_shape_)[:, 0] / 255

    def decision_function(self, X):
        return -self.anomaly_map(X).mean((1, 2))


GREY = np.random.default_rng(0).integers(0, 256, (5, 1, 6, 4)).astype(np.uint8)


@pytest.mark.parametrize("flat", [False, True])
def test_maps_of_a_detector(plt, flat):
    X = GREY.reshape(5, -1) if flat else GREY
    display = AnomalyMapDisplay.from_estimator(Mapped(), X, n_columns=3)
    np.testing.assert_array_equal(display.images, GREY)
    assert (len(display.images_), len(display.maps_)) == (5, 5)
    for k in range(5):
        np.testing.assert_array_equal(display.images_[k].get_array(), GREY[k, 0] / 255)
        np.testing.assert_array_equal(display.maps_[k].get_array(), GREY[k, 0] / 255)
    # All maps have one range, and so have the images.
    assert {m.get_clim() for m in display.maps_} == {(0.0, GREY.max() / 255)}
    assert {i.get_clim() for i in display.images_} == {(0, 1)}
    written = [float(text.get_text()) for text in display.texts_]
    np.testing.assert_allclose(written, -GREY.mean((1, 2, 3)) / 255, rtol=1e-2)
    assert display.ax_.get_title() == "Mapped"
    assert display.colorbar_.ax.get_ylabel() == "anomaly map"
    assert display.figure_ is display.ax_.figure


def test_maps_lie_below_their_images(plt):
    display = AnomalyMapDisplay(GREY, GREY[:, 0]).plot(n_columns=3)
    places = [i.get_extent() for i in display.images_]
    lefts, tops = [p[0] for p in places], [p[3] for p in places]
    assert lefts[:3] == sorted(set(lefts))
    assert lefts[3:] == lefts[:2]
    assert tops[:3] == [0, 0, 0]
    for image, below in zip(
        places, (m.get_extent() for m in display.maps_), strict=True
    ):
        assert image[:2] == below[:2]
        assert image[2] < below[3] < below[2]
    (right, _), (low, _) = display.ax_.get_xlim()[::-1], display.ax_.get_ylim()
    assert right == pytest.approx(max(p[1] for p in places))
    assert low == pytest.approx(max(m.get_extent()[2] for m in display.maps_))
    # The images in grey lie below the maps, unless these stand alone.
    assert len(display.ax_.images) == 15
    assert display.maps_[0].get_alpha() < 1
    alone = display.plot(overlay=False, plot_colorbar=False)
    assert (len(alone.ax_.images), alone.maps_[0].get_alpha()) == (10, 1)
    assert alone.colorbar_ is None
    assert alone.texts_ == []


def test_maps_with_negative_values_have_a_symmetric_range(plt):
    maps = np.linspace(-2, 1, 5 * 24).reshape(5, 6, 4)
    display = AnomalyMapDisplay(GREY, maps, name="mine").plot()
    assert {m.get_clim() for m in display.maps_} == {(-2.0, 2.0)}
    assert display.maps_[0].get_cmap().name == "RdBu_r"
    own = {"vmin": 0, "cmap": "viridis", "alpha": 0.2}
    display.plot(map_kwargs=own)
    assert display.maps_[0].get_clim() == (0, 2)
    assert display.maps_[0].get_cmap().name == "viridis"
    norm = plt.Normalize(-9, 9)
    assert display.plot(map_kwargs={"norm": norm}).maps_[3].norm is norm


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_maps_of_colours_and_floats(plt, n_channels):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, n_channels, 5, 5)) * 7
    display = AnomalyMapDisplay(images, np.zeros((2, 5, 5))).plot()
    unit = (images - images.min()) / np.ptp(images)
    for image, drawn in zip(unit, display.images_, strict=True):
        expected = np.moveaxis(image, 0, -1) if n_channels == 3 else image.mean(0)
        np.testing.assert_allclose(drawn.get_array(), expected)
    _, ax = plt.subplots()
    assert AnomalyMapDisplay(images[:1] * 0, np.ones((1, 5, 5))).plot(ax).ax_ is ax
    plt.gcf().canvas.draw()


def test_maps_that_do_not_fit(plt):
    for images, maps, message in [
        (GREY[:, 0], GREY[:, 0], r"shape \(5, 6, 4\), which has to be"),
        (GREY[:0], GREY[:0, 0], r"shape \(0, 1, 6, 4\)"),
        (GREY[None], GREY, r"Of a clip, give the frames"),
        (GREY, GREY, r"maps have the shape \(5, 1, 6, 4\).*need maps of .*\(5, 6, 4\)"),
        (GREY, np.full((5, 6, 4), np.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            AnomalyMapDisplay(images, maps)
    with pytest.raises(ValueError, match="scores have the shape"):
        AnomalyMapDisplay(GREY, GREY[:, 0], scores=[1.0])
    with pytest.raises(ValueError, match="n_columns"):
        AnomalyMapDisplay(GREY, GREY[:, 0]).plot(n_columns=0)


def test_maps_of_other_estimators(plt, forest):
    with pytest.raises(NotFittedError):
        AnomalyMapDisplay.from_estimator(HistoryAD(), GREY)
    with pytest.raises(AttributeError, match="IsolationForest has no `anomaly_map`"):
        AnomalyMapDisplay.from_estimator(forest, GREY)


# ---------------------------------------------------------------- matplotlib


def test_without_matplotlib(monkeypatch, data):
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    _, X, y = data
    # Not even fitted: it says so before the detector has scored for an hour.
    calls = [
        lambda: TrainingHistoryDisplay.from_estimator(Trained(TWO_STAGES)),
        lambda: TrainingHistoryDisplay([1], {"loss": [1.0]}).plot(),
        lambda: AnomalyMapDisplay.from_estimator(Mapped(), GREY),
        lambda: AnomalyMapDisplay(GREY, GREY[:, 0]).plot(),
        lambda: ScoreDistributionDisplay(S).plot(),
        lambda: DetectorRocDisplay(fpr=[0, 1], tpr=[0, 1]).plot(),
    ]
    for display_class in SCORE_DISPLAYS:
        calls += [
            lambda make=display_class.from_estimator: make(IsolationForest(), X, y),
            lambda make=display_class.from_predictions: make(Y, S),
        ]
    for call in calls:
        with pytest.raises(ImportError, match=r"pip install skanomaly\[plot\]"):
            call()


def test_import_is_light():
    heavy = {"matplotlib", "torch", "skorch"}
    code = f"import sys, skanomaly.metrics; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_all_is_complete_and_sorted():
    assert sorted(metrics.__all__) == metrics.__all__
    assert all(getattr(metrics, name).__doc__ for name in metrics.__all__)
