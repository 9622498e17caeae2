"""Fine-tunes the model on the training tokens, and mirrors the run in MLflow."""

from pathlib import Path

from distiltune.artifacts import write_json
from distiltune.config import TrainConfig, load
from distiltune.runtime import project_root, run_stage
from distiltune.training.launching import is_started, launch

METRICS = Path("metrics/train.json")


def main() -> None:
    config = load(TrainConfig)
    if config.train.processes > 1 and not is_started():
        launch("stages.train", config.train.processes)
        return
    # Only here: to start them, PyTorch is not needed.
    from distiltune.training.joining import joined
    from distiltune.training.run import run_training

    with joined(config.train.processes, config.device) as replicas:
        outcome = run_training(
            config,
            project_root(),
            replicas,
            tokens=Path("data/tokens"),
            tokenizer=Path("data/tokenizer"),
            checkpoint=Path("data/checkpoint"),
            adapted=Path("data/adapted"),
            model=Path("data/model"),
            history=Path("data/history"),
        )
    if outcome is not None:
        summary, finish = outcome
        write_json(METRICS, summary)
        finish(METRICS)


if __name__ == "__main__":
    run_stage(main)
