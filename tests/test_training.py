"""The training engines: same weights as a plain loop, to the bit again, options, mistakes."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distiltune import InputError
from distiltune.batching import Tokens, epoch_order, gather, read_tokens
from distiltune.config import AdamRow, TrainConfig, load
from distiltune.inference import predict_logits
from distiltune.models import build_model, load_model, pad
from distiltune.runtime import Runtime, choose_runtime, seed_everything
from distiltune.training.history import History, read_metrics
from distiltune.training.native import train_native
from distiltune.training.trainer import train_with_trainer
from tests.conftest import Project

ENGINES = {"native": train_native, "trainer": train_with_trainer}
CPU = Runtime(device=torch.device("cpu"), precision="fp32", description="cpu")


def read(project: Project) -> tuple[TrainConfig, Tokens, Tokens]:
    tokens = [
        read_tokens(project.root / f"data/tokens/{name}.safetensors")
        for name in ("train", "validation")
    ]
    return load(TrainConfig, project.root / "params.yaml"), tokens[0], tokens[1]


def new_model(project: Project, config: TrainConfig, tokens: Tokens) -> Any:
    seed_everything(config.seed)
    data = project.root / "data"
    return build_model(
        config.model_row, tokens.info.label_names, tokens.max_length, data / "tokenizer",
        data / "checkpoint",
    )  # fmt: skip


def fit(project: Project, config: TrainConfig | None = None) -> tuple[Any, History]:
    found, train, validation = read(project)
    config = config or found
    model = new_model(project, config, train)
    return model, ENGINES[config.engine](config, model, train, validation, CPU, [])


def change(config: TrainConfig, **train: Any) -> TrainConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def assert_same_weights(model: Any, expected: Any) -> None:
    """Compare all weights but the keys' biases.

    Such a bias adds the same to all scores of a query, which the softmax does not see: its
    gradient is rounding alone, of which Adam makes whole steps.
    """
    for (name, weight), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        if not name.endswith("k_lin.bias"):
            torch.testing.assert_close(weight, other, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_engine_computes_what_the_notebooks_loop_does(
    prepared: Project, optimizer: str
) -> None:
    """The reference: padded batches, torch's optimizer, the schedule stepped every batch."""
    prepared.change_params({"optimizer": optimizer})
    config, train, _ = read(prepared)
    model, history = fit(prepared)

    plain = new_model(prepared, config, train).train()
    rate = config.learning_rate
    num_steps = 20
    if optimizer == "adam":
        reference: Any = torch.optim.Adam(plain.parameters(), lr=rate)
        schedule = None
    else:
        reference = torch.optim.AdamW(plain.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            reference, lambda step: min(step / 5, (num_steps - step) / (num_steps - 5))
        )
    losses = []
    for epoch in (1, 2):
        for rows in epoch_order(160, config.seed, epoch).split(16):
            batch = gather(train, rows)
            input_ids, mask = pad(batch.ids, batch.offsets, batch.lengths, 0)
            loss = plain(input_ids=input_ids, attention_mask=mask, labels=batch.labels).loss
            reference.zero_grad()
            loss.backward()
            reference.step()
            if schedule:
                schedule.step()
            losses.append(loss.item())
    assert [record.step for record in history.steps] == [5, 10, 15, 20]
    means = torch.tensor(losses).view(4, 5).mean(1).tolist()
    assert [record.loss for record in history.steps] == pytest.approx(means, abs=1e-5)
    assert_same_weights(model, plain)


def test_the_same_seed_gives_the_same_weights_to_the_bit(prepared: Project) -> None:
    first, history = fit(prepared)
    second, again = fit(prepared)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert [r.loss for r in history.steps] == [r.loss for r in again.steps]
    config, _, _ = read(prepared)
    other, _ = fit(prepared, dataclasses.replace(config, seed=7))
    assert not all(map(torch.equal, first.parameters(), other.parameters()))


def test_accumulated_batches_are_one_large_batch(prepared: Project) -> None:
    config, _, _ = read(prepared)
    large, _ = fit(prepared, change(config, batch_size=16))
    small, history = fit(prepared, change(config, batch_size=4, gradient_accumulation_steps=4))
    assert history.epochs[-1].step == 20
    assert_same_weights(small, large)


def test_an_uneven_last_group_is_weighted_by_its_reviews(prepared: Project) -> None:
    config, _, _ = read(prepared)
    # 160 reviews in batches of 48 are 3 and a rest of 16; two together are 96 and 64.
    _, history = fit(prepared, change(config, batch_size=48, gradient_accumulation_steps=2))
    assert history.epochs[-1].step == 4
    _, same = fit(prepared, change(config, batch_size=96))
    found, expected = history.epochs[-1].train_loss, same.epochs[-1].train_loss
    assert found == pytest.approx(expected, rel=1e-4)


def test_padding_free_and_padded_training_agree(prepared: Project) -> None:
    config, _, _ = read(prepared)
    packed, _ = fit(prepared)
    speed = dataclasses.replace(config.speed, padding_free=False)
    padded, _ = fit(prepared, dataclasses.replace(config, speed=speed))
    assert_same_weights(packed, padded)


def test_clipping_bounds_the_update(prepared: Project) -> None:
    prepared.change_params({"optimizer": "adam"})
    config, _, _ = read(prepared)
    unclipped, free = fit(prepared)
    norms = [record.gradient_norm for record in free.steps]
    assert all(norm is not None and norm > 0 for norm in norms)
    clipped, _ = fit(prepared, change(config, max_gradient_norm=1e-10))
    start = new_model(prepared, config, read(prepared)[1])

    def moved(model: Any) -> float:
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    # Adam's update is invariant to scale until its epsilon, 1e-8, outweighs the gradient.
    assert 0 < moved(clipped) < moved(unclipped) / 10


def test_the_best_epoch_can_be_kept(prepared: Project) -> None:
    config, _, validation = read(prepared)
    high = dataclasses.replace(config.optimizer_row, learning_rate=2e-4)
    config = dataclasses.replace(change(config, keep="best", epochs=6), optimizer_row=high)
    model, history = fit(prepared, config)
    accuracies = [record.validation_accuracy for record in history.epochs]
    assert history.kept_epoch == history.best_epoch == accuracies.index(max(accuracies)) + 1
    right = predict_logits(model, validation, CPU).argmax(1) == validation.labels
    assert right.float().mean().item() == pytest.approx(max(accuracies))
    assert history.summary()["validation_accuracy"] == pytest.approx(max(accuracies))


@pytest.mark.parametrize("engine", ["native", pytest.param("trainer", marks=pytest.mark.slow)])
def test_a_hopeless_training_ends_after_its_epoch(prepared: Project, engine: str) -> None:
    config = change(dataclasses.replace(read(prepared)[0], engine=engine), epochs=4)
    _, whole = fit(prepared, config)
    accuracies = [record.validation_accuracy for record in whole.epochs]
    best = max(accuracies[:2])
    # As good as the bar is good enough, and the best so far counts.
    _, kept = fit(prepared, change(config, stop_below=(accuracies[0], best, 0.0)))
    assert len(kept.epochs) == 4 and not kept.summary()["stopped_early"]
    bars = (accuracies[0], best + 1e-6, 1.0)
    model, ended = fit(prepared, change(config, stop_below=bars))
    assert [record.validation_accuracy for record in ended.epochs] == accuracies[:2]
    summary = ended.summary()
    assert summary["stopped_early"] and summary["num_epochs"] == ended.kept_epoch == 2
    assert summary["num_steps"] == whole.epochs[1].step
    # The model is that of the last epoch; the schedule has not been shortened.
    _, _, validation = read(prepared)
    right = predict_logits(model, validation, CPU).argmax(1) == validation.labels
    assert right.float().mean().item() == pytest.approx(accuracies[1])
    # After the last epoch there is nothing to end.
    _, last = fit(prepared, change(config, stop_below=(0.0, 0.0, 0.0, 1.0)))
    assert len(last.epochs) == 4 and not last.summary()["stopped_early"]


def test_running_accuracy_counts_each_review_once(prepared: Project) -> None:
    _, history = fit(prepared)
    for record in history.epochs:
        assert record.train_accuracy is not None
        assert (record.train_accuracy * 160) == pytest.approx(round(record.train_accuracy * 160))


def test_a_loss_that_is_no_number_stops_the_run(prepared: Project) -> None:
    config, _, _ = read(prepared)
    row = AdamRow(algorithm="adamw", learning_rate=1.0, schedule="constant", weight_decay=0.99,
                  epsilon=1e-30, betas=(0.0, 0.0))  # fmt: skip
    model_row = dataclasses.replace(
        config.model_row,
        training=dataclasses.replace(config.model_row.training, learning_rate_multiplier=1e30),
    )
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step .* learning rate"):
        fit(prepared, dataclasses.replace(config, optimizer_row=row, model_row=model_row))


def test_the_trainer_engine_trains_the_same_tokens(prepared: Project) -> None:
    prepared.change_params(
        {"engine": "trainer", "optimizer": "adamw", "speed.fused_optimizer": False}
    )
    result = prepared.stage_here("train")
    assert "engine trainer" in result.stdout
    assert "20 steps, speed.fused_optimizer=false\n" in result.stdout
    params = json.loads((prepared.root / "data/model/run.json").read_text())["params"]
    assert params["train.attention_dropout"] == 0.0  # `auto`, resolved
    summary = json.loads((prepared.root / "metrics/train.json").read_text())
    assert summary["num_steps"] == 20
    assert summary["train_accuracy"] is None
    assert 0.2 < summary["validation_accuracy"] <= 1
    steps, _ = read_metrics(prepared.root / "data/history")
    # 5 steps of warm-up, then down; the first step has rate 0, as in the native engine.
    rates = [4e-4] + [5e-4 * (20 - (step - 1)) / 15 for step in (10, 15, 20)]
    assert [step["learning_rate"] for step in steps] == pytest.approx(rates)
    assert all(step["tokens_per_second"] > 0 for step in steps)
    assert all(step["gradient_norm"] > 0 for step in steps)


@pytest.mark.parametrize("engine", ["native", "trainer"])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_validation_answers_are_those_of_the_model_that_is_kept(
    prepared: Project, engine: str, keep: str
) -> None:
    """By which the registry judges."""
    prepared.change_params({"engine": engine, "train.keep": keep, "train.epochs": 4,
                            "tracking.log_model": False})  # fmt: skip
    prepared.stage_here("train")
    assert_answers_are_the_models(prepared)


def assert_answers_are_the_models(project: Project) -> None:
    _, _, validation = read(project)
    with (project.root / "data/history/validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == validation.labels.tolist()
    model = load_model(project.root / "data/model")
    expected = predict_logits(model, validation, CPU).argmax(1).tolist()
    assert [int(row["predicted"]) for row in rows] == expected
    assert len(set(expected)) == 2
    facts = json.loads((project.root / "data/model/run.json").read_text())
    assert facts["validation_reviews"] == validation.reviews_sha256


def test_both_engines_report_the_same_loss_of_an_accumulated_step(prepared: Project) -> None:
    config, _, _ = read(prepared)
    # One step on all reviews, so that the engines' different orders do not matter.
    config = change(config, batch_size=40, gradient_accumulation_steps=4, epochs=1)
    config = change(config, log_every_steps=1)
    _, native = fit(prepared, config)
    _, trainer = fit(prepared, dataclasses.replace(config, engine="trainer"))
    assert trainer.steps[0].loss == pytest.approx(native.steps[0].loss, abs=1e-4)
    assert trainer.steps[0].gradient_norm == pytest.approx(native.steps[0].gradient_norm, rel=1e-3)


def test_records_cover_every_step_across_epochs(prepared: Project) -> None:
    config, _, _ = read(prepared)
    _, each = fit(prepared, change(config, log_every_steps=1))
    _, some = fit(prepared, change(config, log_every_steps=8))
    assert [record.step for record in some.steps] == [8, 16, 20]
    losses = torch.tensor([record.loss for record in each.steps])
    means = [losses[:8].mean(), losses[8:16].mean(), losses[16:].mean()]
    assert [record.loss for record in some.steps] == pytest.approx([m.item() for m in means])
    assert [record.epoch for record in some.steps] == pytest.approx([0.8, 1.6, 2.0])


def test_asking_for_cuda_where_there_is_none_is_an_error(
    prepared: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device: 'cuda' was asked for"):
        choose_runtime("cuda", "auto")
    with pytest.raises(InputError, match="precision: 'fp16' needs CUDA"):
        choose_runtime("cpu", "fp16")
    assert choose_runtime("auto", "fp32").device.type == "cpu"
    assert "cpu" in choose_runtime("auto", "auto").description


def test_a_warm_up_that_is_too_long_stops_the_stage_before_it_starts(prepared: Project) -> None:
    prepared.change_params({"optimizer": "adamw", "optimizers.adamw.warmup_steps": 21})
    (prepared.root / "mlflow.db").unlink()
    result = prepared.stage_here("train", check=False)
    assert result.returncode == 1
    assert "make 20 steps; set it to less, as -S optimizers.adamw.warmup_steps=2" in result.stderr
    assert not (prepared.root / "data/model").exists()
    assert not (prepared.root / "mlflow.db").exists()


@pytest.mark.slow
def test_the_committed_tiny_model_passes_90_percent(new_project: Any) -> None:
    project = new_project(small=False)
    project.change_params({"dataset": "sample", "model": "tiny"})
    for stage in ("download", "download_checkpoint", "split", "tokenize", "train", "evaluate"):
        project.stage(stage)
    assert json.loads((project.root / "metrics/test.json").read_text())["accuracy"] > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", ["adam", "muon", "schedulefree_adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_cuda_follows_the_cpu(
    prepared: Project, precision: str, optimizer: str
) -> None:
    prepared.change_params({"optimizer": optimizer})
    config, train, validation = read(prepared)
    _, expected = fit(prepared)
    runtime = choose_runtime("cuda", precision)
    model = new_model(prepared, config, train).to(runtime.device)
    history = ENGINES["native"](config, model, train, validation, runtime, [])
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    found = [record.loss for record in history.steps]
    assert found == pytest.approx([record.loss for record in expected.steps], abs=tolerance)
    summary = history.summary()
    assert 0 < summary["optimizer_seconds_per_step"] < 1
    assert summary["optimizer_state_bytes"] == expected.optimizer_state_bytes
    assert summary["energy_joules"] is None or summary["energy_joules"] > 0


def test_the_history_is_written_as_tables(prepared: Project, tmp_path: Path) -> None:
    _, history = fit(prepared)
    history.write(tmp_path, [0] * len(history.kept_predictions))
    steps, epochs = read_metrics(tmp_path)
    assert [step["loss"] for step in steps] == [record.loss for record in history.steps]
    assert epochs[1]["validation_accuracy"] == history.epochs[1].validation_accuracy
