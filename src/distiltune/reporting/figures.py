"""The pictures of a run's page that no stage has drawn: its curves, its accuracy by length."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distiltune.comparison.figures import aligned
from distiltune.comparison.styles import COLOURS, WIDTH
from distiltune.reporting.model import FinishedRun
from distiltune.reporting.words import length_name

CURVES, LENGTHS = "curves.png", "lengths.png"
DOTS_PER_INCH = 110
TRAINING, VALIDATION = COLOURS[:2]


def draw_curves(run: FinishedRun, file: Path) -> None:
    """Loss, accuracy, learning rate and speed, each where it was recorded."""
    # Not through pyplot, which wants a screen where there is one.
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2)
    _draw_line(loss, run.steps, "step", "loss", TRAINING, "training")
    _draw_line(loss, run.epochs, "step", "validation_loss", VALIDATION, "validation", marker="o")
    loss.set(title="Loss", xlabel="step", ylabel="cross-entropy")
    _draw_line(accuracy, run.epochs, "epoch", "train_accuracy", TRAINING, "training", marker="s")
    _draw_line(
        accuracy, run.epochs, "epoch", "validation_accuracy", VALIDATION, "validation", marker="o"
    )
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="share of reviews that are right")
    _draw_line(rate, run.steps, "step", "learning_rate", TRAINING, "")
    rate.set(title="Learning rate", xlabel="step", ylabel="learning rate")
    rate.set_ylim(bottom=0)
    _draw_line(speed, run.steps, "step", "tokens_per_second", TRAINING, "")
    speed.set(title="Speed", xlabel="step", ylabel="tokens per second")
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter("{x:,.0f}")
    for axes in (loss, accuracy):
        axes.legend()
    for axes in (loss, accuracy, rate, speed):
        axes.grid(color="0.92")
    _save(figure, file)


def draw_lengths(run: FinishedRun, file: Path) -> None:
    """Accuracy with its interval by the number of tokens."""
    parts = run.test["accuracy_by_length"]
    middle = np.array([part["accuracy"] for part in parts])
    ends = np.array([[part["accuracy_low"], part["accuracy_high"]] for part in parts]).T
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    names = [length_name(part["num_tokens"]) for part in parts]
    places = np.arange(len(parts))
    axes.errorbar(places, middle, np.abs(ends - middle), fmt="o", color=TRAINING, capsize=4)
    axes.axhline(run.test["accuracy"], color="grey", linestyle=":", label="all reviews")
    axes.set_xticks(places, names)
    axes.margins(x=0.15)
    axes.set(
        title="Accuracy by length", xlabel="tokens of the review",
        ylabel="share of reviews that are right",
    )  # fmt: skip
    axes.legend()
    axes.grid(axis="y", color="0.92")
    _save(figure, file)


def _draw_line(
    axes: Axes,
    records: Sequence[dict[str, float]],
    place: str,
    value: str,
    colour: str,
    label: str,
    marker: str = "",
) -> None:
    """A line where there is something; the Trainer does not measure all of it."""
    if any(value in record for record in records):
        places, values = aligned([records], place, value)
        # One record is a point, and a line of one point is not seen.
        marker = marker or ("o" if len(places) == 1 else "")
        axes.plot(places, values[0], color=colour, label=label, marker=marker, linewidth=1.6)
    else:
        axes.plot([], [], color=colour, label=f"{label} (not measured)")


def _save(figure: Figure, file: Path) -> None:
    # Without the version of matplotlib, so that equal pictures are equal files.
    figure.savefig(file, dpi=DOTS_PER_INCH, metadata={"Software": None})
