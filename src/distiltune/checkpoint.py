"""Brings a pretrained checkpoint into the project: from the hub, or a local folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from distiltune import InputError
from distiltune.artifacts import (
    WAY_OUT,
    WEIGHTS_FILE,
    new_folder,
    read_json,
    sha256_of,
    write_json,
)
from distiltune.config import CheckpointRow

# Weights in one format that holds no code, and what the tokenizer is made of.
FILES = (
    WEIGHTS_FILE,
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
ANSWER_TIMEOUT_SECONDS = 10
SOURCE_FILE = "source.json"  # where the weights beside it are from
HISTORY_FOLDER = "history"  # of an adaptation, beside its weights


def bring_checkpoint(model: str, row: CheckpointRow | None, root: Path, output: Path) -> None:
    """Put weights, config and tokenizer into `output`, with `source.json` on where from.

    Args:
        model: the row's name in `models`, for errors.
        row: where from; `None` leaves `output` with its `source.json` alone, for a
            model that starts from random weights.
        root: what a relative `folder` is relative to.
        output: the folder to write.

    Raises:
        InputError: the hub or the folder does not give the files, the weights do not
            have the pinned checksum, or the checkpoint wants code of its own to run.
    """
    where = f"models.{model}.checkpoint"
    with new_folder(output) as partial:
        if row is None:
            write_json(partial / SOURCE_FILE, {"model": model, "weights": "random"})
            return
        source = {"model": model, "sha256": row.sha256}
        if row.folder is not None:
            source["folder"] = row.folder
            _copy_folder(root / row.folder, partial, where)
        else:
            source |= {"repository": str(row.repository), "revision": str(row.revision)}
            _download(row, partial, where)
        _check(partial, row, where)
        write_json(partial / SOURCE_FILE, source)


def note_no_adaptation(model: str, output: Path) -> None:
    """Leave `output` with a note that the training starts from what it would start from."""
    with new_folder(output) as partial:
        write_json(partial / SOURCE_FILE, {"model": model, "weights": "not adapted"})


def read_adaptation(folder: Path) -> dict[str, Any] | None:
    """What the stage `adapt` says of its weights; `None` where there are none.

    That it has run is DVC's to see to: who runs the stages by hand may leave it out.

    Raises:
        InputError: what it says is damaged.
    """
    if not folder.exists():
        return None
    source: dict[str, Any] = read_json(folder / SOURCE_FILE)
    return source if source["weights"] == "adapted" else None


def checked_weights(folder: Path) -> str:
    """The sha256 of the weights that `bring_checkpoint`, or an adaptation, put there.

    Raises:
        InputError: they are others than it found.
    """
    expected = read_json(folder / SOURCE_FILE)["sha256"]
    if (found := sha256_of(folder / WEIGHTS_FILE)) != expected:
        raise InputError(
            f"{folder / WEIGHTS_FILE}: damaged: its sha256 is {found}, not {expected}; {WAY_OUT}"
        )
    return found


def _copy_folder(folder: Path, output: Path, where: str) -> None:
    if not folder.is_dir():
        raise InputError(f"{where}.folder: {folder} is no folder")
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)


def _download(row: CheckpointRow, output: Path, where: str) -> None:
    # Only here: half of this stage's start, and a model from a folder or from scratch has no use
    # for it.
    from huggingface_hub import snapshot_download

    # The base error of whichever HTTP client the hub's library uses.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # not re-exported

    try:
        snapshot_download(
            str(row.repository),
            revision=row.revision,
            local_dir=output,
            allow_patterns=list(FILES),
            etag_timeout=ANSWER_TIMEOUT_SECONDS,
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{where}: cannot download {row.repository} at {row.revision}: {reason}\n"
            f"without a network, name a folder that holds the checkpoint: {where}.folder=FOLDER; "
            "or take a model that needs none: -S model=tiny"
        ) from None
    shutil.rmtree(output / ".cache", ignore_errors=True)


def _check(folder: Path, row: CheckpointRow, where: str) -> None:
    source = row.folder or row.repository
    for name in (WEIGHTS_FILE, "config.json"):
        if not (folder / name).exists():
            raise InputError(
                f"{where}: {source} has no {name}; only safetensors in one file are taken"
            )
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise InputError(f"{where}: {source} has no tokenizer (tokenizer.json or vocab.txt)")
    found = sha256_of(folder / WEIGHTS_FILE)
    if found != row.sha256:
        raise InputError(
            f"{where}.sha256: {WEIGHTS_FILE} of {source} has the sha256 {found}, not {row.sha256}; "
            "if you trust it, set the former"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{where}: config.json of {source} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{where}: config.json of {source} must hold a table")
    if "auto_map" in config:
        raise InputError(
            f"{where}: {source} wants to run code of its own (auto_map in its config.json); "
            "only architectures that transformers has are taken"
        )
