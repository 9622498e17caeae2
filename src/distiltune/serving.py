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
            if not isinstance(text, str) or not text.strip():
                found = "is empty" if isinstance(text, str) else f"is no string but {text!r}"
                raise mlflow.MlflowException.invalid_parameter_value(f"text {number}: {found}")
        return self.classifier.predict(texts)


mlflow.models.set_model(ServedModel())
