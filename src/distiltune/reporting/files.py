"""The files of a run that its page shows: of this checkout, or of an experiment."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distiltune import InputError
from distiltune.artifacts import RUN_FILE, SUMMARY_FILE
from distiltune.experiments import get_files, uncommitted
from distiltune.training.history import EPOCHS_FILE, STEPS_FILE

LOCK_FILE = "dvc.lock"
PICTURES = ("confusion.png", "roc.png", "calibration.png")
# By the name that each gets, where it is and which stage writes it.
FILES = {
    "split.json": ("metrics/split.json", "split"),
    RUN_FILE: (f"data/model/{RUN_FILE}", "train"),
    SUMMARY_FILE: (f"data/history/{SUMMARY_FILE}", "train"),
    STEPS_FILE: (f"data/history/{STEPS_FILE}", "train"),
    EPOCHS_FILE: (f"data/history/{EPOCHS_FILE}", "train"),
    "test.json": ("metrics/test.json", "evaluate"),
    "mistakes.json": ("data/mistakes.json", "evaluate"),
    **{name: (f"data/plots/{name}", "evaluate") for name in PICTURES},
    LOCK_FILE: (LOCK_FILE, "evaluate"),
}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run's files are from."""

    source: str  # for the reader
    commit: str
    warnings: tuple[str, ...]


def copy_workspace(root: Path, folder: Path) -> Origin:
    """Copy the files of the run in the checkout, which must belong together.

    Raises:
        InputError: a file is missing, or was changed since a stage read or wrote it; the message
            names the stage to run.
    """
    if not (root / "dvc.yaml").is_file():
        raise InputError(f"{root}: no dvc.yaml here; run from the project's root")
    for name, (path, stage) in FILES.items():
        if not (root / path).is_file():
            raise InputError(
                f"{path}: no such file; `dvc checkout` brings it back where DVC has it, "
                f"`dvc repro {stage}` makes it"
            )
        shutil.copyfile(root / path, folder / name)
    with _dvc(root) as repository:
        status = repository.status(targets=["evaluate"], with_deps=True)
        # What is wrong with a stage comes before what that does to those behind it.
        # It looks at all of params.yaml, and what it writes says nothing of a run.
        status.pop("check-params", None)
        order = list(yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
        stages = sorted(status, key=lambda stage: order.index(stage.partition("@")[0]))
        warnings = _check_status({stage: status[stage] for stage in stages})
        commit = repository.get_rev()
    if own := uncommitted(root):
        commit = f"{commit}, and changes that are not committed in {', '.join(own)}"
    return Origin(source="the files of this checkout", commit=commit, warnings=tuple(warnings))


def copy_experiment(root: Path, name: str, folder: Path) -> Origin:
    """Copy the files of an experiment or a commit.

    Raises:
        InputError: there is no such experiment, or the cache lacks one of its files.
    """
    commit = get_files(root, name, {target: path for target, (path, _) in FILES.items()}, folder)
    return Origin(source=f"DVC's experiment, or commit, {name}", commit=commit, warnings=())


@contextlib.contextmanager
def _dvc(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        with Repo(str(root)) as repository:
            yield repository
    except LockError:
        raise InputError("another DVC command is at work here; wait until it has ended") from None
    except (DvcException, SCMError) as error:
        raise InputError(f"DVC cannot tell the state of this checkout: {error}") from None


def _check_status(status: Mapping[str, Any]) -> list[str]:
    """What to warn of: a run of earlier params or code is a run, a mixture of two is none.

    Args:
        status: what `dvc status` tells, by stage, in the pipeline's order.

    Raises:
        InputError: data changed behind a stage's back.
    """
    warnings = []
    for stage, entries in status.items():
        causes: list[str] = []
        # Beside tables there may be words, as of a stage that always runs.
        for entry in (entry for entry in entries if isinstance(entry, Mapping)):
            for path, change in entry.get("changed outs", {}).items():
                if change == "modified":
                    raise InputError(
                        f"{path}: not what stage {stage} wrote; `dvc checkout` brings it back, "
                        f"`dvc repro {stage}` makes it again"
                    )
            for path, change in entry.get("changed deps", {}).items():
                if path.startswith("data/"):
                    if change == "modified":
                        raise InputError(
                            f"{path}: not what stage {stage} read, whose results are of another "
                            f"run; `dvc repro {stage}` makes them again"
                        )
                elif isinstance(change, Mapping):
                    causes += change
                else:
                    causes.append(path)
        if causes:
            warnings.append(
                f"stage {stage} is out of date, and this is the run before; changed since: "
                f"{', '.join(causes)}; `dvc repro` runs it again"
            )
    return warnings
