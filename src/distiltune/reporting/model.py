"""One finished run as its page shows it."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distiltune import InputError
from distiltune.artifacts import RUN_FILE, SUMMARY_FILE, read_json
from distiltune.reporting.files import (
    FILES,
    LOCK_FILE,
    PICTURES,
    Origin,
    copy_experiment,
    copy_workspace,
)
from distiltune.training.history import read_metrics

# What older versions did not write.
NEEDED = {
    RUN_FILE: ("params", "tags", "code_digest", "dataset_digest"),
    SUMMARY_FILE: ("started", "ended", "num_tokens", "peak_memory_bytes", "train_seconds"),
    "test.json": ("accuracy_low", "accuracy_by_length", "confusion_matrix"),
    "mistakes.json": ("columns", "data"),
    "split.json": ("train", "validation", "test"),
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a stage wrote, as DVC knows it."""

    stage: str
    path: str
    digest: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """All that there is to show; the figures as the stages wrote them."""

    origin: Origin
    facts: Mapping[str, Any]  # run.json: params, versions, digests
    split: Mapping[str, Any]  # the audit
    summary: Mapping[str, Any]  # the metrics of the train stage
    test: Mapping[str, Any]  # the metrics of the evaluate stage
    steps: Sequence[dict[str, float]]
    epochs: Sequence[dict[str, float]]
    mistakes: Sequence[Sequence[Any]]  # text, label, predicted class, its probability
    outputs: Sequence[Output]
    pictures: Mapping[str, Path]  # by the file's name


@contextlib.contextmanager
def open_run(root: Path, experiment: str | None) -> Iterator[FinishedRun]:
    """A run; its pictures are there as long as the block lasts.

    Args:
        root: the main checkout.
        experiment: of DVC, or a commit; by default what is in the checkout.

    Raises:
        InputError: files are missing, damaged, or of different runs.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if experiment is None:
            origin = copy_workspace(root, folder)
        else:
            origin = copy_experiment(root, experiment, folder)
        yield _read(folder, origin)


def _read(folder: Path, origin: Origin) -> FinishedRun:
    content = {}
    for name, keys in NEEDED.items():
        content[name] = read_json(folder / name)
        if missing := [key for key in keys if key not in content[name]]:
            path, stage = FILES[name]
            raise InputError(
                f"{path}: has no {missing[0]}, it is of an older version; `dvc repro {stage}` "
                "makes it again"
            )
    steps, epochs = read_metrics(folder)
    return FinishedRun(
        origin=origin,
        facts=content[RUN_FILE],
        split=content["split.json"],
        summary=content[SUMMARY_FILE],
        test=content["test.json"],
        steps=steps,
        epochs=epochs,
        mistakes=content["mistakes.json"]["data"],
        outputs=_outputs(folder / LOCK_FILE),
        pictures={name: folder / name for name in PICTURES},
    )


def _outputs(lock: Path) -> list[Output]:
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    return [
        Output(stage=stage, path=out["path"], digest=out["md5"], num_bytes=out["size"])
        for stage, entry in stages.items()
        for out in entry.get("outs", [])
    ]
