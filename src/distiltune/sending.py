"""Sends an outbox to MLflow: each entry once, whatever was lost on the way before."""

import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from distiltune.location import (
    checkout_id,
    experiment_id,
    hide_credentials,
    import_mlflow,
    open_store,
)
from distiltune.logged_model import log_model
from distiltune.outbox import Outbox
from distiltune.registry import register_if_better
from distiltune.runtime import warn

WEIGHTS_TAG, EXPERIMENT_TAG = "weights_sha256", "dvc_experiment"
CHECKOUT_TAG = "checkout"
INCOMPLETE_TAG = "incomplete"
KEY_TAG = "run_key"  # of our own making, since a run's id is known only once MLflow has it
MAX_REASON = 200  # characters of MLflow's own message
# What MLflow takes in one request.
MAX_METRICS, MAX_PARAMS = 1000, 100
MAX_ENTRIES = 500  # that are taken out at once


class UnknownKindError(ValueError):
    """An entry that this version does not know."""


class Sender:
    """Sends one outbox, whose `sending` lock the caller holds.

    Its first request makes the run, or finds the one with the same key: of an attempt that
    was cut off, of the training that an evaluation is of, or of a request whose answer was
    lost. Metrics that this has already are left out. After a failure, a new sender finds
    out anew what has arrived.
    """

    def __init__(self, root: Path, outbox: Outbox, *, is_live: bool) -> None:
        """Prepare.

        Args:
            root: the main checkout.
            outbox: this process's own, or one that was left behind.
            is_live: whether the process that writes it still does.
        """
        self.root = root
        self.outbox = outbox
        self.header = outbox.header
        self.is_live = is_live
        self.is_whole = True  # what the training has logged is there
        self.is_deleted = False  # in MLflow, by somebody who does not want it
        self._is_one_by_one = False  # since one of many was refused
        self._client: Any = None
        self._run_id = ""
        self._experiment = ""
        self._names: set[str] = set()  # of the metrics that were there in the beginning
        self._known: dict[str, dict[int, dict[int, float]]] = {}  # these by name, step and time

    def send(self) -> None:
        """Send all that there is.

        Raises:
            Exception: whatever MLflow, or the way to it, fails of.
        """
        if self._client is None:
            self._meet()
        while True:
            with self.outbox.changed:
                batch = _first_batch(self.outbox.entries)
            if not batch:
                return
            if self._is_one_by_one:
                batch = batch[:1]
            if not self.is_deleted:
                try:
                    self._send(batch)
                except Exception as error:
                    if not _is_hopeless(error):
                        raise
                    if len(batch) > 1:
                        self._is_one_by_one = True
                        continue
                    self._leave_out(batch[0], error)
            self.outbox.note_sent(batch[-1]["number"])

    def end_if_dead(self) -> None:
        """Of a process that is gone: the run must not look as if it went on."""
        if not self.is_deleted and self._client.get_run(self._run_id).info.status == "RUNNING":
            # Then, and not now: an attempt after it may have ended before its entries are sent.
            self._client.set_terminated(self._run_id, "KILLED", self.outbox.last_time())

    def _meet(self) -> None:
        client = open_store(self.root)
        self._experiment = experiment_id(self.root, self.header.experiment)
        run = self._noted(client) if self.outbox.run_id else None
        run = run or self._find(client)
        if run is None:
            client.create_run(
                self._experiment,
                start_time=self.header.time,
                tags={**self.header.tags, KEY_TAG: self.header.key},
                run_name=self.header.name,
            )
            # A request whose answer was lost may have been repeated.
            run, *copies = self._ours(self._search(client, KEY_TAG, self.header.key))
            for copy in copies:
                client.delete_run(copy.info.run_id)
        self._run_id = str(run.info.run_id)
        self.is_deleted = run.info.lifecycle_stage == "deleted"
        self.is_whole = run.data.tags.get(WEIGHTS_TAG) == self.header.weights
        if not self.is_deleted and run.data.tags.get(KEY_TAG) == self.header.key:
            self._describe(client, run)
        self._names = set(run.data.metrics)
        self.outbox.note_run(self._run_id)
        self._client = client

    def _noted(self, client: Any) -> Any:
        mlflow = import_mlflow()
        try:
            return client.get_run(self.outbox.run_id)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        self.outbox.rewind()  # the store has lost it
        return None

    def _find(self, client: Any) -> Any:
        """The run with the key, or of the same weights; of several the experiment's own."""
        found = self._ours(self._search(client, KEY_TAG, self.header.key))
        if not found and self.header.weights:
            found = self._ours(self._search(client, WEIGHTS_TAG, self.header.weights))
        name = self.header.tags.get(EXPERIMENT_TAG)
        named = [run for run in found if run.data.tags.get(EXPERIMENT_TAG) == name]
        return (named or found or [None])[-1]

    def _ours(self, runs: Iterable[Any]) -> list[Any]:
        checkout = checkout_id(self.root)
        return [run for run in runs if run.data.tags.get(CHECKOUT_TAG) == checkout]

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
        if self.header.is_training and self.is_live:
            # An attempt that goes on may be another experiment of DVC's than the one before.
            client.update_run(self._run_id, status="RUNNING", name=self.header.name)
            for name, value in self.header.tags.items():
                if run.data.tags.get(name) != value:
                    client.set_tag(self._run_id, name, value)
        missing = {k: str(v) for k, v in self.header.params.items() if k not in run.data.params}
        params = [entities.Param(name, value) for name, value in missing.items()]
        for first in range(0, len(params), MAX_PARAMS):
            client.log_batch(self._run_id, params=params[first : first + MAX_PARAMS])
        if not run.inputs.dataset_inputs:
            dataset = mlflow.data.meta_dataset.MetaDataset(
                mlflow.data.code_dataset_source.CodeDatasetSource({}),
                name=self.header.dataset,
                digest=self.header.dataset_digest[:32],
            )._to_mlflow_entity()  # as `mlflow.log_input` does, which wants an active run
            context = entities.InputTag("mlflow.data.context", "training")
            inputs = [entities.DatasetInput(dataset, [context])]
            client.log_inputs(self._run_id, datasets=inputs)

    def _send(self, batch: Sequence[Mapping[str, Any]]) -> None:
        first = batch[0]
        if first.get("only_new") and self.is_whole:
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
                model, package = (self.outbox.folder / file for file in first["files"])
                log_model(
                    self._client, self._experiment, self._run_id, model, package,
                    first["label_names"], first["requirements"], self.header.params,
                )  # fmt: skip
            case "register":
                record = [self.outbox.folder / file for file in first["files"]]
                with FileLock(self.root / ".dvc" / "tmp" / "registry.lock"):
                    told = register_if_better(
                        self._client, first["name"], self._experiment, self._run_id, record
                    )
                print(told, flush=True)
            case "end":
                self._end(first)
            case unknown:
                raise UnknownKindError(f"{unknown!r} is no kind of entry")

    def _leave_out(self, entry: Mapping[str, Any], error: Exception) -> None:
        """What MLflow will never take must not keep the rest from it."""
        if self._client.get_run(self._run_id).info.lifecycle_stage == "deleted":
            self.is_deleted = True
            return
        what = f"{self.header.name}: the {entry['kind']}"
        warn(f"MLflow does not take of {what}: {reason_of(error)}")
        self._client.set_tag(self._run_id, INCOMPLETE_TAG, f"without the {entry['kind']}")

    def _end(self, entry: Mapping[str, Any]) -> None:
        """End the run, unless an attempt after this one has ended it, or it was over before."""
        info = self._client.get_run(self._run_id).info
        is_running = info.status == "RUNNING"
        is_newest = self.header.is_training and (info.end_time or 0) <= entry["time"]
        if is_running or is_newest:
            self._client.set_terminated(self._run_id, entry["status"], entry["time"])

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
        if name not in self._known:
            self._known[name] = {}
            # Read when it is asked for: an evaluation has no use for the training's curves.
            if name in self._names:
                for metric in self._client.get_metric_history(self._run_id, name):
                    self._known[name].setdefault(metric.step, {})[metric.timestamp] = metric.value
        there = self._known[name].get(step)
        if there is None:
            return False
        if name.startswith("system/"):
            return moment in there
        # A step that a training does once more has the same loss, if not the same time; what
        # is evaluated once more may have come out otherwise.
        return self.header.is_training or there[max(there)] == value


def reason_of(error: Exception) -> str:
    """The first line of what a failure says; of a database's, without SQLAlchemy's words around."""
    error = getattr(error.__cause__ or error, "orig", None) or error
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # MLflow quotes what a library below quotes; the address says enough.
    short = re.sub(r" failed with exception .*", " failed", line)
    return hide_credentials(short)[:MAX_REASON]


def _is_hopeless(error: Exception) -> bool:
    """Whether the same entry will fail again, whatever the store's state."""
    mlflow = import_mlflow()
    is_refused = (
        isinstance(error, mlflow.exceptions.MlflowException)
        and error.error_code == "INVALID_PARAMETER_VALUE"
    )
    return is_refused or isinstance(error, FileNotFoundError | UnknownKindError)


def _first_batch(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first entry, if any; of metrics, those after it up to the next of another kind."""
    some = list(itertools.islice(entries, MAX_ENTRIES))
    if not some or some[0]["kind"] != "metrics":
        return some[:1]
    kind, only_new = some[0]["kind"], some[0].get("only_new")
    return list(
        itertools.takewhile(
            lambda entry: entry["kind"] == kind and entry.get("only_new") == only_new, some
        )
    )


def now_ms() -> int:
    """MLflow's times are milliseconds."""
    return int(time.time() * 1000)
