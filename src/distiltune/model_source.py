"""Where the model is: a folder, or MLflow's runs and registry."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from distiltune import InputError, store
from distiltune.artifacts import (
    RUN_FILE,
    SUMMARY_FILE,
    WAY_OUT,
    WEIGHTS_FILE,
    read_json,
    sha256_of,
)
from distiltune.config import load_params
from distiltune.runtime import warn
from distiltune.sending import WEIGHTS_TAG

# What the pipeline writes, and the record that holds the checksum of its weights.
MODEL, HISTORY = Path("data/model"), Path("data/history")
# MLflow's own terms: a run, a version or an alias in its registry, a logged model.
FORMS = "a folder, runs:/ID, models:/NAME/VERSION or models:/NAME@ALIAS"
RUN = re.compile(r"runs:/[^/]+(?:/model)?/?")
REGISTERED = re.compile(r"models:/[^/@]+(?:[/@][^/@]+)?/?")


@contextlib.contextmanager
def model_folder(source: str | None, root: Path) -> Iterator[Path]:
    """The folder of a model; one of MLflow's is there as long as the block runs.

    Args:
        source: one of `FORMS` (`runs:/ID/model` and `models:/m-ID` are MLflow's longer names),
            or `None` for the pipeline's, with a warning where params.yaml asks for another.
        root: the main checkout, for MLflow's store.

    Raises:
        InputError: there is no such model, or the pipeline's is damaged.
    """
    if source is None:
        yield _own_model(root)
        return
    if not re.match(r"\w+:/", source):
        yield Path(source)
        return
    if not RUN.fullmatch(source) and not REGISTERED.fullmatch(source):
        raise InputError(f"--model: {source}: must be {FORMS}")
    uri = source.rstrip("/")
    if uri.startswith("runs:/") and not uri.endswith("/model"):
        uri += "/model"
    with tempfile.TemporaryDirectory() as folder:
        yield store.download_model(root, uri, Path(folder))


def _own_model(root: Path) -> Path:
    folder, record = root / MODEL, root / HISTORY / SUMMARY_FILE
    if not folder.is_dir():
        raise InputError(
            f"{folder}: there is no model; `dvc repro` trains one, `dvc checkout` brings back the "
            "last one where a training has failed or is under way, `dvc pull` may have one, and "
            f"--model takes {FORMS}"
        )
    if record.is_file() and (folder / WEIGHTS_FILE).is_file():
        expected = read_json(record)[WEIGHTS_TAG]
        if (found := sha256_of(folder / WEIGHTS_FILE)) != expected:
            raise InputError(
                f"{folder / WEIGHTS_FILE}: damaged, or not of the training in {record.parent}: its "
                f"sha256 is {found}, not {expected}; {WAY_OUT}"
            )
    _warn_of_other_params(folder, root / "params.yaml")
    return folder


def _warn_of_other_params(folder: Path, params_file: Path) -> None:
    """Say so where the model is not the one that the params ask for."""
    # A mistake in the params, or in the folder's record, is told by who needs them.
    with contextlib.suppress(InputError):
        wanted, facts = load_params(params_file), read_json(folder / RUN_FILE)
        found = facts.get("params") if isinstance(facts, dict) else None
        if not isinstance(found, dict):
            return
        differing = [
            f"{name}: {found[name]}, not {getattr(wanted, name)}"
            for name in ("dataset", "model", "optimizer")
            if name in found and found[name] != getattr(wanted, name)
        ]
        if differing:
            warn(
                f"{folder}: is an earlier model, of other settings than those of params.yaml "
                f"({'; '.join(differing)}); `dvc repro` trains that one"
            )
