"""Reads reviews: the IMDb archive in the reference order, and the user's own files."""

import csv
import gzip
import hashlib
import io
import itertools
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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
from distiltune.config import CsvRow, ImdbRow

if TYPE_CHECKING:
    import pandas as pd

IMDB_INFO = DatasetInfo(dataset="imdb", label_names=("negative", "positive"))
IMDB_MEMBER = re.compile(r"aclImdb/(test|train)/(pos|neg|unsup)/([0-9]+_[0-9]+\.txt)")
UNLABELLED = ("train", "unsup")
IMDB_MAX_REVIEW_BYTES = 1 << 20
MAX_CLASSES = 1000
DOWNLOADS = Path(".cache/downloads")
Rows = tuple[list[str | None], list[str | None]]


def read_imdb(archive: Path) -> tuple[list[str], list[int]]:
    """The labelled reviews; see `read_imdb_with_unlabelled`."""
    return read_imdb_with_unlabelled(archive)[:2]


def read_imdb_with_unlabelled(archive: Path) -> tuple[list[str], list[int], list[str]]:
    """Read the reviews from the tar archive, without unpacking it to disk.

    The reference order: test/pos, test/neg, train/pos, train/neg, each by file name,
    then `numpy.random.RandomState(0).permutation`. Label 1 is positive. The unlabelled
    ones, if there are any, come by file name.

    Args:
        archive: `aclImdb_v1.tar.gz`, or one with the same layout. Members with any
            other name are passed over, and no path from it is ever written.

    Raises:
        InputError: the archive is damaged, or holds no labelled reviews.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {
        **{(part, label): [] for part in ("test", "train") for label in ("pos", "neg")},
        UNLABELLED: [],
    }
    try:
        # Not as a stream ("r|*"), which takes the end of a file that was cut off for the archive's.
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                match = IMDB_MEMBER.fullmatch(member.name)
                if not match or not member.isfile() or match.group(1, 2) not in found:
                    continue
                if member.size > IMDB_MAX_REVIEW_BYTES:
                    raise InputError(
                        f"{archive}: {member.name} has {member.size} bytes; a review has at "
                        f"most {IMDB_MAX_REVIEW_BYTES}"
                    )
                content = tar.extractfile(member)
                assert content is not None
                found[match[1], match[2]].append((match[3], content.read().decode("utf-8")))
            # A damaged head looks like the archive's end; what compressed it has a checksum.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                continue
    except UnicodeDecodeError:
        raise InputError(f"{archive}: {member.name} is not UTF-8") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{archive}: the archive is damaged, or none: {reason}") from None
    unlabelled = [text for _, text in sorted(found.pop(UNLABELLED))]
    texts, labels = [], []
    for (_, label), reviews in found.items():
        texts += [text for _, text in sorted(reviews)]
        labels += [int(label == "pos")] * len(reviews)
    if len(set(labels)) < 2:
        raise InputError(
            f"{archive}: holds no labelled reviews; expected files like "
            "aclImdb/train/pos/0_9.txt, positive and negative"
        )
    order = np.random.RandomState(0).permutation(len(texts))
    return [texts[i] for i in order], [labels[i] for i in order], unlabelled


def download_imdb(row: ImdbRow, root: Path, output: Path, unlabelled: Path) -> None:
    """Fetch the archive, check it, and write its reviews as tables.

    Args:
        row: mirrors and checksums.
        root: the project's root, below which downloads are kept.
        output: the Parquet table of the labelled reviews to write.
        unlabelled: that of the others.

    Raises:
        InputError: the archive cannot be had, is damaged, or its reviews are others
            than the row's checksum says.
    """
    # Only here: `watch` runs at every `dvc repro` and needs no HTTP client.
    from distiltune.fetching import fetch

    way_out = (
        "give a mirror or a file of your own: -S 'datasets.imdb.urls=[file:///...]' with its "
        "-S datasets.imdb.sha256=...; or what needs no network: -S dataset=sample -S model=tiny"
    )
    archive = fetch(row.urls, row.sha256, root / DOWNLOADS, way_out)
    texts, labels, others = read_imdb_with_unlabelled(archive)
    found = table_sha256(texts, labels)
    if row.table_sha256 not in (None, found):
        raise InputError(
            f"{archive}: its {len(texts)} reviews as CSV have the sha256 {found}, not "
            f"datasets.imdb.table_sha256 = {row.table_sha256}; null there skips the check"
        )
    write_table(output, texts, labels, IMDB_INFO)
    write_unlabelled(unlabelled, others)


def table_sha256(texts: list[str], labels: list[int]) -> str:
    """The checksum of the reviews as CSV with the columns `review,sentiment`.

    The form is that of Python's `csv.writer` with line ends of one newline.
    """

    class Digest:
        sha256 = hashlib.sha256()

        def write(self, text: str) -> None:
            self.sha256.update(text.encode())

    digest = Digest()
    writer = csv.writer(digest, lineterminator="\n")
    writer.writerow(["review", "sentiment"])
    writer.writerows(zip(texts, labels, strict=True))
    return digest.sha256.hexdigest()


def write_table(path: Path, texts: Iterable[str], labels: Iterable[int], info: DatasetInfo) -> None:
    """Write reviews as the Parquet table that `split` reads, a row group at a time."""
    schema = reviews_schema(info)
    rows = zip(texts, labels, strict=True)

    def batches() -> Iterator[pa.RecordBatch]:
        while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
            columns = zip(*group, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            yield pa.record_batch(arrays, schema=schema)

    write_reviews(path, batches(), schema)


def write_unlabelled(path: Path, texts: Iterable[str]) -> None:
    """Write texts as a Parquet table with the column `text`, a row group at a time."""
    schema = pa.schema([("text", pa.string())])
    rows = iter(texts)

    def batches() -> Iterator[pa.RecordBatch]:
        while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
            yield pa.record_batch([pa.array(group, pa.string())], schema=schema)

    write_reviews(path, batches(), schema)


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
