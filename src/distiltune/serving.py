"""The model as MLflow runs it: texts in, labels and probabilities out.

MLflow stores this file with the model and executes it on loading ("models from code"),
with the package beside it, so that nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch

from distiltune.artifacts import RUN_FILE, DatasetInfo, read_json
from distiltune.batching import Tokens
from distiltune.encoding import Encoder, load_tokenizer
from distiltune.inference import predict_logits
from distiltune.models import load_model
from distiltune.runtime import choose_runtime


class ReviewClassifier:
    """A trained model with its tokenizer, on the best device there is."""

    def __init__(self, folder: Path) -> None:
        settings = read_json(folder / RUN_FILE)
        self.label_names: list[str] = settings["label_names"]
        self.runtime = choose_runtime("auto", "auto", prefer_fp32_on_cpu=True)
        self.model = load_model(folder).to(self.runtime.device)
        self.encoder = Encoder(
            load_tokenizer(folder), settings["max_length"], settings["truncation"]
        )

    def predict(self, texts: list[str]) -> pd.DataFrame:
        """Classify texts.

        Returns:
            One row for each: `label`, its `probability`, and `probability_<class>`.
        """
        ids, lengths = self.encoder.encode(texts)
        offsets = torch.zeros(len(texts) + 1, dtype=torch.int64)
        torch.cumsum(torch.from_numpy(lengths), 0, out=offsets[1:])
        tokens = Tokens(
            ids=torch.from_numpy(ids),
            offsets=offsets,
            labels=torch.zeros(len(texts), dtype=torch.int64),
            info=DatasetInfo(dataset="", label_names=tuple(self.label_names)),
            max_length=self.encoder.max_length,
            truncation=self.encoder.truncation,
        )
        probabilities = predict_logits(self.model, tokens, self.runtime).softmax(1).double()
        best = probabilities.argmax(1)
        columns: dict[str, Any] = {
            "label": [self.label_names[i] for i in best.tolist()],
            "probability": probabilities.max(1).values.numpy(),
        }
        for i, name in enumerate(self.label_names):
            columns[f"probability_{name}"] = probabilities[:, i].numpy()
        return pd.DataFrame(columns)


class ServedModel(mlflow.pyfunc.PythonModel):
    """`ReviewClassifier` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        self.classifier = ReviewClassifier(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        return self.classifier.predict(model_input["text"].tolist())


mlflow.models.set_model(ServedModel())
