"""Divides reviews into training, validation and test, and audits the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from distiltune import InputError
from distiltune.artifacts import (
    ROWS_PER_GROUP,
    SPLITS,
    DatasetInfo,
    read_reviews,
    reviews_schema,
    write_reviews,
)
from distiltune.config import SplitRow

Indices = np.ndarray[Any, np.dtype[np.int64]]


def split_reviews(table_path: Path, dataset: str, row: SplitRow, folder: Path) -> dict[str, Any]:
    """Write `train`, `validation` and `test` tables and return the audit.

    Each table has, besides text and label, `row` (the review's place in the whole
    table, from 0) and `in_train` (whether the same text stands in the training split).

    Returns:
        The audit: sizes, class balance, and exact duplicates within and across splits.

    Raises:
        InputError: there are too few reviews, or a split lacks a class.
    """
    table, info = read_reviews(table_path)
    labels = table["label"].to_numpy()
    where = f"splits.{dataset}"
    chosen = choose_rows(labels, row, where)
    # Reviews with the same text share a number.
    text_numbers = pd.factorize(table["text"].to_pandas())[0]
    num_dropped = dict.fromkeys(SPLITS, 0)
    if row.drop_duplicates:
        seen = set(text_numbers[chosen["train"]].tolist())
        for name in ("validation", "test"):
            kept = []
            for i in chosen[name]:
                if text_numbers[i] not in seen:
                    seen.add(text_numbers[i])
                    kept.append(i)
            num_dropped[name] = len(chosen[name]) - len(kept)
            chosen[name] = np.array(kept, dtype=np.int64)
    for name in SPLITS:
        _check_classes(name, labels[chosen[name]], info, where)
    train_texts = np.unique(text_numbers[chosen["train"]])
    extra = [pa.field("row", pa.int64()), pa.field("in_train", pa.bool_())]
    schema = reviews_schema(info, extra)
    for name, rows in chosen.items():
        in_train = np.isin(text_numbers[rows], train_texts)
        part = table.take(pa.array(rows))
        part = pa.table([*part.columns, pa.array(rows), pa.array(in_train)], schema=schema)
        write_reviews(folder / f"{name}.parquet", part.to_batches(ROWS_PER_GROUP), schema)
    return audit(labels, text_numbers, chosen, num_dropped, info)


def choose_rows(labels: Indices, row: SplitRow, where: str) -> dict[str, Indices]:
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


def _check_classes(name: str, labels: Indices, info: DatasetInfo, where: str) -> None:
    present = set(labels.tolist())
    missing = [label for i, label in enumerate(info.label_names) if i not in present]
    if not present or (name == "train" and missing):
        raise InputError(
            f"{where}.{name}: the split has {len(labels)} reviews and none of class "
            f"{', '.join(missing)}; make it larger, or shuffle or stratify"
        )


def audit(
    labels: Indices,
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
