"""Builds, saves and loads classifiers, and computes their logits on unpadded reviews."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from distiltune import InputError
from distiltune.config import DistilBertArchitecture, ModelRow, SpeedTable
from distiltune.models.lstm import LstmConfig, LstmForSequenceClassification
from distiltune.models.packed import packed_logits

# What transformers' configs call it.
MAX_REASON = 300  # characters of what transformers says
ATTENTION_DROPOUT_NAMES = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop")
DEFAULT_SPEED = SpeedTable()


def build_model(
    row: ModelRow,
    label_names: tuple[str, ...],
    max_length: int,
    tokenizer_folder: Path,
    checkpoint_folder: Path,
    attention_dropout: float | None = None,
    *,
    is_adapted: bool = False,
) -> PreTrainedModel:
    """A classifier ready to be trained; random parts come from PyTorch's seed.

    Args:
        row: the architecture; `checkpoint` loads `checkpoint_folder` and draws a new head.
        label_names: the classes.
        max_length: the most tokens that a review has.
        tokenizer_folder: gives the size of the vocabulary and the padding id.
        checkpoint_folder: pretrained weights, read where the architecture says so.
        attention_dropout: the share of attention weights to drop; `None` is the
            architecture's own.
        is_adapted: read the weights there, whatever the architecture.

    Raises:
        InputError: the checkpoint does not fit a classifier that transformers has, or
            the model has no attention dropout to set.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    labels = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: i for i, name in enumerate(label_names)},
    }
    architecture = row.architecture
    if architecture.type == "checkpoint" or is_adapted:
        model = load_pretrained(
            AutoModelForSequenceClassification,
            checkpoint_folder,
            len(tokenizer),
            "a classifier",
            attention_dropout,
            **labels,
        )
        if model.config.pad_token_id is None:
            # Some models look at it to find a review's end; GPT-2's has none.
            model.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
        return model
    common = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **labels}
    if architecture.type == "lstm":
        assert attention_dropout is None
        return LstmForSequenceClassification(
            LstmConfig(
                embedding_size=architecture.embedding_size,
                hidden_size=architecture.hidden_size,
                num_hidden_layers=architecture.num_layers,
                dropout=architecture.dropout,
                **common,
            )
        )
    return DistilBertForSequenceClassification(
        distilbert_config(architecture, max_length, attention_dropout, **common)
    )


def distilbert_config(
    architecture: DistilBertArchitecture,
    max_length: int,
    attention_dropout: float | None = None,
    **common: Any,
) -> DistilBertConfig:
    """The config of a DistilBERT from scratch; `common` is what it shares with other models'."""
    return DistilBertConfig(
        dim=architecture.hidden_size,
        n_layers=architecture.num_layers,
        n_heads=architecture.num_heads,
        hidden_dim=architecture.feed_forward_size,
        dropout=architecture.dropout,
        attention_dropout=architecture.dropout if attention_dropout is None else attention_dropout,
        seq_classif_dropout=architecture.dropout,
        initializer_range=architecture.initializer_range,
        max_position_embeddings=max_length,
        **common,
    )


def load_pretrained(
    model_class: Any,
    folder: Path,
    vocabulary_size: int,
    purpose: str,
    attention_dropout: float | None = None,
    **config_values: Any,
) -> PreTrainedModel:
    """A checkpoint's body with the head of a class; one that it does not have is drawn.

    Args:
        model_class: one of transformers' `AutoModelFor...`.
        folder: weights and config.
        vocabulary_size: of the tokenizer.
        purpose: what such a model is, for errors.
        attention_dropout: the share of attention weights to drop; `None` is its own.
        config_values: what stands in the config instead.

    Raises:
        InputError: transformers has no such model, weights are missing, or the model has
            no attention dropout to set.
    """
    # Silences the note that the head is new, which is what fine-tuning means.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    cannot = f"the checkpoint cannot be loaded as {purpose}: "
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **config_values)
        if attention_dropout is not None:
            _set_attention_dropout(config, attention_dropout)
        model: PreTrainedModel
        model, loaded = model_class.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            # Of the body that is looked at below; a head for other classes is drawn anew.
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(f"{cannot}{' '.join(str(error).split())[:MAX_REASON]}") from None
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    if vocabulary_size > num_embeddings:
        raise InputError(
            f"the checkpoint's tokenizer has a vocabulary of {vocabulary_size} tokens, and its "
            f"weights have embeddings for {num_embeddings}"
        )
    # Those of the head are new, and of the pooler before it in some; others would be random.
    body = f"{model.base_model_prefix}."
    if missing := sorted(
        name for name in loaded["missing_keys"] if name.startswith(body) and ".pooler." not in name
    ):
        raise InputError(
            f"{cannot}its weights lack {len(missing)} of {config.model_type}'s, "
            f"{missing[0]} for one"
        )
    if others := [name for name, *_ in loaded["mismatched_keys"] if name.startswith(body)]:
        raise InputError(f"{cannot}{others[0]} has not the shape that its config.json says")
    return model


def attention_dropout_of(model: PreTrainedModel) -> float | None:
    """The share of attention weights that training drops; `None` where there is no attention."""
    names = [name for name in ATTENTION_DROPOUT_NAMES if hasattr(model.config, name)]
    return float(getattr(model.config, names[0])) if names else None


def _set_attention_dropout(config: PretrainedConfig, attention_dropout: float) -> None:
    found = [name for name in ATTENTION_DROPOUT_NAMES if hasattr(config, name)]
    if not found:
        raise InputError(
            f"train.attention_dropout: a {config.model_type} checkpoint has none of "
            f"{', '.join(ATTENTION_DROPOUT_NAMES)}; set auto"
        )
    for name in found:
        setattr(config, name, attention_dropout)


def save_model(model: PreTrainedModel, tokenizer_folder: Path, output: Path) -> None:
    """Write weights (safetensors), config and tokenizer into one folder.

    Raises:
        InputError: the disk does not take them.
    """
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(output)
    except SafetensorError as error:
        raise InputError(f"{output}: cannot be written: {error}") from None
    for file in tokenizer_folder.iterdir():
        shutil.copyfile(file, output / file.name)


def load_model(folder: Path) -> PreTrainedModel:
    """Load what `save_model` wrote, for evaluation."""
    AutoConfig.register(LstmConfig.model_type, LstmConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(
        LstmConfig, LstmForSequenceClassification, exist_ok=True
    )
    transformers_logging.disable_progress_bar()
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.eval()


def embedding_of(model: PreTrainedModel) -> Any:
    """The embedding of words."""
    if isinstance(model, LstmForSequenceClassification):
        return model.embedding
    return model.get_input_embeddings()


def compute_logits(
    model: PreTrainedModel,
    ids: torch.Tensor,
    offsets: torch.Tensor,
    lengths: list[int],
    speed: SpeedTable = DEFAULT_SPEED,
) -> torch.Tensor:
    """Logits (num_reviews, num_labels) of concatenated reviews.

    DistilBERT computes them as they are; any other model, or DistilBERT without
    `speed.padding_free`, gets them padded to the longest.

    Args:
        model: any sequence classifier of transformers, or the LSTM.
        ids: (num_tokens,).
        offsets: (num_reviews + 1,), where each review starts.
        lengths: the reviews' lengths, on the host.
        speed: which shortcuts to take.
    """
    if has_padding_free_path(model, speed):
        return packed_logits(model, ids, offsets, lengths, speed)
    input_ids, attention_mask = pad(ids, offsets, lengths, model.config.pad_token_id or 0)
    logits: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return logits


def has_padding_free_path(model: PreTrainedModel, speed: SpeedTable) -> bool:
    return speed.padding_free and isinstance(model, DistilBertForSequenceClassification)


def pad(
    ids: torch.Tensor, offsets: torch.Tensor, lengths: list[int], padding_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and attention mask, (num_reviews, longest) int64, padded on the right."""
    columns = torch.arange(max(lengths), device=ids.device)
    real = columns < offsets.diff()[:, None]
    index = torch.where(real, offsets[:-1, None] + columns, 0)
    return torch.where(real, ids[index], padding_id), real.long()
