"""Brings the reviews in as one table: from the archive, a generator, or your files."""

from pathlib import Path

from distiltune import sample
from distiltune.config import CsvRow, DownloadConfig, ImdbRow, load
from distiltune.dataset import write_table, write_unlabelled
from distiltune.imdb import download_imdb
from distiltune.own_files import import_files
from distiltune.runtime import project_root, run_stage

OUTPUT = Path("data/reviews.parquet")
UNLABELLED = Path("data/unlabelled.parquet")


def main() -> None:
    source = load(DownloadConfig).source
    if isinstance(source, ImdbRow):
        download_imdb(source, project_root(), OUTPUT, UNLABELLED)
        return
    if isinstance(source, CsvRow):
        import_files(source, project_root(), OUTPUT)
    else:
        texts, labels = sample.generate_reviews(source.num_reviews, source.seed)
        write_table(OUTPUT, texts, labels, sample.SAMPLE_INFO)
    write_unlabelled(UNLABELLED, [])


if __name__ == "__main__":
    run_stage(main)
