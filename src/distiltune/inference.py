"""Runs a trained model over a split, without gradients."""

import collections
import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from distiltune.batching import (
    Batch,
    Tokens,
    batches,
    divide,
    length_sorted_batches,
    lengths_of,
)
from distiltune.config import SpeedTable
from distiltune.models import DEFAULT_SPEED, compute_logits
from distiltune.models.frozen import FrozenDistilBert, can_freeze
from distiltune.replicas import ALONE, Replicas
from distiltune.runtime import Runtime

# On the CPU no more than what its caches hold of the activations.
MAX_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 16_384}
MAX_TOKENS_PER_THREAD = 1024  # a quarter to four times as many take as long
# Laying out DistilBERT's weights takes 0.3 to 0.5 s; so many tokens have made up for it.
MIN_TOKENS_TO_FREEZE = 4000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
os.register_at_fork(after_in_child=_pools.clear)  # a child has none of the threads


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
        model = freeze(model, runtime, speed, len(tokens.ids) // replicas.num)
    # All replicas must divide the split alike, whatever each one's machine can do.
    max_tokens = MAX_TOKENS_PER_BATCH[runtime.device.type]
    selections = list(length_sorted_batches(tokens.lengths, max_tokens))
    selections = selections[replicas.rank :: replicas.num]
    num_threads = 1
    if isinstance(model, FrozenDistilBert):
        small = [
            part
            for rows in selections
            for part in divide(rows, lengths_of(tokens, rows), MAX_TOKENS_PER_THREAD)
        ]
        if 1 < torch.get_num_threads() <= len(small):
            selections, num_threads = small, torch.get_num_threads()
    outputs = []
    with _forward(model, runtime, speed) as forward:
        computed = _map(forward, batches(tokens, selections, runtime.device), num_threads)
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
def freeze(
    model: PreTrainedModel | FrozenDistilBert,
    runtime: Runtime,
    speed: SpeedTable = DEFAULT_SPEED,
    num_tokens: int = 0,
) -> PreTrainedModel | FrozenDistilBert:
    """The model laid out for answers on the CPU, to be used while it does not change; or itself.

    `num_tokens` are those that it is known to get: more is laid out for many.
    """
    dtype = DTYPES[runtime.precision]
    if isinstance(model, FrozenDistilBert) or not can_freeze(model, runtime.device, dtype, speed):
        return model
    return FrozenDistilBert(model, dtype, num_tokens)


def _map(
    function: Callable[[Batch], torch.Tensor], items: Iterable[Batch], num_threads: int
) -> Iterator[torch.Tensor]:
    """`map`, by threads that compute an item each and so never wait for each other."""
    if num_threads == 1:
        yield from map(function, items)
        return
    pool = _pool(num_threads)
    ahead: collections.deque[Future[torch.Tensor]] = collections.deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _pool(num_threads: int) -> ThreadPoolExecutor:
    """The threads of this process, in each of which PyTorch uses no other."""
    with _pools_lock:
        if num_threads in _pools:
            return _pools[num_threads]
        begun = threading.Barrier(num_threads + 1)

        def begin() -> None:
            torch.set_num_threads(1)
            torch.get_num_threads()  # keeps it; the thread's first operator would look again
            begun.wait()

        pool = ThreadPoolExecutor(num_threads, "distiltune-inference", begin)
        try:
            for _ in range(num_threads):
                pool.submit(int)  # a thread begins with its first work
            begun.wait()
        except BaseException:
            begun.abort()
            pool.shutdown(wait=False)
            raise
        finally:
            # PyTorch gives the last number set to all threads that begin later.
            torch.set_num_threads(num_threads)
        _pools[num_threads] = pool
        return pool


@contextlib.contextmanager
def _forward(
    model: PreTrainedModel | FrozenDistilBert, runtime: Runtime, speed: SpeedTable
) -> Iterator[Callable[[Batch], torch.Tensor]]:
    """What gives a batch's logits; meanwhile the model drops nothing."""
    if isinstance(model, FrozenDistilBert):
        yield lambda batch: model.logits(batch.ids, batch.offsets, batch.lengths)
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
