"""One call of `distiltune explain`: a text in, what each word adds out."""

import argparse
import sys
from pathlib import Path

from distiltune import InputError
from distiltune.artifacts import check_new_file
from distiltune.console import write
from distiltune.explaining.model import load_explainable
from distiltune.explaining.page import write_page
from distiltune.explaining.run import check_text, explain
from distiltune.explaining.terminal import format_explanation, has_colours
from distiltune.model_source import MODEL, model_folder
from distiltune.runtime import project_root


def run_explain(arguments: argparse.Namespace) -> None:
    """`distiltune explain`.

    Raises:
        InputError: the text, the class, the model or the place of the page is no such thing.
    """
    check_new_file("--html", arguments.html)
    text = arguments.text if arguments.file is None else _read_text(arguments.file)
    check_text(text)
    name = arguments.model or str(MODEL)
    with model_folder(arguments.model, project_root()) as folder:
        classifier = load_explainable(folder, name)
        print(f"{name}: on {classifier.runtime.description}", file=sys.stderr, flush=True)
        found = explain(classifier, text, arguments.label_name, arguments.steps)
    if arguments.html:
        write_page(found, arguments.html)
    write(format_explanation(found, colours=has_colours(sys.stdout)))
    if arguments.html:
        write(f"\npage: {arguments.html}")


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"--file: {file}: no such file")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--file: {file}: not UTF-8 ({error})") from None
