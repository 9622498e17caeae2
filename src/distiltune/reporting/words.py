"""How the figures of a run read: headline, tables of names and values."""

import datetime
from collections.abc import Mapping
from typing import Any

from distiltune.comparison.tables import MISSING, count, memory, percent, seconds
from distiltune.reporting.model import FinishedRun

# The resolved params are named by the table they come from.
GROUPS = {
    "": "Run",
    "split": "Reviews",
    "tokenize": "Tokens",
    "model": "Model",
    "optimizer": "Optimizer",
    "train": "Training",
    "speed": "Shortcuts",
}
METRICS = {
    "accuracy": "accuracy",
    "loss": "loss (cross-entropy)",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "area under the ROC curve",
    "brier_score": "Brier score",
    "calibration_error": "calibration error",
}
AUDITED = {
    "num_reviews": "reviews",
    "copies_within": "copies within",
    "copies_from_train": "copies of training reviews",
    "copies_from_validation": "copies of validation reviews",
    "copies_dropped": "copies kept out",
}


def accuracy_text(part: Mapping[str, Any]) -> str:
    """The accuracy of a part of the reviews, with its interval."""
    low, high = percent(part["accuracy_low"]), percent(part["accuracy_high"])
    return f"{percent(part['accuracy'])} % (95 % interval {low} to {high} %)"


def length_name(name: str) -> str:
    """`1_to_64` as a reader would write it."""
    return name.replace("_", " ")


def metric_rows(run: FinishedRun) -> tuple[list[str], list[list[str]]]:
    """The metrics of all test reviews and, where that is fewer, without copies of training."""
    columns = {"all test reviews": run.test}
    rest = run.test.get("without_training_copies")
    if rest and rest["num_reviews"] < run.test["num_reviews"]:
        columns["without copies of training reviews"] = rest
    rows = [["reviews", *(f"{part['num_reviews']:,}" for part in columns.values())]]
    for key, name in METRICS.items():
        if key == "accuracy":
            cells = [accuracy_text(part) for part in columns.values()]
        else:
            cells = [_figure(part[key]) for part in columns.values()]
        rows.append([name, *cells])
    return list(columns), rows


def cost_rows(run: FinishedRun) -> list[tuple[str, str]]:
    """What the training cost; what the device did not tell is left out."""
    summary = run.summary
    speed = summary["num_tokens"] / summary["train_seconds"]
    rows = [
        ("training", f"{seconds(summary['train_seconds'])} s"),
        ("validation", f"{seconds(summary['validation_seconds'])} s"),
        ("steps", f"{summary['num_steps']:,}"),
        ("tokens", count(summary["num_tokens"]).strip()),
        ("tokens per second", f"{speed:,.0f}"),
        ("peak memory", memory(summary["peak_memory_bytes"])),
    ]
    if (step := summary["optimizer_seconds_per_step"]) is not None:
        rows.append(("optimizer, each step", f"{1e3 * step:.3g} ms"))
    if (state := summary["optimizer_state_bytes"]) is not None:
        rows.append(("optimizer's memory", memory(state)))
    if (energy := summary["energy_joules"]) is not None:
        rows.append(("energy", f"{count(energy).strip()}J"))
    return rows


def setting_groups(params: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The resolved params by table, each with its full name."""
    groups: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS.values()}
    for name, value in params.items():
        prefix = name.partition(".")[0] if "." in name else ""
        groups.setdefault(GROUPS.get(prefix, prefix), []).append((name, _setting(value)))
    return [(title, rows) for title, rows in groups.items() if rows]


def audit_rows(split: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The names of the splits, and a row for each count; classes have a row each."""
    names = [name for name in ("train", "validation", "test") if name in split]
    classes = split["train"]["per_class"]
    rows = [[AUDITED["num_reviews"], *(f"{split[name]['num_reviews']:,}" for name in names)]]
    for label in classes:
        counts = [split[name]["per_class"][label] for name in names]
        rows.append([f"class {label}", *(f"{number:,}" for number in counts)])
    for key, text in AUDITED.items():
        if key != "num_reviews":
            counts = [split[name].get(key) for name in names]
            rows.append([text, *(MISSING if n is None else f"{n:,}" for n in counts)])
    return names, rows


def confusion_rows(run: FinishedRun) -> list[tuple[str, list[str]]]:
    """By actual class, how many were predicted as each."""
    return [
        (row["actual"], [f"{number:,}" for number in row["predicted"].values()])
        for row in run.test["confusion_matrix"]
    ]


def moment(timestamp: float) -> str:
    """A time as UTC, since a page is read elsewhere."""
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _figure(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _setting(value: Any) -> str:
    """As `params.yaml` writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{', '.join(map(_setting, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
