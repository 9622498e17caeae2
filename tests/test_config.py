"""params.yaml: the committed defaults, what each mistake says, and YAML as DVC writes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distiltune import InputError
from distiltune.config import (
    DownloadConfig,
    ImdbRow,
    SplitConfig,
    TokenizeConfig,
    TrainConfig,
    load,
)
from tests.conftest import ROOT

COMMITTED = (ROOT / "params.yaml").read_text()
Edit = Callable[[str, str], Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """The committed file with one passage replaced."""

    def edit(old: str, new: str) -> Path:
        assert old in COMMITTED
        path = tmp_path / "params.yaml"
        path.write_text(COMMITTED.replace(old, new, 1))
        return path

    return edit


def test_the_defaults_are_the_reference_adam_run() -> None:
    file = ROOT / "params.yaml"
    train = load(TrainConfig, file)
    assert (train.model, train.optimizer, train.engine, train.seed) == (
        "distilbert", "adam", "native", 123,
    )  # fmt: skip
    assert (train.batch_size, train.epochs, train.learning_rate) == (16, 3, 5e-5)
    assert train.optimizer_row.schedule == "constant"
    assert train.optimizer_row.weight_decay == 0.0
    checkpoint = train.model_row.checkpoint
    assert checkpoint is not None
    assert checkpoint.repository == "distilbert-base-uncased"
    assert checkpoint.revision == "12040accade4e8a0f71eabdb258fecc2e7e948be"
    split = load(SplitConfig, file).split
    assert (split.train, split.validation, split.test) == (35000, 5000, 10000)
    assert not split.shuffle
    assert load(TokenizeConfig, file).max_length == 512
    source = load(DownloadConfig, file).source
    assert isinstance(source, ImdbRow)
    assert source.sha256.startswith("c40f74a18d3b61f9")
    assert train.num_steps(35000) == 3 * 2188


def test_the_adamw_row_is_the_reference_adamw_run(edited: Edit) -> None:
    config = load(TrainConfig, edited("optimizer: adam ", "optimizer: adamw "))
    row = config.optimizer_row
    assert (config.learning_rate, row.weight_decay) == (5e-5, 0.01)
    assert (row.schedule, row.warmup_steps) == ("linear", 500)


def test_a_number_beats_auto(edited: Edit) -> None:
    config = load(TrainConfig, edited("epochs: auto", "epochs: 7"))
    assert (config.epochs, config.batch_size) == (7, 16)


def test_the_models_multiplier_scales_the_rate(edited: Edit) -> None:
    assert load(TrainConfig, edited("model: distilbert ", "model: lstm ")).learning_rate == 5e-3


@pytest.mark.parametrize(
    ("written", "value"), [("3e-05", 3e-5), ("3.0e-05", 3e-5), ("1E-4", 1e-4), ("1", 1.0)]
)
def test_numbers_as_dvc_writes_them(edited: Edit, written: str, value: float) -> None:
    path = edited("learning_rate: 5.0e-5", f"learning_rate: {written}")
    assert load(TrainConfig, path).learning_rate == value


def test_yaml_1_2_words_are_strings(edited: Edit) -> None:
    path = edited("experiment: distiltune", "experiment: on")
    assert load(TrainConfig, path).tracking.experiment == "on"
    assert load(TrainConfig, edited("seed: 123", "seed: 010")).seed == 10


# What is replaced, by what, and words that the one line of the error must hold.
MISTAKES: list[tuple[str, str, list[str]]] = [
    ("seed: 123", "sed: 123", ["sed: unknown key", "did you mean seed?"]),
    ("  batch_size: auto", "  batchsize: 4", ["train.batchsize", "did you mean batch_size?"]),
    ("  keep: last ", "  padding_free: false\n  keep: last ",
     ["train.padding_free: unknown key", "did you mean speed.padding_free?"]),
    ("hidden_size: 64", "hiden_size: 64", ["models.tiny.architecture.hiden_size", "hidden_size?"]),
    ("epochs: auto", "epochs: 0", ["train.epochs: 0", "greater than 0", "auto"]),
    ("epochs: auto", "epochs: three", ["train.epochs: 'three'", "integer", "auto"]),
    ("epochs: auto", "epochs: 2.5", ["train.epochs: 2.5", "integer"]),
    ("epochs: auto", "epochs:", ["train.epochs: None"]),
    ("dataset: imdb", "dataset: imbd", ["dataset: 'imbd'", "'imdb'", "'sample'", "'csv'"]),
    ("model: distilbert ", "model: distillbert ", ["model: 'distillbert'", "mean distilbert?"]),
    ("optimizer: adam ", "optimizer: adamww ", ["optimizer: 'adamww'", "did you mean adamw?"]),
    ("optimizer: adam ", "optimizer: 3 ", ["optimizer: 3", "string"]),
    ("engine: native", "engine: keras", ["engine: 'keras'", "'native' or 'trainer'"]),
    ("seed: 123", "seed: -1", ["seed: -1", "greater than or equal to 0"]),
    ("seed: 123", "seed: true", ["seed: True", "integer"]),
    ("seed: 123", 'seed: "123"', ["seed: '123'", "integer"]),
    ("device: auto", "device: gpu", ["device: 'gpu'", "'auto', 'cuda' or 'cpu'"]),
    ("precision: auto", "precision: int8", ["precision: 'int8'", "'bf16'"]),
    ("learning_rate: 5.0e-5", 'learning_rate: "5e-5"', ["optimizers.adam.learning_rate", "number"]),
    ("learning_rate: 5.0e-5", "learning_rate: -1.0", ["optimizers.adam.learning_rate: -1.0"]),
    ("learning_rate: 5.0e-5", "learning_rate: .nan", ["optimizers.adam.learning_rate"]),
    ("learning_rate: 5.0e-5, ", "", ["optimizers.adam.learning_rate", "is missing"]),
    ("schedule: constant", "schedule: cosin", ["optimizers.adam.schedule", "'linear'"]),
    ("adam:  {", "fast: {", ["optimizers.fast.algorithm: 'fast'", "'lion'", "algorithm: adamw"]),
    ("momentum: 0.9", "momentun: 0.9", ["optimizers.sgd.momentun", "mean momentum?"]),
    ("lion: {", "lion: {epsilon: 1.0e-8, ", ["optimizers.lion.epsilon: unknown key"]),
    ("schedule: constant}", "schedule: constant, warmup_steps: 5, warmup_share: 0.1}",
     ["optimizers.adam.warmup_share: goes without warmup_steps, which is 5"]),
    ("schedule: constant}", "schedule: constant, ema_decay: 0.9, swa_start_share: 0.5}",
     ["optimizers.adam.swa_start_share: goes without ema_decay"]),
    ("schedulefree_adamw:", "schedulefree_adamw:\n    ema_decay: 0.9",
     ["optimizers.schedulefree_adamw.ema_decay", "averages already"]),
    ("    schedule: constant", "    schedule: linear",
     ["optimizers.schedulefree_adamw.schedule: 'linear' must be 'constant'"]),
    ("momentum: 0.9", "momentum: 0.0", ["optimizers.sgd.nesterov", "momentum above 0"]),
    ("weight_decay: 0.01\n    schedule: linear\n    warmup_steps",
     "weight_decay: 2.0\n    schedule: linear\n    warmup_steps",
     ["optimizers.adamw.weight_decay: 2.0", "less"]),
    ("warmup_steps: 500", "warmup: 500", ["optimizers.adamw.warmup", "mean warmup_steps?"]),
    ("train: 35000", "train: 0", ["splits.imdb.train: 0", "at least 1"]),
    ("train: 35000", "train: 0.7", ["splits.imdb", "all counts", "all shares"]),
    ("train: 0.8", "train: 0.9", ["splits.csv", "more than 1"]),
    ("train: 0.8", "train: 1.5", ["splits.csv.train: 1.5", "between 0 and 1"]),
    ("stratify: true", "stratify: yes", ["splits.csv.stratify: 'yes'", "boolean"]),
    ("stratify: false", "stratify: true", ["splits.imdb.stratify", "needs", "shuffle: true"]),
    ("urls:", "urls: []\n    url:", ["datasets.imdb.url", "did you mean urls?"]),
    ("- https://ai", "- ftp://ai", ["datasets.imdb.urls", "https://, http:// or file://"]),
    ("sha256: c40f", "sha256: xyz0", ["datasets.imdb.sha256", "pattern"]),
    ("num_reviews: 12000", "num_reviews: 11000", ["splits.sample", "more than datasets.sample"]),
    ("label_column: sentiment", "label_column: review", ["csv.label_column", "text column"]),
    ("paths: []", "paths: [reviews.txt]", ["datasets.csv.paths", ".csv, .csv.gz or .parquet"]),
    ("paths: []", "paths: [../a.csv]", ["'../a.csv'", "give its absolute path"]),
    ("paths: []", "paths: a.csv", ["datasets.csv.paths: 'a.csv'", "array"]),
    ("revision: 12040", "revision: zz040", ["models.distilbert.checkpoint.revision", "pattern"]),
    ("{type: checkpoint, max_length: 512}", "{type: word, max_length: 512}",
     ["models.distilbert.tokenizer.type: 'word'"]),
    ("num_heads: 4", "num_heads: 5", ["models.tiny.architecture.hidden_size: 64", "multiple"]),
    ("truncation: head ", "truncation: tail ", ["tokenize.truncation: 'tail'", "'head_tail'"]),
    ("max_length: auto", "max_length: 2", ["tokenize.max_length: 2", "greater than or equal to 3"]),
    ("keep: last", "keep: first", ["train.keep: 'first'", "'last' or 'best'"]),
    ("max_gradient_norm: null", "max_gradient_norm: 0.0", ["train.max_gradient_norm"]),
    ("log_model: true", "log_model: maybe", ["tracking.log_model: 'maybe'"]),
    ("dataset: imdb", "dataset: [imdb", ["line", "not YAML"]),
    ("seed: 123", "seed: 123\nseed: 124", ["line", "'seed' stands twice"]),
    ("experiment: distiltune", "experiment: !!binary aGk=", ["no text, number or list"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES)
def test_a_mistake_gets_one_line_that_names_it(
    edited: Edit, old: str, new: str, words: list[str]
) -> None:
    if new.startswith("num_reviews") or "sample" in words[0]:
        edit_file = edited(old, new)
        edit_file.write_text(edit_file.read_text().replace("dataset: imdb ", "dataset: sample "))
        path = edit_file
    else:
        path = edited(old, new)
    with pytest.raises(InputError) as caught:
        load(TrainConfig, path)
    lines = str(caught.value).splitlines()
    matching = [line for line in lines if all(word in line for word in words)]
    assert len(matching) == 1, lines
    # A misspelt key is one mistake, not an unknown and a missing one.
    if "did you mean" in matching[0]:
        assert not [line for line in lines if line.endswith("is missing")], lines
    assert matching[0].startswith(str(path))


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "keys and values"), (b"- 1\n", "list"), (b"a: \xff\n", "not UTF-8"), (None, "no such")],
)
def test_a_file_that_is_no_params_file(tmp_path: Path, content: Any, word: str) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=word):
        load(TrainConfig, path)


def test_a_warm_up_longer_than_the_training(edited: Edit) -> None:
    config = load(TrainConfig, edited("optimizer: adam ", "optimizer: adamw "))
    with pytest.raises(InputError, match=r"warmup_steps: 500 .* make 57 steps.*warmup_steps=5"):
        config.num_steps(300)


def test_a_csv_data_set_needs_a_path(edited: Edit) -> None:
    with pytest.raises(InputError, match=r"datasets\.csv\.paths: is empty"):
        load(DownloadConfig, edited("dataset: imdb ", "dataset: csv "))


def test_an_lstm_has_no_attention_to_drop_out(edited: Edit) -> None:
    path = edited("attention_dropout: auto", "attention_dropout: 0.0")
    load(TrainConfig, path)
    path.write_text(path.read_text().replace("model: distilbert ", "model: lstm "))
    with pytest.raises(InputError, match=r"train\.attention_dropout: 0\.0 with model: lstm"):
        load(TrainConfig, path)


def test_mistakes_end_a_stage_with_status_1_and_no_traceback(project: Any) -> None:
    project.change_params({"train.epochs": 0, "engine": "keras"})
    result = project.stage("split", check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 2
    assert "Traceback" not in result.stderr
