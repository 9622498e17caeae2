"""Optimizer variants: a name from the params to an optimizer and its schedule."""

from collections.abc import Callable, Iterable

import torch
from transformers import get_scheduler

from distiltune.config import OptimizerRow

Parameters = Iterable[torch.nn.Parameter]


def build_adam(
    parameters: Parameters, row: OptimizerRow, learning_rate: float, fused: bool
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015); weight decay, if any, is added to the gradient."""
    return torch.optim.Adam(
        parameters,
        lr=learning_rate,
        betas=row.betas,
        eps=row.epsilon,
        weight_decay=row.weight_decay,
        # False would rule out the kernels over many weights at once too.
        fused=fused or None,
    )


def build_adamw(
    parameters: Parameters, row: OptimizerRow, learning_rate: float, fused: bool
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), on every weight."""
    return torch.optim.AdamW(
        parameters,
        lr=learning_rate,
        betas=row.betas,
        eps=row.epsilon,
        weight_decay=row.weight_decay,
        fused=fused or None,
    )


Builder = Callable[[Parameters, OptimizerRow, float, bool], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Builder] = {
    "adam": build_adam,
    "adamw": build_adamw,
}


def build_optimizer(
    model: torch.nn.Module, row: OptimizerRow, learning_rate: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """The row's optimizer over all trainable weights.

    Args:
        model: whose weights to train.
        row: the variant.
        learning_rate: the peak rate, after the model's multiplier.
        fused: whether one kernel does the whole update.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[row.algorithm](trainable, row, learning_rate, fused)


def build_schedule(
    optimizer: torch.optim.Optimizer, row: OptimizerRow, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The row's learning rate over the training, to be stepped after every update.

    Both schedules rise linearly from 0 during `warmup_steps`; `linear` then falls to 0
    at `num_steps`.
    """
    name = "constant_with_warmup" if row.schedule == "constant" else "linear"
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        name, optimizer, num_warmup_steps=row.warmup_steps, num_training_steps=num_steps
    )
    return schedule
