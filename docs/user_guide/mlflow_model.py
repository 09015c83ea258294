"""An MLflow model of a detector; MLflow stores this file, and runs it."""

import mlflow
import pandas as pd

import skanomaly


class AnomalyModel(mlflow.pyfunc.PythonModel):
    """Scores and labels of a detector that ``skanomaly.save`` has written."""

    def load_context(self, context):
        """Load the detector, once."""
        path = context.artifacts["detector"]
        self.detector = skanomaly.load(path, device="cpu")

    def predict(self, context, model_input, params=None):
        """Return a score and a label for each sample."""
        score = self.detector.score_samples(model_input)
        label = (score >= self.detector.offset_) * 2 - 1
        return pd.DataFrame({"score": score, "label": label})


mlflow.models.set_model(AnomalyModel())
