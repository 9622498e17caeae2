"""The download-checkpoint stage: a local hub, a local folder, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distiltune.artifacts import sha256_of
from tests.archives import Server, running_server
from tests.bad_inputs import good_checkpoint
from tests.conftest import Project

REVISION = "12040accade4e8a0f71eabdb258fecc2e7e948be"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DistilBERT checkpoint as the hub has it, with files that must not be taken."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(good_checkpoint(), folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "run_me.py").write_text("raise SystemExit('remote code')")
    return folder


def serve(server: Server, folder: Path, repository: str) -> None:
    """Answer as the hub does for one repository at one revision."""
    files = [file for file in folder.iterdir() if file.is_file()]
    listing = {
        "id": repository,
        "sha": REVISION,
        "siblings": [{"rfilename": file.name} for file in files],
        "tags": [], "private": False, "disabled": False, "downloads": 0, "likes": 0,
    }  # fmt: skip
    api = f"/api/models/{repository}"
    server.headers = {"X-Repo-Commit": REVISION, "Content-Type": "application/json"}
    server.files[f"{api}/revision/{REVISION}"] = json.dumps(listing).encode()
    tree = [
        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files
    ]
    server.files[f"{api}/tree/{REVISION}"] = json.dumps(tree).encode()
    for file in files:
        server.files[f"/{repository}/resolve/{REVISION}/{file.name}"] = file.read_bytes()


def use(project: Project, **changes: Any) -> None:
    project.change_params({"model": "distilbert"})
    project.change_params({f"models.distilbert.checkpoint.{k}": v for k, v in changes.items()})


def fails(project: Project, env: dict[str, str] | None = None) -> str:
    result = project.stage("download_checkpoint", check=False, env=env)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not (project.root / "data/checkpoint").exists()
    return result.stderr


def test_from_a_hub_at_the_pinned_revision(project: Project, checkpoint: Path) -> None:
    digest = sha256_of(checkpoint / "model.safetensors")
    with running_server() as server:
        serve(server, checkpoint, "distilbert-base-uncased")
        use(project, sha256=digest)
        hub = {"HF_ENDPOINT": server.url, "HF_HOME": str(project.root / "hf")}
        project.stage("download_checkpoint", env=hub)
        taken = {file.name for file in (project.root / "data/checkpoint").iterdir()}
        assert taken == {
            "model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json", "source.json",
        }  # fmt: skip
        source = json.loads((project.root / "data/checkpoint/source.json").read_text())
        assert (source["revision"], source["sha256"]) == (REVISION, digest)
        assert not any("run_me" in path or ".bin" in path for path in server.requests)


def test_from_a_folder_the_whole_pipeline_runs(project: Project, checkpoint: Path) -> None:
    use(project, folder=str(checkpoint), sha256=sha256_of(checkpoint / "model.safetensors"))
    project.change_params({"tokenize.max_length": 32})
    for stage in ("download", "download_checkpoint", "split", "tokenize", "train", "evaluate"):
        result = project.stage_here(stage)
    assert "test accuracy" in result.stdout
    metrics = json.loads((project.root / "metrics/test.json").read_text())
    assert 0 <= metrics["accuracy"] <= 1


def test_without_a_hub_the_way_out_is_named(project: Project) -> None:
    use(project)
    hub = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(project.root / "hf")}
    message = fails(project, env=hub)
    assert "cannot download distilbert-base-uncased" in message
    assert "models.distilbert.checkpoint.folder=FOLDER" in message
    assert "-S model=tiny" in message


def test_weights_with_another_checksum(project: Project, checkpoint: Path) -> None:
    use(project, folder=str(checkpoint), sha256="0" * 64)
    assert sha256_of(checkpoint / "model.safetensors") in fails(project)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model.safetensors", "no model.safetensors; only safetensors"),
        ("config.json", "has no config.json"),
        ("vocab.txt", "has no tokenizer"),
    ],
)
def test_a_folder_that_is_no_checkpoint(
    project: Project, checkpoint: Path, tmp_path: Path, missing: str, words: str
) -> None:
    folder = tmp_path / "incomplete"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.name != missing:
            (folder / file.name).write_bytes(file.read_bytes())
    use(project, folder=str(folder), sha256=sha256_of(checkpoint / "model.safetensors"))
    assert words in fails(project)
    use(project, folder=str(tmp_path / "nowhere"))
    assert "is no folder" in fails(project)


def test_a_checkpoint_that_wants_to_run_code(
    project: Project, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    use(project, folder=str(folder), sha256=sha256_of(folder / "model.safetensors"))
    assert "wants to run code" in fails(project)


def test_reviews_longer_than_the_checkpoint_takes(prepared: Project, checkpoint: Path) -> None:
    use(prepared, folder=str(checkpoint), sha256=sha256_of(checkpoint / "model.safetensors"))
    prepared.stage("download_checkpoint")
    result = prepared.stage("tokenize", check=False)  # 512, and the checkpoint has 64
    assert result.returncode == 1
    assert "tokenize.max_length: 512 is more than the checkpoint takes; it has 64" in result.stderr
