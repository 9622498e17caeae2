"""What is to be logged to MLflow, on disk until it was: one folder for each process that logs."""

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distiltune.artifacts import write_json

FOLDER = Path(".dvc") / "tmp" / "outbox"  # below the main checkout: git and DVC ignore it
HEADER, ENTRIES, SENT, FILES, LOCK = "header.json", "entries.jsonl", "sent.json", "files", "lock"


class Outbox:
    """Entries in order, and how many of them were sent; threads may share one.

    An entry is a JSON table. It is on disk before anybody can send it, but where the disk
    takes no more: then it waits in memory, and is written as soon as that is possible.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], lock: FileLock) -> None:
        self.folder = folder
        self.header = header
        self.run_id: str | None = None  # MLflow's, once there is one
        self.entries: deque[dict[str, Any]] = deque()  # not sent yet
        self.num_sent = 0
        self.changed = threading.Condition()
        self._lock = lock
        self._size = 0
        self._unwritten: list[bytes] = []
        self._num_copies = 0

    @classmethod
    def new(cls, root: Path, header: Mapping[str, Any]) -> "Outbox":
        """Make one below the main checkout; it is this process's as long as that lives.

        Args:
            root: the main checkout.
            header: what all entries share.

        Raises:
            OSError: the disk does not take it.
        """
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        hidden = root / FOLDER / f".{name}"
        hidden.mkdir(parents=True)
        # Locked before others can see it; the lock is the file's, whatever its path.
        lock = FileLock(hidden / LOCK)
        lock.acquire()
        write_json(hidden / HEADER, header)
        hidden.rename(root / FOLDER / name)
        return cls(root / FOLDER / name, header, lock)

    def append(self, entry: Mapping[str, Any]) -> bool:
        """Add an entry; False if the disk does not take it, and it waits in memory."""
        with self.changed:
            self._unwritten.append(json.dumps(entry).encode() + b"\n")
            is_written = self._write()
            self.entries.append(dict(entry))
            self.changed.notify_all()
        return is_written

    def keep(self, files: Iterable[Path]) -> list[str]:
        """Keep files as they are now, as links where that is possible; folders with all in them.

        Returns:
            Their paths in this folder.

        Raises:
            OSError: the disk does not take them.
        """
        self._num_copies += 1
        folder = self.folder / FILES / str(self._num_copies)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file.is_dir():
                # Without what Python leaves between the sources.
                leave_out = shutil.ignore_patterns("__pycache__")
                shutil.copytree(file, folder / file.name, copy_function=_link, ignore=leave_out)
            else:
                _link(file, folder / file.name)
        return [str((folder / file.name).relative_to(self.folder)) for file in files]

    def note_sent(self, number: int) -> None:
        """The first so many entries were sent."""
        with self.changed:
            for _ in range(number):
                self.entries.popleft()
            self.num_sent += number
            self._note()

    def note_run(self, run_id: str) -> None:
        """MLflow's run, for a process after this one."""
        self.run_id = run_id
        self._note()

    def rewind(self) -> None:
        """Nothing was sent, or the store has lost it."""
        with self.changed:
            every = _read_entries(self.folder / ENTRIES)
            self.entries = deque(every[: self.num_sent]) + self.entries
            self.num_sent, self.run_id = 0, None

    def sync(self) -> bool:
        """Have what was appended on the disk for good, as far as it takes it."""
        with self.changed:
            is_written = self._write()
            with contextlib.suppress(OSError), (self.folder / ENTRIES).open("rb") as file:
                os.fsync(file.fileno())
        return is_written

    def remove(self) -> None:
        """All of it was sent."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def release(self) -> None:
        """Leave it to others."""
        self._lock.release()

    def _write(self) -> bool:
        content = b"".join(self._unwritten)
        try:
            with (self.folder / ENTRIES).open("ab") as file:
                file.truncate(self._size)  # half an entry that an earlier try has left
                file.write(content)
        except OSError:
            return False
        self._size += len(content)
        self._unwritten.clear()
        return True

    def _note(self) -> None:
        # What is sent once more for want of this is recognized there.
        with contextlib.suppress(OSError):
            write_json(self.folder / SENT, {"num_sent": self.num_sent, "run_id": self.run_id})


def left_behind(root: Path) -> Iterator[Outbox]:
    """The outboxes of processes that are gone, the oldest first; each is the caller's alone.

    Args:
        root: the main checkout.
    """
    for folder in sorted((root / FOLDER).glob("[!.]*")):
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # in use; or just removed by another process
            continue
        found = _open(folder, lock)
        if found is None:
            lock.release()
        else:
            yield found


def is_empty(root: Path) -> bool:
    """Whether there is none, of whatever process."""
    return not any((root / FOLDER).glob("[!.]*"))


def _open(folder: Path, lock: FileLock) -> Outbox | None:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError:  # another process has sent and removed it meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        return None
    found = Outbox(folder, header, lock)
    with contextlib.suppress(FileNotFoundError):
        noted = json.loads((folder / SENT).read_text(encoding="utf-8"))
        found.num_sent, found.run_id = noted["num_sent"], noted["run_id"]
    found.entries = deque(_read_entries(folder / ENTRIES)[found.num_sent :])
    return found


def _read_entries(file: Path) -> list[dict[str, Any]]:
    """All that are whole: the last may have been cut off."""
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def _link(source: str | Path, target: str | Path) -> None:
    # A file that DVC takes into its cache stays what it is under both names.
    try:
        os.link(Path(source).resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copy(source, target)
