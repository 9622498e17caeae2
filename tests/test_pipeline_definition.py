"""dvc.yaml against the code: what the stages import and read is what they declare."""

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from distiltune import config
from tests.closure import ROOT, SOURCES, direct_imports, import_closure, module_name

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CONFIGS = {
    "check-params": config.CheckConfig,
    "watch-csv": config.WatchConfig,
    "download": config.DownloadConfig,
    "download-checkpoint": config.CheckpointConfig,
    "split": config.SplitConfig,
    "tokenize": config.TokenizeConfig,
    "adapt": config.AdaptConfig,
    "train": config.TrainConfig,
    "evaluate": config.EvaluateConfig,
}
# Imports go from a layer to one below it, never sideways; a package's own modules may
# import each other.
LAYERS = (
    {"distiltune"},
    {"artifacts", "config", "console", "pages", "runtime"},
    {"location", "replicas"},
    {"logged_model", "monitoring", "outbox", "registry"},
    {"sending"},
    {"syncing"},
    {"chunks", "dataset", "experiments", "fetching", "store", "tracking"},
    {"batching", "checkpoint", "encoding", "imdb", "models", "optimizers", "own_files"}
    | {"sample", "splitting"},
    {"inference", "model_source", "trained"},
    {"classifier", "training"},
    {"adapting", "comparison", "evaluation", "explaining", "exporting", "predicting", "serving"}
    | {"sweeping", "ui"},
    {"commands", "reporting"},
    {"cli"},
)  # fmt: skip


def stage_file(stage: str) -> Path:
    module = re.fullmatch(r"python -m stages\.(\w+)", STAGES[stage]["cmd"])
    assert module, STAGES[stage]["cmd"]
    return ROOT / "stages" / f"{module[1]}.py"


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_import_closure(stage: str) -> None:
    code = {d for d in STAGES[stage]["deps"] if d.startswith(("src/", "stages/"))}
    closure = import_closure(stage_file(stage)) | {ROOT / "stages" / "__init__.py"}
    assert code == {str(file.relative_to(ROOT)) for file in closure}


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_what_the_stage_reads(stage: str) -> None:
    if stage == "check-params":
        # The whole file, as `load` reads it.
        assert "params" not in STAGES[stage] and "params.yaml" in STAGES[stage]["deps"]
    else:
        assert set(STAGES[stage]["params"]) == config.tracked_params(CONFIGS[stage])
    assert CONFIGS[stage].__name__ in stage_file(stage).read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_every_param_read_is_used(stage: str) -> None:
    """No stage depends on a param that nothing in its code looks at."""
    names = set()
    for file in import_closure(stage_file(stage)):
        if file.name != "stages.py":
            tree = ast.parse(file.read_text())
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for field in fields(CONFIGS[stage]):
        assert field.name in names, field.name


def test_stages_do_not_import_stages_and_are_thin() -> None:
    for file in (ROOT / "stages").glob("*.py"):
        imported = {module_name(target) for target in direct_imports(file)}
        assert not {name for name in imported if name.startswith("stages.")}, file
        assert len(file.read_text().splitlines()) <= 45, file


def test_imports_go_downward() -> None:
    layer_of = {name: number for number, names in enumerate(LAYERS) for name in names}

    def part(file: Path) -> str:
        names = module_name(file).split(".")
        return names[1] if len(names) > 1 else names[0]

    for file in SOURCES["distiltune"].rglob("*.py"):
        for target in direct_imports(file):
            if part(file) != part(target) and part(target) != "distiltune":
                assert layer_of[part(target)] < layer_of[part(file)], f"{file} imports {target}"


def test_every_output_is_declared_once_and_ignored_by_git_or_a_metric() -> None:
    outputs = [o for stage in STAGES.values() for o in stage.get("outs", [])]
    plain = [output for output in outputs if isinstance(output, str)]
    assert all(output.startswith("data/") for output in plain)
    assert len(plain) == len(set(plain))
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()
