"""Finished runs as a comparison reads them, from MLflow or from DVC's experiments."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from distiltune import InputError
from distiltune.artifacts import RUN_FILE, SUMMARY_FILE, read_json
from distiltune.comparison.pairs import Right
from distiltune.experiments import get_files
from distiltune.store import download_files, read_figures
from distiltune.training.history import EPOCHS_FILE, STEPS_FILE, read_metrics

# Where a run's files are: in the repository of an experiment, and among MLflow's artifacts.
FILES = {
    RUN_FILE: (f"data/model/{RUN_FILE}", f"record/{RUN_FILE}"),
    SUMMARY_FILE: (f"data/history/{SUMMARY_FILE}", f"record/{SUMMARY_FILE}"),
    STEPS_FILE: (f"data/history/{STEPS_FILE}", f"record/{STEPS_FILE}"),
    EPOCHS_FILE: (f"data/history/{EPOCHS_FILE}", f"record/{EPOCHS_FILE}"),
    "test.json": ("metrics/test.json", "test/test.json"),
    "predictions.parquet": ("data/predictions.parquet", "test/predictions.parquet"),
}
PATHS = {name: path for name, (path, _) in FILES.items()}
TRAINING_FILES = (RUN_FILE, SUMMARY_FILE, STEPS_FILE, EPOCHS_FILE)
# What a variant is made of, and what two of its runs may differ in.
VARIANT_PARAMS = ("optimizer", "learning_rate")
TEST_SPLIT = "test split"
FREE_PARAMS = ("seed", "train.log_every_steps", "adapt.seed", "adapt.log_every_steps")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and its test, by one seed."""

    source: str  # for messages: which run or experiment
    optimizer: str
    seed: int
    variant_params: Mapping[str, Any]  # the optimizer's row and its rate
    conditions: Mapping[str, str]  # what must be the same in a comparison
    predicted: np.ndarray[Any, np.dtype[np.int64]]  # (num_reviews,), classes
    right: Right  # (num_reviews,)
    accuracy: float
    loss: float
    summary: Mapping[str, Any]  # the metrics of the train stage
    steps: list[dict[str, float]]
    epochs: list[dict[str, float]]


def read_run(folder: Path, source: str) -> Run:
    """Read a run from the files of `FILES`, in one folder.

    Raises:
        InputError: the run is of an older version, which kept less.
    """
    facts, test = read_json(folder / RUN_FILE), read_json(folder / "test.json")
    if "code_digest" not in facts:
        raise InputError(f"{source}: made by an older version, which kept no digest of its code")
    params = facts["params"]
    table = pq.read_table(folder / "predictions.parquet", columns=["row", "label", "predicted"])
    rows, labels, predicted = (table[name].to_numpy() for name in table.column_names)
    test_split = hashlib.sha256(np.stack([rows, labels]).astype("<i8").tobytes())
    steps, epochs = read_metrics(folder)
    summary = read_json(folder / SUMMARY_FILE)

    def is_variant(name: str) -> bool:
        return name in VARIANT_PARAMS or name.startswith("optimizer.")

    conditions = {
        "training data": facts["dataset_digest"],
        "validation data": facts["validation_digest"],
        TEST_SPLIT: test_split.hexdigest(),
        "training code": facts["code_digest"],
        "hardware": facts["tags"]["device"],
        "torch": facts["tags"]["torch"],
        "transformers": facts["tags"]["transformers"],
        "epochs done": summary["num_epochs"],
        **{n: v for n, v in params.items() if n not in FREE_PARAMS and not is_variant(n)},
    }
    return Run(
        source=source,
        optimizer=params["optimizer"],
        seed=params["seed"],
        variant_params={n: v for n, v in params.items() if is_variant(n)},
        conditions={name: json.dumps(value) for name, value in conditions.items()},
        predicted=predicted,
        right=predicted == labels,
        accuracy=test["accuracy"],
        loss=test["loss"],
        summary=summary,
        steps=steps,
        epochs=epochs,
    )


def runs_of_mlflow(root: Path, run_ids: Iterable[str]) -> list[Run]:
    """Read runs by their ids in MLflow.

    Args:
        root: the main checkout, for MLflow's store.
        run_ids: of runs that were evaluated.

    Raises:
        InputError: a run or one of its files is not there.
    """
    runs = []
    for run_id in run_ids:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            download_files(root, run_id, [paths[1] for paths in FILES.values()], folder)
            runs.append(read_run(folder, f"MLflow run {run_id}"))
    return runs


def runs_of_experiments(root: Path, names: Iterable[str]) -> list[Run]:
    """Read DVC's experiments, or commits, by name; their files come from DVC's cache.

    Args:
        root: the main checkout.
        names: of experiments, branches, tags or commits.

    Raises:
        InputError: there is no such experiment, or the cache lacks one of its files.
    """
    runs = []
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            get_files(root, name, PATHS, Path(temporary))
            runs.append(read_run(Path(temporary), f"experiment {name}"))
    return runs


@dataclass(frozen=True, kw_only=True)
class TriedRate:
    """A run that was made to choose a learning rate, on validation alone."""

    optimizer: str
    row_rate: float  # as in the params
    learning_rate: float  # after the model's multiplier
    validation_accuracy: float
    validation_loss: float
    stopped_early: bool  # it was hopeless (`train.stop_below`), and is no candidate
    # Where they are needed, which is while a search is under way.
    weights_sha256: str = ""
    curve: tuple[float, ...] = ()  # the validation accuracy after each epoch


def tried_rate(root: Path, name: str) -> TriedRate:
    """Read an experiment that ended with its training.

    Raises:
        InputError: there is no such experiment, or the cache lacks its files.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        get_files(root, name, {file: PATHS[file] for file in TRAINING_FILES}, folder)
        params = read_json(folder / RUN_FILE)["params"]
        summary = read_json(folder / SUMMARY_FILE)
        _, epochs = read_metrics(folder)
    return TriedRate(
        optimizer=params["optimizer"],
        row_rate=params["optimizer.learning_rate"],
        learning_rate=params["learning_rate"],
        validation_accuracy=summary["validation_accuracy"],
        validation_loss=summary["validation_loss"],
        stopped_early=summary["stopped_early"],
        weights_sha256=summary["weights_sha256"],
        curve=tuple(record["validation_accuracy"] for record in epochs),
    )


def tried_rates_of_mlflow(root: Path, run_ids: Iterable[str]) -> list[TriedRate]:
    """The same from MLflow's runs."""
    found = []
    for run_id in run_ids:
        params, metrics = read_figures(root, run_id)
        found.append(
            TriedRate(
                optimizer=params["optimizer"],
                row_rate=float(params["optimizer.learning_rate"]),
                learning_rate=float(params["learning_rate"]),
                validation_accuracy=metrics["final/validation_accuracy"],
                validation_loss=metrics["final/validation_loss"],
                stopped_early=bool(metrics["final/stopped_early"]),
            )
        )
    return found


def best_rates(tried: Iterable[TriedRate]) -> dict[str, TriedRate]:
    """By optimizer, the rate of the highest validation accuracy; of equals the lower loss.

    What was ended early is none.
    """
    best: dict[str, TriedRate] = {}
    finished = [rate for rate in tried if not rate.stopped_early]
    for rate in sorted(finished, key=lambda t: (-t.validation_accuracy, t.validation_loss)):
        best.setdefault(rate.optimizer, rate)
    return best
