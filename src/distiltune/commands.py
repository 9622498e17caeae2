"""What the commands of `distiltune` do."""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distiltune import InputError, store
from distiltune.artifacts import check_new_file, write_json
from distiltune.comparison.comparing import Comparison, compare
from distiltune.comparison.report import format_table, report_folder, to_json, write_report
from distiltune.comparison.runs import (
    Run,
    TriedRate,
    best_rates,
    runs_of_experiments,
    runs_of_mlflow,
    tried_rate,
    tried_rates_of_mlflow,
)
from distiltune.config import load_params
from distiltune.runtime import project_root
from distiltune.sweeping.plan import Planner, Trial
from distiltune.sweeping.pruning import median_bars
from distiltune.sweeping.queue import Queue
from distiltune.sweeping.sweep import SweepRunner, say, sweep_under_way
from distiltune.syncing import send_waiting, synchronize

REPORTS = Path("reports")
SPAN = 8.0


def run_sweep(arguments: argparse.Namespace) -> None:
    """`distiltune sweep`.

    Raises:
        InputError: something that was asked for cannot be, or experiments failed.
    """
    root = _root()
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
    _check_outputs(arguments, root / REPORTS / planner.name)
    experiment = load_params(root / "params.yaml").tracking.experiment
    parent = None
    send_waiting(root)
    say(planner.describe())
    if changed := Queue(root).uncommitted():
        say(f"with what is not committed in {', '.join(changed)}")
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
                say(_so_far(planner.name, len(members), len(names)))
        # One that waits for other machines goes on.
        if runs or runner.failed:
            store.end(root, parent, is_complete=not runner.failed)
    if runs:
        comparison = compare(runs, target=arguments.target, tried_rates=tried, is_sweep=True)
        files = _report(comparison, planner.name, arguments)
        if parent is not None:
            with _warning_where_mlflow_fails():
                _log_to_sweep(root, parent, comparison, files)
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


def _so_far(name: str, num_done: int, num_planned: int) -> str:
    return (
        f"{num_done} of {num_planned} experiments are in MLflow; once all are, `distiltune compare "
        f"{name}` says which is better, on any machine"
    )


def _bars(planner: Planner, finished: Sequence[TriedRate]) -> dict[str, tuple[float, ...] | None]:
    """What the first rates of each variant set for its others."""
    return {
        name: median_bars([rate.curve for rate in finished if rate.optimizer == name])
        for name in planner.optimizers
    }


def run_sync(arguments: argparse.Namespace) -> None:
    """`distiltune sync`.

    Raises:
        InputError: something could not be sent.
    """
    synchronize(_root(), discard=arguments.discard)


def run_compare(arguments: argparse.Namespace) -> None:
    """`distiltune compare`.

    Raises:
        InputError: there is nothing to compare, or it is not comparable.
    """
    root = _root()
    send_waiting(root)
    parent, tried = None, []
    name = arguments.sweep or "comparison"
    if arguments.experiments:
        runs = runs_of_experiments(root, arguments.experiments)
    elif arguments.runs:
        runs = runs_of_mlflow(root, arguments.runs)
    else:
        experiment = load_params(root / "params.yaml").tracking.experiment
        stored = store.find_runs(root, experiment)
        sweeps = store.parents_of_sweeps(stored)
        running = sweep_under_way(root)
        if running and arguments.sweep in (None, running[0]):
            if arguments.sweep and arguments.sweep not in sweeps:
                raise InputError(running[1])
            print(running[1], file=sys.stderr)
        if arguments.sweep and arguments.sweep not in sweeps:
            known = f"there are: {', '.join(sweeps)}" if sweeps else "nor any other"
            raise InputError(
                f"there is no sweep {arguments.sweep!r} in MLflow, where one is once all of it has "
                f"ended; {known}"
            )
        if sweeps:
            name = arguments.sweep or list(sweeps)[-1]
            parent, *_ = parents = sweeps[name]
            print(f"{name}:")
            members = store.read_members(root, parents, "trial")
            if len(members) < (num_planned := store.get_size(root, parent)):
                print(_so_far(name, len(members), num_planned))
            runs = runs_of_mlflow(root, members.values())
            tried = tried_rates_of_mlflow(
                root, store.read_members(root, parents, "search").values()
            )
        else:
            runs = _all_with_records(root, stored)
            if runs:
                print(f"all {len(runs)} finished runs of MLflow's experiment {experiment}:")
    _check_outputs(arguments, root / REPORTS / name)
    comparison = compare(
        runs, target=arguments.target, force=arguments.force, tried_rates=tried,
        is_sweep=parent is not None,
    )  # fmt: skip
    files = _report(comparison, name, arguments)
    if parent is not None:
        _log_to_sweep(root, parent, comparison, files)


def _all_with_records(root: Path, stored: Sequence[store.StoredRun]) -> list[Run]:
    runs = []
    for run in stored:
        if run.is_finished and run.is_evaluated:
            try:
                runs += runs_of_mlflow(root, [run.run_id])
            except InputError as error:
                print(f"left out: {error}", file=sys.stderr)
    return runs


def _report(comparison: Comparison, name: str, arguments: argparse.Namespace) -> list[Path]:
    """Print and write; the files, the page first."""
    folder = arguments.output or _root() / REPORTS / name
    files = write_report(comparison, folder, name)
    print(format_table(comparison))
    if arguments.json:
        write_json(arguments.json, to_json(comparison))
    print(f"\nreport: {folder / 'report.html'}")
    return files


def _log_to_sweep(root: Path, parent: str, comparison: Comparison, files: Sequence[Path]) -> None:
    sentences = "\n".join(f"- {pair.sentence}" for pair in comparison.pairs)
    store.log_comparison(
        root,
        parent,
        f"{len(comparison.variants)} variants, {comparison.num_reviews:,} test reviews. The "
        f"whole comparison is among the artifacts.\n\n{sentences}",
        {
            f"{kind}/{_metric_name(variant.name)}": value
            for variant in comparison.variants
            for kind, value in (("accuracy", variant.mean), ("rate", variant.learning_rate))
        },
        files,
    )


def _metric_name(name: str) -> str:
    """As MLflow allows it."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


@contextlib.contextmanager
def _warning_where_mlflow_fails() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        print(f"warning: {error}; DVC has the results, and the same command mirrors them later",
              file=sys.stderr)  # fmt: skip


def _check_outputs(arguments: argparse.Namespace, default: Path) -> None:
    report_folder(arguments.output or default)
    check_new_file("--json", arguments.json)


def _root() -> Path:
    root = project_root()
    for name in ("params.yaml", "dvc.yaml"):
        if not (root / name).is_file():
            raise InputError(f"{root}: no {name} here; run from the project's root")
    return root
