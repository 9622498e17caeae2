"""Inference by weights laid out once: the padded model's logits, in threads or not."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from distiltune import inference
from distiltune.artifacts import DatasetInfo
from distiltune.batching import Tokens
from distiltune.config import SpeedTable
from distiltune.inference import frozen, predict_logits
from distiltune.models.frozen import FrozenDistilBert, can_freeze
from distiltune.runtime import Runtime
from tests.test_models import PLAIN, distilbert

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    not can_freeze(distilbert(), CPU, SpeedTable()), reason="no oneDNN, or a CPU without AVX"
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
    model = distilbert(0.1).train()
    model.config.activation = activation
    model = type(model)(model.config).train()
    tokens = reviews()
    assert len(tokens.ids) > num_threads * inference.MAX_TOKENS_PER_THREAD
    padded = predict_logits(model, tokens, runtime("fp32"), PLAIN)
    assert padded.std() > 0.05
    done: list[int] = []
    found = predict_logits(model, tokens, runtime(precision), on_batch=done.append)
    torch.testing.assert_close(found, padded, atol=tolerance, rtol=tolerance)
    assert sum(done) == tokens.num_reviews and model.training
    assert torch.get_num_threads() == num_threads
    again = predict_logits(model, tokens, runtime(precision))
    assert torch.equal(again, found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_stands_for_the_weights_as_they_were(precision: str) -> None:
    model = distilbert()
    tokens = reviews()
    made = frozen(model, runtime(precision))
    assert isinstance(made, FrozenDistilBert)
    before = predict_logits(model, tokens, runtime(precision))
    with torch.no_grad():
        model.distilbert.transformer.layer[1].ffn.lin1.weight.mul_(1.5)
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
    assert isinstance(frozen(model, runtime("fp32")), FrozenDistilBert)
    assert frozen(model, runtime("fp32"), SpeedTable(**{switch: False})) is model


def test_what_fails_in_a_thread_is_raised(num_threads: int) -> None:
    model = distilbert()
    tokens = reviews()
    wrong = tokens.ids.clone()
    wrong[-1] = 100  # the vocabulary has 100
    with pytest.raises(IndexError):
        predict_logits(model, dataclasses.replace(tokens, ids=wrong), runtime("fp32"))
    assert torch.get_num_threads() == num_threads


def test_few_tokens_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    freeze = inference.frozen

    def counted(*args: Any) -> Any:
        made.append(freeze(*args))
        return made[-1]

    monkeypatch.setattr(inference, "frozen", counted)
    predict_logits(distilbert(), reviews(20), runtime("fp32"))
    assert not made
    predict_logits(distilbert(), reviews(), runtime("fp32"))
    assert len(made) == 1
