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
        texts = model_input["text"].tolist()
        for number, text in enumerate(texts, start=1):
            if reason := _mistake(text):
                raise mlflow.MlflowException.invalid_parameter_value(f"text {number}: {reason}")
        return self.classifier.predict(texts)


def _mistake(text: Any) -> str | None:
    """What is wrong with it, as `distiltune predict` says it."""
    if not isinstance(text, str):
        return f"must be a string, not {type(text).__name__}"
    if not text.strip():
        return "is empty"
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, from an escape in JSON
        return "not UTF-8"
    return None


mlflow.models.set_model(ServedModel())
