"""The MLflow mirror: files are the truth, a run in MLflow shows them.

Nothing else logs to it (serving.py is what MLflow runs). What goes wrong here is said
once and never stops a stage: `evaluate` writes a run that it does not find from the files.
"""

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from distiltune.location import checkout_id, experiment_id, import_mlflow, use_store

WEIGHTS_TAG, EXPERIMENT_TAG = "weights_sha256", "dvc_experiment"
CHECKOUT_TAG = "checkout"
INCOMPLETE_TAG = "incomplete"
TRAINING_TAG = "training"  # its fingerprint: a run that was cut off is found by it
# Kept with the logged model as its input example.
EXAMPLE = "The plot is thin, but the acting is superb."
# What the logged model needs where it is loaded.
MODEL_REQUIREMENTS = (
    "mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "tokenizers",
    "torch", "transformers",
)  # fmt: skip

P = ParamSpec("P")


def _mirrored(
    method: Callable[Concatenate["TrackedRun", P], None],
) -> Callable[Concatenate["TrackedRun", P], None]:
    """Say what went wrong with MLflow, once, and go on without it."""

    def guarded(run: "TrackedRun", /, *args: P.args, **kwargs: P.kwargs) -> None:
        if run.is_lost:
            return
        try:
            method(run, *args, **kwargs)
        # Whatever a store, a server or a disk can do wrong must not end a training.
        except Exception as error:
            run.is_lost = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(
                f"warning: MLflow: {reason}; going on without it. "
                "The results are in metrics/ and data/; `dvc repro -f -s evaluate` logs them later",
                file=sys.stderr,
                flush=True,
            )

    guarded.__doc__ = method.__doc__
    return guarded


class TrackedRun:
    """One run in MLflow. Each method does nothing after the store has failed."""

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = root
        self.experiment = experiment
        self.is_lost = False
        self.run_id: str | None = None
        self.was_found = False
        self._logged: set[tuple[str, int]] = set()  # metrics by name and step, before this process
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._writes: list[Future[None]] = []

    @_mirrored
    def start(
        self,
        facts: Mapping[str, Any],
        *,
        system_metrics: bool,
        fingerprint: str | None = None,
        earlier: str | None = None,
    ) -> None:
        """Open a new run, or the one of the same training that was cut off.

        Args:
            facts: what the model's `run.json` says: `name`, to which DVC's experiment
                name is added; `params`, resolved, of the active rows; `tags`; `dataset`;
                `dataset_digest`, the sha256 of its training tokens.
            system_metrics: whether to sample CPU, memory and GPU meanwhile.
            fingerprint: of the training, if it can be gone on with.
            earlier: the run of the attempt before, where that is known.
        """
        mlflow = import_mlflow()
        experiment = experiment_id(self.root, self.experiment)
        cut_off = self._find_cut_off(experiment, fingerprint, earlier) if fingerprint else None
        run = mlflow.start_run(
            run_id=cut_off,
            experiment_id=None if cut_off else experiment,
            run_name=" ".join(filter(None, (facts["name"], os.environ.get("DVC_EXP_NAME")))),
            tags={
                **facts["tags"],
                **_context_tags(self.root),
                **({TRAINING_TAG: fingerprint} if fingerprint else {}),
            },
            log_system_metrics=system_metrics,
        )
        self.run_id = run.info.run_id
        mlflow.log_params(dict(facts["params"]))
        source = mlflow.data.code_dataset_source.CodeDatasetSource({})
        mlflow.log_input(
            mlflow.data.meta_dataset.MetaDataset(
                source, name=facts["dataset"], digest=facts["dataset_digest"][:32]
            ),
            context="training",
        )

    def _find_cut_off(self, experiment: str, fingerprint: str, earlier: str | None) -> str | None:
        """The run of a training that was cut off; notes what it has logged, ends its models."""
        client = import_mlflow().MlflowClient(use_store(self.root))
        for run in client.search_runs(
            [experiment],
            filter_string=f"tags.{TRAINING_TAG} = '{fingerprint}'",
            order_by=["attributes.start_time DESC"],
        ):
            is_cut_off = run.info.status in ("RUNNING", "KILLED") or run.info.run_id == earlier
            is_ours = run.data.tags.get(CHECKOUT_TAG) == checkout_id(self.root)
            if is_cut_off and is_ours and INCOMPLETE_TAG not in run.data.tags:
                run_id = str(run.info.run_id)
                for name in run.data.metrics:
                    if not name.startswith("system/"):
                        history = client.get_metric_history(run_id, name)
                        self._logged |= {(name, metric.step) for metric in history}
                for model in client.search_logged_models([experiment]):
                    if model.source_run_id == run_id:
                        client.delete_logged_model(model.model_id)
                return run_id
        return None

    def replay(self, steps: Iterable[Any], epochs: Iterable[Any]) -> None:
        """Log the records of an earlier process that the run does not have yet."""
        for record in steps:
            self.on_step(record)
        for record in epochs:
            self.on_epoch(record)

    @_mirrored
    def find(self, weights_sha256: str) -> None:
        """Take up this checkout's run whose weights have this checksum, if there is one.

        Of several it is this experiment's, else the latest.
        """
        client = import_mlflow().MlflowClient(use_store(self.root))
        runs = client.search_runs(
            [experiment_id(self.root, self.experiment)],
            filter_string=f"tags.{WEIGHTS_TAG} = '{weights_sha256}'",
            order_by=["attributes.start_time DESC"],
        )
        # Two experiments may have come to the same weights, and two checkouts.
        runs = [r for r in runs if r.data.tags.get(CHECKOUT_TAG) == checkout_id(self.root)]
        own = [r for r in runs if r.data.tags.get(EXPERIMENT_TAG) == os.environ.get("DVC_EXP_NAME")]
        if runs:
            self.run_id = (own or runs)[0].info.run_id
            self.was_found = True

    @_mirrored
    def log_metrics(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log numbers at a step, from another thread; missing ones are left out."""
        mlflow = import_mlflow()
        now = int(time.time() * 1000)
        batch = [
            mlflow.entities.Metric(name, float(value), now, step)
            for name, value in metrics.items()
            if value is not None and not math.isnan(value) and (name, step) not in self._logged
        ]
        for write in self._writes:
            if write.done():
                write.result()  # one that has failed says so now, and not at the end
        if not batch:
            return
        log_batch = mlflow.MlflowClient().log_batch
        # MLflow has a queue of its own, but the end of a run waits up to a second for its threads.
        self._writes.append(self._writer.submit(log_batch, self.run_id, batch, synchronous=True))

    def on_update(self, step: int) -> None:
        """Nothing: steps are logged when there is a record of them."""

    def on_step(self, record: Any) -> None:
        self.log_step(
            {
                "loss": record.loss,
                "learning_rate": record.learning_rate,
                "gradient_norm": record.gradient_norm,
                "tokens_per_second": record.tokens_per_second,
                "examples_per_second": record.examples_per_second,
                "optimizer_seconds": record.optimizer_seconds,
            },
            record.step,
        )

    def on_epoch(self, record: Any) -> None:
        self.log_epoch(vars(record), record.epoch)

    def log_step(self, values: Mapping[str, float | None], step: int) -> None:
        """Log a step's figures as `train/...`, by step."""
        names = (
            "loss", "learning_rate", "gradient_norm", "tokens_per_second", "examples_per_second",
            "optimizer_seconds",
        )  # fmt: skip
        self.log_metrics({f"train/{name}": values.get(name) for name in names}, step)

    def log_epoch(self, values: Mapping[str, float | None], epoch: int) -> None:
        """Log an epoch's figures as `epoch/...` and `validation/...`, by epoch."""
        self.log_metrics(
            {
                "epoch/train_loss": values.get("train_loss"),
                "epoch/train_accuracy": values.get("train_accuracy"),
                "epoch/train_seconds": values.get("train_seconds"),
                "validation/loss": values.get("validation_loss"),
                "validation/accuracy": values.get("validation_accuracy"),
            },
            epoch,
        )

    @_mirrored
    def log_model(self, folder: Path, label_names: Iterable[str]) -> None:
        """Log the model in MLflow's own format, with the code that runs it and no pickle.

        `mlflow.pyfunc.load_model` then answers a table of texts with labels and
        probabilities.

        Args:
            folder: the model's folder.
            label_names: the classes.
        """
        mlflow = import_mlflow()
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types.schema import ColSpec, DataType, Schema

        package = Path(__file__).parent
        probabilities = ["probability", *(f"probability_{name}" for name in label_names)]
        outputs = [ColSpec(DataType.string, "label")]
        outputs += [ColSpec(DataType.double, name) for name in probabilities]
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving.py"),
            artifacts={"model": str(folder)},
            code_paths=[str(package)],
            signature=ModelSignature(Schema([ColSpec(DataType.string, "text")]), Schema(outputs)),
            input_example=pd.DataFrame({"text": [EXAMPLE]}),
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name).split('+')[0]}"
                for name in MODEL_REQUIREMENTS
            ],
        )

    @_mirrored
    def log_files(self, files: Iterable[Path], folder: str) -> None:
        """Log files as artifacts below `folder`."""
        client = import_mlflow().MlflowClient(use_store(self.root))
        for file in files:
            client.log_artifact(self.run_id, str(file), folder)

    @_mirrored
    def set_tags(self, tags: Mapping[str, str]) -> None:
        client = import_mlflow().MlflowClient(use_store(self.root))
        for name, value in tags.items():
            client.set_tag(self.run_id, name, value)

    def close(self, status: str = "FINISHED") -> None:
        """Wait for what is under way and end the run; one that lost something ends as failed."""
        self._wait()
        # After one write has failed the others would only keep the stage waiting.
        self._writer.shutdown(cancel_futures=True)
        if self.is_lost and self.run_id is not None and not self.was_found:
            status = "FAILED"
            # Otherwise `evaluate` would take it for a whole one.
            self.is_lost = False
            self.set_tags({WEIGHTS_TAG: "", INCOMPLETE_TAG: "MLflow failed; see the run after it"})
            # Even where the tags could not be set, the run must not be left open.
            self.is_lost = False
        self._end(status)

    @_mirrored
    def _wait(self) -> None:
        for write in self._writes:
            write.result()

    @_mirrored
    def _end(self, status: str) -> None:
        if self.run_id is not None and not self.was_found:
            import_mlflow().end_run(status)


def _context_tags(root: Path) -> dict[str, str]:
    """What DVC and git say of the run: experiment, baseline, commit; and which checkout's it is."""
    tags = {CHECKOUT_TAG: checkout_id(root)}
    for name, variable in (
        (EXPERIMENT_TAG, "DVC_EXP_NAME"),
        ("dvc_baseline", "DVC_EXP_BASELINE_REV"),
    ):
        if value := os.environ.get(variable):
            tags[name] = value
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607 (the user's git, wherever it is)
        capture_output=True,
        text=True,
        check=False,
        cwd=Path.cwd() if (Path.cwd() / ".git").exists() else root,
    )
    if git.returncode == 0:
        tags["git_commit"] = git.stdout.strip()
    return tags


def version_tags() -> dict[str, str]:
    """The versions that a result may depend on."""
    packages = ("torch", "transformers", "mlflow", "dvc")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
