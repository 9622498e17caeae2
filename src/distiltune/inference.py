"""Runs a trained model over a split, without gradients."""

import dataclasses
from collections.abc import Callable

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from distiltune.batching import Tokens, batches, length_sorted_batches
from distiltune.config import SpeedTable
from distiltune.models import DEFAULT_SPEED, compute_logits
from distiltune.replicas import ALONE, Replicas
from distiltune.runtime import Runtime

# On the CPU no more than what its caches hold of the activations.
MAX_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 16_384}


@torch.inference_mode()
def predict_logits(
    model: PreTrainedModel,
    tokens: Tokens,
    runtime: Runtime,
    speed: SpeedTable = DEFAULT_SPEED,
    *,
    replicas: Replicas = ALONE,
    on_batch: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Logits of every review, (num_reviews, num_labels) fp32 on the CPU, in their order.

    The model is left in the mode, training or not, that it was in. Each of the replicas
    computes some of the batches, and all get the logits. `on_batch` is called with each
    batch's number of reviews.
    """
    # Each batch has another number of reviews, for which it would be compiled anew.
    speed = dataclasses.replace(speed, compile=False)
    was_training = model.training
    model.eval()
    max_tokens = MAX_TOKENS_PER_BATCH[runtime.device.type]
    selections = list(length_sorted_batches(tokens.lengths, max_tokens))
    selections = selections[replicas.rank :: replicas.num]
    outputs = []
    for batch in batches(tokens, selections, runtime.device):
        with runtime.autocast():
            logits = compute_logits(model, batch.ids, batch.offsets, batch.lengths, speed)
        outputs.append(logits.float())
        if on_batch:
            on_batch(len(batch.lengths))
    model.train(was_training)
    in_order = torch.zeros(tokens.num_reviews, model.config.num_labels)
    if selections:
        in_order[torch.cat(selections)] = torch.cat(outputs).cpu()
    replicas.sum(in_order)
    return in_order


def loss_and_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers, each review counted once."""
    loss = functional.cross_entropy(logits, labels).item()
    right = int((logits.argmax(1) == labels).sum())
    return loss, right / len(labels)
