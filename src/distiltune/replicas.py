"""Several processes that train one model: each computes a share of every batch (data parallelism).

The gradients are summed once in a step, after all of its passes. DistributedDataParallel sums
them while the backward pass runs, which hides a part of that, and ties all processes to the
same passes: one that divides a batch for lack of memory, or that starts recorded ones, would
leave the others waiting for ever.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed


class LostProcessError(Exception):
    """The exchange with the other processes failed, most likely because one has ended."""


class Replicas:
    """This process among those that hold the same model; alone, it exchanges nothing."""

    def __init__(
        self, rank: int = 0, num: int = 1, num_here: int = 1, parent: int | None = None
    ) -> None:
        """Say who this is; the process group is there already.

        Args:
            rank: from 0, which also writes, saves and tracks.
            num: how many processes there are.
            num_here: how many of them share this machine.
            parent: the process that started these, if they are to end with it.
        """
        self.rank = rank
        self.num = num
        self.num_here = num_here
        self._sum: torch.Tensor | None = None
        self._request = torch.zeros(1, dtype=torch.int64)
        self._exchange: Any = None
        self._parent = parent

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """This process's reviews of a batch, in its order: as many as the others, or one less.

        They are dealt out from the longest to the shortest and back, so that all processes
        have about as many tokens.

        Args:
            rows: (num_reviews,).
            lengths: (num_reviews,), in tokens.
        """
        if self.num == 1:
            return rows
        places = torch.arange(len(rows))
        turn, place = places // self.num, places % self.num
        owner = torch.where(turn % 2 == 0, place, self.num - 1 - place)
        by_length = lengths.argsort(descending=True, stable=True)
        return rows[by_length[owner == self.rank].sort().values]

    def share_size(self, batch_size: int) -> int:
        """How many reviews `share` gives of that many."""
        return len(self.share(torch.arange(batch_size), torch.zeros(batch_size)))

    def sum_gradients(self, parameters: Sequence[torch.Tensor], sums: torch.Tensor) -> None:
        """Replace the gradients, and some sums, by those of all processes together.

        Args:
            parameters: the same in all processes, and the same ones with a gradient.
            sums: fp32, on the parameters' device.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.num == 1:
            return
        parts = [p.grad for p in parameters if p.grad is not None] + [sums]
        if self._sum is None:
            self._sum = sums.new_empty(sum(part.numel() for part in parts))
        torch.cat([part.flatten() for part in parts], out=self._sum)
        self.sum(self._sum)
        pieces = self._sum.split([part.numel() for part in parts])
        torch._foreach_copy_(
            parts, [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]
        )

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by the sum of all processes' ones, the same to the bit in all.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.num > 1:
            with _lost_others():
                distributed.all_reduce(tensor)

    def total(self, number: int) -> int:
        """The sum of all processes' numbers.

        Raises:
            LostProcessError: another process has ended.
        """
        tensor = torch.tensor([number])
        self.sum(tensor)
        return int(tensor)

    def close(self) -> None:
        """End the exchange; all processes do, and none of them by an error."""
        if self.num > 1:
            distributed.destroy_process_group()

    def agree(self, request: int | None) -> int | None:
        """What some process asked for at the call before; the same answer in all of them.

        The answer is one call late, so that nobody waits for it. Where the process is gone
        that has started these, it counts as asking them to end.

        Args:
            request: a signal's number, if it has one.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.num == 1:
            return request
        found = self.finish()
        if self._parent is not None and os.getppid() != self._parent:
            request = signal.SIGTERM
        self._request = torch.tensor([request or 0])
        with _lost_others():
            self._exchange = distributed.all_reduce(
                self._request, distributed.ReduceOp.MAX, async_op=True
            )
        return found

    def from_first(self, number: int) -> int:
        """The first process's number, in all of them.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.num == 1:
            return number
        tensor = torch.tensor([number])
        with _lost_others():
            distributed.broadcast(tensor, 0)
        return int(tensor)

    def seed_step(self, seed: int, step: int) -> None:
        """Seed this process's dropout by seed, process and step alone.

        The first one's goes on as it is, and is saved; so a saved state serves all.
        """
        if self.rank:
            sequence = np.random.SeedSequence([seed, self.rank, step])
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def finish(self) -> int | None:
        """Wait for the others where an answer is due, and return it.

        Raises:
            LostProcessError: another process has ended.
        """
        if self._exchange is None:
            return None
        with _lost_others():
            self._exchange.wait()
        self._exchange = None
        return int(self._request) or None


ALONE = Replicas()


@contextlib.contextmanager
def _lost_others() -> Iterator[None]:
    """Turn an error of an exchange into what it means.

    Raises:
        LostProcessError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:  # of torch.distributed: gloo's own errors are no others
        raise LostProcessError(str(error).strip().splitlines()[0]) from error
