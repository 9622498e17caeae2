"""Servers of a team, natively and each for one test: PostgreSQL, S3, those of the compose file."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.outages import free_port
from tests.conftest import environment

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
HOST = "127.0.0.1"
PATIENCE_SECONDS = 120.0


@contextlib.contextmanager
def postgres(password: str = "") -> Iterator[str]:
    """A PostgreSQL server; its address for SQLAlchemy, without the password.

    Args:
        password: of its user `mlflow`; without one it trusts whoever comes.
    """
    # It refuses to be root's, so it is nobody's, who may not enter pytest's folders.
    is_root = os.getuid() == 0
    as_other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    prefix = as_other if is_root else []
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        (Path(folder) / "password").write_text(f"{password or 'none'}\n")
        if is_root:
            for path in (folder, f"{folder}/password"):
                shutil.chown(path, "nobody", "nogroup")
        yield from _serve_postgres(Path(folder), prefix, password)


def _serve_postgres(data: Path, prefix: list[str], password: str) -> Iterator[str]:
    port = free_port()

    def run(*command: str) -> None:
        result = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False,
                                cwd=data, env={**os.environ, "PGPASSWORD": password})  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr

    binaries = POSTGRES[-1]
    run(str(binaries / "initdb"), "-D", str(data / "db"), "-U", "mlflow",
        f"--auth={'scram-sha-256' if password else 'trust'}",
        f"--pwfile={data / 'password'}")  # fmt: skip
    options = f"-h {HOST} -p {port} -k {data}"
    control = (str(binaries / "pg_ctl"), "-D", str(data / "db"), "-w")
    run(*control, "-o", options, "-l", str(data / "log"), "start")
    try:
        run(str(binaries / "createdb"), "-h", HOST, "-p", str(port), "-U", "mlflow", "mlflow")
        yield f"postgresql+psycopg2://mlflow@{HOST}:{port}/mlflow"
    finally:
        run(*control, "-m", "immediate", "stop")


@contextlib.contextmanager
def objects(folder: Path) -> Iterator[str]:
    """An S3 server, moto's, which holds what it gets in memory; its address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "--host", HOST, "--port", str(port)]
    with serving(command, {}, folder / "objects.log", f"http://{HOST}:{port}/moto-api/"):
        yield f"http://{HOST}:{port}"


@contextlib.contextmanager
def serving(
    command: Sequence[str], variables: Mapping[str, str], log: Path, health: str
) -> Iterator[None]:
    """A server, from when it is healthy.

    Args:
        command: that starts it.
        variables: of its environment, beside a user's.
        log: what it prints.
        health: the address that then answers.
    """
    process = subprocess.Popen(
        command, cwd=log.parent, env=environment(dict(variables)), start_new_session=True,
        stdout=log.open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(health, timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def filled_in(text: str, variables: Mapping[str, str]) -> str:
    """As Compose does: `${NAME:?why}` is the variable, which must be there."""

    def value(match: re.Match[str]) -> str:
        assert variables.get(match[1]), match[2]
        return variables[match[1]]

    return re.sub(r"\$\{(\w+):\?([^}]*)\}", value, text)
