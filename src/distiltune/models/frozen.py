"""DistilBERT whose weights no longer change, laid out once for the CPU.

Exact as `packed` is, for answers without gradients. Each product's weights are joined,
rounded and brought into the order in which oneDNN reads them ("weight prepacking"),
which otherwise happens anew in every product. In the last block, of which one token is
read, keys and values are never made: a query times the keys' weights meets the hidden
states themselves, and so does what it attends to.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import DistilBertForSequenceClassification, PreTrainedModel
from transformers.activations import GELUActivation

from distiltune.config import SpeedTable

# What most calls have about as many rows of; others are only a little slower.
ROWS = 4096


def can_freeze(model: PreTrainedModel, device: torch.device, speed: SpeedTable) -> bool:
    """Whether `FrozenDistilBert` may stand for it: DistilBERT, no shortcut turned off, oneDNN.

    PyTorch has no public name for the two operators, and they were measured on x86 alone.
    """
    return (
        isinstance(model, DistilBertForSequenceClassification)
        and speed.prepacked_weights
        and speed.padding_free
        and speed.first_token_only
        and speed.fused_projection
        and speed.fast_attention
        and device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


class FrozenDistilBert:
    """A classifier for inference on the CPU.

    Args:
        model: a `DistilBertForSequenceClassification`; its embeddings, norms and head are
            shared, its blocks' weights are copied.
        dtype: of the blocks' products; sums and norms stay fp32.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.config = model.config
        self.num_threads = torch.get_num_threads()
        self.embeddings = model.distilbert.embeddings
        self.pre_classifier, self.classifier = model.pre_classifier, model.classifier
        *blocks, last_block = model.distilbert.transformer.layer
        self.blocks = [_Block(block, dtype) for block in blocks]
        self.last_block = _LastBlock(last_block, dtype)

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """(num_reviews, num_labels) fp32.

        Args:
            ids: (num_tokens,), the reviews one after the other.
            lengths: the reviews' lengths.
        """
        positions = torch.cat([torch.arange(length) for length in lengths])
        hidden = self.embeddings.word_embeddings(ids)
        hidden = self.embeddings.LayerNorm(hidden + self.embeddings.position_embeddings(positions))
        for block in self.blocks:
            hidden = block.transform(hidden, lengths)
        first = self.last_block.transform(hidden, lengths)
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


class _AfterAttention:
    """What all blocks share: the output projection, the feed-forward layers and the norms."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.output = _Product([block.attention.out_lin], dtype)
        self.up = _Product([block.ffn.lin1], dtype)
        self.down = _Product([block.ffn.lin2], dtype)
        self.norms = (block.sa_layer_norm, block.output_layer_norm)
        self.activation = block.ffn.activation
        # oneDNN applies the exact GELU to each tile as it is made.
        self.has_gelu = isinstance(block.ffn.activation, GELUActivation)

    def finish(self, mixed: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        attended = self.norms[0](self.output(mixed) + rows)
        inner = self.up(attended.to(self.dtype), gelu=self.has_gelu)
        if not self.has_gelu:
            inner = self.activation(inner)
        finished: torch.Tensor = self.norms[1](self.down(inner) + attended)
        return finished


class _Block(_AfterAttention):
    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        attention = block.attention
        self.project = _Product([attention.q_lin, attention.k_lin, attention.v_lin], dtype)
        self.num_heads, self.head_size = attention.n_heads, attention.attention_head_size
        self.ignored = torch.zeros((), dtype=dtype)

    def transform(self, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
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


class _LastBlock(_AfterAttention):
    """For the first token of each review."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        attention = block.attention
        num_heads, head_size = attention.n_heads, attention.attention_head_size
        self.query = _Product([attention.q_lin], dtype)
        # (num_heads, head_size, hidden_size); the keys' bias shifts all of a query's scores alike.
        self.key = attention.k_lin.weight.detach().to(dtype).view(num_heads, head_size, -1)
        self.value = attention.v_lin.weight.detach().to(dtype).view(num_heads, head_size, -1)
        self.value_bias = attention.v_lin.bias.detach().to(dtype)
        self.num_heads, self.head_size = num_heads, head_size

    def transform(self, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        num_reviews = len(lengths)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        first = hidden.index_select(0, starts)
        query = self.query(first.to(self.dtype)).view(num_reviews, self.num_heads, -1)
        # (num_reviews, num_heads, hidden_size): with each hidden state it gives a score.
        asked = torch.bmm(query.transpose(0, 1), self.key).transpose(0, 1).contiguous()
        met = torch.empty_like(asked)
        for part, question, place in zip(
            hidden.to(self.dtype).split(lengths), asked, met, strict=True
        ):
            scores = (question @ part.T).float() * self.head_size**-0.5
            torch.mm(scores.softmax(-1).to(self.dtype), part, out=place)
        heads = torch.bmm(met.transpose(0, 1), self.value.transpose(1, 2)).transpose(0, 1)
        return self.finish(heads.reshape(num_reviews, -1) + self.value_bias, first)
