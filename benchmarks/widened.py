"""MiniLM's real weights in DistilBERT's size, for timings whose labels mean something."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from benchmarks import inputs


def widened_minilm(folder: Path, texts: list[str], labels: list[int]) -> Any:
    """MiniLM as a DistilBERT of full width: every unit stands there twice, at half its weight.

    Norms see the same mean and variance, and the sums of two halves are the whole. The
    head is the best linear one on the first token, on these texts.

    Args:
        folder: MiniLM's, with its tokenizer.
        texts: some hundreds.
        labels: 0 or 1 for each.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    bert = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.inference_mode():
        for text in texts:
            encoded = tokenizer(
                text, truncation=True, max_length=inputs.MAX_LENGTH, return_tensors="pt"
            )
            rows.append(bert(**encoded).last_hidden_state[0, 0].numpy())
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    fitted.fit(np.array(rows), labels)
    scaler, head = fitted[0], fitted[1]
    slope = torch.from_numpy(head.coef_[0] / scaler.scale_).float()
    offset = float(head.intercept_[0] - (slope.numpy() * scaler.mean_).sum())

    model = DistilBertForSequenceClassification(DistilBertConfig(num_labels=2))
    body = model.distilbert
    with torch.no_grad():
        embeddings = bert.embeddings
        # All texts are of the first type.
        positions = (
            embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        )
        body.embeddings.word_embeddings.weight.copy_(_twice(embeddings.word_embeddings.weight))
        body.embeddings.position_embeddings.weight.copy_(_twice(positions))
        _copy_norm(embeddings.LayerNorm, body.embeddings.LayerNorm)
        for theirs, ours in zip(bert.encoder.layer, body.transformer.layer, strict=True):
            own = theirs.attention.self
            num_heads, head_size = own.num_attention_heads, own.attention_head_size
            # Both copies of a head's rows within the head, whose products are then twice as large.
            order = torch.arange(num_heads * head_size).view(num_heads, head_size)
            order = order.repeat(1, 2).flatten()
            for name, linear in (("q_lin", own.query), ("k_lin", own.key), ("v_lin", own.value)):
                scale = 0.5**0.5 if name == "q_lin" else 1.0
                target = getattr(ours.attention, name)
                target.weight.copy_(scale * _twice(linear.weight)[order] / 2)
                target.bias.copy_(scale * linear.bias[order])
            mixed = theirs.attention.output.dense
            wide = mixed.weight[:, order] / 2
            ours.attention.out_lin.weight.copy_(torch.cat([wide, wide]))
            ours.attention.out_lin.bias.copy_(_twice(mixed.bias))
            for source, target in (
                (theirs.intermediate.dense, ours.ffn.lin1), (theirs.output.dense, ours.ffn.lin2)
            ):  # fmt: skip
                wide = _twice(source.weight) / 2
                target.weight.copy_(torch.cat([wide, wide]))
                target.bias.copy_(_twice(source.bias))
            _copy_norm(theirs.attention.output.LayerNorm, ours.sa_layer_norm)
            _copy_norm(theirs.output.LayerNorm, ours.output_layer_norm)
        # What is above and what is below zero of each unit: through the ReLU goes all of it.
        signs = torch.cat([torch.ones(len(slope)), -torch.ones(len(slope))])
        model.pre_classifier.weight.copy_(torch.diag(signs))
        model.pre_classifier.bias.zero_()
        weights = torch.cat([slope, -slope])
        model.classifier.weight.copy_(torch.stack([-weights, weights]) / 2)
        model.classifier.bias.copy_(torch.tensor([-offset, offset]) / 2)
    return model


def _twice(tensor: torch.Tensor) -> torch.Tensor:
    """The last dimension, two times."""
    return torch.cat([tensor, tensor], dim=-1)


def _copy_norm(source: Any, target: Any) -> None:
    target.weight.copy_(_twice(source.weight))
    target.bias.copy_(_twice(source.bias))
    target.eps = source.eps
