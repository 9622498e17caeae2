"""Runs a sweep through DVC's queue, and mirrors it in MLflow."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distiltune import store
from distiltune.runtime import warn
from distiltune.sweeping.plan import Sweep, Trial
from distiltune.sweeping.queue import Queue
from distiltune.sweeping.under_way import note

POLL_SECONDS = 5.0
SECONDS_BETWEEN_LOOKS = 20.0  # at the queue, which costs more than to see what is done
SECONDS_BETWEEN_LINES = 30.0
MAX_ATTEMPTS = 2
# What `train` says where the rate is too high.
DIVERGED = "error: the loss is"


class SweepRunner:
    """Runs what is missing of a sweep, and mirrors it in MLflow as one run with children."""

    def __init__(
        self,
        root: Path,
        sweep: Sweep,
        experiment: str,
        num_workers: int,
        check_workspace: Callable[[], None],
    ) -> None:
        """Start nothing yet.

        Args:
            root: the main checkout.
            sweep: what to run.
            experiment: MLflow's, as in `tracking.experiment`.
            num_workers: how many experiments at a time.
            check_workspace: raises where it is not what the sweep was planned for.
        """
        self.root = root
        self.sweep = sweep
        self.experiment = experiment
        self.num_workers = num_workers
        self.check_workspace = check_workspace
        self.queue = Queue(root)
        self.attempts: dict[str, int] = {}
        self.failed: dict[str, str] = {}  # why, by the trial's name
        self._seen_running: dict[str, float] = {}
        self._durations: list[float] = []
        self._next_line = 0.0
        self._shown: tuple[int, int, int] | None = None  # done, running, failed

    @property
    def num_diverged(self) -> int:
        """How many trials failed because their loss was no number."""
        return sum(reason.startswith(DIVERGED) for reason in self.failed.values())

    def run(self) -> list[Trial]:
        """Queue and run until every trial is done, is refused by a stage, or has failed twice.

        Returns:
            The trials that have results.

        Raises:
            InputError: DVC refuses, and why; or the workspace has changed.
        """
        trials = {trial.name: trial for trial in self.sweep.trials}
        kind = "searching rates" if self.sweep.is_search else self.sweep.name
        kind += f", shard {self.sweep.shard}" if self.sweep.shard else ""
        note(self.root, self.sweep.name, kind, trials)
        done = self.queue.finished() & trials.keys()
        say(f"{kind}: {len(trials)} experiments, {len(done)} of them done already")
        if len(done) < len(trials):
            self._prepare_data()
        num_finished, next_look = -1, 0.0
        while True:
            finished = self.queue.finished() & trials.keys()
            self._note_durations(finished)
            missing = [name for name in trials if name not in finished and name not in self.failed]
            if not missing:
                break
            if len(finished) != num_finished or time.monotonic() >= next_look:
                has_queued = self._take_up(missing, trials)
                num_finished = len(finished)
                # What was queued begins within seconds.
                next_look = time.monotonic() + (0 if has_queued else SECONDS_BETWEEN_LOOKS)
            self._progress(len(trials), len(finished))
            time.sleep(POLL_SECONDS)
        for name, reason in self.failed.items():
            say(f"failed: {name}: {reason}; see `dvc queue logs {name}`")
        return [trial for name, trial in trials.items() if name in finished]

    def _prepare_data(self) -> None:
        """Run the stages that make the data once, so that no two workers do."""
        options = [part for override in self.sweep.data_overrides for part in ("-S", override)]
        say("preparing the data")
        # In a copy of its own, so that the workspace stays as it is; under a name of its own,
        # for what a killed attempt has started may still run.
        prefix = f"{self.sweep.name}-data-"
        self.queue.dvc("exp", "run", "--temp", "--name", f"{prefix}{os.getpid()}", *options,
                       "download-checkpoint", "adapt")  # fmt: skip
        for name in self.queue.finished():
            if name.startswith(prefix):
                self.queue.dvc("exp", "remove", name, check=False)

    def _take_up(self, missing: Sequence[str], trials: dict[str, Trial]) -> bool:
        """Queue what is nowhere, clear away what is dead, and see to the workers.

        Returns:
            Whether anything was queued.
        """
        tasks = self.queue.tasks()
        finished = self.queue.finished()
        to_queue = []
        for name in missing:
            if name in finished:
                continue
            task = tasks.get(name)
            if task is not None and task.status == "Queued":
                continue
            if task is not None and task.status == "Running":
                if not self.queue.is_dead(task):
                    self._seen_running.setdefault(name, time.monotonic())
                    continue
                if name in self.queue.finished():
                    continue  # in the meantime
                say(f"{name}: its process is gone; it runs again")
                self.queue.remove(task)
            elif task is not None:  # over, and without a result
                reason = _last_line(self.queue.logs(name))
                self.attempts[name] = self.attempts.get(name, 0) + 1
                # What a stage refuses it will refuse again.
                if self.attempts[name] >= MAX_ATTEMPTS or reason.startswith("error: "):
                    self.failed[name] = reason
                    continue
                say(f"{name}: failed ({reason}); it runs once more")
                self.queue.remove(task)
            to_queue.append(trials[name])
        for trial in to_queue:
            self._seen_running.pop(trial.name, None)
            self.check_workspace()
            self.queue.add(trial.name, trial.overrides, trial.targets)
        is_waiting = any(task.status == "Queued" for task in tasks.values())
        if to_queue or (is_waiting and self.queue.num_workers() < self.num_workers):
            self.queue.start(self.num_workers)
        return bool(to_queue)

    def _note_durations(self, finished: set[str]) -> None:
        for name in finished & self._seen_running.keys():
            self._durations.append(time.monotonic() - self._seen_running.pop(name))

    def _progress(self, num_trials: int, num_done: int) -> None:
        running = [began for name, began in self._seen_running.items() if name not in self.failed]
        state = (num_done, len(running), len(self.failed))
        if state == self._shown and time.monotonic() < self._next_line:
            return
        self._shown, self._next_line = state, time.monotonic() + SECONDS_BETWEEN_LINES
        left = ""
        num_missing = num_trials - num_done - len(self.failed)
        if self._durations:
            usual, now = statistics.median(self._durations), time.monotonic()
            over = sum(min(usual, now - began) for began in running)
            seconds = (usual * num_missing - over) / self.num_workers
            left = f", about {_minutes(seconds)} left"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        say(f"{num_done} of {num_trials} done, {len(running)} running{failed}{left}")

    def mirror(self, weights: Mapping[str, str]) -> str:
        """Put the trials' runs in MLflow below one, and delete those of broken attempts.

        A trial that DVC has restored from its cache has no run of its own, but there is
        the one that trained the same weights. One that stands below another sweep stays
        there; the sweep's own list, and a tag of its name, cover all.

        Args:
            weights: the digest of each finished trial's model, by the trial's name.

        Returns:
            The id of the sweep's run.

        Raises:
            InputError: MLflow fails.
        """
        kind = "search" if self.sweep.is_search else "trial"
        parent = store.parent_of_sweep(self.root, self.experiment, self.sweep.name)
        runs = store.find_runs(self.root, self.experiment)
        chosen_ids = {}
        for name, digest in weights.items():
            own = [run for run in runs if run.dvc_experiment == name]
            whole = [r for r in runs if r.weights_sha256 == digest and r.is_finished]
            chosen = next((run for run in reversed(whole) if run in own), None)
            chosen = chosen or (whole[-1] if whole else None)
            if chosen is None:
                warn(f"{name} has no run in MLflow; DVC has its results")
                continue
            chosen_ids[name] = chosen.run_id
            store.adopt(self.root, chosen, parent, self.sweep.name, kind)
            for run in own:
                # Also one that its orphaned training has ended well; none of another sweep.
                if run.run_id != chosen.run_id and run.parent is None and run.is_ours:
                    say(f"deleting the MLflow run of a broken attempt: {run.name}")
                    store.delete(self.root, run.run_id)
        store.write_members(self.root, parent, kind, chosen_ids, str(self.sweep.shard or ""))
        return parent


def say(text: str) -> None:
    """Print a line of progress, at once."""
    print(text, flush=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it printed nothing"])[-1]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
