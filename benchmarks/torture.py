"""Kills the train stage again and again (SIGKILL), and checks that nothing came of it.

    python -m benchmarks.torture [--kills 20] [--seed 0] [--queue] [-S KEY=VALUE ...]

It works on copies of this checkout in a temporary folder, by default with the generated
reviews and the small model. One copy trains without interruption. In others `dvc repro`
(with `--queue` `distiltune sweep`) is started, its train stage is killed after a random
time, and it is started again, until it gets through; then the next copy, until there were
as many kills. After each the weights, the metrics and the records must be those of the
training without interruption, to the bit, and MLflow must have one run with each metric
once at each step. It writes `torture.json`, and ends with status 1 if anything differs.
"""

import argparse
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ruamel.yaml import YAML

from benchmarks.report import environment, record_folder
from distiltune import InputError
from distiltune.artifacts import read_json, write_json
from distiltune.config import load_params
from distiltune.runtime import choose_runtime, run_stage
from distiltune.training.resume import FOLDER

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {"dataset": "sample", "model": "tiny", "train.epochs": 2, "resume.every_seconds": 0.3}
DATA = ("tokenize", "download-checkpoint")
PATIENCE_SECONDS = 3600.0
# All that were not deleted, but for the one that stands above a sweep's.
TRAINED_RUNS = (
    "select run_uuid, status from runs where lifecycle_stage = 'active' and run_uuid not in "
    "(select run_uuid from tags where key = 'kind' and value = 'sweep')"
)
# Of a run that is cut off, what differs from one that is not.
TIMES = ("seconds", "started", "ended", "peak_memory", "per_second")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: in which copy, how long after the stage's start, and what it left to go on from."""

    round: int
    seconds: float
    saved_step: int  # of the newest state; 0 if there is none
    cut_a_state: bool  # the next one was being written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--queue", action="store_true", help="through DVC's queue")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    moments = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        prepared = prepare(Path(folder) / "prepared", arguments.set_param)
        whole = copy_of(prepared, "whole")
        duration = run_to_the_end(whole, use_queue=False)
        expected = results(whole)
        print(f"without interruption: {duration:.0f} s, weights {expected['weights'][:12]}")
        kills: list[Kill] = []
        mistakes: list[str] = []
        number = 0
        while len(kills) < arguments.kills:
            number += 1
            project = copy_of(prepared, f"round-{number}")
            left = arguments.kills - len(kills)
            kills += torture(project, number, left, duration, moments, arguments.queue)
            found = [f"round {number}: {m}" for m in differences(expected, results(project))]
            print("".join(f"  {mistake}\n" for mistake in found), end="")
            mistakes += found
            print(f"round {number}: {len(kills)} kills, {len(mistakes)} mistakes", flush=True)
            shutil.rmtree(project)
    output = arguments.output or record_folder("torture-queue" if arguments.queue else "torture")
    output.mkdir(parents=True, exist_ok=True)
    write_json(
        output / "torture.json",
        {
            "environment": environment(choose_runtime("auto", "auto")),
            "params": arguments.set_param,
            "seconds_without_interruption": duration,
            "rounds": number,
            "kills": [asdict(kill) for kill in kills],
            "mistakes": mistakes,
        },
    )
    print(f"{len(kills)} kills in {number} trainings, {len(mistakes)} mistakes: {output}")
    if mistakes:
        raise InputError("\n".join(mistakes))


def prepare(project: Path, overrides: Sequence[str]) -> Path:
    """A copy of this checkout with a repository of its own, up to the token files."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    settings = {**DEFAULTS, **dict(override.split("=", 1) for override in overrides)}
    for key, value in settings.items():
        *tables, last = key.split(".")
        table = params
        for name in tables:
            table = table[name]
        table[last] = yaml.load(value) if isinstance(value, str) else value
    yaml.dump(params, project / "params.yaml")
    load_params(project / "params.yaml")
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.name", "torture"],
        ["git", "config", "user.email", "torture@localhost"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "torture"],
        [sys.executable, "-m", "dvc", "repro", "-q", *DATA],
    ):
        subprocess.run(command, cwd=project, env=shell(), check=True, stdout=subprocess.DEVNULL)
    return project


def shell() -> dict[str, str]:
    """The environment, in which `python` is this one and nothing of an outer DVC is left."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


def copy_of(prepared: Path, name: str) -> Path:
    project = prepared.parent / name
    shutil.copytree(prepared, project, symlinks=True)
    return project


def command_for(project: Path, use_queue: bool) -> list[str]:
    if not use_queue:
        return [sys.executable, "-m", "dvc", "repro"]
    params = load_params(project / "params.yaml")
    return [
        sys.executable, "-m", "distiltune.cli", "sweep", "--optimizers", params.optimizer,
        "--seeds", f"{params.seed},",
    ]  # fmt: skip


def start(project: Path, use_queue: bool) -> tuple["subprocess.Popen[bytes]", Path]:
    log = project / ".dvc" / "tmp" / "torture.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            command_for(project, use_queue), cwd=project, env=shell(), stdout=file, stderr=file
        )
    return process, log


def run_to_the_end(project: Path, *, use_queue: bool) -> float:
    """Seconds that it takes; of the train stage, as a bound for the moments."""
    process, log = start(project, use_queue)
    began = None
    while process.poll() is None:
        if train_process(project) is not None:
            began = began or time.monotonic()
            ended = time.monotonic()
        time.sleep(0.05)
    if process.returncode or began is None:
        raise InputError(f"it fails without any kill:\n{log.read_text(errors='replace')}")
    return ended - began


def torture(
    project: Path, number: int, max_kills: int, duration: float, moments: np.random.Generator,
    use_queue: bool,
) -> list[Kill]:  # fmt: skip
    """Kill and start again, until it gets through before its moment has come."""
    kills: list[Kill] = []
    process, log = start(project, use_queue)
    began: float | None = None
    pid, moment, began_at, deadline = None, 0.0, 0.0, time.monotonic() + PATIENCE_SECONDS
    while True:
        if time.monotonic() > deadline:
            raise InputError(f"round {number} does not come to an end; see {log}")
        stage = train_process(project)
        if stage is not None and stage.pid != pid:
            pid, began, moment = stage.pid, time.monotonic(), moments.uniform(0.5, duration)
            began_at = time.time()
        if stage is not None and began is not None and len(kills) < max_kills:
            if time.monotonic() - began >= moment:
                stage.send_signal(signal.SIGKILL)
                stage.wait()
                step, is_cut = what_is_left(project, began_at)
                kills.append(
                    Kill(
                        round=number, seconds=round(moment, 2), saved_step=step, cut_a_state=is_cut
                    )
                )
                began = None
        if process.poll() is not None:
            if process.returncode == 0:
                return kills
            process, log = start(project, use_queue)
        time.sleep(0.02)


def what_is_left(project: Path, began_at: float) -> tuple[int, bool]:
    """After a kill: the newest state's step, and whether the stage was writing another."""
    folder = project / FOLDER
    names = sorted(file.name for file in folder.glob("*/*-step-*.safetensors"))
    step = int(names[-1].split("-")[2]) if names else 0
    partial = [file.stat().st_mtime for file in folder.glob("*/.partial")]
    return step, any(changed >= began_at for changed in partial)


def train_process(project: Path) -> psutil.Process | None:
    """The train stage of a project, in whatever folder below it."""
    for process in psutil.process_iter():
        try:
            arguments = process.cmdline()
            if arguments[-1:] == ["stages.train"] and Path(process.cwd()).is_relative_to(project):
                if "python" in Path(arguments[0]).name:
                    return process
        except psutil.Error:
            continue
    return None


def results(project: Path) -> dict[str, Any]:
    """What a training leaves, without times; and what is wrong with its run in MLflow."""
    with sqlite3.connect(f"file:{project / 'mlflow.db'}?mode=ro", uri=True) as store:
        store.execute(f"create temp view trained as {TRAINED_RUNS}")
        runs = store.execute("select status from trained").fetchall()
        metrics = store.execute(
            "select key, step, value from metrics join trained using (run_uuid) "
            "where key not like 'system/%'"
        ).fetchall()
        weights = store.execute(
            "select value from tags join trained using (run_uuid) "
            "where key = 'weights_sha256' and value != ''"
        ).fetchall()
        models = store.execute(
            "select count(*) from logged_models where lifecycle_stage = 'active'"
        ).fetchone()
    counted = Counter((key, step) for key, step, _ in metrics)
    summary = project / "metrics" / "train.json"
    return {
        "weights": weights[0][0] if weights else "",
        "runs": [status for (status,) in runs],
        "models": models[0],
        "twice": sorted(f"{key} at {step}" for (key, step), n in counted.items() if n > 1),
        "metrics": {
            f"{key} at {step}": value
            for key, step, value in metrics
            if not any(word in key for word in TIMES)
        },
        "left": [path.name for path in (project / FOLDER).glob("*")],
        "summary": without_times(read_json(summary)) if summary.exists() else None,
    }


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if not any(word in k for word in TIMES)}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What a tortured training has done otherwise, in words."""
    mistakes = []
    for key in ("weights", "runs", "models", "twice", "left"):
        if found[key] != expected[key]:
            mistakes.append(f"{key}: {found[key]}, not {expected[key]}")
    if found["summary"] is not None and found["summary"] != expected["summary"]:
        mistakes.append(f"metrics: {found['summary']}, not {expected['summary']}")
    for name in sorted(found["metrics"].keys() | expected["metrics"].keys()):
        values = [side["metrics"].get(name, "missing") for side in (found, expected)]
        if values[0] != values[1]:
            mistakes.append(f"{name}: {values[0]}, not {values[1]}")
    return mistakes


if __name__ == "__main__":
    run_stage(main)
