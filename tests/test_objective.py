"""The loss of a pass: against formulas written out, torch's and transformers' own, and resumed."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.trainer_pt_utils import LabelSmoother

from distiltune import InputError
from distiltune.batching import gather
from distiltune.config import TrainConfig, load_params
from distiltune.models import compute_logits
from distiltune.training.objective import (
    Classification,
    smoothed_cross_entropy,
    symmetric_divergence,
)
from tests.conftest import Project
from tests.test_resume import Cutter, assert_same, cut, points_of
from tests.test_resume import train as train_with_points
from tests.test_speed import ONE_BATCH, gradients_of, passes_of
from tests.test_training import CPU, assert_same_weights, change, fit, new_model, read

DROPOUT = {"models.tiny.architecture.dropout": 0.3}


def probabilities_of(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def test_smoothed_cross_entropy_is_the_formula_and_that_of_transformers() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])
    labels, smoothing = [0, 2], 0.3
    expected = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        for i, probability in enumerate(probabilities_of(row)):
            target = smoothing / 3 + (1 - smoothing if i == label else 0.0)
            expected -= target * math.log(probability)
    found = smoothed_cross_entropy(logits, torch.tensor(labels), smoothing)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    theirs = LabelSmoother(epsilon=smoothing)({"logits": logits}, torch.tensor(labels))
    assert found.item() == pytest.approx(2 * theirs.item(), rel=1e-6)


def test_the_divergence_of_two_passes_is_the_formula() -> None:
    first = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])
    second = torch.tensor([[1.0, 0.0, 0.5], [-1.0, 0.2, 4.0]])
    expected = 0.0
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        pairs = list(zip(probabilities_of(one), probabilities_of(other), strict=True))
        expected += sum(p * math.log(p / q) + q * math.log(q / p) for p, q in pairs) / 2
    assert symmetric_divergence(first, second).item() == pytest.approx(expected, rel=1e-5)
    assert symmetric_divergence(first, first).item() == 0.0


def test_without_a_switch_the_gradients_are_those_of_plain_cross_entropy_to_the_bit(
    prepared: Project,
) -> None:
    prepared.change_params(DROPOUT)
    config, train, _ = read(prepared)
    model = new_model(prepared, config, train)
    sums = passes_of(config, model, train).run(ONE_BATCH)
    found = gradients_of(model)
    plain = new_model(prepared, config, train).train()
    batch = gather(train, ONE_BATCH[0])
    logits = compute_logits(plain, batch.ids, batch.offsets, batch.lengths, config.speed)
    loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
    (loss / 16).backward()
    assert torch.equal(sums[0], loss.detach())
    assert all(map(torch.equal, found, gradients_of(plain)))


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize("switches", [{"label_smoothing": 0.2}, {"r_drop": 2.0},
                                      {"label_smoothing": 0.1, "r_drop": 0.5}])  # fmt: skip
def test_a_step_minimises_what_the_switches_say(
    prepared: Project, switches: dict[str, float], padding_free: bool
) -> None:
    """Two passes of one model draw dropout one after the other, as the test does."""
    prepared.change_params(DROPOUT)
    config, train, _ = read(prepared)
    speed = dataclasses.replace(config.speed, padding_free=padding_free)
    config = dataclasses.replace(change(config, **switches), speed=speed)
    model = new_model(prepared, config, train)
    torch.manual_seed(5)
    sums = passes_of(config, model, train).run(ONE_BATCH)
    found = gradients_of(model)

    plain = new_model(prepared, config, train).train()
    batch = gather(train, ONE_BATCH[0])
    torch.manual_seed(5)
    passes = [
        compute_logits(plain, batch.ids, batch.offsets, batch.lengths, config.speed)
        for _ in range(2 if "r_drop" in switches else 1)
    ]
    smoothing = switches.get("label_smoothing", 0.0)
    loss = torch.stack(
        [functional.cross_entropy(p, batch.labels, label_smoothing=smoothing) for p in passes]
    ).mean()
    if "r_drop" in switches:
        p, q = (logits.softmax(1) for logits in passes)
        assert not torch.allclose(p, q)
        divergence = ((p - q) * (p / q).log()).sum(1).mean() / 2
        loss = loss + switches["r_drop"] * divergence
    loss.backward()
    assert sums[0].item() == pytest.approx(16 * loss.item(), rel=1e-5)
    assert sums[1].item() == (passes[0].argmax(1) == batch.labels).sum().item()
    for one, other in zip(found, gradients_of(plain), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_smoothed_steps_are_the_same_divided_and_accumulated(prepared: Project) -> None:
    config = change(read(prepared)[0], label_smoothing=0.1, r_drop=1.0)  # there is no dropout
    whole, history = fit(prepared, config)
    divided, same = fit(prepared, change(config, max_tokens_per_pass=40))
    assert_same_weights(divided, whole)
    found = [record.loss for record in same.steps]
    assert found == pytest.approx([record.loss for record in history.steps], rel=1e-4)
    small = change(config, batch_size=4, gradient_accumulation_steps=4)
    assert_same_weights(fit(prepared, small)[0], whole)


@pytest.mark.parametrize("engine", ["native", "trainer"])
def test_the_validation_loss_is_plain_cross_entropy(prepared: Project, engine: str) -> None:
    config, train, validation = read(prepared)
    config = change(dataclasses.replace(config, engine=engine), label_smoothing=0.4, epochs=1)
    model, history = fit(prepared, config)
    objective = Classification(config, model.eval(), train, validation, CPU)
    batch = gather(validation, torch.arange(validation.num_reviews))
    with torch.no_grad():
        logits = objective._logits(batch)
    plain = functional.cross_entropy(logits, batch.labels).item()
    assert history.epochs[-1].validation_loss == pytest.approx(plain, rel=1e-4)
    smoothed = functional.cross_entropy(logits, batch.labels, label_smoothing=0.4).item()
    assert abs(smoothed - plain) > 1e-3


def test_both_engines_minimise_the_same_smoothed_loss(prepared: Project) -> None:
    config, _, _ = read(prepared)
    # One step on all reviews, so that the engines' different orders do not matter.
    config = change(config, batch_size=160, epochs=1, log_every_steps=1, label_smoothing=0.3)
    _, native = fit(prepared, config)
    _, trainer = fit(prepared, dataclasses.replace(config, engine="trainer"))
    assert trainer.steps[0].loss == pytest.approx(native.steps[0].loss, abs=1e-4)
    assert trainer.steps[0].gradient_norm == pytest.approx(native.steps[0].gradient_norm, rel=1e-3)
    _, plain = fit(prepared, change(config, label_smoothing=0.0))
    assert abs(plain.steps[0].loss - native.steps[0].loss) > 1e-4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"engine": "trainer", "train.r_drop": 1.0, **DROPOUT}, r"r_drop: 1 needs engine: native"),
    ({"train.r_drop": 1.0}, r"train\.r_drop: 1 with model: tiny, whose two passes are the same"),
    ({"train.r_drop": 1.0, "model": "lstm"}, r"set models\.lstm\.architecture\.dropout above 0"),
    ({"train.r_drop": -1.0}, r"train\.r_drop: -1\.0: should be greater than or equal to 0"),
    ({"train.label_smoothing": 1.0}, r"train\.label_smoothing: 1\.0: should be less than 1"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_switches_that_mean_nothing_are_refused(
    prepared: Project, changes: dict[str, Any], message: str
) -> None:
    prepared.change_params(changes)
    with pytest.raises(InputError, match=message):
        load_params(prepared.root / "params.yaml")
    # What drops attention weights alone has two different passes.
    prepared.change_params({"engine": "native", "model": "tiny", "train.label_smoothing": 0.5,
                            "train.r_drop": 1.0, "train.attention_dropout": 0.1})  # fmt: skip
    assert isinstance(load_params(prepared.root / "params.yaml").train.r_drop, float)


def test_a_training_with_both_goes_on_to_the_bit(prepared: Project) -> None:
    prepared.change_params(DROPOUT)
    config = change(read(prepared)[0], log_every_steps=1, label_smoothing=0.1, r_drop=1.0)
    whole = train_with_points(prepared, config, None)
    cut(prepared, config, Cutter(step=13))
    points = points_of(prepared)
    assert points.found is not None and points.found["step"] == 12
    assert_same(whole, train_with_points(prepared, config, points))


def test_the_lstm_learns_with_both(prepared: Project) -> None:
    prepared.change_params({"model": "lstm", "models.lstm.architecture.dropout": 0.3,
                            "models.lstm.tokenizer.vocabulary_size": 400})  # fmt: skip
    prepared.stage_here("tokenize")
    config, _, _ = read(prepared)
    assert isinstance(config, TrainConfig)
    config = change(config, label_smoothing=0.1, epochs=1, batch_size=16, log_every_steps=1)
    _, smoothed = fit(prepared, config)
    _, both = fit(prepared, change(config, r_drop=5.0))
    # The first pass draws the same; the second one adds its divergence.
    assert both.steps[0].loss > smoothed.steps[0].loss
