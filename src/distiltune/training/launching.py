"""Starts the processes of a training, waits for them, and hands signals on.

`torchrun` can do it too, from outside or as `DISTILTUNE_LAUNCHER`. On one machine this one
opens no port: torchrun's rendezvous listens on all interfaces.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distiltune import InputError

LAUNCHER_VARIABLE = "DISTILTUNE_LAUNCHER"
STORE_VARIABLE = "DISTILTUNE_STORE"  # the file by which processes find each other
PARENT_VARIABLE = "DISTILTUNE_PARENT"  # the process that started them, with which they end
LOST_STATUS = os.EX_TEMPFAIL  # of a process that ended because another one had
# So long may the first process take to end by itself after another one has ended.
GRACE_SECONDS = 60.0
# And another one, to say why it has, after the first one could not reach it.
SECONDS_TO_TELL = 10.0
POLL_SECONDS = 0.05
# Still there, done, or ended with all the others as they were asked to, by SIGINT or SIGTERM.
NO_FAILURE = (None, 0, 130, 143)


def is_started() -> bool:
    """Whether this process is one of several, by the variables that torchrun sets.

    Some platforms set them for one process too.
    """
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def launch(module: str, num: int) -> None:
    """Run a module in that many processes, on this machine or by `DISTILTUNE_LAUNCHER`.

    SIGINT and SIGTERM go to the first of them, which tells the others.

    Args:
        module: as after `python -m`.
        num: how many.

    Raises:
        InputError: the launcher is no command.
        SystemExit: they failed, or were asked to end; the first one's status.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE, "").strip()
    with tempfile.TemporaryDirectory(prefix="distiltune-") as name:
        folder = Path(name)
        asked: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: asked.append(number))
        if launcher:
            processes = [_start_launcher(launcher, module)]
        else:
            processes = [_start(module, rank, num, folder) for rank in range(num)]
        status = _wait(processes, asked, folder)
    if status:
        sys.exit(status)


def _start(module: str, rank: int, num: int, folder: Path) -> subprocess.Popen[bytes]:
    local = {
        "RANK": str(rank),
        "WORLD_SIZE": str(num),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num),
        STORE_VARIABLE: str(folder / "store"),
        PARENT_VARIABLE: str(os.getpid()),
    }
    loopback = "lo" if sys.platform == "linux" else "lo0"
    usual = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    with _errors_file(folder, rank).open("wb") as errors:
        return subprocess.Popen(  # noqa: S603 (this interpreter, the project's own module)
            [sys.executable, "-m", module],
            env={**usual, **os.environ, **local},
            # Ctrl-C on a terminal reaches them through this process alone.
            start_new_session=True,
            # What the others say is told if one of them was the first to fail.
            stdout=subprocess.DEVNULL if rank else None,
            stderr=errors if rank else None,
        )


def _start_launcher(launcher: str, module: str) -> subprocess.Popen[bytes]:
    try:
        command = shlex.split(launcher)
        # The user's own command, which their environment names.
        return subprocess.Popen([*command, "-m", module], start_new_session=True)  # noqa: S603 (as is said above)
    except ValueError as error:
        raise InputError(f"{LAUNCHER_VARIABLE}: {launcher!r}: {error}") from None
    except OSError as error:
        raise InputError(f"{LAUNCHER_VARIABLE}: {command[0]!r}: {error.strerror}") from None


def _wait(processes: list[subprocess.Popen[bytes]], asked: list[int], folder: Path) -> int:
    """Wait until all have ended, hand signals on, and end who has nothing to do any more."""
    first, *others = processes
    deadline: float | None = None
    was_given_up = False
    while first.poll() is None:
        while asked:
            first.send_signal(asked.pop(0))
        if deadline is None and any(other.poll() not in NO_FAILURE for other in others):
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            was_given_up = True
            first.kill()
        time.sleep(POLL_SECONDS)
    ended = [other for other in others if _ends(other, first.returncode)]
    if first.returncode < 0 and not was_given_up:
        _say_killed(0, first.returncode)
    if first.returncode == LOST_STATUS or was_given_up:
        for rank, other in enumerate(others, 1):
            status = other.returncode if other in ended else LOST_STATUS
            if status < 0:
                _say_killed(rank, status)
            elif status not in (0, LOST_STATUS):
                text = _errors_file(folder, rank).read_text(encoding="utf-8", errors="replace")
                print(f"process {rank} ended with {status}:\n{text}", file=sys.stderr)
    return 1 if first.returncode < 0 or first.returncode == LOST_STATUS else first.returncode


def _ends(other: subprocess.Popen[bytes], status: int) -> bool:
    """Whether a process ends by itself, after the first one with a status; else it is killed."""
    seconds = {0: GRACE_SECONDS, LOST_STATUS: SECONDS_TO_TELL}.get(status, 0.0)
    try:
        other.wait(seconds)
    except subprocess.TimeoutExpired:
        other.kill()
        other.wait()
        return False
    return True


def _errors_file(folder: Path, rank: int) -> Path:
    return folder / f"errors-{rank}.txt"


def _say_killed(rank: int, status: int) -> None:
    name = signal.Signals(-status).name
    print(f"error: process {rank} of the training was ended by {name}", file=sys.stderr)
