"""The user's tables, read and written some rows at a time: CSV, gzipped CSV, Parquet."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from distiltune import InputError
from distiltune.artifacts import ROWS_PER_GROUP, STREAMING, new_file
from distiltune.own_files import read_csv_frames

SUFFIXES = (".csv", ".csv.gz", ".parquet")


def check_suffix(path: Path, option: str) -> None:
    """See that a file's name says which kind of table it is.

    Raises:
        InputError: it does not.
    """
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{option}: {path}: must end with {', '.join(SUFFIXES)}")


class Table:
    """A user's file, in which one column holds texts."""

    def __init__(self, path: Path, candidates: Sequence[str], *, is_chosen: bool) -> None:
        """Look at the head of a file.

        Args:
            path: with one of `SUFFIXES`.
            candidates: the first of these columns that is there holds the texts.
            is_chosen: whether the user named it; if not, an only column will do.

        Raises:
            InputError: the file is missing, damaged, has no such column or one twice.
        """
        check_suffix(path, "--file")
        if not path.is_file():
            raise InputError(
                f"--file: {path}: {'is a folder' if path.is_dir() else 'no such file'}"
            )
        self.path = path
        self.is_parquet = path.suffix == ".parquet"
        self.columns: list[str] = []
        if self.is_parquet:
            with _reading_parquet(path) as file:
                self._note(file.schema_arrow.names)
        else:
            # Only what comes before the first row.
            next(read_csv_frames(path, self._note), None)
        found = [name for name in candidates if name in self.columns]
        if not found and not is_chosen and len(self.columns) == 1:
            found = self.columns
        if not found:
            wanted = " or ".join(map(repr, candidates))
            raise InputError(
                f"--file: {path}: has no column {wanted}; it has "
                f"{', '.join(map(repr, self.columns))}; name one of them in --text-column"
            )
        self.text_column = found[0]

    def _note(self, names: list[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"--file: {self.path}: column {name!r} stands there twice")
        self.columns = list(names)

    def batches(self) -> Iterator[pa.Table]:
        """All columns of up to `ROWS_PER_GROUP` rows at a time, of CSV as strings.

        Raises:
            InputError: the file is damaged, or no table.
        """
        if not self.is_parquet:
            schema = pa.schema([(name, pa.large_string()) for name in self.columns])
            for frame in read_csv_frames(self.path, self._note):
                # pandas has names of its own for columns without one.
                frame.columns = self.columns
                table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
                yield table.replace_schema_metadata(None)
            return
        with _reading_parquet(self.path) as file:
            kind = file.schema_arrow.field(self.text_column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise InputError(
                    f"--file: {self.path}: column {self.text_column!r} must hold strings, "
                    f"not {kind}"
                )
            for batch in file.iter_batches(ROWS_PER_GROUP):
                yield pa.Table.from_batches([batch])

    def check(self) -> int:
        """Read all of it once, before hours of work.

        Returns:
            The number of rows.

        Raises:
            InputError: there are none, or some have no text.
        """
        num_rows = num_empty = first_empty = 0
        for batch in self.batches():
            texts = batch[self.text_column].cast(pa.large_string())
            has_text = pc.not_equal(pc.utf8_trim_whitespace(texts), "").fill_null(False)
            if empty := len(texts) - (pc.sum(has_text).as_py() or 0):
                if not num_empty:
                    first_empty = num_rows + pc.index(has_text, False).as_py() + 1
                num_empty += empty
            num_rows += len(texts)
        if num_empty:
            others = f" (and in {num_empty - 1:,} more)" if num_empty > 1 else ""
            raise InputError(
                f"--file: {self.path}: row {first_empty}: column {self.text_column!r} is empty"
                f"{others}; leave such rows out"
            )
        if not num_rows:
            raise InputError(f"--file: {self.path}: has no rows")
        return num_rows

    def texts_of(self, batch: pa.Table) -> list[str]:
        texts: list[str] = batch[self.text_column].to_pylist()
        return texts


@contextlib.contextmanager
def new_table(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """What writes tables one after the other into a file, which is there if the block succeeds.

    Raises:
        InputError: the file cannot be written, or CSV cannot hold a column.
    """
    with new_file(path) as partial, contextlib.ExitStack() as stack:
        writer: Any = None

        def write(table: pa.Table) -> None:
            nonlocal writer
            try:
                if writer is None:
                    writer = stack.enter_context(_open(path, partial, table.schema))
                writer.write_table(table)
            except pa.ArrowInvalid as error:
                raise InputError(
                    f"--output: {path}: CSV cannot hold this table ({str(error).splitlines()[0]}); "
                    "Parquet can"
                ) from None

        yield write


@contextlib.contextmanager
def _open(path: Path, partial: Path, schema: pa.Schema) -> Iterator[Any]:
    if path.suffix == ".parquet":
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            yield writer
        return
    compression = "gzip" if path.suffix == ".gz" else None
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    with (
        pa.output_stream(str(partial), compression=compression) as stream,
        pyarrow.csv.CSVWriter(stream, schema, write_options=options) as writer,
    ):
        yield writer


@contextlib.contextmanager
def _reading_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, **STREAMING) as file:
            yield file
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--file: {path}: not a Parquet file: {reason}") from None
