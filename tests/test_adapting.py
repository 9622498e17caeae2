"""Task-adaptive pretraining: what is hidden, its loss, both paths, resumed, as a stage."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    PreTrainedTokenizerFast,
)

from distiltune import InputError
from distiltune.adapting.masking import Masking
from distiltune.adapting.objective import HiddenWords
from distiltune.adapting.reviews import read_adaptation_reviews
from distiltune.artifacts import sha256_of
from distiltune.batching import read_tokens
from distiltune.config import (
    AdaptConfig,
    DistilBertArchitecture,
    EngineConfig,
    SpeedTable,
    load,
    load_params,
)
from distiltune.dataset import write_unlabelled
from distiltune.models.masked import build_masked_model, compute_masked_logits
from distiltune.runtime import seed_everything
from distiltune.training.history import ConsoleReporter, History, StepRecord
from distiltune.training.native import train_native
from distiltune.training.passes import Passes
from tests.bad_inputs import good_checkpoint
from tests.conftest import Project
from tests.test_pipeline import runs_of
from tests.test_resume import CutError, Cutter, assert_same, points_of
from tests.test_speed import gradients_of
from tests.test_training import CPU, assert_same_weights

ADAPT = {"adapt.epochs": 2, "adapt.batch_size": 16, "adapt.log_every_steps": 5}
ROWS = torch.arange(16)


@dataclasses.dataclass
class Adaptation:
    config: EngineConfig
    train: Masking
    validation: Masking
    project: Project

    def model(self) -> Any:
        seed_everything(self.config.seed)
        data = self.project.root / "data"
        return build_masked_model(
            self.config.model_row, self.train.tokens.max_length, data / "tokenizer", data
        )

    def objective(self, model: Any) -> HiddenWords:
        return HiddenWords(model, self.train, self.validation, CPU, self.config.speed)

    def fit(
        self, config: EngineConfig | None = None, points: Any = None, *cutters: Any
    ) -> tuple[Any, History]:
        model = self.model()
        history = train_native(
            config or self.config, model, self.train.tokens, self.validation.tokens, CPU,
            cutters, points, objective=self.objective(model),
        )  # fmt: skip
        return model, history


@pytest.fixture
def adaptation(prepared: Project) -> Adaptation:
    prepared.change_params({**ADAPT, "models.tiny.architecture.dropout": 0.1})
    config = load(AdaptConfig, prepared.root / "params.yaml")
    tokenizer = AutoTokenizer.from_pretrained(prepared.root / "data/tokenizer")
    parts = [
        Masking(read_tokens(prepared.root / f"data/tokens/{name}.safetensors"), tokenizer, 0.15, 0)
        for name in ("train", "validation")
    ]
    return Adaptation(config.training, parts[0], parts[1], prepared)


def change(config: EngineConfig, **train: Any) -> EngineConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def test_fifteen_of_a_hundred_are_hidden_and_eighty_of_those_masked(
    adaptation: Adaptation,
) -> None:
    masking, tokens = adaptation.train, adaptation.train.tokens
    rows = torch.arange(tokens.num_reviews)
    batch = masking.gather(rows, 1)
    original = tokens.ids.long()
    special = set(masking.special_ids.tolist())
    for i in range(tokens.num_reviews):
        start, end = int(tokens.offsets[i]), int(tokens.offsets[i + 1])
        words = [n for n in range(start, end) if int(original[n]) not in special]
        assert batch.counts[i] == max(1, int(0.15 * len(words) + 0.5))
        places = [p for p in batch.places.tolist() if start <= p < end]
        assert len(places) == batch.counts[i] and set(places) <= set(words)
        assert places == sorted(set(places))
    assert torch.equal(batch.labels, original[batch.places])
    is_hidden = torch.zeros(len(original), dtype=torch.bool).index_fill_(0, batch.places, True)
    assert torch.equal(batch.ids[~is_hidden], original[~is_hidden])
    shown = torch.cat([masking.gather(rows, epoch).ids[masking.gather(rows, epoch).places]
                       for epoch in range(1, 9)])  # fmt: skip
    targets = torch.cat([masking.gather(rows, epoch).labels for epoch in range(1, 9)])
    num = len(targets)
    masked = (shown == masking.mask_id).sum().item() / num
    kept = (shown == targets).sum().item() / num
    deviation = (0.8 * 0.2 / num) ** 0.5
    assert masked == pytest.approx(0.8, abs=4 * deviation)
    assert kept == pytest.approx(0.1, abs=4 * deviation)
    others = shown[(shown != masking.mask_id) & (shown != targets)]
    assert len(others.unique()) > 50 and not special & set(others.tolist())


def test_what_is_hidden_depends_on_seed_epoch_and_review_alone(adaptation: Adaptation) -> None:
    masking = adaptation.train
    batch = masking.gather(torch.tensor([3, 8, 5]), 2)
    alone = masking.gather(torch.tensor([8]), 2)
    start, end = batch.offsets[1:3].tolist()
    assert torch.equal(batch.ids[start:end], alone.ids)
    again = masking.gather(torch.tensor([3, 8, 5]), 3)
    assert not torch.equal(batch.places, again.places)
    tokenizer = AutoTokenizer.from_pretrained(adaptation.project.root / "data/tokenizer")
    other = Masking(masking.tokens, tokenizer, 0.15, 1).gather(torch.tensor([3, 8, 5]), 2)
    assert not torch.equal(batch.places, other.places)


def test_the_tokenizers_own_mask_is_taken_where_there_is_one(adaptation: Adaptation) -> None:
    folder = adaptation.project.root / "data/tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert adaptation.train.mask_id == tokenizer.unk_token_id
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    assert Masking(adaptation.train.tokens, tokenizer, 0.15, 0).mask_id == tokenizer.mask_token_id
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match="no token for a mask"):
        Masking(adaptation.train.tokens, bare, 0.15, 0)


def masked_models() -> Iterable[Any]:
    torch.manual_seed(0)
    small = {
        "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "embedding_size": 16,
        "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.2,
    }  # fmt: skip
    yield DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=400, dim=32, n_layers=3, n_heads=4, hidden_dim=64,
                         initializer_range=0.2)
    )  # fmt: skip
    yield BertForMaskedLM(BertConfig(**small))
    yield ElectraForMaskedLM(ElectraConfig(**small))


@pytest.mark.parametrize("speed", [SpeedTable(), SpeedTable(first_token_only=False),
                                   SpeedTable(padding_free=False)],
                         ids=["packed", "all tokens", "padded"])  # fmt: skip
def test_logits_and_gradients_are_those_of_transformers(
    adaptation: Adaptation, speed: SpeedTable
) -> None:
    batch = adaptation.train.gather(ROWS, 1)
    for model in masked_models():
        model.eval()  # dropout draws another number of times
        arguments = (batch.ids, batch.offsets, batch.lengths, batch.places, batch.counts)
        logits = compute_masked_logits(model, *arguments, speed)
        functional.cross_entropy(logits, batch.labels).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()

        reviews = batch.ids.split(batch.lengths)
        labels = torch.full_like(batch.ids, -100).index_copy_(0, batch.places, batch.labels)
        padded = [torch.nn.utils.rnn.pad_sequence(parts, True, value) for parts, value in
                  ((reviews, 0), (labels.split(batch.lengths), -100),
                   ([torch.ones_like(r) for r in reviews], 0))]  # fmt: skip
        output = model(input_ids=padded[0], attention_mask=padded[2], labels=padded[1])
        torch.testing.assert_close(logits, output.logits[padded[1] >= 0], atol=1e-4, rtol=1e-4)
        output.loss.backward()
        loss, right = adaptation.objective(model).compute(batch)
        assert loss.item() == pytest.approx(output.loss.item() * len(batch.labels), rel=1e-4)
        assert right.item() == (logits.argmax(1) == batch.labels).sum().item()
        assert len(found) > 10
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(
                    found[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=f"{type(model)} {name}"
                )


def test_divided_passes_have_the_gradient_of_the_whole(adaptation: Adaptation) -> None:
    config = dataclasses.replace(adaptation.config)
    found = []
    for max_tokens in ("auto", 60):
        model = adaptation.model().eval()
        objective = adaptation.objective(model)
        divided = change(config, max_tokens_per_pass=max_tokens)
        passes = Passes(divided, model, adaptation.train.tokens, CPU, objective)
        model.eval()
        found.append((passes.run([ROWS[:8], ROWS[8:]]), gradients_of(model)))
        assert objective.count_targets(ROWS) == sum(adaptation.train.gather(ROWS, 1).counts)
    (whole, gradients), (sums, same) = found
    torch.testing.assert_close(sums, whole)
    for one, other in zip(gradients, same, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_loss_falls_and_is_the_mean_over_hidden_words(adaptation: Adaptation) -> None:
    config = change(adaptation.config, epochs=6, log_every_steps=1)
    model, history = adaptation.fit(config)
    first, last = history.epochs[0], history.epochs[-1]
    assert last.validation_loss < first.validation_loss - 0.3
    assert last.validation_accuracy > first.validation_accuracy
    found = adaptation.objective(model).validate()
    assert found.loss == pytest.approx(last.validation_loss) and found.predictions == []
    # An epoch's loss is that of its steps, each counted by its hidden words.
    counts = [
        adaptation.objective(model).count_targets(rows)
        for rows in torch.arange(160).split(16)  # as many in sum as in any order
    ]
    steps = [record.loss for record in history.steps[:10]]
    assert min(steps) < first.train_loss < max(steps) and sum(counts) == int(
        adaptation.train.num_hidden.sum()
    )
    # Weights are shared between the embeddings and the head.
    assert model.vocab_projector.weight is model.distilbert.embeddings.word_embeddings.weight


def test_padded_and_packed_adaptation_agree(adaptation: Adaptation) -> None:
    row = adaptation.config.model_row.architecture
    assert isinstance(row, DistilBertArchitecture)
    row = dataclasses.replace(row, dropout=0.0)
    model_row = dataclasses.replace(adaptation.config.model_row, architecture=row)
    adaptation.config = dataclasses.replace(adaptation.config, model_row=model_row)
    packed, _ = adaptation.fit()
    speed = dataclasses.replace(adaptation.config.speed, padding_free=False)
    adaptation.config = dataclasses.replace(adaptation.config, speed=speed)
    padded, _ = adaptation.fit()
    assert_same_weights(packed, padded)


def test_it_goes_on_to_the_bit(adaptation: Adaptation) -> None:
    config = change(adaptation.config, log_every_steps=1)
    whole, history = adaptation.fit(config)
    points = points_of(adaptation.project)
    with pytest.raises(CutError):
        adaptation.fit(config, points, Cutter(step=13))
    points.wait()
    points._lock.release()
    points = points_of(adaptation.project)
    assert points.found is not None and points.found["step"] == 12
    again, same = adaptation.fit(config, points)
    assert_same((whole.state_dict(), history), (again.state_dict(), same))


def test_the_stage_goes_on_after_sigterm_to_the_bit(
    prepared: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared.change_params({**ADAPT, "adapt.log_every_steps": 1})
    adapted = prepared.root / "data/adapted"
    prepared.stage_here("adapt")
    whole = sha256_of(adapted / "model.safetensors")
    shutil.rmtree(adapted)

    def end(_: ConsoleReporter, record: StepRecord) -> None:
        if record.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(ConsoleReporter, "on_step", end)
        result = prepared.stage_here("adapt", check=False)
    assert result.returncode == 143 and "stopped at step 13 of 20" in result.stderr
    assert not adapted.exists()
    result = prepared.stage_here("adapt")
    assert "going on from step 13 of 20" in result.stdout
    assert sha256_of(adapted / "model.safetensors") == whole
    assert len((adapted / "history/steps.csv").read_text().splitlines()) == 21


def test_no_text_of_the_test_split_is_learnt_from(prepared: Project, tmp_path: Path) -> None:
    data = prepared.root / "data"
    texts: dict[str, list[str]] = {}
    for name in ("train", "validation", "test"):
        texts[name] = pq.read_table(data / f"splits/{name}.parquet")["text"].to_pylist()
    copied = texts["train"][7]
    table = pq.read_table(data / "splits/test.parquet")
    column = table.schema.get_field_index("text")
    changed = [f"  {copied.upper()}<br />", *texts["test"][1:]]
    pq.write_table(table.set_column(column, "text", [changed]), data / "splits/test.parquet")
    new = ["The zebra was quite a surprise.", "One more film about a zebra."]
    shown = [new[0], texts["test"][3], f"{texts['validation'][2]} !", new[1]]
    write_unlabelled(tmp_path / "unlabelled.parquet", shown)
    found = read_adaptation_reviews(
        data / "tokens", data / "splits", tmp_path / "unlabelled.parquet", data / "tokenizer"
    )
    again = sum(text == copied for text in texts["train"])
    assert found.counts == {
        "num_train_reviews": 160 - again, "num_train_reviews_in_test": again,
        "num_unlabelled_reviews": 2, "num_unlabelled_reviews_known": 2,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    reviews = [tokenizer.decode(ids, skip_special_tokens=True) for ids in
               found.train.ids.split(found.train.lengths.tolist())]  # fmt: skip
    expected = [tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)
                for text in [*(t for t in texts["train"] if t != copied), *new]]  # fmt: skip
    assert reviews == expected


def test_the_stage_gives_the_training_its_start(prepared: Project) -> None:
    prepared.change_params({**ADAPT, "adapt.epochs": 4, "tracking.log_model": False})
    output = prepared.stage_here("adapt").stdout
    assert "160 training reviews and 0 unlabelled ones" in output
    metrics = json.loads((prepared.root / "metrics/adapt.json").read_text())
    assert metrics["num_epochs"] == 4 and metrics["num_train_reviews"] == 160
    assert 0 < metrics["validation_loss"] < 6 and 0 < metrics["validation_accuracy"] < 1
    assert not list((prepared.root / ".dvc/tmp/resume").glob("*"))
    adapted = DistilBertForMaskedLM.from_pretrained(prepared.root / "data/adapted")
    output = prepared.stage_here("train").stdout
    assert "padding-free, adapted, on" in output
    prepared.stage_here("evaluate")
    facts = json.loads((prepared.root / "data/model/run.json").read_text())
    assert facts["params"]["adapt.epochs"] == 4 and facts["from_scratch"]
    history = (prepared.root / "data/history/adapt_epochs.csv").read_text().splitlines()
    assert len(history) == 5
    (run,) = runs_of(prepared)
    assert run.data.params["adapt.optimizer.algorithm"] == "adamw"
    assert "after 4 epochs of masked words" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["adapt/validation_loss"] == pytest.approx(metrics["validation_loss"])
    client = mlflow.MlflowClient(f"sqlite:///{prepared.root / 'mlflow.db'}")
    assert len(client.get_metric_history(run.info.run_id, "adapt/loss")) == 8
    # Without a step the body is that of the adaptation, the head a new one.
    prepared.change_params({"optimizers.adam.learning_rate": 1e-30, "seed": 5})
    prepared.stage_here("train")
    trained = DistilBertForSequenceClassification.from_pretrained(prepared.root / "data/model")
    for (name, one), other in zip(trained.distilbert.named_parameters(),
                                  adapted.distilbert.parameters(), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, msg=name)


def test_off_the_stage_leaves_a_note_and_the_training_as_it_was(prepared: Project) -> None:
    prepared.change_params({"tracking.log_model": False})
    prepared.stage_here("train")
    weights = (prepared.root / "data/model/model.safetensors").read_bytes()
    prepared.stage_here("adapt")
    assert [file.name for file in (prepared.root / "data/adapted").iterdir()] == ["source.json"]
    assert json.loads((prepared.root / "metrics/adapt.json").read_text()) == {"num_epochs": 0}
    assert "adapted" not in prepared.stage_here("train").stdout
    assert (prepared.root / "data/model/model.safetensors").read_bytes() == weights
    facts = json.loads((prepared.root / "data/model/run.json").read_text())
    assert not [name for name in facts["params"] if name.startswith("adapt")]


REFUSED = [
    ({"engine": "trainer"}, r"adapt\.epochs: 2 needs engine: native; 0 turns adaptation off"),
    ({"model": "lstm"}, r"adapt\.epochs: 2 with model: lstm, an LSTM, which reads"),
    ({"adapt.masked_share": 0.0}, r"adapt\.masked_share: 0\.0: should be greater than 0"),
    ({"adapt.optimizer.algorithm": "adamx"}, r"adapt\.optimizer\.algorithm: 'adamx': should be"),
    ({"adapt.optimizer": {"learning_rate": 1e-4, "schedule": "linear"}}, r"needs an `algorithm`"),
    ({"adapt.optimizer.warmup_steps": 9}, r"adapt\.optimizer\.warmup_share: goes without"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_adapted_is_refused(
    prepared: Project, changes: dict[str, Any], message: str
) -> None:
    prepared.change_params({**ADAPT, **changes})
    with pytest.raises(InputError, match=message):
        load_params(prepared.root / "params.yaml")


def test_a_warm_up_that_is_too_long_names_its_place(prepared: Project) -> None:
    row = {"algorithm": "adam", "learning_rate": 1e-4, "schedule": "linear", "warmup_steps": 21}
    prepared.change_params({**ADAPT, "adapt.optimizer": row})
    before = sorted((prepared.root / "data/adapted").rglob("*"))
    result = prepared.stage_here("adapt", check=False)
    assert result.returncode == 1
    assert "set it to less, as -S adapt.optimizer.warmup_steps=2" in result.stderr
    assert sorted((prepared.root / "data/adapted").rglob("*")) == before


def test_reviews_without_a_word_are_left_out(prepared: Project) -> None:
    prepared.change_params({**ADAPT, "adapt.epochs": 1})
    write_unlabelled(prepared.root / "data/unlabelled.parquet", ["\u4e2d\u6587 \u4e2d", "\u0007"])
    output = prepared.stage_here("adapt").stdout
    assert "160 training reviews and 2 unlabelled ones" in output and "; 10 steps" in output


@pytest.mark.parametrize("has_head", [True, False])
def test_a_checkpoint_keeps_its_head_and_its_pooler(
    prepared: Project, tmp_path: Path, has_head: bool
) -> None:
    """With a rate of next to nothing the adapted weights are the checkpoint's."""
    torch.manual_seed(1)
    size = len((good_checkpoint() / "vocab.txt").read_text().split())
    config = BertConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=64)  # fmt: skip
    folder = tmp_path / "bert"
    shutil.copytree(good_checkpoint(), folder)
    (BertForPreTraining if has_head else BertModel)(config).save_pretrained(folder)
    prepared.change_params({
        **ADAPT, "model": "bert", "models.bert.checkpoint.folder": str(folder),
        "models.bert.checkpoint.sha256": sha256_of(folder / "model.safetensors"),
        "tokenize.max_length": 32, "adapt.optimizer.learning_rate": 1e-30,
        "adapt.optimizer.weight_decay": 0.0, "tracking.log_model": False,
        "optimizers.adam.learning_rate": 1e-30, "train.epochs": 1,
    })  # fmt: skip
    for stage in ("download_checkpoint", "tokenize", "adapt", "train"):
        prepared.stage_here(stage)
    original = load_file(folder / "model.safetensors")
    adapted = load_file(prepared.root / "data/adapted/model.safetensors")
    for name, weights in original.items():
        name = name if has_head else f"bert.{name}"
        if not name.startswith("cls.seq_relationship"):
            torch.testing.assert_close(adapted[name], weights, msg=name)
    trained = load_file(prepared.root / "data/model/model.safetensors")
    for name in adapted:
        if not name.startswith("cls."):
            torch.testing.assert_close(trained[name], adapted[name], msg=name)
    assert "bert.pooler.dense.weight" in adapted
