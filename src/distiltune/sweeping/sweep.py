"""Runs a sweep through DVC's queue, and mirrors it in MLflow."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distiltune import store
from distiltune.sweeping.plan import Sweep, Trial
from distiltune.sweeping.queue import Queue

PATIENCE_SECONDS = 20.0
POLL_SECONDS = 5.0
SECONDS_BETWEEN_LINES = 30.0
MAX_ATTEMPTS = 2


class SweepRunner:
    """Runs what is missing of a sweep, and mirrors it in MLflow as one run with children."""

    def __init__(
        self,
        root: Path,
        sweep: Sweep,
        experiment: str,
        num_workers: int,
        say: Callable[[str], None] = lambda text: print(text, flush=True),
    ) -> None:
        """Start nothing yet.

        Args:
            root: the main checkout.
            sweep: what to run.
            experiment: MLflow's, as in `tracking.experiment`.
            num_workers: how many experiments at a time.
            say: takes a line of progress.
        """
        self.root = root
        self.sweep = sweep
        self.experiment = experiment
        self.num_workers = num_workers
        self.say = say
        self.queue = Queue(root)
        self.attempts: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self._seen_running: dict[str, float] = {}
        self._durations: list[float] = []
        self._next_line = 0.0

    def run(self) -> list[Trial]:
        """Queue and run until every trial is done or has failed twice.

        Returns:
            The trials that have results.

        Raises:
            InputError: DVC refuses, and why.
        """
        trials = {trial.name: trial for trial in self.sweep.trials}
        done = self.queue.finished() & trials.keys()
        kind = "searching rates" if self.sweep.trials[0].targets else self.sweep.name
        self.say(f"{kind}: {len(trials)} experiments, {len(done)} of them done already")
        if len(done) < len(trials):
            self._prepare_data()
        while True:
            finished = self.queue.finished()
            self._note_durations(finished)
            missing = [name for name in trials if name not in finished and name not in self.failed]
            if not missing:
                break
            self._take_up(missing, trials)
            self._progress(len(trials), len(missing))
            time.sleep(POLL_SECONDS)
        for name, reason in self.failed.items():
            self.say(f"failed {MAX_ATTEMPTS} times: {name}: {reason}; see `dvc queue logs {name}`")
        return [trial for name, trial in trials.items() if name in finished]

    def _prepare_data(self) -> None:
        """Run the stages before `train` once, so that no two workers do."""
        options = [part for override in self.sweep.data_overrides for part in ("-S", override)]
        name = f"{self.sweep.name}-data"
        self.say("preparing the data")
        self.queue.dvc("exp", "remove", name, check=False)  # of an attempt that was killed
        # In a copy of its own, so that the workspace stays as it is.
        self.queue.dvc("exp", "run", "--temp", "--name", name, *options,
                       "tokenize", "download-checkpoint")  # fmt: skip
        self.queue.dvc("exp", "remove", name)

    def _take_up(self, missing: Sequence[str], trials: dict[str, Trial]) -> None:
        """Queue what is nowhere, clear away what is dead, and see to the workers."""
        tasks = self.queue.tasks()
        finished = self.queue.finished()
        for name in missing:
            task = tasks.get(name)
            if name in finished:
                continue
            if task is not None and task.status == "Running":
                if not self.queue.is_dead(task, PATIENCE_SECONDS):
                    self._seen_running.setdefault(name, time.monotonic())
                    continue
                self.say(f"{name}: its process is gone; it runs again")
                self.queue.remove(task)
            elif task is not None and task.status == "Queued":
                continue
            elif task is not None:  # over, and without a result
                reason = _last_line(self.queue.logs(name))
                self.attempts[name] = self.attempts.get(name, 0) + 1
                if self.attempts[name] >= MAX_ATTEMPTS:
                    self.failed[name] = reason
                    continue
                self.say(f"{name}: failed ({reason}); it runs once more")
                self.queue.remove(task)
            self._seen_running.pop(name, None)
            self.queue.add(name, trials[name].overrides, trials[name].targets)
        self.queue.start(self.num_workers)

    def _note_durations(self, finished: set[str]) -> None:
        for name in finished & self._seen_running.keys():
            self._durations.append(time.monotonic() - self._seen_running.pop(name))

    def _progress(self, num_trials: int, num_missing: int) -> None:
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        left = ""
        if self._durations:
            rounds = num_missing / self.num_workers
            left = f", about {_minutes(statistics.median(self._durations) * rounds)} left"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        done = num_trials - num_missing - len(self.failed)
        running = min(len(self._seen_running), num_missing)
        self.say(f"{done} of {num_trials} done, {running} running{failed}{left}")

    def mirror(self, weights: Mapping[str, str]) -> str:
        """Put the trials' runs in MLflow below one, and delete those of broken attempts.

        A trial that DVC has restored from its cache has no run of its own, but there is
        the one that trained the same weights.

        Args:
            weights: the digest of each finished trial's model, by the trial's name.

        Returns:
            The id of the sweep's run.
        """
        parent = self._parent()
        runs = store.find_runs(self.root, self.experiment)
        for name, digest in weights.items():
            own = [run for run in runs if run.dvc_experiment == name]
            whole = [r for r in runs if r.weights_sha256 == digest and r.is_finished]
            chosen = next((run for run in reversed(whole) if run in own), None)
            chosen = chosen or (whole[-1] if whole else None)
            if chosen is None:
                print(f"warning: {name} has no run in MLflow; DVC has its results", file=sys.stderr)
                continue
            if chosen.parent != parent:
                kind = "search" if self.sweep.trials[0].targets else "trial"
                store.adopt(self.root, chosen.run_id, parent, self.sweep.name, kind)
            for run in own:
                if run is not chosen:
                    self.say(f"deleting the MLflow run of a broken attempt: {run.name}")
                    store.delete(self.root, run.run_id)
        return parent

    def _parent(self) -> str:
        optimizers = dict.fromkeys(trial.optimizer for trial in self.sweep.trials)
        seeds = dict.fromkeys(trial.seed for trial in self.sweep.trials)
        description = (
            f"A sweep over {', '.join(optimizers)} with the seeds {', '.join(map(str, seeds))}. "
            "The comparison is among the artifacts."
        )
        return store.parent_of_sweep(self.root, self.experiment, self.sweep.name, description)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it printed nothing"])[-1]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
