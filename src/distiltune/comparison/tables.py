"""The table of variants: its columns and units, for the terminal and for the page."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from distiltune.comparison.comparing import Comparison, VariantSummary

MAX_WIDTH = 120
MISSING = "-"
GAP = "  "


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column under the title of its group; the same group's columns stand together."""

    group: str
    header: str
    cell: Callable[[VariantSummary], str]


def accuracy_columns(comparison: Comparison) -> list[Column]:
    """How good the variants are, and how soon."""
    target = f"to {percent(comparison.target, 1)} % validation"
    return [
        Column(group="", header="seeds", cell=lambda v: str(v.num_seeds)),
        Column(group="test accuracy, %", header="mean", cell=lambda v: percent(v.mean)),
        Column(
            group="test accuracy, %",
            header="± sd",
            cell=lambda v: _shown(v.standard_deviation, lambda value: f"± {percent(value)}"),
        ),
        Column(group="test accuracy, %", header="best", cell=lambda v: percent(v.best)),
        Column(group="test", header="loss", cell=lambda v: f"{v.mean_loss:.4f}"),
        Column(group=target, header="epochs", cell=lambda v: _shown(v.epochs_to_target, _short)),
        Column(group=target, header="seconds", cell=lambda v: _shown(v.seconds_to_target, seconds)),
        Column(group=target, header="tokens", cell=lambda v: _shown(v.tokens_to_target, count)),
    ]


def cost_columns(comparison: Comparison) -> list[Column]:
    """What the variants cost; energy only where the device told it."""
    columns = [
        Column(
            group="optimizer",
            header="ms/step",
            cell=lambda v: _shown(v.optimizer_seconds_per_step, lambda s: _digits(s * 1e3)),
        ),
        Column(
            group="optimizer",
            header="memory",
            cell=lambda v: _shown(v.optimizer_state_bytes, memory),
        ),
        Column(group="training", header="peak memory", cell=lambda v: memory(v.peak_memory_bytes)),
        Column(group="training", header="seconds", cell=lambda v: seconds(v.train_seconds)),
    ]
    if any(variant.energy_joules is not None for variant in comparison.variants):
        columns.append(
            Column(
                group="training",
                header="energy",
                cell=lambda v: _shown(v.energy_joules, lambda joules: count(joules) + "J"),
            )
        )
    return columns


def grouped(columns: Sequence[Column]) -> Iterator[tuple[str, list[int]]]:
    """The groups in their order, each with its columns' numbers."""
    for group, numbers in groupby(range(len(columns)), key=lambda number: columns[number].group):
        yield group, list(numbers)


def terminal_tables(comparison: Comparison) -> list[list[str]]:
    """The lines of one table, or of two (accuracy, cost) where one would be too wide."""
    name = Column(group="", header="variant", cell=lambda variant: variant.name)
    accuracy, cost = accuracy_columns(comparison), cost_columns(comparison)
    whole = _lines([name, *accuracy, *cost], comparison.variants)
    if max(map(len, whole)) <= MAX_WIDTH:
        return [whole]
    return [
        _lines([name, *accuracy], comparison.variants),
        _lines([name, *cost], comparison.variants),
    ]


def _lines(columns: Sequence[Column], variants: Sequence[VariantSummary]) -> list[str]:
    """Two lines of headers and one for each variant; the first column reads from the left."""
    cells = [[column.header, *(column.cell(variant) for variant in variants)] for column in columns]
    widths = [max(map(len, texts)) for texts in cells]
    titles = []
    for group, numbers in grouped(columns):
        title = f" {group} " if group else ""
        span = sum(widths[number] for number in numbers) + len(GAP) * (len(numbers) - 1)
        if len(title) > span:
            widths[numbers[0]] += len(title) - span
            span = len(title)
        titles.append(title.center(span, "-" if group else " "))
    rows = [
        [
            text.rjust(width) if number else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in zip(*cells, strict=True)
    ]
    return [GAP.join(parts).rstrip() for parts in [titles, *rows]]


def percent(share: float, num_decimals: int = 2) -> str:
    return f"{100 * share:z.{num_decimals}f}"


def seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def memory(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{_digits(num_bytes)} {unit}"
        num_bytes /= 1024
    return f"{_digits(num_bytes)} GiB"


def count(value: float) -> str:
    for unit in ("", "k", "M"):
        if value < 1000:
            return f"{_digits(value)} {unit}"
        value /= 1000
    return f"{_digits(value)} G"


def _digits(value: float) -> str:
    """Three digits that matter, never as a power of ten."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _shown(value: float | None, text: Callable[[Any], str]) -> str:
    return MISSING if value is None else text(value).strip()
