"""Refuses a mistake in `params.yaml` before any stage gives up what it made of other params.

DVC removes a stage's outputs before it runs the stage, so what the stage itself refuses has cost
them. All others come after this one. What it writes is always the same, so none of them runs
again for it. What only data can tell, as a warm-up longer than the training, it does not see.
"""

from pathlib import Path

from distiltune.artifacts import new_file
from distiltune.config import CheckConfig, load
from distiltune.runtime import choose_runtime, run_stage

OUTPUT = Path("data/params-checked")


def main() -> None:
    config = load(CheckConfig)
    # The other choices are everywhere, so PyTorch need not be imported to ask.
    if config.device == "cuda" or config.precision not in ("auto", "fp32"):
        choose_runtime(config.device, config.precision)
    with new_file(OUTPUT) as path:
        path.write_text("params.yaml holds no mistake\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage(main)
