"""The model as MLflow runs it: texts in, labels and probabilities out.

MLflow stores this file with the model and executes it on loading ("models from code"),
with the package beside it, so that nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from distiltune.classifier import ReviewClassifier


class ServedModel(mlflow.pyfunc.PythonModel):
    """`ReviewClassifier` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        self.classifier = ReviewClassifier(Path(context.artifacts["model"]))
        self.classifier.prepare()  # so that no request waits for it

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        return self.classifier.predict(model_input["text"].tolist())


mlflow.models.set_model(ServedModel())
