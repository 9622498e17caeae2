"""Bad and strange inputs: each works, or is one clear line, and nothing is left half done."""

import csv
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distiltune.artifacts import read_reviews
from tests.bad_inputs import (
    CASES,
    DATA_STAGES,
    Case,
    copy_of,
    listing,
    prepared_project,
    run_case,
)
from tests.conftest import Project


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return prepared_project(tmp_path_factory.mktemp("tokenized") / "project")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_it_works_or_is_one_clear_line(case: Case, tokenized: Project, tmp_path: Path) -> None:
    status, errors = run_case(case, copy_of(tokenized, tmp_path / "project"))
    if case.words:
        lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
        assert status == 1 and all(line.startswith("error: ") for line in lines), errors
        assert any(case.words in line for line in lines), errors
        assert max(map(len, lines)) < 500, errors
    else:
        assert status == 0 and errors == ""


STRANGE = (
    "long " * 200_000, "a\x01\x08\x1b[31m b\0c", "\u202e\u05de\u05e6 الفيلم", "😀👩\u200d👧",
    "Z\u0351\u036b" * 99, "two\nlines\r\nthree", "\ufeffmark", "NA", "\x7f", "\U0010ffff", "=1+1",
    "</s> [CLS] [MASK] <br />",
)  # fmt: skip


def test_strange_texts_go_through_the_whole_pipeline(tokenized: Project, tmp_path: Path) -> None:
    project = copy_of(tokenized, tmp_path / "project")
    texts = [f"{text} {i // len(STRANGE)}" for i, text in enumerate(STRANGE * 5)]
    with (project.root / "r.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment"])
        writer.writerows((text, i % 2) for i, text in enumerate(texts))
    project.change_params({"dataset": "csv", "datasets.csv.paths": ["r.csv"]})
    project.change_params({f"splits.csv.{name}": 0.3 for name in ("train", "validation", "test")})
    for stage in (*DATA_STAGES, "train", "evaluate"):
        assert not project.stage_here(stage).stderr, stage
    found = read_reviews(project.root / "data/reviews.parquet")[0]["text"].to_pylist()
    assert found == texts
    predictions = pq.read_table(project.root / "data/predictions.parquet")
    assert predictions.num_rows == 18


@pytest.mark.parametrize(
    "stage", ["download", "download_checkpoint", "split", "tokenize", "train", "evaluate"]
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    stage: str, tokenized: Project, tmp_path: Path
) -> None:
    project = copy_of(tokenized, tmp_path / "project")
    before = listing(project)
    # No file may grow beyond this, which fails as a full disk does; it is less than any output.
    num_kilobytes = 0 if stage == "download_checkpoint" else 1
    limited = f"ulimit -f {num_kilobytes}; exec {sys.executable} -m stages.{stage}"
    result = project.run("bash", "-c", limited, check=False)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert result.returncode == 1, result.stderr
    assert len(lines) == 1 and lines[0].startswith("error: ") and "File too large" in lines[0]
    assert listing(project) == before
