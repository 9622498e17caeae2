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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distiltune.artifacts import write_json
from distiltune.runtime import warn

FOLDER = Path(".dvc") / "tmp" / "outbox"  # below the main checkout: git and DVC ignore it
HEADER, ENTRIES, SENT, FILES, LOCK = "header.json", "entries.jsonl", "sent.json", "files", "lock"
# Hidden folders: of the locks by key, of what is half made or half removed, of what is damaged.
LOCKS, HALF, DAMAGED = ".locks", ".half-", ".damaged-"
HALF_SECONDS = 60.0  # after this nobody is at it
# Larger ones are linked instead of copied. What people edit in place is smaller.
MIN_LINKED_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all entries of an outbox share: the run that they are for."""

    store: str  # without credentials
    experiment: str
    key: str  # of the run: our own, since MLflow's id is known only once MLflow has it
    weights: str | None  # sha256; an evaluation knows the run by it too
    is_training: bool
    time: int  # ms since 1970
    name: str
    params: dict[str, Any]
    tags: dict[str, str]
    dataset: str
    dataset_digest: str


class Outbox:
    """Entries in order, and how far they were sent; threads may share one.

    An entry is a JSON table. It is on disk before anybody can send it, but where the disk
    takes no more: then it waits in memory, and is written as soon as that is possible.
    """

    def __init__(self, folder: Path, header: Header, lock: FileLock) -> None:
        self.folder = folder
        self.header = header
        self.run_id: str | None = None  # MLflow's, once there is one
        self.entries: deque[dict[str, Any]] = deque()  # not sent yet, by ascending number
        self.changed = threading.Condition()
        # Who sends holds it: two that send to one run would not see what the other does.
        self.sending = FileLock(folder.parent / LOCKS / f"{header.key}.lock", thread_local=False)
        self._lock = lock
        self._last_sent = 0
        self._num_entries = 0
        self._size = 0
        self._unwritten: list[bytes] = []
        self._num_copies = 0

    @classmethod
    def new(cls, root: Path, header: Header) -> "Outbox":
        """Make one below the main checkout; it is this process's as long as that lives.

        Args:
            root: the main checkout.
            header: what all entries share.

        Raises:
            OSError: the disk does not take it.
        """
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        hidden = root / FOLDER / f"{HALF}{name}"
        hidden.mkdir(parents=True)
        (root / FOLDER / LOCKS).mkdir(exist_ok=True)
        # Locked before others can see it; the lock is the file's, whatever its path.
        lock = FileLock(hidden / LOCK)
        lock.acquire()
        write_json(hidden / HEADER, asdict(header))
        hidden.rename(root / FOLDER / name)
        return cls(root / FOLDER / name, header, lock)

    @classmethod
    def open(cls, folder: Path, lock: FileLock) -> "Outbox":
        """One that a process before has left, as far as it can be read.

        Raises:
            ValueError: it is damaged, or of another version.
            OSError: it cannot be read.
        """
        try:
            header = Header(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
        except TypeError as error:
            raise ValueError(f"{HEADER}: {error}") from None
        found = cls(folder, header, lock)
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):  # then all is sent again
            noted = json.loads((folder / SENT).read_text(encoding="utf-8"))
            found._last_sent, found.run_id = noted["last_sent"], noted["run_id"]
        found.entries = deque(found._read(after=found._last_sent))
        return found

    def append(self, entry: Mapping[str, Any]) -> bool:
        """Add an entry; False if the disk does not take it, and it waits in memory."""
        with self.changed:
            self._num_entries += 1
            numbered = {"number": self._num_entries, **entry}
            # First in memory: a signal between the two must not lose it.
            self.entries.append(numbered)
            self._unwritten.append(json.dumps(numbered).encode() + b"\n")
            is_written = self._write()
            self.changed.notify_all()
        return is_written

    def keep(self, files: Iterable[Path]) -> list[str]:
        """Keep files as they are now, large ones as links; folders with all that is in them.

        Returns:
            Their paths in this folder.

        Raises:
            OSError: the disk does not take them.
        """
        self._num_copies += 1
        folder = self.folder / FILES / str(self._num_copies)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for file in files:
                if file.is_dir():
                    # Without what Python leaves between the sources.
                    leave_out = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(file, folder / file.name, copy_function=_copy, ignore=leave_out)
                else:
                    _copy(file, folder / file.name)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return [str((folder / file.name).relative_to(self.folder)) for file in files]

    def note_sent(self, number: int) -> None:
        """All entries up to this number were sent."""
        with self.changed:
            while self.entries and self.entries[0]["number"] <= number:
                self.entries.popleft()
            self._last_sent = number
        self._note()

    def note_run(self, run_id: str) -> None:
        """MLflow's run, for a process after this one."""
        self.run_id = run_id
        self._note()

    def rewind(self) -> None:
        """Nothing was sent, or the store has lost it."""
        with self.changed:
            waiting = {entry["number"] for entry in self.entries}
            sent = [entry for entry in self._read(after=0) if entry["number"] not in waiting]
            self.entries = deque(sorted([*sent, *self.entries], key=lambda e: int(e["number"])))
            self._last_sent, self.run_id = 0, None

    def last_time(self) -> int:
        """When the last entry was made, in ms since 1970."""
        with self.changed:
            times = [int(entry.get("time", 0)) for entry in self._read(after=0)]
            return max([self.header.time, *times])

    def sync(self) -> bool:
        """Have what was appended on the disk for good, as far as it takes it."""
        with self.changed:
            is_written = self._write()
            with contextlib.suppress(OSError), (self.folder / ENTRIES).open("rb") as file:
                os.fsync(file.fileno())
        return is_written

    def remove(self) -> None:
        """All of it was sent, or nobody wants it."""
        _remove(self.folder)
        self.release()

    def release(self) -> None:
        """Leave it to others."""
        self.sending.release()
        self._lock.release()

    def _read(self, after: int) -> list[dict[str, Any]]:
        """The entries on disk that are whole; the last may have been cut off."""
        file = self.folder / ENTRIES
        if not file.exists():
            return []
        found = []
        *lines, _ = file.read_bytes().split(b"\n")
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["number"] > after:
                    found.append(entry)
            except (ValueError, TypeError, KeyError):
                warn(f"{file}: an entry is damaged, and left out")
        return found

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
        noted = {"last_sent": self._last_sent, "run_id": self.run_id}
        with contextlib.suppress(OSError):
            partial = self.folder / f".{SENT}"
            partial.write_text(json.dumps(noted), encoding="utf-8")
            partial.replace(self.folder / SENT)


def left_behind(root: Path) -> Iterator[Outbox]:
    """The outboxes of processes that are gone, the oldest first; each is the caller's alone.

    One that cannot be read is put aside with a warning.

    Args:
        root: the main checkout.
    """
    for half in (root / FOLDER).glob(f"{HALF}*"):
        # One that is being made is locked a moment later.
        if _age_seconds(half) > HALF_SECONDS and (lock := _locked(half)) is not None:
            shutil.rmtree(half, ignore_errors=True)
            lock.release()
    for folder in sorted((root / FOLDER).glob("[!.]*")):
        lock = _locked(folder)
        if lock is None:
            continue
        try:
            found = Outbox.open(folder, lock)
            found.sending.acquire(timeout=0)
        except Timeout:  # an attempt after it is under way, which will send it
            lock.release()
        except FileNotFoundError:  # another process has removed it, and the lock made it anew
            _remove(folder)
            lock.release()
        except (ValueError, OSError) as error:
            aside = folder.with_name(f"{DAMAGED}{folder.name}")
            warn(f"{folder} cannot be read: {error}; what it held is now in {aside}")
            with contextlib.suppress(OSError):
                folder.rename(aside)
            lock.release()
        else:
            yield found


def is_empty(root: Path) -> bool:
    """Whether there is none, of whatever process."""
    return not any((root / FOLDER).glob("[!.]*"))


def _locked(folder: Path) -> FileLock | None:
    """The folder's lock, unless a process has it."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):  # in use; or just removed by another process
        return None
    return lock


def _remove(folder: Path) -> None:
    gone = folder.with_name(f"{HALF}{folder.name}")
    with contextlib.suppress(OSError):  # then it is sent once more, which changes nothing
        folder.rename(gone)  # at once, so that nobody finds a part of it
        shutil.rmtree(gone, ignore_errors=True)


def _age_seconds(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _copy(source: str | Path, target: str | Path) -> None:
    if Path(source).stat().st_size >= MIN_LINKED_BYTES:
        # A file that DVC takes into its cache stays what it is under both names.
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(Path(source).resolve(), target)
            return
    shutil.copy(source, target)
