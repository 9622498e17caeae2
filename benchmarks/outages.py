"""Takes MLflow away from the stages in many ways, and checks that it has all in the end.

    python -m benchmarks.outages [--only NAME,NAME] [--output FOLDER]

Each case trains and evaluates the small model on generated reviews in a folder of its own,
with a real MLflow server behind a proxy that misbehaves, or with SQLite on a file that is
locked or full. In the end the run must be whole: every metric of the history once at each
step with its value, params, tags, artifacts, model, status. It prints a table, writes
`outages.json`, and ends with status 1 if anything is lost or there twice.
"""

import argparse
import contextlib
import http.client
import http.server
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.report import environment, record_folder
from benchmarks.torture import copy_of, prepare, shell
from distiltune import InputError
from distiltune.artifacts import read_json, write_json
from distiltune.runtime import choose_runtime, run_stage
from distiltune.tracking import EPOCH_METRICS, STEP_METRICS
from distiltune.training.history import read_metrics

SETTINGS = [
    "datasets.sample.num_reviews=240", "splits.sample.train=160", "splits.sample.validation=40",
    "splits.sample.test=40", "models.tiny.tokenizer.vocabulary_size=400", "train.epochs=60",
    "train.log_every_steps=5",
]  # fmt: skip
BEGINNING, MIDDLE = 50, 300  # steps, of 600
LOG = Path(".dvc/tmp/outages.log")
PATIENCE_SECONDS = 300.0
# A server that does not answer is waited for no longer, and MLflow does not try again itself.
TIMEOUT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
PASSWORD = "vErYs3cret"  # noqa: S105 (looked for in what is printed)
SERVER_CASES: "dict[str, Callable[[World], None]]" = {}
SQLITE_CASES: "dict[str, Callable[[World], None]]" = {}


class Server:
    """A real MLflow server, which can be killed and started again."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self.folder = folder
        self.database = database or f"sqlite:///{folder}/server.db"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.folder / "server.log"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1",
             "--port", str(self.port), "--backend-store-uri", self.database,
             "--artifacts-destination", str(self.folder / "served")],
            cwd=self.folder, start_new_session=True,
            # Without the half-dozen processes for jobs that nobody gives it.
            env={**shell(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log.open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").close()
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.2)
        raise InputError(f"the MLflow server does not start; {log} says why")

    def kill(self) -> None:
        """SIGKILL, to it and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Proxy(http.server.BaseHTTPRequestHandler):
    """Hands requests on to the server, as far as `fault` lets it."""

    protocol_version = "HTTP/1.1"
    target: ClassVar[int]
    # Of the request's number and line: what to do with it, and None to hand it on.
    fault: ClassVar[Callable[[int, str], str | None]]
    counter: ClassVar[int] = 0

    def handle_one_request(self) -> None:
        # A client that gave up in the middle is part of the game.
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:
        cls = type(self)
        cls.counter += 1
        fault = cls.fault(cls.counter, self.requestline)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "slow":
            time.sleep(0.7)
        if fault == "hang":
            time.sleep(2 * float(TIMEOUT["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
            self.close_connection = True
            return
        if fault == "error":
            self._answer(503 if cls.counter % 2 else 500, b'{"error_code": "INTERNAL_ERROR"}')
            return
        connection = http.client.HTTPConnection("127.0.0.1", cls.target, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k != "Host"}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except OSError:
            self.close_connection = True  # as if nobody were there
            return
        finally:
            connection.close()
        if fault == "lose":
            self.close_connection = True  # it was done, and nobody hears of it
            return
        self._answer(response.status, content, response.getheader("Content-Type"))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 (the base class looks for these)

    def _answer(self, status: int, content: bytes, kind: str | None = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Stage:
    """A stage in a process of its own; its output can be followed."""

    def __init__(self, command: list[str], project: Path, env: dict[str, str]) -> None:
        self.log = project / LOG
        self.begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(command, cwd=project, env=env, stdout=file, stderr=file)

    @property
    def output(self) -> str:
        return self.log.read_bytes()[self.begins :].decode(errors="replace")

    def wait_for_step(self, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(
            int(step) >= number for step in re.findall(r"^step (\d+)/", self.output, re.M)
        ):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"step {number} does not come:\n{self.output}")
            time.sleep(0.05)

    def finish(self, *, fails: bool = False) -> float:
        """Seconds that it took; its status must be as expected."""
        began = time.monotonic()
        status = self.process.wait(PATIENCE_SECONDS)
        if (status != 0) != fails or "Traceback" in self.output:
            raise InputError(f"status {status}:\n{self.output}")
        return time.monotonic() - began


class World:
    """A project, and the store that its stages are to log to."""

    def __init__(self, project: Path, uri: str | None) -> None:
        self.project = project
        self.server = Server(project)
        self.env = {**shell(), **TIMEOUT}
        if uri:
            self.env["MLFLOW_TRACKING_URI"] = uri
        self.prefix: list[str] = []  # of every command
        self.fault: str | None = None
        self.choose: Callable[[int, str], str | None] = lambda number, line: self.fault

    @property
    def uri(self) -> str:
        return self.env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.project / 'mlflow.db'}"

    def start(self, name: str) -> Stage:
        command = [*self.prefix, sys.executable, "-u", "-m", *name.split()]
        return Stage(command, self.project, self.env)

    def train(self) -> Stage:
        return self.start("stages.train")

    def run(self, name: str, *, fails: bool = False) -> str:
        stage = self.start(name)
        stage.finish(fails=fails)
        return stage.output

    def sync(self, *, fails: bool = False) -> str:
        return self.run("distiltune.cli sync", fails=fails)


@contextlib.contextmanager
def world_with_server(project: Path) -> Iterator[World]:
    """A world whose stages know the proxy alone; the server is not started yet."""
    world = World(project, None)
    handler = type(
        "Handler",
        (Proxy,),
        {"target": world.server.port, "fault": staticmethod(lambda n, line: world.choose(n, line))},
    )
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    world.env["MLFLOW_TRACKING_URI"] = f"http://me:{PASSWORD}@127.0.0.1:{proxy.server_port}"
    try:
        yield world
    finally:
        proxy.shutdown()
        proxy.server_close()
        world.server.kill()


def with_server(case: "Callable[[World], None]") -> "Callable[[World], None]":
    SERVER_CASES[case.__name__] = case
    return case


def with_sqlite(case: "Callable[[World], None]") -> "Callable[[World], None]":
    SQLITE_CASES[case.__name__] = case
    return case


@with_server
def away_at_the_start(world: World) -> None:
    train = world.train()
    train.wait_for_step(BEGINNING)
    world.server.start()
    train.finish()
    world.run("stages.evaluate")


@with_server
def away_all_the_time(world: World) -> None:
    world.train().finish()
    world.run("stages.evaluate")
    assert "error: " in world.sync(fails=True)
    world.server.start()
    world.sync()


@with_server
def killed_in_the_middle_and_started_again(world: World) -> None:
    world.server.start()
    train = world.train()
    train.wait_for_step(BEGINNING)
    world.server.kill()
    train.wait_for_step(MIDDLE)
    world.server.start()
    train.finish()
    world.run("stages.evaluate")


@with_server
def killed_in_the_middle_for_good(world: World) -> None:
    world.server.start()
    train = world.train()
    train.wait_for_step(MIDDLE)
    world.server.kill()
    train.finish()
    world.run("stages.evaluate")
    world.server.start()
    world.sync()


@with_server
def killed_while_the_model_is_sent(world: World) -> None:
    world.server.start()

    kills: list[int] = []

    def choose(number: int, line: str) -> str | None:
        if "model.safetensors" in line and not kills:
            kills.append(number)
            world.server.kill()
        return None

    world.choose = choose
    world.train().finish()
    assert kills
    world.choose = lambda number, line: None
    world.server.start()
    world.run("stages.evaluate")  # which sends what is left of the training first


@with_server
def away_at_evaluate(world: World) -> None:
    world.server.start()
    world.train().finish()
    world.server.kill()
    world.run("stages.evaluate")
    world.server.start()
    world.sync()


def kill_while_away(world: World) -> None:
    """Begin with a server, take it away, and kill the training after that."""
    world.server.start()
    train = world.train()
    train.wait_for_step(BEGINNING)
    world.server.kill()
    train.wait_for_step(MIDDLE)
    train.process.kill()
    train.process.wait()


@with_server
def away_while_the_training_is_killed_and_goes_on(world: World) -> None:
    kill_while_away(world)
    again = world.train()
    again.finish()
    assert "going on from step " in again.output
    world.server.start()
    world.run("stages.evaluate")


@with_server
def back_while_the_training_goes_on_again(world: World) -> None:
    kill_while_away(world)
    world.server.start()
    again = world.train()
    again.finish()
    assert "going on from step " in again.output
    world.run("stages.evaluate")


@with_server
def slow(world: World) -> None:
    world.server.start()
    world.fault = "slow"
    world.train().finish()
    world.run("stages.evaluate")


@with_server
def every_third_request_fails(world: World) -> None:
    with_every_third(world, "error")


@with_server
def every_third_answer_is_lost(world: World) -> None:
    with_every_third(world, "lose")


def with_every_third(world: World, fault: str) -> None:
    world.server.start()
    world.choose = lambda number, line: fault if number % 3 == 0 else None
    train = world.train()
    train.finish()
    assert "warning: MLflow at " in train.output
    world.run("stages.evaluate")
    world.choose = lambda number, line: None
    world.sync()


@with_server
def answers_nothing_from_the_middle_on(world: World) -> None:
    world.server.start()
    train = world.train()
    train.wait_for_step(BEGINNING)
    world.fault = "hang"
    train.finish()
    world.fault = None
    world.run("stages.evaluate")


@with_sqlite
def locked_in_the_middle(world: World) -> None:
    train = world.train()
    train.wait_for_step(BEGINNING)
    store = sqlite3.connect(world.project / "mlflow.db", timeout=60)
    store.execute("begin exclusive")
    train.finish()
    store.rollback()
    store.close()
    world.run("stages.evaluate")


@with_sqlite
def damaged_in_the_middle(world: World) -> None:
    """A table is gone, as after a restored backup, and comes back."""
    train = world.train()
    train.wait_for_step(BEGINNING)
    with contextlib.closing(sqlite3.connect(world.project / "mlflow.db", timeout=60)) as store:
        store.execute("alter table metrics rename to lost")
        train.wait_for_step(MIDDLE)
        store.execute("alter table lost rename to metrics")
    train.finish()
    world.run("stages.evaluate")


@with_sqlite
def disk_full_from_the_middle_on(world: World) -> None:
    """The store's alone: a small file system, in a namespace of its own."""
    disk = world.project / "disk"
    disk.mkdir()
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
         f"mount -t tmpfs -o size=8m tmpfs {disk} && echo ready && read line"],
        cwd=world.project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdin is not None
    if holder.stdout.readline() != "ready\n":
        raise InputError("no mount namespaces here, which this case needs")
    inside = Path(f"/proc/{holder.pid}/root") / disk.relative_to("/")
    world.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{disk}/mlflow.db"
    world.prefix = [
        "nsenter",
        "-t",
        str(holder.pid),
        "--user",
        "--preserve-credentials",
        "--mount",
        "--wd",
    ]
    train = world.train()
    train.wait_for_step(BEGINNING)
    filler = inside / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    train.finish()
    filler.unlink()
    world.run("stages.evaluate")
    shutil.copy(inside / "mlflow.db", world.project / "mlflow.db")
    holder.communicate("\n")
    del world.env["MLFLOW_TRACKING_URI"]


def mistakes(world: World) -> list[str]:
    """What MLflow has too little or too much of, in words."""
    import mlflow

    client = mlflow.MlflowClient(world.uri)
    found: list[str] = []
    runs = client.search_runs(["1"])
    if len(runs) != 1:
        return [f"{len(runs)} runs: {[run.info.run_name for run in runs]}"]
    run = runs[0]
    if run.info.status != "FINISHED":
        found.append(f"status {run.info.status}")
    project = world.project
    steps, epochs = read_metrics(project / "data" / "history")
    expected = {
        (shown, int(record[at])): record[name]
        for records, at, names in ((steps, "step", STEP_METRICS), (epochs, "epoch", EPOCH_METRICS))
        for record in records
        for name, shown in names.items()
        if record.get(name) is not None
    }
    for kind in ("train", "test"):
        for name, value in read_json(project / "metrics" / f"{kind}.json").items():
            if isinstance(value, int | float):
                expected[f"{'final' if kind == 'train' else kind}/{name}", 0] = value
    there: Counter[tuple[str, int]] = Counter()
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            key = (name, metric.step)
            there[key] += 1
            # A step that is done once more takes another time, and the first stays.
            if "second" not in name and metric.value != expected.get(key, metric.value):
                found.append(f"{name} at {metric.step}: {metric.value}, not {expected[key]}")
    # System metrics are samples: as many as there were.
    twice = [key for key, n in there.items() if n > 1 and not key[0].startswith("system/")]
    found += [f"twice: {name} at {step}" for name, step in twice]
    found += [f"missing: {name} at {step}" for name, step in expected.keys() - there.keys()]
    facts = read_json(project / "data" / "model" / "run.json")
    if run.data.params != {name: str(value) for name, value in facts["params"].items()}:
        found.append("other params")
    if len(run.data.tags.get("weights_sha256", "")) != 64:
        found.append("no digest of the weights")
    if len(run.inputs.dataset_inputs) != 1:
        found.append(f"{len(run.inputs.dataset_inputs)} data sets")
    paths = {f.path for folder in ("plots", "test", "record")
             for f in client.list_artifacts(run.info.run_id, folder)}  # fmt: skip
    for path in ("plots/roc.png", "test/predictions.parquet", "record/run.json"):
        if path not in paths:
            found.append(f"missing: {path}")
    models = client.search_logged_models(["1"])
    if len(models) != 1 or models[0].status != "READY":
        found.append(f"models: {[(m.model_id, str(m.status)) for m in models]}")
    if left := sorted((project / ".dvc/tmp/outbox").glob("[!.]*")):
        found.append(f"left: {[path.name for path in left]}")
    return found


def run_case(name: str, prepared: Path) -> tuple[list[str], str]:
    """What is wrong after a case, and what its stages have printed."""
    project = copy_of(prepared, name)
    if name in SQLITE_CASES:
        world = World(project, None)
        SQLITE_CASES[name](world)
        found = mistakes(world)
    else:
        with world_with_server(project) as world:
            SERVER_CASES[name](world)
            found = mistakes(world)
    output = (project / LOG).read_text(errors="replace")
    if PASSWORD in output:
        found.append("a password is shown")
    return found, output


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    every = {**SERVER_CASES, **SQLITE_CASES}
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(every))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(every):
        parser.error(f"--only: {', '.join(unknown)}: no case; there are {', '.join(every)}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="outages-") as folder:
        prepared = prepare(Path(folder) / "prepared", SETTINGS)
        for name in arguments.only:
            began = time.monotonic()
            found, _ = run_case(name, prepared)
            row = {"case": name, "store": "server" if name in SERVER_CASES else "SQLite",
                   "seconds": round(time.monotonic() - began), "mistakes": found}  # fmt: skip
            rows.append(row)
            result = "; ".join(found) or "whole"
            print(f"{row['store']:8}{name:50}{row['seconds']:5} s  {result}", flush=True)
    output = arguments.output or record_folder("outages")
    output.mkdir(parents=True, exist_ok=True)
    device = environment(choose_runtime("auto", "auto"))
    write_json(output / "outages.json", {"environment": device, "cases": rows})
    if wrong := [row["case"] for row in rows if row["mistakes"]]:
        raise InputError(f"something is lost or there twice: {', '.join(wrong)}")


if __name__ == "__main__":
    run_stage(main)
