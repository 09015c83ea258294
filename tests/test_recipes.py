"""The recipes of the user guide run, and give the scores of the detector itself.

Packages that are not installed skip their tests.
"""

import importlib.util
import pickle
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

from skanomaly import AABiGAN, ConformalDetector, explain, load, save

GUIDE = Path(__file__).parents[1] / "docs" / "user_guide"
_spec = importlib.util.spec_from_file_location("recipes", GUIDE / "recipes.py")
recipes = sys.modules["recipes"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipes)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    detector = AABiGAN(max_epochs=2, width=8, n_estimators=2, random_state=0)
    file = tmp_path_factory.mktemp("detector") / "detector.safetensors"
    save(detector.fit(pd.DataFrame(X, columns=list("abcd"))), file)
    return file


@pytest.fixture
def detector(path):
    return load(path, device="cpu")


@pytest.fixture
def frame():
    return pd.DataFrame(X, columns=list("abcd"))


# Data frames --------------------------------------------------------------------------


def staff(n, start):
    """Return a table of people with a category, a date, and missing values."""
    rng = np.random.default_rng(n)
    age = rng.uniform(20, 60, n)
    out = pd.DataFrame(
        {
            "job": rng.choice(["nurse", "cook", "smith"], n),
            "shift": pd.Timestamp(start)
            + pd.to_timedelta(rng.integers(28, size=n), "D")
            + pd.to_timedelta(rng.integers(7, 9, n), "h"),
            "age": age,
            "years": (age - 18) * rng.uniform(0.5, 0.6, n),
        }
    )
    for column in ("job", "age", "shift"):
        out.loc[rng.random(n) < 0.05, column] = None
    return out


def of_columns(detector):
    return recipes.pipeline_of_columns(detector, ["job"], ["shift"], ["age", "years"])


def of_skrub(detector):
    pytest.importorskip("skrub")
    return recipes.pipeline_of_skrub(detector)


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CalibrationWarning")
@pytest.mark.filterwarnings("ignore:Found unknown categories:UserWarning")
@pytest.mark.parametrize("make", [of_columns, of_skrub])
def test_a_pipeline_from_a_data_frame_to_alarms(make, tmp_path):
    train, later = staff(600, "2026-01-05"), staff(200, "2026-09-07")
    base = AABiGAN(max_epochs=100, n_estimators=1, calibration=None, random_state=0)
    detector = ConformalDetector(make(base), calibration=0.3, random_state=0)
    detector.fit(train)
    # Time that passes is no anomaly; .05 of new samples is promised.
    assert (detector.predict(later) == -1).mean() < 0.15
    odd = later.assign(shift=later["shift"] + pd.Timedelta(hours=12))
    odd = odd[odd["shift"].notna()]
    assert (detector.predict(odd) == -1).mean() > 0.9
    reasons = explain(detector, odd[:50], reference=train[:200])
    assert reasons.columns.tolist() == train.columns.tolist()
    assert (reasons.idxmax(axis=1) == "shift").mean() > 0.9
    new = later[:5].assign(job="pilot")
    assert np.isfinite(detector.p_value(new)).all()
    joblib.dump(detector, tmp_path / "detector.joblib")
    loaded = joblib.load(tmp_path / "detector.joblib")
    np.testing.assert_array_equal(loaded.p_value(later), detector.p_value(later))


# Threads ------------------------------------------------------------------------------


def test_many_threads_share_a_detector(detector, frame):
    batches = [frame.iloc[k : k + 1 + k % 9] for k in range(200)]
    expected = [detector.score_samples(batch) for batch in batches]
    found = recipes.score_in_threads(detector, batches, n_threads=8)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore")  # of its own parts
def test_a_web_service_scores_in_threads(tmp_path):
    pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient", exc_type=Exception)
    detector = AABiGAN(max_epochs=2, width=8, n_estimators=2, random_state=0).fit(X)
    save(detector, tmp_path / "detector.safetensors")
    client = testclient.TestClient(recipes.make_app(tmp_path / "detector.safetensors"))
    batches = [X[k : k + 1 + k % 9] for k in range(40)]

    class Remote:
        @staticmethod
        def score_samples(rows):
            return client.post("/score", json=rows.tolist()).json()

    found = recipes.score_in_threads(Remote, batches, n_threads=8)
    for answer, batch in zip(found, batches, strict=True):
        np.testing.assert_array_equal(answer["score"], detector.score_samples(batch))
        np.testing.assert_array_equal(answer["label"], detector.predict(batch))


# Dask ---------------------------------------------------------------------------------


def test_dask_gives_the_same_scores(detector):
    array = pytest.importorskip("dask.array")
    chunked = array.from_array(X, chunks=(70, 2))
    scores = recipes.score_by_dask(without_names(detector), chunked)
    assert scores.chunks == ((70, 70, 70, 70, 20),)
    expected = without_names(detector).score_samples(X)
    np.testing.assert_array_equal(scores.compute(), expected)


def test_dask_scores_data_frames(detector):
    dask = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame(X[X[:, 0].argsort()], columns=list("abcd"))
    parts = dask.from_pandas(frame, npartitions=4)
    positive = recipes.score_by_dask(detector, parts[parts["a"] > 0])
    assert positive.name == "score"
    scores, kept = positive.compute(), frame[frame["a"] > 0]
    assert kept.index[0] > 300 / 4  # the first partition is empty
    assert scores.index.equals(kept.index)
    np.testing.assert_array_equal(scores, detector.score_samples(kept))


def test_dask_scores_images():
    array = pytest.importorskip("dask.array")
    images = RNG.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    detector = AABiGAN(max_epochs=1, width=4, n_estimators=1, random_state=0)
    expected = detector.fit(images).score_samples(images)
    chunked = array.from_array(images, chunks=(15, 1, 4, 8))
    scores = recipes.score_by_dask(detector, chunked)
    np.testing.assert_array_equal(scores.compute(), expected)


@pytest.mark.filterwarnings("ignore")  # of ports and of workers that start
def test_two_processes_of_dask_give_the_same_scores(detector):
    array = pytest.importorskip("dask.array")
    distributed = pytest.importorskip("distributed")
    detector = without_names(detector)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        chunked = array.from_array(X, chunks=(30, 4))
        scores = recipes.score_by_dask(detector, chunked).compute()
        assert len(client.scheduler_info()["workers"]) == 2
    np.testing.assert_array_equal(scores, detector.score_samples(X))


def without_names(detector):
    """Return a copy that was fitted on an array, and takes arrays without a warning."""
    copy = pickle.loads(pickle.dumps(detector))
    del copy.feature_names_in_
    return copy


# Files of other packages --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of its own parts
def test_a_model_of_mlflow(detector, frame, tmp_path):
    pyfunc = pytest.importorskip("mlflow.pyfunc")
    recipes.save_to_mlflow(detector, tmp_path / "model", frame)
    assert not list((tmp_path / "model").rglob("*.pkl"))
    found = pyfunc.load_model(str(tmp_path / "model")).predict(frame)
    np.testing.assert_array_equal(found["score"], detector.score_samples(frame))
    np.testing.assert_array_equal(found["label"], detector.predict(frame))
    with pytest.raises(Exception, match="missing inputs"):
        pyfunc.load_model(str(tmp_path / "model")).predict(frame[["a", "b"]])


@pytest.mark.filterwarnings("ignore")
def test_mlflow_needs_another_format_for_its_own_models(detector, frame, tmp_path):
    own = pytest.importorskip("mlflow.sklearn")
    with pytest.raises(Exception, match="skops"):
        own.save_model(detector, tmp_path / "refused")
    own.save_model(detector, tmp_path / "model", serialization_format="cloudpickle")
    loaded = own.load_model(str(tmp_path / "model"))
    np.testing.assert_array_equal(
        loaded.score_samples(frame), detector.score_samples(frame)
    )


def test_skops_writes_a_card(detector, tmp_path):
    card = pytest.importorskip("skops.card")
    about = "Finds odd deliveries."
    made = recipes.model_card(detector, about, {"AUROC": 0.97})
    assert isinstance(made, card.Card)
    made.save(tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert about in text
    assert f"Scores below {detector.offset_:.4g}" in text
    assert "n_estimators" in text
    assert "0.97" in text


# Drift --------------------------------------------------------------------------------


def first_alarms(n_streams, change, level=0.05):
    """Return when wealth exceeds 1 / level, the length of the stream if never."""
    alarms = []
    for seed in range(n_streams):
        rng = np.random.default_rng(seed)
        calibration, new = rng.normal(size=100), rng.normal(size=200)
        new[100:] -= change
        alarm = recipes.wealth(calibration, new, seed) >= 1 / level
        alarms.append(alarm.argmax() if alarm.any() else len(new))
    return np.array(alarms)


def test_a_change_is_noticed_and_none_is_invented():
    pytest.importorskip("crepes")
    false = (first_alarms(200, change=0) < 200).mean()
    assert false <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    alarms = first_alarms(50, change=2)
    assert (alarms < 100).mean() < 0.1
    assert (alarms < 140).mean() > 0.9


def test_drift_of_a_detector():
    pytest.importorskip("crepes")
    rng = np.random.default_rng(0)
    detector = AABiGAN(max_epochs=5, n_estimators=1, calibration=0.3, random_state=0)
    detector.fit(rng.normal(size=(500, 4)))
    usual, moved = rng.normal(size=(200, 4)), rng.normal(size=(100, 4)) + 1.5
    scores = detector.score_samples(np.concatenate([usual, moved]))
    wealth = recipes.wealth(detector.calibration_scores_, scores)
    assert wealth[:200].max() < 100 < wealth[-1]
