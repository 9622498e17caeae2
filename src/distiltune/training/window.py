"""The steps between two records of a training, and what is wrong with their losses."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from distiltune import InputError
from distiltune.training.history import StepRecord


@dataclass(frozen=True, kw_only=True)
class WindowStep:
    """What is kept of a step until the next record."""

    loss_sum: torch.Tensor  # on the device
    learning_rate: float
    epoch: int
    batch: int  # of the epoch, from 1; of accumulated ones the last


class Window:
    """The steps since the last record; reading them is the only time that one waits."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self.steps: list[WindowStep] = []
        self.num_targets = 0
        self.num_examples = 0
        self.num_tokens = 0
        self.started = time.perf_counter()

    def add(
        self, step: WindowStep, *, num_targets: int, num_examples: int, num_tokens: int
    ) -> None:
        self.steps.append(step)
        self.num_targets += num_targets
        self.num_examples += num_examples
        self.num_tokens += num_tokens

    def leave_out(self, seconds: float) -> None:
        """Do not count a time in which nothing was trained."""
        self.started += seconds

    def read(self, last_step: int, advice: str) -> list[float]:
        """The losses' sums by step; waits for the device.

        Raises:
            InputError: one is no number.
        """
        if not self.steps:
            return []
        sums: list[float] = torch.stack([step.loss_sum for step in self.steps]).tolist()
        for number, (step, value) in enumerate(
            zip(self.steps, sums, strict=True), last_step - len(sums) + 1
        ):
            if not math.isfinite(value):
                raise InputError(
                    f"the loss is {value} at step {number} (epoch {step.epoch}, batch "
                    f"{step.batch}), learning rate {step.learning_rate:g}; {advice}"
                )
        return sums

    def state(self) -> dict[str, Any]:
        """The steps, and the seconds that they took."""
        return {
            "steps": [vars(step) for step in self.steps],
            "num_targets": self.num_targets,
            "num_examples": self.num_examples,
            "num_tokens": self.num_tokens,
            "seconds": time.perf_counter() - self.started,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, in another process."""
        self.steps = [WindowStep(**step) for step in state["steps"]]
        self.num_targets = state["num_targets"]
        self.num_examples, self.num_tokens = state["num_examples"], state["num_tokens"]
        self.started = time.perf_counter() - state["seconds"]

    def close(
        self,
        losses: list[float],
        *,
        step: int,
        epoch: float,
        norm: torch.Tensor | None,
        optimizer_seconds: Callable[[], float | None],
    ) -> StepRecord:
        seconds = time.perf_counter() - self.started
        record = StepRecord(
            step=step,
            epoch=epoch,
            loss=sum(losses) / self.num_targets,
            learning_rate=self.steps[-1].learning_rate,
            gradient_norm=None if norm is None else norm.item(),
            tokens_per_second=self.num_tokens / seconds,
            examples_per_second=self.num_examples / seconds,
            optimizer_seconds=optimizer_seconds(),
        )
        self._open()
        return record
