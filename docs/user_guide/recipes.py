"""The recipes of the user guide; ``tests/test_recipes.py`` runs them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder


def parts_of_dates(frame):
    """Return hours and days of the week in the place of dates."""
    parts = {}
    for name in frame:
        dates = frame[name].dt
        parts[f"{name}_hour"] = dates.hour + dates.minute / 60
        parts[f"{name}_weekday"] = dates.day_of_week
    return pd.DataFrame(parts)


def pipeline_of_columns(detector, categories, dates, numbers):
    """Return a pipeline for the columns of a data frame."""
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    repeating = make_pipeline(FunctionTransformer(parts_of_dates), SimpleImputer())
    columns = make_column_transformer(
        (one_hot, categories), (repeating, dates), (SimpleImputer(), numbers)
    )
    return make_pipeline(columns, detector)


def pipeline_of_skrub(detector):
    """Return a pipeline for any data frame, without a list of its columns."""
    from skrub import DatetimeEncoder, DropCols, TableVectorizer, selectors

    dates = DatetimeEncoder(add_total_seconds=False, add_weekday=True)
    time_passed = selectors.glob("*_year") | selectors.glob("*_month")
    return make_pipeline(
        TableVectorizer(datetime=dates),
        DropCols(time_passed),
        SimpleImputer(),
        detector,
    )


def make_app(path):
    """Return a web service that scores rows with the detector of a file."""
    from fastapi import FastAPI

    from skanomaly import load

    detector = load(path, device="cpu")  # once, and not once per request
    app = FastAPI()

    @app.post("/score")
    def score(rows: list[list[float]]) -> dict[str, list[float]]:
        # FastAPI runs functions without async in a pool of threads.
        X = np.array(rows)
        scores = detector.score_samples(X)
        labels = np.where(scores < detector.offset_, -1, 1)
        return {"score": scores.tolist(), "label": labels.tolist()}

    return app


def score_in_threads(detector, batches, n_threads=4):
    """Return the scores of batches, by one detector and many threads."""
    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(detector.score_samples, batches))


def score_by_dask(detector, X):
    """Return the scores of a dask array or data frame, as a dask array or series.

    Samples are in chunks of rows; the detector is sent to each worker.
    """
    if hasattr(X, "columns"):
        meta = pd.Series(name="score", dtype=float)
        return X.map_partitions(scores_of_frame, detector, meta=meta)
    axes = tuple(range(1, X.ndim))
    X = X.rechunk(dict.fromkeys(axes, -1))
    meta = np.empty(0)
    return X.map_blocks(detector.score_samples, drop_axis=axes, meta=meta)


def scores_of_frame(frame, detector):
    """Return the scores of a data frame, which may be empty, with its index."""
    scores = detector.score_samples(frame) if len(frame) else []
    return pd.Series(scores, frame.index, name="score", dtype=float)


def save_to_mlflow(detector, folder, example):
    """Write a detector as an MLflow model without pickles."""
    import tempfile
    from pathlib import Path

    import mlflow.pyfunc
    from mlflow.models import infer_signature

    from skanomaly import save

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "detector.safetensors"
        save(detector, file)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("mlflow_model.py")),
            artifacts={"detector": str(file)},
            signature=infer_signature(example),
            pip_requirements=["skanomaly"],
        )


def model_card(detector, about, measured):
    """Return a model card: a text, the parameters, the threshold and figures."""
    from skops.card import Card

    threshold = f"Scores below {detector.offset_:.4g} are those of outliers."
    card = Card(detector, model_diagram=False)
    card.add(**{"Model description": about})
    card.add(**{"Model description/Threshold": threshold})
    card.add_metrics(**measured)
    return card


def wealth(calibration_scores, scores, seed=0):
    """Return the wealth of a gambler who bets that nothing has changed.

    Parameters
    ----------
    calibration_scores : ndarray of shape (n_calibration,)
        Of samples that the detector was not trained on.
    scores : ndarray of shape (n_samples,)
        Of new samples, in the order of their arrival.
    seed : int, default=0
        Breaks ties.

    Returns
    -------
    ndarray of shape (n_samples,)
        Without a change it reaches 1 / a with a probability of at most a.
    """
    from crepes.martingales import (
        CompositeMartingale,
        SimpleJumper,
        SleeperStayer,
        semi_online_p_values,
    )

    strangeness = -np.concatenate([calibration_scores, scores])
    p_values = semi_online_p_values(strangeness, seed=seed)
    gambler = CompositeMartingale([SimpleJumper(), SleeperStayer()])
    return gambler.apply(p_values[len(calibration_scores) :])
