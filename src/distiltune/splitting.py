"""Divides reviews into training, validation and test, and audits the result.

The texts stay on disk, whatever their number: memory holds a few numbers for each review
and the texts of one row group.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from distiltune import InputError
from distiltune.artifacts import (
    ROWS_PER_GROUP,
    SPLITS,
    DatasetInfo,
    read_batches,
    read_info,
    reviews_schema,
    write_reviews,
)
from distiltune.config import SplitRow

Indices = np.ndarray[Any, np.dtype[np.int64]]
Labels = np.ndarray[Any, np.dtype[np.int32]]


def split_reviews(table_path: Path, dataset: str, row: SplitRow, folder: Path) -> dict[str, Any]:
    """Write `train`, `validation` and `test` tables and return the audit.

    Each table has, besides text and label, `row` (the review's place in the whole
    table, from 0) and `in_train` (whether the same text stands in the training split).

    Returns:
        The audit: sizes, class balance, and exact duplicates within and across splits.

    Raises:
        InputError: there are too few reviews, or a split lacks a class.
    """
    info = read_info(table_path)
    where = f"splits.{dataset}"
    folder.mkdir(parents=True, exist_ok=True)
    # Has no name, so that nothing is left of it, however the stage ends.
    with tempfile.TemporaryFile(dir=folder) as texts:
        labels, text_numbers, offsets = _read_through(table_path, texts)
        chosen = choose_rows(labels, row, where)
        num_dropped = dict.fromkeys(SPLITS, 0)
        if row.drop_duplicates:
            kept = _without_copies(text_numbers, chosen)
            num_dropped = {name: len(chosen[name]) - len(kept[name]) for name in SPLITS}
            chosen = kept
        for name in SPLITS:
            _check_classes(name, labels[chosen[name]], info, where)
        extra = [pa.field("row", pa.int64()), pa.field("in_train", pa.bool_())]
        schema = reviews_schema(info, extra)
        train_texts = np.unique(text_numbers[chosen["train"]])
        for name, rows in chosen.items():
            in_train = np.isin(text_numbers[rows], train_texts)
            batches = (
                pa.record_batch(
                    [_texts_of(texts, offsets, part), labels[part], part, copied], schema=schema
                )
                for part, copied in _groups(rows, in_train)
            )
            write_reviews(folder / f"{name}.parquet", batches, schema)
    return audit(labels, text_numbers, chosen, num_dropped, info)


def _read_through(table: Path, texts: IO[bytes]) -> tuple[Labels, Indices, Indices]:
    """Read the whole table once, row group by row group, and lay its texts down in a file.

    Returns:
        Labels (num_reviews,) int32; numbers (num_reviews,) that reviews with the same
        text share; and offsets (num_reviews + 1,) in bytes: text i stands in `texts`
        from offsets[i] to offsets[i + 1], as UTF-8.
    """
    labels, digests, lengths = [], [], []
    for batch in read_batches(table, ["text", "label"]):
        encoded = batch["text"].cast(pa.binary()).to_pylist()
        texts.writelines(encoded)
        labels.append(batch["label"].to_numpy())
        lengths.append(np.array([len(text) for text in encoded], dtype=np.int64))
        # Two different texts in a million have the same 64 bits with a chance of 3e-8.
        joined = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in encoded)
        digests.append(np.frombuffer(joined, dtype=np.uint64))
    texts.flush()
    text_numbers = np.unique(np.concatenate(digests), return_inverse=True)[1]
    return np.concatenate(labels), text_numbers, np.cumsum(np.concatenate([[0], *lengths]))


def _groups(*columns: np.ndarray[Any, Any]) -> Iterator[tuple[np.ndarray[Any, Any], ...]]:
    """Cut columns of the same length into parts of a row group each."""
    for start in range(0, len(columns[0]), ROWS_PER_GROUP):
        yield tuple(column[start : start + ROWS_PER_GROUP] for column in columns)


def _texts_of(texts: IO[bytes], offsets: Indices, rows: Indices) -> pa.Array:
    """The texts of some rows, read where `_read_through` laid them down."""
    starts, lengths = offsets[rows].tolist(), (offsets[rows + 1] - offsets[rows]).tolist()
    found = [
        os.pread(texts.fileno(), length, start)
        for start, length in zip(starts, lengths, strict=True)
    ]
    return pa.array(found, pa.string())


def _without_copies(text_numbers: Indices, chosen: dict[str, Indices]) -> dict[str, Indices]:
    """The rows of each split without copies of earlier ones; training keeps its own."""
    rows = np.concatenate([chosen[name] for name in SPLITS])
    is_first = np.zeros(len(rows), dtype=bool)
    is_first[np.unique(text_numbers[rows], return_index=True)[1]] = True
    is_first[: len(chosen["train"])] = True
    ends = np.cumsum([len(chosen[name]) for name in SPLITS])[:-1]
    parts = zip(SPLITS, np.split(rows, ends), np.split(is_first, ends), strict=True)
    return {name: part[first] for name, part, first in parts}


def choose_rows(labels: Labels, row: SplitRow, where: str) -> dict[str, Indices]:
    """The rows of each split, by counts or shares, in order or shuffled, or stratified.

    Args:
        labels: (num_reviews,), class indices.
        row: the sizes; shares that make 1 leave no review over.
        where: the params' place, for errors.

    Raises:
        InputError: the counts are more than there are, or a split would be empty.
    """
    num_reviews = len(labels)
    sizes = [row.train, row.validation, row.test]
    if isinstance(row.train, float):
        total = round(sum(sizes) * num_reviews)
        counts = [int(size * num_reviews) for size in sizes]
        counts[0] += total - sum(counts)
    else:
        counts = [int(size) for size in sizes]
    if sum(counts) > num_reviews:
        raise InputError(
            f"{where}: train, validation and test are {sum(counts)} together; "
            f"there are {num_reviews} reviews"
        )
    for name, count in zip(SPLITS, counts, strict=True):
        if count == 0:
            raise InputError(f"{where}.{name}: no review of {num_reviews} falls into it")
    rows = np.arange(num_reviews)
    if row.stratify:
        # Only here: it takes longer to import than all the rest of this stage.
        from sklearn.model_selection import train_test_split

        rest, parts = rows, []
        try:
            for count in counts:
                if count < len(rest):
                    part, rest = train_test_split(
                        rest, train_size=count, stratify=labels[rest], random_state=row.seed
                    )
                else:
                    part, rest = np.random.default_rng(row.seed).permutation(rest), rest[:0]
                parts.append(part)
        except ValueError as error:
            raise InputError(f"{where}.stratify: too few reviews of a class: {error}") from None
        return dict(zip(SPLITS, parts, strict=True))
    if row.shuffle:
        rows = np.random.default_rng(row.seed).permutation(num_reviews)
    ends = np.cumsum(counts)
    return dict(zip(SPLITS, np.split(rows[: ends[-1]], ends[:-1]), strict=True))


def _check_classes(name: str, labels: Labels, info: DatasetInfo, where: str) -> None:
    present = set(labels.tolist())
    missing = [label for i, label in enumerate(info.label_names) if i not in present]
    if not present or (name == "train" and missing):
        raise InputError(
            f"{where}.{name}: the split has {len(labels)} reviews and none of class "
            f"{', '.join(missing)}; make it larger, or shuffle or stratify"
        )


def audit(
    labels: Labels,
    text_numbers: Indices,
    chosen: dict[str, Indices],
    num_dropped: dict[str, int],
    info: DatasetInfo,
) -> dict[str, Any]:
    """Sizes, class balance and exact duplicates.

    Args:
        labels: (num_reviews,), class indices.
        text_numbers: (num_reviews,), equal for reviews with the same text.
        chosen: the rows of each split.
        num_dropped: how many copies were kept out of each split.
        info: names the classes.
    """
    by_split: dict[str, Any] = {}
    for name, rows in chosen.items():
        counts = np.bincount(labels[rows], minlength=len(info.label_names))
        by_split[name] = {
            "num_reviews": len(rows),
            "per_class": dict(zip(info.label_names, counts.tolist(), strict=True)),
            "copies_within": len(rows) - len(np.unique(text_numbers[rows])),
            "copies_dropped": num_dropped[name],
        }
    for name, earlier in (("validation", "train"), ("test", "train"), ("test", "validation")):
        shared = np.isin(text_numbers[chosen[name]], text_numbers[chosen[earlier]])
        by_split[name][f"copies_from_{earlier}"] = int(shared.sum())
    classes_per_text = pd.DataFrame({"text": text_numbers, "label": labels}).drop_duplicates()
    used = sum(len(rows) for rows in chosen.values())
    return {
        "num_reviews": len(labels),
        "left_over": len(labels) - used - sum(num_dropped.values()),
        "copies": len(labels) - len(np.unique(text_numbers)),
        "texts_with_two_labels": int(classes_per_text["text"].duplicated().sum()),
        **by_split,
    }
