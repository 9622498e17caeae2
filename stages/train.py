"""Fine-tunes the model on the training tokens, and mirrors the run in MLflow."""

from pathlib import Path

from distiltune.artifacts import write_json
from distiltune.config import TrainConfig, load
from distiltune.runtime import project_root, run_stage
from distiltune.training.run import run_training

METRICS = Path("metrics/train.json")


def main() -> None:
    summary, finish = run_training(
        load(TrainConfig),
        project_root(),
        tokens=Path("data/tokens"),
        tokenizer=Path("data/tokenizer"),
        checkpoint=Path("data/checkpoint"),
        adapted=Path("data/adapted"),
        model=Path("data/model"),
        history=Path("data/history"),
    )
    write_json(METRICS, summary)
    finish(METRICS)


if __name__ == "__main__":
    run_stage(main)
