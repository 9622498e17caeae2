"""`distiltune sweep` and `compare` through DVC's queue, also when all of it is killed."""

import contextlib
import importlib.metadata
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from distiltune import InputError, cli
from distiltune.sweeping.plan import Planner
from distiltune.sweeping.pruning import median_bars
from distiltune.sweeping.queue import Queue, Task
from distiltune.sweeping.sweep import SweepRunner
from distiltune.sweeping.under_way import note, only_sweep
from tests.conftest import Project, environment
from tests.test_pipeline import runs_of, wait_for_queue
from tests.test_predict import predict


def experiments(project: Project) -> list[str]:
    return sorted(
        ref.split("/", 4)[4]
        for ref in project.git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        if re.search(r"/(adam|lion|sgd|plain)-[^/]*$", ref)
    )


def children(project: Project) -> tuple[Any, list[Any]]:
    """The sweep's run, and those below it."""
    every = runs_of(project)
    parent = next(run for run in every if run.data.tags.get("kind") == "sweep")
    below = [run for run in every if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    others = [run for run in every if run not in below and run.data.tags.get("kind") != "sweep"]
    assert not [(run.info.run_name, run.info.status, run.data.tags) for run in others]
    return parent, below


def test_a_sweep_runs_what_is_missing_and_compares(project: Project) -> None:
    project.change_params({"tracking.log_model": False})
    project.commit()
    command = ("distiltune", "sweep", "--optimizers", "adam,lion", "--seeds", "3,", "--jobs", "2")
    first = project.run(*command, "--json", "figures.json").stdout
    assert re.match(r"sweep-\w{6}: adam, lion x 1 seed, tiny on sample\n", first), first
    assert "2 experiments, 0 of them done already" in first
    # It looks on while the workers work, and does not only wait for them to end.
    assert re.search(r"^[01] of 2 done, [12] running", first, re.MULTILINE), first
    names = experiments(project)
    assert len(names) == 2
    parent, below = children(project)
    found = {(run.data.params["optimizer"], run.data.params["seed"]) for run in below}
    assert found == {("adam", "3"), ("lion", "3")}
    assert parent.info.status == "FINISHED"
    figures = json.loads((project.root / "figures.json").read_text())
    assert {variant["name"]: variant["num_seeds"] for variant in figures["variants"]} == {
        "adam": 1, "lion": 1
    }  # fmt: skip
    for variant in figures["variants"]:
        (accuracy,) = [
            run.data.metrics["test/accuracy"]
            for run in below
            if run.data.params["optimizer"] == variant["name"]
        ]
        assert variant["mean"] == pytest.approx(accuracy)
        assert parent.data.metrics[f"accuracy/{variant['name']}"] == variant["mean"]
    (pair,) = figures["pairs"]
    assert pair["sentence"] in first
    sweep = parent.info.run_name
    assert (project.root / "reports" / sweep / "report.html").stat().st_size > 50_000
    client = mlflow.MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    logged = {file.path for file in client.list_artifacts(parent.info.run_id, "comparison")}
    assert {"comparison/report.html", "comparison/comparison.json"} <= logged

    # The workspace is as it was, and once more there is nothing to do.
    assert project.git("status", "--porcelain", "--untracked-files=no") == ""
    params = project.root / "params.yaml"
    params.write_text(f"{params.read_text()}# a note\n")
    again = project.run(*command).stdout
    assert "\nwith what is not committed in params.yaml\n" in again
    assert "2 experiments, 2 of them done already" in again
    assert experiments(project) == names and len(children(project)[1]) == 2

    project.run("distiltune", "compare", sweep, "--json", "again.json")
    assert json.loads((project.root / "again.json").read_text())["pairs"] == figures["pairs"]


@pytest.mark.slow
def test_another_way_to_the_same_experiments_gives_the_same_figures(project: Project) -> None:
    project.change_params({"tracking.log_model": False})
    project.commit()
    command = ("distiltune", "sweep", "--optimizers", "adam,lion", "--seeds", "2", "--jobs", "2")
    project.run(*command, "--json", "figures.json")
    figures = json.loads((project.root / "figures.json").read_text())
    names = experiments(project)
    parent, below = children(project)
    sweep = parent.info.run_name
    for variant in figures["variants"]:
        accuracies = [
            run.data.metrics["test/accuracy"]
            for run in below
            if run.data.params["optimizer"] == variant["name"]
        ]
        assert variant["num_seeds"] == len(accuracies) == 2
        assert variant["mean"] == pytest.approx(sum(accuracies) / 2)

    # Another sweep takes what is there, and takes nothing away from the first.
    other = project.run(*command[:2], "--optimizers", "lion,adam", "--seeds", "1,2", "--name",
                        "other").stdout  # fmt: skip
    assert "other: 4 experiments, 4 of them done already" in other
    _, same = children(project)
    assert [child.data.tags["sweep"] for child in same] == [sweep] * 4
    assert [child.data.tags["sweep/other"] for child in same] == ["trial"] * 4

    # From DVC and through the plain queue the figures are the same.
    project.dvc("exp", "run", "--queue", "-n", "plain-lion-2", "-S", "optimizer=lion",
                "-S", "seed=2")  # fmt: skip
    project.dvc("queue", "start")
    wait_for_queue(project, 5)
    plain = [name for name in names if "lion-2" not in name] + ["plain-lion-2"]
    chosen = ("--experiments", ",".join(plain))
    project.run("distiltune", "compare", *chosen, "--json", "plain.json")
    same = json.loads((project.root / "plain.json").read_text())
    assert same["pairs"] == figures["pairs"]
    assert [v["mean"] for v in same["variants"]] == [v["mean"] for v in figures["variants"]]


def num_runs_begun(project: Project) -> int:
    """Read past MLflow, which would make the store that the experiments are to make."""
    store = project.root / "mlflow.db"
    if not store.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("select count(*) from runs").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # no table yet


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_counts_nothing_twice(project: Project) -> None:
    project.change_params({"tracking.log_model": False, "train.epochs": 30})
    project.commit()
    command = ["distiltune", "sweep", "--optimizers", "adam,sgd", "--seeds", "2", "--jobs", "2"]
    sweep = subprocess.Popen(
        command, cwd=project.root, env=environment({}), stdout=subprocess.DEVNULL
    )

    def processes(word: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if word in " ".join(process.cmdline()) and Path(process.cwd()).is_relative_to(
                    project.root
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    deadline = time.monotonic() + 300
    while num_runs_begun(project) < 2:
        assert time.monotonic() < deadline and sweep.poll() is None
        time.sleep(0.5)
    # As when the machine goes, but for one training, which its worker's end does not stop.
    sweep.kill()
    for word in ("queue-worker", "exec-run"):
        for process in processes(word):
            process.kill()
    assert experiments(project) == []
    output = project.run(*command).stdout
    assert "its process is gone; it runs again" in output
    assert len(experiments(project)) == 4
    _, below = children(project)
    assert len({run.data.tags["dvc_experiment"] for run in below}) == len(below) == 4
    assert all(run.info.status == "FINISHED" for run in below)
    assert not processes("stages.train")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_asked_to_stop_says_how_to_go_on(
    project: Project, number: signal.Signals, status: int
) -> None:
    sweep = subprocess.Popen(
        ["distiltune", "sweep", "--optimizers", "adam,lion"], cwd=project.root,
        env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert sweep.stdout is not None
    assert any("preparing the data" in line for line in sweep.stdout)
    sweep.send_signal(number)
    _, errors = sweep.communicate(timeout=60)
    assert sweep.returncode == status and "the same command takes it up again" in errors


@pytest.mark.slow
def test_a_variant_that_fails_is_named_and_the_others_are_compared(project: Project) -> None:
    project.change_params({"tracking.log_model": False, "optimizers.sgd.warmup_share": None,
                           "optimizers.sgd.warmup_steps": 400})  # fmt: skip
    project.commit()
    result = project.run("distiltune", "sweep", "--optimizers", "sgd,adam,lion", "--seeds", "7,",
                         "--jobs", "2", check=False)  # fmt: skip
    assert result.returncode == 1
    # What a stage refuses it would refuse again.
    assert "failed: sgd-7-" in result.stdout and "it runs once more" not in result.stdout
    assert "optimizers.sgd.warmup_steps: 400 is longer than the training" in result.stdout
    assert "error: 1 of 3 experiments failed" in result.stderr
    assert "Not tested: " in result.stdout and len(experiments(project)) == 2


@pytest.fixture
def plan(project: Project) -> Callable[..., dict[tuple[str, int], str]]:
    def make(**changes: Any) -> dict[tuple[str, int], str]:
        sweep = Planner(project.root, ["adam", "lion"], [1, 2], **changes).sweep()
        return {(trial.optimizer, trial.seed): trial.name for trial in sweep.trials}

    return make


def test_the_same_settings_are_the_same_experiments(
    project: Project, plan: Callable[..., dict[tuple[str, int], str]]
) -> None:
    first = plan()
    assert len(set(first.values())) == 4 and plan() == first
    # The switches that a sweep sets, and rows that it does not use, change nothing.
    project.change_params({"optimizer": "muon", "seed": 9, "optimizers.muon.learning_rate": 1e-4})
    assert plan() == first
    project.change_params({"optimizers.lion.learning_rate": 1e-4})
    changed = plan()
    assert [key for key in first if first[key] != changed[key]] == [("lion", 1), ("lion", 2)]
    assert not set(plan(overrides=["train.epochs=1"]).values()) & set(changed.values())
    code = project.root / "src/distiltune/batching.py"
    code.write_text(code.read_text() + "\n")
    assert not set(plan().values()) & set(changed.values())


def test_each_variant_gets_the_same_number_of_rates(project: Project) -> None:
    planner = Planner(project.root, ["adam", "lion"], [0, 2], num_rates=5, span=4.0)
    trials = planner.search().trials
    for name, center in (("adam", 5e-5), ("lion", 1.5e-5)):
        key = f"optimizers.{name}.learning_rate="
        rates = [float(part.removeprefix(key)) for trial in trials for part in trial.overrides
                 if part.startswith(key)]  # fmt: skip
        # The row's own first, and the extremes last.
        expected = [center * factor for factor in (1, 0.5, 2, 0.25, 4)]
        assert rates == pytest.approx(expected, rel=0.01)
    # Judged by a seed that is none of the sweep's, and not on the test split.
    assert {trial.seed for trial in trials} == {1}
    assert {trial.targets for trial in trials} == {("train",)}
    chosen = planner.sweep({"lion": 1e-4}).trials
    assert "optimizers.lion.learning_rate=0.0001" in chosen[1].overrides
    assert planner.name != Planner(project.root, ["adam", "lion"], [0, 2]).name
    with pytest.raises(InputError, match="1 leaves nothing to choose"):
        Planner(project.root, ["adam"], [1], num_rates=1)
    with pytest.raises(InputError, match=r"--span: .* at most 10"):
        Planner(project.root, ["sgd"], [1], num_rates=3, span=9000.0).search()


@pytest.mark.slow
def test_a_rate_that_diverges_is_the_worst_and_no_failure(project: Project) -> None:
    project.change_params({"tracking.log_model": False, "optimizers.sgd.max_gradient_norm": None,
                           "optimizers.sgd.learning_rate": 1e-3,
                           "models.tiny.training.learning_rate_multiplier": 1e5})  # fmt: skip
    project.commit()
    options = ("--optimizers", "sgd", "--seeds", "1", "--search-rates", "2", "--span", "1e4")
    lost = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    result = project.run("distiltune", "sweep", *options, "--jobs", "2", check=False, env=lost)
    assert "it runs once more" not in result.stdout
    assert "with 1 of them the training diverged" in result.stdout, result.stdout + result.stderr
    # Nor does MLflow's absence stop anything.
    assert (
        "warning: MLflow at http://127.0.0.1:1 (MLFLOW_TRACKING_URI)" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert result.returncode == 0 and len(experiments(project)) == 2


@pytest.mark.slow
def test_rates_are_searched_on_validation_and_then_frozen(project: Project) -> None:
    project.change_params({"tracking.log_model": False, "train.epochs": 4})
    project.commit()
    command = ("distiltune", "sweep", "--optimizers", "adam,sgd", "--seeds", "2", "--jobs", "2",
               "--search-rates", "3", "--span", "10", "--json", "figures.json")  # fmt: skip
    output = project.run(*command).stdout
    assert "searching rates: 6 experiments, 0 of them done already" in output
    chosen = dict(re.findall(r"^(\w+): learning rate (\S+) of 3 from", output, re.MULTILINE))
    _, below = children(project)
    searched = [run for run in below if run.data.tags["kind"] == "search"]
    assert len(searched) == 6 and len(below) == 10
    for run in below:
        if run in searched:
            assert run.data.params["seed"] == "0" and "test/accuracy" not in run.data.metrics
        else:
            name = run.data.params["optimizer"]
            assert float(run.data.params["optimizer.learning_rate"]) == float(chosen[name])
    for name, rate in chosen.items():
        tried = [run for run in searched if run.data.params["optimizer"] == name]
        best = max(tried, key=lambda run: run.data.metrics["final/validation_accuracy"])
        by_rate = {float(run.data.params["optimizer.learning_rate"]): run for run in tried}
        key = "final/validation_accuracy"
        assert by_rate[float(rate)].data.metrics[key] == best.data.metrics[key]
    assert "6 of them done already" in project.run(*command).stdout


@pytest.mark.parametrize(
    ("curves", "bars"),
    [
        ([[0.7, 0.9, 0.8], [0.8, 0.9, 1.0]], (0.75, 0.825)),  # of the means, 0.80 and 0.85
        ([[0.7, 0.9], [0.9, 0.9], [0.5, 0.6]], (0.7,)),
        ([[0.7, 0.9]], None),  # of one there is no median
        ([[0.7], [0.9]], None),  # nothing comes after the first epoch
        ([], None),
    ],
)
def test_the_bars_are_the_median_of_the_running_means(
    curves: list[list[float]], bars: tuple[float, ...] | None
) -> None:
    assert median_bars(curves) == (bars and pytest.approx(bars))


def test_the_middle_half_sets_the_bars_of_the_rest(project: Project) -> None:
    def planner(num_rates: int) -> Planner:
        return Planner(
            project.root, ["adam", "lion"], [1], num_rates=num_rates, span=8.0, prunes=True
        )

    def rates(num_rates: int, bars: Any) -> list[float]:
        trials = planner(num_rates).search(bars).trials
        assert {trial.optimizer for trial in trials} == {"adam", "lion"}
        return [round((trial.rate or 0) / 5e-5, 3) for trial in trials if trial.optimizer == "adam"]

    none: dict[str, tuple[float, ...] | None] = {"adam": None, "lion": None}
    assert rates(3, None) == [1, 0.125] and rates(3, none) == [8]
    assert rates(5, None) == [1, 0.354, 2.828] and rates(5, none) == [0.125, 8]
    found = planner(4)
    first, rest = found.search(), found.search({"adam": (0.61, 0.7), "lion": None})
    assert not any("stop_below" in str(trial.overrides) for trial in first.trials)
    by_optimizer = {trial.optimizer: trial for trial in rest.trials}
    assert "train.stop_below=[0.61,0.7]" in by_optimizer["adam"].overrides
    assert "stop_below" not in str(by_optimizer["lion"].overrides)
    # Other bars are other experiments, and pruning another sweep.
    other = found.search({"adam": (0.62, 0.7), "lion": None})
    lions = {trial.name for trial in rest.trials if trial.optimizer == "lion"}
    assert {t.name for t in rest.trials} & {t.name for t in other.trials} == lions
    assert found.name != Planner(project.root, ["adam", "lion"], [1], num_rates=4, span=8.0).name
    with pytest.raises(InputError, match="--prune: needs --search-rates 3 or more"):
        planner(2)


@pytest.mark.slow
def test_a_hopeless_rate_ends_early(project: Project) -> None:
    project.change_params({"tracking.log_model": False, "train.epochs": 12})
    project.commit()
    command = ("distiltune", "sweep", "--optimizers", "adam,lion", "--seeds", "1", "--jobs", "2",
               "--search-rates", "3", "--span", "100", "--prune")  # fmt: skip
    output = project.run(*command).stdout
    assert "searching rates: 4 experiments" in output and "searching rates: 2 experi" in output
    _, below = children(project)
    searched = [run for run in below if run.data.tags["kind"] == "search"]
    stopped = [run for run in searched if run.data.metrics["final/stopped_early"]]
    assert len(searched) == 6 and len(below) == 8
    said = re.findall(r"; (\d) ended early", output)
    assert stopped and sum(map(int, said)) == len(stopped)
    for run in stopped:
        bars = json.loads(run.data.params["train.stop_below"])
        num_epochs = int(run.data.metrics["final/num_epochs"])
        assert len(bars) == 11 and num_epochs < 12
        assert run.data.metrics["final/validation_accuracy"] < bars[num_epochs - 1]
    again = project.run(*command).stdout
    assert "preparing the data" not in again and len(children(project)[1]) == 8


def test_a_file_of_the_users_that_has_changed_means_other_experiments(
    project: Project, plan: Callable[..., dict[tuple[str, int], str]]
) -> None:
    file = project.root / "mine.csv"
    file.write_text("review,sentiment\nGood.,1\nBad.,0\n")
    project.change_params({"dataset": "csv", "datasets.csv.paths": ["mine.csv"]})
    first = plan()
    assert plan() == first
    file.write_text("review,sentiment\nGood.,0\nBad.,1\n")
    assert not set(plan().values()) & set(first.values())


def test_another_version_or_order_of_overrides_means_other_experiments(
    plan: Callable[..., dict[tuple[str, int], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `compare` would refuse to compare must not be taken for done; the last `-S` holds."""
    first = plan(overrides=["train.epochs=1", "train.epochs=2"])
    assert not set(plan(overrides=["train.epochs=2", "train.epochs=1"]).values()) & set(
        first.values()
    )
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0" if name == "torch" else version(name)
    )
    again = plan(overrides=["train.epochs=1", "train.epochs=2"])
    assert not set(again.values()) & set(first.values())


def test_a_workspace_that_changes_meanwhile_stops_the_sweep(project: Project) -> None:
    """What is queued later would run the changed code under the names of the old."""
    planner = Planner(project.root, ["adam", "lion"], [1])
    planner.check_workspace()
    project.change_params({"optimizer": "lion"})
    planner.check_workspace()
    project.change_params({"optimizers.lion.learning_rate": 1e-4})
    runner = SweepRunner(project.root, planner.sweep(), "distiltune", 1, planner.check_workspace)
    with pytest.raises(InputError, match="have changed since the sweep began"):
        runner._take_up([trial.name for trial in planner.sweep().trials],
                        {trial.name: trial for trial in planner.sweep().trials})  # fmt: skip
    assert "adam-1" not in project.dvc("queue", "status")


def test_a_worker_that_hangs_does_not_keep_a_dead_task(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(revision="abcdef0", name="adam-1", status="Running")
    # Stands for a worker of DVC's, as its processes are recognized.
    waiting = [sys.executable, "-c", "import time; time.sleep(600)", "queue-worker"]
    worker = subprocess.Popen(waiting, cwd=project.root)
    queue = Queue(project.root)
    asked = []

    def dvc(*arguments: str, check: bool = True) -> str:
        asked.append(arguments[:2])
        return ""

    def tasks() -> dict[str, Task]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=1)
        return {"adam-1": task} if worker.returncode is None else {}

    monkeypatch.setattr(queue, "dvc", dvc)
    monkeypatch.setattr(queue, "tasks", tasks)
    try:
        queue.remove(task)
        assert worker.wait(timeout=10) == -signal.SIGKILL
        assert asked == [("queue", "kill"), ("queue", "remove")] * 2
        # One that DVC keeps without any worker is an error.
        monkeypatch.setattr(queue, "tasks", lambda: {"adam-1": task})
        with pytest.raises(InputError, match="adam-1 is still there"):
            queue.remove(task)
    finally:
        worker.kill()


def test_one_sweep_at_a_time(project: Project) -> None:
    with only_sweep(project.root):
        note(project.root, "mine", "mine, shard 1/2", ["adam-1"])
        answer = predict(project, "--optimizers", "adam,lion", command="sweep")
    assert answer.message == (
        "error: the sweep mine, shard 1/2 is under way: 0 of 1 experiments are done; there is one "
        "at a time in a checkout"
    )
    assert experiments(project) == []


def test_the_planner_takes_overrides_for_what_they_are(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["tracking.experiment=elsewhere", "model=lstm", "params.yaml:train.epochs=1"]
    planner = Planner(project.root, ["adam", "lion"], [1, 2], changes)
    assert planner.params.tracking.experiment == "elsewhere"
    name, _, rest = planner.describe().partition(": ")
    assert name == planner.name
    assert rest == "adam, lion x 2 seeds, lstm on sample" + "".join(f" -S {c}" for c in changes)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="'cuda' was asked for, and PyTorch sees no CUDA device"):
        Planner(project.root, ["adam"], [1], ["device=cuda"])
    with pytest.raises(InputError, match=r"-S dataset='csv': write it into params\.yaml"):
        Planner(project.root, ["adam"], [1], ["dataset='csv'"])


@pytest.mark.parametrize(
    ("optimizers", "seeds", "overrides", "words"),
    [
        (["adam", "lyon"], [1], [], "'lyon' is no row of optimizers (adam, adamw"),
        (["adam", "adam"], [1], [], "--optimizers: adam, adam: one is named twice"),
        (["adam"], [1, 1], [], "--seeds: 1, 1: one is named twice"),
        (["adam"], [1], ["seed=3"], "-S seed=3: the sweep sets this itself"),
        (["adam"], [1], ["params.yaml:optimizer=lion"], "the sweep sets this itself"),
        (
            ["adam"],
            [1],
            ["train.epoch=1"],
            "params.yaml has no train.epoch; did you mean train.epochs",
        ),
        (["adam"], [1], ["train.epochs"], "-S train.epochs: must be KEY=VALUE"),
        (
            ["adam"],
            [1],
            ["train.epochs=0"],
            "-S train.epochs=0: train.epochs: 0: should be greater",
        ),
        (["adam"], [1], ["train.epochs=[1"], "-S train.epochs=[1: "),
        (["adam"], [1], ["dataset=csv"], "-S dataset=csv: write it into params.yaml"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(
    project: Project, optimizers: list[str], seeds: list[int], overrides: list[str], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        Planner(project.root, optimizers, seeds, overrides)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sweep --optimizers adam,,lion", "'adam,,lion': names with commas"),
        ("compare --experiments a,b,a", "'a,b,a': names with commas between, each once"),
        ("sweep --optimizers adam --seeds none", "'none': how many seeds"),
        ("sweep --optimizers adam --jobs 0", "'0': a whole number from 1"),
        ("sweep --optimizers adam --name a/b", "'a/b': letters, digits"),
        ("sweep --optimizers adam --span 1", "'1': a factor above 1"),
        ("compare --target 90", "'90': a number above 0, up to 1"),
        ("compare --runs a --experiments b", "not allowed with argument"),
    ],
)
def test_a_bad_option_is_named(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parser().parse_args(arguments.split())
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_what_is_not_there_is_named(prepared: Project) -> None:
    (prepared.root / "mlflow.db").unlink()
    for arguments, words in (
        (
            ["gone"],
            "there is no sweep 'gone' in MLflow, where one is once all of it has ended; nor",
        ),
        (["--runs", "0" * 32], f"MLflow run {'0' * 32}: "),
        (["--experiments", "gone"], "'gone' is no experiment"),
        ([], "a comparison needs two variants or more, and there are no runs"),
    ):
        answer = predict(prepared, *arguments, command="compare")
        assert words in answer.message
    with only_sweep(prepared.root):
        note(prepared.root, "mine", "searching rates", ["adam-1", "lion-1"])
        said = "the sweep mine (searching rates) is under way: 0 of 2 experiments are done"
        answer = predict(prepared, "mine", command="compare")
        assert answer.message == f"error: {said}; it is compared once all of it has ended"
        both = predict(prepared, command="compare").errors.splitlines()
        assert both[0] == said and "there are no runs" in both[1]
    # What a killed one has left is none.
    note(prepared.root, "mine", "mine", ["adam-1"])
    assert "nor any other" in predict(prepared, "mine", command="compare").message
    # Who only looks leaves nothing behind.
    assert not (prepared.root / "mlflow.db").exists()
