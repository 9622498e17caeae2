"""Where MLflow's runs are: the store and its experiment, made once, and whose runs they are."""

import contextlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from distiltune.artifacts import new_file

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
# What the UI shows of each run, which by itself shows no figure: a view of that name, which stands
# in the UI's menu and, by its key, in the address that `distiltune ui` prints.
VIEW = "results"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMN_WIDTHS = {  # in pixels, in their order
    "attributes.`Run Name`": 260,
    "metrics.`test/accuracy`": 110,
    "metrics.`validation/accuracy`": 150,
    "metrics.`test/loss`": 80,
    "params.`model`": 90,
    "params.`optimizer`": 90,
    "params.`seed`": 60,
    "attributes.`Models`": 130,
    "attributes.`Dataset`": 330,
}


def open_store(root: Path) -> Any:
    """A client of the store, `MlflowClient`; our own is made by the first to open it."""
    mlflow = import_mlflow()
    with _alone(root):
        uri = use_store(root)
        if uri == _default_uri(root) and not (root / DATABASE).exists():
            # Aside: one whose making is cut off between two of its tables never opens again.
            folder = root / ".dvc" / "tmp" / "store"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            mlflow.MlflowClient(f"sqlite:///{folder / DATABASE}").search_experiments(max_results=1)
            (folder / DATABASE).replace(root / DATABASE)
            folder.rmdir()
        return mlflow.MlflowClient(uri)


def experiment_id(root: Path, name: str) -> str:
    """The id of an MLflow experiment, which the first process that wants it makes."""
    client, mlflow = open_store(root), import_mlflow()
    with _alone(root):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if VIEW_TAG not in found.tags:  # of an older version
                client.set_experiment_tag(found.experiment_id, VIEW_TAG, _view())
            return str(found.experiment_id)
        is_ours = use_store(root) == _default_uri(root)
        location = (root / ARTIFACTS).as_uri() if is_ours else None
        # The UI opens such an experiment on its runs and models.
        tags = {"mlflow.experimentKind": "custom_model_development", VIEW_TAG: _view()}
        try:
            return str(client.create_experiment(name, location, tags))
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            # On a server another process, which no lock of ours stops, was a moment faster.
            return str(client.get_experiment_by_name(name).experiment_id)


def _view() -> str:
    columns = list(COLUMN_WIDTHS)
    state = {"selectedColumns": columns, "columnOrder": columns, "columnWidths": COLUMN_WIDTHS}
    return json.dumps({"name": VIEW.capitalize(), "createdAt": 0, "state": json.dumps(state)})


def find_experiment(root: Path, name: str) -> str | None:
    """The id of an MLflow experiment if there is one; makes nothing."""
    if not has_store(root):
        return None
    found = open_store(root).get_experiment_by_name(name)
    return None if found is None else str(found.experiment_id)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Alone with our own store, while it or an experiment in it is made.

    Two processes that did so at once would each find half a database. A server is not
    waited for with the lock held: others may have another store.
    """
    is_ours = use_store(root) == _default_uri(root)
    with FileLock(root / ".dvc" / "tmp" / "mlflow.lock") if is_ours else contextlib.nullcontext():
        yield


def has_store(root: Path) -> bool:
    """Whether there may be runs: looking for them in SQLite would make an empty database."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (root / DATABASE).exists()


def checkout_id(root: Path) -> str:
    """A number of this checkout's own: runs of others on the same server are not touched."""
    file = root / ".dvc" / "tmp" / "checkout"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".dvc" / "tmp" / "checkout.lock"):
        if not file.exists() or not file.read_text(encoding="utf-8"):
            with new_file(file) as partial:
                partial.write_text(uuid.uuid4().hex, encoding="utf-8")
        return file.read_text(encoding="utf-8")


def import_mlflow() -> Any:
    """MLflow, which calls nobody and says nothing of its own start."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # It would print the run's address with user and password.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")
    # MLflow's 7, of two minutes each, are a long silence; what logs tries again by itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    import mlflow
    import mlflow.data.code_dataset_source
    import mlflow.data.meta_dataset

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # With a traceback what whoever asks gets as an exception, and says in a line.
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
    return mlflow


def _default_uri(root: Path) -> str:
    return f"sqlite:///{root / DATABASE}"


def store_name(root: Path) -> str:
    """The store's address without credentials, to be shown and written down."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _default_uri(root)
    return without_credentials(uri)


def without_credentials(uri: str) -> str:
    """Without user, password and query. A password may hold an @ or a slash."""
    return re.sub(r"^(\w[\w+.-]*://)(?!/).*@|[?#].*", r"\1", uri)


def hide_credentials(text: str) -> str:
    """A message of others, in which the store's address may stand as it is."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    text = text.replace(uri, without_credentials(uri)) if uri else text
    if found := re.match(r"\w[\w+.-]*://(?!/)(.*)@", uri):
        text = text.replace(f"{found[1]}@", "")
    return re.sub(r"(?<=//)[^/\s@]*@", "", text)


def use_store(root: Path) -> str:
    """Point MLflow at `MLFLOW_TRACKING_URI`, or at SQLite below the project's root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _default_uri(root)
    (root / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    import_mlflow().set_tracking_uri(uri)
    return uri
