"""One call of `distiltune report`: a finished run in, a page out."""

import argparse
import re
from pathlib import Path

from distiltune.artifacts import check_new_file
from distiltune.console import write
from distiltune.reporting.model import open_run
from distiltune.reporting.page import write_page
from distiltune.reporting.words import accuracy_text
from distiltune.runtime import project_root, warn

REPORTS = Path("reports")


def run_report(arguments: argparse.Namespace) -> None:
    """`distiltune report`.

    Raises:
        InputError: there is no such run, a file of it is missing, damaged or of another run, or
            the page cannot be written there.
    """
    check_new_file("--output", arguments.output)
    root = project_root()
    file = arguments.output or root / REPORTS / _file_name(arguments.experiment)
    with open_run(root, arguments.experiment) as run:
        for warning in run.origin.warnings:
            warn(warning)
        write_page(run, file)
    write(f"{run.facts['name']}: {accuracy_text(run.test)}\npage: {file}")


def _file_name(experiment: str | None) -> str:
    """A branch or a commit's name may hold what a file's should not."""
    if experiment is None:
        return "run.html"
    name = re.sub(r"[^\w.-]", "-", experiment)
    return f"run-{name}.html"
