"""Brings the pretrained weights, config and tokenizer in, or notes that there are none."""

from pathlib import Path

from distiltune.checkpoint import bring_checkpoint
from distiltune.config import CheckpointConfig, load
from distiltune.runtime import project_root, run_stage


def main() -> None:
    config = load(CheckpointConfig)
    bring_checkpoint(config.model, config.checkpoint, project_root(), Path("data/checkpoint"))


if __name__ == "__main__":
    run_stage(main)
