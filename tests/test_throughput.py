"""benchmarks/throughput.py: its inputs, every case on a tiny model, what it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks import cases, full_run, inputs, saving, step_profile, throughput
from benchmarks.report import print_table, record_folder, write_plot
from distiltune.artifacts import TokenWriter
from distiltune.batching import epoch_order, random_batches
from distiltune.config import SpeedTable, TrainConfig, load
from distiltune.encoding import Encoder
from tests.test_training import CPU

SETTINGS = cases.Settings(
    device="cpu", tokens=None, num_reviews=8, num_notebook_reviews=4, num_epochs=2,
    num_notebook_epochs=1, batch_size=4, reviews=None, tokenizer=None, num_texts=20,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def new_distilbert(seed: int = 0, attention_dropout: float = 0.1) -> Any:
        torch.manual_seed(seed)
        return DistilBertForSequenceClassification(
            DistilBertConfig(
                dim=16, n_layers=2, n_heads=2, hidden_dim=32, attention_dropout=attention_dropout
            )
        )

    monkeypatch.setattr(inputs, "new_distilbert", new_distilbert)


def test_each_save_of_a_state_is_timed(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SECONDS", 0.1)
    saves = saving.measure(3, CPU)
    assert len(saves) == 3
    for save in saves:
        assert 0 < save["copy_seconds"] <= save["lost_seconds"]
        assert save["write_seconds"] > 0
        assert 0 < save["rate"] <= 1


def test_made_up_reviews_are_as_long_as_imdbs() -> None:
    tokens = inputs.made_up_tokens(1000)
    assert tokens.lengths.double().mean().item() == pytest.approx(272.8, rel=0.02)
    assert int(tokens.lengths.max()) == 512
    encoder = Encoder(inputs.made_up_tokenizer(), 512, "head")
    lengths = encoder.encode(inputs.made_up_reviews(300)).lengths
    assert 220 < lengths.mean() < 330
    # 273.8 million operations for each token of IMDb's reviews, forward and backward.
    flops = inputs.matrix_flops(len(tokens.ids), int(tokens.lengths.square().sum()))
    assert flops / len(tokens.ids) == pytest.approx(273.8e6, rel=0.01)


def test_grouped_batches_have_the_lengths_of_all() -> None:
    tokens = inputs.made_up_tokens(800)
    grouped = inputs.grouped_by_length(tokens, 16, cases.NUM_GROUPED_BATCHES)
    assert grouped.num_reviews == 16 * cases.NUM_GROUPED_BATCHES
    for batch in grouped.lengths.split(16):
        assert int(batch.max() - batch.min()) <= 30
    assert grouped.lengths.double().mean() == pytest.approx(
        tokens.lengths.double().mean().item(), rel=0.05
    )


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", [*cases.train_cases(on_cuda=False), *cases.OTHER_CASES])
def test_every_case_runs(name: str) -> None:
    every_case = {**cases.train_cases(on_cuda=False), **cases.OTHER_CASES}
    result = every_case[name](SETTINGS)
    assert len(result["seconds"]) == (2 if name == "evaluate_notebook" else 1)  # without warm-ups
    assert min(result["seconds"]) > 0
    assert result["num_examples"] > 0


def test_a_record_overwrites_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.report.RECORDS", tmp_path)
    names = []
    for _ in range(3):
        folder = record_folder("topic")
        folder.mkdir()
        names.append(folder.name.partition("_")[2])
    assert names == ["topic", "topic-2", "topic-3"]


@pytest.mark.slow
def test_a_run_in_processes_of_its_own_leaves_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--only tokenize_native,tokenize_notebook --rounds 1 --num-texts 200 --device cpu"
    throughput.run(throughput.parse([*arguments.split(), "--output", str(tmp_path)]))
    report = json.loads((tmp_path / "throughput.json").read_text())
    assert report["ratios"].keys() == {"tokenize_native_vs_notebook"}
    assert report["environment"]["torch"].startswith("2.")
    assert report["others"]["tokenize_native"]["peak_memory_bytes"] > 10_000_000
    assert "tokenize_notebook" in capsys.readouterr().out


def test_the_table_and_the_plot_hold_every_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(seconds: list[float], memory: int) -> dict[str, Any]:
        return {
            "seconds": seconds, "num_examples": 12, "num_tokens": 1200, "matrix_flops": 6e11,
            "peak_memory": memory,
        }  # fmt: skip

    train = {
        "notebook": throughput.summarize([measured([6.0], 400)], 1e12),
        "trainer_best": throughput.summarize([measured([2.0], 400)], 1e12),
        "native": throughput.summarize([measured([1.0], 100), measured([2.0, 0.5], 90)], 1e12),
    }
    assert train["native"]["examples_per_second"] == 12  # the median of three
    assert train["native"]["examples_per_second_range"] == [6, 24]
    assert train["native"]["share_of_matrix_peak"] == pytest.approx(0.6)
    found = throughput.ratios(train, {})
    assert found == {
        "native_vs_notebook": 6.0, "peak_memory_vs_notebook": 0.25, "native_vs_trainer_best": 2.0
    }  # fmt: skip
    report = {
        "environment": {"device": "cpu", "processor": "x"},
        "matrix_peak_tflops": 1.0,
        "batch_sizes": {"16": {"train": train, "ratios": found}},
        "others": {},
        "ratios": found,
    }
    print_table(report)
    output = capsys.readouterr().out
    assert all(name in output for name in train)
    write_plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--only natve", "'natve' is no case"),
        ("--tokens gone.safetensors", "gone.safetensors: no such file"),
        ("--reviews params.yaml", "--reviews and --tokenizer go together"),
        ("--batch-sizes 0", "--batch-sizes: '0': a whole number from 1"),
        ("--batch-sizes a", "--batch-sizes"),
        ("--num-reviews 1000000000", "--num-reviews: at most 1,000,000"),
    ],
)
def test_a_bad_option_is_named(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        throughput.parse(arguments.split())
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_profile_of_no_steps_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["step_profile", "--steps", "0"])
    with pytest.raises(SystemExit):
        step_profile.main()
    assert "--steps: '0': a whole number from 1" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_the_profile_accounts_for_the_step() -> None:
    found = step_profile.profile_steps(inputs.made_up_tokens(8), 4, 2, CPU, SpeedTable())
    purposes = found["seconds_by_purpose"]
    assert {"linear layers", "attention", "optimizer", "masks and scales"} <= purposes.keys()
    assert 0 < sum(purposes.values()) <= 2.5 * found["seconds_per_step_profiled"]


def test_a_plain_run_meets_the_batches_of_the_fast_one() -> None:
    config = load(TrainConfig)
    tokens = inputs.made_up_tokens(100)
    few = full_run.first_steps(tokens, config, 3)
    whole = random_batches(epoch_order(100, config.seed, 1), config.batch_size)
    part = random_batches(epoch_order(48, config.seed, 1), config.batch_size)
    assert len(part) == 3
    for expected, found in zip(whole, part, strict=False):
        assert few.lengths[found].tolist() == tokens.lengths[expected].tolist()
        assert few.labels[found].tolist() == tokens.labels[expected].tolist()


@pytest.mark.usefixtures("tiny")
def test_fast_and_plain_runs_lie_on_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, num_reviews in (("train", 40), ("validation", 4)):
        tokens = inputs.made_up_tokens(num_reviews)
        metadata = {
            "dataset": "x", "label_names": json.dumps(["no", "yes"]), "max_length": "512",
            "truncation": "head",
            "reviews_sha256": "",
        }  # fmt: skip
        writer = TokenWriter(tmp_path / f"{name}.safetensors")
        writer.write(tokens.ids.numpy(), tokens.lengths.numpy(), tokens.labels.numpy())
        writer.close(metadata)
    monkeypatch.setattr(full_run, "RECORD_EVERY", 1)
    monkeypatch.setattr(
        "sys.argv",
        f"full_run --device cpu --tokens {tmp_path} --epochs 1 --batch-size 8 --plain-steps 3 "
        f"--output {tmp_path / 'out'}".split(),
    )
    full_run.main()
    runs = json.loads((tmp_path / "out" / "full_run.json").read_text())["runs"]
    assert len(runs["fast"]["steps"]) == 5 and len(runs["plain"]["steps"]) == 3
    fast = [loss for _, loss in runs["fast"]["steps"][:3]]
    assert fast == pytest.approx([loss for _, loss in runs["plain"]["steps"]], abs=0.05)
    assert (tmp_path / "out" / "losses.png").exists()
    assert np.isfinite(fast).all()
