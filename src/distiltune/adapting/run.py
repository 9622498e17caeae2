"""One execution of the adapt stage: reviews in, weights to start the training from out."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distiltune import InputError
from distiltune.adapting.masking import Masking
from distiltune.adapting.objective import HiddenWords
from distiltune.adapting.reviews import read_adaptation_reviews, with_words
from distiltune.artifacts import WEIGHTS_FILE, new_folder, sha256_of, write_json
from distiltune.batching import Tokens
from distiltune.checkpoint import HISTORY_FOLDER, SOURCE_FILE, checked_weights
from distiltune.config import AdaptConfig, AdaptTable
from distiltune.models import save_model
from distiltune.models.masked import build_masked_model
from distiltune.runtime import (
    SINGLE_THREAD_WEIGHTS,
    choose_runtime,
    code_digest,
    seed_everything,
    version_tags,
)
from distiltune.training.costs import peak_memory_bytes
from distiltune.training.history import ConsoleReporter
from distiltune.training.native import train_native
from distiltune.training.resume import ResumePoints, fingerprint_of


def run_adaptation(
    config: AdaptConfig,
    root: Path,
    *,
    tokens: Path,
    splits: Path,
    unlabelled: Path,
    tokenizer: Path,
    checkpoint: Path,
    output: Path,
) -> tuple[dict[str, Any], Callable[[Path], None]]:
    """Learn to tell hidden words, and write the weights as a checkpoint.

    One that was cut off goes on from its last saved state.

    Args:
        config: what the stage reads of the params; `adapt.epochs` is not 0.
        root: the main checkout, for the states.
        tokens: the folder with the token files; that of the test split is not read.
        splits: the folder with the tables, of which the test split's is read to leave its
            texts out.
        unlabelled: the table of unlabelled reviews.
        tokenizer: the tokenizer's folder.
        checkpoint: the pretrained weights' folder.
        output: the folder to write; besides a checkpoint it has the records in `history`.

    Returns:
        The metrics of the stage, and what to call with their file once that is written.

    Raises:
        InputError: a param does not fit the data or the device, or a file is damaged.
    """
    engine, table = config.training, config.adapt
    from_scratch = config.model_row.architecture.type != "checkpoint"
    pretrained = None if from_scratch else checked_weights(checkpoint)
    runtime = choose_runtime(config.device, config.precision, prefer_fp32_on_cpu=from_scratch)
    reviews = read_adaptation_reviews(
        tokens, splits, unlabelled if table.unlabelled else None, tokenizer
    )
    described = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    train, validation = (
        _masking(part, described, table) for part in (reviews.train, reviews.validation)
    )
    num_steps = engine.num_steps(train.tokens.num_reviews)
    seed_everything(table.seed)
    network = build_masked_model(
        config.model_row, train.tokens.max_length, tokenizer, checkpoint
    ).to(runtime.device)
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    if num_weights < SINGLE_THREAD_WEIGHTS:
        torch.set_num_threads(1)
    print(
        f"adapting {config.model} ({num_weights / 1e6:.1f} M weights) with "
        f"{engine.optimizer}, on {runtime.description}\n"
        f"{reviews.counts['num_train_reviews']:,} training reviews and "
        f"{reviews.counts['num_unlabelled_reviews']:,} unlabelled ones, "
        f"{len(train.tokens.ids):,} tokens; {num_steps:,} steps",
        flush=True,
    )
    facts = {
        "params": _params(config),
        "tags": {"device": runtime.description, **version_tags()},
        "model_row": asdict(config.model_row),
        "speed": asdict(config.speed),
        "data": [train.tokens.digest(), validation.tokens.digest()],
        "code_digest": code_digest("adapt"),
    }
    fingerprint = fingerprint_of(facts, pretrained)
    points = ResumePoints(root, fingerprint, config.resume)
    points.note_run("", time.time())
    try:
        records = train_native(
            engine,
            network,
            train.tokens,
            validation.tokens,
            runtime,
            [ConsoleReporter(num_steps, engine.epochs)],
            points,
            objective=HiddenWords(network, train, validation, runtime, config.speed),
        )
    except InputError:
        points.remove()  # from there it would only fail again
        raise
    summary = {
        **reviews.counts,
        **records.summary(),
        "num_tokens": len(records.epochs) * len(train.tokens.ids),
        "peak_memory_bytes": peak_memory_bytes(runtime.device),
    }
    with new_folder(output) as folder:
        save_model(network, tokenizer, folder)
        if pretrained is not None:
            _keep_pooler(
                network.base_model_prefix, checkpoint / WEIGHTS_FILE, folder / WEIGHTS_FILE
            )
        records.write_tables(folder / HISTORY_FOLDER)
        source = {
            "model": config.model,
            "weights": "adapted",
            "sha256": sha256_of(folder / WEIGHTS_FILE),
            "training": fingerprint,
            **facts,
        }
        write_json(folder / SOURCE_FILE, source)
    return summary, points.finish


def _masking(tokens: Tokens, tokenizer: PreTrainedTokenizerBase, table: AdaptTable) -> Masking:
    """The masking of the reviews that have a word to hide."""
    masking = Masking(tokens, tokenizer, table.masked_share, table.seed)
    if bool((masking.num_words > 0).all()):
        return masking
    kept = with_words(tokens, masking.num_words)
    if not kept.num_reviews:
        raise InputError("adapt.epochs: there is no review with a word to hide; set 0")
    return Masking(kept, tokenizer, table.masked_share, table.seed)


def _params(config: AdaptConfig) -> dict[str, Any]:
    """The table's, flat; as JSON has them."""
    table = asdict(config.adapt)
    optimizer = table.pop("optimizer")
    params = {f"adapt.{name}": value for name, value in table.items()}
    params |= {f"adapt.optimizer.{name}": value for name, value in optimizer.items()}
    params["adapt.learning_rate"] = config.training.learning_rate
    return {name: list(v) if isinstance(v, tuple) else v for name, v in params.items()}


def _keep_pooler(prefix: str, checkpoint: Path, adapted: Path) -> None:
    """Put BERT's pooler, which no head over the vocabulary has, beside the adapted weights."""
    with safe_open(checkpoint, framework="pt") as file:
        names = [name for name in file.keys() if "pooler." in name]  # noqa: SIM118 (no mapping)
        poolers = {
            f"{prefix}.{name.removeprefix(f'{prefix}.')}": file.get_tensor(name) for name in names
        }
    if poolers:
        save_file({**load_file(adapted), **poolers}, adapted, metadata={"format": "pt"})
