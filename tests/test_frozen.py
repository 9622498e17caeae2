"""Inference by weights laid out once: the padded model's logits, in threads or not."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import DistilBertForSequenceClassification

from distiltune import inference
from distiltune.artifacts import DatasetInfo
from distiltune.batching import Tokens
from distiltune.config import SpeedTable
from distiltune.inference import freeze, predict_logits
from distiltune.models import frozen
from distiltune.models.frozen import FrozenDistilBert, has_operators
from distiltune.replicas import Replicas
from distiltune.runtime import Runtime
from tests.test_models import PLAIN, distilbert

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not has_operators(torch.bfloat16), reason="needs oneDNN and AVX-512"
)


def runtime(precision: str) -> Runtime:
    return Runtime(device=CPU, precision=precision, description=precision)


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def reviews(num_reviews: int = 240) -> Tokens:
    """Of 1 to 40 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 41, (num_reviews,), generator=generator)
    return Tokens(
        ids=torch.randint(1, 100, (int(lengths.sum()),), generator=generator, dtype=torch.int32),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        labels=torch.zeros(num_reviews, dtype=torch.int64),
        info=DatasetInfo(dataset="", label_names=("negative", "positive")),
        max_length=40,
        truncation="head",
    )


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_its_logits_are_the_padded_models(
    num_threads: int, activation: str, precision: str, tolerance: float
) -> None:
    config = distilbert(0.1).config
    config.activation, config.num_labels = activation, 3
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(config).train()
    embeddings = model.distilbert.embeddings
    with torch.no_grad():  # a new model's would be all ones, all zeros, and of mean zero
        embeddings.LayerNorm.weight.uniform_(0.5, 1.5)
        embeddings.LayerNorm.bias.normal_(std=0.5)
        embeddings.word_embeddings.weight.add_(torch.randn(100, 1))
    tokens = reviews()
    assert len(tokens.ids) > 2 * inference.MAX_TOKENS_PER_THREAD
    padded = predict_logits(model, tokens, runtime("fp32"), PLAIN)
    assert padded.std() > 0.05
    done: list[int] = []
    found = predict_logits(model, tokens, runtime(precision), on_batch=done.append)
    torch.testing.assert_close(found, padded, atol=tolerance, rtol=tolerance)
    assert sum(done) == tokens.num_reviews and model.training
    assert torch.get_num_threads() == num_threads
    again = predict_logits(model, tokens, runtime(precision))
    assert torch.equal(again, found)


def test_tables_are_made_for_many_tokens_and_where_they_are_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = distilbert(), reviews()
    num_rows = model.config.vocab_size + model.config.max_position_embeddings
    few, enough = (
        freeze(model, runtime("fp32"), num_tokens=4 * num_rows - missing) for missing in (1, 0)
    )
    assert isinstance(few, FrozenDistilBert) and few.tables is None
    assert isinstance(enough, FrozenDistilBert) and enough.tables is not None
    found = [predict_logits(made, tokens, runtime("fp32")) for made in (few, enough)]
    assert not torch.equal(*found)  # other roundings: one is not the other
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert len(tokens.ids) >= 4 * num_rows
    assert torch.equal(predict_logits(model, tokens, runtime("fp32")), found[1])
    num_bytes = num_rows * 3 * model.config.dim * 4
    monkeypatch.setattr(frozen, "MAX_TABLE_BYTES", num_bytes - 1)
    large = freeze(model, runtime("fp32"), num_tokens=4 * num_rows)
    assert isinstance(large, FrozenDistilBert) and large.tables is None


def test_replicas_share_a_split_whatever_each_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a thread and one with two, of which one has no oneDNN."""
    model, tokens = distilbert(), reviews(1500)
    whole = predict_logits(model, tokens, runtime("fp32"), PLAIN)
    shares = []
    monkeypatch.setattr(Replicas, "sum", lambda self, share: shares.append(share.clone()))
    before = torch.get_num_threads()
    try:
        for rank, threads, switches in ((0, 1, PLAIN), (1, 2, SpeedTable())):
            torch.set_num_threads(threads)
            predict_logits(model, tokens, runtime("fp32"), switches, replicas=Replicas(rank, 2))
    finally:
        torch.set_num_threads(before)
    first, second = shares
    assert not ((first != 0) & (second != 0)).any()
    torch.testing.assert_close(first + second, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_stands_for_the_weights_as_they_were(precision: str) -> None:
    model = distilbert()
    tokens = reviews()
    made = freeze(model, runtime(precision), num_tokens=len(tokens.ids))
    assert isinstance(made, FrozenDistilBert)
    before = predict_logits(model, tokens, runtime(precision))
    first, *_, last = model.distilbert.transformer.layer
    with torch.no_grad():
        for linear in (first.ffn.lin1, first.attention.q_lin, last.attention.k_lin,
                       last.attention.v_lin, last.attention.out_lin):  # fmt: skip
            linear.weight.mul_(1.5)
            linear.bias.add_(1.0)
    assert torch.equal(predict_logits(made, tokens, runtime(precision)), before)
    after = predict_logits(model, tokens, runtime(precision))
    padded = predict_logits(model, tokens, runtime("fp32"), PLAIN)
    assert not torch.allclose(after, before, atol=5e-2)
    torch.testing.assert_close(after, padded, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize(
    "switch",
    [
        "prepacked_weights", "padding_free", "first_token_only", "fused_projection",
        "fast_attention",
    ],
)  # fmt: skip
def test_any_of_its_shortcuts_turned_off_turns_it_off(switch: str) -> None:
    model = distilbert()
    assert isinstance(freeze(model, runtime("fp32")), FrozenDistilBert)
    assert freeze(model, runtime("fp32"), SpeedTable(**{switch: False})) is model


def test_what_fails_is_raised_and_the_next_call_works(num_threads: int) -> None:
    model, tokens = distilbert(), reviews()
    expected = predict_logits(model, tokens, runtime("fp32"))
    wrong = tokens.ids.clone()
    wrong[-1] = 100  # the vocabulary has 100
    with pytest.raises(IndexError):
        predict_logits(model, dataclasses.replace(tokens, ids=wrong), runtime("fp32"))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_logits(model, tokens, runtime("fp32"), on_batch=interrupt)
    assert torch.get_num_threads() == num_threads
    assert torch.equal(predict_logits(model, tokens, runtime("fp32")), expected)


def test_a_server_asks_from_several_threads() -> None:
    model, tokens = distilbert(), reviews()
    expected = predict_logits(model, tokens, runtime("fp32"))

    def ask(_: int) -> tuple[torch.Tensor, int]:
        return predict_logits(model, tokens, runtime("fp32")), torch.get_num_threads()

    with ThreadPoolExecutor(4) as pool:
        for found, num_threads in pool.map(ask, range(8)):
            assert torch.equal(found, expected) and num_threads == torch.get_num_threads()


def test_few_tokens_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    really = inference.freeze

    def counted(*args: Any) -> Any:
        made.append(really(*args))
        return made[-1]

    monkeypatch.setattr(inference, "freeze", counted)
    predict_logits(distilbert(), reviews(20), runtime("fp32"))
    assert not made
    predict_logits(distilbert(), reviews(), runtime("fp32"))
    assert len(made) == 1
