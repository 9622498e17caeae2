"""benchmarks/scale.py: its options, and a small run with all that it writes."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.scale import (
    Measurement,
    change_params,
    growth_table,
    parse_options,
    write_real_reviews,
)
from tests.archives import write_archive
from tests.conftest import Project


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--sizes 5k", "--sizes: '5k': whole numbers"),
        ("--sizes 5", "5 is less than 100"),
        ("--sizes 200 --train-sizes 300", "--train-sizes: 300 is not among --sizes"),
        ("--sizes 2000000", "2000000 is more than the 1000000"),
        ("--archive gone.tar.gz", "gone.tar.gz: no such file"),
        ("--checkpoint gone", "gone: no folder with a model.safetensors"),
    ],
)
def test_a_bad_option_is_named(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(arguments.split())
    assert words in capsys.readouterr().err


def test_training_is_left_to_the_smaller_sizes() -> None:
    assert parse_options([]).train_sizes == (5_000, 50_000)
    assert parse_options(["--sizes", "500000,5000"]).train_sizes == (5_000,)
    assert parse_options(["--train-sizes", "none"]).train_sizes == ()


def test_the_table_says_how_much_each_stage_grows() -> None:
    def measured(stage: str, num_reviews: int, seconds: float) -> Measurement:
        return Measurement(
            stage=stage, num_reviews=num_reviews, seconds=seconds, cpu_seconds=2.0, peak_mib=100.0
        )

    found = [measured("split", 100, 1.5), measured("split", 1000, 6.0), measured("train", 100, 9.0)]
    lines = [line.split() for line in growth_table(found, (100, 1000)).splitlines()]
    assert lines[0] == ["reviews", "100", "1,000", "x10"]
    assert lines[2] == [
        "split",
        "1.5",
        "2.0",
        "100",
        "6.0",
        "2.0",
        "100",
        "x4.00",
        "x1.00",
        "x1.00",
    ]
    assert lines[3] == ["train", "9.0", "2.0", "100"]


@pytest.mark.slow
def test_a_small_run_writes_its_record(project: Project, tmp_path: Path) -> None:
    output = tmp_path / "record"
    options = ["--sizes", "100", "--train-sizes", "none", "--output", str(output)]
    project.run(sys.executable, "-m", "benchmarks.scale", *options)
    record = json.loads((output / "scale.json").read_text())
    assert [(m["stage"], m["num_reviews"]) for m in record["measurements"]] == [
        (stage, 100) for stage in ("download", "split", "tokenize")
    ]
    assert all(m["seconds"] > 0 and 20 < m["peak_mib"] < 2000 for m in record["measurements"])
    assert record["commit"] == project.git("rev-parse", "HEAD")
    assert (output / "scale.png").stat().st_size > 5000


def test_real_reviews_are_repeated_without_copies(project: Project, tmp_path: Path) -> None:
    path = project.root / "reviews.csv"
    write_real_reviews(write_archive(tmp_path / "a.tar.gz"), 40, path)  # of 16
    change_params(
        project.root,
        {"dataset": "csv", "datasets.csv.paths": ["reviews.csv"], "splits.csv.train": 0.6,
         "splits.csv.validation": 0.2, "splits.csv.test": 0.2},
    )  # fmt: skip
    project.stage("download")
    project.stage("split")
    audit = json.loads((project.root / "metrics/split.json").read_text())
    assert (audit["num_reviews"], audit["copies"]) == (40, 0)
