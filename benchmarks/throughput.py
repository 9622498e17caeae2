"""`make bench`: the engines and their switches side by side, on whatever device there is.

    python -m benchmarks.throughput [--tokens data/tokens/train.safetensors]
        [--reviews data/reviews.parquet --tokenizer data/tokenizer] [--batch-sizes 16,32] ...

Every case runs in a process of its own, from the same random weights and on the same
reviews; the two main peers, `native` and its evaluation by turns in rounds, so that a slow
minute meets them alike, and the others once. Warm-up is not counted. Without files it makes
up reviews with the lengths of IMDb's. It writes a table, `throughput.json` and
`throughput.png`.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks import inputs
from benchmarks.cases import OTHER_CASES, Result, Settings, run_case, train_cases
from benchmarks.report import count, environment, print_table, record_folder, write_plot
from distiltune.artifacts import write_json
from distiltune.runtime import choose_runtime, run_stage

# The others run once.
ROUNDS_OF = ("notebook", "trainer_best", "native", "evaluate_notebook", "evaluate_native")
NUM_TEXTS = 10_000


def summarize(results: list[Result], peak: float) -> Result:
    """Median and range over all timed epochs of a case's runs."""
    first = results[0]
    seconds = [value for result in results for value in result["seconds"]]
    median = statistics.median(seconds)
    summary: Result = {
        "num_examples": first["num_examples"],
        "seconds": seconds,
        "examples_per_second": first["num_examples"] / median,
        "examples_per_second_range": [
            first["num_examples"] / max(seconds),
            first["num_examples"] / min(seconds),
        ],
        "peak_memory_bytes": max(result["peak_memory"] for result in results),
    }
    if "num_tokens" in first:
        summary["tokens_per_second"] = first["num_tokens"] / median
        summary["share_of_matrix_peak"] = first["matrix_flops"] / median / peak
    if "memory_before" in first:
        summary["memory_before_bytes"] = first["memory_before"]
    return summary


def ratios(train: dict[str, Result], others: dict[str, Result]) -> dict[str, float]:
    """What the product is compared to its peers; above 1 it is better, memory aside."""
    found = {}
    if {"native", "notebook"} <= train.keys():
        fast, plain = train["native"], train["notebook"]
        found["native_vs_notebook"] = fast["examples_per_second"] / plain["examples_per_second"]
        found["peak_memory_vs_notebook"] = fast["peak_memory_bytes"] / plain["peak_memory_bytes"]
    best = [train[name] for name in train if name.startswith("trainer_best")]
    if "native" in train and best:
        # By tokens, since the two may not have had the same reviews.
        found["native_vs_trainer_best"] = train["native"]["tokens_per_second"] / max(
            case["tokens_per_second"] for case in best
        )
    for task in ("evaluate", "tokenize"):
        if {f"{task}_native", f"{task}_notebook"} <= others.keys():
            found[f"{task}_native_vs_notebook"] = (
                others[f"{task}_native"]["examples_per_second"]
                / others[f"{task}_notebook"]["examples_per_second"]
            )
    return found


def run(arguments: argparse.Namespace) -> None:
    """Measure, show and write what the options ask for; the record grows with each case."""
    runtime = choose_runtime(arguments.device, "auto")
    on_cuda = runtime.device.type == "cuda"
    folder = arguments.output or record_folder(f"throughput-{runtime.device.type}")
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    peak = run_case("matrix_peak", settings_of(arguments, 1, on_cuda))["flops_per_second"]
    report: Result = {
        "environment": environment(runtime),
        "matrix_peak_tflops": peak / 1e12,
        "batch_sizes": {},
        "others": {},
        "ratios": {},
    }
    for batch_size in arguments.batch_sizes:
        settings = settings_of(arguments, batch_size, on_cuda)
        # Of what runs once, one batch in place of two.
        few = settings.num_reviews if on_cuda else batch_size
        fewer = dataclasses.replace(settings, num_reviews=few)
        names = list(train_cases(on_cuda=on_cuda))
        if batch_size == arguments.batch_sizes[0]:
            names += OTHER_CASES
        if arguments.only:
            names = [name for name in names if name in arguments.only]
        part: Result = {"train": {}, "ratios": {}}
        report["batch_sizes"][str(batch_size)] = part
        results: dict[str, list[Result]] = {name: [] for name in names}
        for round_number in range(arguments.rounds):
            for name in names:
                if round_number and name not in ROUNDS_OF:
                    continue
                result = run_case(name, settings if name in ROUNDS_OF else fewer)
                results[name].append(result)
                table = report["others"] if name in OTHER_CASES else part["train"]
                table[name] = summarize(results[name], peak)
                part["ratios"] = ratios(part["train"], report["others"])
                report["ratios"] = report["batch_sizes"][str(arguments.batch_sizes[0])]["ratios"]
                report["seconds"] = time.perf_counter() - started
                write_json(folder / "throughput.json", report)
                speed = result["num_examples"] / statistics.median(result["seconds"])
                print(
                    f"{report['seconds']:6.0f} s  batch {batch_size}  {name}: "
                    f"{speed:,.2f} examples/s",
                    file=sys.stderr,
                    flush=True,
                )
    print_table(report)
    write_plot(report, folder / "throughput.png")
    print(f"\nwritten to {folder}")


def settings_of(arguments: argparse.Namespace, batch_size: int, on_cuda: bool) -> Settings:
    """Epochs, of which the first is thrown away: whole ones on CUDA, two batches on the CPU."""
    return Settings(
        device=arguments.device,
        tokens=arguments.tokens,
        num_reviews=arguments.num_reviews or (3200 if on_cuda else 2 * batch_size),
        # In fp32 and padded a fraction of the reviews takes as long.
        num_notebook_reviews=40 * batch_size if on_cuda else batch_size,
        num_epochs=3 if on_cuda else 2,
        num_notebook_epochs=3 if on_cuda else 1,
        batch_size=batch_size,
        reviews=arguments.reviews,
        tokenizer=arguments.tokenizer,
        num_texts=arguments.num_texts,
    )


def parse(options: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--batch-sizes", default="16", type=_counts, metavar="N,N,...",
                        help="default: 16; the first also evaluates and tokenizes")  # fmt: skip
    parser.add_argument("--num-reviews", type=count, metavar="N",
                        help="reviews of an epoch, at most the file's (default: 2 batches "
                        "on the CPU, 3,200 on CUDA)")  # fmt: skip
    parser.add_argument("--rounds", type=count, default=2, metavar="N",
                        help=f"of {', '.join(ROUNDS_OF)} (default: 2)")  # fmt: skip
    parser.add_argument("--tokens", type=Path, help="a token file instead of made-up reviews")
    parser.add_argument("--reviews", type=Path, help="a table of reviews, for tokenizing")
    parser.add_argument("--tokenizer", type=Path, help="the folder of its tokenizer")
    parser.add_argument("--num-texts", type=count, default=NUM_TEXTS, metavar="N",
                        help=f"reviews to tokenize (default: {NUM_TEXTS})")  # fmt: skip
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="CASE,CASE,...",
                        help="these cases alone; a name that is none lists them")  # fmt: skip
    parser.add_argument("--output", type=Path, help="a folder other than the dated one")
    arguments = parser.parse_args(options)
    for path in (arguments.tokens, arguments.reviews, arguments.tokenizer):
        if path is not None and not path.exists():
            parser.error(f"{path}: no such file")
    if (arguments.reviews is None) != (arguments.tokenizer is None):
        parser.error("--reviews and --tokenizer go together")
    if (arguments.num_reviews or 0) > inputs.MAX_REVIEWS:
        parser.error(f"--num-reviews: at most {inputs.MAX_REVIEWS:,}")
    known = {*train_cases(on_cuda=False), *train_cases(on_cuda=True), *OTHER_CASES}
    for name in arguments.only or ():
        if name not in known:
            parser.error(f"--only: {name!r} is no case; there are {', '.join(sorted(known))}")
    return arguments


def _counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    run_stage(lambda: run(parse(sys.argv[1:])))
