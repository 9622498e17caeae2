"""The weights to evaluate and keep, where they are not those that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distiltune.config import OptimizerRow


class EvaluatedWeights:
    """Averages of the weights over the steps, the row's or the optimizer's own.

    `ema_decay` is an exponential average of all steps (Polyak and Juditsky 1992),
    `swa_start_share` the mean of those after a share of them (Izmailov et al. 2018). A
    schedule-free optimizer goes to its average and back by itself (Defazio et al. 2024).
    Without any of these the weights are what they are.
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
        self.model = model
        self.row = row
        self.optimizer = optimizer
        self.first_step = 1
        if row.swa_start_share is not None:
            self.first_step = int(row.swa_start_share * num_steps) + 1
        self.averaged: AveragedModel | None = None
        self._set_mode("train")

    def update(self, step: int) -> None:
        """Take the weights after a step into the average."""
        if self.row.ema_decay is None and self.row.swa_start_share is None:
            return
        if step < self.first_step:
            return
        if self.averaged is None:
            decay = self.row.ema_decay
            self.averaged = AveragedModel(
                self.model, multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay)
            )
        self.averaged.update_parameters(self.model)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the weights to evaluate meanwhile."""
        trained = [parameter.detach().clone() for parameter in self._changed()]
        self.apply()
        try:
            yield
        finally:
            self._set_mode("train")
            for parameter, weights in zip(self._changed(), trained, strict=True):
                parameter.detach().copy_(weights)

    def apply(self) -> None:
        """Leave the model with the weights to evaluate, for good."""
        self._set_mode("eval")
        if self.averaged is not None:
            averages = self.averaged.module.parameters()
            for parameter, average in zip(self.model.parameters(), averages, strict=True):
                parameter.detach().copy_(average)

    def _changed(self) -> list[nn.Parameter]:
        """What `apply` changes; an optimizer that can, goes back itself."""
        return [] if self.averaged is None else list(self.model.parameters())

    def _set_mode(self, name: str) -> None:
        switch = getattr(self.optimizer, name, None)
        if switch is not None:
            switch()
