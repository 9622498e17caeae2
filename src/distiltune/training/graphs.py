"""Forward and backward passes as CUDA graphs: recorded once, then started by one call.

A pass of DistilBERT is some hundred kernels of a few microseconds, and starting them one
by one takes longer than they do. A graph holds them for fixed shapes, so batches are
filled up to a multiple of tokens and there is one graph for each size that occurs.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distiltune.batching import Batch, add_filler

TOKENS_MULTIPLE = 256
WARM_UPS = 2

Pass = Callable[[Batch], torch.Tensor]
MemoryPool = Any  # PyTorch's handle, whose type is private


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A pass of one size: its inputs' and outputs' places in memory."""

    batch: Batch
    replay: Callable[[], None]
    sums: torch.Tensor
    gradients: list[torch.Tensor | None]


class RecordedPasses:
    """Runs passes from their recordings, and makes those at a size's first time.

    Each recording holds gradients of its own, which are the parameters' after a replay
    and until the next. What cannot be recorded is said once, and runs as it is.
    """

    def __init__(
        self, model: nn.Module, compute: Pass, max_length: int, device: torch.device
    ) -> None:
        """Record nothing yet.

        Args:
            model: whose gradients a pass computes.
            compute: the pass; it must not look at a value on the device, and its
                shapes follow from the batch's.
            max_length: the most tokens of a review.
            device: where the passes run.
        """
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.compute = compute
        self.max_length = max_length
        self.device = device
        self.multiple = min(TOKENS_MULTIPLE, max_length)
        self.recordings: dict[int, Recording] = {}
        self.can_record = True
        self.pool: MemoryPool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def run(self, batch: Batch) -> torch.Tensor:
        """The pass's sums; the parameters' gradients are those of this batch alone.

        Args:
            batch: on the host; as many reviews as in every call.
        """
        filled = add_filler(batch, self.multiple, self.max_length).to(self.device)
        recording = self.recordings.get(len(filled.ids))
        if recording is None and self.can_record:
            recording = self._record(filled)
        if recording is None:
            return self.compute(batch.to(self.device))
        for place, tensor in (
            (recording.batch.ids, filled.ids),
            (recording.batch.offsets, filled.offsets),
            (recording.batch.labels, filled.labels),
        ):
            place.copy_(tensor)
        recording.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.sums

    def _record(self, batch: Batch) -> Recording | None:
        static = Batch(
            ids=batch.ids.clone(),
            offsets=batch.offsets.clone(),
            labels=batch.labels.clone(),
            lengths=batch.lengths,
        )
        try:
            replay, sums = capture(lambda: self.compute(static), self._forget_gradients, self.pool)
        except RuntimeError as error:
            self.can_record = False
            self._forget_gradients()
            reason = str(error).strip().splitlines()[0]
            print(
                f"CUDA graphs: {len(self.recordings)} recorded, the rest runs without: {reason}",
                file=sys.stderr,
                flush=True,
            )
            return None
        gradients = [parameter.grad for parameter in self.parameters]
        recording = Recording(batch=static, replay=replay, sums=sums, gradients=gradients)
        self.recordings[len(static.ids)] = recording
        return recording

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def capture(
    compute: Callable[[], torch.Tensor], forget_gradients: Callable[[], None], pool: MemoryPool
) -> tuple[Callable[[], None], torch.Tensor]:
    """Record a pass on the current CUDA device.

    Args:
        compute: the pass; runs some times before, so that libraries and compilers have
            prepared what they need.
        forget_gradients: makes the pass allocate its gradients anew, as a part of it.
        pool: the memory that recordings share. Those that run one after the other may use
            the same for what they do not hand out; what they do is held, so never shared.

    Returns:
        What runs the recording, and the pass's result, which each run overwrites.

    Raises:
        RuntimeError: a kernel cannot be recorded, or the memory does not suffice.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            forget_gradients()
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    forget_gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = compute()
    return graph.replay, result
