"""What each switch for accuracy gives on real reviews, by several seeds.

    python -m benchmarks.ablation --archive aclImdb_v1.tar.gz

Trains a small model from scratch on few labelled reviews, with and without each switch, and
compares the accuracy on the same test reviews, seed by seed. For the adaptation, other
reviews lose their labels and become unlabelled ones, as in the archive's own `unsup`; none
of them stands in validation or test. Runs the real stages, in temporary copies of this
checkout. Prints a table, and writes `ablation.json`.
"""

import argparse
import contextlib
import importlib
import io
import math
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

import stages  # noqa: F401 (puts this checkout's src on the path)
from benchmarks.report import count, environment, record_folder
from distiltune import InputError
from distiltune.artifacts import read_json, sha256_of, write_json
from distiltune.config import load_params
from distiltune.imdb import read_imdb
from distiltune.runtime import choose_runtime, run_stage

ROOT = Path(__file__).resolve().parent.parent
CODE = ("src", "stages", "inputs", "params.yaml", "dvc.yaml")
DATA_STAGES = ("download", "download_checkpoint", "split", "tokenize")
PREPARED_BY = ("adapt.", "tokenize.")  # what is done once for the cases that share it
BASE: dict[str, Any] = {
    "dataset": "imdb",
    "model": "tiny",
    "optimizer": "adamw_no_decay",
    # R-Drop needs dropout, so all have it.
    "models.tiny.architecture.dropout": 0.1,
    "train.epochs": 10,
    "train.keep": "best",
    "tracking.log_model": False,
    "tracking.system_metrics": False,
    "registry.model": None,
    "datasets.imdb.table_sha256": None,
}
ROW = "optimizers.adamw_no_decay"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting, and the case that it is compared with; the first one is with none."""

    name: str
    changes: dict[str, Any]
    against: str | None = "baseline"


CASES = (
    Case(name="baseline", changes={}, against=None),
    Case(name="label smoothing 0.1", changes={"train.label_smoothing": 0.1}),
    Case(name="R-Drop 1.0", changes={"train.r_drop": 1.0}),
    Case(name="EMA 0.99", changes={f"{ROW}.ema_decay": 0.99}),
    Case(name="layer decay 0.8", changes={f"{ROW}.layer_decay": 0.8}),
    Case(name="head and tail", changes={"tokenize.truncation": "head_tail"}),
    Case(
        name="adapted, training text",
        changes={"adapt.epochs": 60, "adapt.unlabelled": False},
    ),
    Case(name="adapted, unlabelled too", changes={"adapt.epochs": 10}),
    Case(
        name="adapted, unlabelled too; layer decay 0.8",
        changes={"adapt.epochs": 10, f"{ROW}.layer_decay": 0.8},
        against="adapted, unlabelled too",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--archive", type=Path, required=True, help="the IMDb archive")
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--train", type=count, default=2000, help="labelled reviews")
    parser.add_argument("--unlabelled", type=count, default=20_000)
    parser.add_argument("--validation", type=count, default=1000)
    parser.add_argument("--test", type=count, default=5000)
    parser.add_argument("--jobs", type=count, default=1, help="processes at the same time")
    parser.add_argument("--cases", help="names with | between; the baseline is always there")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE",
                        help="for all cases")  # fmt: skip
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cases = chosen_cases(arguments.cases)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ablation-") as folder:
        sizes = (arguments.train, arguments.validation, arguments.test)
        archive = Path(folder) / "reviews.tar.gz"
        write_archive(arguments.archive, sizes, arguments.unlabelled, archive)
        base = {
            **BASE,
            "datasets.imdb.urls": [f"file://{archive}"],
            "datasets.imdb.sha256": sha256_of(archive),
            **{f"splits.imdb.{n}": s for n, s in
               zip(("train", "validation", "test"), sizes, strict=True)},
            **dict(override.split("=", 1) for override in arguments.set_param),
        }  # fmt: skip
        results = run_all(Path(folder), base, cases, arguments.seeds, arguments.jobs)
    rows = [summary_of(case, results) for case in cases]
    seconds = time.perf_counter() - began
    output = arguments.output or record_folder("ablation")
    output.mkdir(parents=True, exist_ok=True)
    write_json(
        output / "ablation.json",
        {
            "environment": environment(choose_runtime("cpu", "fp32")),
            "arguments": {
                n: str(v) for n, v in vars(arguments).items() if n not in ("archive", "output")
            },
            "base": {n: v for n, v in base.items() if not n.startswith("datasets.")},
            "cases": [asdict(case) for case in cases],
            "rows": rows,
            "runs": results,
            "seconds": round(seconds),
        },
    )
    print(f"\n{table_of(rows)}\n\n{seconds / 60:.0f} minutes: {output}")


def chosen_cases(names: str | None) -> list[Case]:
    """The cases of these names, and those that they are compared with.

    Raises:
        InputError: there is no such case.
    """
    if names is None:
        return list(CASES)
    by_name = {case.name: case for case in CASES}
    wanted = {CASES[0].name}
    for name in names.split("|"):
        if name not in by_name:
            raise InputError(f"--cases: {name!r} is none of {', '.join(by_name)}")
        wanted |= {name, by_name[name].against or name}
    return [case for case in CASES if case.name in wanted]


def write_archive(source: Path, sizes: Sequence[int], num_unlabelled: int, output: Path) -> None:
    """An archive in IMDb's layout of some reviews, and of others without their labels.

    Raises:
        InputError: there are too few.
    """
    texts, labels = read_imdb(source)
    num_labelled = sum(sizes)
    if num_labelled + num_unlabelled > len(texts):
        raise InputError(f"{source}: has {len(texts)} reviews, too few for these sizes")
    with tarfile.open(output, "w:gz", compresslevel=1) as tar:
        for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
            if i >= num_labelled + num_unlabelled:
                break
            kind = ("pos" if label else "neg") if i < num_labelled else "unsup"
            content = text.encode()
            member = tarfile.TarInfo(f"aclImdb/train/{kind}/{i}_0.txt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def run_all(
    folder: Path, base: dict[str, Any], cases: list[Case], num_seeds: int, jobs: int
) -> list[dict[str, Any]]:
    """Every case with every seed; those that share their preparation in one process."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        shared = {n: v for n, v in case.changes.items() if n.startswith(PREPARED_BY)}
        groups.setdefault(repr(sorted(shared.items())), []).append(case)
    # The longest, which adapt, first.
    tasks = sorted(
        ((group, seed) for group in groups.values() for seed in range(1, num_seeds + 1)),
        key=lambda task: -int("adapt.epochs" in task[0][0].changes),
    )
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(run_group, folder / f"project-{i}", base, group, seed)
            for i, (group, seed) in enumerate(tasks)
        ]
        for future in futures:
            for result in future.result():
                results.append(result)
                print(
                    f"{result['case']:42} seed {result['seed']}  {result['accuracy']:.2%}  "
                    f"{result['seconds']:.0f} s",
                    flush=True,
                )
    return results


def run_group(
    project: Path, base: dict[str, Any], cases: list[Case], seed: int
) -> list[dict[str, Any]]:
    """Prepare a copy of the checkout, and train and evaluate each case in it."""
    project.mkdir()
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, project / name)
    os.chdir(project)
    seeds = {"seed": seed, "adapt.seed": seed}
    change_params({**base, **seeds, **cases[0].changes})
    began = time.perf_counter()
    for stage in (*DATA_STAGES, "adapt"):
        run_quietly(stage)
    adapted = read_json(Path("metrics/adapt.json"))
    prepared, results = time.perf_counter() - began, []
    for case in cases:
        shutil.copy(ROOT / "params.yaml", "params.yaml")
        change_params({**base, **seeds, **case.changes})
        began = time.perf_counter()
        run_quietly("train")
        run_quietly("evaluate")
        test, train = read_json(Path("metrics/test.json")), read_json(Path("metrics/train.json"))
        results.append(
            {
                "case": case.name,
                "seed": seed,
                "accuracy": test["accuracy"],
                "loss": test["loss"],
                "validation_accuracy": train["validation_accuracy"],
                "train_loss": train["train_loss"],
                "adaptation": adapted,
                "preparation_seconds": round(prepared, 1),
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
    os.chdir(ROOT)
    shutil.rmtree(project)
    return results


def run_quietly(stage: str) -> None:
    """A stage's entry point, in this process; what it printed is shown if it fails."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            importlib.import_module(f"stages.{stage}").main()
    except BaseException:  # a stage's SystemExit too; it is raised again
        print(printed.getvalue(), flush=True)
        raise


def change_params(changes: dict[str, Any]) -> None:
    """Change the params here by their dotted names; text is read as YAML."""
    yaml, file = YAML(), Path("params.yaml")
    params = yaml.load(file)
    for name, value in changes.items():
        *tables, key = name.split(".")
        table = params
        for part in tables:
            table = table[part]
        table[key] = yaml.load(value) if isinstance(value, str) else value
    yaml.dump(params, file)
    load_params(file)


def summary_of(case: Case, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of the test accuracy, and of its differences seed by seed."""
    of = {
        name: {r["seed"]: r["accuracy"] for r in results if r["case"] == name}
        for name in (case.name, case.against)
    }
    values = list(of[case.name].values())
    row = {"case": case.name, "against": case.against, "n": len(values),
           "mean": statistics.mean(values), "sd": deviation(values)}  # fmt: skip
    if case.against is None:
        return row
    differences = [value - of[case.against][seed] for seed, value in of[case.name].items()]
    mean, sd = statistics.mean(differences), deviation(differences)
    row |= {"difference": mean, "difference_sd": sd}
    if sd is not None:
        from scipy import stats

        half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
        row |= {"difference_low": mean - half, "difference_high": mean + half}
    return row


def deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def table_of(rows: list[dict[str, Any]]) -> str:
    """In percent and points, with the 95 % interval of the paired difference (Student's t)."""
    lines = ["| case | n | accuracy | sd | difference | sd | 95 % interval |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        cells = [row["case"], str(row["n"]), f"{row['mean'] * 100:.2f}", points(row["sd"])]
        if row["against"] is not None:
            where = "" if row["against"] == CASES[0].name else f" to {row['against']}"
            cells += [f"{row['difference'] * 100:+.2f}{where}", points(row["difference_sd"])]
            if "difference_low" in row:
                low, high = row["difference_low"] * 100, row["difference_high"] * 100
                cells.append(f"{low:+.2f} to {high:+.2f}")
        cells += [""] * (lines[0].count("|") - 1 - len(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def points(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.2f}"


if __name__ == "__main__":
    run_stage(main)
