"""DistilBERT whose weights no longer change, laid out once for the CPU.

Exact as `packed` is, for answers without gradients. Each product's weights are joined,
rounded and brought into the order in which oneDNN reads them ("weight prepacking"),
which otherwise happens anew in every product. In the last block, of which one token is
read, keys and values are never made: the keys' weights are absorbed into that token's
query, and the values' are applied to what it attends to (the absorption of DeepSeek-AI
2024, "DeepSeek-V2", for multi-head latent attention). Where many times the
vocabulary's tokens come, the first block's queries, keys and values are looked up: before it, a
token is a row of one table plus a row of another, and a norm.
"""

import functools
from typing import Any

import torch
from torch.nn import functional
from transformers import DistilBertForSequenceClassification, PreTrainedModel
from transformers.activations import GELUActivation

from distiltune.config import SpeedTable

ROWS = 1024  # which the weights are laid out for; others are only a little slower
# A row of the first block's tables costs what it saves a token, and memory.
MIN_TOKENS_PER_TABLE_ROW = 4
MAX_TABLE_BYTES = 2**29  # 140 MB in bf16 and 290 in fp32 for DistilBERT of English


def can_freeze(
    model: PreTrainedModel, device: torch.device, dtype: torch.dtype, speed: SpeedTable
) -> bool:
    """Whether `FrozenDistilBert` may stand for it: DistilBERT, no shortcut turned off, oneDNN."""
    return (
        isinstance(model, DistilBertForSequenceClassification)
        and speed.prepacked_weights
        and speed.padding_free
        and speed.first_token_only
        and speed.fused_projection
        and speed.fast_attention
        and device.type == "cpu"
        and has_operators(dtype)
    )


@functools.cache
def has_operators(dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed products are there, and right, on the CPUs they were measured on."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    linear = torch.nn.Linear(16, 8)
    x = torch.eye(16)
    # PyTorch has no public name for them, so another release may have others.
    try:
        found = _Product([linear], dtype)(x.to(dtype), gelu=True)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found.float(), functional.gelu(linear(x)), atol=2e-2)


class FrozenDistilBert:
    """A classifier for inference on the CPU.

    Args:
        model: a `DistilBertForSequenceClassification`, which must not change while this is
            used: embeddings, norms and head are shared, the blocks' weights are copied.
        dtype: of the blocks' products, fp32 or bf16; sums and norms stay fp32.
        num_tokens: of all the texts that it is made for, as far as is known.
    """

    def __init__(self, model: Any, dtype: torch.dtype, num_tokens: int = 0) -> None:
        self.config = model.config
        self.embeddings = model.distilbert.embeddings
        self.pre_classifier, self.classifier = model.pre_classifier, model.classifier
        *blocks, last_block = model.distilbert.transformer.layer
        self.blocks = [_Block(block, dtype) for block in blocks]
        num_rows = self.config.vocab_size + self.config.max_position_embeddings
        num_bytes = num_rows * 3 * self.config.dim * dtype.itemsize
        has_tables = num_tokens >= MIN_TOKENS_PER_TABLE_ROW * num_rows and (
            num_bytes <= MAX_TABLE_BYTES and len(blocks) > 0
        )
        self.tables = _Tables(self.embeddings, blocks[0].attention, dtype) if has_tables else None
        self.last_block = _LastBlock(last_block, dtype)

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, offsets: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """(num_reviews, num_labels) fp32.

        Args:
            ids: (num_tokens,), the reviews one after the other.
            offsets: (num_reviews + 1,), where each starts.
            lengths: the reviews' lengths.
        """
        starts = offsets[:-1]
        positions = torch.arange(len(ids)) - torch.repeat_interleave(starts, offsets.diff())
        hidden = self.embeddings.word_embeddings(ids)
        hidden += self.embeddings.position_embeddings(positions)
        norm = self.embeddings.LayerNorm
        hidden, _, scales = torch.native_layer_norm(
            hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        projected = self.tables.project(ids, positions, scales) if self.tables else None
        for block in self.blocks:
            hidden = block.transform(hidden, lengths, projected)
            projected = None
        first = self.last_block.transform(hidden, starts, lengths)
        logits: torch.Tensor = self.classifier(functional.relu(self.pre_classifier(first)))
        return logits


class _Product:
    """Linear layers that read the same rows, as one product with packed weights."""

    def __init__(self, linears: list[Any], dtype: torch.dtype) -> None:
        weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
        self.bias = torch.cat([linear.bias.detach() for linear in linears]).to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def __call__(self, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
        after, algorithm = ("gelu", "none") if gelu else ("none", "")
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, after, [], algorithm
        )
        return output


class _Tables:
    """What a block's queries, keys and values are before the norm, by token and by position.

    A norm subtracts the mean and divides by the deviation. The first can be done in the
    tables, since means add up; the second is a factor for each token, applied after.
    """

    def __init__(self, embeddings: Any, attention: Any, dtype: torch.dtype) -> None:
        norm = embeddings.LayerNorm
        linears = (attention.q_lin, attention.k_lin, attention.v_lin)
        weight = torch.cat([linear.weight.detach() for linear in linears])
        bias = torch.cat([linear.bias.detach() for linear in linears])
        scaled = (weight * norm.weight.detach()).to(dtype)
        self.of_ids, self.of_positions = (
            (table - table.mean(1, keepdim=True)).to(dtype) @ scaled.T
            for table in (
                embeddings.word_embeddings.weight.detach(),
                embeddings.position_embeddings.weight.detach(),
            )
        )
        self.bias = (weight @ norm.bias.detach() + bias).to(dtype)

    def project(
        self, ids: torch.Tensor, positions: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Queries, keys and values of each token, (num_tokens, 3 * hidden_size).

        Args:
            ids: (num_tokens,).
            positions: (num_tokens,).
            scales: (num_tokens, 1), one over each token's deviation.
        """
        rows = self.of_ids.index_select(0, ids)
        rows += self.of_positions.index_select(0, positions)
        return torch.addcmul(self.bias, rows, scales.to(rows.dtype))


class _AfterAttention:
    """The rest of a block: the output projection, the feed-forward layers and the norms."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.output = _Product([block.attention.out_lin], dtype)
        self.up = _Product([block.ffn.lin1], dtype)
        self.down = _Product([block.ffn.lin2], dtype)
        self.attention_norm, self.output_norm = block.sa_layer_norm, block.output_layer_norm
        self.activation = block.ffn.activation
        # oneDNN applies the exact GELU to each tile as it is made.
        self.has_gelu = isinstance(block.ffn.activation, GELUActivation)

    def __call__(self, mixed: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        attended = self.attention_norm(self.output(mixed) + rows)
        inner = self.up(attended.to(self.dtype), gelu=self.has_gelu)
        if not self.has_gelu:
            inner = self.activation(inner)
        finished: torch.Tensor = self.output_norm(self.down(inner) + attended)
        return finished


class _Block:
    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention = block.attention
        self.dtype = dtype
        self.num_heads, self.head_size = attention.n_heads, attention.attention_head_size
        self.project = _Product([attention.q_lin, attention.k_lin, attention.v_lin], dtype)
        self.finish = _AfterAttention(block, dtype)
        self.ignored = torch.zeros((), dtype=dtype)

    def transform(
        self, hidden: torch.Tensor, lengths: list[int], projected: torch.Tensor | None
    ) -> torch.Tensor:
        if projected is None:
            projected = self.project(hidden.to(self.dtype))
        mixed = projected.new_empty(len(hidden), self.num_heads * self.head_size)
        for part, place in zip(projected.split(lengths), mixed.split(lengths), strict=True):
            length = len(part)
            # (3, num_heads, length, head_size)
            by_head = part.view(length, 3, self.num_heads, self.head_size).permute(1, 2, 0, 3)
            query, key, value = by_head.contiguous().unbind(0)
            scores = torch.baddbmm(
                self.ignored, query, key.transpose(1, 2), beta=0, alpha=self.head_size**-0.5
            )
            heads = torch.bmm(scores.softmax(-1), value)
            place.view(length, self.num_heads, self.head_size).copy_(heads.transpose(0, 1))
        return self.finish(mixed, hidden)


class _LastBlock:
    """For the first token of each review."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention = block.attention
        num_heads, head_size = attention.n_heads, attention.attention_head_size
        self.dtype = dtype
        self.num_heads, self.head_size = num_heads, head_size
        self.query = _Product([attention.q_lin], dtype)
        # (num_heads, head_size, hidden_size); the keys' bias shifts all of a query's scores alike.
        self.key, self.value = (
            linear.weight.detach().to(dtype, copy=True).view(num_heads, head_size, -1)
            for linear in (attention.k_lin, attention.v_lin)
        )
        self.value_bias = attention.v_lin.bias.detach().to(dtype, copy=True)
        self.finish = _AfterAttention(block, dtype)

    def transform(
        self, hidden: torch.Tensor, starts: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        first = hidden.index_select(0, starts)
        query = self.query(first.to(self.dtype)).view(len(first), self.num_heads, -1)
        # Both (num_reviews, num_heads, hidden_size).
        absorbed = torch.bmm(query.transpose(0, 1), self.key).transpose(0, 1).contiguous()
        contexts = torch.empty_like(absorbed)
        rows = hidden.to(self.dtype).split(lengths)
        for part, one_query, context in zip(rows, absorbed, contexts, strict=True):
            scores = (one_query @ part.T).float() * self.head_size**-0.5
            torch.mm(scores.softmax(-1).to(self.dtype), part, out=context)
        heads = torch.bmm(contexts.transpose(0, 1), self.value.transpose(1, 2)).transpose(0, 1)
        return self.finish(heads.reshape(len(first), -1) + self.value_bias, first)
