"""Many at once on one store: no run lost or doubled, nobody is told that a database is locked."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from benchmarks.outages import Server
from distiltune.location import DATABASE, checkout_id, store_name
from distiltune.outbox import Outbox, is_empty
from distiltune.sending import CHECKOUT_TAG
from tests.conftest import Project, environment
from tests.servers import HOST, POSTGRES, postgres
from tests.test_outages import entry, header

NUM_EXPERIMENTS, NUM_WORKERS = 40, 4
PATIENCE_SECONDS = 3000.0


@contextlib.contextmanager
def store_of(kind: str, project: Project, folder: Path) -> Iterator[str]:
    """The address of a store; with PostgreSQL through an MLflow server, as a team has it."""
    if kind == "SQLite":
        yield f"sqlite:///{project.root / 'mlflow.db'}"
        return
    with postgres() as database:
        server = Server(folder, database)
        server.start()
        try:
            yield f"http://{HOST}:{server.port}"
        finally:
            server.kill()


@pytest.mark.slow
def test_many_first_looks_into_a_store_make_it_once(project: Project) -> None:
    names = [f"first-{number}" for number in range(4)]
    tags = {CHECKOUT_TAG: checkout_id(project.root)}
    for name in names:
        changes = {"key": name, "store": store_name(project.root), "tags": tags}
        outbox = Outbox.new(project.root, header(name, **changes))
        outbox.append(entry(1))
        outbox.release()
    command = [sys.executable, "-m", "distiltune.cli", "sync"]
    processes = [
        subprocess.Popen(command, cwd=project.root, env=environment({}), text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in names
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(names), outputs
    runs = mlflow.MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}").search_runs(["1"])
    assert sorted(run.info.run_name for run in runs) == names
    assert is_empty(project.root)


def test_a_store_whose_making_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from distiltune.location import open_store\n"
    code += "open_store(Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=environment({}))
    deadline = time.monotonic() + 60
    while sum(file.stat().st_size for file in tmp_path.rglob(DATABASE)) < 100_000:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env=environment({}), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != ".dvc"] == [DATABASE]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "SQLite",
        pytest.param(
            "PostgreSQL",
            marks=pytest.mark.skipif(not POSTGRES, reason="apt-get install postgresql"),
        ),
    ],
)
def test_forty_experiments_by_four_workers_are_forty_runs(
    kind: str, project: Project, tmp_path: Path
) -> None:
    project.change_params({"tracking.log_model": False, "train.epochs": 1})
    project.commit()
    project.dvc("repro", "tokenize")
    with store_of(kind, project, tmp_path) as uri:
        env = {} if kind == "SQLite" else {"MLFLOW_TRACKING_URI": uri}
        seeds = f"seed=range(0,{NUM_EXPERIMENTS})"
        project.dvc("exp", "run", "--queue", "-S", seeds, env=env)
        project.dvc("queue", "start", "-j", str(NUM_WORKERS), env=env)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (status := project.dvc("queue", "status")).count("Success") < NUM_EXPERIMENTS:
            assert "Failed" not in status and time.monotonic() < deadline, status
            time.sleep(10)
        client = mlflow.MlflowClient(uri)
        runs = client.search_runs(["1"])
        assert {run.info.status for run in runs} == {"FINISHED"}
        found = Counter(run.data.params["seed"] for run in runs)
        assert found == {str(seed): 1 for seed in range(NUM_EXPERIMENTS)}
        assert len({run.data.tags["dvc_experiment"] for run in runs}) == NUM_EXPERIMENTS
        for run in runs:
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert [metric.step for metric in history] == [5, 10]
            assert "test/accuracy" in run.data.metrics
    for line in status.splitlines()[1 : NUM_EXPERIMENTS + 1]:
        log = project.dvc("queue", "logs", line.split()[1])
        assert "warning" not in log and "locked" not in log, log
    assert not list((project.root / ".dvc/tmp/outbox").glob("[!.]*"))


@pytest.mark.slow
def test_of_two_repros_at_once_the_second_says_so(project: Project) -> None:
    project.dvc("repro", "tokenize")
    project.change_params({"train.epochs": 40})
    first = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"], cwd=project.root, env=environment({}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step "):
            break
    second = project.dvc("repro", check=False)
    first.stdout.read()
    assert first.wait() == 0
    # Either it waits for the lock, or it says who has it; it never trains a second time.
    assert "Running stage 'train'" not in second, second
    assert "lock" in second.lower() or "busy" in second.lower(), second
    assert json.loads((project.root / "metrics/test.json").read_text())["num_reviews"] == 40
