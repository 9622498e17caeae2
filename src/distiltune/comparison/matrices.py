"""The pictures of a comparison in which each pair of variants has a cell."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from distiltune.comparison.comparing import Comparison
from distiltune.comparison.runs import Run

CELL_WIDTH, CELL_HEIGHT = 0.64, 0.5  # inches
MIN_WIDTH, MIN_HEIGHT = 6.5, 3.0
UNTESTED = "0.85"

# (num_variants, num_variants)
Matrix = np.ndarray[Any, np.dtype[np.float64]]
Marks = np.ndarray[Any, np.dtype[np.bool_]]


def draw_pairs(comparison: Comparison, names: Sequence[str]) -> Figure:
    """The differences, row minus column; those of a verdict bold and with a star.

    Args:
        comparison: whose pairs to draw.
        names: of the variants in their order, each after its number.
    """
    places = {variant.name: place for place, variant in enumerate(comparison.variants)}
    values = np.full((len(names), len(names)), np.nan)
    is_tested, is_shown = np.zeros((2, *values.shape), dtype=bool)
    for pair in comparison.pairs:
        if pair.difference is None:
            continue
        a, b = places[pair.variant_a], places[pair.variant_b]
        values[a, b], values[b, a] = 100 * pair.difference, -100 * pair.difference
        is_tested[[a, b], [b, a]] = pair.verdict != "not tested"
        is_shown[[a, b], [b, a]] = pair.verdict in ("better", "worse")
    figure, axes = _new_figure(names)
    axes.set_facecolor(UNTESTED)
    for place in range(len(names)):
        axes.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, color="white"))
    # White, which is no difference, in the middle.
    largest = _full_colour(comparison)
    scale = Normalize(-largest, largest)
    image = _draw_cells(axes, np.where(is_tested, values, np.nan), "RdBu", scale)
    _write(axes, image, values, "{:+z.2f}", is_shown)
    title = "Test accuracy: row minus column"
    if is_tested.any():
        _add_bar(figure, axes, image, "percentage points")
    else:
        title += "\n(not tested: that takes two seeds in common)"
    axes.set_title(title)
    return figure


def draw_agreement(comparison: Comparison, names: Sequence[str]) -> Figure:
    """The share of reviews with the same predicted class.

    Args:
        comparison: whose runs to draw.
        names: of the variants in their order, each after its number.
    """
    shares = 100 * agreement(comparison)
    known = shares[~np.isnan(shares)]
    lowest, highest = (known.min(), known.max()) if known.size else (0.0, 100.0)
    # Where all is within one review in a hundred the colours stay alike, and no cell is as white
    # as an empty one.
    span = max(float(highest - lowest), 1.0)
    figure, axes = _new_figure(names)
    image = _draw_cells(axes, shares, "Blues", Normalize(highest - 1.3 * span, highest))
    _add_bar(figure, axes, image, "% of the test reviews")
    _write(axes, image, shares, "{:.1f}")
    axes.set_title("Reviews on which two models give the same class")
    return figure


def agreement(comparison: Comparison) -> Matrix:
    """The share of reviews on which two models predict the same class.

    Off the diagonal it is the mean over the seeds that both variants have; on it that over
    the pairs of different seeds of the variant. NaN where there are none.
    """
    groups = list(comparison.runs.values())
    shares = np.full((len(groups), len(groups)), np.nan)
    for i, runs in enumerate(groups):
        if len(runs) > 1:
            shares[i, i] = np.mean([_same(a, b) for a, b in combinations(runs, 2)])
    for (i, first), (j, second) in combinations(enumerate(groups), 2):
        by_seed = {run.seed: run for run in second}
        common = [_same(run, by_seed[run.seed]) for run in first if run.seed in by_seed]
        if common:
            shares[i, j] = shares[j, i] = np.mean(common)
    return shares


def _full_colour(comparison: Comparison) -> float:
    """The difference, in points, with the strongest colour.

    It is the largest, but none that a test could not have shown: no verdict, no strong colour.
    """
    tested = [pair for pair in comparison.pairs if pair.verdict != "not tested"]
    sizes = [abs(pair.difference) for pair in tested if pair.difference is not None]
    found = [pair.smallest_detectable_difference for pair in tested]
    detectable = [size for size in found if size is not None and size <= 1]
    largest = max([*sizes, min(detectable, default=0.0)], default=0.0)
    return 100 * largest or 1.0


def _same(first: Run, second: Run) -> float:
    return float((first.predicted == second.predicted).mean())


def _new_figure(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Large enough for the names beside the rows; columns have the numbers alone."""
    longest = max(len(line) for name in names for line in name.splitlines())
    width = 0.085 * longest + CELL_WIDTH * len(names) + 1.4
    height = CELL_HEIGHT * len(names) + 1.1
    size = (max(width, MIN_WIDTH), max(height, MIN_HEIGHT))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xticks(range(len(names)), [name.split()[0] for name in names])
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    return figure, axes


def _draw_cells(axes: Axes, values: Matrix, colours: str, scale: Normalize) -> AxesImage:
    """The colours; cells without a value keep what is behind them."""
    image = axes.imshow(values, colormaps[colours], scale, aspect="auto", zorder=2)
    for place in range(1, len(values)):
        axes.axhline(place - 0.5, color="white", linewidth=1.5, zorder=3)
        axes.axvline(place - 0.5, color="white", linewidth=1.5, zorder=3)
    return image


def _add_bar(figure: Figure, axes: Axes, image: AxesImage, unit: str) -> None:
    figure.colorbar(image, ax=axes, label=unit, fraction=0.04, pad=0.02)


def _write(
    axes: Axes, image: AxesImage, values: Matrix, form: str, is_marked: Marks | None = None
) -> None:
    """The values in the cells; marked ones bold and with a star."""
    drawn = image.get_array()
    assert drawn is not None
    colours = image.to_rgba(np.ma.masked_invalid(drawn))
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        marked = is_marked is not None and bool(is_marked[i, j])
        red, green, blue, opacity = colours[i, j]
        text = form.format(value).replace("-", "\N{MINUS SIGN}") if value else "0"
        # Brightness as the eye weighs the colours (ITU-R BT.601).
        is_dark = opacity > 0 and 0.299 * red + 0.587 * green + 0.114 * blue < 0.45
        axes.text(
            j, i, text + "*" * marked, ha="center", va="center", fontsize=9, zorder=4,
            color="white" if is_dark else "black", weight="bold" if marked else "normal",
        )  # fmt: skip
