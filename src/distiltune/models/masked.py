"""Models that tell hidden words (Devlin et al. 2019): built, and computed at those words alone."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DistilBertForMaskedLM,
    PreTrainedModel,
)

from distiltune.config import ModelRow, SpeedTable
from distiltune.models import distilbert_config, load_pretrained, pad
from distiltune.models.packed import packed_states

# What BERT's and RoBERTa's families call the layers from a token's state to the vocabulary.
HEADS = ("cls", "lm_head")


def build_masked_model(
    row: ModelRow, max_length: int, tokenizer_folder: Path, checkpoint_folder: Path
) -> PreTrainedModel:
    """A model with a head over the vocabulary that shares the embeddings' weights.

    Random parts come from PyTorch's seed.

    Args:
        row: the architecture; `checkpoint` loads `checkpoint_folder`, and its head where
            the checkpoint has one.
        max_length: the most tokens that a review has.
        tokenizer_folder: gives the size of the vocabulary and the padding id.
        checkpoint_folder: pretrained weights, read where the architecture says so.

    Raises:
        InputError: the checkpoint does not fit such a model.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    architecture = row.architecture
    assert architecture.type != "lstm"
    if architecture.type == "checkpoint":
        return load_pretrained(
            AutoModelForMaskedLM, checkpoint_folder, len(tokenizer), "a model of masked words"
        )
    return DistilBertForMaskedLM(
        distilbert_config(
            architecture,
            max_length,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def compute_masked_logits(
    model: PreTrainedModel,
    ids: torch.Tensor,
    offsets: torch.Tensor,
    lengths: list[int],
    places: torch.Tensor,
    counts: list[int],
    speed: SpeedTable,
) -> torch.Tensor:
    """Logits over the vocabulary, (num_hidden, vocabulary_size), of the hidden tokens.

    DistilBERT computes them without padding, and in its last block nothing but these
    tokens; other models get padded reviews.

    Args:
        model: of `build_masked_model`.
        ids: (num_tokens,), the reviews one after the other.
        offsets: (num_reviews + 1,), where each starts.
        lengths: the reviews' lengths, on the host.
        places: (num_hidden,), which of `ids` are hidden, in their order.
        counts: how many of them each review has, one or more.
        speed: which shortcuts to take.
    """
    network: Any = model
    if speed.padding_free and isinstance(model, DistilBertForMaskedLM):
        states = packed_states(network.distilbert, ids, offsets, lengths, places, counts, speed)
        states = network.activation(network.vocab_transform(states))
        logits: torch.Tensor = network.vocab_projector(network.vocab_layer_norm(states))
        return logits
    input_ids, attention_mask = pad(ids, offsets, lengths, model.config.pad_token_id or 0)
    # As `pad` lays them out: reviews one below the other, so the order stays.
    is_real = attention_mask.bool()
    hidden = torch.zeros_like(is_real)
    hidden[is_real] = torch.zeros(len(ids), dtype=torch.bool, device=ids.device).index_fill_(
        0, places, True
    )
    head = next((getattr(network, name) for name in HEADS if hasattr(network, name)), None)
    if head is None:
        logits = network(input_ids=input_ids, attention_mask=attention_mask).logits[hidden]
    else:
        states = network.base_model(input_ids=input_ids, attention_mask=attention_mask)[0]
        logits = head(states[hidden])
    return logits
