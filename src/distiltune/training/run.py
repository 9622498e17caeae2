"""One execution of the train stage: data in, model and records out, a run in MLflow."""

import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from distiltune import InputError
from distiltune.artifacts import (
    RUN_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    new_folder,
    sha256_of,
    write_json,
)
from distiltune.batching import Tokens, read_tokens
from distiltune.checkpoint import HISTORY_FOLDER, checked_weights, read_adaptation
from distiltune.config import TrainConfig
from distiltune.models import (
    attention_dropout_of,
    build_model,
    has_padding_free_path,
    save_model,
)
from distiltune.replicas import Replicas
from distiltune.runtime import (
    SINGLE_THREAD_WEIGHTS,
    Runtime,
    choose_runtime,
    code_digest,
    seed_everything,
    version_tags,
)
from distiltune.sending import KEY_TAG, WEIGHTS_TAG
from distiltune.tracking import TrackedRun
from distiltune.training.costs import peak_memory_bytes
from distiltune.training.history import (
    ConsoleReporter,
    History,
    Reporter,
    adaptation_metrics,
    copy_adaptation,
)
from distiltune.training.native import train_native
from distiltune.training.resume import ResumePoints, fingerprint_of, forget
from distiltune.training.trainer import train_with_trainer


def run_training(
    config: TrainConfig,
    root: Path,
    replicas: Replicas,
    *,
    tokens: Path,
    tokenizer: Path,
    checkpoint: Path,
    adapted: Path,
    model: Path,
    history: Path,
) -> tuple[dict[str, Any], Callable[[Path], None]] | None:
    """Train, write the model and the history, and mirror both in MLflow.

    A training that was cut off goes on from its last saved state (`engine: native`).

    Args:
        config: what the stage reads of the params.
        root: the main checkout, for MLflow's store.
        replicas: the processes that train together, in the same folder; the first one writes.
        tokens: the folder with the token files.
        tokenizer: the tokenizer's folder, saved with the model.
        checkpoint: the pretrained weights' folder.
        adapted: what the stage `adapt` made of them, if anything.
        model: the folder to write the model into.
        history: the folder to write the records into.

    Returns:
        The metrics of the stage, and what to call with their file once that is written;
        `None` in the other processes.

    Raises:
        InputError: a param does not fit the data or the device.
        LostProcessError: another process has ended.
    """
    train = read_tokens(tokens / "train.safetensors")
    validation = read_tokens(tokens / "validation.safetensors")
    num_steps = config.num_steps(train.num_reviews)
    from_scratch = config.model_row.architecture.type != "checkpoint"
    adaptation = read_adaptation(adapted)
    start = adapted if adaptation else checkpoint
    pretrained = None if from_scratch and not adaptation else checked_weights(start)
    if adaptation:
        forget(root, adaptation["training"])  # as this stage runs, that one is recorded
    runtime = choose_runtime(config.device, config.precision, prefer_fp32_on_cpu=from_scratch)
    seed_everything(config.seed)
    network = build_model(
        config.model_row,
        train.info.label_names,
        train.max_length,
        tokenizer,
        start,
        None if config.train.attention_dropout == "auto" else config.train.attention_dropout,
        is_adapted=adaptation is not None,
    ).to(runtime.device)
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    if num_weights < SINGLE_THREAD_WEIGHTS:
        torch.set_num_threads(1)
    padding_free = has_padding_free_path(network, config.speed) and config.engine == "native"
    print(
        f"{config.model} ({num_weights / 1e6:.1f} M weights) with {config.optimizer}, engine "
        f"{config.engine}{', padding-free' if padding_free else ''}"
        f"{', adapted' if adaptation else ''}, on {runtime.description}"
        f"{f', {replicas.num} processes' if replicas.num > 1 else ''}\n"
        f"{train.num_reviews:,} reviews, {len(train.ids):,} tokens; {num_steps:,} steps"
        f"{_unusual(config)}",
        flush=True,
    )
    facts = {
        "name": f"{config.model}-{config.optimizer}-{config.seed}",
        "params": {
            **_resolved(config, runtime, network, train, validation, num_steps),
            **(_start_params(adaptation) if adaptation else {}),
        },
        "tags": {"device": runtime.description, **version_tags()},
        "dataset": train.info.dataset,
        "dataset_digest": sha256_of(tokens / "train.safetensors"),
        "validation_digest": sha256_of(tokens / "validation.safetensors"),
        "validation_reviews": validation.reviews_sha256,
        "code_digest": code_digest("train"),
        "label_names": train.info.label_names,
        "max_length": train.max_length,
        "truncation": train.truncation,
        "from_scratch": from_scratch,
        "training": None,
    }
    points = _resume_points(config, root, facts, pretrained, replicas)
    if not replicas.is_first:
        train_native(config, network, train, validation, runtime, [], points, replicas)
        _finish_together(replicas, runtime)
        return None
    tracked = TrackedRun(root, config.tracking.experiment)
    started = time.time()
    if points:
        tracked.key, started = points.note_run(tracked.key, started)
    tracked.start(facts, system_metrics=config.tracking.system_metrics, started=started)
    reporters: list[Reporter] = [ConsoleReporter(num_steps, config.epochs), tracked]
    status = "FAILED"
    try:
        if points is None:
            records = train_with_trainer(config, network, train, validation, runtime, reporters)
        else:
            if points.found:
                earlier = History.from_state(points.found["history"])
                tracked.replay(earlier.steps, earlier.epochs)
            records = train_native(
                config, network, train, validation, runtime, reporters, points, replicas
            )
        summary = {
            **records.summary(),
            "num_tokens": len(records.epochs) * len(train.ids),
            "peak_memory_bytes": _finish_together(replicas, runtime),
        }
        if records.stopped_early:
            print(
                f"ended after {len(records.epochs)} of {config.epochs} epochs: no validation "
                "accuracy came up to train.stop_below",
                flush=True,
            )
        with new_folder(model) as folder:
            save_model(network, tokenizer, folder)
            write_json(folder / RUN_FILE, facts)
        digest = sha256_of(model / WEIGHTS_FILE)
        with new_folder(history) as folder:
            records.write(folder, validation.labels.tolist())
            if adaptation:
                copy_adaptation(adapted / HISTORY_FOLDER, folder)
            for step, figures in adaptation_metrics(folder):
                tracked.log_metrics(figures, step)
            when = {"started": started, "ended": time.time()}
            who = {WEIGHTS_TAG: digest, KEY_TAG: tracked.key}
            write_json(folder / SUMMARY_FILE, {**who, **when, **summary})
        # Only now can `evaluate` find the run: it looks for the weights.
        tracked.set_tags({WEIGHTS_TAG: digest})
        tracked.log_metrics({f"final/{name}": value for name, value in summary.items()})
        if config.tracking.log_model:
            tracked.log_model(model, train.info.label_names)
        status = "FINISHED"
    except InputError:
        if points:
            points.remove()  # from there it would only fail again
        raise
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracked.close(status)
    return summary, points.finish if points else lambda metrics: None


def _finish_together(replicas: Replicas, runtime: Runtime) -> int:
    """End the exchange, so that nobody waits while the first one writes; the memory of all."""
    num_bytes = replicas.total(peak_memory_bytes(runtime.device))
    replicas.close()
    return num_bytes


def _start_params(adaptation: dict[str, Any]) -> dict[str, Any]:
    """Of an adaptation, and of its weights: trainings that start from others do not compare."""
    return {**adaptation["params"], "adapt.weights_sha256": adaptation["sha256"]}


def _resume_points(
    config: TrainConfig,
    root: Path,
    facts: dict[str, Any],
    pretrained: str | None,
    replicas: Replicas,
) -> ResumePoints | None:
    """Where the states of this training are; its fingerprint is noted with the facts."""
    if config.engine != "native":
        return None
    fingerprint = fingerprint_of(facts, pretrained)
    facts["training"] = fingerprint
    return ResumePoints(root, fingerprint, config.resume, replicas)


def _unusual(config: TrainConfig) -> str:
    """What the user has set that changes how, but not what, is computed."""
    chosen = [
        f"speed.{field.name}={str(value).lower()}"
        for field in fields(config.speed)
        if (value := getattr(config.speed, field.name)) != field.default
    ]
    if isinstance(bound := config.train.max_tokens_per_pass, int):
        chosen.append(f"train.max_tokens_per_pass={bound}")
    return "".join(f", {setting}" for setting in chosen)


def _resolved(
    config: TrainConfig,
    runtime: Runtime,
    network: PreTrainedModel,
    train: Tokens,
    validation: Tokens,
    num_steps: int,
) -> dict[str, Any]:
    """The params that this run is made of, of the active rows alone."""
    params: dict[str, Any] = {
        "dataset": train.info.dataset,
        "model": config.model,
        "optimizer": config.optimizer,
        "engine": config.engine,
        "seed": config.seed,
        "device": runtime.device.type,
        "precision": runtime.precision,
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "num_steps": num_steps,
        "split.train": train.num_reviews,
        "split.validation": validation.num_reviews,
        "tokenize.max_length": train.max_length,
        "tokenize.truncation": train.truncation,
    }
    params |= {f"optimizer.{name}": v for name, v in asdict(config.optimizer_row).items()}
    params |= {f"train.{name}": v for name, v in asdict(config.train).items()}
    params["train.attention_dropout"] = attention_dropout_of(network)
    params |= {f"speed.{name}": v for name, v in asdict(config.speed).items()}
    row = asdict(config.model_row)
    for table in ("checkpoint", "architecture", "training"):
        params |= {f"model.{table}.{name}": v for name, v in (row[table] or {}).items()}
    # The resolved values stand above.
    for name in ("train.batch_size", "train.epochs", "model.training.batch_size",
                 "model.training.epochs"):  # fmt: skip
        del params[name]
    # As JSON has them, since a run that is written from the files must say the same.
    return {name: list(v) if isinstance(v, tuple) else v for name, v in params.items()}
