"""Task-adaptive pretraining, if it is asked for: weights for the training to start from."""

from pathlib import Path

from distiltune.artifacts import write_json
from distiltune.checkpoint import note_no_adaptation
from distiltune.config import AdaptConfig, load
from distiltune.runtime import project_root, run_stage

OUTPUT, METRICS = Path("data/adapted"), Path("metrics/adapt.json")


def main() -> None:
    config = load(AdaptConfig)
    if not config.adapt.epochs:
        note_no_adaptation(config.model, OUTPUT)
        write_json(METRICS, {"num_epochs": 0})
        return
    # Only here: where nothing is adapted, the stage takes a fraction of PyTorch's start.
    from distiltune.adapting.run import run_adaptation

    summary, finish = run_adaptation(
        config,
        project_root(),
        tokens=Path("data/tokens"),
        splits=Path("data/splits"),
        unlabelled=Path("data/unlabelled.parquet"),
        tokenizer=Path("data/tokenizer"),
        checkpoint=Path("data/checkpoint"),
        output=OUTPUT,
    )
    write_json(METRICS, summary)
    finish(METRICS)


if __name__ == "__main__":
    run_stage(main)
