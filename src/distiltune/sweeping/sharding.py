"""Which experiments of a sweep one of several machines takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from distiltune import InputError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of the parts that a sweep is divided into; as a string `1/2`."""

    number: int  # from 1
    count: int  # of the parts

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def take(self, trials: Sequence[T], num_variants: int) -> tuple[T, ...]:
        """What of a sweep is in this part.

        The parts differ by one experiment at most, and each variant goes to each of them in
        turn, so that a slower machine makes no variant slower than the others.

        Args:
            trials: of the whole sweep, the variants in turn.
            num_variants: how many there are.

        Raises:
            InputError: there are more parts than experiments.
        """
        if self.count > len(trials):
            raise InputError(
                f"--shard {self}: more parts than the sweep has experiments; {len(trials)} at most"
            )
        # After so many trials a part would get the same variants again, so it moves on by one.
        period = math.lcm(num_variants, self.count)
        return tuple(
            trial
            for index, trial in enumerate(trials)
            if (index + index // period) % self.count == self.number - 1
        )
