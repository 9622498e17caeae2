"""Reads the user's own tables of reviews, CSV and Parquet, and tells what is wrong with them."""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from distiltune import InputError
from distiltune.artifacts import (
    ROWS_PER_GROUP,
    STREAMING,
    DatasetInfo,
    reviews_schema,
    write_reviews,
)
from distiltune.config import CsvRow

if TYPE_CHECKING:
    import pandas as pd

MAX_CLASSES = 1000
Rows = tuple[list[str | None], list[str | None]]


def import_files(row: CsvRow, root: Path, output: Path) -> None:
    """Check the user's files and write them as one table, in constant memory.

    The files are read twice: for the classes and the mistakes, then for the rows.
    Integer labels are ordered by value and strings by code point; a class's index is
    its place in that order.

    Args:
        row: the paths and the names of the two columns.
        root: what relative paths are relative to.
        output: the Parquet table to write.

    Raises:
        InputError: a file is missing, damaged, not UTF-8 or empty, lacks a column, has
            a row without text or label, or there is only one class; with the row,
            counted from 1 below the header.
    """
    paths = [find_file(path, root) for path in row.paths]
    classes: set[str] = set()
    num_rows = 0
    for path in paths:
        for texts, labels in _read_rows(path, row.text_column, row.label_column):
            classes.update(labels)
            num_rows += len(texts)
            if len(classes) > MAX_CLASSES:
                raise InputError(
                    f"{path}: column {row.label_column!r} has over {MAX_CLASSES} different "
                    "values, so it holds no classes; name another in datasets.csv.label_column"
                )
    if len(classes) < 2:
        raise InputError(
            f"{paths[0]}: all {num_rows} rows have the label {next(iter(classes))!r}; "
            "a classifier needs two classes or more"
        )
    label_names = _ordered(classes)
    index = {name: i for i, name in enumerate(label_names)}
    schema = reviews_schema(DatasetInfo(dataset="csv", label_names=label_names))

    def batches() -> Iterator[pa.RecordBatch]:
        for path in paths:
            for texts, labels in _read_rows(path, row.text_column, row.label_column):
                codes = pa.array([index[label] for label in labels], pa.int32())
                columns = [pa.array(texts, pa.string()), codes]
                yield pa.record_batch(columns, schema=schema)

    write_reviews(output, batches(), schema)


def find_file(path: str, root: Path) -> Path:
    """The user's file; a relative path is meant from the project's root.

    Raises:
        InputError: there is no such file.
    """
    found = root / path
    if not found.is_file():
        raise InputError(f"datasets.csv.paths: {found}: no such file")
    return found


def _ordered(classes: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?[0-9]+", name) for name in classes):
        return tuple(sorted(classes, key=int))
    return tuple(sorted(classes))


def _read_rows(
    path: Path, text_column: str, label_column: str
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield texts and labels in batches, each checked."""
    read = _read_parquet if path.suffix == ".parquet" else _read_csv
    num_rows = 0
    for texts, labels in read(path, text_column, label_column):
        checked: dict[str, list[str]] = {text_column: [], label_column: []}
        for column, values in ((text_column, texts), (label_column, labels)):
            for number, value in enumerate(values, start=num_rows + 1):
                if value is None or not value.strip():
                    raise InputError(f"{path}: row {number}: column {column!r} is empty")
                checked[column].append(value if column == text_column else value.strip())
        yield checked[text_column], checked[label_column]
        num_rows += len(texts)
    if num_rows == 0:
        raise InputError(f"{path}: has no rows")


def _check_columns(path: Path, found: list[str], wanted: tuple[str, str]) -> None:
    for name, param in zip(wanted, ("text_column", "label_column"), strict=True):
        if name not in found:
            raise InputError(
                f"{path}: has no column {name!r}; it has {', '.join(map(repr, found))}; "
                f"set datasets.csv.{param}"
            )


def _read_csv(path: Path, *columns: str) -> Iterator[Rows]:
    text_column, label_column = columns

    def check(header: list[str]) -> None:
        for name in columns:
            if header.count(name) > 1:
                raise InputError(f"{path}: column {name!r} stands there twice")
        _check_columns(path, header, (text_column, label_column))

    for frame in read_csv_frames(path, check):
        yield frame[text_column].tolist(), frame[label_column].tolist()


def read_csv_frames(path: Path, check: Callable[[list[str]], object]) -> Iterator["pd.DataFrame"]:
    """The rows of a CSV file, some at a time, every field as it is written.

    Args:
        path: `.csv`, or `.csv.gz`.
        check: called with the header before any row is read; raises what is wrong with it.

    Raises:
        InputError: the file is empty, no table, damaged or not UTF-8.
    """
    # Only here: a third of the start of `watch`, which runs at every `dvc repro`.
    import pandas as pd

    # `NA` is a word, and 007 is not 7.
    as_written: dict[str, Any] = {"encoding": "utf-8-sig", "dtype": str, "keep_default_na": False}
    try:
        header = pd.read_csv(path, header=None, nrows=1, **as_written).iloc[0].tolist()
        check(header)
        # In a table of one column a blank line is a row whose text is empty.
        if is_single := len(header) == 1:
            as_written["skip_blank_lines"] = False
            with _opened(path) as file:
                is_blank = not file.readline().strip()
            if is_blank:
                raise InputError(f"{path}: line 1 is empty, where the column's name must stand")
        with pd.read_csv(path, chunksize=ROWS_PER_GROUP, **as_written) as reader:
            for frame in reader:
                if not isinstance(frame.index, pd.RangeIndex):
                    # pandas would take the first fields for the names of the rows.
                    raise InputError(
                        f"{path}: not a table: row 1 has more fields than the header; "
                        "a text with a comma must stand in double quotes"
                    )
                yield frame.fillna("") if is_single else frame
    except UnicodeDecodeError:
        raise InputError(f"{path}: line {_first_bad_line(path)}: not UTF-8") from None
    except pd.errors.EmptyDataError:
        raise InputError(f"{path}: is empty") from None
    except pd.errors.ParserError as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise InputError(f"{path}: not a table: {reason}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the gzip file is damaged or cut off: {error}") from None


def _opened(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _first_bad_line(path: Path) -> int:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise AssertionError("the file was not UTF-8 a moment ago")


def _read_parquet(path: Path, *columns: str) -> Iterator[Rows]:
    text_column, label_column = columns
    try:
        file = pq.ParquetFile(path, **STREAMING)
        _check_columns(path, file.schema_arrow.names, (text_column, label_column))
        for name, allowed in ((text_column, "strings"), (label_column, "strings or integers")):
            kind = file.schema_arrow.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if not is_text and not (name == label_column and pa.types.is_integer(kind)):
                raise InputError(f"{path}: column {name!r} must hold {allowed}, not {kind}")
        for batch in file.iter_batches(ROWS_PER_GROUP, columns=[text_column, label_column]):
            values = batch.to_pydict()
            labels = [None if label is None else str(label) for label in values[label_column]]
            yield values[text_column], labels
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from None
