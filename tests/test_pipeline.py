"""The whole pipeline through DVC, as users run it."""

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from tests.conftest import Project

CHECK = {"check-params"}  # whenever params.yaml has changed
DATA = {"download", "download-checkpoint", "split", "tokenize", "adapt"}
ALL = CHECK | DATA | {"train", "evaluate"}


def ran(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    lines = [line for line in output.splitlines() if line.startswith("Running stage '")]
    return {line.split("'")[1].partition("@")[0] for line in lines}


def runs_of(project: Project) -> list[Any]:
    client = mlflow.MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("distiltune")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def answer_of_logged_model(project: Project, run_id: str) -> pd.DataFrame:
    """What a process that knows nothing of the project gets from MLflow's model."""
    code = """
import sys, mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/model")
answer = model.predict(pandas.DataFrame({"text": ["The plot was not dull.", "Awful!", "?"]}))
try:
    model.predict(pandas.DataFrame({"text": ["Awful!", " "]}))
except mlflow.MlflowException as error:
    assert error.message == "text 2: is empty", error.message
else:
    raise AssertionError("an empty text was answered")
import distiltune
assert "/model/code/distiltune/" in distiltune.__file__, distiltune.__file__
print(answer.to_csv(index=False))
"""
    elsewhere = project.root.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    uri = f"sqlite:///{project.root / 'mlflow.db'}"
    result = Project(elsewhere).run(sys.executable, "-c", code, uri, run_id)
    return pd.read_csv(io.StringIO(result.stdout))


def test_one_run_after_the_other(project: Project) -> None:
    """Everything once, then only what a change concerns; the UI's store shows each run."""
    often = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2"}
    assert ran(project.dvc("exp", "run", "-n", "first", env=often)) == ALL
    assert ran(project.dvc("repro")) == set()
    overrides = ("optimizer=adamw", "optimizers.adamw.learning_rate=3e-5", "seed=9")
    options = [option for override in overrides for option in ("-S", override)]
    assert ran(project.dvc("exp", "run", *options, "-n", "second")) == ALL - DATA
    # Another variant's row concerns nobody; the active one's does.
    unused = project.dvc("exp", "run", "-S", "optimizers.adam.learning_rate=1e-4")
    assert ran(unused) == CHECK
    project.change_params({"optimizers.adamw.learning_rate": 4e-5})
    assert ran(project.dvc("repro", "--dry")) == {*CHECK, "train"}
    project.change_params({"optimizers.adamw.learning_rate": 3e-5})

    runs = runs_of(project)
    assert [run.info.run_name for run in runs] == ["tiny-adam-123 first", "tiny-adamw-9 second"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    first, second = (run.data for run in runs)
    assert first.params["optimizer"] == "adam"
    assert "optimizer.warmup_steps" in second.params and second.params["optimizer"] == "adamw"
    assert (first.params["seed"], second.params["seed"]) == ("123", "9")
    assert float(second.params["learning_rate"]) == pytest.approx(3e-4)
    for run, name in zip(runs, ("first", "second"), strict=True):
        tags = run.data.tags
        assert tags["dvc_experiment"] == name
        assert tags["dvc_baseline"] == tags["git_commit"] == project.git("rev-parse", "HEAD")
        assert len(tags["weights_sha256"]) == 64
        assert "torch" in tags and "device" in tags
        assert run.inputs.dataset_inputs[0].dataset.name == "sample"
    metrics = json.loads((project.root / "metrics/test.json").read_text())
    assert second.metrics["test/accuracy"] == pytest.approx(metrics["accuracy"])
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    assert metrics["without_training_copies"]["num_reviews"] <= metrics["num_reviews"] == 40

    client = mlflow.MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    run_id = runs[0].info.run_id
    for name, length in (
        ("train/loss", 4), ("train/learning_rate", 4), ("train/gradient_norm", 4),
        ("train/tokens_per_second", 4), ("validation/accuracy", 2), ("epoch/train_accuracy", 2),
    ):  # fmt: skip
        assert len(client.get_metric_history(run_id, name)) == length, name
    assert any(name.startswith("system/") for name in first.metrics)
    artifacts = {file.path for folder in ("plots", "test")
                 for file in client.list_artifacts(run_id, folder)}  # fmt: skip
    assert {"plots/roc.png", "plots/confusion.csv", "test/predictions.parquet"} <= artifacts
    note, tables = (first.tags[f"mlflow.{name}"] for name in ("note.content", "loggedArtifacts"))
    assert "`tiny` fine-tuned on `sample` with `adam`, learning rate 0.0005" in note
    assert json.loads(tables) == [{"path": "test/mistakes.json", "type": "table"}]
    table = mlflow.artifacts.load_dict(f"{runs[0].info.artifact_uri}/test/mistakes.json")
    assert table["columns"] == ["text", "label", "predicted", "probability"]
    assert len(table["data"]) == 40 - round(40 * first.metrics["test/accuracy"])
    assert all(label != predicted for _, label, predicted, _ in table["data"])

    answer = answer_of_logged_model(project, run_id)
    assert list(answer.columns) == [
        "label", "probability", "probability_negative", "probability_positive",
    ]  # fmt: skip
    assert set(answer["label"]) <= {"negative", "positive"}
    sums = answer["probability_negative"] + answer["probability_positive"]
    assert sums.tolist() == pytest.approx([1.0] * 3)
    stored = list(Path(project.root / "mlartifacts").rglob("*"))
    assert not [f for f in stored if f.suffix in (".pkl", ".pickle", ".bin", ".pt")]

    shown = project.dvc("metrics", "show")
    assert "accuracy" in shown and "metrics/test.json" in shown
    table = pd.read_csv(io.StringIO(project.run("dvc", "exp", "show", "--csv").stdout))
    accuracy = table.set_index("Experiment")["accuracy"].to_dict()
    assert float(accuracy["second"]) == pytest.approx(second.metrics["test/accuracy"], abs=1e-4)
    page = project.dvc("plots", "show")
    assert "index.html" in page
    html = (project.root / "dvc_plots/index.html").read_text()
    for title in (
        "Training and validation loss",
        "Learning rate",
        "Confusion",
        "ROC",
        "Calibration",
    ):
        assert title in html, title

    # What is refused costs nothing that was there.
    folders = [project.root / name for name in ("data", "metrics")]
    kept = {file: file.stat().st_mtime_ns for folder in folders for file in folder.rglob("*")}
    checked = project.root / "data/params-checked"
    for command, refused in (
        (("repro",), {"train.batch_size": 0}),
        (("exp", "run", "-S", "precision=fp16"), {"device": "cpu"}),
    ):
        project.change_params(refused)
        output = project.dvc(*command, check=False)
        assert ran(output) == CHECK and output.count("\nerror: ") == 1, output
        assert [file for file in kept if not file.exists()] == [checked]
        project.git("checkout", "params.yaml")
    project.dvc("checkout")
    assert {file: file.stat().st_mtime_ns for file in kept if file != checked} == {
        file: when for file, when in kept.items() if file != checked
    }

    # A run that MLflow has lost comes back from the files, curves and model included.
    client.delete_run(runs[1].info.run_id)
    (project.root / "metrics/test.json").unlink()
    assert ran(project.dvc("repro", "-f", "-s", "evaluate")) == {"evaluate"}
    restored = runs_of(project)[-1]
    assert restored.info.run_id != runs[1].info.run_id
    assert restored.data.params == second.params
    assert restored.data.metrics["test/accuracy"] == second.metrics["test/accuracy"]
    assert len(client.get_metric_history(restored.info.run_id, "train/loss")) == 4
    assert len(answer_of_logged_model(project, restored.info.run_id)) == 3


def wait_for_queue(project: Project, num_done: int, seconds: float = 240) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = project.dvc("queue", "status")
        assert "Failed" not in status, status
        if status.count("Success") >= num_done and "Running" not in status:
            return status
        time.sleep(2)
    raise AssertionError(status)


def test_queued_experiments_run_their_own_code_and_lose_no_run(project: Project) -> None:
    """Two workers at once; the code that was queued runs, whatever the checkout holds then."""
    project.change_params({"tracking.log_model": False})
    project.dvc("repro", "tokenize")
    loop = project.root / "src/distiltune/training/native.py"
    original = loop.read_text()
    loop.write_text(f'print("the code that was queued")\n{original}')
    project.git("add", "-A")
    project.dvc("exp", "run", "--queue", "-S", "optimizer=adam,adamw")
    loop.write_text('raise RuntimeError("the code of the checkout")\n')
    project.dvc("queue", "start", "-j", "2")
    status = wait_for_queue(project, 2)
    names = [line.split()[1] for line in status.splitlines()[1:3]]
    for name in names:
        assert "the code that was queued" in project.dvc("queue", "logs", name)
    queued = runs_of(project)
    assert sorted(run.data.tags["dvc_experiment"] for run in queued) == sorted(names)
    assert {run.data.params["optimizer"] for run in queued} == {"adam", "adamw"}
    assert all("test/accuracy" in run.data.metrics for run in queued)
    assert all(run.info.status == "FINISHED" for run in queued)


def test_your_own_file_is_followed(project: Project) -> None:
    """Editing the file re-runs the pipeline; a relative path means the root, queued as well."""
    rows = [f"The film number {i} was {'good' if i % 2 else 'bad'}.,{i % 2}" for i in range(60)]
    file = project.root / "mine" / "reviews.csv"
    file.parent.mkdir()
    file.write_text("\n".join(["review,sentiment", *rows]))
    project.change_params({"splits.csv.train": 0.5, "splits.csv.validation": 0.25,
                           "splits.csv.test": 0.25, "tracking.log_model": False})  # fmt: skip
    project.git("add", "params.yaml")
    project.git("commit", "-qm", "splits")
    # One path from the root and one absolute, outside of the project.
    outside = project.root.parent / "more.csv"
    outside.write_text("review,sentiment\nIt was good enough.,1\n")
    paths = f"datasets.csv.paths=[mine/reviews.csv,{outside}]"
    overrides = ("-S", "dataset=csv", "-S", paths)
    project.dvc("exp", "run", "--queue", *overrides)
    project.dvc("queue", "start")
    wait_for_queue(project, 1)
    assert runs_of(project)[0].data.params["dataset"] == "csv"

    output = project.dvc("exp", "run", *overrides)
    assert "download" not in ran(output)  # the queued run's result is taken from DVC's cache
    assert ran(project.dvc("repro")) == {"watch-csv"}
    outside.write_text(outside.read_text() + "One more that was good.,1\n")
    again = ran(project.dvc("repro", "tokenize"))
    assert again == {"watch-csv", "download", "split", "tokenize"}
    assert sorted(path.name for path in project.root.parent.iterdir()) == ["more.csv", "project"]
    # Back on another data set, the file is not looked at, and need not be there.
    file.unlink()
    project.change_params({"dataset": "sample"})
    assert "download" in ran(project.dvc("repro", "download"))


def test_training_goes_on_without_mlflow_and_the_run_is_written_later(prepared: Project) -> None:
    uri = "http://me:secret@127.0.0.1:1"
    offline = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    result = prepared.stage("train", env=offline)
    first, last = result.stderr.splitlines()
    assert first.startswith("warning: MLflow at http://127.0.0.1:1: ")
    assert "secret" not in result.stdout + result.stderr
    assert "kept on disk; `distiltune sync` sends" in last
    assert (prepared.root / "data/model/model.safetensors").exists()
    # Another store has the run from the files; what the first waits for stays.
    result = prepared.stage_here("evaluate")
    assert "warning" not in result.stderr
    (run,) = runs_of(prepared)
    assert run.data.tags["restored"] and run.info.status == "FINISHED"
    assert "test/accuracy" in run.data.metrics
    assert run.data.metrics["train/loss"] > 0
    for env, words in (({}, "waits for http://127.0.0.1:1, which MLFLOW_TRACKING_URI has to name"),
                       (offline, "tiny-adam-123 (")):  # fmt: skip
        command = (sys.executable, "-m", "distiltune.cli", "sync")
        result = prepared.run(*command, check=False, env=env)
        assert result.returncode == 1 and words in result.stderr
        assert result.stderr.count("\n") == 2 and result.stderr.startswith("error: ")
        assert "secret" not in result.stderr
    (kept,) = (prepared.root / ".dvc/tmp/outbox").glob("[!.]*")
    written = b"".join(file.read_bytes() for file in kept.rglob("*.json*"))
    assert b"train/loss" in written and b"secret" not in written


def test_a_failed_training_leaves_a_failed_run(prepared: Project) -> None:
    prepared.change_params({"optimizers.adam.learning_rate": 10.0, "optimizers.adam.epsilon": 1e-30,
                            "models.tiny.training.learning_rate_multiplier": 1e30})  # fmt: skip
    result = prepared.stage_here("train", check=False)
    assert result.returncode == 1
    assert "error: the loss is" in result.stderr
    assert not (prepared.root / "data/model").exists()
    (run,) = runs_of(prepared)
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=adamww", "'adamww' is no row of optimizers (did you mean adamw?)"),
        ("optimzer=adamw", "optimzer"),
    ],
)
def test_dvc_refuses_a_mistyped_override(project: Project, override: str, words: str) -> None:
    before = (project.root / "params.yaml").read_text()
    output = project.dvc("exp", "run", "-S", override, check=False)
    assert "ERROR" in output and words in output
    assert not (project.root / "data/reviews.parquet").exists()
    if "optimzer" in override:
        assert (project.root / "params.yaml").read_text() == before
