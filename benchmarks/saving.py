"""What it costs a training to save its state.

    python -m benchmarks.saving [--saves 5] [--output FOLDER]

Saves the state of DistilBERT and its optimizer as `train` does, while products of matrices keep the
device busy, and compares how many of them it gets done with how many it does otherwise. It
writes `saving.json` and prints a line for each save.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import inputs
from benchmarks.report import count, environment, record_folder
from distiltune import InputError
from distiltune.artifacts import write_json
from distiltune.config import ResumeTable, TrainConfig, load
from distiltune.optimizers import build_optimizer
from distiltune.runtime import Runtime, choose_runtime, run_stage
from distiltune.training.resume import FOLDER, ResumePoints

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 3.0  # of work alone


def measure(num_saves: int, runtime: Runtime) -> list[dict[str, float]]:
    """Time each save.

    Args:
        num_saves: one after the other, with work alone between them.
        runtime: where model and products are.

    Returns:
        For each: `copy_seconds`, in which the training waits; `write_seconds` after that;
        `rate`, of products meanwhile, where 1 is without a save; and `lost_seconds`, both together.
    """
    config = load(TrainConfig)
    model = inputs.new_distilbert().to(runtime.device)
    optimizer = build_optimizer(model, config.optimizer_row, config.learning_rate, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    matrix = torch.randn(2048, 2048, device=runtime.device)
    saves = []
    folder_of_states = ROOT / FOLDER
    folder_of_states.mkdir(parents=True, exist_ok=True)
    # On the disk where `train` has them; a folder for temporary files may be in memory.
    with tempfile.TemporaryDirectory(dir=folder_of_states.parent) as folder:
        # Due again as soon as the state before is written, by which its end is seen.
        points = ResumePoints(
            Path(folder), "0" * 64, ResumeTable(every_seconds=1e-6, every_steps=None)
        )
        for step in range(1, num_saves + 1):
            alone = products_per_second(matrix, partial(is_past, time.perf_counter() + SECONDS))
            began = time.perf_counter()
            points.save(step, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            copied = time.perf_counter()
            meanwhile = products_per_second(matrix, partial(points.is_due, step))
            write = time.perf_counter() - copied
            if not points.wait():
                raise InputError(f"state {step} was not written")
            rate = min(1.0, meanwhile / alone)
            saves.append(
                {
                    "copy_seconds": copied - began,
                    "write_seconds": write,
                    "rate": rate,
                    "lost_seconds": copied - began + write * (1 - rate),
                }
            )
        points.remove()
    return saves


def is_past(moment: float) -> bool:
    return time.perf_counter() >= moment


def products_per_second(matrix: torch.Tensor, is_over: Callable[[], bool]) -> float:
    """Multiply until it is over, at least once."""
    began, number = time.perf_counter(), 0
    while not number or not is_over():
        matrix @ matrix
        if matrix.is_cuda:
            torch.cuda.synchronize()
        number += 1
    return number / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--saves", type=count, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runtime = choose_runtime("auto", "auto")
    every = load(TrainConfig).resume.every_seconds
    saves = measure(arguments.saves, runtime)
    for save in saves:
        print(
            f"{save['copy_seconds']:.2f} s for the copy, {save['write_seconds']:.2f} s for the "
            f"writing at {save['rate']:.0%} of the rate: {save['lost_seconds']:.2f} s lost"
        )
    lost = statistics.median(save["lost_seconds"] for save in saves)
    shares = "" if every is None else f", {lost / every:.2%} of the time at the params' {every:g} s"
    print(f"median: {lost:.2f} s lost for each state{shares}")
    output = arguments.output or record_folder("saving")
    output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"environment": environment(runtime), "saves": saves}
    write_json(output / "saving.json", {**record, "median_lost_seconds": lost})
    print(output)


if __name__ == "__main__":
    run_stage(main)
