"""Reads runs and models from MLflow's store, and ties the runs of a sweep together there."""

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from distiltune import InputError
from distiltune.location import (
    checkout_id,
    experiment_id,
    find_experiment,
    has_store,
    import_mlflow,
    open_store,
    without_credentials,
)
from distiltune.sending import CHECKOUT_TAG, EXPERIMENT_TAG, WEIGHTS_TAG, reason_of

SWEEP_TAG, KIND_TAG, PARENT_TAG = "sweep", "kind", "mlflow.parentRunId"
SIZE_TAG = "experiments"  # of a sweep: how many it is to have
P = ParamSpec("P")
R = TypeVar("R")
# Finished and evaluated: `evaluate` is the last to log.
EVALUATED = "test/accuracy"
# Where `logged_model` has the train stage's folder within what it logs.
MODEL_FILES = "artifacts/model"
# Where a sweep's run has the lists of the runs that it consists of.
MEMBERS = "members"


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What of a run in MLflow says which it is."""

    run_id: str
    name: str
    is_finished: bool
    is_evaluated: bool
    weights_sha256: str | None
    dvc_experiment: str | None
    sweep: str | None
    kind: str | None  # of a sweep: "sweep" itself, or below it "trial" or "search"
    parent: str | None
    is_ours: bool  # of this checkout; a server may have others' too


def _raises_input_error(method: Callable[P, R]) -> Callable[P, R]:
    """Say in one line what MLflow, or the way to it, fails of."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        mlflow = import_mlflow()
        try:
            return method(*args, **kwargs)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            server = os.environ.get("MLFLOW_TRACKING_URI")
            where = f" at {without_credentials(server)} (MLFLOW_TRACKING_URI)" if server else ""
            raise InputError(f"MLflow{where}: {reason_of(error)}") from None

    return guarded


@_raises_input_error
def find_runs(root: Path, experiment: str) -> list[StoredRun]:
    """All runs of an MLflow experiment that were not deleted, the oldest first; makes nothing.

    Args:
        root: the main checkout.
        experiment: its name.
    """
    number = find_experiment(root, experiment)
    if number is None:
        return []
    client = open_store(root)
    found: list[Any] = []
    token = None
    while token is None or token:
        page = client.search_runs([number], order_by=["start_time ASC"], page_token=token)
        found += list(page)
        token = page.token or ""
    return [
        StoredRun(
            run_id=run.info.run_id,
            name=run.info.run_name,
            is_finished=run.info.status == "FINISHED",
            is_evaluated=EVALUATED in run.data.metrics,
            weights_sha256=run.data.tags.get(WEIGHTS_TAG),
            dvc_experiment=run.data.tags.get(EXPERIMENT_TAG),
            sweep=run.data.tags.get(SWEEP_TAG),
            kind=run.data.tags.get(KIND_TAG),
            parent=run.data.tags.get(PARENT_TAG),
            is_ours=run.data.tags.get(CHECKOUT_TAG) == checkout_id(root),
        )
        for run in found
    ]


def download_files(root: Path, run_id: str, paths: Iterable[str], folder: Path) -> None:
    """Copy artifacts of a run into one folder, by their last names.

    Raises:
        InputError: the run, or one of them, is not there.
    """
    if not has_store(root):
        raise InputError(f"MLflow run {run_id}: there are no runs here yet")
    mlflow = import_mlflow()
    client = open_store(root)
    try:
        client.get_run(run_id)
    except mlflow.exceptions.MlflowException as error:
        raise InputError(f"MLflow run {run_id}: {error.message}") from None
    for path in paths:
        try:
            local = client.download_artifacts(run_id, path, str(folder))
        except (mlflow.exceptions.MlflowException, OSError):
            raise InputError(
                f"MLflow run {run_id}: has no {path}; it was not evaluated, or by an older version"
            ) from None
        Path(local).rename(folder / Path(path).name)


def download_model(root: Path, uri: str, folder: Path) -> Path:
    """Copy the files of a logged model, without the code that MLflow keeps with it.

    Args:
        root: the main checkout.
        uri: `runs:/ID/model` or `models:/...`, as MLflow has them.
        folder: where to put them.

    Returns:
        The model's folder, as the train stage wrote it.

    Raises:
        InputError: there is no such model, or MLflow is away.
    """
    if not has_store(root):
        raise InputError(f"{uri}: there are no runs here yet")
    mlflow = import_mlflow()
    try:
        open_store(root)
        found = mlflow.artifacts.download_artifacts(f"{uri}/{MODEL_FILES}", dst_path=str(folder))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise InputError(f"{uri}: {reason_of(error)}") from None
    return Path(found)


@_raises_input_error
def parent_of_sweep(root: Path, experiment: str, sweep: str) -> str:
    """The id of the run that stands above a sweep's runs; made if it is not there."""
    if found := parents_of_sweeps(find_runs(root, experiment)).get(sweep):
        return found[0]
    client = open_store(root)
    made = client.create_run(
        experiment_id(root, experiment),
        run_name=sweep,
        tags={KIND_TAG: "sweep", SWEEP_TAG: sweep},
    )
    return str(made.info.run_id)


def parents_of_sweeps(runs: Iterable[StoredRun]) -> dict[str, list[str]]:
    """The ids of the runs that stand above sweeps', by the sweep's name, the newest sweep last.

    A sweep has one, but machines that end their parts of it in the same second may each make
    one: then the first counts, and the lists in all of them.

    Args:
        runs: the oldest first.
    """
    parents: dict[str, list[str]] = {}
    for run in runs:
        if run.kind == "sweep" and run.sweep:
            parents.setdefault(run.sweep, []).append(run.run_id)
    return parents


@_raises_input_error
def adopt(root: Path, run: StoredRun, parent: str, sweep: str, kind: str) -> None:
    """Tag a run as a sweep's, and put it below that if it stands below none."""
    client = open_store(root)
    client.set_tag(run.run_id, f"{SWEEP_TAG}/{sweep}", kind)
    if run.parent is None:
        client.set_tag(run.run_id, PARENT_TAG, parent)
        client.set_tag(run.run_id, SWEEP_TAG, sweep)
        client.set_tag(run.run_id, KIND_TAG, kind)


@_raises_input_error
def write_members(
    root: Path, parent: str, kind: str, run_ids: Mapping[str, str], shard: str = ""
) -> None:
    """Note which runs a sweep consists of.

    Args:
        root: the main checkout.
        parent: the id of the sweep's run.
        kind: `trial` or `search`.
        run_ids: by the experiments' names.
        shard: which part of the sweep they are, as `1/2`. Each has a file of its own, so
            that machines do not overwrite each other's.
    """
    part = f"-{shard.replace('/', '-of-')}" if shard else ""
    open_store(root).log_dict(parent, dict(run_ids), f"{MEMBERS}/{kind}{part}.json")


@_raises_input_error
def read_members(root: Path, parents: Iterable[str], kind: str) -> dict[str, str]:
    """The ids of a sweep's runs of a kind, `trial` or `search`, by the experiments' names.

    Args:
        root: the main checkout.
        parents: of the sweep, see `parents_of_sweeps`.
        kind: `trial` or `search`.
    """
    mlflow = import_mlflow()
    client = open_store(root)
    found: dict[str, str] = {}
    for parent in parents:
        location = client.get_run(parent).info.artifact_uri
        for file in client.list_artifacts(parent, MEMBERS):
            if Path(file.path).stem.partition("-")[0] == kind:
                found |= mlflow.artifacts.load_dict(f"{location}/{file.path}")
    return found


@_raises_input_error
def set_size(root: Path, parent: str, num_experiments: int) -> None:
    """Note how many experiments a sweep is to have."""
    open_store(root).set_tag(parent, SIZE_TAG, num_experiments)


@_raises_input_error
def get_size(root: Path, parent: str) -> int:
    """How many experiments a sweep is to have; 0 where nobody noted it."""
    return int(open_store(root).get_run(parent).data.tags.get(SIZE_TAG, 0))


@_raises_input_error
def read_figures(root: Path, run_id: str) -> tuple[dict[str, str], dict[str, float]]:
    """A run's params and its last metrics."""
    data = open_store(root).get_run(run_id).data
    return dict(data.params), dict(data.metrics)


@_raises_input_error
def delete(root: Path, run_id: str) -> None:
    """Delete a run, as the UI does: MLflow can restore it."""
    open_store(root).delete_run(run_id)


@_raises_input_error
def log_comparison(
    root: Path, parent: str, description: str, metrics: Mapping[str, float], files: Iterable[Path]
) -> None:
    """Log a comparison to a sweep's run; what an earlier one has left is replaced."""
    client = open_store(root)
    client.set_tag(parent, "mlflow.note.content", description)
    for name, value in metrics.items():
        client.log_metric(parent, name, value)
    for file in files:
        client.log_artifact(parent, str(file), "comparison")


@_raises_input_error
def end(root: Path, parent: str, *, is_complete: bool) -> None:
    """End a sweep's run."""
    client = open_store(root)
    client.set_terminated(parent, "FINISHED" if is_complete else "FAILED")
