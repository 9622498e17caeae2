"""Notices when a file of `dataset: csv` changes: DVC runs this each time, and it is quick.

There is a stage for each file, and each writes the digests of all, so that none is left of
a file that is not listed any more.
"""

from pathlib import Path

from distiltune.artifacts import new_folder, sha256_of
from distiltune.config import WatchConfig, load
from distiltune.dataset import find_file
from distiltune.runtime import project_root, run_stage


def main() -> None:
    config = load(WatchConfig)
    with new_folder(Path("inputs/csv")) as folder:
        for path in config.paths:
            # An empty folder does not count for DVC: `download` reads no file then.
            watched = folder / f"{path.lstrip('/')}.watched"
            watched.mkdir(parents=True)
            if config.dataset == "csv":
                digest = sha256_of(find_file(path, project_root()))
                (watched / "sha256").write_text(digest + "\n")


if __name__ == "__main__":
    run_stage(main)
