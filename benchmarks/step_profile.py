"""Where the time of a training step goes, and what is left to gain against the matrix peak.

    python -m benchmarks.step_profile [--tokens data/tokens/train.safetensors] [--steps 3]

Runs steps of the native engine under PyTorch's profiler and sums the operators' own time,
on CUDA the kernels', by what they are for. It writes `profile.json` and prints a table.
"""

import argparse
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import inputs, peers
from benchmarks.report import count, environment, record_folder
from distiltune.artifacts import write_json
from distiltune.batching import Tokens, epoch_order, random_batches
from distiltune.config import SpeedTable, TrainConfig, load
from distiltune.optimizers import build_optimizer
from distiltune.runtime import Runtime, choose_runtime, run_stage
from distiltune.training.objective import Classification
from distiltune.training.passes import Passes

# The first pattern that is found in an operator's or a kernel's name says what it is for.
PURPOSES = (
    ("optimizer", r"adam|multi_tensor"),
    ("attention", r"flash|fmha|bmm|softmax|baddbmm"),
    ("linear layers", r"\baten::(mm|addmm|linear)\b|gemm|cutlass|nvjet|xmma|splitk"),
    ("norms", r"layer_norm|LayerNorm"),
    ("activations", r"gelu|GeLU|relu"),
    ("masks and scales", r"random_|bernoulli|dropout|::ge\b|::mul|philox"),
    ("embeddings", r"embedding|indexing_backward|radix|DeviceSegmented"),
    ("casts and copies", r"copy|cast|::cat\b|CatArray|Memcpy|Memset|fill_|FillFunctor"),
    ("sums and other elementwise", r"::add|::sum|::div|reduce|elementwise"),
)


def profile_steps(
    tokens: Tokens, batch_size: int, num_steps: int, runtime: Runtime, speed: SpeedTable
) -> dict[str, Any]:
    """Seconds of each purpose in a mean step, and of the step as a whole without profiler."""
    config = load(TrainConfig)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_size=batch_size), speed=speed
    )
    model = inputs.new_distilbert().to(runtime.device)
    objective = Classification(config, model, tokens, tokens, runtime)
    passes = Passes(config, model, tokens, runtime, objective)
    optimizer = build_optimizer(
        model, config.optimizer_row, config.learning_rate, fused=speed.fused_optimizer
    )
    batches = random_batches(epoch_order(tokens.num_reviews, 0, 1), batch_size)[:num_steps]

    def steps() -> float:
        started = time.perf_counter()
        for rows in batches:
            passes.run([rows])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peers.synchronize(runtime)
        return (time.perf_counter() - started) / len(batches)

    steps()
    alone = min(steps(), steps())
    on_cuda = runtime.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as recorded:
        profiled = steps()
    purposes: dict[str, float] = {}
    largest: dict[str, float] = {}
    for event in recorded.key_averages():
        if on_cuda and event.device_type.name != "CUDA":
            continue
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        seconds = microseconds / 1e6 / len(batches)
        purpose = next((name for name, p in PURPOSES if re.search(p, event.key)), "other")
        purposes[purpose] = purposes.get(purpose, 0.0) + seconds
        largest[event.key] = seconds
    rows = torch.cat(batches)
    lengths = tokens.lengths[rows]
    flops = inputs.matrix_flops(int(lengths.sum()), int(lengths.square().sum())) / len(batches)
    return {
        "seconds_per_step": alone,
        "seconds_per_step_profiled": profiled,
        "tokens_per_step": int(lengths.sum()) / len(batches),
        "plain_flops_per_step": flops,
        "seconds_by_purpose": dict(sorted(purposes.items(), key=lambda item: -item[1])),
        "largest_operators": dict(sorted(largest.items(), key=lambda item: -item[1])[:25]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.step_profile", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tokens", type=Path, help="a token file instead of made-up reviews")
    parser.add_argument("--batch-size", type=count, default=16)
    parser.add_argument("--steps", type=count, help="3 on the CPU, 50 on CUDA")
    parser.add_argument("--output", type=Path, help="a folder other than the dated one")
    arguments = parser.parse_args()
    if arguments.tokens is not None and not arguments.tokens.exists():
        parser.error(f"{arguments.tokens}: no such file")
    runtime = choose_runtime(arguments.device, "auto")
    num_steps = arguments.steps or (50 if runtime.device.type == "cuda" else 3)
    num_reviews = num_steps * arguments.batch_size
    if num_reviews > inputs.MAX_REVIEWS:
        parser.error(f"--steps: at most {inputs.MAX_REVIEWS // arguments.batch_size:,} here")
    tokens = (
        inputs.made_up_tokens(num_reviews)
        if arguments.tokens is None
        else inputs.some_of(arguments.tokens, num_reviews)
    )
    found = profile_steps(tokens, arguments.batch_size, num_steps, runtime, SpeedTable())
    peak = peers.matrix_peak(runtime)
    total = sum(found["seconds_by_purpose"].values())
    print(f"{runtime.description}: matrix peak {peak / 1e12:.3g} TFLOP/s")
    print(
        f"{found['seconds_per_step'] * 1e3:,.1f} ms a step of {found['tokens_per_step']:,.0f} "
        f"tokens ({found['seconds_per_step_profiled'] * 1e3:,.1f} ms under the profiler)"
    )
    for name, seconds in found["seconds_by_purpose"].items():
        print(f"  {name:28}{seconds * 1e3:10,.1f} ms{seconds / total:8.1%}")
    ideal = found["plain_flops_per_step"] / peak
    print(
        f"the plain model's products at the peak would take {ideal * 1e3:,.1f} ms, "
        f"{ideal / found['seconds_per_step']:.0%} of the step"
    )
    folder = arguments.output or record_folder(f"profile-{runtime.device.type}")
    report = {"environment": environment(runtime), "matrix_peak_tflops": peak / 1e12, **found}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "profile.json", report)
    print(f"written to {folder}")


if __name__ == "__main__":
    run_stage(main)
