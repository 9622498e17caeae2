"""What `sweep` and `compare` make of a comparison: files, a table, a record in MLflow."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distiltune import InputError, store
from distiltune.artifacts import check_new_file, write_json
from distiltune.comparison.comparing import Comparison
from distiltune.comparison.report import format_table, report_folder, to_json, write_report
from distiltune.runtime import project_root

REPORTS = Path("reports")


def checkout() -> Path:
    """The project's root.

    Raises:
        InputError: there is no project.
    """
    root = project_root()
    for name in ("params.yaml", "dvc.yaml"):
        if not (root / name).is_file():
            raise InputError(f"{root}: no {name} here; run from the project's root")
    return root


def check_outputs(arguments: argparse.Namespace, default: Path) -> None:
    """See that what is asked for can be written, before it takes hours to have it.

    Args:
        arguments: of the command.
        default: the report's folder where none is asked for.

    Raises:
        InputError: it cannot.
    """
    report_folder(arguments.output or default)
    check_new_file("--json", arguments.json)


def publish(comparison: Comparison, name: str, arguments: argparse.Namespace) -> list[Path]:
    """Print the table, and write the report and, if asked for, the JSON.

    Returns:
        The report's files, the page first.
    """
    folder = arguments.output or checkout() / REPORTS / name
    files = write_report(comparison, folder, name)
    print(format_table(comparison))
    if arguments.json:
        write_json(arguments.json, to_json(comparison))
    print(f"\nreport: {folder / 'report.html'}")
    return files


def log_to_sweep(root: Path, parent: str, comparison: Comparison, files: Sequence[Path]) -> None:
    """Put a comparison into the sweep's run in MLflow.

    Raises:
        InputError: MLflow fails.
    """
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


def so_far(name: str, num_done: int, num_planned: int) -> str:
    """How much of a sweep that several machines share is in MLflow, in words."""
    return (
        f"{num_done} of {num_planned} experiments are in MLflow; once all are, `distiltune compare "
        f"{name}` says which is better, on any machine"
    )
