"""MLflow's UI on the project's store, opened on its runs."""

import argparse
import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from distiltune import InputError
from distiltune.config import load_params
from distiltune.location import (
    VIEW,
    experiment_id,
    import_mlflow,
    open_store,
    store_name,
    use_store,
)
from distiltune.runtime import project_root

HOST = "127.0.0.1"
START_SECONDS = 300.0


def run_ui(arguments: argparse.Namespace) -> None:
    """`distiltune ui`: serves it until Ctrl-C, or names the server that has it already.

    Raises:
        InputError: there is no params.yaml, the port is taken, or MLflow fails.
    """
    root = project_root()
    experiment = load_params(root / "params.yaml").tracking.experiment
    store = use_store(root)
    if store.startswith(("http://", "https://")):
        where = address(root, experiment, store_name(root))
        print(f"MLFLOW_TRACKING_URI has a UI of its own: {where}")
        return
    _check_free(arguments.port)
    url = address(root, experiment, f"http://{HOST}:{arguments.port}")
    server = subprocess.Popen(  # noqa: S603 (our own interpreter)
        [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store,
         "--host", HOST, "--port", str(arguments.port), "--workers", "1"],
        # Without the half-dozen processes for jobs that nobody gives it.
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ},
    )  # fmt: skip
    try:
        _wait_for(server, arguments.port)
        print(f"\nThe runs: {url}\n(Ctrl-C ends it)\n", flush=True)
        status = server.wait()
    finally:
        server.terminate()
        server.wait()
    if status:
        raise InputError(f"MLflow's UI has ended with status {status}")


def address(root: Path, experiment: str, server: str) -> str:
    """Where the experiment's runs are in the UI, with the columns that say most.

    Args:
        root: the main checkout.
        experiment: its name; it is made if it is not there.
        server: the UI's own address.
    """
    mlflow = import_mlflow()
    try:
        open_store(root)
        number = experiment_id(root, experiment)
    except mlflow.exceptions.MlflowException as error:
        raise InputError(f"MLflow: {error.message}") from None
    page = f"{server.rstrip('/')}/#/experiments/{number}/runs"
    return f"{page}?viewStateShareKey={VIEW}&workflowType=machine_learning"


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port}: {error}; name another: make ui PORT=5001, or --port 5001"
            ) from None


def _wait_for(server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        if _answers(port):
            return
        time.sleep(0.3)
    raise InputError("MLflow's UI did not start; what it says stands above")


def _answers(port: int) -> bool:
    # Straight to it, whatever proxy the environment names.
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False  # not yet
    finally:
        connection.close()
