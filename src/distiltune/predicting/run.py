"""One call of `distiltune predict`: texts or a table in, labels and probabilities out."""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from distiltune import InputError
from distiltune.artifacts import ROWS_PER_GROUP, check_new_file
from distiltune.config import load_params
from distiltune.console import write
from distiltune.model_source import model_folder
from distiltune.predicting.progress import Progress, reviews
from distiltune.predicting.tables import Table, check_suffix, new_table
from distiltune.runtime import project_root

if TYPE_CHECKING:
    from distiltune.classifier import ReviewClassifier

# Stands for the lines of stdin in place of texts.
STDIN = "-"


def run_predict(arguments: argparse.Namespace) -> None:
    """`distiltune predict`.

    Raises:
        InputError: something that was asked for cannot be, or the input is no such thing.
    """
    root = project_root()
    if arguments.file:
        _predict_table(arguments, root)
        return
    for option in ("output", "text_column", "prefix"):
        if getattr(arguments, option):
            raise InputError(f"--{option.replace('_', '-')}: goes with --file")
    texts = _lines() if arguments.texts == [STDIN] else iter(_checked_all(arguments.texts))
    with model_folder(arguments.model, root) as folder:
        classifier = _load(folder)
        for group in _groups(texts):
            found = classifier.classify(group)
            pairs = zip(found["label"], found["probability"], strict=True)
            write("\n".join(f"{label}\t{probability:.4f}" for label, probability in pairs))
        _say_what_was_cut(classifier)


def _predict_table(arguments: argparse.Namespace, root: Path) -> None:
    path, output, prefix = arguments.file, arguments.output, arguments.prefix or ""
    if output is None:
        raise InputError("--output: is missing; --file FILE goes with --output FILE")
    check_suffix(output, "--output")
    check_new_file("--output", output)
    if output.exists() and path.exists() and output.samefile(path):
        raise InputError(f"--output: {output}: is the same file as --file")
    table = _table(arguments, root)
    num_rows = table.check()
    with model_folder(arguments.model, root) as folder:
        classifier = _load(folder)
        added = _added_columns(classifier.label_names, prefix)
        for name in added:
            if name in table.columns:
                raise InputError(
                    f"--file: {path}: has a column {name!r} already, which is added to the "
                    "output; --prefix TEXT puts a text before the names of what is added"
                )
        print(
            f"classifying {reviews(num_rows)} on {classifier.runtime.description}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        progress = Progress(num_rows)
        try:
            with new_table(output) as write:
                for batch in table.batches():
                    write(_with_predictions(batch, table, classifier, prefix, progress.add))
        except BaseException:
            progress.break_line()
            raise
    progress.end(str(output))
    _say_what_was_cut(classifier)


def _table(arguments: argparse.Namespace, root: Path) -> Table:
    if arguments.text_column:
        return Table(arguments.file, [arguments.text_column], is_chosen=True)
    # As in the pipeline, whose own tables call it `text`.
    params = root / "params.yaml"
    own = [load_params(params).datasets.csv.text_column] if params.is_file() else []
    return Table(arguments.file, [*own, "text"], is_chosen=False)


def _load(folder: Path) -> "ReviewClassifier":
    # Only here: it takes seconds, and what is wrong with the input is said before.
    from distiltune.classifier import ReviewClassifier

    return ReviewClassifier(folder, mixed_on_cpu=True)


def _say_what_was_cut(classifier: "ReviewClassifier") -> None:
    if not classifier.num_cut:
        return
    encoder = classifier.encoder
    num_last = encoder.content - encoder.head_content
    parts = f"the first {encoder.head_content:,}"
    if num_last:
        parts += f" and the last {num_last:,}"
    print(
        f"{classifier.num_cut:,} {'text was' if classifier.num_cut == 1 else 'texts were'} longer "
        f"than the model reads: of such a one {parts} tokens count "
        f"({encoder.max_length:,} with the special ones)",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _added_columns(label_names: Iterable[str], prefix: str) -> list[str]:
    names = ["label", "probability", *(f"probability_{name}" for name in label_names)]
    return [prefix + name for name in names]


def _with_predictions(
    batch: pa.Table,
    table: Table,
    classifier: "ReviewClassifier",
    prefix: str,
    on_batch: Callable[[int], object],
) -> pa.Table:
    """The rows as they are, and the columns of `classify` behind them."""
    found = classifier.classify(table.texts_of(batch), on_batch)
    for name, values in found.items():
        batch = batch.append_column(prefix + name, pa.array(values))
    return batch


def _checked_all(texts: list[str]) -> list[str]:
    return [_checked(text, f"text {number}") for number, text in enumerate(texts, start=1)]


def _lines() -> Iterator[str]:
    number = 0
    for number, line in enumerate(sys.stdin.buffer, start=1):
        text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        yield _checked(text, f"stdin: line {number}")
    if not number:
        raise InputError("stdin: has no line")


def _checked(text: str, where: str) -> str:
    if not text.strip():
        raise InputError(f"{where}: is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # what is not UTF-8 comes as halves of characters
        raise InputError(f"{where}: not UTF-8") from None
    return text


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    while group := list(itertools.islice(texts, ROWS_PER_GROUP)):
        yield group
