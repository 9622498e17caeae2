"""Optimizer variants: a row of the params to an optimizer and its schedule.

A new one is a class of its row in `config/schema.py`, and a function here in `OPTIMIZERS`.
"""

import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from transformers import get_scheduler

from distiltune import InputError
from distiltune.config import (
    AdafactorRow,
    AdamRow,
    LionRow,
    MuonRow,
    OptimizerRow,
    SgdRow,
    SoapRow,
)
from distiltune.runtime import import_extra

Group = dict[str, Any]
Builder = Callable[[list[Group], Any, bool], torch.optim.Optimizer]

# Of one-cycle's steps, where no warm-up is set: torch's default, and about fastai's.
ONE_CYCLE_WARMUP_SHARE = 0.3
# The number of a block in the names of Hugging Face's models, and of a layer in torch's LSTM.
LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.|_l(\d+)(?:_reverse)?$")


def build_adam(groups: list[Group], row: AdamRow, fused: bool) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015); weight decay, if any, is added to the gradient."""
    # False would rule out the kernels over many weights at once too.
    return torch.optim.Adam(groups, betas=row.betas, eps=row.epsilon, fused=fused or None)


def build_adamw(groups: list[Group], row: AdamRow, fused: bool) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(groups, betas=row.betas, eps=row.epsilon, fused=fused or None)


def build_adamw_8bit(groups: list[Group], row: AdamRow, fused: bool) -> torch.optim.Optimizer:
    """AdamW with its moments in 8 bits, block by block (Dettmers et al. 2022).

    Embeddings keep 32 bits, as the paper advises, and so do weights of less than 4,096
    numbers. Its kernel is fused whatever `fused` says.
    """
    bitsandbytes = import_extra("bitsandbytes", "8bit", "algorithm: 'adamw_8bit'")
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for group in groups:
        if group["role"] == "embedding":
            for parameter in group["params"]:
                manager.override_config(parameter, "optim_bits", 32)
    optimizer = bitsandbytes.optim.AdamW8bit(groups, betas=row.betas, eps=row.epsilon)
    return cast(torch.optim.Optimizer, optimizer)


def build_nadam(groups: list[Group], row: AdamRow, fused: bool) -> torch.optim.Optimizer:
    """Adam with Nesterov's momentum (Dozat 2016), its weight decay decoupled."""
    return torch.optim.NAdam(groups, betas=row.betas, eps=row.epsilon, decoupled_weight_decay=True)


def build_radam(groups: list[Group], row: AdamRow, fused: bool) -> torch.optim.Optimizer:
    """Rectified Adam (Liu et al. 2020), its weight decay decoupled."""
    return torch.optim.RAdam(groups, betas=row.betas, eps=row.epsilon, decoupled_weight_decay=True)


def build_sgd(groups: list[Group], row: SgdRow, fused: bool) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, Nesterov's too (Sutskever et al. 2013)."""
    return torch.optim.SGD(
        groups, momentum=row.momentum, nesterov=row.nesterov, fused=fused or None
    )


def build_adafactor(groups: list[Group], row: AdafactorRow, fused: bool) -> torch.optim.Optimizer:
    """Adafactor, whose second moment is factored (Shazeer and Stern 2018)."""
    return torch.optim.Adafactor(groups, beta2_decay=row.beta2_decay, d=row.clipping_threshold)


def build_lion(groups: list[Group], row: LionRow, fused: bool) -> torch.optim.Optimizer:
    """Lion, signs of an interpolated momentum (Chen et al. 2023)."""
    from pytorch_optimizer import Lion

    return Lion(groups, betas=row.betas)


def build_muon(groups: list[Group], row: MuonRow, fused: bool) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for all other weights.

    Updates are scaled to the size of AdamW's (Liu et al. 2025), so one rate serves both.
    """
    hidden = [group for group in groups if group["role"] == "hidden"]
    others = [group for group in groups if group["role"] != "hidden"]
    if not hidden:
        raise InputError("algorithm: 'muon' needs hidden matrices, and this model has none")
    muon = torch.optim.Muon(
        hidden, momentum=row.momentum, nesterov=row.nesterov, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, betas=row.betas, eps=row.epsilon, fused=fused or None)
    return JoinedOptimizer([muon, adamw])


def build_soap(groups: list[Group], row: SoapRow, fused: bool) -> torch.optim.Optimizer:
    """SOAP, Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024).

    Its first step only initializes the basis. A side of more than 10,000, such as the
    vocabulary, has none.
    """
    from pytorch_optimizer import SOAP

    return SOAP(
        groups,
        betas=row.betas,
        eps=row.epsilon,
        precondition_frequency=row.precondition_frequency,
    )


def build_schedulefree_adamw(
    groups: list[Group], row: AdamRow, fused: bool
) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024), by its authors' library.

    The weights to evaluate are an average; its `train` and `eval` go from and to them.
    """
    from schedulefree import AdamWScheduleFree

    return cast(torch.optim.Optimizer, AdamWScheduleFree(groups, betas=row.betas, eps=row.epsilon))


OPTIMIZERS: dict[str, Builder] = {
    "adam": build_adam,
    "adamw": build_adamw,
    "adamw_8bit": build_adamw_8bit,
    "nadam": build_nadam,
    "radam": build_radam,
    "sgd": build_sgd,
    "adafactor": build_adafactor,
    "lion": build_lion,
    "muon": build_muon,
    "soap": build_soap,
    "schedulefree_adamw": build_schedulefree_adamw,
}


def build_optimizer(
    model: torch.nn.Module, row: OptimizerRow, learning_rate: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """The row's optimizer over all trainable weights.

    Args:
        model: whose weights to train.
        row: the variant.
        learning_rate: the peak rate, after the model's multiplier.
        fused: whether one kernel does the whole update, where torch has one.

    Raises:
        InputError: a package that the algorithm needs is missing, or the model does not
            suit it.
    """
    return OPTIMIZERS[row.algorithm](parameter_groups(model, row, learning_rate), row, fused)


def parameter_groups(
    model: torch.nn.Module, row: OptimizerRow, learning_rate: float
) -> list[Group]:
    """The trainable weights, each once, by rate, weight decay and role; full rate first.

    The roles are `hidden` for the matrices of the blocks, `embedding`, and `other`.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    layers = {name: _layer_number(name) for name in trainable}
    num_layers = 1 + max((number for number in layers.values() if number is not None), default=-1)
    groups: dict[tuple[float, float, str], list[torch.nn.Parameter]] = {}
    for name, parameter in trainable.items():
        number = layers[name]
        if id(parameter) in embeddings or "embed" in name:
            depth = num_layers + 1
        else:
            depth = 0 if number is None else num_layers - number
        role = "other"
        if id(parameter) in embeddings:
            role = "embedding"
        elif number is not None and parameter.ndim == 2:
            role = "hidden"
        decays = row.decay_bias_and_norm or parameter.ndim > 1
        key = (row.layer_decay**depth, row.weight_decay if decays else 0.0, role)
        groups.setdefault(key, []).append(parameter)
    covered = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(covered) == sorted(id(parameter) for parameter in trainable.values())
    return [
        {"params": parameters, "lr": learning_rate * scale, "weight_decay": decay, "role": role}
        for (scale, decay, role), parameters in sorted(groups.items(), key=lambda g: -g[0][0])
    ]


def _layer_number(name: str) -> int | None:
    found = LAYER_NUMBER.search(name)
    return int(found[1] or found[2]) if found else None


class JoinedOptimizer(torch.optim.Optimizer):
    """Several optimizers that step as one, each with weights of its own."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        """Join them; the groups are theirs, so a schedule sets their rates."""
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step each of them.

        Raises:
            ValueError: a closure was given; one loss cannot be evaluated for all.
        """
        if closure is not None:
            raise ValueError("closures are not supported")
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_schedule(
    optimizer: torch.optim.Optimizer, row: OptimizerRow, num_steps: int
) -> LRScheduler:
    """The row's learning rate over the training, to be stepped after every update.

    The rate rises linearly from 0 during the warm-up; then it stays, falls to 0 at
    `num_steps` in a line, or as half a cosine (Loshchilov and Hutter 2017). `one_cycle`
    rises and falls as cosines (Smith and Topin 2018; the rate alone, not the momentum).
    """
    num_warmup_steps = row.num_warmup_steps(num_steps)
    if row.schedule == "one_cycle":
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=num_steps + 1,  # it is stepped once more than it is used
            # Its first phase ends one step before, and may not be empty.
            pct_start=(max(2, num_warmup_steps) / (num_steps + 1))
            if num_warmup_steps
            else ONE_CYCLE_WARMUP_SHARE,
            cycle_momentum=False,
        )
    name = "constant_with_warmup" if row.schedule == "constant" else row.schedule
    return cast(
        LRScheduler,
        get_scheduler(
            name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_steps
        ),
    )
