"""Divides the reviews into training, validation and test, and audits the splits."""

from pathlib import Path

from distiltune.artifacts import new_folder, write_json
from distiltune.config import SplitConfig, load
from distiltune.runtime import run_stage
from distiltune.splitting import split_reviews


def main() -> None:
    config = load(SplitConfig)
    with new_folder(Path("data/splits")) as folder:
        audit = split_reviews(Path("data/reviews.parquet"), config.dataset, config.split, folder)
    write_json(Path("metrics/split.json"), audit)


if __name__ == "__main__":
    run_stage(main)
