"""What a reader of the run sees first in MLflow: a description, and the worst mistakes."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from distiltune.artifacts import DatasetInfo
from distiltune.evaluation.metrics import Labels, Probabilities

NUM_MISTAKES = 50
MAX_TEXT = 2000  # characters of a review in the table
# Of the optimizer's row, where they are set.
TOLD = ("schedule", "warmup_steps", "warmup_share", "weight_decay", "ema_decay", "swa_start_share")
# Tags of MLflow's own: what the UI shows as the run's description, and which files as tables.
NOTE_TAG, TABLES_TAG = "mlflow.note.content", "mlflow.loggedArtifacts"


def worst_mistakes(labels: Labels, probabilities: Probabilities) -> Labels:
    """The reviews that the model is most sure of and wrong about, the surest first.

    Args:
        labels: (num_reviews,), class indices.
        probabilities: (num_reviews, num_classes).

    Returns:
        Their rows, `NUM_MISTAKES` at most.
    """
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")
    return wrong[order[:NUM_MISTAKES]]


def table_of_mistakes(
    rows: Labels, texts: list[str], labels: Labels, probabilities: Probabilities, info: DatasetInfo
) -> dict[str, Any]:
    """What MLflow's UI shows as a table.

    Args:
        rows: of the reviews, as `worst_mistakes` gives them.
        texts: of these reviews; long ones are cut in the middle.
        labels: (num_reviews,), of all.
        probabilities: (num_reviews, num_classes), of all.
        info: names the classes.
    """
    names = info.label_names
    data = [
        [_shortened(text), names[labels[row]], names[predicted], round(float(probability), 6)]
        for text, row, predicted, probability in zip(
            texts, rows, probabilities[rows].argmax(1), probabilities[rows].max(1), strict=True
        )
    ]
    return {"columns": ["text", "label", "predicted", "probability"], "data": data}


def describe(facts: Mapping[str, Any], results: Mapping[str, Any], num_mistakes: int) -> str:
    """The run in Markdown.

    Args:
        facts: the model's `run.json`.
        results: the test metrics.
        num_mistakes: in the table of the worst.
    """
    params, tags = facts["params"], facts["tags"]
    values = {name: params.get(f"optimizer.{name}") for name in TOLD}
    settings = ", ".join(f"{name} {value}" for name, value in values.items() if value)
    epochs = params.get("adapt.epochs")
    adapted = f", after {epochs} epochs of masked words," if epochs else ""
    lines = [
        f"**{results['accuracy']:.2%}** of {results['num_reviews']:,} test reviews are right "
        f"(95 % interval {results['accuracy_low']:.2%} to {results['accuracy_high']:.2%}); "
        f"loss {results['loss']:.4f}.",
        "",
        f"`{params['model']}` fine-tuned on `{facts['dataset']}`{adapted} with "
        f"`{params['optimizer']}`, "
        f"learning rate {params['learning_rate']:g} ({settings}), "
        f"{params['epochs']} epochs of batches of {params['batch_size']}, "
        f"{facts['max_length']} tokens, seed {params['seed']}, on {tags['device']}.",
        "",
        "- `train/...` by step, `validation/...` and `epoch/...` by epoch, `system/...` by second",
        "- pictures in `plots`; metrics and each review's prediction in `test`",
    ]
    if num_mistakes:
        lines.append(f"- the {num_mistakes} surest mistakes in `test/mistakes.json`")
    return "\n".join(lines)


def tables_tag(*paths: str) -> str:
    """The value of `TABLES_TAG` for files of a run."""
    return json.dumps([{"path": path, "type": "table"} for path in paths])


def _shortened(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]} [...] {text[-half:]}"
