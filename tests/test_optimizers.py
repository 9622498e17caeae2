"""Each optimizer variant: groups, known answers, torch's own, schedules, averaged weights."""

import copy
import dataclasses
import json
import re
import sys
from typing import Any

import pytest
import torch
from schedulefree import AdamWScheduleFreeReference
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from distiltune import InputError
from distiltune.config import OptimizerRow, TrainConfig, load_params
from distiltune.inference import loss_and_accuracy, predict_logits
from distiltune.models.lstm import LstmConfig, LstmForSequenceClassification
from distiltune.optimizers import OPTIMIZERS, build_optimizer, build_schedule, parameter_groups
from distiltune.training.costs import optimizer_state_bytes
from tests.conftest import ROOT, Project, make_project
from tests.test_training import CPU, change, fit, new_model, read

ROWS = load_params(ROOT / "params.yaml").optimizers


def variant(name: str, **changes: Any) -> OptimizerRow:
    return dataclasses.replace(ROWS[name], **changes)


def distilbert() -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=50, dim=8, n_layers=2, n_heads=2, hidden_dim=16)
    )


class Blocks(nn.Module):
    """Weights of every role, pulled towards a target each.

    The matrices have the 4,096 numbers from which on the 8-bit optimizer uses 8 bits.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(64, 64)
        nn.init.normal_(self.embeddings.weight, std=0.1)
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.norm = nn.LayerNorm(64)
        self.classifier = nn.Linear(64, 2)
        self.targets = [torch.randn_like(p) * 0.5 for p in self.parameters()]

    def forward(self) -> torch.Tensor:
        pairs = zip(self.parameters(), self.targets, strict=True)
        return torch.stack([(p - target).square().sum() for p, target in pairs]).sum()


def test_there_is_a_row_for_each_algorithm() -> None:
    assert {row.algorithm for row in ROWS.values()} == set(OPTIMIZERS)


@pytest.mark.parametrize("name", ROWS)
def test_each_finds_the_minimum_of_a_sum_of_squares(name: str) -> None:
    model = Blocks()
    row = variant(name, weight_decay=0.0, warmup_steps=0, warmup_share=None)
    rate = {"sgd": 0.05, "adafactor": 0.1}.get(row.algorithm, 0.03)
    # The two begin carefully, and average over all that was.
    num_steps = 2000 if row.algorithm in ("radam", "schedulefree_adamw") else 600
    optimizer = build_optimizer(model, row, rate)
    # A falling rate, so that methods of constant steps settle too.
    falls = row.algorithm != "schedulefree_adamw"
    schedule = build_schedule(
        optimizer, variant("adamw" if falls else "adam", warmup_steps=0), num_steps
    )
    getattr(optimizer, "train", lambda: None)()
    for _ in range(num_steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        schedule.step()
    getattr(optimizer, "eval", lambda: None)()
    for parameter, target in zip(model.parameters(), model.targets, strict=True):
        torch.testing.assert_close(parameter, target, atol=0.02, rtol=0)


def torchs_own(name: str, model: nn.Module) -> list[torch.optim.Optimizer]:
    """What the committed row means, written with torch alone."""
    row: Any = ROWS[name]
    named = dict(model.named_parameters())
    every: Any = list(named.values())
    common: Any = {"lr": 1e-3, "weight_decay": row.weight_decay}
    match row.algorithm:
        case "adam":
            return [torch.optim.Adam(every, **common)]
        case "adamw" if not row.decay_bias_and_norm:
            plain: Any = {**common, "weight_decay": 0.0}
            matrices: Any = [p for p in every if p.ndim > 1]
            vectors: Any = [p for p in every if p.ndim == 1]
            return [torch.optim.AdamW(matrices, **common), torch.optim.AdamW(vectors, **plain)]
        case "adamw":
            return [torch.optim.AdamW(every, **common)]
        case "nadam":
            return [torch.optim.NAdam(every, decoupled_weight_decay=True, **common)]
        case "radam":
            return [torch.optim.RAdam(every, decoupled_weight_decay=True, **common)]
        case "sgd":
            return [torch.optim.SGD(every, momentum=0.9, nesterov=True, **common)]
        case "adafactor":
            return [torch.optim.Adafactor(every, **common)]
        case "schedulefree_adamw":
            return [AdamWScheduleFreeReference(every, **common)]
        case "muon":
            hidden: Any = [p for n, p in named.items() if ".layer." in n and p.ndim == 2]
            chosen = {id(p) for p in hidden}
            others: Any = [p for p in every if id(p) not in chosen]
            muon = torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **common)
            return [muon, torch.optim.AdamW(others, **common)]
    raise AssertionError(row.algorithm)


@pytest.mark.parametrize("name", [n for n in ROWS if n not in ("lion", "soap", "adamw_8bit")])
def test_each_takes_the_steps_of_the_reference_implementation(name: str) -> None:
    found, expected = distilbert(), distilbert()
    optimizers = [build_optimizer(found, ROWS[name], 1e-3)], torchs_own(name, expected)
    for model, parts in zip((found, expected), optimizers, strict=True):
        model.eval()  # no dropout
        for part in parts:
            getattr(part, "train", lambda: None)()
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            ids = torch.randint(0, 50, (4, 6), generator=generator)
            model.zero_grad()
            model(input_ids=ids, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
            for part in parts:
                part.step()
        for part in parts:
            getattr(part, "eval", lambda: None)()
    for (key, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=key)


def test_lion_takes_the_steps_of_its_paper() -> None:
    """Algorithm 2 of Chen et al. 2023, written out."""
    torch.manual_seed(0)
    weights = nn.Parameter(torch.randn(6, 5))
    holder = nn.Module()
    holder.register_parameter("weight", weights)
    expected, momentum = weights.detach().clone(), torch.zeros(6, 5)
    optimizer = build_optimizer(holder, variant("lion", weight_decay=0.1), 0.01)
    for _ in range(5):
        weights.grad = gradient = torch.randn(6, 5)
        update = torch.sign(0.9 * momentum + 0.1 * gradient)
        expected -= 0.01 * (update + 0.1 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
        optimizer.step()
    torch.testing.assert_close(weights.detach(), expected)


def test_8_bits_stay_near_32_and_take_a_quarter_of_the_memory() -> None:
    models = Blocks(), Blocks()
    rows = ROWS["adamw"], ROWS["adamw_8bit"]
    optimizers = [build_optimizer(m, row, 1e-3) for m, row in zip(models, rows, strict=True)]
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(20):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0)  # of 20e-3 moved
    weights = dict(models[1].named_parameters())
    assert optimizers[1].state[weights["layers.0.weight"]]["state1"].dtype == torch.uint8
    embedding = optimizers[1].state[weights["embeddings.weight"]]
    assert embedding["state1"].dtype == torch.float32
    assert optimizer_state_bytes(optimizers[1]) < 0.6 * optimizer_state_bytes(optimizers[0])


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (distilbert(), r"\.layer\.\d.*(lin|lin1|lin2|proj|_lin)\.weight"),
        (
            BertForSequenceClassification(
                BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2,
                           num_attention_heads=2, intermediate_size=16)
            ),
            r"\.layer\.\d.*(query|key|value|dense)\.weight",
        ),
        (
            LstmForSequenceClassification(
                LstmConfig(vocab_size=50, embedding_size=8, hidden_size=8, num_hidden_layers=2,
                           dropout=0.0, pad_token_id=0)
            ),
            r"weight_[ih]h_l\d",
        ),
    ],
    ids=["distilbert", "bert", "lstm"],
)  # fmt: skip
def test_groups_hold_each_weight_once(model: nn.Module, hidden: str) -> None:
    row = variant("muon", weight_decay=0.1, decay_bias_and_norm=False, layer_decay=0.5)
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    groups = parameter_groups(model, row, 1.0)
    frozen.requires_grad_(True)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(p) for p in model.parameters() if p is not frozen]
    assert sorted(grouped) == sorted(trainable)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert (group["role"] == "hidden") == bool(re.search(hidden, name)), name
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0), name
            numbers = re.findall(r"layer\.(\d)|_l(\d)", name)
            layer = int("".join(numbers[0])) if numbers else None
            depth = 3 if "embed" in name else 0 if layer is None else 2 - layer
            assert group["lr"] == 0.5**depth, name
    assert groups[0]["lr"] == 1.0


def test_schedules() -> None:
    def rates(num_steps: int = 10, **changes: Any) -> list[float]:
        row = variant("adam", **changes)
        optimizer = build_optimizer(Blocks(), row, 1.0)
        schedule = build_schedule(optimizer, row, num_steps)
        found = []
        for _ in range(num_steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    assert rates() == [1.0] * 10
    assert rates(warmup_steps=2) == [0, 0.5] + [1.0] * 8
    assert rates(warmup_share=0.15) == rates(warmup_steps=2)
    down = pytest.approx([0, 0.5, *[(10 - step) / 8 for step in range(2, 10)]])
    assert rates(schedule="linear", warmup_steps=2) == down
    cosine = torch.cos(torch.arange(10) / 10 * torch.pi) / 2 + 0.5
    assert rates(schedule="cosine") == pytest.approx(cosine.tolist())
    cycle = rates(101, schedule="one_cycle", warmup_share=0.5)
    assert cycle[0] == pytest.approx(1 / 25) and max(cycle) == pytest.approx(1, abs=1e-3)
    assert cycle.index(max(cycle)) == 50 and cycle[-1] < 1e-2
    for num_steps in (1, 2, 3, 16):
        for num_warmup_steps in (0, 1, 2):
            if num_warmup_steps <= num_steps:
                few = rates(num_steps, schedule="one_cycle", warmup_steps=num_warmup_steps)
                assert all(0 < rate <= 1 for rate in few)
    usual = rates(100, schedule="one_cycle")
    assert usual.index(max(usual)) == 30


def with_row(config: TrainConfig, row: OptimizerRow) -> TrainConfig:
    return dataclasses.replace(config, optimizer=row.algorithm, optimizer_row=row)


@pytest.mark.parametrize("engine", ["native", "trainer"])
@pytest.mark.parametrize("name", ROWS)
def test_each_variant_trains_through_both_engines(
    prepared: Project, name: str, engine: str
) -> None:
    """A few steps with the committed row; what validation saw is what is kept."""
    config, train, validation = read(prepared)
    config = dataclasses.replace(with_row(config, variant(name, warmup_steps=0)), engine=engine)
    model, history = fit(prepared, config)
    start = new_model(prepared, config, train)
    assert not any(map(torch.equal, model.parameters(), start.parameters()))
    loss, _ = loss_and_accuracy(predict_logits(model, validation, CPU), validation.labels)
    assert history.epochs[-1].validation_loss == pytest.approx(loss, rel=1e-4)
    summary = history.summary()
    assert summary["optimizer_seconds_per_step"] > 0 and summary["energy_joules"] is None
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    if ROWS[name].algorithm in ("adam", "adamw", "nadam", "radam", "schedulefree_adamw"):
        assert summary["optimizer_state_bytes"] == pytest.approx(8 * num_weights, rel=0.01)
    if ROWS[name].algorithm in ("sgd", "lion"):
        assert summary["optimizer_state_bytes"] == pytest.approx(4 * num_weights, rel=0.01)


class Watcher:
    """Notes the weights after each step."""

    def __init__(self) -> None:
        self.model: Any = None
        self.weights: list[list[torch.Tensor]] = []

    def on_update(self, step: int) -> None:
        self.weights.append([p.detach().clone() for p in self.model.parameters()])

    def on_step(self, record: Any) -> None: ...

    def on_epoch(self, record: Any) -> None: ...


@pytest.mark.parametrize("keys", [{"ema_decay": 0.8}, {"swa_start_share": 0.6}])
def test_averaged_weights_are_evaluated_and_kept(prepared: Project, keys: dict[str, float]) -> None:
    from distiltune.training.native import train_native

    config, train, validation = read(prepared)
    config = change(with_row(config, variant("adam", **keys)), epochs=2)
    plain = change(with_row(config, ROWS["adam"]), epochs=2)
    watcher = Watcher()
    watcher.model = new_model(prepared, config, train)
    history = train_native(config, watcher.model, train, validation, CPU, [watcher])
    expected, _ = fit(prepared, plain)
    for found, weights in zip(watcher.weights[-1], expected.parameters(), strict=True):
        assert torch.equal(found, weights)  # training itself does not notice
    assert len(watcher.weights) == 20
    for i, parameter in enumerate(watcher.model.parameters()):
        steps = [weights[i] for weights in watcher.weights]
        if "ema_decay" in keys:
            average = steps[0]
            for weights in steps[1:]:
                average = 0.8 * average + 0.2 * weights
        else:
            average = torch.stack(steps[12:]).mean(0)
        torch.testing.assert_close(parameter.detach(), average, atol=1e-6, rtol=1e-5)
    loss, _ = loss_and_accuracy(predict_logits(watcher.model, validation, CPU), validation.labels)
    assert history.epochs[-1].validation_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("engine", ["native", "trainer"])
@pytest.mark.parametrize(
    "row",
    [
        variant("adam", learning_rate=2e-4, ema_decay=0.8),
        variant("adam", learning_rate=2e-4, swa_start_share=0.3),
        variant("schedulefree_adamw", learning_rate=2e-3),
    ],
    ids=["ema", "swa", "schedule-free"],
)
def test_the_best_epochs_average_is_kept(prepared: Project, row: OptimizerRow, engine: str) -> None:
    if engine == "trainer" and row.algorithm == "adam":
        pytest.skip("refused: averages of a row are the native engine's")
    config, _, validation = read(prepared)
    config = dataclasses.replace(with_row(config, row), engine=engine)
    model, history = fit(prepared, change(config, keep="best", epochs=5))
    assert history.kept_epoch == history.best_epoch
    loss, accuracy = loss_and_accuracy(predict_logits(model, validation, CPU), validation.labels)
    best = history.epochs[history.best_epoch - 1]
    assert accuracy == best.validation_accuracy == max(
        record.validation_accuracy for record in history.epochs
    )  # fmt: skip
    assert loss == pytest.approx(best.validation_loss, rel=1e-4)


def test_a_rows_clipping_beats_the_one_of_all(prepared: Project) -> None:
    config, _, _ = read(prepared)
    row = variant("sgd", max_gradient_norm=1e-6)
    by_row, _ = fit(prepared, change(with_row(config, row), max_gradient_norm=5.0))
    by_all, _ = fit(
        prepared, change(with_row(config, variant("sgd", max_gradient_norm=None)),
                         max_gradient_norm=1e-6)
    )  # fmt: skip
    assert all(map(torch.equal, by_row.parameters(), by_all.parameters()))


def test_a_joined_optimizer_keeps_its_state() -> None:
    first, second = Blocks(), Blocks()
    optimizers = [build_optimizer(model, ROWS["muon"], 1e-2) for model in (first, second)]
    for step in range(4):
        if step == 2:
            second.load_state_dict(first.state_dict())
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for model, optimizer in zip((first, second), optimizers, strict=True):
            if model is first or step >= 2:
                optimizer.zero_grad()
                model().backward()
                optimizer.step()
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    build_schedule(optimizers[1], variant("adamw", warmup_steps=2), 10)
    parts: Any = vars(optimizers[1])["parts"]
    assert {group["lr"] for part in parts for group in part.param_groups} == {0.0}


def test_a_missing_extra_is_refused_with_the_way_to_install_it(
    prepared: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config, _, _ = read(prepared)
    with pytest.raises(InputError, match=r"needs the package bitsandbytes .* '\.\[8bit\]'"):
        fit(prepared, with_row(config, ROWS["adamw_8bit"]))


def test_muon_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(InputError, match="'muon' needs hidden matrices"):
        build_optimizer(nn.Linear(2, 2), ROWS["muon"], 1.0)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The committed sample, tokenized for the committed tiny model."""
    project = make_project(tmp_path_factory.mktemp("sample") / "project", small=False)
    project.change_params({"dataset": "sample", "model": "tiny", "tracking.log_model": False})
    for stage in ("download", "download_checkpoint", "split", "tokenize"):
        project.stage(stage)
    return project


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_each_committed_row_trains_tiny_above_85_percent(sample: Project, name: str) -> None:
    sample.change_params({"optimizer": name})
    sample.stage("train")
    sample.stage("evaluate")
    assert json.loads((sample.root / "metrics/test.json").read_text())["accuracy"] > 0.85
