"""The pictures of a comparison: a variant has the same colour and number in all of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from distiltune.comparison.comparing import Comparison
from distiltune.comparison.matrices import draw_agreement, draw_pairs
from distiltune.comparison.rates import draw_learning_rates, rate_lines
from distiltune.comparison.styles import Style, new_figure, styles_of, wrapped

LEARNING_RATES_FILE = "learning_rates.png"
DOTS_PER_INCH = 110

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture's file and the words around it."""

    file: str
    title: str
    caption: str  # what to see in it


CURVES = Picture(
    file="curves.png",
    title="How the training went",
    caption="The higher and the earlier, the better on the left; on the right the lower. Lines are "
    "means over the seeds, bands reach from the lowest seed to the highest. The axis of the "
    "accuracy does not start at zero; the dotted line there is the target.",
)
ACCURACY_TIME = Picture(
    file="accuracy_time.png",
    title="What the accuracy costs",
    caption="The best place is the upper left: accurate and soon done. A large circle is a "
    "variant's mean, small marks are its runs; where the marks of two variants mix, one run of "
    "each cannot tell them apart. The axes do not start at zero.",
)
LEARNING_RATES = Picture(
    file=LEARNING_RATES_FILE,
    title="Was the learning rate well chosen?",
    caption="A line that is highest inside has found its best rate; one that is highest at an end "
    "may rise further, and its optimizer is not tuned yet. A point is a run, of the comparison or "
    "of the search before it, with the variant's colour and number as above; a line goes through "
    "their means.",
)
PAIRS = Picture(
    file="pairs.png",
    title="Which differences are shown",
    caption="Blue where the row's variant is more accurate than the column's, red where it is "
    "less. A star and bold type mark what holds after the correction for many pairs; grey was "
    "not tested.",
)
AGREEMENT = Picture(
    file="agreement.png",
    title="How alike the models answer",
    caption="The share of reviews to which two models give the same class. Where a row's other "
    "cells are as high as its diagonal (the same variant with another seed), changing the "
    "optimizer changes the answers no more than changing the seed.",
)


def write_figures(comparison: Comparison, folder: Path) -> list[Picture]:
    """Draw what there is to see, as PNG files.

    Args:
        comparison: what to draw.
        folder: where to write; it is there.

    Returns:
        The pictures in the order to look at them. That of the learning rates is among them
        only where some optimizer was run with two or more, here or in the search before;
        those of the pairs only where there are some.
    """
    styles = styles_of(comparison)
    drawn = [
        (_draw_curves(comparison, styles), CURVES),
        (_draw_accuracy_and_time(comparison, styles), ACCURACY_TIME),
    ]
    lines = rate_lines(comparison)
    if lines:
        drawn.append((draw_learning_rates(lines, styles), LEARNING_RATES))
    names = [wrapped(style.label) for style in styles.values()]
    if comparison.pairs:
        drawn += [
            (draw_pairs(comparison, names), PAIRS),
            (draw_agreement(comparison, names), AGREEMENT),
        ]
    for figure, picture in drawn:
        # Without the version of matplotlib, so that equal pictures are equal files.
        figure.savefig(folder / picture.file, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return [picture for _, picture in drawn]


def aligned(
    records: Iterable[Sequence[dict[str, float]]], place: str, value: str
) -> tuple[Floats, Floats]:
    """The places that all runs have, (num_places,), and their values, (num_runs, num_places).

    What is not finite is NaN, so that a line has a gap there.
    """
    found = [{row[place]: row[value] for row in rows if value in row} for rows in records]
    places = sorted(set.intersection(*(set(run) for run in found)))
    values = np.array([[run[at] for at in places] for run in found], dtype=np.float64)
    return np.array(places), np.where(np.isfinite(values), values, np.nan)


def _draw_curves(comparison: Comparison, styles: dict[str, Style]) -> Figure:
    figure = new_figure(4.2, [style.handle(style.line) for style in styles.values()])
    left, right = figure.subplots(1, 2)
    starts = []
    highest: dict[int, float] = {}  # by the variant's number
    for name, runs in comparison.runs.items():
        style = styles[name]
        epochs, accuracies = aligned((r.epochs for r in runs), "epoch", "validation_accuracy")
        _draw_band(left, epochs, 100 * accuracies, style)
        steps, losses = aligned((run.steps for run in runs), "step", "loss")
        means = _draw_band(right, steps, losses, style)
        finite = means[np.isfinite(means)]
        if finite.size:
            starts.append(float(finite[0]))
            highest[style.number] = float(finite.max())
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.axhline(100 * comparison.target, color="grey", linewidth=0.8, linestyle=(0, (1, 3)))
    left.set(title="Validation accuracy", xlabel="epoch", ylabel="reviews that are right, %")
    right.set(title="Training loss", xlabel="step", ylabel="cross-entropy, mean of the steps")
    right.set_ylim(bottom=0)
    # One that has come apart must not press the others flat.
    top = 2 * float(np.median(starts)) if starts else math.inf
    if cut := [f"{number} reaches {loss:.3g}" for number, loss in highest.items() if loss > top]:
        right.set_ylim(0, top)
        more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
        right.set_title(f"Training loss (cut: {', '.join(cut[:3])}{more})", fontsize=10)
    return figure


def _draw_band(axes: Axes, places: Floats, values: Floats, style: Style) -> Floats:
    """The mean as a line, the seeds' range as a band; returns the mean."""
    means: Floats = values.mean(axis=0)
    axes.plot(
        places, means, color=style.colour, linestyle=style.line, marker=style.marker, markersize=5,
        markevery=max(1, len(places) // 8), linewidth=1.6,
    )  # fmt: skip
    if len(values) > 1:
        lowest, highest = values.min(axis=0), values.max(axis=0)
        axes.fill_between(places, lowest, highest, color=style.colour, alpha=0.12, lw=0)
        if len(places) == 1:  # which is no band
            axes.vlines(places, lowest, highest, color=style.colour, linewidth=1)
    return means


def _draw_accuracy_and_time(comparison: Comparison, styles: dict[str, Style]) -> Figure:
    figure = new_figure(5.0, [style.handle() for style in styles.values()])
    axes = figure.subplots()
    every = []
    for name, runs in comparison.runs.items():
        style = styles[name]
        times = [float(run.summary["train_seconds"]) for run in runs]
        accuracies = [100 * run.accuracy for run in runs]
        every += times
        axes.scatter(times, accuracies, 26, color=style.colour, marker=style.marker, alpha=0.75)
        time, accuracy = float(np.mean(times)), float(np.mean(accuracies))
        axes.scatter(time, accuracy, 200, color=style.colour, edgecolors="white", zorder=3)
        axes.annotate(
            str(style.number), (time, accuracy), color="white", weight="bold", size=8,
            ha="center", va="center", zorder=4,
        )  # fmt: skip
    shortest, longest = min(every), max(every)
    label = "seconds of training, without validation"
    if longest > 10 * shortest > 0:
        label += " (logarithmic)"
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    else:
        # Not closer than this, or the clock's noise would look like a difference.
        margin = max(0.08 * (longest - shortest), 0.15 * longest - (longest - shortest) / 2)
        axes.set_xlim(max(0.0, shortest - margin), longest + margin)
    axes.margins(y=0.12)
    axes.set(
        title="Test accuracy against training time",
        xlabel=label,
        ylabel="test reviews that are right, %",
    )
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    return figure
