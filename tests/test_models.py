"""The padding-free path and the LSTM against their plain forms: logits and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from distiltune.models import compute_logits, load_model, pad, save_model
from distiltune.models import packed as packed_module
from distiltune.models.lstm import LstmConfig, LstmForSequenceClassification

LENGTHS = [5, 1, 17, 9, 30]


def distilbert(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=100, dim=32, n_layers=3, n_heads=4, hidden_dim=64, dropout=dropout,
            attention_dropout=dropout, seq_classif_dropout=dropout, initializer_range=0.2,
            max_position_embeddings=40,
        )
    )  # fmt: skip


@pytest.fixture
def reviews() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 100, (sum(LENGTHS),), generator=generator)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return {"ids": ids, "offsets": offsets, "lengths": LENGTHS}


def logits_and_gradients(model: Any, reviews: Any, padding_free: bool) -> tuple[Any, Any]:
    model.zero_grad()
    logits = compute_logits(model, **reviews, padding_free=padding_free)
    labels = torch.arange(len(LENGTHS)) % 2
    nn.functional.cross_entropy(logits, labels).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("attention", ["attend_in_loop", "attend_padded"])
def test_padding_free_equals_padded(
    reviews: Any, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distilbert().train()
    monkeypatch.setattr(packed_module, "attend", getattr(packed_module, attention))
    logits, gradients = logits_and_gradients(model, reviews, padding_free=True)
    padded_logits, padded_gradients = logits_and_gradients(model, reviews, padding_free=False)
    assert padded_logits.std() > 0.05  # so that equality says something
    torch.testing.assert_close(logits, padded_logits, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == padded_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], atol=1e-5, rtol=1e-4)


def test_padding_free_in_bf16_is_as_near_as_bf16_is(reviews: Any) -> None:
    model = distilbert().eval()
    exact = compute_logits(model, **reviews, padding_free=False)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        padded = compute_logits(model, **reviews, padding_free=False)
        packed = compute_logits(model, **reviews)
    error_of_padded = (padded.float() - exact).abs().max()
    assert (packed.float() - exact).abs().max() <= 2 * error_of_padded + 1e-3


@pytest.mark.parametrize("place", ["embeddings", "attention", "ffn", "classifier"])
def test_dropout_is_drawn_in_every_place(reviews: Any, place: str) -> None:
    model = distilbert().train()
    layer = model.distilbert.transformer.layer[1]
    places = {
        "embeddings": model.distilbert.embeddings.dropout,
        "attention": layer.attention.dropout,
        "ffn": layer.ffn.dropout,
        "classifier": model.dropout,
    }
    assert torch.equal(compute_logits(model, **reviews), compute_logits(model, **reviews))
    places[place].p = 0.5
    assert not torch.allclose(compute_logits(model, **reviews), compute_logits(model, **reviews))
    model.eval()
    torch.testing.assert_close(
        compute_logits(model, **reviews), compute_logits(model, **reviews, padding_free=False)
    )


@pytest.mark.parametrize(
    ("dtype", "head_size", "capability", "expected"),
    [
        (torch.bfloat16, 64, (9, 0), True),
        (torch.float16, 64, (8, 0), True),
        (torch.float16, 64, (7, 5), False),
        (torch.float32, 64, (9, 0), False),
        (torch.bfloat16, 12, (9, 0), False),
        (torch.bfloat16, 320, (9, 0), False),
    ],
)
def test_the_flash_kernel_is_used_only_where_it_can_be_had(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, head_size: int, capability: Any, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query = torch.zeros(3, 2, head_size, dtype=dtype)
    assert packed_module.has_varlen_kernel(query) is expected


def test_reviews_do_not_see_each_other(reviews: Any) -> None:
    model = distilbert().eval()
    together = compute_logits(model, **reviews)
    for i, part in enumerate(reviews["ids"].split(LENGTHS)):
        alone = compute_logits(model, part, torch.tensor([0, len(part)]), [len(part)])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_any_classifier_of_transformers_gets_its_reviews_padded(reviews: Any) -> None:
    torch.manual_seed(0)
    bert = BertForSequenceClassification(
        BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=40, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    together = compute_logits(bert, **reviews)
    for i, part in enumerate(reviews["ids"].split(LENGTHS)):
        alone = bert(input_ids=part[None]).logits
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_the_lstm_has_the_meaning_of_packed_sequences(reviews: Any) -> None:
    torch.manual_seed(0)
    config = LstmConfig(vocab_size=100, embedding_size=8, hidden_size=12, pad_token_id=0)
    model = LstmForSequenceClassification(config).train()
    logits, gradients = logits_and_gradients(model, reviews, padding_free=True)
    input_ids, mask = pad(**reviews, padding_id=0)
    packed = nn.utils.rnn.pack_padded_sequence(
        model.embedding(input_ids), mask.sum(1), batch_first=True, enforce_sorted=False
    )
    _, (state, _) = model.lstm(packed)
    expected = model.classifier(state[-1])
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    model.zero_grad()
    nn.functional.cross_entropy(expected, torch.arange(len(LENGTHS)) % 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_padding_is_on_the_right_and_masked(reviews: Any) -> None:
    input_ids, mask = pad(**reviews, padding_id=7)
    assert input_ids.shape == mask.shape == (5, 30)
    assert mask.sum(1).tolist() == LENGTHS
    assert input_ids[mask == 0].unique().tolist() == [7]
    assert torch.equal(input_ids[mask == 1], reviews["ids"])


@pytest.mark.parametrize("kind", ["distilbert", "lstm"])
def test_a_saved_model_answers_the_same(reviews: Any, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    config = LstmConfig(vocab_size=100, pad_token_id=0, num_labels=3)
    model = distilbert() if kind == "distilbert" else LstmForSequenceClassification(config)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    save_model(model, tmp_path / "tokenizer", tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    expected = compute_logits(model.eval(), **reviews)
    assert torch.equal(compute_logits(loaded, **reviews), expected)
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("attention", ["attend_varlen", "attend_padded"])
def test_padding_free_on_cuda(
    reviews: Any, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distilbert().cuda().train()
    on_device = {**reviews, "ids": reviews["ids"].cuda(), "offsets": reviews["offsets"].cuda()}
    exact, exact_gradients = logits_and_gradients_on_cuda(model, on_device, False, torch.float32)
    if attention == "attend_varlen":

        def attend(q: Any, k: Any, v: Any, query_layout: Any, layout: Any, dropout: float) -> Any:
            return packed_module.attend_varlen(q, k, v, query_layout, layout)

        monkeypatch.setattr(packed_module, "attend", attend)
        dtype, tolerance = torch.bfloat16, 5e-2
    else:
        monkeypatch.setattr(packed_module, "attend", packed_module.attend_padded)
        dtype, tolerance = torch.float32, 1e-4
    logits, gradients = logits_and_gradients_on_cuda(model, on_device, True, dtype)
    torch.testing.assert_close(logits, exact, atol=tolerance, rtol=tolerance)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact_gradients[name], atol=tolerance, rtol=0.1)


def logits_and_gradients_on_cuda(
    model: Any, reviews: Any, padding_free: bool, dtype: torch.dtype
) -> tuple[Any, Any]:
    model.zero_grad()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        logits = compute_logits(model, **reviews, padding_free=padding_free).float()
    labels = torch.arange(len(LENGTHS), device="cuda") % 2
    nn.functional.cross_entropy(logits, labels).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}
