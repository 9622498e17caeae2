"""Sends an outbox to MLflow: each entry once, whatever was lost on the way before."""

import importlib.metadata
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distiltune import InputError
from distiltune.location import checkout_id, experiment_id, import_mlflow, store_name, use_store
from distiltune.outbox import Outbox, left_behind

WEIGHTS_TAG, EXPERIMENT_TAG = "weights_sha256", "dvc_experiment"
CHECKOUT_TAG = "checkout"
KEY_TAG = "run_key"  # of our own making, since a run's id is known only once MLflow has it
MAX_REASON = 200  # characters of MLflow's own message
# What MLflow takes in one request.
MAX_METRICS, MAX_PARAMS = 1000, 100
MAX_ENTRIES = 500  # that are taken out at once
# What the logged model needs where it is loaded.
MODEL_REQUIREMENTS = (
    "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "tokenizers",
    "torch", "transformers",
)  # fmt: skip
# Kept with the logged model as its input example.
EXAMPLE = "The plot is thin, but the acting is superb."


class Sender:
    """Sends one outbox.

    Its first request makes the run, or finds the one with the same key: of an attempt that
    was cut off, or of one whose answer was lost. Metrics that this has already are left out.
    After a failure, a new sender finds out anew what has arrived.
    """

    def __init__(self, root: Path, outbox: Outbox) -> None:
        self.root = root
        self.outbox = outbox
        self.header = outbox.header
        self.is_new = True  # made by this outbox, or one with the same key
        self.is_deleted = False  # in MLflow, by somebody who does not want it
        self._client: Any = None
        self._run_id = ""
        self._experiment = ""
        self._known: dict[tuple[str, int], dict[int, float]] = {}  # by name, step and time

    def send(self) -> None:
        """Send all that there is.

        Raises:
            Exception: whatever MLflow, or the way to it, fails of.
        """
        if self._client is None:
            self._meet()
        while self.outbox.entries:
            with self.outbox.changed:
                batch = _first_batch(self.outbox.entries)
            if not self.is_deleted:
                self._send(batch)
            self.outbox.note_sent(len(batch))

    def end_if_dead(self) -> None:
        """Of a process that is gone: its run must not look as if it went on."""
        if self.is_new and not self.is_deleted and self.header["is_training"]:
            run = self._client.get_run(self._run_id)
            if run.info.status == "RUNNING":
                self._client.set_terminated(self._run_id, "KILLED")

    def _meet(self) -> None:
        client = import_mlflow().MlflowClient(use_store(self.root))
        self._experiment = experiment_id(self.root, self.header["experiment"])
        run = self._noted(client) if self.outbox.run_id else None
        run = run or self._find(client)
        if run is None:
            client.create_run(
                self._experiment,
                start_time=self.header["time"],
                tags=self.header["tags"],
                run_name=self.header["name"],
            )
            # A request whose answer was lost may have been repeated.
            run, *copies = self._search(client, KEY_TAG, self.header["key"])
            for copy in copies:
                client.delete_run(copy.info.run_id)
        self._run_id = str(run.info.run_id)
        self.is_deleted = run.info.lifecycle_stage == "deleted"
        self.is_new = run.data.tags.get(KEY_TAG) == self.header["key"]
        if self.is_new and not self.is_deleted:
            self._describe(client, run)
        for name in run.data.metrics:
            for metric in client.get_metric_history(self._run_id, name):
                self._known.setdefault((name, metric.step), {})[metric.timestamp] = metric.value
        self.outbox.note_run(self._run_id)
        self._client = client

    def _noted(self, client: Any) -> Any:
        mlflow = import_mlflow()
        try:
            return client.get_run(self.outbox.run_id)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        self.outbox.rewind()  # the store is another one now, or has lost it
        return None

    def _find(self, client: Any) -> Any:
        """This outbox's run, or the one of the same weights; of several the experiment's own."""
        if own := self._search(client, KEY_TAG, self.header["key"]):
            return own[0]
        if not self.header["weights"]:
            return None
        runs = self._search(client, WEIGHTS_TAG, self.header["weights"])
        ours = [run for run in runs if run.data.tags.get(CHECKOUT_TAG) == checkout_id(self.root)]
        name = self.header["tags"].get(EXPERIMENT_TAG)
        named = [run for run in ours if run.data.tags.get(EXPERIMENT_TAG) == name]
        found = named or ours
        return found[-1] if found else None

    def _search(self, client: Any, tag: str, value: str) -> list[Any]:
        """The oldest first."""
        return list(
            client.search_runs(
                [self._experiment],
                filter_string=f"tags.{tag} = '{value}'",
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            )
        )

    def _describe(self, client: Any, run: Any) -> None:
        """What a run has from its beginning; it may be there already."""
        mlflow = import_mlflow()
        entities = mlflow.entities
        if self.header["is_training"] and run.info.status != "RUNNING":
            client.update_run(self._run_id, status="RUNNING")
        missing = {k: str(v) for k, v in self.header["params"].items() if k not in run.data.params}
        params = [entities.Param(name, value) for name, value in missing.items()]
        for first in range(0, len(params), MAX_PARAMS):
            client.log_batch(self._run_id, params=params[first : first + MAX_PARAMS])
        for name, value in self.header["tags"].items():
            if run.data.tags.get(name) != value:
                client.set_tag(self._run_id, name, value)
        dataset = mlflow.data.meta_dataset.MetaDataset(
            mlflow.data.code_dataset_source.CodeDatasetSource({}),
            name=self.header["dataset"],
            digest=self.header["dataset_digest"][:32],
        )._to_mlflow_entity()
        context = entities.InputTag("mlflow.data.context", "training")
        client.log_inputs(self._run_id, datasets=[entities.DatasetInput(dataset, [context])])

    def _send(self, batch: Sequence[Mapping[str, Any]]) -> None:
        first = batch[0]
        if first.get("only_new") and not self.is_new:
            return
        match first["kind"]:
            case "metrics":
                self._send_metrics(batch)
            case "tags":
                for name, value in first["tags"].items():
                    self._client.set_tag(self._run_id, name, value)
            case "files":
                for file in first["files"]:
                    path = str(self.outbox.folder / file)
                    self._client.log_artifact(self._run_id, path, first["folder"])
            case "model":
                self._send_model(first)
            case "end" if self.is_new:
                self._client.set_terminated(self._run_id, first["status"], first["time"])

    def _send_metrics(self, batch: Sequence[Mapping[str, Any]]) -> None:
        metric = import_mlflow().entities.Metric
        new = [
            metric(name, value, entry["time"], entry["step"])
            for entry in batch
            for name, value in entry["metrics"].items()
            if not self._is_known(name, entry["step"], entry["time"], value)
        ]
        for first in range(0, len(new), MAX_METRICS):
            # Sent twice with the same times they stand there once.
            self._client.log_batch(self._run_id, metrics=new[first : first + MAX_METRICS])

    def _is_known(self, name: str, step: int, moment: int, value: float) -> bool:
        there = self._known.get((name, step))
        if there is None:
            return False
        if name.startswith("system/"):
            return moment in there
        # A step that a training does once more has the same loss, if not the same time; what
        # is evaluated once more may have come out otherwise.
        return self.header["is_training"] or there[max(there)] == value

    def _send_model(self, entry: Mapping[str, Any]) -> None:
        """Log the model in MLflow's own format, with the code that runs it and no pickle."""
        mlflow = import_mlflow()
        import pandas as pd
        from mlflow.models import Model, ModelSignature
        from mlflow.types.schema import ColSpec, DataType, Schema

        model, package = (str(self.outbox.folder / file) for file in entry["files"])
        probabilities = ["probability", *(f"probability_{n}" for n in entry["label_names"])]
        outputs = [ColSpec(DataType.string, "label")]
        outputs += [ColSpec(DataType.double, name) for name in probabilities]
        made = self._client.create_logged_model(
            self._experiment, name="model", source_run_id=self._run_id,
            params={name: str(value) for name, value in self.header["params"].items()},
        )  # fmt: skip
        Model.log(
            artifact_path=None,
            name="model",
            model_id=made.model_id,
            flavor=mlflow.pyfunc,
            run_id=self._run_id,
            python_model=f"{package}/serving.py",
            artifacts={"model": model},
            code_paths=[package],
            signature=ModelSignature(Schema([ColSpec(DataType.string, "text")]), Schema(outputs)),
            input_example=pd.DataFrame({"text": [EXAMPLE]}),
            pip_requirements=entry["requirements"],
        )
        # What an attempt before this one has left.
        for logged in self._client.search_logged_models(
            [self._experiment], filter_string=f"source_run_id = '{self._run_id}'"
        ):
            if logged.model_id != made.model_id:
                self._client.delete_logged_model(logged.model_id)


def model_requirements() -> list[str]:
    """What the logged model is to be loaded with: the versions here."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}"
            for name in MODEL_REQUIREMENTS]  # fmt: skip


def reason_of(error: Exception) -> str:
    """The first line of what a failure says; of a database's, without SQLAlchemy's words around."""
    error = getattr(error.__cause__ or error, "orig", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:MAX_REASON]


def send_left_behind(root: Path) -> tuple[list[str], dict[str, str]]:
    """Send what processes that are gone could not.

    Args:
        root: the main checkout.

    Returns:
        The names of the runs of which all was sent; and of those of which something is left,
        with the reason.
    """
    sent: list[str] = []
    left: dict[str, str] = {}
    here = store_name(root)
    failure: str | None = None
    for outbox in left_behind(root):
        name, store = outbox.header["name"], outbox.header["store"]
        if store != here:
            left[name] = f"waits for {store}: set MLFLOW_TRACKING_URI"
        elif failure is not None:
            left[name] = failure
        else:
            try:
                sender = Sender(root, outbox)
                sender.send()
                sender.end_if_dead()
            # Whatever a store, a server or a disk can do wrong.
            except Exception as error:
                left[name] = reason_of(error)
                failure = None if _is_there(root) else left[name]
            else:
                sent.append(name)
                outbox.remove()
                continue
        outbox.release()
    return sent, left


def synchronize(root: Path) -> None:
    """`distiltune sync`: send what is left, and say what came of it.

    Args:
        root: the main checkout.

    Raises:
        InputError: something could not be sent.
    """
    sent, left = send_left_behind(root)
    for name in sent:
        print(f"{name}: sent to {store_name(root)}")
    if left:
        raise InputError("\n".join(f"{name}: {reason}" for name, reason in left.items()))
    if not sent:
        print("nothing is left to be sent")


def _is_there(root: Path) -> bool:
    """Whether the store answers at all."""
    try:
        import_mlflow().MlflowClient(use_store(root)).search_experiments(max_results=1)
    # As above: this asks whether it fails.
    except Exception:
        return False
    return True


def _first_batch(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first entry; of metrics, those after it up to the next of another kind."""
    first, *others = itertools.islice(entries, MAX_ENTRIES)
    if first["kind"] != "metrics":
        return [first]
    kind, only_new = first["kind"], first.get("only_new")
    alike = itertools.takewhile(
        lambda entry: entry["kind"] == kind and entry.get("only_new") == only_new, others
    )
    return [first, *alike]


def now_ms() -> int:
    """MLflow's times are milliseconds."""
    return int(time.time() * 1000)
