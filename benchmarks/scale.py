"""How each stage's time and memory grow with the number of reviews.

    python -m benchmarks.scale
    python -m benchmarks.scale --archive aclImdb_v1.tar.gz --train-sizes 5000

Runs the real stages, each in a process of its own, in temporary copies of this checkout:
on reviews that the project generates (`dataset=sample`), or with `--archive` on a CSV file
of real ones (`dataset=csv`). Prints a table, and writes `scale.json` and `scale.png`.

This process imports nothing heavy before it has measured: a child starts as a copy of its
parent, and its peak of memory counts from there.
"""

import argparse
import csv
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import processor_name, record_folder

ROOT = Path(__file__).resolve().parent.parent
CODE = ("src", "stages", "inputs", "params.yaml")
SIZES = (5_000, 50_000, 500_000)
TRAIN_SIZES = (5_000, 50_000)
MIN_REVIEWS, MAX_GENERATED = 100, 1_000_000
LIBRARIES = ("numpy", "pandas", "pyarrow", "scikit-learn", "tokenizers", "torch", "transformers")
# The hardest that `split` can be asked for.
SPLIT = {
    "train": 0.8, "validation": 0.1, "test": 0.1, "shuffle": True, "stratify": True, "seed": 0,
    "drop_duplicates": True,
}  # fmt: skip
CHECKPOINT_STAGE = "tokenize (checkpoint)"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for on the command line, checked."""

    sizes: tuple[int, ...]
    train_sizes: tuple[int, ...]
    archive: Path | None
    checkpoint: Path | None
    output: Path


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One stage as a whole process, imports included."""

    stage: str
    num_reviews: int
    seconds: float
    cpu_seconds: float  # of all cores together; other work beside it disturbs it less
    peak_mib: float  # resident memory


def main() -> None:
    options = parse_options()
    environment = environment_record()
    measurements = []
    for size in options.sizes:
        for measurement in measure(size, options):
            print(
                f"{measurement.num_reviews:>9,}  {measurement.stage:22}"
                f"{measurement.seconds:8.1f} s {measurement.cpu_seconds:8.1f} s of CPU"
                f"{measurement.peak_mib:7.0f} MiB",
                flush=True,
            )
            measurements.append(measurement)
    print(f"\n{growth_table(measurements, options.sizes)}")
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        **environment,
        "reviews": "the archive's, as CSV" if options.archive else "generated (dataset=sample)",
        "splits": SPLIT,
        "train.epochs": 1,
        "measurements": [asdict(measurement) for measurement in measurements],
    }
    text = json.dumps(record, indent=2)
    (options.output / "scale.json").write_text(text + "\n", encoding="utf-8")
    write_plot(measurements, options.output / "scale.png")
    print(f"\nwritten: {options.output}/scale.json and scale.png")


def parse_options(arguments: list[str] | None = None) -> Options:
    """Read the command line; a mistake ends with one line that names the option."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description="Time and peak memory of each stage as the number of reviews grows.",
    )
    parser.add_argument("--sizes", type=_sizes, default=SIZES, metavar="N,N,...",
                        help="numbers of reviews (default: 5000,50000,500000)")  # fmt: skip
    parser.add_argument("--train-sizes", type=_sizes, metavar="N,N,... | none",
                        help="of those, where one epoch of the tiny model is trained and evaluated "
                        "too (default: 5000,50000)")  # fmt: skip
    parser.add_argument("--archive", type=Path,
                        help="the IMDb archive; its reviews, repeated with a number in front, "
                        "instead of generated ones")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER",
                        help="tokenize to 512 tokens with this checkpoint's tokenizer too; "
                        "a folder as in `models`")  # fmt: skip
    parser.add_argument("--output", type=Path,
                        help="folder (default: a new benchmarks/records/DATE_scale)")  # fmt: skip
    given = parser.parse_args(arguments)
    sizes: tuple[int, ...] = given.sizes
    if given.train_sizes is None:
        train_sizes = tuple(size for size in TRAIN_SIZES if size in sizes)
    else:
        train_sizes = given.train_sizes
    if not sizes:
        parser.error("--sizes: name one at least")
    if extra := set(train_sizes) - set(sizes):
        parser.error(f"--train-sizes: {min(extra)} is not among --sizes")
    if given.archive is None and max(sizes) > MAX_GENERATED:
        parser.error(
            f"--sizes: {max(sizes)} is more than the {MAX_GENERATED} reviews that can be "
            "generated; give --archive, or less"
        )
    if given.archive is not None and not given.archive.is_file():
        parser.error(f"--archive: {given.archive}: no such file")
    if given.checkpoint is not None and not (given.checkpoint / "model.safetensors").is_file():
        parser.error(f"--checkpoint: {given.checkpoint}: no folder with a model.safetensors")
    output: Path = given.output or record_folder("scale")
    if output.exists() and not output.is_dir():
        parser.error(f"--output: {output}: is no folder")
    return Options(
        sizes=sizes,
        train_sizes=train_sizes,
        archive=given.archive and given.archive.resolve(),
        checkpoint=given.checkpoint and given.checkpoint.resolve(),
        output=output,
    )


def _sizes(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between") from None
    if sizes[0] < MIN_REVIEWS:
        raise argparse.ArgumentTypeError(f"{sizes[0]} is less than {MIN_REVIEWS} reviews")
    return tuple(sizes)


def measure(num_reviews: int, options: Options) -> Iterator[Measurement]:
    """Run the stages on that many reviews in a project of their own, one after the other."""
    with tempfile.TemporaryDirectory(prefix="distiltune-scale-") as temporary:
        project = Path(temporary)
        for name in CODE:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, project / name)
        changes: dict[str, Any] = {
            "dataset": "sample",
            "model": "tiny",
            "optimizer": "adam",
            "train.epochs": 1,
            "datasets.sample.num_reviews": min(num_reviews, MAX_GENERATED),
            "splits.sample": SPLIT,
            "splits.csv": SPLIT,
        }
        if options.archive:
            changes |= {"dataset": "csv", "datasets.csv.paths": ["reviews.csv"]}
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(
                    write_real_reviews, options.archive, num_reviews, project / "reviews.csv"
                ).result()
        change_params(project, changes)
        for stage in ("download", "split"):
            yield run_stage(stage, project, num_reviews)
        if options.checkpoint:
            with (options.checkpoint / "model.safetensors").open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
            row = params["models"]["distilbert"]
            row["checkpoint"] = {"folder": str(options.checkpoint), "sha256": sha256}
            change_params(project, {"model": "given", "models.given": row})
            run_stage("download_checkpoint", project, num_reviews)
            yield run_stage("tokenize", project, num_reviews, name=CHECKPOINT_STAGE)
            change_params(project, {"model": "tiny"})
        run_stage("download_checkpoint", project, num_reviews)
        yield run_stage("tokenize", project, num_reviews)
        if num_reviews in options.train_sizes:
            for stage in ("train", "evaluate"):
                yield run_stage(stage, project, num_reviews)


def change_params(project: Path, changes: dict[str, Any]) -> None:
    """Change params of a project by their dotted names."""
    file = project / "params.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, value in changes.items():
        *tables, key = name.split(".")
        table = params
        for part in tables:
            table = table[part]
        table[key] = value
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def write_real_reviews(archive: Path, num_reviews: int, path: Path) -> None:
    """Write a CSV file of the archive's reviews, from the second round on with its number.

    The number keeps a repeated review from being a copy, which `split` would drop.
    """
    import stages  # noqa: F401 (puts this checkout's src on the path)
    from distiltune.imdb import read_imdb

    texts, labels = read_imdb(archive)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "sentiment"])
        for i in range(num_reviews):
            number, place = divmod(i, len(texts))
            writer.writerow([f"{number} {texts[place]}" if number else texts[place], labels[place]])


def run_stage(stage: str, project: Path, num_reviews: int, name: str | None = None) -> Measurement:
    """Run one stage as `dvc repro` would, and measure its process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    with tempfile.TemporaryFile() as printed:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=project,
            env=kept,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            last = printed.read().decode()[-2000:]
            sys.exit(f"error: {stage} on {num_reviews} reviews failed:\n{last}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Measurement(
        stage=name or stage,
        num_reviews=num_reviews,
        seconds=round(seconds, 2),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
        peak_mib=round(usage.ru_maxrss * unit / 2**20, 1),
    )


def environment_record() -> dict[str, Any]:
    """Commit, hardware and versions."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.strip()

    changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return {
        "date": str(datetime.datetime.now(tz=datetime.UTC).date()),
        "commit": git("rev-parse", "HEAD") + (" with changes" if changed else ""),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def growth_table(measurements: list[Measurement], sizes: tuple[int, ...]) -> str:
    """Seconds, CPU seconds and peak memory by stage and size, and how much each grows."""
    found = {(m.stage, m.num_reviews): (m.seconds, m.cpu_seconds, m.peak_mib) for m in measurements}
    steps = list(pairwise(sizes))
    titles = [f"{size:,}" for size in sizes] + [f"x{then / first:g}" for first, then in steps]
    rows = [f"{'reviews':22}" + "".join(f"{title:>23}" for title in titles)]
    rows.append(" " * 22 + f"{'s':>7}{'CPU s':>8}{'MiB':>8}" * len(titles))
    for stage in dict.fromkeys(m.stage for m in measurements):
        cells = [f"{stage:22}"]
        for size in sizes:
            values = found.get((stage, size))
            cells.append("{:7.1f}{:8.1f}{:8.0f}".format(*values) if values else " " * 23)
        for size, next_size in steps:
            before, after = found.get((stage, size)), found.get((stage, next_size))
            if before and after:
                ratios = [f"x{b / a:.2f}" for a, b in zip(before, after, strict=True)]
                cells.append("{:>7}{:>8}{:>8}".format(*ratios))
            else:
                cells.append(" " * 23)
        rows.append("".join(cells).rstrip())
    return "\n".join(rows)


def write_plot(measurements: list[Measurement], path: Path) -> None:
    """Time on logarithmic axes with the slope of ten times the time, and memory beside it."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for stage in dict.fromkeys(m.stage for m in measurements):
        chosen = [m for m in measurements if m.stage == stage]
        sizes = [m.num_reviews for m in chosen]
        time_axes.plot(sizes, [m.seconds for m in chosen], marker="o", label=stage)
        memory_axes.plot(sizes, [m.peak_mib for m in chosen], marker="o")
    sizes = sorted({m.num_reviews for m in measurements})
    lowest = min(m.seconds for m in measurements)
    proportional = [lowest * size / sizes[0] for size in sizes]
    time_axes.plot(sizes, proportional, color="grey", linestyle=":", label="x10 time for x10")
    time_axes.set(xscale="log", yscale="log", xlabel="reviews", ylabel="seconds", title="Time")
    memory_axes.set(xscale="log", xlabel="reviews", ylabel="MiB", title="Peak resident memory")
    time_axes.yaxis.set_major_formatter("{x:g}")
    memory_axes.set_ylim(bottom=0)
    for axes in (time_axes, memory_axes):
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
