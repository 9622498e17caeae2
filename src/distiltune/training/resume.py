"""Training states on disk ("checkpoints" elsewhere), from which an ended training goes on.

A state is one safetensors file: its tensors, and the rest as JSON in the metadata. Its name
ends with its own CRC-32, so a damaged one shows (a sha256 would take longer than the writing);
it is written aside, synced and renamed, by a thread of its own.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open

from distiltune.artifacts import write_json
from distiltune.config import ResumeTable
from distiltune.replicas import ALONE, Replicas
from distiltune.runtime import warn
from distiltune.training.statefile import checksum_of, write_state_file

FOLDER = Path(".dvc") / "tmp" / "resume"  # below the main checkout: git and DVC ignore it
RUN_FILE = "run.json"
NUM_KEPT = 2
DIGEST_LENGTH = 16
# After this, what a training left is removed: one that was cut off, and one that was not.
MAX_AGE_SECONDS = 7 * 24 * 3600.0
MAX_AGE_OF_FINISHED_SECONDS = 600.0


class ResumePoints:
    """The saved states of one training, which its fingerprint names.

    They outlive the stage until DVC has recorded its outputs: before that, a kill loses
    those, and the stage runs again. `evaluate`, which DVC starts after that, removes them.
    """

    def __init__(
        self, root: Path, fingerprint: str, table: ResumeTable, replicas: Replicas = ALONE
    ) -> None:
        """Find what an earlier attempt has left.

        Args:
            root: the main checkout.
            fingerprint: of all that the training is made of.
            table: how often to save; with both numbers null nothing is saved or found.
            replicas: of these the first finds and saves, and the others read what it has found.

        Raises:
            LostProcessError: another process has ended.
        """
        self.table = table
        self.folder = root / FOLDER / fingerprint[:DIGEST_LENGTH]
        self._run: tuple[str, float] | None = None  # in MLflow: its key, and when it began
        self.is_enabled = table.every_seconds is not None or table.every_steps is not None
        self.found: dict[str, Any] | None = None
        self._last_save = time.monotonic()
        self._copies: list[torch.Tensor] = []
        self._write: Future[bool] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resume")
        if not replicas.is_first:
            self.is_enabled = False
            number = replicas.from_first(0)
            self.found = _read(next(self.folder.glob(f"{number:06d}-*"))) if number else None
            return
        if self.is_enabled:
            self._find()
        replicas.from_first(_number(self._files()[0]) if self.found else 0)

    def _find(self) -> None:
        _remove_old(self.folder.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            warn("the same training is under way in another process; this one keeps no states")
            self.is_enabled = False
            return
        with contextlib.suppress(FileNotFoundError, ValueError):
            earlier = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
            if earlier["record"] and _is_recorded(earlier["record"]):
                self._clear()  # it is done once more, because somebody wants that
            else:
                self._run = earlier["run"], earlier["started"]
        self.found = self._read_newest()

    def note_run(self, key: str, started: float) -> tuple[str, float]:
        """Remember the run in MLflow, for an attempt after this one.

        Args:
            key: of a new one.
            started: when it began, in seconds since 1970.

        Returns:
            These, or those of an attempt before this one.
        """
        self._run = self._run or (key, started)
        self._write_run(None)
        return self._run

    def _write_run(self, metrics: Path | None) -> None:
        """Note the run; and once the stage is done, by which file DVC's record shows that."""
        if self.is_enabled and self._run is not None:
            record = hashlib.md5(metrics.read_bytes()).hexdigest() if metrics else None  # noqa: S324 (as DVC does)
            key, started = self._run
            write_json(self.folder / RUN_FILE, {"run": key, "started": started, "record": record})

    def is_due(self, step: int) -> bool:
        """Whether it is time to save after a step. One write at a time, by the clock."""
        if not self.is_enabled:
            return False
        if self.table.every_steps is not None and step % self.table.every_steps == 0:
            return True
        every = self.table.every_seconds
        is_busy = self._write is not None and not self._write.done()
        return every is not None and not is_busy and time.monotonic() - self._last_save >= every

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Copy a state, and write the copy in the background.

        Args:
            step: the training's, for the file's name.
            state: of tables, lists, numbers, text and tensors.
        """
        if not self.is_enabled:
            return
        self.wait()
        packer = _Packer(self._copies)
        packed = json.dumps(packer.pack(state))
        self._copies = list(packer.tensors.values())
        self._write = self._writer.submit(self._save, step, packed, packer.tensors)
        self._last_save = time.monotonic()

    def wait(self) -> bool:
        """Wait for what is being written; whether it is on the disk now."""
        return self._write is not None and self._write.result()

    def finish(self, metrics: Path) -> None:
        """The stage has succeeded. Without DVC that is all; with it, wait for its record."""
        self.wait()
        self._copies.clear()
        if "DVC_ROOT" in os.environ:
            self._write_run(metrics)
        else:
            self.remove()

    def remove(self) -> None:
        """The states are of no more use."""
        self.wait()
        if self.is_enabled:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()

    def _clear(self) -> None:
        for file in [self.folder / RUN_FILE, *self._files()]:
            file.unlink(missing_ok=True)

    def _save(self, step: int, packed: str, tensors: dict[str, torch.Tensor]) -> bool:
        number = max((_number(file) for file in self._files()), default=0) + 1
        partial = self.folder / ".partial"
        try:
            checksum = write_state_file(partial, tensors, {"state": packed})
            name = f"{number:06d}-step-{step}-{checksum}.safetensors"
            partial.rename(self.folder / name)
            _sync_folder(self.folder)
        # A full disk, say, must not end the training.
        except OSError as error:
            partial.unlink(missing_ok=True)  # the rest of the training needs the space
            warn(f"no state saved at step {step}: {error}; the training goes on")
            return False
        for old in self._files()[NUM_KEPT:]:
            old.unlink(missing_ok=True)
        return True

    def _files(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("*-step-*.safetensors"), reverse=True)

    def _read_newest(self) -> dict[str, Any] | None:
        for file in self._files():
            if checksum_of(file) != file.stem.rpartition("-")[2]:
                warn(f"{file}: damaged; taking the state before it")
                file.unlink()
                continue
            return _read(file)
        return None


def _number(file: Path) -> int:
    return int(file.name[:6])


def _read(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        packed = json.loads(opened.metadata()["state"])
        state: dict[str, Any] = _unpack(packed, cache(opened.get_tensor))
        return state


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's generators."""
    numpy_state: Any = np.random.get_state(legacy=False)
    key = numpy_state["state"].pop("key").tolist()
    # Of the device in use alone: to ask another one takes memory there.
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "key": key},
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go back to what `random_state` gave."""
    random.setstate(state["python"])
    numpy_state = dict(state["numpy"])
    key = np.array(numpy_state.pop("key"), dtype=np.uint32)
    np.random.set_state({**numpy_state, "state": {**numpy_state["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


def fingerprint_of(facts: Mapping[str, Any], pretrained: str | None) -> str:
    """The sha256 of all that a training is made of.

    Args:
        facts: params, versions, digests of code and data.
        pretrained: the sha256 of the weights that it starts from, if they are not random.
    """
    text = json.dumps([facts, pretrained], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Packer:
    """Makes JSON of a state, and copies its tensors, each once.

    It copies into the copies before, as new memory takes longer than the copying.
    """

    def __init__(self, copies: list[torch.Tensor]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._free = defaultdict[tuple[torch.dtype, torch.Size], list[torch.Tensor]](list)
        for copy in copies:
            self._free[copy.dtype, copy.shape].append(copy)

    def pack(self, value: Any) -> Any:
        """What JSON has no word for becomes a table with one key."""
        if isinstance(value, torch.Tensor):
            # Two that share their memory do so again where they are read.
            place = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
            name = self._names.setdefault(place, str(len(self._names)))
            if name not in self.tensors:
                fitting = self._free[value.dtype, value.shape]
                copy = fitting.pop() if fitting else torch.empty(value.shape, dtype=value.dtype)
                self.tensors[name] = copy.copy_(value.detach())
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"table": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.pack(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{type(value).__name__} in a training's state")


def _unpack(value: Any, get_tensor: Callable[[str], torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return get_tensor(content)
    if kind == "table":
        return {_unpack(k, get_tensor): _unpack(v, get_tensor) for k, v in content}
    items = [_unpack(item, get_tensor) for item in content]
    return items if kind == "list" else tuple(items)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget(root: Path, fingerprint: str) -> None:
    """Remove the states of a training whose outputs DVC has recorded."""
    shutil.rmtree(root / FOLDER / fingerprint[:DIGEST_LENGTH], ignore_errors=True)


def _is_recorded(digest: str) -> bool:
    """Whether DVC has recorded a file with this MD5 as an output, here."""
    lock = Path("dvc.lock")
    return lock.exists() and digest in lock.read_text(encoding="utf-8")


def _remove_old(folder: Path) -> None:
    now = time.time()
    for left in folder.glob("*"):
        with contextlib.suppress(OSError, ValueError):  # another process may do the same
            times = [file.stat().st_mtime for file in [left, *left.glob("*")]]
            run = left / RUN_FILE
            is_finished = run.exists() and json.loads(run.read_text(encoding="utf-8"))["record"]
            age = MAX_AGE_OF_FINISHED_SECONDS if is_finished else MAX_AGE_SECONDS
            if now - max(times) > age:
                shutil.rmtree(left, ignore_errors=True)
