"""The picture of learning rates: whether the optimizers' were well chosen."""

import itertools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from distiltune.comparison.comparing import Comparison
from distiltune.comparison.runs import Run
from distiltune.comparison.styles import LINES, Style, literal, new_figure


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """What a run with this learning rate came to, on validation, after the epoch it kept."""

    rate: float
    accuracy: float
    variant: str | None  # of the comparison; None where it may be one of several
    stopped_early: bool = False


def rate_lines(comparison: Comparison) -> dict[str, list[RatePoint]]:
    """The runs that differ in the learning rate alone: the search's, or the comparison's own.

    The lines are named by the optimizer and where that is not enough by what differs. What
    was run with a single rate makes none.
    """
    lines: dict[str, list[RatePoint]] = {}
    for tried in comparison.tried_rates:
        variants = [
            n for n, runs in comparison.runs.items() if runs[0].optimizer == tried.optimizer
        ]
        point = RatePoint(
            rate=tried.learning_rate,
            accuracy=tried.validation_accuracy,
            variant=variants[0] if len(variants) == 1 else None,
            stopped_early=tried.stopped_early,
        )
        lines.setdefault(tried.optimizer, []).append(point)
    lines |= _lines_of_runs(comparison)
    return {name: line for name, line in lines.items() if len({p.rate for p in line}) > 1}


def draw_learning_rates(lines: dict[str, list[RatePoint]], styles: dict[str, Style]) -> Figure:
    """The kept epoch's validation accuracy by learning rate.

    Args:
        lines: of `rate_lines`; there is one or more.
        styles: by variant.
    """
    # A line has the colour of its variant. One through several, which are then its points, has
    # a grey pattern.
    patterns = itertools.cycle(LINES)
    handles = {}
    for name, points in lines.items():
        variants = {point.variant for point in points}
        only = styles.get(variants.pop() or "") if len(variants) == 1 else None
        grey = Line2D([], [], color="0.35", ls=next(patterns), label=literal(name))
        handles[name] = only.handle(only.line) if only else grey
    figure = new_figure(4.6, list(handles.values()))
    axes = figure.subplots()
    has_hollow = False
    for name, points in lines.items():
        by_rate: dict[float, list[float]] = {}
        highest: dict[str, RatePoint] = {}
        for point in sorted(points, key=lambda point: point.accuracy):
            by_rate.setdefault(point.rate, []).append(100 * point.accuracy)
            style = styles[point.variant] if point.variant else None
            colour = style.colour if style else "0.5"
            axes.scatter(
                point.rate, 100 * point.accuracy, 30, edgecolors=colour,
                facecolors="white" if point.stopped_early else colour,
                marker=style.marker if style else "o",
            )  # fmt: skip
            has_hollow |= point.stopped_early
            if point.variant:
                highest[point.variant] = point
        for variant, point in highest.items():
            axes.annotate(
                str(styles[variant].number), (point.rate, 100 * point.accuracy), xytext=(7, 0),
                textcoords="offset points", va="center", color="0.2", size=8,
            )  # fmt: skip
        rates = sorted(by_rate)
        means = [float(np.mean(by_rate[rate])) for rate in rates]
        handle = handles[name]
        axes.plot(rates, means, color=handle.get_color(), ls=handle.get_linestyle(), zorder=1)
    axes.set_xscale("log")
    axes.margins(y=0.08)
    every = sorted({point.rate for points in lines.values() for point in points})
    _tick_rates(axes, every)
    axes.set(
        title=f"Validation accuracy by learning rate{' (hollow: ended early)' * has_hollow}",
        xlabel="learning rate (logarithmic)",
        ylabel="validation reviews that are right, %",
    )
    return figure


def _lines_of_runs(comparison: Comparison) -> dict[str, list[RatePoint]]:
    groups: dict[str, dict[str, list[tuple[str, Run]]]] = {}
    for name, runs in comparison.runs.items():
        for run in runs:
            rest = str(sorted(_without_rate(run).items()))
            groups.setdefault(run.optimizer, {}).setdefault(rest, []).append((name, run))
    lines = {}
    for optimizer, by_rest in groups.items():
        several = [line for line in by_rest.values() if len({_rate(run) for _, run in line}) > 1]
        rows = [_without_rate(line[0][1]) for line in several]
        keys = sorted({k for row in rows for k in row if len({str(r.get(k)) for r in rows}) > 1})
        for line, row in zip(several, rows, strict=True):
            parts = ", ".join(f"{k.removeprefix('optimizer.')}={row.get(k)}" for k in keys)
            lines[f"{optimizer} ({parts})" if parts else optimizer] = [
                RatePoint(rate=_rate(run), accuracy=_kept_accuracy(run), variant=name)
                for name, run in line
            ]
    return lines


def _rate(run: Run) -> float:
    return float(run.variant_params["learning_rate"])


def _without_rate(run: Run) -> dict[str, Any]:
    rates = ("learning_rate", "optimizer.learning_rate")
    return {name: value for name, value in run.variant_params.items() if name not in rates}


def _kept_accuracy(run: Run) -> float:
    return run.epochs[int(run.summary["kept_epoch"]) - 1]["validation_accuracy"]


def _tick_rates(axes: Axes, rates: list[float]) -> None:
    """The rates themselves as ticks where there is room, else round numbers."""
    nearest = min(math.log10(b / a) for a, b in pairwise(rates))
    if nearest > 0.05 * math.log10(rates[-1] / rates[0]):
        axes.set_xticks(rates)
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: _rate_text(rate)))
    axes.minorticks_off()


def _rate_text(rate: float) -> str:
    """As 5e-5 whatever its size."""
    digits, power = f"{rate:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"
