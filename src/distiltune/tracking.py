"""The MLflow mirror: files are the truth, a run in MLflow shows them.

No other module logs a stage's run; store.py ties the runs of a sweep together. A stage writes what
is to be logged into an outbox, and a thread sends that. Where MLflow is away, slow or full the
stage goes on all the same; what could not be sent by its end is sent by whoever comes next.
"""

import contextlib
import math
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout

from distiltune.location import checkout_id, store_name
from distiltune.logged_model import model_requirements
from distiltune.monitoring import SystemMonitor
from distiltune.outbox import FOLDER, Header, Outbox
from distiltune.runtime import warn
from distiltune.sending import (
    CHECKOUT_TAG,
    EXPERIMENT_TAG,
    Sender,
    now_ms,
    reason_of,
)
from distiltune.syncing import send_left_behind

# A record's figures, and their names in MLflow.
STEP_METRICS = {
    name: f"train/{name}"
    for name in (
        "loss", "learning_rate", "gradient_norm", "tokens_per_second", "examples_per_second",
        "optimizer_seconds",
    )
}  # fmt: skip
EPOCH_METRICS = {
    "train_loss": "epoch/train_loss",
    "train_accuracy": "epoch/train_accuracy",
    "train_seconds": "epoch/train_seconds",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
}
# A start waits so long for MLflow, so that what is wrong with it is said at once.
FIRST_WAIT_SECONDS = 20.0
# Between two tries to send, doubled after each that fails.
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
# What comes within this is sent together.
BATCH_SECONDS = 1.0
KILLED_WAIT_SECONDS = 10.0


class TrackedRun:
    """One run in MLflow, a new one or one that is there. No method fails for MLflow's sake."""

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = root
        self.experiment = experiment
        self.key = uuid.uuid4().hex
        self._outbox: Outbox | None = None
        self._only_new = False
        self._monitor: SystemMonitor | None = None
        self._is_closing = False
        self._was_met = threading.Event()  # or it has failed once
        self._has_warned_of_disk = False
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)

    def start(
        self,
        facts: Mapping[str, Any],
        *,
        system_metrics: bool,
        started: float,
    ) -> None:
        """Open a new run, or, where `key` was set to it, that of an attempt that was cut off.

        Args:
            facts: what the model's `run.json` says: `name`, to which DVC's experiment
                name is added; `params`, resolved, of the active rows; `tags`; `dataset`;
                `dataset_digest`, the sha256 of its training tokens.
            system_metrics: whether to sample CPU, memory and GPU meanwhile.
            started: when the first attempt began, in seconds since 1970.
        """
        self._open(facts, weights=None)
        if system_metrics and self._outbox is not None:
            self._monitor = SystemMonitor(self.log_metrics, started)
            self._monitor.start()

    def find(self, weights_sha256: str, facts: Mapping[str, Any]) -> None:
        """Take up this checkout's run with the `key` or these weights, or open a new one.

        Of several it is this experiment's, else the latest.

        Args:
            weights_sha256: of the model.
            facts: for a new one, as `start` takes them.
        """
        self._open(facts, weights=weights_sha256)

    @contextlib.contextmanager
    def only_if_new(self) -> Iterator[None]:
        """What is logged within, the training has logged: a run that it has ended needs it not."""
        self._only_new = True
        try:
            yield
        finally:
            self._only_new = False

    def _open(self, facts: Mapping[str, Any], weights: str | None) -> None:
        try:
            header = Header(
                store=store_name(self.root),
                experiment=self.experiment,
                key=self.key,
                weights=weights,
                is_training=weights is None,
                time=now_ms(),
                name=" ".join(filter(None, (facts["name"], os.environ.get("DVC_EXP_NAME")))),
                params=dict(facts["params"]),
                tags={**facts["tags"], **_context_tags(self.root)},
                dataset=facts["dataset"],
                dataset_digest=facts["dataset_digest"],
            )
            self._outbox = Outbox.new(self.root, header)
        except OSError as error:
            warn(f"nothing is logged to MLflow, since {self.root / FOLDER} cannot be written: "
                  f"{error}; `dvc repro -f -s evaluate` logs it from the files later")  # fmt: skip
            return
        self._thread.start()
        self._was_met.wait(FIRST_WAIT_SECONDS)

    def __enter__(self) -> "TrackedRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the run, as what has ended the block says."""
        if kind is None:
            self.close()
        else:
            is_asked_for = issubclass(kind, KeyboardInterrupt | SystemExit)
            self.close("KILLED" if is_asked_for else "FAILED")

    def replay(self, steps: Iterable[Any], epochs: Iterable[Any]) -> None:
        """Log the records of an earlier process; those that the run has are left out."""
        for record in steps:
            self.on_step(record)
        for record in epochs:
            self.on_epoch(record)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log numbers at a step; missing ones are left out."""
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if value is not None and not math.isnan(value)
        }
        if numbers:
            self._append({"kind": "metrics", "time": now_ms(), "step": step, "metrics": numbers})

    def on_update(self, step: int) -> None:
        """Nothing: steps are logged when there is a record of them."""

    def on_step(self, record: Any) -> None:
        self.log_step(vars(record), record.step)

    def on_epoch(self, record: Any) -> None:
        self.log_epoch(vars(record), record.epoch)

    def log_step(self, values: Mapping[str, float | None], step: int) -> None:
        """Log a step's figures as `train/...`, by step."""
        self.log_metrics({shown: values.get(name) for name, shown in STEP_METRICS.items()}, step)

    def log_epoch(self, values: Mapping[str, float | None], epoch: int) -> None:
        """Log an epoch's figures as `epoch/...` and `validation/...`, by epoch."""
        self.log_metrics({shown: values.get(name) for name, shown in EPOCH_METRICS.items()}, epoch)

    def log_model(self, folder: Path, label_names: Iterable[str]) -> None:
        """Log the model in MLflow's own format, with the code that runs it.

        `mlflow.pyfunc.load_model` then answers a table of texts with labels and
        probabilities.

        Args:
            folder: the model's folder.
            label_names: the classes.
        """
        entry = {"kind": "model", "label_names": list(label_names),
                 "requirements": model_requirements()}  # fmt: skip
        self._append_files(entry, [folder, Path(__file__).parent])

    def log_files(self, files: Iterable[Path], folder: str) -> None:
        """Log files as artifacts below `folder`, as they are now."""
        self._append_files({"kind": "files", "folder": folder}, list(files))

    def register(self, name: str, facts: Path, answers: Path) -> None:
        """Make the run's model the champion of the registry, if it is better on validation.

        Args:
            name: of the registered model.
            facts: the model's `run.json`.
            answers: the history's `validation.csv`.
        """
        self._append_files({"kind": "register", "name": name}, [facts, answers])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._append({"kind": "tags", "tags": dict(tags)})

    def close(self, status: str = "FINISHED") -> None:
        """End the run, and send what is left as far as MLflow takes it."""
        if self._outbox is None:
            return
        if self._monitor is not None:
            self._monitor.stop()
        self._append({"kind": "end", "status": status, "time": now_ms()})
        is_on_disk = self._outbox.sync()
        with self._outbox.changed:
            self._is_closing = True
            self._outbox.changed.notify_all()
        # Who asks a process to end does not wait long.
        self._thread.join(KILLED_WAIT_SECONDS if status == "KILLED" else None)
        is_sending = self._thread.is_alive()
        if not self._outbox.entries and not is_sending:
            self._outbox.remove()
            return
        where = "is kept on disk" if is_on_disk else "was lost, since the disk takes no more"
        warn(f"MLflow: what it does not have {where}; `distiltune sync` sends what is kept, "
              "and so do the next train, evaluate, compare and sweep")  # fmt: skip
        if not is_sending:  # else it is this process's until that is gone
            self._outbox.release()

    def _append_files(self, entry: dict[str, Any], files: list[Path]) -> None:
        if self._outbox is None:
            return
        try:
            kept = self._outbox.keep(files)
        except OSError as error:
            self._warn_of_disk(str(error))
            kept = [str(file.resolve()) for file in files]  # as long as this stage lives
        self._append({**entry, "files": kept})

    def _append(self, entry: dict[str, Any]) -> None:
        if self._outbox is None:
            return
        if self._only_new:
            entry["only_new"] = True
        if not self._outbox.append(entry):
            self._warn_of_disk("no space, or no right to write")

    def _warn_of_disk(self, reason: str) -> None:
        if not self._has_warned_of_disk:
            self._has_warned_of_disk = True
            warn(f"{self.root / FOLDER} cannot be written: {reason}; what MLflow does not take "
                  "before this stage ends is lost to it")  # fmt: skip

    def _send(self) -> None:
        """The thread: send what comes, and try again where that fails."""
        assert self._outbox is not None
        outbox, delay, is_away = self._outbox, RETRY_SECONDS, False
        sender = Sender(self.root, outbox, is_live=True)
        while True:
            is_last = self._is_closing
            try:
                # What went before comes first; another process may be at it.
                if not outbox.sending.is_locked:
                    send_left_behind(self.root)
                    outbox.sending.acquire(timeout=RETRY_SECONDS)
                sender.send()
            except Timeout:
                if is_last:
                    return
                continue
            # Whatever a store, a server or a disk can do wrong must not end a training.
            except Exception as error:
                if not is_away:
                    warn(f"MLflow at {store_name(self.root)}: {reason_of(error)}; the work goes "
                          "on, and what it does not take is kept on disk")  # fmt: skip
                is_away = True
                sender = Sender(self.root, outbox, is_live=True)
                self._was_met.set()
                if is_last:
                    return
                self._wait(delay)
                delay = min(2 * delay, MAX_RETRY_SECONDS)
                continue
            if is_away:
                print("MLflow takes it again", file=sys.stderr, flush=True)
            delay, is_away = RETRY_SECONDS, False
            self._was_met.set()
            if is_last:
                return
            self._wait(BATCH_SECONDS)
            with outbox.changed:
                outbox.changed.wait_for(lambda: outbox.entries or self._is_closing)

    def _wait(self, seconds: float) -> None:
        """Until then, or until there will be no more."""
        assert self._outbox is not None
        with self._outbox.changed:
            self._outbox.changed.wait_for(lambda: self._is_closing, timeout=seconds)


def _context_tags(root: Path) -> dict[str, str]:
    """What DVC and git say of the run: experiment, baseline, commit; and which checkout's it is."""
    tags = {CHECKOUT_TAG: checkout_id(root)}
    for name, variable in (
        (EXPERIMENT_TAG, "DVC_EXP_NAME"),
        ("dvc_baseline", "DVC_EXP_BASELINE_REV"),
    ):
        if value := os.environ.get(variable):
            tags[name] = value
    with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):  # no git here
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 (the user's git, wherever it is)
            capture_output=True,
            text=True,
            check=True,
            cwd=Path.cwd() if (Path.cwd() / ".git").exists() else root,
        )
        tags["git_commit"] = git.stdout.strip()
    return tags
