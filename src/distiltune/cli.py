"""The command `distiltune`: sweeps over variants, and their comparison."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distiltune import InputError
from distiltune.config import load_params
from distiltune.runtime import project_root, run_stage

if TYPE_CHECKING:
    from distiltune.comparison.runs import Run, TriedRate
    from distiltune.sweeping.plan import Planner

REPORTS = Path("reports")


def main() -> None:
    """Run what the command line asks for; a user's mistake is one line, exit status 1."""
    arguments = parser().parse_args()
    try:
        run_stage(lambda: arguments.run(arguments))
    except KeyboardInterrupt:
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="distiltune", description=__doc__)
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    sweep = commands.add_parser(
        "sweep",
        help="train every variant with every seed through DVC's queue, and compare",
        description="Queues an experiment for each variant and seed, runs what is missing and "
        "compares. Started again after whatever interruption, it goes on where it was.",
    )
    sweep.add_argument("--optimizers", required=True, type=_names, metavar="NAME,NAME,...",
                       help="rows of the table `optimizers` in params.yaml")  # fmt: skip
    sweep.add_argument("--seeds", default="5", type=_seeds, metavar="N | N,N,...",
                       help="how many (1 to N), or which; a single one with a comma behind "
                       "it (default: 5)")  # fmt: skip
    sweep.add_argument("--jobs", default=1, type=_count, metavar="N",
                       help="experiments at a time (default: 1)")  # fmt: skip
    sweep.add_argument("--name", type=_name, help="of the sweep (default: made of its settings)")
    sweep.add_argument("--search-rates", default=0, type=_count, metavar="N",
                       help="first try N learning rates for each variant, with a seed of their own "
                       "and on validation alone, and go on with the best")  # fmt: skip
    sweep.add_argument("--span", default=8.0, type=_span, metavar="FACTOR",
                       help="the rates reach from the row's divided by this to it times this "
                       "(default: 8)")  # fmt: skip
    sweep.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE",
                       help="change a param in all experiments, as in `dvc exp run`")  # fmt: skip
    _add_output_options(sweep)
    sweep.set_defaults(run=run_sweep)
    compare = commands.add_parser(
        "compare",
        help="say which variant is better, by how much and how surely",
        description="Compares finished runs: those of a sweep, or any. Without a choice, all "
        "runs of the MLflow experiment in params.yaml that were evaluated.",
    )
    chosen = compare.add_mutually_exclusive_group()
    chosen.add_argument("sweep", nargs="?", help="the name of a sweep")
    chosen.add_argument("--runs", type=_names, metavar="ID,ID,...", help="runs in MLflow")
    chosen.add_argument("--experiments", type=_names, metavar="NAME,NAME,...",
                        help="DVC's experiments, or commits")  # fmt: skip
    compare.add_argument("--force", action="store_true",
                         help="compare what is not comparable too, and mark it")  # fmt: skip
    _add_output_options(compare)
    compare.set_defaults(run=run_compare)
    return found


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--target", type=_share, metavar="ACCURACY",
                         help="validation accuracy to reach, as 0.9 (default: the highest that "
                         "all runs reach)")  # fmt: skip
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    command.add_argument("--output", type=Path, metavar="FOLDER",
                         help="of the report (default: reports/NAME)")  # fmt: skip


def run_sweep(arguments: argparse.Namespace) -> None:
    """`distiltune sweep`."""
    from distiltune import store
    from distiltune.comparison.report import report_folder
    from distiltune.comparison.runs import best_rates, runs_of_experiments
    from distiltune.sweeping.plan import Planner
    from distiltune.sweeping.sweep import SweepRunner

    root = _root()
    planner = Planner(
        root, arguments.optimizers, arguments.seeds, arguments.set_param,
        num_rates=arguments.search_rates, span=arguments.span, name=arguments.name,
    )  # fmt: skip
    # Now, and not after hours.
    report_folder(arguments.output or root / REPORTS / planner.name)
    experiment = load_params(root / "params.yaml").tracking.experiment
    try:
        tried = _search_rates(root, planner, experiment, arguments.jobs)
        rates = {name: rate.row_rate for name, rate in best_rates(tried).items()}
        runner = SweepRunner(root, planner.sweep(rates), experiment, arguments.jobs)
        done = runner.run()
    except KeyboardInterrupt:
        print("\nThe workers go on; the same command takes it up again. "
              "`dvc queue stop --kill` ends them.", file=sys.stderr)  # fmt: skip
        raise
    runs = runs_of_experiments(root, [trial.name for trial in done])
    files: list[Path] = []
    metrics: dict[str, float] = {}
    if len({run.optimizer for run in runs}) > 1:
        files, metrics = _report(runs, planner.name, arguments, tried=tried)
    weights = {t.name: str(r.summary["weights_sha256"]) for t, r in zip(done, runs, strict=True)}
    parent = runner.mirror(weights)
    store.end(root, parent, metrics, files)
    if runner.failed:
        raise InputError(f"{len(runner.failed)} of {len(runner.sweep.trials)} experiments failed")


def _search_rates(
    root: Path, planner: "Planner", experiment: str, num_workers: int
) -> list["TriedRate"]:
    """Try the same number of rates for each variant, where that is asked for."""
    from distiltune.comparison.runs import best_rates, tried_rate
    from distiltune.sweeping.sweep import SweepRunner

    if not planner.num_rates:
        return []
    runner = SweepRunner(root, planner.search(), experiment, num_workers)
    done = runner.run()
    tried = [tried_rate(root, trial.name) for trial in done]
    runner.mirror({t.name: r.weights_sha256 for t, r in zip(done, tried, strict=True)})
    # Fewer tries than the others had would be unfair, so a failed one fails the whole.
    if runner.failed:
        raise InputError(f"{len(runner.failed)} of {len(runner.sweep.trials)} tried rates failed")
    for name, best in best_rates(tried).items():
        rates = [rate.row_rate for rate in tried if rate.optimizer == name]
        edge = best.row_rate in (min(rates), max(rates)) and len(rates) > 1
        print(
            f"{name}: learning rate {best.row_rate:g} of {len(rates)} from {min(rates):g} to "
            f"{max(rates):g} (validation accuracy {best.validation_accuracy:.2%})"
            f"{', at the edge: a better one may lie beyond' if edge else ''}",
            flush=True,
        )
    return tried


def run_compare(arguments: argparse.Namespace) -> None:
    """`distiltune compare`."""
    from distiltune import store
    from distiltune.comparison.runs import runs_of_experiments, runs_of_mlflow

    root = _root()
    if arguments.experiments:
        runs = runs_of_experiments(root, arguments.experiments)
    elif arguments.runs:
        runs = runs_of_mlflow(root, arguments.runs)
    else:
        experiment = load_params(root / "params.yaml").tracking.experiment
        stored = store.find_runs(root, experiment)
        if arguments.sweep and not any(run.sweep == arguments.sweep for run in stored):
            known = sorted({run.sweep for run in stored if run.sweep})
            raise InputError(
                f"there is no sweep {arguments.sweep!r} in MLflow"
                f" ({', '.join(known) or 'nor any other'})"
            )
        chosen = [
            run.run_id
            for run in stored
            if run.is_finished and run.is_evaluated and arguments.sweep in (None, run.sweep)
        ]
        runs = runs_of_mlflow(root, chosen)
    _report(runs, arguments.sweep or "comparison", arguments, force=arguments.force)


def _report(
    runs: Sequence["Run"],
    name: str,
    arguments: argparse.Namespace,
    *,
    force: bool = False,
    tried: Sequence["TriedRate"] = (),
) -> tuple[list[Path], dict[str, float]]:
    """Compare, print and write; the files, and the accuracies for MLflow."""
    from distiltune.artifacts import write_json
    from distiltune.comparison.comparing import compare
    from distiltune.comparison.report import format_table, to_json, write_report

    comparison = compare(runs, target=arguments.target, force=force, tried_rates=tried)
    folder = arguments.output or _root() / REPORTS / name
    files = write_report(comparison, folder, name)
    print(format_table(comparison))
    if arguments.json:
        write_json(arguments.json, to_json(comparison))
    print(f"\nreport: {folder / 'report.html'}")
    return files, {f"accuracy/{variant.name}": variant.mean for variant in comparison.variants}


def _root() -> Path:
    root = project_root()
    if not (root / "params.yaml").is_file():
        raise InputError(f"{root}: no params.yaml here; run from the project's root")
    return root


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}: names with commas between")
    return names


def _name(text: str) -> str:
    if not text.replace("-", "").replace("_", "").isalnum() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, - and _")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1")
    return int(text)


def _seeds(text: str) -> list[int]:
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: how many seeds, or seeds with commas")
    return [int(part) for part in parts] if "," in text else list(range(1, _count(text) + 1))


def _span(text: str) -> float:
    try:
        span = float(text)
    except ValueError:
        span = 0.0
    if not 1 < span <= 1e4:
        raise argparse.ArgumentTypeError(f"{text!r}: a factor above 1, up to 10000")
    return span


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0, up to 1")
    return share


if __name__ == "__main__":
    main()
