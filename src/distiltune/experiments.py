"""Files of DVC's experiments and of commits, from git and DVC's cache."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from distiltune import InputError

# What runs change in a checkout by themselves.
RESULTS = ("dvc.lock", "metrics/")


def uncommitted(root: Path) -> list[str]:
    """The files that git tracks and that differ from the last commit, results aside.

    Raises:
        InputError: git cannot tell.
    """
    command = ["git", "diff", "--name-only", "-z", "HEAD"]
    result = subprocess.run(  # noqa: S603 (no shell; constant arguments)
        command, cwd=root, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise InputError(f"{' '.join(command)}: {result.stderr.strip()}")
    paths = result.stdout.split("\0")[:-1]
    return sorted(path for path in paths if not path.startswith(RESULTS))


def get_files(root: Path, name: str, wanted: Mapping[str, str], folder: Path) -> str:
    """Copy files of an experiment or a commit; the checkout stays as it is.

    Args:
        root: the main checkout.
        name: of an experiment, a branch, a tag or a commit.
        wanted: by the name that each file gets, its path in the repository.
        folder: where to put them.

    Returns:
        The commit.

    Raises:
        InputError: there is no such experiment, or the cache lacks one of its files.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError
    from scmrepo.exceptions import SCMError

    path = ""
    try:
        files = DVCFileSystem(repo=str(root), rev=name)
        for target, path in wanted.items():
            files.get_file(path, str(folder / target))
        return str(files.repo.get_rev())
    except (RevError, SCMError):
        raise InputError(
            f"{name!r} is no experiment, branch, tag or commit; `dvc exp list` names them"
        ) from None
    except (FileNotFoundError, DvcException):
        raise InputError(
            f"{name}: {path} is neither in git nor in DVC's cache; it has no test results (nor has "
            "what a search for rates tried), or they are gone: `dvc exp pull` brings them where a "
            "remote has them, else run it again"
        ) from None
