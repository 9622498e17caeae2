"""MiniLM's real weights in DistilBERT's size, for timings whose labels mean something."""

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModel, DistilBertConfig, DistilBertForSequenceClassification

from distiltune.batching import Tokens, gather
from distiltune.models import compute_logits
from distiltune.runtime import Runtime

BATCH_SIZE = 16
NUM_EPOCHS = 2
LEARNING_RATE = 1e-4


def to_distilbert(folder: Path) -> Any:
    """MiniLM, a BERT, as a DistilBERT of its own width, with a new head of two labels."""
    bert = AutoModel.from_pretrained(folder)
    found = bert.config
    model = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=found.vocab_size, max_position_embeddings=found.max_position_embeddings,
            dim=found.hidden_size, hidden_dim=found.intermediate_size,
            n_layers=found.num_hidden_layers, n_heads=found.num_attention_heads, num_labels=2,
        )
    )  # fmt: skip
    body, embeddings = model.distilbert, bert.embeddings
    with torch.no_grad():
        body.embeddings.word_embeddings.load_state_dict(embeddings.word_embeddings.state_dict())
        # All texts are of the first type.
        positions = (
            embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        )
        body.embeddings.position_embeddings.weight.copy_(positions)
    pairs = [(embeddings.LayerNorm, body.embeddings.LayerNorm)]
    for theirs, ours in zip(bert.encoder.layer, body.transformer.layer, strict=True):
        own = theirs.attention.self
        pairs += [
            (own.query, ours.attention.q_lin), (own.key, ours.attention.k_lin),
            (own.value, ours.attention.v_lin),
            (theirs.attention.output.dense, ours.attention.out_lin),
            (theirs.attention.output.LayerNorm, ours.sa_layer_norm),
            (theirs.intermediate.dense, ours.ffn.lin1), (theirs.output.dense, ours.ffn.lin2),
            (theirs.output.LayerNorm, ours.output_layer_norm),
        ]  # fmt: skip
    for source, target in pairs:
        target.load_state_dict(source.state_dict())
    return model


def fine_tune(model: Any, tokens: Tokens, runtime: Runtime) -> None:
    """A short training, after which the model is as sure of its answers as such models are."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(NUM_EPOCHS):
        for rows in torch.randperm(tokens.num_reviews).split(BATCH_SIZE):
            batch = gather(tokens, rows)
            with runtime.autocast():
                logits = compute_logits(model, batch.ids, batch.offsets, batch.lengths)
            functional.cross_entropy(logits.float(), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def widen(model: Any) -> Any:
    """A DistilBERT of twice the width that computes the same.

    Every unit stands there twice, and what reads the units has half the weight for each.
    Norms see the same mean and variance, and the sums of two halves are the whole.
    """
    config = model.config
    wide = DistilBertForSequenceClassification(
        DistilBertConfig(
            **{
                **config.to_diff_dict(), "dim": 2 * config.dim,
                "hidden_dim": 2 * config.hidden_dim,
            }
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name in ("word_embeddings", "position_embeddings"):
            source = getattr(model.distilbert.embeddings, name).weight
            getattr(wide.distilbert.embeddings, name).weight.copy_(_twice(source))
        _copy_norm(model.distilbert.embeddings.LayerNorm, wide.distilbert.embeddings.LayerNorm)
        for old, new in zip(
            model.distilbert.transformer.layer, wide.distilbert.transformer.layer, strict=True
        ):
            # Both copies of a head's rows stand within the head, so that products of a query and
            # a key are twice as large.
            order = torch.arange(config.dim).view(config.n_heads, -1).repeat(1, 2).flatten()
            for name in ("q_lin", "k_lin", "v_lin"):
                source, target = getattr(old.attention, name), getattr(new.attention, name)
                scale = 0.5**0.5 if name == "q_lin" else 1.0
                target.weight.copy_(scale * _twice(source.weight)[order] / 2)
                target.bias.copy_(scale * source.bias[order])
            mixed = old.attention.out_lin
            both = mixed.weight[:, order] / 2
            new.attention.out_lin.weight.copy_(torch.cat([both, both]))
            new.attention.out_lin.bias.copy_(_twice(mixed.bias))
            _copy_linear(old.ffn.lin1, new.ffn.lin1)
            _copy_linear(old.ffn.lin2, new.ffn.lin2)
            _copy_norm(old.sa_layer_norm, new.sa_layer_norm)
            _copy_norm(old.output_layer_norm, new.output_layer_norm)
        _copy_linear(model.pre_classifier, wide.pre_classifier)
        wide.classifier.weight.copy_(_twice(model.classifier.weight) / 2)
        wide.classifier.bias.copy_(model.classifier.bias)
    return wide


def _twice(tensor: torch.Tensor) -> torch.Tensor:
    """The last dimension, two times."""
    return torch.cat([tensor, tensor], dim=-1)


def _copy_linear(source: Any, target: Any) -> None:
    both = _twice(source.weight) / 2
    target.weight.copy_(torch.cat([both, both]))
    target.bias.copy_(_twice(source.bias))


def _copy_norm(source: Any, target: Any) -> None:
    target.weight.copy_(_twice(source.weight))
    target.bias.copy_(_twice(source.bias))
    target.eps = source.eps
