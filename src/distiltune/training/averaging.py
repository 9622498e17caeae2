"""The weights to evaluate and keep, where they are not those that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from distiltune.config import OptimizerRow


class EvaluatedWeights:
    """Averages of the weights over the steps, the row's or the optimizer's own.

    `ema_decay` is an exponential average of all steps (Polyak and Juditsky 1992),
    `swa_start_share` the mean of those after a share of them (Izmailov et al. 2018). A
    schedule-free optimizer goes to its average and back by itself (Defazio et al. 2024).
    Without any of these the weights are what they are.

    torch.optim.swa_utils does the same and waits for the device in each step.
    """

    def __init__(
        self, model: nn.Module, row: OptimizerRow, optimizer: torch.optim.Optimizer, num_steps: int
    ) -> None:
        """Begin no average yet.

        Args:
            model: whose weights are trained.
            row: says which average.
            optimizer: of the row.
            num_steps: of the whole training.
        """
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.row = row
        self.optimizer = optimizer
        self.first_step = 1
        if row.swa_start_share is not None:
            self.first_step = int(row.swa_start_share * num_steps) + 1
        self.averages: list[torch.Tensor] = []
        self.num_averaged = 0
        self._set_mode("train")

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step into the average."""
        decay = self.row.ema_decay
        if (decay is None and self.row.swa_start_share is None) or step < self.first_step:
            return
        self.num_averaged += 1
        if not self.averages:
            self.averages = [parameter.clone() for parameter in self.parameters]
            return
        weight = 1 / self.num_averaged if decay is None else 1 - decay
        torch._foreach_lerp_(self.averages, self.parameters, weight)

    @property
    def num_bytes(self) -> int:
        """What the average takes beside the weights."""
        return sum(average.numel() * average.element_size() for average in self.averages)

    def state(self) -> dict[str, Any]:
        """What a training must save to go on."""
        return {"averages": self.averages, "num_averaged": self.num_averaged}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        device = self.parameters[0].device
        self.averages = [average.to(device) for average in state["averages"]]
        self.num_averaged = state["num_averaged"]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the weights to evaluate meanwhile."""
        # An optimizer that has an average of its own goes back by itself, but for rounding.
        is_changed = bool(self.averages) or hasattr(self.optimizer, "train")
        trained = [p.detach().clone() for p in self.parameters] if is_changed else []
        self.apply()
        try:
            yield
        finally:
            self._set_mode("train")
            self._copy(trained)

    def apply(self) -> None:
        """Leave the model with the weights to evaluate, for good."""
        self._set_mode("eval")
        self._copy(self.averages)

    @torch.no_grad()
    def _copy(self, weights: list[torch.Tensor]) -> None:
        if weights:
            torch._foreach_copy_(self.parameters, weights)

    def _set_mode(self, name: str) -> None:
        switch = getattr(self.optimizer, name, None)
        if switch is not None:
            switch()
