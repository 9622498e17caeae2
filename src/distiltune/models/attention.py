"""Attention within each of a row of concatenated reviews, by device.

All tensors are (num_rows, num_heads, head_size). The queries may have a layout of their
own: in a last block they are one row for each review.
"""

import itertools
from typing import Any

import torch
from torch.nn import functional

from distiltune.models.dropout import draw_mask


class Layout:
    """Where each review's rows are in a (num_rows, ...) tensor.

    Args:
        offsets: (num_reviews + 1,), where each starts.
        lengths: of the reviews, on the host; CUDA takes an upper bound of each too.
    """

    def __init__(self, offsets: torch.Tensor, lengths: list[int]) -> None:
        self.offsets = offsets
        self.int_offsets = offsets.int()  # as the flash kernel takes them
        self.lengths = lengths
        self.num_reviews = len(lengths)
        self.longest = max(lengths)

    def of_rows(self, counts: list[int]) -> "Layout":
        """The layout of so many rows of each review."""
        device = self.offsets.device
        if max(counts) == 1:
            return Layout(torch.arange(self.num_reviews + 1, device=device), counts)
        offsets = torch.tensor([0, *itertools.accumulate(counts)])
        return Layout(offsets.to(device, non_blocking=True), counts)

    def padded_index(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Index (num_reviews, longest) into the rows, and a mask that is true on real ones.

        Padding points at rows here and there, since the gradient of an index that stands
        in many places is summed one after the other on CUDA.
        """
        columns = torch.arange(self.longest, device=self.offsets.device)
        real = columns < self.offsets.diff()[:, None]
        index = (self.offsets[:-1, None] + columns) % num_rows
        return index, real


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    dropout: float,
    *,
    fast: bool = True,
) -> torch.Tensor:
    """Attention within each review (Vaswani et al. 2017).

    On the CPU one review after the other, as products of `torch.bmm`. On CUDA the
    variable-length flash kernel where it can be had; else, or with `fast=False`, the
    reviews are padded for the attention alone.
    """
    if not fast:
        return attend_padded(query, key, value, query_layout, layout, dropout)
    if query.device.type == "cpu":
        return attend_one_by_one(query, key, value, query_layout, layout, dropout)
    if has_varlen_kernel(query):
        return attend_varlen(query, key, value, query_layout, layout, dropout)
    return attend_padded(query, key, value, query_layout, layout, dropout)


def has_varlen_kernel(query: torch.Tensor) -> bool:
    """Whether flash attention takes it: half precision, Ampere or newer, head size."""
    head_size = query.shape[-1]
    return (
        query.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and head_size % 8 == 0
        and head_size <= 256
    )


def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    dropout: float,
) -> torch.Tensor:
    """Products and softmax for each review: see `attend`."""
    mixed: torch.Tensor = _one_by_one(
        query, key, value, query_layout.lengths, layout.lengths, dropout
    )
    return mixed


class _OneByOne(torch.autograd.Function):
    """Written out, since PyTorch's fused kernel for the CPU is slower than its parts.

    Measured in benchmarks/LOG.md; with dropout PyTorch has no fused one at all. Scales
    are applied to rows, of which there are fewer than weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_lengths: list[int],
        lengths: list[int],
        dropout: float,
    ) -> torch.Tensor:
        ctx.query_lengths, ctx.lengths, ctx.scale = query_lengths, lengths, 1.0
        softmax_scale = query.shape[-1] ** -0.5
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        saved = []
        with torch.autocast("cpu", enabled=False):
            parts = _by_review((query, query_lengths), (key, lengths), (value, lengths))
            for (q, k, v), place in zip(parts, output.split(query_lengths), strict=True):
                scores = torch.bmm(q.mul_(softmax_scale), k.transpose(1, 2))
                weights = scores.softmax(-1)  # (num_heads, query_length, length)
                saved.append(weights)
                if dropout > 0.0:
                    mask, ctx.scale = draw_mask(weights, dropout)
                    saved.append(mask)
                    mixed = torch.bmm(weights * mask, v).mul_(ctx.scale)
                else:
                    mixed = torch.bmm(weights, v)
                place.copy_(mixed.transpose(0, 1))
        ctx.save_for_backward(query, key, value, *saved)
        ctx.has_dropout = dropout > 0.0
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return (*_OneByOne.gradients(ctx, gradients[0]), None, None, None)

    @staticmethod
    def gradients(ctx: Any, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Those of query, key and value."""
        query, key, value, *saved = ctx.saved_tensors
        query_lengths, lengths = ctx.query_lengths, ctx.lengths
        softmax_scale = query.shape[-1] ** -0.5
        parts = _by_review(
            (query, query_lengths), (key, lengths), (value, lengths), (gradient, query_lengths)
        )
        outputs = [torch.empty_like(tensor, memory_format=torch.contiguous_format)
                   for tensor in (query, key, value)]  # fmt: skip
        places = zip(
            outputs[0].split(query_lengths),
            outputs[1].split(lengths),
            outputs[2].split(lengths),
            strict=True,
        )
        remaining = iter(saved)
        for (q, k, v, d_mixed), (to_query, to_key, to_value) in zip(parts, places, strict=True):
            weights = kept = next(remaining)
            d_weights = torch.bmm(d_mixed.mul_(ctx.scale), v.transpose(1, 2))
            if ctx.has_dropout:
                mask = next(remaining)
                kept = weights * mask
                d_weights.mul_(mask)
            to_value.copy_(torch.bmm(kept.transpose(1, 2), d_mixed).transpose(0, 1))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            to_query.copy_(torch.bmm(d_scores, k).mul_(softmax_scale).transpose(0, 1))
            to_key.copy_(torch.bmm(d_scores.transpose(1, 2), q.mul_(softmax_scale)).transpose(0, 1))
        return outputs


# Lengths are others each time: a compiler would compile anew.
_one_by_one = torch.compiler.disable(_OneByOne.apply)


def _by_review(*tensors: tuple[torch.Tensor, list[int]]) -> Any:
    """A copy of each review's rows of each tensor, as (num_heads, length, head_size)."""
    split = [tensor.split(lengths) for tensor, lengths in tensors]
    for rows in zip(*split, strict=True):
        yield [part.transpose(0, 1).clone(memory_format=torch.contiguous_format) for part in rows]


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    dropout: float,
) -> torch.Tensor:
    """One masked product for the batch, padded to its longest review: see `attend`."""
    query_index, _ = query_layout.padded_index(len(query))
    index, real = layout.padded_index(len(key))
    mixed = functional.scaled_dot_product_attention(
        query[query_index].transpose(1, 2),
        key[index].transpose(1, 2),
        value[index].transpose(1, 2),
        attn_mask=real[:, None, None, :],
        dropout_p=dropout,
    )
    # Boolean indexing would wait for the device to count the rows; their number is known.
    columns = torch.arange(len(query), device=query.device)
    review = torch.repeat_interleave(
        torch.arange(layout.num_reviews, device=query.device),
        query_layout.offsets.diff(),
        output_size=len(query),
    )
    return mixed.transpose(1, 2)[review, columns - query_layout.offsets[review]]


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    dropout: float,
) -> torch.Tensor:
    """FlashAttention-2 for reviews of different lengths (Dao 2023): see `attend`.

    PyTorch's public `varlen_attn` calls the same operator with no dropout; with dropout
    this calls the operator, as PyTorch's nested tensors do.
    """
    from torch.nn.attention.varlen import varlen_attn

    offsets = (query_layout.int_offsets, layout.int_offsets)
    longest = (query_layout.longest, layout.longest)
    if dropout == 0.0:
        mixed = varlen_attn(query, key, value, *offsets, *longest)
    else:
        mixed = torch.ops.aten._flash_attention_forward(
            query, key, value, *offsets, *longest, dropout, False, False
        )[0]
    assert isinstance(mixed, torch.Tensor)
    return mixed
