"""The files at the stages' borders: their formats, written aside and renamed.

Reviews and splits are Parquet tables with the columns `text` (string) and `label`
(int32, a class index); the names of the classes and of the data set are in the
schema's metadata. Token files are safetensors with
    ids      (num_tokens,)      int32, the reviews one after the other, unpadded
    offsets  (num_reviews + 1,) int64, review i is ids[offsets[i]:offsets[i + 1]]
    labels   (num_reviews,)     int64
and can be mapped into memory. Both carry checksums, which are looked at where they are read.
"""

import contextlib
import csv
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distiltune import InputError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SPLITS = ("train", "validation", "test")
ROWS_PER_GROUP = 4096
# By default pyarrow reads the whole file ahead, and keeps it. Without a buffer's size it reads
# a row group's column at once, which in a user's file may be all of it.
STREAMING = {"pre_buffer": False, "buffer_size": 1 << 16, "page_checksum_verification": True}
WAY_OUT = "`dvc checkout --force` restores it, or `dvc repro` makes it again"
# In a token file: the sha256 of ids, offsets, labels and the rest of the metadata, in this order.
DIGEST_KEY = "sha256"
# Beside a model's weights: what it was trained with and on, and how it reads a text.
RUN_FILE = "run.json"
WEIGHTS_FILE = "model.safetensors"
ANSWERS_FILE = "validation.csv"  # label and predicted class of each validation review
# Beside the history's tables: the metrics of the train stage.
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a table of reviews is: travels in its metadata through the stages."""

    dataset: str
    label_names: tuple[str, ...]


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            partial = Path(file.name)
    except OSError as error:  # which names the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        if error.errno in FULL_DISK and error.filename in (None, str(partial)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        if error.errno is not None:
            raise
        # Arrow's, which has its number in the text alone.
        raise InputError(f"{path}: cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield partial
        partial.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replaceable_folder(folder: Path, own_file: str, kind: str) -> Path:
    """The folder, if one that holds `own_file` may take its place.

    Args:
        folder: not there, empty, or one of the kind.
        own_file: what every folder of the kind holds.
        kind: what to call it, with its article.

    Raises:
        InputError: it is there and holds something else, which would be lost.
    """
    # Without links and dots: a folder cannot be replaced by such a name.
    folder = folder.resolve()
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{folder}: cannot be made in {above}; name another folder")
    if folder.exists() and not (folder / own_file).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(
                f"{folder}: is there and is not {kind} (no {own_file} in it), "
                "and would be replaced; name another folder"
            )
    return folder


def check_new_file(option: str, file: Path | None) -> None:
    """See that a file that an option names can be written, before the work.

    Raises:
        InputError: it is a folder, or its folder is not there or not to be written to.
    """
    if file and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"{option}: {file}: must be a file in a folder that is there")
    if file and not os.access(file.parent, os.W_OK):
        raise InputError(f"{option}: {file}: its folder cannot be written to")


def write_json(path: Path, content: Any) -> None:
    with new_file(path) as partial:
        text = json.dumps(content, indent=2, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Raises:
        InputError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {WAY_OUT}") from None


def write_csv(path: Path, columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table for `dvc plots`; missing values (None) become empty cells."""
    with new_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metadata_bytes(metadata: dict[str, str]) -> bytes:
    """What of a token file's metadata its checksum is of."""
    described = {name: text for name, text in metadata.items() if name != DIGEST_KEY}
    return json.dumps(described, sort_keys=True).encode()


def reviews_schema(info: DatasetInfo, extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """The schema of a table of reviews, with `info` in its metadata."""
    columns = [pa.field("text", pa.string()), pa.field("label", pa.int32()), *extra]
    described = json.dumps(asdict(info))
    digest = hashlib.sha256(described.encode()).hexdigest()
    return pa.schema(columns, metadata={"distiltune": described, DIGEST_KEY: digest})


def write_reviews(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write record batches as Parquet, one at a time."""
    with (
        new_file(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    """The open table; what is wrong with it within is told as damage."""
    try:
        with pq.ParquetFile(path, **STREAMING) as file:
            yield file
    except (InputError, FileNotFoundError):
        raise
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no table of reviews ({_first_line(error)}); {WAY_OUT}") from None


def read_info(path: Path) -> DatasetInfo:
    """What a table of reviews says of itself.

    Raises:
        InputError: the file is damaged, or was not written by this pipeline.
    """
    with _reading(path) as file:
        described = file.schema_arrow.metadata[b"distiltune"]
        expected = file.schema_arrow.metadata[DIGEST_KEY.encode()].decode()
        if hashlib.sha256(described).hexdigest() != expected:
            raise ValueError("its metadata have another sha256")
        info = json.loads(described)
        return DatasetInfo(dataset=info["dataset"], label_names=tuple(info["label_names"]))


def read_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a table of reviews, some at a time.

    Raises:
        InputError: the file is damaged, or was not written by this pipeline.
    """
    with _reading(path) as file:
        yield from file.iter_batches(ROWS_PER_GROUP, columns=columns)


def read_reviews(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, DatasetInfo]:
    """Read a table of reviews, or some of its columns, into memory.

    Raises:
        InputError: the file is damaged, or was not written by this pipeline.
    """
    info = read_info(path)
    with _reading(path) as file:
        return file.read(columns=columns), info


class TokenWriter:
    """Writes a token file review by review; holds the lengths in memory, not the ids."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lengths: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self.labels: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self._ids = tempfile.TemporaryFile(dir=path.parent)
        self._digest = hashlib.sha256()

    def write(
        self,
        ids: np.ndarray[Any, np.dtype[np.int32]],
        lengths: np.ndarray[Any, np.dtype[np.int64]],
        labels: np.ndarray[Any, np.dtype[np.int64]],
    ) -> None:
        """Append reviews: ids (num_tokens,), lengths (num_reviews,), labels (num_reviews,)."""
        assert ids.size == lengths.sum() and lengths.size == labels.size
        content = ids.astype("<i4").tobytes()
        self._ids.write(content)
        self._digest.update(content)
        self.lengths.append(lengths)
        self.labels.append(labels)

    def close(self, metadata: dict[str, str]) -> None:
        """Put the parts together in the safetensors layout, streaming the ids."""
        lengths = np.concatenate(self.lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<i8")
        labels = np.concatenate(self.labels).astype("<i8")
        sizes = {"offsets": offsets.nbytes, "labels": labels.nbytes, "ids": int(offsets[-1]) * 4}
        for column in (offsets, labels):
            self._digest.update(column.tobytes())
        self._digest.update(metadata_bytes(metadata))
        metadata = {**metadata, DIGEST_KEY: self._digest.hexdigest()}
        header: dict[str, Any] = {"__metadata__": metadata}
        start = 0
        for name, dtype, shape in (
            ("offsets", "I64", [offsets.size]),
            ("labels", "I64", [labels.size]),
            ("ids", "I32", [int(offsets[-1])]),
        ):
            header[name] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [start, start + sizes[name]],
            }
            start += sizes[name]
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with new_file(self.path) as partial, partial.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.write(offsets.tobytes() + labels.tobytes())
            self._ids.seek(0)
            shutil.copyfileobj(self._ids, file, 1 << 20)
        self._ids.close()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
