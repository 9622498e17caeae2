"""DistilBERT on concatenated reviews: no padding goes through embeddings and products.

Exact: each review attends to itself alone, its positions start at 0, and in the last
block, of which the classifier reads the first token only, nothing else is computed.
Logits and gradients equal the padded model's (tests/test_models.py). The idea of
computing no padding: Zhai et al. 2023, "ByteTransformer".
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


def packed_logits(
    model: nn.Module, ids: torch.Tensor, offsets: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """The classifier's logits.

    Args:
        model: a `DistilBertForSequenceClassification`; its own modules do the work.
        ids: (num_tokens,), the reviews one after the other.
        offsets: (num_reviews + 1,), where each starts.
        lengths: the reviews' lengths, on the host.

    Returns:
        (num_reviews, num_labels).
    """
    encoder: Any = model.distilbert
    starts = offsets[:-1]
    shift = torch.repeat_interleave(starts, offsets.diff(), output_size=len(ids))
    positions = torch.arange(len(ids), device=ids.device) - shift
    hidden = encoder.embeddings(ids[None], position_ids=positions[None])[0]  # (num_tokens, dim)
    layout = Layout(offsets, lengths)
    *blocks, last_block = encoder.transformer.layer
    for block in blocks:
        hidden = _block(block, hidden, hidden, layout, layout)
    first = _block(last_block, hidden[starts], hidden, layout.first_tokens(), layout)
    classifier: Any = model
    pooled = functional.relu(classifier.pre_classifier(first))
    logits: torch.Tensor = classifier.classifier(classifier.dropout(pooled))
    return logits


class Layout:
    """Where each review's rows are in a (num_rows, ...) tensor."""

    def __init__(self, offsets: torch.Tensor, lengths: list[int]) -> None:
        self.offsets = offsets
        self.lengths = lengths
        self.longest = max(lengths)

    def first_tokens(self) -> "Layout":
        """The layout of one row for each review."""
        num_reviews = len(self.lengths)
        offsets = torch.arange(num_reviews + 1, device=self.offsets.device)
        return Layout(offsets, [1] * num_reviews)

    def padded_index(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Index (num_reviews, longest) into the rows, and a mask that is true on real ones.

        Padding points at rows here and there, since the gradient of an index that stands
        in many places is summed one after the other on CUDA.
        """
        columns = torch.arange(self.longest, device=self.offsets.device)
        real = columns < self.offsets.diff()[:, None]
        index = (self.offsets[:-1, None] + columns) % sum(self.lengths)
        return index, real


def _block(
    block: Any, queries: torch.Tensor, hidden: torch.Tensor, query_layout: Layout, layout: Layout
) -> torch.Tensor:
    """One transformer block for the rows `queries`, which attend to their review's `hidden`."""
    attention = block.attention
    shape = (-1, attention.n_heads, attention.attention_head_size)
    mixed = attend(
        attention.q_lin(queries).view(shape),
        attention.k_lin(hidden).view(shape),
        attention.v_lin(hidden).view(shape),
        query_layout,
        layout,
        dropout=attention.dropout.p if attention.training else 0.0,
    )
    attended = attention.out_lin(mixed.reshape(len(queries), -1))
    attended = block.sa_layer_norm(attended + queries)
    output: torch.Tensor = block.output_layer_norm(block.ffn.ff_chunk(attended) + attended)
    return output


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    dropout: float,
) -> torch.Tensor:
    """Attention within each review; all tensors are (num_rows, num_heads, head_size).

    On the CPU a loop over the reviews, which is as fast as the products are large. On
    CUDA the variable-length flash kernel where it can be had, which has no dropout; else
    the reviews are padded for the attention alone.
    """
    if query.device.type == "cpu":
        return attend_in_loop(query, key, value, query_layout, layout, dropout)
    if dropout == 0.0 and has_varlen_kernel(query):
        return attend_varlen(query, key, value, query_layout, layout)
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


def attend_in_loop(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    dropout: float,
) -> torch.Tensor:
    """One product for each review: see `attend`."""
    reviews = zip(
        query.split(query_layout.lengths),
        key.split(layout.lengths),
        value.split(layout.lengths),
        strict=True,
    )
    outputs = []
    for q, k, v in reviews:
        # scaled_dot_product_attention wants (batch, num_heads, num_rows, head_size).
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)


def attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    dropout: float,
) -> torch.Tensor:
    """One masked product for the batch, padded to its longest review: see `attend`."""
    query_index, _ = query_layout.padded_index()
    index, real = layout.padded_index()
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
        torch.arange(len(layout.lengths), device=query.device),
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
) -> torch.Tensor:
    """The flash kernel for reviews of different lengths (CUDA, half precision): see `attend`."""
    from torch.nn.attention.varlen import varlen_attn

    mixed = varlen_attn(
        query,
        key,
        value,
        query_layout.offsets.int(),
        layout.offsets.int(),
        query_layout.longest,
        layout.longest,
    )
    assert isinstance(mixed, torch.Tensor)
    return mixed
