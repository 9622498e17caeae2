"""DVC's experiment queue, by its command line: what is queued, runs, is done or dead.

DVC never notices that a running task has died with its machine or its worker: it stays
"Running" for ever, and nothing starts it again. So this looks for its process itself.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from distiltune import InputError

PATIENCE_SECONDS = 20.0
# DVC waits for locks for up to 180 seconds while it collects results.
LONG_PATIENCE_SECONDS = 300.0
RUNS = Path(".dvc") / "tmp" / "exps" / "run"
# A task, its name, when it was made (one or more words), its state.
TASK = re.compile(r"^([0-9a-f]{7,40})\s+(\S+)\s+.*\s(Queued|Running|Success|Failed)\s*$")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A line of `dvc queue status`."""

    revision: str  # the beginning of it
    name: str
    status: str


class Queue:
    """The queue of one checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # The stages call `python`, which must be this one, whatever shell this runs in.
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        self.environment = {**os.environ, "PATH": os.pathsep.join(path)}
        self._without_process: dict[str, float] = {}

    def finished(self) -> set[str]:
        """The names of all experiments that have results."""
        refs = self._git("for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        # refs/exps/COMMIT/COMMIT/NAME; the others are DVC's own.
        return {ref.split("/", 4)[4] for ref in refs if re.match(r"refs/exps/\w\w/\w{38}/", ref)}

    def tasks(self) -> dict[str, Task]:
        """The queue's tasks by name; of two with one name the one that is not over."""
        found: dict[str, Task] = {}
        for line in self.dvc("queue", "status").splitlines():
            if match := TASK.match(line):
                task = Task(revision=match[1], name=match[2], status=match[3])
                if found.get(task.name, task).status not in ("Queued", "Running"):
                    found[task.name] = task
                found.setdefault(task.name, task)
        return found

    def add(self, name: str, overrides: Sequence[str], targets: Sequence[str]) -> None:
        """Queue an experiment of the workspace as it is.

        Args:
            name: of the experiment.
            overrides: changes of params.
            targets: the stages that are wanted, with those before them; none is all.

        Raises:
            InputError: DVC refuses it, and why.
        """
        options = [part for override in overrides for part in ("-S", override)]
        self.dvc("exp", "run", "--queue", "--name", name, *options, *targets)

    def start(self, num_workers: int) -> None:
        """See to it that so many workers run, which end when the queue is empty."""
        self.dvc("queue", "start", "--jobs", str(num_workers))

    def is_dead(self, task: Task) -> bool:
        """Whether a task that DVC calls running has been left by its worker.

        A worker prepares a folder before the task's process, and collects its results
        after it, so a living task may have no process for some minutes. But a worker that
        is younger than the task is not its worker.
        """
        if task.status != "Running" or self._has_process(task):
            self._without_process.pop(task.revision, None)
            return False
        first = self._without_process.setdefault(task.revision, time.monotonic())
        patience = PATIENCE_SECONDS if self._is_orphan(task) else LONG_PATIENCE_SECONDS
        return time.monotonic() - first >= patience

    def remove(self, task: Task) -> None:
        """Take a task that is over or dead out of the queue, with what it left behind.

        Raises:
            InputError: DVC does not let go of it.
        """
        if task.status == "Running":
            for file in self._files(task, "run"):
                folder = Path(json.loads(file.read_text()).get("root_dir") or "")
                if folder.parent == self.root / ".dvc" / "tmp" / "exps":
                    _kill_processes_in(folder)
                    shutil.rmtree(folder, ignore_errors=True)
        self._without_process.pop(task.revision, None)
        if self._let_go(task):
            return
        # A worker that hangs keeps it. The tasks of the others are found without a worker then.
        for worker in self._workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        if not self._let_go(task):
            raise InputError(
                f"dvc queue remove {task.revision}: {task.name} is still there; "
                "see `dvc queue status`"
            )

    def _let_go(self, task: Task) -> bool:
        if task.status == "Running":
            # What has no process is only marked as failed by this, with a message to say so.
            self.dvc("queue", "kill", task.revision, check=False)
        self.dvc("queue", "remove", task.revision, check=False)
        return all(left.revision != task.revision for left in self.tasks().values())

    def num_workers(self) -> int:
        """How many of DVC's workers live in this checkout."""
        return len(self._workers())

    def logs(self, name: str) -> str:
        """What a task has printed."""
        return self.dvc("queue", "logs", name, check=False)

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """Run dvc.

        Raises:
            InputError: it failed, with what it said.
        """
        # Files, for the workers that it may start would keep a pipe open as long as they live.
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            result = subprocess.run(  # noqa: S603 (no shell; params are DVC's to check)
                [sys.executable, "-m", "dvc", *arguments],
                env=self.environment,
                cwd=self.root, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, check=False,
            )  # fmt: skip
            output.seek(0)
            errors.seek(0)
            if check and result.returncode:
                lines = [line.strip() for line in errors if line.strip()]
                said = " ".join(line.removeprefix("ERROR: ") for line in lines[-3:])
                raise InputError(f"dvc {' '.join(arguments[:2])}: {said}")
            return output.read()

    def _git(self, *arguments: str) -> str:
        result = subprocess.run(  # noqa: S603 (no shell; constant arguments)
            ["git", *arguments],  # noqa: S607 (the user's git, wherever it is)
            cwd=self.root, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode:
            raise InputError(f"git {arguments[0]}: {result.stderr.strip()}")
        return result.stdout

    def _has_process(self, task: Task) -> bool:
        for file in self._files(task, "json"):
            process_id = json.loads(file.read_text())["pid"]
            try:
                command = psutil.Process(process_id).cmdline()
            except psutil.Error:
                continue
            # The number may be another process's by now.
            if any(task.revision in part for part in command):
                return True
        return False

    def _is_orphan(self, task: Task) -> bool:
        files = [*self._files(task, "run"), *self._files(task, "json")]
        begun = min((file.stat().st_mtime for file in files), default=0.0)
        return bool(begun) and not any(worker.create_time() < begun for worker in self._workers())

    def _workers(self) -> list[psutil.Process]:
        """The processes of this checkout's workers."""
        found = []
        for process in psutil.process_iter():
            try:
                is_worker = "queue-worker" in process.cmdline()
                if is_worker and Path(process.cwd()).is_relative_to(self.root):
                    found.append(process)
            except psutil.Error:
                continue  # another user's, or gone meanwhile
        return found

    def _files(self, task: Task, ending: str) -> list[Path]:
        return list((self.root / RUNS).glob(f"{task.revision}*/{task.revision}*.{ending}"))


def _kill_processes_in(folder: Path) -> None:
    """End what an experiment has left running in its folder, such as its training."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                process.kill()
        except psutil.Error:
            continue  # another user's, or gone meanwhile
