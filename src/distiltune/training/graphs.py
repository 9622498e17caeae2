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

from distiltune import InputError
from distiltune.batching import Batch, add_filler

TOKENS_MULTIPLE = 256
WARM_UPS = 2

Pass = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A pass of one size: where it reads its batch and leaves its sums."""

    batch: Batch
    replay: Callable[[], None]
    sums: torch.Tensor


class RecordedPasses:
    """Runs passes from their recordings, and makes those at a size's first time.

    All recordings share one pool of memory, and leave the gradients in the same tensors:
    they run one after the other, and a step uses up the gradients of one before the next.
    """

    def __init__(self, model: nn.Module, max_length: int, device: torch.device) -> None:
        """Record nothing yet.

        Args:
            model: whose gradients a pass computes.
            max_length: the most tokens of a review.
            device: where the passes run.
        """
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradients: list[torch.Tensor] | None = None
        self.max_length = max_length
        self.device = device
        self.multiple = min(TOKENS_MULTIPLE, max_length)
        self.recordings: dict[int, Recording] = {}
        self.can_record = True
        self.recorder = CudaRecorder() if device.type == "cuda" else None

    def run(self, batch: Batch, compute: Pass) -> torch.Tensor:
        """The pass's sums; the parameters' gradients are those of this batch alone.

        Args:
            batch: on the host; as many reviews as in every call.
            compute: the pass, the same in every call; it must not look at a value on
                the device, its shapes follow from the batch's, and every parameter gets
                a gradient.

        Raises:
            InputError: a kernel cannot be recorded.
        """
        filled = add_filler(batch, self.multiple, self.max_length).to(self.device)
        recording = self.recordings.get(len(filled.ids))
        if recording is None and self.can_record:
            recording = self._record(filled, compute)
        if recording is None:
            return compute(batch.to(self.device))
        assert self.gradients is not None
        for place, tensor in (
            (recording.batch.ids, filled.ids),
            (recording.batch.offsets, filled.offsets),
            (recording.batch.labels, filled.labels),
        ):
            place.copy_(tensor)
        recording.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return recording.sums

    def _record(self, batch: Batch, compute: Pass) -> Recording | None:
        """Record a size; `None`, and said once, where the memory does not suffice."""
        assert self.recorder is not None
        static = Batch(
            ids=batch.ids.clone(),
            offsets=batch.offsets.clone(),
            labels=batch.labels.clone(),
            lengths=batch.lengths,
        )

        def run_once() -> torch.Tensor:
            # Without gradients the pass makes its own, in memory that the next may use.
            self._forget_gradients()
            sums = compute(static)
            assert self.gradients is not None
            found = [parameter.grad for parameter in self.parameters]
            torch._foreach_copy_(self.gradients, [g for g in found if g is not None])
            self._forget_gradients()
            return sums

        try:
            if self.gradients is None:
                self.gradients = [torch.empty_like(parameter) for parameter in self.parameters]
            replay, sums = self.recorder.record(run_once)
        except torch.OutOfMemoryError:
            self.can_record = False
            self._forget_gradients()
            print(
                f"CUDA graphs: no memory for more than {len(self.recordings)} sizes of batches; "
                "the others run without",
                file=sys.stderr,
                flush=True,
            )
            return None
        except RuntimeError as error:
            # The device's state after a failed recording is not defined, so nothing goes on.
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"speed.cuda_graphs: a training step cannot be recorded here: {reason}; "
                "set -S speed.cuda_graphs=false"
            ) from error
        recording = Recording(batch=static, replay=replay, sums=sums)
        self.recordings[len(static.ids)] = recording
        return recording

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


class CudaRecorder:
    """Records on the current CUDA device, all into one pool of memory.

    Recordings that run one after the other may use the same memory for all that they do
    not hand out; what they do is held by a reference, so no later one is given it.
    """

    def __init__(self) -> None:
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()

    def record(
        self, compute: Callable[[], torch.Tensor]
    ) -> tuple[Callable[[], None], torch.Tensor]:
        """Run a pass some times, so that libraries have what they need, and record it.

        Returns:
            What runs the recording, and the pass's result, which each run overwrites.

        Raises:
            RuntimeError: a kernel cannot be recorded, or the memory does not suffice.
        """
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = compute()
        return graph.replay, result
