"""`distiltune sweep`."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distiltune import InputError, store
from distiltune.commands.publishing import (
    REPORTS,
    check_outputs,
    checkout,
    log_to_sweep,
    publish,
    so_far,
)
from distiltune.comparison.comparing import compare
from distiltune.comparison.runs import (
    TriedRate,
    best_rates,
    runs_of_experiments,
    runs_of_mlflow,
    tried_rate,
)
from distiltune.experiments import uncommitted
from distiltune.runtime import warn
from distiltune.sweeping.plan import Planner, Trial
from distiltune.sweeping.pruning import median_bars
from distiltune.sweeping.sweep import SweepRunner, say
from distiltune.sweeping.under_way import only_sweep
from distiltune.syncing import send_waiting

SPAN = 8.0


def run_sweep(arguments: argparse.Namespace) -> None:
    """`distiltune sweep`.

    Raises:
        InputError: something that was asked for cannot be, or experiments failed.
    """
    root = checkout()
    if arguments.span and not arguments.search_rates:
        raise InputError("--span: goes with --search-rates")
    if arguments.prune and not arguments.search_rates:
        raise InputError("--prune: goes with --search-rates")
    if arguments.shard and arguments.search_rates:
        raise InputError(
            "--shard: not with --search-rates; search on one machine (--seeds 1 will do), write "
            "the rates into params.yaml, commit that, and divide the sweep then"
        )
    planner = Planner(
        root, arguments.optimizers, arguments.seeds, arguments.set_param,
        num_rates=arguments.search_rates, span=arguments.span or SPAN, prunes=arguments.prune,
        name=arguments.name, is_divided=arguments.shard is not None,
    )  # fmt: skip
    planner.sweep(shard=arguments.shard)
    # Now, and not after hours.
    check_outputs(arguments, root / REPORTS / planner.name)
    send_waiting(root)
    with only_sweep(root):
        say(planner.describe())
        if changed := uncommitted(root):
            say(f"with what is not committed in {', '.join(changed)}")
        _run(root, planner, arguments)


def _run(root: Path, planner: Planner, arguments: argparse.Namespace) -> None:
    """Search, run, mirror and compare; see `run_sweep`."""
    experiment = planner.params.tracking.experiment
    parent = None
    try:
        searched, tried = _search_rates(root, planner, experiment, arguments.jobs)
        rates = {name: rate.row_rate for name, rate in best_rates(tried).items()}
        sweep = planner.sweep(rates, arguments.shard)
        runner = SweepRunner(root, sweep, experiment, arguments.jobs, planner.check_workspace)
        done = runner.run()
    except (KeyboardInterrupt, SystemExit):
        print("\nExperiments under way go on; the same command takes it up again. "
              "`dvc queue stop --kill` ends them.", file=sys.stderr)  # fmt: skip
        raise
    runs = runs_of_experiments(root, [trial.name for trial in done])
    weights = {t.name: str(r.summary["weights_sha256"]) for t, r in zip(done, runs, strict=True)}
    if arguments.shard:
        runs = []  # until the others' are there too
    with _warning_where_mlflow_fails():
        if searched:
            searched()
        parent = runner.mirror(weights)
        names = [trial.name for trial in planner.sweep(rates).trials]
        store.set_size(root, parent, len(names))
        if arguments.shard:
            parents = store.parents_of_sweeps(store.find_runs(root, experiment))[planner.name]
            members = store.read_members(root, parents, "trial")
            if members.keys() >= set(names):
                runs = runs_of_mlflow(root, [members[name] for name in names])
            else:
                say(so_far(planner.name, len(members), len(names)))
        # One that waits for other machines goes on.
        if runs or runner.failed:
            store.end(root, parent, is_complete=not runner.failed)
    if runs:
        comparison = compare(runs, target=arguments.target, tried_rates=tried, is_sweep=True)
        files = publish(comparison, planner.name, arguments)
        if parent is not None:
            with _warning_where_mlflow_fails():
                log_to_sweep(root, parent, comparison, files)
    if runner.failed:
        raise InputError(f"{len(runner.failed)} of {len(sweep.trials)} experiments failed")


def _search_rates(
    root: Path, planner: Planner, experiment: str, num_workers: int
) -> tuple[Callable[[], object] | None, list[TriedRate]]:
    """Try the same number of rates for each variant; one that diverges is the worst.

    Returns:
        What mirrors the search in MLflow, at the end of the sweep; and what was tried.
    """
    if not planner.num_rates:
        return None, []
    trials: list[Trial] = []
    tried: list[TriedRate] = []
    weights: dict[str, str] = {}
    diverged: set[str] = set()
    for is_rest in (False, True) if planner.prunes else (False,):
        search = planner.search(_bars(planner, tried) if is_rest else None)
        runner = SweepRunner(root, search, experiment, num_workers, planner.check_workspace)
        done = runner.run()
        # Fewer tries than the others had would be unfair.
        if lost := len(runner.failed) - runner.num_diverged:
            raise InputError(f"{lost} of {len(search.trials)} tried rates failed")
        trials += search.trials
        diverged |= runner.failed.keys()
        for trial in done:
            tried.append(tried_rate(root, trial.name))
            weights[trial.name] = tried[-1].weights_sha256
    best = best_rates(tried)
    for name in planner.optimizers:
        own = [trial for trial in trials if trial.optimizer == name]
        if name not in best:
            raise InputError(f"{name}: the training diverged with each of {len(own)} rates")
        rates = [trial.rate for trial in own if trial.rate is not None]
        num_diverged = sum(trial.name in diverged for trial in own)
        num_stopped = sum(rate.stopped_early for rate in tried if rate.optimizer == name)
        at_edge = best[name].row_rate in (min(rates), max(rates))
        say(
            f"{name}: learning rate {best[name].row_rate:g} of {len(rates)} from {min(rates):g} "
            f"to {max(rates):g} (validation accuracy {best[name].validation_accuracy:.2%})"
            f"{f'; with {num_diverged} of them the training diverged' if num_diverged else ''}"
            f"{f'; {num_stopped} ended early' if num_stopped else ''}"
            f"{'; at the edge: a better one may lie beyond' if at_edge else ''}"
        )
    return functools.partial(runner.mirror, weights), tried


def _bars(planner: Planner, finished: Sequence[TriedRate]) -> dict[str, tuple[float, ...] | None]:
    """What the first rates of each variant set for its others."""
    return {
        name: median_bars([rate.curve for rate in finished if rate.optimizer == name])
        for name in planner.optimizers
    }


@contextlib.contextmanager
def _warning_where_mlflow_fails() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        warn(f"{error}; DVC has the results, and the same command mirrors them later")
