"""One execution of the evaluate stage: model and test split in, metrics and plots out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distiltune import InputError
from distiltune.artifacts import (
    ANSWERS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    WAY_OUT,
    WEIGHTS_FILE,
    new_file,
    new_folder,
    read_json,
    read_reviews,
    sha256_of,
    write_json,
)
from distiltune.batching import read_tokens
from distiltune.config import EvaluateConfig
from distiltune.evaluation.metrics import (
    Labels,
    Probabilities,
    accuracy_by_length,
    classification_metrics,
)
from distiltune.evaluation.plots import write_plots
from distiltune.evaluation.story import (
    NOTE_TAG,
    TABLES_TAG,
    describe,
    table_of_mistakes,
    tables_tag,
    worst_mistakes,
)
from distiltune.inference import predict_logits
from distiltune.models import load_model
from distiltune.registry import RECORD
from distiltune.runtime import choose_runtime
from distiltune.sending import KEY_TAG, WEIGHTS_TAG
from distiltune.tracking import TrackedRun
from distiltune.training.history import adaptation_metrics, read_metrics
from distiltune.training.resume import forget


def run_evaluation(
    config: EvaluateConfig,
    root: Path,
    *,
    model: Path,
    tokens: Path,
    table: Path,
    history: Path,
    metrics: Path,
    predictions: Path,
    mistakes: Path,
    plots: Path,
) -> None:
    """Evaluate the model on the test split, and log the result to the run that trained it.

    Args:
        config: what the stage reads of the params.
        root: the main checkout, for MLflow's store.
        model: the model's folder.
        tokens: the test split's token file.
        table: the test split's reviews, for the rows that stand in training too.
        history: the records of the training, for a run that MLflow does not have.
        metrics: the JSON file to write.
        predictions: the Parquet file to write, a row for each review.
        mistakes: the JSON file to write, a table of the surest ones as MLflow shows it.
        plots: the folder to write.

    Raises:
        InputError: an input is damaged.
    """
    facts = read_json(model / RUN_FILE)
    if training := facts["training"]:
        forget(root, training)  # that this stage runs means that the one before is recorded
    digest = _checked_weights(model, history)
    test = read_tokens(tokens)
    runtime = choose_runtime(
        config.device, config.precision, prefer_fp32_on_cpu=facts["from_scratch"]
    )
    print(f"evaluating {test.num_reviews:,} reviews on {runtime.description}", flush=True)
    network = load_model(model).to(runtime.device)
    logits = predict_logits(network, test, runtime, config.speed)
    probabilities = logits.double().softmax(1).numpy()
    labels, num_tokens = test.labels.numpy(), test.lengths.numpy()
    reviews, info = read_reviews(table, ["row", "in_train"])
    in_train = reviews["in_train"].to_numpy()
    results = all_metrics(labels, probabilities, num_tokens, info.label_names)
    if not in_train.all():
        results["without_training_copies"] = all_metrics(
            labels[~in_train], probabilities[~in_train], num_tokens[~in_train], info.label_names
        )
    columns = {
        "row": reviews["row"],
        "label": pa.array(labels),
        "predicted": pa.array(probabilities.argmax(1)),
        **{f"probability_{n}": probabilities[:, i] for i, n in enumerate(info.label_names)},
        "num_tokens": pa.array(num_tokens),
        "in_train": reviews["in_train"],
    }
    with new_file(predictions) as partial:
        pq.write_table(pa.table(columns), partial, compression="zstd")
    with new_folder(plots) as folder:
        write_plots(labels, probabilities, info.label_names, folder)
    worst = worst_mistakes(labels, probabilities)
    texts = read_reviews(table, ["text"])[0]["text"].take(worst).to_pylist()
    write_json(mistakes, table_of_mistakes(worst, texts, labels, probabilities, info))
    write_json(metrics, results)
    print(
        f"test accuracy {results['accuracy']:.2%} "
        f"(95 % interval {results['accuracy_low']:.2%} to {results['accuracy_high']:.2%}), "
        f"loss {results['loss']:.4f}",
        flush=True,
    )
    with _find_run(config, root, model, history, facts, digest) as tracked:
        tracked.log_metrics(dict(_flat(results, "test")))
        tracked.log_files(sorted(plots.iterdir()), "plots")
        tracked.log_files([predictions, metrics, mistakes], "test")
        note = describe(facts, results, len(worst))
        tracked.set_tags({NOTE_TAG: note, TABLES_TAG: tables_tag(f"test/{mistakes.name}")})
        # For comparisons: with these a run in MLflow says all that its files say.
        tracked.log_files([model / RUN_FILE, *sorted(history.iterdir())], RECORD)
        if config.registry.model:
            tracked.register(config.registry.model, model / RUN_FILE, history / ANSWERS_FILE)


def all_metrics(
    labels: Labels, probabilities: Probabilities, num_tokens: Labels, label_names: tuple[str, ...]
) -> dict[str, Any]:
    """The metrics of a set of reviews, and the accuracy by their length.

    What is a list here is left out by `dvc metrics show`, whose table would be too wide.
    """
    return {
        **classification_metrics(labels, probabilities, label_names),
        "accuracy_by_length": accuracy_by_length(labels, probabilities, num_tokens),
    }


def _checked_weights(model: Path, history: Path) -> str:
    """The sha256 of the model's weights, which must be those that its history ends with."""
    expected = read_json(history / SUMMARY_FILE)[WEIGHTS_TAG]
    if (found := sha256_of(model / WEIGHTS_FILE)) != expected:
        raise InputError(
            f"{model / WEIGHTS_FILE}: damaged, or not of the training in {history}: its sha256 is "
            f"{found}, not {expected}; {WAY_OUT}"
        )
    return found


def _find_run(
    config: EvaluateConfig,
    root: Path,
    model: Path,
    history: Path,
    facts: dict[str, Any],
    digest: str,
) -> TrackedRun:
    """The run that trained these weights, or, where there is none, a new one that says the same."""
    tracked = TrackedRun(root, config.tracking.experiment)
    tracked.key = read_json(history / SUMMARY_FILE)[KEY_TAG]
    tracked.find(digest, facts)
    steps, epochs = read_metrics(history)
    with tracked.only_if_new():
        for step in steps:
            tracked.log_step(step, int(step["step"]))
        for epoch in epochs:
            tracked.log_epoch(epoch, int(epoch["epoch"]))
        for number, figures in adaptation_metrics(history):
            tracked.log_metrics(figures, number)
        if config.tracking.log_model:
            tracked.log_model(model, facts["label_names"])
        # The last, since it says that the rest is there.
        tracked.set_tags({WEIGHTS_TAG: digest, "restored": "from files, by evaluate"})
    return tracked


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Nested numbers as `prefix/name/...`; of the parts by length, the accuracy."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}/{name}")
        elif name == "accuracy_by_length":
            for part in value:
                yield f"{prefix}/{name}/{part['num_tokens']}", part["accuracy"]
        elif isinstance(value, int | float):
            yield f"{prefix}/{name}", float(value)
