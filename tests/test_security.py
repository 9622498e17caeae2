"""The promises of SECURITY.md that no other test holds."""

import argparse
import ast
import json
import re
import shutil
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from distiltune import InputError, ui
from tests.conftest import ROOT, Project
from tests.test_pipeline import runs_of

SOURCES = [file for name in ("src", "stages") for file in (ROOT / name).rglob("*.py")]
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
# A name that leads to code in what is read.
UNSAFE = {"torch.load", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load", "eval", "exec"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = {alias.name.partition(".")[0] for node in ast.walk(tree)
                if isinstance(node, ast.Import) for alias in node.names}  # fmt: skip
    imported |= {(node.module or "").partition(".")[0] for node in ast.walk(tree)
                 if isinstance(node, ast.ImportFrom)}  # fmt: skip
    assert not imported & LOADERS
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & UNSAFE
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert ast.unparse(node.value) == "False"


def test_the_ui_binds_to_this_machine_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(command: list[str], **_: object) -> None:
        started.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.chdir(root)
    shutil.copy(ROOT / "params.yaml", root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(InputError, match=rf"port {port}: .*; name another: make ui PORT=5001"):
            ui.run_ui(argparse.Namespace(port=port))
    with pytest.raises(KeyboardInterrupt):
        ui.run_ui(argparse.Namespace(port=port))
    (command,) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "distiltune ui" in (ROOT / "Makefile").read_text()


def test_the_address_of_a_server_is_shown_without_its_password(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@runs.example:5000")
    monkeypatch.setattr(ui, "open_store", lambda root: None)
    monkeypatch.setattr(ui, "experiment_id", lambda root, name: "7")
    monkeypatch.chdir(root)
    shutil.copy(ROOT / "params.yaml", root)
    ui.run_ui(argparse.Namespace(port=5000))
    printed = capsys.readouterr().out
    assert "http://runs.example:5000/#/experiments/7/runs?" in printed and "secret" not in printed


def test_nothing_calls_home() -> None:
    config = (ROOT / ".dvc/config").read_text()
    assert re.search(r"analytics\s*=\s*false", config)
    assert re.search(r"check_update\s*=\s*false", config)
    for file, words in (
        ("stages/__init__.py", ("HF_HUB_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY")),
        ("src/distiltune/location.py", ("MLFLOW_DISABLE_TELEMETRY",)),
    ):
        assert all(word in (ROOT / file).read_text() for word in words)


def test_no_secret_of_the_environment_is_written_anywhere(
    prepared: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the run nor the files that a training and an evaluation leave hold one."""
    secret = uuid.uuid4().hex  # which no source file holds
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, secret)
    for stage in ("train", "evaluate"):
        assert not prepared.stage_here(stage).stderr
    assert secret not in "".join(capfd.readouterr())
    (run,) = runs_of(prepared)
    assert secret not in json.dumps([run.data.params, run.data.tags])
    for file in prepared.root.rglob("*"):
        if file.is_file() and ".git" not in file.parts:
            assert secret.encode() not in file.read_bytes(), file


def test_the_lock_pins_what_the_constraints_say_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+?)(?: ;[^\\]*)? \\$", lock, re.MULTILINE))
    assert len(locked) > 150
    for entry in re.split(r"^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    for name, version in pinned.items():
        normal = re.sub(r"[._-]+", "-", name).lower()
        assert locked.get(normal) == version, name
    assert {"torch", "transformers", "dvc", "mlflow", "pandas", "pyyaml"} <= set(locked)
