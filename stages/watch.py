"""Notices when a file of `dataset: csv` changes: DVC runs this each time, and it is quick.

There is a stage for each file, and each writes the digests of all, so that none is left of
a file that is not listed any more.
"""

import shutil
from pathlib import Path

from distiltune.artifacts import new_folder, sha256_of
from distiltune.config import WatchConfig, load
from distiltune.own_files import find_file
from distiltune.runtime import project_root, run_stage


def main() -> None:
    config = load(WatchConfig)
    for old in list(Path("inputs/csv").rglob("*.watched")):
        shutil.rmtree(old)
    for path in config.paths:
        # An empty folder does not count for DVC: `download` reads no file then.
        with new_folder(Path("inputs/csv") / f"{path.lstrip('/')}.watched") as folder:
            if config.dataset == "csv":
                digest = sha256_of(find_file(path, project_root()))
                (folder / "sha256").write_text(digest + "\n")


if __name__ == "__main__":
    run_stage(main)
