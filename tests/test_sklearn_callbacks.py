"""Callbacks of scikit-learn follow stages and epochs, and change nothing."""

import copy
import pickle
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.fixes import parse_version
from skorch.callbacks import Callback
from test_common import every_detector, every_staged_detector, short

import skanomaly
from skanomaly import AABiGAN, HistoryAD, JointEncoderGAN, TransferAD
from skanomaly.engine import AlternatingNet
from skanomaly.exceptions import (
    ConstantScoresWarning,
    StopTraining,
    TrainingDivergedError,
)
from skanomaly.metrics import detector_roc_auc

HAS_CALLBACKS = parse_version(sklearn.__version__) >= parse_version("1.9")
since_1_9 = pytest.mark.skipif(not HAS_CALLBACKS, reason="scikit-learn < 1.9")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(no corpus|no domains)"),
    pytest.mark.filterwarnings("ignore:No sample is taken as a known:UserWarning"),
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.FitInterruptedWarning"),
]
STAGES = {
    "AABiGAN": {"training": 3},
    "ADRA": {"pretraining": 1, "adaptation": 3},
    "HistoryAD": {"history": 3, "detector": 2},
    "JointEncoderGAN": {"training": 3},
    "TransferAD": {"pretraining": 3, "transfer": 2},
}
#: Stages without any score.
SCORELESS = {("ADRA", "pretraining")}


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def y():
    return np.where(np.arange(80) % 5 == 0, -1, 1)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)


def arguments(cls, X):
    """Return the arguments of ``fit``, with domains where they make a second stage."""
    domains = np.where(np.arange(len(X)) % 2, 1, -1)
    return (X, {"sample_domain": domains}) if cls is TransferAD else (X, {})


class Recorder:
    """Records its calls, and detectors as of the end of each task."""

    def __init__(self, stop_at=()):
        self.calls, self.detectors, self.stop_at = [], {}, stop_at

    def setup(self, estimator, context):
        self.calls.append(("setup", context.task_name))

    def teardown(self, estimator, context):
        self.calls.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None):
        self.calls.append(("begin", *path(context), context.max_subtasks))
        self.given = X, y

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.calls.append(("end", *path(context)))
        self.detectors[path(context)] = fitted_estimator
        return path(context) in self.stop_at


class Bystander(Recorder):
    """Records its calls, and asks for no detectors."""

    def on_fit_task_end(self, estimator, context):
        return super().on_fit_task_end(estimator, context)


class Failing(Recorder):
    """Fails in the second epoch."""

    def on_fit_task_begin(self, estimator, context):
        if path(context)[-1] == "epoch 1":
            raise RuntimeError("a callback failed")


class InterruptAfter(Callback):
    """Interrupts a stage as Ctrl-C does, after a number of epochs."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) - net.run_start_ == self.epochs:
            raise KeyboardInterrupt


def path(context):
    """Return stage and epoch of a task of a detector, or "fit" for the whole."""
    name = context.task_name
    if name == "fit":
        return (name,)
    above = path(context.parent)
    name = f"epoch {context.task_id}" if name == "epoch" else name
    return (name,) if above == ("fit",) else (*above, name)


# The tasks ------------------------------------------------------------------------


@since_1_9
@every_detector
def test_stages_and_epochs_are_tasks(cls, X):
    X, domains = arguments(cls, X)
    recorder, stages = Bystander(), STAGES[cls.__name__]
    short(cls).set_callbacks(recorder).fit(X, **domains)
    expected = [("setup", "fit"), ("begin", "fit", len(stages))]
    for stage, n_epochs in stages.items():
        expected.append(("begin", stage, n_epochs))
        for k in range(n_epochs):
            epoch = stage, f"epoch {k}"
            expected += [("begin", *epoch, 0), ("end", *epoch)]
        expected.append(("end", stage))
    assert recorder.calls == [*expected, ("end", "fit"), ("teardown", "fit")]


@since_1_9
@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_callbacks_change_no_score(cls, kind, request):
    X, domains = arguments(cls, request.getfixturevalue(kind))
    plain = short(cls).fit(X, **domains)
    watched = short(cls).set_callbacks(Recorder()).fit(X, **domains)
    np.testing.assert_array_equal(watched.score_samples(X), plain.score_samples(X))
    assert watched.offset_ == plain.offset_
    assert vars(watched).keys() - vars(plain).keys() == {"_skl_callbacks"}


@since_1_9
@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_detectors_in_training_score_as_if_it_was_interrupted_then(cls, kind, request):
    X, domains = arguments(cls, request.getfixturevalue(kind))
    recorder = Recorder()
    final = short(cls).set_callbacks(recorder).fit(X, **domains)
    interrupted = short(cls, callbacks=[InterruptAfter(2)], on_interrupt="keep")
    expected = interrupted.fit(X, **domains)
    stage = next(c[1] for c in recorder.calls if c[2:] == ("epoch 1",))
    seen = recorder.detectors[stage, "epoch 1"]
    if (cls.__name__, stage) not in SCORELESS:
        np.testing.assert_array_equal(seen.score_samples(X), expected.score_samples(X))
        assert seen.offset_ == expected.offset_
        assert seen.n_iter_ == len(seen.history_) == expected.n_iter_
    *_, last = (c[1:] for c in recorder.calls if c[0] == "end" and len(c) == 3)
    for task in (last, ("fit",)):
        np.testing.assert_array_equal(
            recorder.detectors[task].decision_function(X), final.decision_function(X)
        )


@since_1_9
@every_detector
def test_detectors_in_training_are_complete(cls, X, tmp_path):
    """They can be copied, pickled, saved, and trained on; none holds the data."""
    X, domains = arguments(cls, np.tile(X, (1, 20)))
    recorder = Recorder()
    short(cls, warm_start=True).set_callbacks(recorder).fit(X, **domains)
    for task, seen in recorder.detectors.items():
        if seen is None:
            assert (cls.__name__, task[0]) in SCORELESS
            continue
        scores = seen.score_samples(X)
        seen.set_callbacks()
        pickled = pickle.dumps(seen)
        assert X.tobytes() not in pickled
        assert X.astype(np.float32).tobytes() not in pickled
        skanomaly.save(seen, tmp_path / "seen")
        for other in (pickle.loads(pickled), skanomaly.load(tmp_path / "seen")):
            np.testing.assert_array_equal(other.score_samples(X), scores)
        later = copy.deepcopy(seen).fit(X, **domains)
        assert later.n_iter_ > seen.n_iter_


@since_1_9
def test_nothing_is_copied_unless_a_callback_asks(X, monkeypatch):
    def refused(*arguments):
        raise AssertionError

    monkeypatch.setattr("skanomaly._progress.ended_copy", refused)
    short(HistoryAD).set_callbacks(Bystander()).fit(X)
    with pytest.raises(AssertionError):
        short(HistoryAD).set_callbacks(Recorder()).fit(X)


@since_1_9
def test_networks_that_cannot_be_copied_are_named(X):
    class Remembers(torch.nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    roles = {"encoder": lambda shape, latent_dim: Remembers(shape[0], latent_dim)}
    detector = short(AABiGAN, architecture=roles)
    with pytest.raises(ValueError, match=r"needs a copy of its networks.*deepcopy"):
        detector.set_callbacks(Recorder()).fit(X)
    assert detector.set_callbacks(Bystander()).fit(X).n_iter_ == 3


@since_1_9
def test_a_training_that_is_not_complete_gives_no_warning(X):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        short(AABiGAN).set_callbacks(Recorder()).fit(np.ones_like(X))
    assert [one.category for one in given] == [ConstantScoresWarning]


@since_1_9
def test_hooks_get_the_arguments_of_fit(X, y):
    recorder, table = Bystander(), pd.DataFrame(X, columns=list("abcd"))
    short(AABiGAN).set_callbacks(recorder).fit(table, y)
    assert recorder.given[0] is table
    assert recorder.given[1] is y


@since_1_9
@pytest.mark.parametrize(
    ("cls", "params", "stage"),
    [
        (HistoryAD, {"init": "random"}, "history"),
        (JointEncoderGAN, {"encoder_training": "separate"}, "training"),
    ],
)
def test_stages_without_a_score_give_no_detector(cls, params, stage, X):
    recorder = Recorder()
    short(cls, **params).set_callbacks(recorder).fit(X)
    scored = {t[0]: seen is not None for t, seen in recorder.detectors.items()}
    assert scored.pop(stage) is False
    assert all(scored.values())


@since_1_9
def test_phases_of_growth_are_stages(images):
    recorder = Recorder()
    final = short(JointEncoderGAN).set_callbacks(recorder).fit(images)
    phases = [call[1] for call in recorder.calls if call[0] == "end" and len(call) == 2]
    assert phases == ["6 x 6", "12 x 12, fading in", "12 x 12", "fit"]
    n_epochs = [recorder.detectors[(phase,)].n_iter_ for phase in phases]
    assert n_epochs == [3, 6, 9, final.n_iter_]


@since_1_9
def test_a_warm_start_is_reported_too(X):
    recorder = Recorder()
    detector = short(HistoryAD, warm_start=True).fit(X).set_callbacks(recorder)
    detector.fit(X)
    assert recorder.detectors["detector", "epoch 1"].n_iter_ == detector.n_iter_ == 10
    assert recorder.detectors["history", "epoch 1"].n_iter_ == 7


# Stops and errors -----------------------------------------------------------------


@since_1_9
@every_detector
def test_a_callback_stops_a_stage(cls, X):
    X, domains = arguments(cls, X)
    first, *others = STAGES[cls.__name__]
    recorder = Recorder(stop_at=[(first, "epoch 0")])
    detector = short(cls).set_callbacks(recorder).fit(X, **domains)
    ends = [call[1:] for call in recorder.calls if call[0] == "end"]
    assert ends[:2] == [(first, "epoch 0"), (first,)]
    left = [(s, f"epoch {k}") for s in others for k in range(STAGES[cls.__name__][s])]
    assert [end for end in ends[2:] if len(end) == 2] == left
    assert detector.n_iter_ == 1 + len(left)
    assert not detector.interrupted_
    assert np.isfinite(detector.score_samples(X)).all()


@since_1_9
def test_a_request_at_the_end_of_a_stage_has_no_effect(X):
    recorder = Recorder(stop_at=[("history",), ("fit",)])
    assert short(HistoryAD).set_callbacks(recorder).fit(X).n_iter_ == 5


@since_1_9
def test_a_stage_that_another_callback_ends_is_complete(X):
    class InABatch(Callback):
        def on_batch_end(self, net, **kwargs):
            raise StopTraining

    class AtAnEpoch(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise StopTraining

    for other in (InABatch(), AtAnEpoch()):
        recorder = Recorder()
        short(AABiGAN, callbacks=[other]).set_callbacks(recorder).fit(X)
        begun, ended = (
            [call[1:3] for call in recorder.calls if call[0] == kind]
            for kind in ("begin", "end")
        )
        assert begun == [("fit", 1), ("training", 3), ("training", "epoch 0")]
        assert ended == [("training", "epoch 0"), ("training",), ("fit",)]


@since_1_9
@every_detector
def test_errors_tear_down_and_change_nothing(cls, X):
    failing, recorder = Failing(), Recorder()
    detector = short(cls, max_epochs=3).fit(X)
    scores, before = detector.score_samples(X), set(vars(detector))
    detector.set_callbacks(failing, recorder)
    with pytest.raises(RuntimeError, match="a callback failed"):
        detector.fit(X)
    for one in (failing, recorder):
        assert one.calls[0] == ("setup", "fit")
        assert one.calls[-1] == ("teardown", "fit")
    assert vars(detector).keys() - before == {"_skl_callbacks"}
    np.testing.assert_array_equal(detector.set_callbacks().score_samples(X), scores)


@since_1_9
def test_a_divergence_tears_down(X):
    recorder = Recorder()
    detector = short(AABiGAN, lr=1e30).set_callbacks(recorder)
    with pytest.raises(TrainingDivergedError):
        detector.fit(X)
    assert recorder.calls[-1] == ("teardown", "fit")
    assert ("end", "fit") not in recorder.calls
    with pytest.raises(ValueError, match="NaN"):  # nothing has begun
        detector.fit(X * np.nan)
    assert [call[0] for call in recorder.calls].count("setup") == 1


@since_1_9
def test_an_interrupt_tears_down(X):
    recorder = Recorder()
    interrupted = short(HistoryAD, callbacks=[InterruptAfter(1)])
    with pytest.raises(KeyboardInterrupt):
        interrupted.set_callbacks(recorder).fit(X)
    assert recorder.calls[-1] == ("teardown", "fit")
    kept = interrupted.set_params(on_interrupt="keep").fit(X)
    assert kept.interrupted_
    assert recorder.calls[-2:] == [("end", "fit"), ("teardown", "fit")]


# Copies of detectors, caches ------------------------------------------------------


@since_1_9
@every_detector
def test_clone_pickle_and_files(cls, X, tmp_path):
    recorder = Recorder()
    detector = short(cls).set_callbacks(recorder)
    clone(detector).fit(X)
    assert recorder.calls[-1] == ("teardown", "fit")
    detector.fit(X)
    other = pickle.loads(pickle.dumps(detector))
    other.fit(X)
    np.testing.assert_array_equal(other.score_samples(X), detector.score_samples(X))
    skanomaly.save(detector, tmp_path / "file")
    loaded = skanomaly.load(tmp_path / "file")
    assert not hasattr(loaded, "_skl_callbacks")
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


@since_1_9
@every_staged_detector
def test_memory_works_with_callbacks(cls, X, tmp_path, monkeypatch):
    X, domains = arguments(cls, X)
    build, runs = partial(short, cls, memory=str(tmp_path)), []
    plain = short(cls).fit(X, **domains).score_samples(X)
    run = AlternatingNet.run

    def counted(net, *arguments, max_epochs, **options):
        runs.append(max_epochs)
        return run(net, *arguments, max_epochs=max_epochs, **options)

    monkeypatch.setattr(AlternatingNet, "run", counted)
    first, *others = STAGES[cls.__name__]
    # A stage that was stopped is not stored.
    stopping = Bystander(stop_at=[(first, "epoch 0")])
    build().set_callbacks(stopping).fit(X, **domains)
    for is_stored in (False, True):
        runs.clear()
        recorder = Bystander()
        detector = build().set_callbacks(recorder).fit(X, **domains)
        np.testing.assert_array_equal(detector.score_samples(X), plain)
        assert len(runs) == len(others) + (not is_stored)
        ended = [c[1] for c in recorder.calls if c[0] == "end" and len(c) == 2]
        assert ended == ([] if is_stored else [first]) + [*others, "fit"]
    np.testing.assert_array_equal(build().fit(X, **domains).score_samples(X), plain)


# Meta-estimators, callbacks of scikit-learn ---------------------------------------


@since_1_9
def test_progress_in_a_search_with_two_processes(X, y, capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    search = GridSearchCV(
        short(HistoryAD),
        {"lam": [1, 10]},
        scoring=detector_roc_auc,
        cv=2,
        n_jobs=2,
    )
    search.set_callbacks(ProgressBar()).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    fits = [line for line in lines if "HistoryAD - fit" in line]
    stages = [line for line in lines if "HistoryAD - history" in line]
    assert len(fits) == len(stages) == 5  # two candidates, two folds, and the refit
    assert all("100%" in line for line in [*fits, *stages])


class Touch:
    """Makes a file per epoch, named by process, stage and epoch."""

    max_propagation_depth = None

    def __init__(self, folder):
        self.folder = folder

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch":
            fit = context.parent.parent
            assert fit.source_task_name == "fit-final-estimator"
            of_pipeline = fit.parent
            fold = of_pipeline.source_task_name, of_pipeline.task_id
            stage, epoch = path(context)
            (self.folder / f"{fold}, {stage}, {epoch}").touch(exist_ok=False)


@since_1_9
def test_epochs_of_pipelines_in_a_search_reach_a_callback(X, y, tmp_path):
    pipeline = make_pipeline(StandardScaler(), short(HistoryAD))
    grid = {"historyad__lam": [1, 10]}
    search = GridSearchCV(pipeline, grid, scoring=detector_roc_auc, cv=2, n_jobs=2)
    search.set_callbacks(Touch(tmp_path)).fit(X, y)
    epochs = [file.name.split(", ")[-2:] for file in tmp_path.iterdir()]
    assert len(epochs) == 5 * 5  # two candidates, two folds, and the refit
    for stage, n_epochs in STAGES["HistoryAD"].items():
        for k in range(n_epochs):
            assert epochs.count([stage, f"epoch {k}"]) == 5


@since_1_9
@every_detector
def test_a_pipeline_with_a_progress_bar_gives_no_warning(cls, X, capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    pipeline = make_pipeline(StandardScaler(), short(cls))
    pipeline.set_callbacks(ProgressBar()).fit(X)
    shown = capsys.readouterr().out
    assert f"{cls.__name__} - fit" in shown
    assert f"{cls.__name__} - {next(iter(STAGES[cls.__name__]))}" in shown
    assert not hasattr(pipeline[-1], "_skl_callbacks")


@since_1_9
@every_detector
def test_a_monitor_follows_the_score(cls, X, y):
    from sklearn.callback import ScoringMonitor

    monitor = ScoringMonitor(scoring=detector_roc_auc)
    detector = short(cls).set_callbacks(monitor).fit(X, y)
    log = monitor.get_logs().data_as_pandas
    stages = STAGES[cls.__name__]
    scored = {s: n for s, n in stages.items() if (cls.__name__, s) not in SCORELESS}
    if cls is TransferAD:
        del scored["transfer"]  # needs domains
    epochs = log[log.task_name == "epoch"]
    assert len(epochs) == sum(scored.values())
    assert epochs.score.between(0, 1).all()
    expected = detector_roc_auc(detector, X, y)
    assert epochs.score.iloc[-1] == log[log.task_name == "fit"].score.item() == expected


@since_1_9
def test_a_monitor_needs_labels(X):
    from sklearn.callback import ScoringMonitor

    monitor = ScoringMonitor(scoring=detector_roc_auc)
    short(HistoryAD).set_callbacks(monitor).fit(X)
    log = monitor.get_logs().data
    assert len(log) == 8  # five epochs, two stages, the fit
    assert not any("score" in row for row in log)


@since_1_9
def test_a_monitor_in_a_search_with_two_processes(X, y):
    from sklearn.callback import ScoringMonitor

    monitor = ScoringMonitor(scoring=detector_roc_auc)
    detector = short(AABiGAN).set_callbacks(monitor)
    grid = {"lr": [1e-4, 1e-2]}
    search = GridSearchCV(detector, grid, scoring=detector_roc_auc, cv=2, n_jobs=2)
    search.fit(X, y)
    log = monitor.get_logs().data_as_pandas
    assert len(log[log.task_name == "epoch"]) == 5 * 3


# Without callbacks ----------------------------------------------------------------


@every_detector
def test_callbacks_exist_where_scikit_learn_has_them(cls, X):
    assert hasattr(cls, "set_callbacks") == HAS_CALLBACKS
    assert "_report" not in vars(short(cls).fit(X))


def test_one_that_is_none_is_refused():
    if HAS_CALLBACKS:
        with pytest.raises(TypeError, match="FitCallback"):
            HistoryAD().set_callbacks(Callback())
