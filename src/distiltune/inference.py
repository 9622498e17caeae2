"""Runs a trained model over a split, without gradients."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from distiltune.batching import Batch, Tokens, batches, length_sorted_batches
from distiltune.config import SpeedTable
from distiltune.models import DEFAULT_SPEED, compute_logits
from distiltune.models.frozen import FrozenDistilBert, can_freeze
from distiltune.replicas import ALONE, Replicas
from distiltune.runtime import Runtime

# On the CPU no more than what its caches hold of the activations.
MAX_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 16_384}
MAX_TOKENS_PER_THREAD = 1024
# Laying out DistilBERT's weights takes as long as some thousand tokens.
MIN_TOKENS_TO_FREEZE = 2000


@torch.inference_mode()
def predict_logits(
    model: PreTrainedModel | FrozenDistilBert,
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
    if len(tokens.ids) >= MIN_TOKENS_TO_FREEZE:
        model = frozen(model, runtime, speed)
    selections = list(length_sorted_batches(tokens.lengths, MAX_TOKENS_PER_THREAD))
    num_threads = model.num_threads if isinstance(model, FrozenDistilBert) else 1
    if not 1 < num_threads <= len(selections) / replicas.num:
        num_threads = 1
        max_tokens = MAX_TOKENS_PER_BATCH[runtime.device.type]
        selections = list(length_sorted_batches(tokens.lengths, max_tokens))
    selections = selections[replicas.rank :: replicas.num]
    outputs = []
    with _forward(model, runtime, speed) as forward, _in_threads(num_threads) as in_threads:
        computed = in_threads(forward, batches(tokens, selections, runtime.device))
        for selection, logits in zip(selections, computed, strict=True):
            outputs.append(logits.float())
            if on_batch:
                on_batch(len(selection))
    in_order = torch.zeros(tokens.num_reviews, model.config.num_labels)
    if selections:
        in_order[torch.cat(selections)] = torch.cat(outputs).cpu()
    replicas.sum(in_order)
    return in_order


@torch.inference_mode()
def frozen(
    model: PreTrainedModel | FrozenDistilBert, runtime: Runtime, speed: SpeedTable = DEFAULT_SPEED
) -> PreTrainedModel | FrozenDistilBert:
    """The model with its weights as they are now, laid out for the CPU, or itself."""
    if isinstance(model, FrozenDistilBert) or not can_freeze(model, runtime.device, speed):
        return model
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[runtime.precision]
    return FrozenDistilBert(model, dtype)


@contextlib.contextmanager
def _in_threads(num: int) -> Iterator[Callable[..., Iterable[torch.Tensor]]]:
    """A `map` in so many threads with a core each, which then never wait for each other."""
    if num == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(num, initializer=torch.set_num_threads, initargs=(1,)) as pool:

            def mapped(
                function: Callable[[Batch], torch.Tensor], items: Iterable[Batch]
            ) -> Iterator[torch.Tensor]:
                ahead: collections.deque[Future[torch.Tensor]] = collections.deque()
                for item in items:
                    ahead.append(pool.submit(function, item))
                    if len(ahead) > 2 * num:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()

            yield mapped
    finally:
        # PyTorch gives a thread's number to all that begin later, too.
        torch.set_num_threads(num)


@contextlib.contextmanager
def _forward(
    model: PreTrainedModel | FrozenDistilBert, runtime: Runtime, speed: SpeedTable
) -> Iterator[Callable[[Batch], torch.Tensor]]:
    """What gives a batch's logits; meanwhile the model drops nothing."""
    if isinstance(model, FrozenDistilBert):
        yield lambda batch: model.logits(batch.ids, batch.lengths)
        return
    # Each batch has another number of reviews, for which it would be compiled anew.
    speed = dataclasses.replace(speed, compile=False)
    was_training = model.training
    model.eval()
    try:
        with runtime.autocast():
            yield lambda batch: compute_logits(
                model, batch.ids, batch.offsets, batch.lengths, speed
            )
    finally:
        model.train(was_training)


def loss_and_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers, each review counted once."""
    loss = functional.cross_entropy(logits, labels).item()
    right = int((logits.argmax(1) == labels).sum())
    return loss, right / len(labels)
