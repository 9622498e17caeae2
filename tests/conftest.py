"""What the tests share: a small project of its own for each, tiny data, a tiny model."""

import contextlib
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml

from distiltune import location
from distiltune.runtime import run_stage

ROOT = Path(__file__).resolve().parent.parent
IMDB = ROOT.parent / "shared" / "data" / "imdb" / "aclImdb_labelled.tar.gz"
IMDB_SHA256 = "d86838d6cdb5b8f628a1fb74bd5a488a3ceeb87c558fe95ab8d85de41f04ccb7"

# Small enough for a whole pipeline in seconds; accuracy is not the point here.
SMALL = {
    "dataset": "sample",
    "model": "tiny",
    "datasets.sample.num_reviews": 240,
    "splits.sample.train": 160,
    "splits.sample.validation": 40,
    "splits.sample.test": 40,
    "models.tiny.tokenizer.vocabulary_size": 400,
    "optimizers.adamw.warmup_steps": 5,
    "train.epochs": 2,
    "train.log_every_steps": 5,
}


def environment(changes: dict[str, str]) -> dict[str, str]:
    """The environment of a user's shell, without what this test run has from DVC or MLflow."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "PYTEST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **changes}


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


@contextlib.contextmanager
def as_if_alone(root: Path, output: io.StringIO, errors: io.StringIO) -> Iterator[None]:
    """Inside, this process is as a new one of a user's; then it is again as it was.

    Args:
        root: where the user is.
        output: takes what is printed.
        errors: takes what goes to standard error.
    """
    here, handler = Path.cwd(), signal.getsignal(signal.SIGTERM)
    threads, outer = torch.get_num_threads(), dict(os.environ)
    store = mlflow.get_tracking_uri()
    os.chdir(root)
    _set_environment(environment({}))  # MLflow notes there which store it was told
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield
    finally:
        os.chdir(here)
        signal.signal(signal.SIGTERM, handler)
        torch.set_num_threads(threads)
        mlflow.set_tracking_uri(store)
        _set_environment(outer)


class Project:
    """A checkout of the project with a repository of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, *command: str, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command at the project's root, as a user would."""
        result = subprocess.run(
            command,
            cwd=self.root,
            env=environment(env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
        if check and result.returncode:
            raise AssertionError(f"{command}\n{result.stdout}\n{result.stderr}")
        return result

    def dvc(self, *arguments: str, check: bool = True, env: dict[str, str] | None = None) -> str:
        """Run dvc and return what it printed."""
        result = self.run("dvc", *arguments, check=check, env=env)
        return result.stdout + result.stderr

    def stage(
        self, name: str, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one stage without DVC."""
        return self.run(sys.executable, "-m", f"stages.{name}", check=check, env=env)

    def stage_here(self, name: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A stage's entry point, without a process of its own, which imports for seconds."""
        module = importlib.import_module(f"stages.{name}")
        output, errors, status = io.StringIO(), io.StringIO(), 0
        try:
            with as_if_alone(self.root, output, errors):
                run_stage(module.main)
        except SystemExit as end:
            status = int(end.code or 0)
        if check and status:
            raise AssertionError(f"{name}\n{output.getvalue()}\n{errors.getvalue()}")
        return subprocess.CompletedProcess([name], status, output.getvalue(), errors.getvalue())

    def change_params(self, changes: dict[str, Any]) -> None:
        """Change params by their dotted names."""
        file = self.root / "params.yaml"
        params = yaml.safe_load(file.read_text())
        for name, value in changes.items():
            *tables, key = name.split(".")
            table = params
            for part in tables:
                table = table[part]
            table[key] = value
        file.write_text(yaml.safe_dump(params, sort_keys=False))

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "change")


def make_project(root: Path, small: bool = True, store: Path | None = None) -> Project:
    """Copy the project's files, as they are now, into a repository of their own.

    Args:
        root: where to put it.
        small: whether with the params above.
        store: a database of MLflow's that spares it the making of one.
    """
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for file in filter(None, listing.stdout.split("\0")):
        if (ROOT / file).is_file():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, root / file)
    project = Project(root)
    project.git("init", "-q", "-b", "main")
    project.git("config", "user.name", "test")
    project.git("config", "user.email", "test@localhost")
    if small:
        project.change_params(SMALL)
    project.commit()
    if store is not None:
        shutil.copy(store, root / location.DATABASE)
    return project


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts processes comes first, so that no worker is left alone with it in the end."""
    whole = {"project", "new_project", "prepared", "tokenized"}
    items.sort(key=lambda item: not whole & set(getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session")
def bare_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has made, which takes it seconds; without any experiment."""
    root = tmp_path_factory.mktemp("bare-store")
    with pytest.MonkeyPatch.context() as patch:
        # MLflow notes there which store it was told, and it is not to be left.
        patch.setenv("MLFLOW_TRACKING_URI", "")
        location.open_store(root)
    return root / location.DATABASE


@pytest.fixture
def new_project(tmp_path: Path, bare_store: Path) -> Callable[..., Project]:
    """Makes projects below the test's folder."""

    def make(name: str = "project", small: bool = True) -> Project:
        return make_project(tmp_path / name, small, bare_store)

    return make


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Project:
    return new_project()


@pytest.fixture(scope="session")
def _tokenized(tmp_path_factory: pytest.TempPathFactory, bare_store: Path) -> Project:
    project = make_project(tmp_path_factory.mktemp("tokenized") / "project", store=bare_store)
    for stage in ("check_params", "download", "download_checkpoint", "split", "tokenize", "adapt"):
        project.stage(stage)
    return project


@pytest.fixture
def prepared(_tokenized: Project, tmp_path: Path) -> Project:
    """A small project whose data is tokenized already."""
    shutil.copytree(_tokenized.root, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory, bare_store: Path) -> Path:
    """A database with the experiment, whose runs' files go to a folder of the fixture."""
    root = tmp_path_factory.mktemp("store")
    shutil.copy(bare_store, root / location.DATABASE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        location.experiment_id(root, "distiltune")
    return root / location.DATABASE


@pytest.fixture
def root(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store, which `MLFLOW_TRACKING_URI` names."""
    # MLflow notes in the environment which store it was told.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / location.DATABASE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / location.DATABASE}")
    return tmp_path
