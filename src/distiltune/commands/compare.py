"""`distiltune compare`."""

import argparse
import sys
from collections.abc import Sequence
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
    Run,
    runs_of_experiments,
    runs_of_mlflow,
    tried_rates_of_mlflow,
)
from distiltune.config import load_params
from distiltune.sweeping.under_way import find_under_way
from distiltune.syncing import send_waiting


def run_compare(arguments: argparse.Namespace) -> None:
    """`distiltune compare`.

    Raises:
        InputError: there is nothing to compare, or it is not comparable.
    """
    root = checkout()
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
        running = find_under_way(root)
        if running and arguments.sweep in (None, running.name):
            if arguments.sweep and arguments.sweep not in sweeps:
                raise InputError(f"{running.sentence}; it is compared once all of it has ended")
            print(running.sentence, file=sys.stderr)
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
                print(so_far(name, len(members), num_planned))
            runs = runs_of_mlflow(root, members.values())
            tried = tried_rates_of_mlflow(
                root, store.read_members(root, parents, "search").values()
            )
        else:
            runs = _all_with_records(root, stored)
            if runs:
                print(f"all {len(runs)} finished runs of MLflow's experiment {experiment}:")
    check_outputs(arguments, root / REPORTS / name)
    comparison = compare(
        runs, target=arguments.target, force=arguments.force, tried_rates=tried,
        is_sweep=parent is not None,
    )  # fmt: skip
    files = publish(comparison, name, arguments)
    if parent is not None:
        log_to_sweep(root, parent, comparison, files)


def _all_with_records(root: Path, stored: Sequence[store.StoredRun]) -> list[Run]:
    runs = []
    for run in stored:
        if run.is_finished and run.is_evaluated:
            try:
                runs += runs_of_mlflow(root, [run.run_id])
            except InputError as error:
                print(f"left out: {error}", file=sys.stderr)
    return runs
