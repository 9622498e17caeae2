"""How a benchmark's figures are shown and kept."""

import argparse
import datetime
import itertools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distiltune.runtime import Runtime

RECORDS = Path(__file__).parent / "records"


def record_folder(topic: str) -> Path:
    """A dated folder of `benchmarks/records/` that is not there yet."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    name = f"{today}_{topic}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(RECORDS / name for name in names if not (RECORDS / name).exists())


def count(text: str) -> int:
    """A whole number from 1, of the command line.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1")
    return int(text)


def environment(runtime: Runtime) -> dict[str, Any]:
    """Hardware, versions and commit, for a record."""
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=RECORDS.parent,
    )  # fmt: skip
    return {
        "device": runtime.description,
        "processor": processor_name(),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": commit.stdout.strip() or None,
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def print_table(report: dict[str, Any]) -> None:
    """The figures by case; `x notebook` is the ratio of examples per second."""
    print(f"\n{report['environment']['device']}, {report['environment']['processor']}")
    print(f"measured matrix peak: {report['matrix_peak_tflops']:.3g} TFLOP/s")
    for batch_size, part in report["batch_sizes"].items():
        print(f"\ntraining, batches of {batch_size}")
        _print_cases(part["train"], "notebook")
    for task in ("evaluate", "tokenize"):
        cases = {n: case for n, case in report["others"].items() if n.startswith(task)}
        if cases:
            print(f"\n{task}")
            _print_cases(cases, f"{task}_notebook")
    print()
    for name, value in report["ratios"].items():
        print(f"{name:32}{value:8.2f}")


def _print_cases(cases: dict[str, Any], reference: str) -> None:
    print(
        f"{'case':36}{'examples/s':>11}{'(range)':>20}{'tokens/s':>12}{'x notebook':>12}"
        f"{'memory GB':>11}{'of peak':>9}"
    )
    base = cases.get(reference, {}).get("examples_per_second")
    for name, case in cases.items():
        low, high = case["examples_per_second_range"]
        tokens = case.get("tokens_per_second")
        share = case.get("share_of_matrix_peak")
        times = f"{case['examples_per_second'] / base:.2f}" if base else ""
        print(
            f"{name:36}{case['examples_per_second']:11,.2f}"
            f"{f'({low:,.2f} to {high:,.2f})' if low < high else '':>20}"
            f"{f'{tokens:,.0f}' if tokens else '':>12}"
            f"{times:>12}"
            f"{case['peak_memory_bytes'] / 1e9:11.2f}"
            f"{f'{share:.0%}' if share else '':>9}"
        )


def write_plot(report: dict[str, Any], path: Path) -> None:
    """Bars of examples per second in training, with their ranges."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    parts = {size: part["train"] for size, part in report["batch_sizes"].items() if part["train"]}
    if not parts:
        return
    num_bars = max(len(cases) for cases in parts.values())
    figure, axes = pyplot.subplots(
        1, len(parts), figsize=(7.5 * len(parts), 1.2 + 0.34 * num_bars), squeeze=False
    )
    for axis, (batch_size, cases) in zip(axes[0], parts.items(), strict=True):
        names = list(cases)
        values = [cases[name]["examples_per_second"] for name in names]
        ranges = [cases[name]["examples_per_second_range"] for name in names]
        errors = [
            [value - low for value, (low, _) in zip(values, ranges, strict=True)],
            [high - value for value, (_, high) in zip(values, ranges, strict=True)],
        ]
        colors = ["tab:blue" if name.startswith("native") else "tab:gray" for name in names]
        axis.barh(range(len(names)), values, xerr=errors, color=colors, error_kw={"capsize": 3})
        axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axis.invert_yaxis()
        axis.set_xlabel("training examples per second")
        axis.set_title(f"batches of {batch_size}")
        for place, value in enumerate(values):
            axis.text(max(value, ranges[place][1]), place, f"  {value:,.2f}", va="center", size=8)
        axis.set_xlim(0, max(high for _, high in ranges) * 1.18)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(report["environment"]["device"], fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
