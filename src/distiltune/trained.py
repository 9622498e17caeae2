"""A trained model with its tokenizer, from the folder that the train stage writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from distiltune import InputError
from distiltune.artifacts import RUN_FILE, WEIGHTS_FILE, read_json
from distiltune.encoding import TOKENIZER_CONFIG, Encoder, load_tokenizer
from distiltune.models import embedding_of, load_model

TOKENIZER_FILE = "tokenizer.json"
FILES = (RUN_FILE, WEIGHTS_FILE, "config.json", TOKENIZER_FILE, TOKENIZER_CONFIG)
SETTINGS = {"label_names": list, "max_length": int, "truncation": str, "from_scratch": bool}
TRUNCATIONS = ("head", "head_tail")
MAX_REASON = 200  # characters of what the libraries say


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What the train stage made, checked."""

    folder: Path
    model: PreTrainedModel  # fp32, for evaluation, on the CPU
    encoder: Encoder
    label_names: tuple[str, ...]
    from_scratch: bool


def load_trained(folder: Path) -> TrainedModel:
    """Load what the train stage wrote; no code of the folder runs.

    Args:
        folder: weights (safetensors), config, tokenizer and `run.json`.

    Raises:
        InputError: the folder is no such model, or it is damaged.
    """
    settings = _read_settings(folder)
    model = _load(folder, len(settings["label_names"]))
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # the library has no narrower one for a file that it cannot read
        raise InputError(f"{folder / TOKENIZER_FILE}: damaged: {_short(error)}") from None
    size, num_embeddings = tokenizer.get_vocab_size(), embedding_of(model).weight.shape[0]
    if size > num_embeddings:
        raise InputError(
            f"{folder}: {TOKENIZER_FILE} has {size} tokens, the model embeddings for "
            f"{num_embeddings}"
        )
    return TrainedModel(
        folder=folder,
        model=model,
        encoder=Encoder(tokenizer, settings["max_length"], settings["truncation"]),
        label_names=tuple(settings["label_names"]),
        from_scratch=settings["from_scratch"],
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; `dvc repro` makes data/model")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise InputError(
            f"{folder}: no model of the train stage: it has no {', no '.join(missing)}"
        )
    settings: dict[str, Any] = read_json(folder / RUN_FILE)
    for key, kind in SETTINGS.items():
        if not isinstance(settings, dict) or type(settings.get(key)) is not kind:
            raise InputError(
                f"{folder / RUN_FILE}: damaged: {key} is missing, or no {kind.__name__}"
            )
    if settings["truncation"] not in TRUNCATIONS:
        raise InputError(
            f"{folder / RUN_FILE}: damaged: truncation is {settings['truncation']!r}, none of "
            f"{', '.join(TRUNCATIONS)}"
        )
    return settings


def _load(folder: Path, num_labels: int) -> PreTrainedModel:
    """The model, of which every weight was in its file: transformers would make up the others."""
    transformers_logging.set_verbosity_error()  # of those it would speak at length
    try:
        model = load_model(folder)
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            stored = set(file.keys())
    except (SafetensorError, ValueError, OSError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: the model cannot be loaded; it is damaged, or not of the train stage: "
            f"{_short(error)}"
        ) from None
    weights = model.state_dict()
    # A tensor with two names is stored under one.
    shared = {weights[name].data_ptr() for name in stored & weights.keys()}
    lost = sorted(n for n, w in weights.items() if n not in stored and w.data_ptr() not in shared)
    if lost:
        raise InputError(f"{folder / WEIGHTS_FILE}: lacks {len(lost)} weights, {lost[0]} for one")
    if model.config.num_labels != num_labels:
        raise InputError(
            f"{folder}: {RUN_FILE} names {num_labels} classes, config.json has "
            f"{model.config.num_labels}"
        )
    return model


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
