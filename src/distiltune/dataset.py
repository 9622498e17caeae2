"""Writes reviews as the tables that `split` and `adapt` read."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from distiltune.artifacts import ROWS_PER_GROUP, DatasetInfo, reviews_schema, write_reviews


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
