"""Dropout (Srivastava et al. 2014) from 16 random bits for each element.

On the CPU drawing a float for each element takes longer than many a matrix product;
64 bits at a time from the same generator decide about four elements.
"""

from typing import Any

import torch
from torch.nn import functional

RESOLUTION = 1 << 16


def drop(x: torch.Tensor, probability: float, *, fast: bool = True) -> torch.Tensor:
    """Set elements to zero with a probability and scale the rest, so that the mean stays.

    Args:
        x: any shape.
        probability: of a zero; on the CPU rounded to 1/65536, which the scale respects.
        fast: false takes PyTorch's own function, as CUDA does always.
    """
    if probability == 0.0:
        return x
    if not fast or x.device.type != "cpu":
        return functional.dropout(x, probability)
    out: torch.Tensor = _Dropout.apply(x, probability)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
    return out


def draw_mask(like: torch.Tensor, probability: float) -> tuple[torch.Tensor, float]:
    """A mask of 1 where an element stays and 0 where not, and what to scale those by.

    The mask has the type of `like`, because a product of two types converts one first.
    """
    num_elements = like.numel()
    words = torch.empty((num_elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    num_dropped = min(round(probability * RESOLUTION), RESOLUTION - 1)
    bits = words.view(torch.int16)[:num_elements].view(like.shape)
    mask = torch.ge(
        bits, num_dropped - RESOLUTION // 2, out=torch.empty_like(bits, dtype=like.dtype)
    )
    return mask, RESOLUTION / (RESOLUTION - num_dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, probability: float) -> torch.Tensor:
        mask, ctx.scale = draw_mask(x, probability)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask).mul_(ctx.scale), None
