"""Several processes train one model: as one process does, and none of them alone ends well."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from distiltune.replicas import ALONE, Replicas
from distiltune.training.history import read_metrics
from distiltune.training.resume import FOLDER
from tests.conftest import Project, environment
from tests.test_pipeline import runs_of
from tests.test_resume import wait_for_states

# Without dropout, which is drawn in each process, the loss does not depend on their number.
PLAIN = {
    "models.tiny.architecture.dropout": 0.0,
    "train.attention_dropout": 0.0,
    "train.log_every_steps": 1,
    "tracking.system_metrics": False,
}
LONG = {
    "train.processes": 2,
    "train.epochs": 40,
    "resume": {"every_seconds": None, "every_steps": 5},
    "tracking.log_model": False,
    "tracking.system_metrics": False,
}
TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"


def results(project: Project) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Weights and records, without what depends on time."""
    steps, epochs = read_metrics(project.root / "data/history")
    records = [
        {k: v for k, v in r.items() if "second" not in k and k != "accuracy"}
        for r in (*steps, *epochs)
    ]
    return load_file(project.root / "data/model/model.safetensors"), records


def test_every_review_of_a_batch_is_in_one_share() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_reviews, num in ((16, 1), (16, 2), (16, 3), (5, 4), (1, 2), (128, 8)):
        rows = torch.randperm(1000, generator=generator)[:num_reviews]
        lengths = torch.randint(10, 513, (num_reviews,), generator=generator)
        length_of = dict(zip(rows.tolist(), lengths.tolist(), strict=True))
        shares = [Replicas(rank, num).share(rows, lengths).tolist() for rank in range(num)]
        assert sorted(row for share in shares for row in share) == sorted(rows.tolist())
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == [Replicas(rank, num).share_size(num_reviews) for rank in range(num)]
        places = {row: place for place, row in enumerate(rows.tolist())}
        assert all(share == sorted(share, key=places.__getitem__) for share in shares)
        if num_reviews % num == 0:
            tokens = [sum(map(length_of.__getitem__, share)) for share in shares]
            assert max(tokens) - min(tokens) <= max(lengths) - min(lengths)
    assert ALONE.share(rows, lengths) is rows


def test_dropout_of_the_others_depends_on_seed_process_and_step_alone() -> None:
    def draw(rank: int, step: int) -> float:
        Replicas(rank, 3).seed_step(7, step)
        return torch.rand(1).item()

    torch.manual_seed(1)
    expected = torch.rand(2).tolist()
    torch.manual_seed(1)
    assert [draw(0, 1), draw(0, 2)] == expected  # the first one's goes on as it is
    others = {(rank, step): draw(rank, step) for rank in (1, 2) for step in (1, 2)}
    assert len(set(others.values())) == 4
    assert all(draw(*place) == value for place, value in others.items())


@pytest.mark.parametrize(
    ("table", "batch_size"),
    # The last batch of 53 has one review, so one process has none; 160 are 2 * 3 * 26 and 4.
    [
        ({"gradient_accumulation_steps": 1}, 53),
        pytest.param(
            {"gradient_accumulation_steps": 3, "max_gradient_norm": 0.5, "keep": "best"},
            26,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_train_as_one_does(
    prepared: Project, table: dict[str, Any], batch_size: int
) -> None:
    changes = {f"train.{name}": value for name, value in table.items()}
    prepared.change_params({**PLAIN, **changes, "train.batch_size": batch_size})
    prepared.stage_here("train")
    weights, records = results(prepared)
    prepared.change_params({"train.processes": 2})
    output = prepared.stage("train").stdout
    assert ", 2 processes\n" in output and output.count("epoch 1/2: ") == 1
    weights_of_two, records_of_two = results(prepared)
    assert len(records) == len(records_of_two) > 5
    for one, two in zip(records, records_of_two, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-5), name
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_of_two[name], tensor, rtol=0, atol=1e-3)
    # Only the first one tracks.
    one, two = runs_of(prepared)
    assert (one.data.params["train.processes"], two.data.params["train.processes"]) == ("1", "2")
    assert two.data.metrics["final/num_steps"] == one.data.metrics["final/num_steps"]


@pytest.mark.parametrize(
    ("changes", "variables", "message"),
    [
        ({"train.processes": 0}, {}, "train.processes: 0: "),
        ({"train.processes": 2, "engine": "trainer"}, {},
         "train.processes: 2 needs engine: native; the Trainer gets 1"),
        ({"train.processes": 9, "train.batch_size": 8}, {},
         "train.processes: 9 is more than a batch has reviews, 8"),
        ({"train.processes": 2}, {"DISTILTUNE_LAUNCHER": "no-such-launcher --nodes 2"},
         "DISTILTUNE_LAUNCHER: 'no-such-launcher': No such file or directory"),
        ({"train.processes": 1}, {"RANK": "0", "WORLD_SIZE": "2"},
         "train.processes: 1, but 2 processes were started; set it to 2 in params.yaml"),
        ({"train.processes": 2}, {"RANK": "0", "WORLD_SIZE": "3"},
         "train.processes: 2, but 3 processes were started; set it to 3 in params.yaml"),
        ({"train.processes": 2}, {"DISTILTUNE_LAUNCHER": "srun 'torchrun"},
         "DISTILTUNE_LAUNCHER: \"srun 'torchrun\": No closing quotation"),
        # Some platforms set them where there is one process alone.
        ({"train.processes": 2}, {"RANK": "0", "WORLD_SIZE": "1", "DISTILTUNE_LAUNCHER": "none"},
         "DISTILTUNE_LAUNCHER: 'none': No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_one_line(
    prepared: Project, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], variables: dict[str, str], message: str,
) -> None:  # fmt: skip
    prepared.change_params(changes)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    handler = signal.getsignal(signal.SIGINT)
    result = prepared.stage_here("train", check=False)
    signal.signal(signal.SIGINT, handler)
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (prepared.root / "data/model").exists()


def start(project: Project) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=project.root, env=environment({}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def processes_of(stage: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The training processes, the first one first."""
    children = psutil.Process(stage.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=60)
    assert not left


@pytest.mark.slow
def test_they_go_on_to_the_bit_whatever_ends_them(prepared: Project) -> None:
    prepared.change_params(LONG)
    prepared.stage("train")
    whole = results(prepared)
    num_states = 0
    for what in ("SIGTERM", "other", "first", "parent", "SIGINT"):
        stage = start(prepared)
        num_states = wait_for_states(prepared, num_states + 3)
        children = processes_of(stage)
        if what == "parent":
            stage.kill()
            wait_until_gone(children)  # by themselves
            stage.communicate()
            continue
        if what in ("other", "first"):
            children[what == "other"].kill()
        else:
            stage.send_signal(signal.Signals[what])
        output, errors = stage.communicate(timeout=120)
        wait_until_gone(children)
        assert ("going on from step " in output) == bool(num_states > 5), output
        assert "Traceback" not in errors
        statuses = {"SIGTERM": 143, "SIGINT": 130}
        assert stage.returncode == statuses.get(what, 1), errors
        if what in statuses:
            assert re.fullmatch(
                r"stopped at step \d+ of \d+; the same command goes on from there\n", errors
            )
        else:
            rank = int(what == "other")
            assert f"error: process {rank} of the training was ended by SIGKILL\n" in errors
            assert (what == "other") == ("error: the exchange with the other" in errors)
    assert "going on from step " in prepared.stage("train").stdout
    weights, records = results(prepared)
    assert records == whole[1]
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole[0].items())
    assert [run.info.status for run in runs_of(prepared)] == ["FINISHED", "FINISHED"]
    assert not list((prepared.root / FOLDER).glob("*"))


@pytest.mark.slow
def test_torchrun_starts_them_too(prepared: Project) -> None:
    prepared.change_params({"train.processes": 2})
    prepared.stage("train")
    weights, records = results(prepared)
    prepared.stage("train", env={"DISTILTUNE_LAUNCHER": TORCHRUN})
    again = results(prepared)
    assert again[1] == records and all(torch.equal(again[0][k], v) for k, v in weights.items())
    prepared.run(*TORCHRUN.split(), "-m", "stages.train")
    again = results(prepared)
    assert again[1] == records and all(torch.equal(again[0][k], v) for k, v in weights.items())
    assert len(runs_of(prepared)) == 3


@pytest.mark.slow
def test_the_recipe_for_slurm_trains(prepared: Project, tmp_path: Path) -> None:
    """With one node, and an `srun` that runs its arguments as Slurm's does."""
    for file, text in (("srun", '#!/bin/sh\nexec "$@"\n'), ("activate", "")):
        (tmp_path / "bin" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / file).write_text(text)
        (tmp_path / "bin" / file).chmod(0o755)
    (prepared.root / ".venv").mkdir()
    (prepared.root / ".venv" / "bin").symlink_to(tmp_path / "bin")
    variables = {
        "PATH": f"{tmp_path / 'bin'}:{environment({})['PATH']}",
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1", "GPUS_PER_NODE": "2",
    }  # fmt: skip
    recipe = "docs/recipes/slurm.sh"
    result = prepared.run("bash", recipe, "-S", "optimizer=adamw", env=variables)
    assert ", 2 processes" in result.stdout
    (run,) = runs_of(prepared)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.processes"] == "2" and run.data.params["optimizer"] == "adamw"


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_told_once(prepared: Project) -> None:
    prepared.change_params({"train.processes": 2, "models.tiny.training.learning_rate_multiplier":
                            1e9, "optimizer": "sgd", "optimizers.sgd.warmup_share": None,
                            "optimizers.sgd.max_gradient_norm": None})  # fmt: skip
    began = time.monotonic()
    result = prepared.stage("train", check=False)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith("error: the loss is nan at step ")
    assert time.monotonic() - began < 120
    assert not (prepared.root / "data/model").exists()
