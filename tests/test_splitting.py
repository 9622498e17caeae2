"""The split stage: sizes, order, shuffling, classes, copies, and its audit."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distiltune import InputError, splitting
from distiltune.artifacts import SPLITS, DatasetInfo, new_folder, read_reviews
from distiltune.config import SplitRow
from distiltune.dataset import write_table
from distiltune.splitting import choose_rows, split_reviews
from tests.conftest import IMDB, IMDB_SHA256, Project

LABELS = np.array([0, 1] * 50 + [2] * 20)


def row(**changes: Any) -> SplitRow:
    settings = {
        "train": 60, "validation": 20, "test": 20, "shuffle": False, "stratify": False, "seed": 0,
        "drop_duplicates": False,
    }  # fmt: skip
    return SplitRow(**{**settings, **changes})


def test_counts_in_order_leave_the_rest_over() -> None:
    chosen = choose_rows(LABELS, row(), "splits.x")
    assert {name: rows.tolist() for name, rows in chosen.items()} == {
        "train": list(range(60)),
        "validation": list(range(60, 80)),
        "test": list(range(80, 100)),
    }


def test_shares_use_every_review() -> None:
    chosen = choose_rows(LABELS, row(train=0.7, validation=0.15, test=0.15), "splits.x")
    assert [len(rows) for rows in chosen.values()] == [84, 18, 18]
    assert sorted(np.concatenate(list(chosen.values()))) == list(range(120))


def test_shuffling_depends_on_the_seed_alone() -> None:
    first = choose_rows(LABELS, row(shuffle=True), "splits.x")
    again = choose_rows(LABELS, row(shuffle=True), "splits.x")
    other = choose_rows(LABELS, row(shuffle=True, seed=1), "splits.x")
    assert first["train"].tolist() == again["train"].tolist() != other["train"].tolist()
    assert len(set(np.concatenate(list(first.values())))) == 100


@pytest.mark.parametrize("sizes", [(60, 30, 30), (0.5, 0.25, 0.25)])
def test_stratified_splits_have_the_classes_in_proportion(sizes: tuple[Any, ...]) -> None:
    settings = row(train=sizes[0], validation=sizes[1], test=sizes[2], shuffle=True, stratify=True)
    chosen = choose_rows(LABELS, settings, "splits.x")
    counts = [np.bincount(LABELS[rows]).tolist() for rows in chosen.values()]
    assert [sum(c) for c in counts] == [60, 30, 30]
    for found, size in zip(counts, (60, 30, 30), strict=True):
        assert np.abs(np.array(found) - size * np.array([50, 50, 20]) / 120).max() <= 1


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        (LABELS, row(train=90), "130 together; there are 120 reviews"),
        (LABELS[:3], row(train=0.8, validation=0.1, test=0.1), "validation: no review of 3"),
        (np.array([0] * 9 + [1]), row(train=4, validation=3, test=3, shuffle=True, stratify=True),
         "too few reviews of a class"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit(labels: Any, settings: SplitRow, words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_rows(labels, settings, "splits.x")


@pytest.fixture
def table(tmp_path: Any) -> Any:
    # Reviews 6 and 9 are copies of 0, review 8 of 7; 11 copies 2 with the other label.
    texts = ["a", "b", "c", "d", "e", "f", "a", "g", "g", "a", "h", "c"]
    labels = [0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1]
    path = tmp_path / "reviews.parquet"
    write_table(path, texts, labels, DatasetInfo(dataset="x", label_names=("no", "yes")))
    return path


def test_the_audit_counts_copies(table: Any, tmp_path: Any) -> None:
    audit = split_reviews(table, "x", row(train=6, validation=3, test=3), tmp_path / "splits")
    assert audit["copies"] == 4
    assert audit["texts_with_two_labels"] == 1
    assert audit["left_over"] == 0
    assert audit["train"]["per_class"] == {"no": 3, "yes": 3}
    assert audit["validation"]["copies_from_train"] == 1
    assert audit["validation"]["copies_within"] == 1
    assert audit["test"]["copies_from_train"] == 2
    test, info = read_reviews(tmp_path / "splits/test.parquet")
    assert test["in_train"].to_pylist() == [True, False, True]
    assert test["row"].to_pylist() == [9, 10, 11]
    assert info.label_names == ("no", "yes")


def test_copies_can_be_kept_out(table: Any, tmp_path: Any) -> None:
    settings = row(train=6, validation=3, test=3, drop_duplicates=True)
    audit = split_reviews(table, "x", settings, tmp_path / "splits")
    kept = {
        name: read_reviews(tmp_path / f"splits/{name}.parquet")[0]["text"].to_pylist()
        for name in ("train", "validation", "test")
    }
    assert kept == {"train": list("abcdef"), "validation": ["g"], "test": ["h"]}
    assert (audit["validation"]["copies_dropped"], audit["test"]["copies_dropped"]) == (2, 2)


def test_a_training_split_without_a_class(table: Any, tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"splits\.x\.train: .* none of class yes"):
        split_reviews(table, "x", row(train=1, validation=3, test=3), tmp_path / "splits")


@pytest.mark.parametrize("rows_per_group", [7, 4096, 100_000])
def test_the_splits_are_those_of_a_split_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int
) -> None:
    """The digests are those of the first implementation, which read the whole table at once."""
    # The copies stand 7,000 rows apart, so in other row groups; one text is empty.
    texts = [f"{'é' * (i % 5)}{i % 7000}" if i else "" for i in range(9000)]
    table = tmp_path / "reviews.parquet"
    info = DatasetInfo(dataset="x", label_names=("a", "b", "c"))
    write_table(table, texts, (i * 7 % 11 % 3 for i in range(9000)), info)
    settings = row(
        train=0.6, validation=0.2, test=0.1, shuffle=True, stratify=True, drop_duplicates=True
    )
    monkeypatch.setattr(splitting, "ROWS_PER_GROUP", rows_per_group)
    audit = split_reviews(table, "x", settings, tmp_path / "splits")
    parts = [read_reviews(tmp_path / f"splits/{name}.parquet")[0].to_pylist() for name in SPLITS]
    found = [hashlib.sha256(repr(part).encode()).hexdigest()[:16] for part in (*parts, audit)]
    assert [len(part) for part in parts] == [5400, 1247, 571]
    assert found == ["2b2787bdde301ec4", "c21ceba9548f7967", "dd66e2d1e3b6c54f", "97e1f1b1e0ed4075"]


def test_a_table_smaller_than_a_row_group_and_one_row_splits(table: Any, tmp_path: Any) -> None:
    audit = split_reviews(table, "x", row(train=10, validation=1, test=1), tmp_path / "splits")
    assert [audit[name]["num_reviews"] for name in SPLITS] == [10, 1, 1]
    test = read_reviews(tmp_path / "splits/test.parquet")[0]
    assert test.to_pylist() == [{"text": "c", "label": 1, "row": 11, "in_train": True}]


def test_a_failure_leaves_nothing(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: Any) -> None:
        assert [p.name for p in path.parent.iterdir()] == []
        raise OSError("no space left")

    monkeypatch.setattr(splitting, "write_reviews", fail)
    with pytest.raises(OSError, match="no space"), new_folder(tmp_path / "splits") as folder:
        split_reviews(table, "x", row(train=6, validation=3, test=3), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.parquet"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(project: Project) -> None:
    """Of 183 MiB more of texts, that nothing compresses well, hardly any is held at a time."""
    # VmHWM is of this process alone; ru_maxrss would count from the size of pytest's.
    measure = (
        "import runpy; runpy.run_module('stages.split', run_name='__main__');"
        "print(*[s for s in open('/proc/self/status') if s.startswith('VmHWM')])"
    )
    sizes = {"train": 0.8, "validation": 0.1, "test": 0.1, "shuffle": True, "stratify": True}
    project.change_params({f"splits.sample.{key}": value for key, value in sizes.items()})
    peaks = []
    for num_reviews in (8_000, 32_000):
        letters = np.random.default_rng(0).integers(97, 123, num_reviews * 8000, dtype=np.uint8)
        texts = letters.tobytes().decode()
        write_table(
            project.root / "data/reviews.parquet",
            (texts[i * 8000 : (i + 1) * 8000] for i in range(num_reviews)),
            (i % 2 for i in range(num_reviews)),
            DatasetInfo(dataset="sample", label_names=("no", "yes")),
        )
        printed = project.run(sys.executable, "-c", measure).stdout
        peaks.append(int(printed.split()[1]) / 1024)
    assert peaks[1] - peaks[0] < 90, peaks


def test_a_damaged_table_is_named(project: Project) -> None:
    project.stage("download")
    path = project.root / "data/reviews.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    result = project.stage("split", check=False)
    assert result.returncode == 1
    assert "data/reviews.parquet: no table of reviews" in result.stderr
    assert not (project.root / "data/splits").exists()


@pytest.mark.imdb
@pytest.mark.skipif(not IMDB.exists(), reason="the IMDb archive is not here")
def test_the_audit_of_the_real_reviews(new_project: Any) -> None:
    project = new_project(small=False)
    project.change_params({"datasets.imdb.urls": [IMDB.as_uri()]})
    project.change_params({"datasets.imdb.sha256": IMDB_SHA256})
    project.stage("download")
    project.stage("split")
    audit = json.loads((project.root / "metrics/split.json").read_text())
    assert audit["copies"] == 418
    assert audit["texts_with_two_labels"] == 0
    assert audit["validation"]["copies_from_train"] == 72
    assert audit["test"]["copies_from_train"] == 116
