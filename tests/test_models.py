"""The padding-free path and the LSTM against their plain forms: logits and gradients."""

import dataclasses
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

from distiltune.config import SpeedTable
from distiltune.models import attention as attention_module
from distiltune.models import compute_logits, load_model, pad, save_model
from distiltune.models.lstm import LstmConfig, LstmForSequenceClassification

PLAIN = SpeedTable(padding_free=False)
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


def logits_and_gradients(model: Any, reviews: Any, speed: SpeedTable) -> tuple[Any, Any]:
    model.zero_grad()
    logits = compute_logits(model, **reviews, speed=speed)
    labels = torch.arange(len(LENGTHS)) % 2
    nn.functional.cross_entropy(logits.float(), labels).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def without(*switches: str) -> SpeedTable:
    return dataclasses.replace(SpeedTable(), **dict.fromkeys(switches, False))


@pytest.mark.parametrize(
    "speed",
    [
        SpeedTable(),
        without("first_token_only"),
        without("fused_projection"),
        without("fast_attention"),
        without("first_token_only", "fused_projection", "fast_attention"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_padding_free_equals_padded(
    reviews: Any, speed: SpeedTable, precision: str, tolerance: float
) -> None:
    model = distilbert().train()
    padded_logits, padded_gradients = logits_and_gradients(model, reviews, PLAIN)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits, gradients = logits_and_gradients(model, reviews, speed)
    assert padded_logits.std() > 0.05  # so that equality says something
    torch.testing.assert_close(logits.float(), padded_logits, atol=tolerance, rtol=tolerance)
    assert gradients.keys() == padded_gradients.keys()
    for name, gradient in gradients.items():
        expected = padded_gradients[name]
        torch.testing.assert_close(gradient, expected, atol=tolerance, rtol=10 * tolerance)
        if expected.norm() > 1e-3:
            assert (gradient - expected).norm() <= 2 * tolerance * expected.norm(), name


@pytest.mark.slow
def test_compiled_blocks_equal_the_plain_ones(reviews: Any) -> None:
    """Slow: it needs a C++ compiler, and half a minute of it."""
    model = distilbert().train()
    expected, expected_gradients = logits_and_gradients(model, reviews, SpeedTable())
    logits, gradients = logits_and_gradients(model, reviews, SpeedTable(compile=True))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4)


def test_padding_free_in_bf16_is_as_near_as_bf16_is(reviews: Any) -> None:
    model = distilbert().eval()
    exact = compute_logits(model, **reviews, speed=PLAIN)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        padded = compute_logits(model, **reviews, speed=PLAIN)
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
        compute_logits(model, **reviews), compute_logits(model, **reviews, speed=PLAIN)
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
    assert attention_module.has_varlen_kernel(query) is expected


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
    logits, gradients = logits_and_gradients(model, reviews, SpeedTable())
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
@pytest.mark.parametrize("fast_attention", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)]
)
def test_padding_free_on_cuda(
    reviews: Any, fast_attention: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """In half precision the fast attention is the flash kernel."""
    model = distilbert().cuda().train()
    on_device = {**reviews, "ids": reviews["ids"].cuda(), "offsets": reviews["offsets"].cuda()}
    exact, exact_gradients = logits_and_gradients_on_cuda(model, on_device, PLAIN, torch.float32)
    speed = SpeedTable(fast_attention=fast_attention)
    logits, gradients = logits_and_gradients_on_cuda(model, on_device, speed, dtype)
    torch.testing.assert_close(logits, exact, atol=tolerance, rtol=tolerance)
    for name, gradient in gradients.items():
        expected = exact_gradients[name]
        torch.testing.assert_close(gradient, expected, atol=tolerance, rtol=0.1)
        if expected.norm() > 1e-3:
            assert (gradient - expected).norm() <= 2 * tolerance * expected.norm(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_flash_attention_drops_weights(reviews: Any) -> None:
    """The mean over many draws is what there is without dropout; one draw is not."""
    lengths = [64] * 8
    layout = attention_module.Layout(torch.arange(0, 513, 64, device="cuda"), lengths)
    q, k, v = (torch.randn(512, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    exact = attention_module.attend_varlen(q, k, v, layout, layout, 0.0).float()
    draws = torch.stack(
        [attention_module.attend_varlen(q, k, v, layout, layout, 0.5).float() for _ in range(400)]
    )
    assert (draws[0] - exact).abs().mean() > 0.05
    assert (draws.mean(0) - exact).abs().mean() < 0.02
    # For one mask the output is linear in the values, so their gradient foretells it.
    outputs, inputs = [], []
    direction = torch.randn_like(v)
    for values in (v, v + direction):
        torch.manual_seed(0)
        inputs.append(values.detach().clone().requires_grad_())
        outputs.append(attention_module.attend_varlen(q, k, inputs[-1], layout, layout, 0.5))
    outputs[0].float().square().sum().backward()
    assert inputs[0].grad is not None
    foretold = (inputs[0].grad.float() * direction.float()).sum()
    change = (outputs[1] - outputs[0]).float()
    torch.testing.assert_close(
        foretold, 2 * (outputs[0].float() * change).sum(), atol=1.0, rtol=5e-2
    )


def logits_and_gradients_on_cuda(
    model: Any, reviews: Any, speed: SpeedTable, dtype: torch.dtype
) -> tuple[Any, Any]:
    model.zero_grad()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        logits = compute_logits(model, **reviews, speed=speed).float()
    labels = torch.arange(len(LENGTHS), device="cuda") % 2
    nn.functional.cross_entropy(logits, labels).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}
