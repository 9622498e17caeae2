"""A training that was cut off goes on: same weights to the bit, one run, nothing twice."""

import dataclasses
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from distiltune.artifacts import read_json
from distiltune.config import ResumeTable, TrainConfig
from distiltune.training.history import History, read_metrics
from distiltune.training.native import train_native
from distiltune.training.resume import FOLDER, ResumePoints
from tests.conftest import Project, environment
from tests.test_optimizers import ROWS, variant, with_row
from tests.test_pipeline import runs_of
from tests.test_training import CPU, assert_answers_are_the_models, change, new_model, read

EVERY_STEP = ResumeTable(every_seconds=None, every_steps=1)


class CutError(Exception):
    """Stands for the end of the process."""


class Cutter:
    """Ends a training after a step, or while it validates after an epoch."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self.step = step
        self.epoch = epoch

    def on_update(self, step: int) -> None: ...

    def on_step(self, record: Any) -> None:
        if record.step == self.step:
            raise CutError

    def on_epoch(self, record: Any) -> None:
        if record.epoch == self.epoch:
            raise CutError


def train(
    project: Project, config: TrainConfig, points: ResumePoints | None, *cutters: Cutter
) -> tuple[dict[str, torch.Tensor], History]:
    _, tokens, validation = read(project)
    model = new_model(project, config, tokens)
    history = train_native(config, model, tokens, validation, CPU, cutters, points)
    return model.state_dict(), history


def points_of(project: Project, table: ResumeTable = EVERY_STEP) -> ResumePoints:
    return ResumePoints(project.root, "0" * 64, table)


def cut(project: Project, config: TrainConfig, cutter: Cutter) -> None:
    points = points_of(project)
    with pytest.raises(CutError):
        train(project, config, points, cutter)
    points.wait()
    points._lock.release()


def without_times(history: History) -> dict[str, Any]:
    found = dataclasses.asdict(history)
    for record in found["steps"] + found["epochs"]:
        for name in list(record):
            if "second" in name:
                del record[name]
    return found


def assert_same(
    first: tuple[dict[str, torch.Tensor], History], second: tuple[dict[str, torch.Tensor], History]
) -> None:
    assert all(torch.equal(second[0][name], weights) for name, weights in first[0].items())
    assert without_times(first[1]) == without_times(second[1])


@pytest.mark.parametrize(
    "row",
    [
        *(variant(name, warmup_steps=0) for name in ROWS),
        variant("adam", ema_decay=0.8),
        variant("adam", swa_start_share=0.3, schedule="cosine"),
        variant("lion", layer_decay=0.7, schedule="one_cycle"),
    ],
    ids=lambda row: row.algorithm,
)
def test_every_variant_goes_on_to_the_bit(prepared: Project, row: Any) -> None:
    config = change(with_row(read(prepared)[0], row), log_every_steps=1, keep="best")
    whole = train(prepared, config, None)
    cut(prepared, config, Cutter(step=13))
    points = points_of(prepared)
    assert points.found is not None and points.found["step"] == 12
    assert_same(whole, train(prepared, config, points))


def test_it_goes_on_as_often_as_it_is_cut_off(prepared: Project) -> None:
    """Within the first epoch, after its validation, and within the second."""
    config = change(
        with_row(read(prepared)[0], variant("schedulefree_adamw", warmup_share=None)),
        log_every_steps=1,
    )
    whole = train(prepared, config, None)
    for cutter in (Cutter(step=3), Cutter(epoch=1), Cutter(step=17)):
        cut(prepared, config, cutter)
    assert_same(whole, train(prepared, config, points_of(prepared)))


@pytest.mark.parametrize("table", [{"gradient_accumulation_steps": 3}, {"max_tokens_per_pass": 90}])
def test_it_goes_on_in_the_middle_of_what_is_divided(
    prepared: Project, table: dict[str, int]
) -> None:
    config = change(read(prepared)[0], log_every_steps=1, max_gradient_norm=0.5, **table)
    whole = train(prepared, config, None)
    cut(prepared, config, Cutter(step=5))
    assert_same(whole, train(prepared, config, points_of(prepared)))


def test_a_damaged_state_is_passed_over(
    prepared: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    config = change(read(prepared)[0], log_every_steps=1)
    whole = train(prepared, config, None)
    cut(prepared, config, Cutter(step=9))
    older, newest = sorted((prepared.root / FOLDER).glob("*/*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    points = points_of(prepared)
    assert f"warning: {newest}: damaged; taking the state before it" in capsys.readouterr().err
    assert points.found is not None and points.found["step"] == 7
    points._lock.release()
    older.write_bytes(older.read_bytes()[:1000])  # cut off
    points = points_of(prepared)
    assert points.found is None and f"{older}: damaged" in capsys.readouterr().err
    assert_same(whole, train(prepared, config, points))


def test_a_disk_that_is_full_does_not_end_the_training(
    prepared: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read(prepared)[0]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    points = points_of(prepared)
    # No file may grow beyond this, which fails as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        found = train(prepared, config, points)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "warning: no state saved at step 1: " in capsys.readouterr().err
    assert_same(found, train(prepared, config, None))


def test_two_of_the_same_do_not_disturb_each_other(
    prepared: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    first = points_of(prepared)
    second = points_of(prepared)
    assert "the same training is under way in another process" in capsys.readouterr().err
    config = read(prepared)[0]
    assert_same(train(prepared, config, first), train(prepared, config, second))
    second.remove()
    assert first._lock.is_locked and list(first.folder.glob("*.safetensors"))


def test_what_was_left_long_ago_is_removed(prepared: Project) -> None:
    config = change(read(prepared)[0], log_every_steps=1)
    cut(prepared, config, Cutter(step=3))
    folder = points_of(prepared).folder
    for age, is_there in ((6, True), (8, False)):
        for path in (*folder.glob("*"), folder):
            os.utime(path, (time.time() - age * 86400,) * 2)
        ResumePoints(prepared.root, "1" * 64, EVERY_STEP)._lock.release()
        assert folder.exists() == is_there


def start(project: Project) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=project.root, env=environment({}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_states(project: Project, number: int) -> int:
    """Until so many were written, or some more; the last two are there, so one may be gone."""
    deadline = time.monotonic() + 120
    numbers = [0]
    while max(numbers) < number:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        files = (project.root / FOLDER).glob("*/*-step-*.safetensors")
        numbers = [0, *(int(file.name[:6]) for file in files)]
    return max(numbers)


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM, signal.SIGKILL),
        pytest.param((signal.SIGKILL, signal.SIGINT), marks=pytest.mark.slow),
    ],
)
def test_the_stage_goes_on_after_its_process_was_ended(
    prepared: Project, signals: Sequence[signal.Signals]
) -> None:
    prepared.change_params({"resume": {"every_seconds": None, "every_steps": 5},
                            "train.epochs": 20, "tracking.log_model": False})  # fmt: skip
    num_states = 0
    for number in signals:
        process = start(prepared)
        num_states = wait_for_states(prepared, num_states + 3)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
        assert ("going on from step " in output) == (number != signals[0])
        if number == signal.SIGKILL:
            assert process.returncode == -9, errors
            continue
        assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], errors
        assert "the same command goes on from there" in errors and "Traceback" not in errors
        assert [run.info.status for run in runs_of(prepared)] == ["KILLED"]
    output = prepared.stage_here("train").stdout
    assert "going on from step " in output
    found = read_json(prepared.root / "metrics/train.json")
    steps, epochs = read_metrics(prepared.root / "data/history")
    (run,) = runs_of(prepared)
    assert run.info.status == "FINISHED"
    assert not list((prepared.root / FOLDER).glob("*"))
    assert_answers_are_the_models(prepared)

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{prepared.root / 'mlflow.db'}")
    for name, column, records, key in (
        ("train/loss", "loss", steps, "step"),
        ("validation/accuracy", "validation_accuracy", epochs, "epoch"),
    ):
        history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)
        expected = [(int(record[key]), record[column]) for record in records]
        assert [(metric.step, metric.value) for metric in history] == expected

    # Once more, in one go: what is finished is not gone on with.
    again = prepared.stage_here("train").stdout
    assert "going on" not in again
    whole = read_json(prepared.root / "metrics/train.json")
    for name in ("train_loss", "validation_loss", "validation_accuracy", "num_steps"):
        assert found[name] == whole[name]
    assert len({run.data.tags["weights_sha256"] for run in runs_of(prepared)}) == 1
    assert len(runs_of(prepared)) == 2


def test_another_setting_does_not_go_on_with_it(prepared: Project) -> None:
    prepared.change_params({"resume": {"every_seconds": None, "every_steps": 5},
                            "train.epochs": 20, "tracking.log_model": False})  # fmt: skip
    process = start(prepared)
    wait_for_states(prepared, 2)
    process.kill()
    process.communicate()
    prepared.change_params({"train.epochs": 3})
    assert "going on" not in prepared.stage_here("train").stdout
    (left,) = (prepared.root / FOLDER).glob("*")
    # How often states are saved, and what is shown of a run, are no part of the training.
    prepared.change_params({"train.epochs": 20, "resume.every_steps": 1000,
                            "tracking.system_metrics": False})  # fmt: skip
    assert "going on from step " in prepared.stage_here("train").stdout
    assert not left.exists()


def test_a_loss_that_is_no_number_names_its_step(prepared: Project) -> None:
    prepared.change_params({"resume": {"every_seconds": None, "every_steps": 1},
                            "optimizer": "sgd", "optimizers.sgd.max_gradient_norm": None,
                            "optimizers.sgd.learning_rate": 1e-2,
                            "optimizers.sgd.warmup_share": None, "train.log_every_steps": 1000,
                            "models.tiny.training.learning_rate_multiplier": 1e9})  # fmt: skip
    result = prepared.stage_here("train", check=False)
    assert result.returncode == 1
    found = re.match(
        r"error: the loss is nan at step (\d+) \(epoch 1, batch (\d+)\), learning rate (\S+);",
        result.stderr,
    )
    assert found is not None and found[1] == found[2], result.stderr
    # Of 20 steps; the rate falls in a line from 1e-2 times the multiplier.
    assert float(found[3]) == pytest.approx(1e7 * (1 - (int(found[1]) - 1) / 20), rel=0.01)
    # Nobody should go on from there, nor find a model.
    assert not list((prepared.root / FOLDER).glob("*"))
    assert not (prepared.root / "data/model").exists()
    (run,) = runs_of(prepared)
    assert run.info.status == "FAILED" and "weights_sha256" not in run.data.tags


@pytest.mark.slow
@pytest.mark.parametrize("kind", [["--temp"], ["--queue"]])
def test_an_experiment_goes_on_after_all_was_killed(project: Project, kind: list[str]) -> None:
    """What a machine that goes down leaves of an experiment in a folder of its own."""
    import psutil

    project.change_params({"resume": {"every_seconds": None, "every_steps": 5},
                           "train.epochs": 60, "tracking.log_model": False})  # fmt: skip
    project.commit()
    project.dvc("repro", "tokenize")
    command = [sys.executable, "-m", "dvc", "exp", "run", *kind, "-n", "mine", "-S", "seed=7"]

    def run() -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(command, cwd=project.root, env=environment({}))
        if kind == ["--queue"]:
            assert process.wait() == 0
            # Not captured: the worker would keep the pipe, and this wait for its end.
            starting = [sys.executable, "-m", "dvc", "queue", "start"]
            subprocess.run(starting, cwd=project.root, env=environment({}), check=True)
        return process

    process = run()
    wait_for_states(project, 4)
    for other in psutil.process_iter():
        try:
            if Path(other.cwd()).is_relative_to(project.root):
                other.kill()
        except psutil.Error:
            continue
    process.wait()
    if kind == ["--queue"]:
        project.dvc("queue", "kill", "mine", check=False)
        project.dvc("queue", "remove", "mine", check=False)
    run().wait()
    deadline = time.monotonic() + 300
    while "mine" not in project.git("for-each-ref", "refs/exps"):
        assert time.monotonic() < deadline
        time.sleep(1)
    (one,) = runs_of(project)
    assert one.data.tags["dvc_experiment"] == "mine" and one.info.status == "FINISHED"
