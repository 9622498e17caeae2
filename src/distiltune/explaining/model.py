"""A trained model that is asked about its verdicts."""

from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from transformers import AutoTokenizer, PreTrainedModel

from distiltune import InputError
from distiltune.encoding import TOKENIZER_CONFIG, Encoder, load_tokenizer
from distiltune.runtime import Runtime, choose_runtime
from distiltune.trained import MAX_REASON, load_trained

SINGLE_THREAD_WEIGHTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ExplainableModel:
    """A trained model that explains itself, with how it reads a text."""

    model: PreTrainedModel
    encoder: Encoder
    tokenizer: tokenizers.Tokenizer  # without truncation
    label_names: tuple[str, ...]
    baseline_id: int  # the token that says nothing of a word
    baseline_token: str
    runtime: Runtime
    name: str  # to be shown


def load_explainable(folder: Path, name: str | None = None) -> ExplainableModel:
    """Load the folder that the train stage writes.

    Args:
        folder: weights, config, tokenizer and `run.json`.
        name: to be shown for it.

    Raises:
        InputError: it is not there, not such a folder, or damaged.
    """
    trained = load_trained(folder)
    runtime = choose_runtime("auto", "fp32")
    model = trained.model.requires_grad_(False).to(runtime.device)
    if sum(weights.numel() for weights in model.parameters()) < SINGLE_THREAD_WEIGHTS:
        torch.set_num_threads(1)  # which in training is faster for so small a model too
    reader = load_tokenizer(folder)
    reader.no_truncation()
    reader.no_padding()
    baseline_id = _baseline_id(folder, model)
    return ExplainableModel(
        model=model,
        encoder=trained.encoder,
        tokenizer=reader,
        label_names=trained.label_names,
        baseline_id=baseline_id,
        baseline_token=str(reader.id_to_token(baseline_id)),
        runtime=runtime,
        name=name or str(folder),
    )


def _baseline_id(folder: Path, model: PreTrainedModel) -> int:
    """The token that says nothing of the word in its place.

    [MASK], where the pretraining taught the model that; else the tokenizer's own token for a word
    that it does not know; else padding. Padding is further from what models have seen, and in those
    from scratch it is the zero vector: with it the strongest word of 150 generated reviews was one
    that carries sentiment in 82 %, with [UNK] in 98 %.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers has none for each way in which a file can be wrong
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise InputError(f"{folder / TOKENIZER_CONFIG}: damaged: {reason}") from None
    for found in (tokenizer.mask_token_id, tokenizer.unk_token_id, model.config.pad_token_id):
        if found is not None:
            return int(found)
    raise InputError(f"{folder}: its tokenizer has no token for a mask, an unknown word or padding")
