"""What a stage loads before it works: a fresh interpreter is asked, so nothing creeps back."""

import sys

import pytest

from tests.closure import ROOT
from tests.conftest import Project

# Each takes from 50 ms to seconds to import.
HEAVY = {
    "huggingface_hub", "matplotlib", "mlflow", "pandas", "pooch", "requests", "scipy", "sklearn",
    "torch", "transformers",
}  # fmt: skip
# What transformers imports beside torch is its own choice.
MODEL = {"huggingface_hub", "requests", "scipy", "torch", "transformers"}
# scikit-learn imports pandas where there is one.
ALLOWED = {
    "check_params": set(),
    "watch": set(),
    "download": set(),
    "download_checkpoint": set(),
    "split": {"pandas"},
    "tokenize": set(),
    "adapt": set(),
    "train": MODEL,
    "evaluate": MODEL | {"matplotlib", "pandas", "sklearn"},
}
# The same while a stage runs, with generated reviews and random weights. Where pyarrow makes an
# array it imports pandas, to see whether it was given one of its columns.
RUNNING = {
    "check_params": set(),
    "watch": set(),
    "download": {"pandas"},
    "download_checkpoint": set(),
    "split": {"pandas"},
    "tokenize": set(),
    "adapt": set(),
}


def loaded(project: Project, *command: str) -> set[str]:
    """The top-level packages that a Python process imported."""
    log = project.run(sys.executable, "-X", "importtime", *command).stderr
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_every_stage_is_in_the_table() -> None:
    assert set(ALLOWED) == {file.stem for file in (ROOT / "stages").glob("[!_]*.py")}


@pytest.mark.parametrize("stage", ALLOWED)
def test_a_stage_imports_no_heavy_library_that_it_does_not_use(stage: str) -> None:
    found = loaded(Project(ROOT), "-c", f"import stages.{stage}")
    assert "distiltune" in found
    assert found & HEAVY <= ALLOWED[stage]


@pytest.mark.parametrize("stage", RUNNING)
def test_a_light_stage_stays_light_while_it_runs(stage: str, prepared: Project) -> None:
    found = loaded(prepared, "-m", f"stages.{stage}")
    assert "distiltune" in found
    assert found & HEAVY <= RUNNING[stage]
