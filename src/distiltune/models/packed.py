"""DistilBERT on concatenated reviews: no padding goes through embeddings and products.

Exact: each review attends to itself alone, its positions start at 0, and in the last
block, of which the classifier reads the first token only, nothing else is computed.
Logits and gradients equal the padded model's (tests/test_models.py). The idea of
computing no padding: Zhai et al. 2023, "ByteTransformer".
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from distiltune.config import SpeedTable
from distiltune.models.attention import Layout, attend
from distiltune.models.dropout import drop


def packed_logits(
    model: nn.Module,
    ids: torch.Tensor,
    offsets: torch.Tensor,
    lengths: list[int],
    speed: SpeedTable,
) -> torch.Tensor:
    """The classifier's logits.

    Args:
        model: a `DistilBertForSequenceClassification`; its own weights do the work.
        ids: (num_tokens,), the reviews one after the other.
        offsets: (num_reviews + 1,), where each starts.
        lengths: the reviews' lengths, on the host; on CUDA an upper bound of each will do.
        speed: which shortcuts to take.

    Returns:
        (num_reviews, num_labels).
    """
    classifier: Any = model
    starts, num_reviews = offsets[:-1], len(lengths)
    first = packed_states(
        classifier.distilbert, ids, offsets, lengths, starts, [1] * num_reviews, speed
    )
    pooled = functional.relu(classifier.pre_classifier(first))
    logits: torch.Tensor = classifier.classifier(_drop(classifier.dropout, pooled, speed))
    return logits


def packed_states(
    model: nn.Module,
    ids: torch.Tensor,
    offsets: torch.Tensor,
    lengths: list[int],
    places: torch.Tensor,
    counts: list[int],
    speed: SpeedTable,
) -> torch.Tensor:
    """The last hidden states of the tokens that a head reads, (num_read, hidden_size).

    Args:
        model: a `DistilBertModel`.
        ids: as in `packed_logits`.
        offsets: as there.
        lengths: as there.
        places: (num_read,), which of `ids` are read, in their order.
        counts: how many of them each review has, one or more.
        speed: which shortcuts to take.
    """
    encoder: Any = model
    starts = offsets[:-1]
    shift = torch.repeat_interleave(starts, offsets.diff(), output_size=len(ids))
    positions = torch.arange(len(ids), device=ids.device) - shift
    hidden = encoder.embeddings.word_embeddings(ids)
    hidden = hidden + encoder.embeddings.position_embeddings(positions)
    hidden = _drop(encoder.embeddings.dropout, encoder.embeddings.LayerNorm(hidden), speed)
    layout = Layout(offsets, lengths)
    *blocks, last_block = encoder.transformer.layer
    compute = _compiled_block() if speed.compile else _block
    for block in blocks:
        hidden = compute(block, hidden, hidden, layout, layout, speed)
    # index_select's gradient is a sum by index; that of hidden[places] sorts first.
    if speed.first_token_only:
        read = hidden.index_select(0, places)
        return compute(last_block, read, hidden, layout.of_rows(counts), layout, speed)
    return compute(last_block, hidden, hidden, layout, layout, speed).index_select(0, places)


@functools.cache
def _compiled_block() -> Callable[..., torch.Tensor]:
    """Compiled for all blocks alike, and for any number of tokens.

    The last block's queries are fewer, which is compiled once more.
    """
    compiled: Callable[..., torch.Tensor] = torch.compile(_block, dynamic=True)
    return compiled


def _block(
    block: Any,
    rows: torch.Tensor,
    hidden: torch.Tensor,
    query_layout: Layout,
    layout: Layout,
    speed: SpeedTable,
) -> torch.Tensor:
    """One transformer block for `rows`, which attend to their review's part of `hidden`."""
    attention = block.attention
    shape = (-1, attention.n_heads, attention.attention_head_size)
    projections = (attention.q_lin, attention.k_lin, attention.v_lin)
    if not speed.fused_projection:
        query, key, value = (
            projection(source).view(shape)
            for projection, source in zip(projections, (rows, hidden, hidden), strict=True)
        )
    elif rows is hidden:
        query, key, value = _project(hidden, projections, shape)
    else:
        query = attention.q_lin(rows).view(shape)
        key, value = _project(hidden, projections[1:], shape)
    mixed = attend(
        query,
        key,
        value,
        query_layout,
        layout,
        dropout=attention.dropout.p if attention.training else 0.0,
        fast=speed.fast_attention,
    )
    attended = attention.out_lin(mixed.reshape(len(rows), -1))
    attended = block.sa_layer_norm(attended + rows)
    inner = block.ffn.lin2(block.ffn.activation(block.ffn.lin1(attended)))
    added = _drop(block.ffn.dropout, inner, speed) + attended
    output: torch.Tensor = block.output_layer_norm(added)
    return output


def _project(
    hidden: torch.Tensor, projections: tuple[Any, ...], shape: tuple[int, int, int]
) -> list[torch.Tensor]:
    """Several projections as one product: `hidden` is read, and cast, once."""
    weight = torch.cat([projection.weight for projection in projections])
    bias = torch.cat([projection.bias for projection in projections])
    parts = functional.linear(hidden, weight, bias).chunk(len(projections), dim=-1)
    return [part.view(shape) for part in parts]


def _drop(dropout: Any, x: torch.Tensor, speed: SpeedTable) -> torch.Tensor:
    return drop(x, dropout.p if dropout.training else 0.0, fast=speed.fast_dropout)
