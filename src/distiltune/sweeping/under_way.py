"""Which sweep is under way in a checkout: one at a time, and others can see how far it is."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from distiltune import InputError
from distiltune.artifacts import read_json, write_json
from distiltune.sweeping.queue import Queue

# Held by a sweep from its beginning to its report; what it runs now.
LOCK, STATE = Path(".dvc/tmp/sweep.lock"), Path(".dvc/tmp/sweep.json")
# Who looks whether there is a sweep holds the lock too, for a moment.
LOCK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """How far the sweep is that runs in this checkout."""

    name: str
    kind: str  # the name, with its shard if it has one, or that it searches rates
    num_done: int
    num_planned: int

    @property
    def sentence(self) -> str:
        what = self.kind if self.kind.startswith(self.name) else f"{self.name} ({self.kind})"
        return (
            f"the sweep {what} is under way: {self.num_done} of {self.num_planned} experiments "
            "are done"
        )


@contextlib.contextmanager
def only_sweep(root: Path) -> Iterator[None]:
    """Keep other sweeps out of a checkout.

    Raises:
        InputError: there is one already.
    """
    lock = FileLock(root / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        found = find_under_way(root)
        raise InputError(
            f"{found.sentence if found else 'another sweep is running in this checkout'}; there is "
            "one at a time in a checkout"
        ) from None
    try:
        yield
    finally:
        (root / STATE).unlink(missing_ok=True)
        lock.release()


def note(root: Path, name: str, kind: str, trials: Iterable[str]) -> None:
    """Let others know what the sweep runs now."""
    write_json(root / STATE, {"name": name, "kind": kind, "trials": list(trials)})


def find_under_way(root: Path) -> UnderWay | None:
    """The sweep that runs in this checkout, if one does."""
    if not (root / STATE).exists():
        return None
    state = read_json(root / STATE)  # first, for a sweep that ends now takes it away
    with contextlib.suppress(Timeout), FileLock(root / LOCK).acquire(timeout=0):
        return None  # its process is gone
    return UnderWay(
        name=state["name"],
        kind=state["kind"],
        num_done=len(Queue(root).finished() & set(state["trials"])),
        num_planned=len(state["trials"]),
    )
