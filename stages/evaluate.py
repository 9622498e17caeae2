"""Evaluates the model on the test split: metrics, plots, a prediction for each review."""

from pathlib import Path

from distiltune.config import EvaluateConfig, load
from distiltune.evaluation import run_evaluation
from distiltune.runtime import project_root, run_stage


def main() -> None:
    run_evaluation(
        load(EvaluateConfig),
        project_root(),
        model=Path("data/model"),
        tokens=Path("data/tokens/test.safetensors"),
        table=Path("data/splits/test.parquet"),
        history=Path("data/history"),
        metrics=Path("metrics/test.json"),
        predictions=Path("data/predictions.parquet"),
        mistakes=Path("data/mistakes.json"),
        plots=Path("data/plots"),
    )


if __name__ == "__main__":
    run_stage(main)
