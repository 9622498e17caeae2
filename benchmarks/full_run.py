"""Whole epochs of the native engine, fast against plain: time, memory, loss by step.

    python -m benchmarks.full_run --tokens data/tokens [--checkpoint data/checkpoint]
        [--epochs 3] [--batch-size 16] [--plain-steps 400]

`fast` is as `params.yaml` has it; on a CPU an epoch of IMDb takes hours. `plain` turns
every entry of `speed` off and is in fp32, for the first steps alone; seed, weights and
batches are the same, so the curves must lie on each other but for dropout's draws. It
writes `full_run.json` and `losses.png`.
"""

import argparse
import dataclasses
import gc
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import inputs
from benchmarks.cases import peak_memory
from benchmarks.report import count, environment, record_folder
from distiltune.artifacts import write_json
from distiltune.batching import Tokens, epoch_order, gather, read_tokens
from distiltune.config import SpeedTable, TrainConfig, load
from distiltune.runtime import Runtime, choose_runtime, run_stage, seed_everything
from distiltune.training.history import ConsoleReporter
from distiltune.training.native import train_native

PLAIN = SpeedTable(**{field.name: False for field in dataclasses.fields(SpeedTable)})
RECORD_EVERY = 20


def train(
    config: TrainConfig,
    checkpoint: Path | None,
    train_tokens: Tokens,
    validation: Tokens,
    runtime: Runtime,
) -> dict[str, Any]:
    """Train once and return seconds by epoch, memory, loss by step."""
    if runtime.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seed_everything(config.seed)
    if checkpoint is None:
        model: Any = inputs.new_distilbert(config.seed)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, num_labels=2, dtype=torch.float32, local_files_only=True
        )
    started = time.perf_counter()
    model = model.to(runtime.device)
    console = ConsoleReporter(config.num_steps(train_tokens.num_reviews), config.epochs)
    history = train_native(config, model, train_tokens, validation, runtime, [console])
    return {
        "precision": runtime.precision,
        "speed": dataclasses.asdict(config.speed),
        "seconds": time.perf_counter() - started,
        "epochs": [dataclasses.asdict(record) for record in history.epochs],
        "steps": [[record.step, record.loss] for record in history.steps],
        # On the CPU a process's peak is that of all its runs so far.
        "peak_memory_bytes": peak_memory(),
    }


def first_steps(tokens: Tokens, config: TrainConfig, num_steps: int) -> Tokens:
    """The reviews of an epoch's first steps, so placed that they come in the same batches."""
    order = epoch_order(tokens.num_reviews, config.seed, 1)[: num_steps * config.batch_size]
    again = epoch_order(len(order), config.seed, 1)
    rows = torch.empty_like(order)
    rows[again] = order
    batch = gather(tokens, rows)
    return dataclasses.replace(
        tokens, ids=batch.ids.int(), offsets=batch.offsets, labels=batch.labels
    )


def write_plot(runs: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    for name, run in runs.items():
        steps, losses = zip(*run["steps"], strict=True)
        axis.plot(steps, losses, label=f"{name} ({run['precision']})", linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel(f"training loss, mean of {RECORD_EVERY} steps")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.full_run", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tokens", type=Path, required=True, help="the folder of token files")
    parser.add_argument("--checkpoint", type=Path, help="pretrained weights; else random ones")
    parser.add_argument("--epochs", type=count, default=3)
    parser.add_argument("--batch-size", type=count, default=16)
    parser.add_argument("--plain-steps", type=int, default=400, help="0 leaves `plain` out")
    parser.add_argument("--output", type=Path, help="a folder other than the dated one")
    arguments = parser.parse_args()
    if not (arguments.tokens / "train.safetensors").exists():
        parser.error(f"{arguments.tokens}: no folder of token files; `dvc repro tokenize` makes it")
    if arguments.plain_steps < 0:
        parser.error(f"--plain-steps: {arguments.plain_steps}: a whole number from 0")
    runtime = choose_runtime(arguments.device, "auto")
    config = load(TrainConfig)
    table = dataclasses.replace(
        config.train,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        log_every_steps=RECORD_EVERY,
    )
    config = dataclasses.replace(config, train=table)
    tokens = read_tokens(arguments.tokens / "train.safetensors")
    validation = read_tokens(arguments.tokens / "validation.safetensors")
    runs = {"fast": train(config, arguments.checkpoint, tokens, validation, runtime)}
    fast = runs["fast"]
    seconds = sum(epoch["train_seconds"] for epoch in fast["epochs"])
    print(
        f"fast: {seconds:.1f} s of training, {fast['seconds']:.1f} s with validations, "
        f"{fast['peak_memory_bytes'] / 1e9:.2f} GB, "
        f"validation accuracy {fast['epochs'][-1]['validation_accuracy']:.2%}",
        flush=True,
    )
    if arguments.plain_steps:
        plain = dataclasses.replace(config, speed=PLAIN, train=dataclasses.replace(table, epochs=1))
        few = first_steps(tokens, config, arguments.plain_steps)
        exact = choose_runtime(arguments.device, "fp32")
        runs["plain"] = train(plain, arguments.checkpoint, few, inputs.made_up_tokens(2), exact)
        plain_seconds = runs["plain"]["epochs"][0]["train_seconds"]
        print(f"plain, {arguments.plain_steps} steps: {plain_seconds:.1f} s", flush=True)
        pairs = zip(fast["steps"], runs["plain"]["steps"], strict=False)
        differences = [abs(a - b) for (_, a), (_, b) in pairs]
        print(f"largest difference of a recorded loss: {max(differences):.4f}")
    folder = arguments.output or record_folder(f"full-run-{runtime.device.type}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "full_run.json", {"environment": environment(runtime), "runs": runs})
    write_plot(runs, folder / "losses.png")
    print(f"written to {folder}")


if __name__ == "__main__":
    run_stage(main)
