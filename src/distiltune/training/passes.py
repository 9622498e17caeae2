"""Forward and backward passes of a step's batches: whole, divided, or recorded."""

import os
import shlex
import shutil
import sys

import torch
from transformers import PreTrainedModel

from distiltune import InputError
from distiltune.batching import Batch, Tokens, divide, lengths_of
from distiltune.config import EngineConfig
from distiltune.models import has_padding_free_path
from distiltune.replicas import ALONE, Replicas
from distiltune.runtime import Runtime, available_memory
from distiltune.training.graphs import RecordedPasses
from distiltune.training.objective import Objective

# Of the free memory, what activations may take; gradients and optimizer are counted apart.
MEMORY_SHARE = 0.8
# Gradient, first and second moment of Adam, for each weight; with others, the gradients' sum.
STATES_PER_WEIGHT = 3
OUT_OF_MEMORY = (
    "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
)  # fmt: skip


class Passes:
    """Computes a step's gradients, whatever number of passes that takes."""

    def __init__(
        self,
        config: EngineConfig,
        model: PreTrainedModel,
        train: Tokens,
        runtime: Runtime,
        objective: Objective,
        replicas: Replicas = ALONE,
    ) -> None:
        """Choose how batches go through the model.

        Args:
            config: bounds and switches.
            model: on the runtime's device.
            train: the reviews.
            runtime: device and precision; fp16 scales the loss (Micikevicius et al. 2018).
            objective: computes the loss.
            replicas: each computes a share of every batch.

        Raises:
            InputError: `speed.compile` is set and there is no compiler.
        """
        self.config = config
        self.model = model
        self.train = train
        self.runtime = runtime
        self.objective = objective
        self.replicas = replicas
        self.parameters = list(model.parameters())
        # Whole batches alone are recorded, which have as many reviews each time.
        self.share_size = replicas.share_size(config.batch_size)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        model.train()
        self.is_padding_free = has_padding_free_path(model, config.speed)
        if config.speed.compile and self.is_padding_free:
            _check_compiler(runtime)
        chosen = config.train.max_tokens_per_pass
        self.max_tokens = None if chosen == "auto" else chosen
        if chosen == "auto" and runtime.device.type == "cpu":
            self.max_tokens = self._max_tokens_in_memory()
        self.recorded: RecordedPasses | None = None
        if (
            config.speed.cuda_graphs
            and objective.can_be_recorded
            and config.speed.fast_attention
            and self.is_padding_free
            and runtime.has_flash_attention
            and not self.scaler.is_enabled()
            and config.train.gradient_accumulation_steps == 1
        ):
            self.recorded = RecordedPasses(model, train.max_length, runtime.device)

    def run(self, group: list[torch.Tensor]) -> torch.Tensor:
        """Add the gradients of the mean loss over a step's targets to the parameters'.

        Args:
            group: the batches' rows; no gradients are there yet.

        Returns:
            (2,), on the device: the sum of the losses, and how many answers were right.

        Raises:
            InputError: the memory does not suffice for the longest review alone.
            LostProcessError: another process has ended.
        """
        num_targets = sum(self.objective.count_targets(rows) for rows in group)
        is_whole = sum(len(rows) for rows in group) == self.config.batch_size
        weight = 1.0
        if self.replicas.num > 1:
            shares = [self.replicas.share(rows, lengths_of(self.train, rows)) for rows in group]
            # Who has none computes one that does not count: so all have the same gradients to sum.
            weight = 1.0 if any(len(rows) for rows in shares) else 0.0
            group = [rows for rows in shares if len(rows)] or [group[0][:1]]
        while True:
            try:
                sums = self._run(group, num_targets, weight, is_whole=is_whole)
                break
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            # Out here the error no longer holds the tensors of its frames.
            self._divide_more(group)
        self.replicas.sum_gradients(self.parameters, sums)
        return sums

    def _run(
        self, group: list[torch.Tensor], num_targets: int, weight: float, *, is_whole: bool
    ) -> torch.Tensor:
        sums = torch.zeros(2, device=self.runtime.device)
        for rows in group:
            parts = self._parts(rows)
            for part in parts:
                batch = self.objective.gather(part)
                can_record = is_whole and len(parts) == 1 and len(part) == self.share_size
                if self.recorded and can_record:
                    sums += self.recorded.run(
                        batch, lambda batch: self._compute(batch, self.config.batch_size)
                    )
                else:
                    on_device = batch.to(self.runtime.device)
                    sums += weight * self._compute(on_device, num_targets, weight)
        return sums

    def _compute(self, batch: Batch, num_targets: int, weight: float = 1.0) -> torch.Tensor:
        loss_sum, right = self.objective.compute(batch)
        self.scaler.scale(loss_sum * weight / num_targets).backward()
        return torch.stack([loss_sum.detach(), right])

    def _parts(self, rows: torch.Tensor) -> list[torch.Tensor]:
        if self.max_tokens is None:
            return [rows]
        return divide(rows, self._costs(rows), self.max_tokens)

    def _costs(self, rows: torch.Tensor) -> torch.Tensor:
        """What each review of a batch counts for: padding too, where there is any."""
        lengths = lengths_of(self.train, rows)
        return lengths if self.is_padding_free else lengths.max().expand(len(rows))

    def _divide_more(self, group: list[torch.Tensor]) -> None:
        """Make room after a pass that did not fit: drop the recordings, then halve the passes."""
        self.model.zero_grad(set_to_none=True)
        had_recordings, self.recorded = self.recorded is not None, None
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        if had_recordings:
            print("out of memory: going on without CUDA graphs", file=sys.stderr, flush=True)
            return
        costs = [self._costs(part) for rows in group for part in self._parts(rows)]
        largest = max(int(part.sum()) for part in costs)
        if all(len(part) == 1 for part in costs):
            raise InputError(
                f"out of memory with one review of {largest} tokens at a time; "
                "set tokenize.max_length to less, or take a smaller model"
            )
        # A long review stays larger than the bound, so that alone is no measure.
        self.max_tokens = min(largest, self.max_tokens or largest) // 2
        _say_division(self.max_tokens, "out of memory")

    def _max_tokens_in_memory(self) -> int | None:
        """The bound that the free memory sets, where a batch may be larger than that.

        On the CPU nothing fails that could be caught: the system ends the process. Where
        it divides, the same seed draws other dropout than where it does not.
        """
        memory = available_memory()
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        rows = self.train.lengths.argsort(descending=True)[:2]
        if len(rows) < 2:
            return None
        with_one, with_two = self._saved_bytes(rows[:1]), self._saved_bytes(rows)
        per_token = (with_two - with_one) / int(self._costs(rows)[1])
        share = memory * MEMORY_SHARE / self.replicas.num_here
        num_states = STATES_PER_WEIGHT + (self.replicas.num > 1)
        budget = max(0.0, share - num_states * weights)
        bound = max(1, int(budget / per_token))
        if bound >= self.share_size * self.train.max_length:
            return None
        _say_division(bound, f"{memory / 1e6:,.0f} MB of memory are free")
        return bound

    def _saved_bytes(self, rows: torch.Tensor) -> int:
        """How much a forward pass keeps for the backward pass."""
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        batch = self.objective.gather(rows)
        state = torch.get_rng_state()
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks:
            found = self.objective.compute(batch)
        torch.set_rng_state(state)
        del found
        return sum(sizes.values())


def _check_compiler(runtime: Runtime) -> None:
    # What is compiled for CUDA still needs a C compiler, for the code that starts it.
    variable, usual = ("CC", "gcc") if runtime.device.type == "cuda" else ("CXX", "g++")
    command = os.environ.get(variable) or usual
    if shutil.which(shlex.split(command)[0]) is None:
        raise InputError(
            f"speed.compile: true needs a compiler, and there is no {command!r} here; "
            f"install one, name it in {variable}, or set false"
        )


def _say_division(max_tokens: int, reason: str) -> None:
    print(
        f"{reason}: batches go through in passes of at most {max_tokens:,} tokens, "
        "with the same gradient (train.max_tokens_per_pass)",
        file=sys.stderr,
        flush=True,
    )


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator and CUDA's libraries raise other errors than PyTorch's own.
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in OUT_OF_MEMORY
    )
