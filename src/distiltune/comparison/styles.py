"""How the pictures of a comparison look: each variant the same in all, and a legend below."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distiltune.comparison.comparing import Comparison

WIDTH = 9.0  # inches
# Okabe and Ito 2008 (Color Universal Design), without the yellow, which is too pale for lines.
# Fewer than the variants there may be: line, marker and number tell those apart that share one.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = "os^DvPX<>ph*"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a variant looks in every picture."""

    number: int  # by accuracy, from 1
    label: str
    colour: str
    line: str
    marker: str

    def handle(self, line: str = "") -> Line2D:
        """For a legend."""
        return Line2D([], [], color=self.colour, marker=self.marker, ls=line, label=self.label)


def styles_of(comparison: Comparison) -> dict[str, Style]:
    """By variant, the best first."""
    return {
        variant.name: Style(
            number=place + 1,
            label=literal(f"{place + 1}  {variant.name}"),
            colour=COLOURS[place % len(COLOURS)],
            line=LINES[place // len(COLOURS) % len(LINES)],
            marker=MARKERS[place % len(MARKERS)],
        )
        for place, variant in enumerate(comparison.variants)
    }


def new_figure(height: float, handles: Sequence[Line2D]) -> Figure:
    """A figure with a legend below, as many entries beside each other as fit."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    num_columns = max(1, min(len(handles), int(WIDTH / (0.07 * longest + 0.65))))
    num_rows = math.ceil(len(handles) / num_columns)
    num_columns = math.ceil(len(handles) / num_rows)
    # Not through pyplot, which wants a screen where there is one.
    figure = Figure(figsize=(WIDTH, height + 0.22 * num_rows + 0.2), layout="constrained")
    figure.legend(handles=list(handles), loc="outside lower center", ncols=num_columns, fontsize=9)
    return figure


def literal(text: str) -> str:
    """As it stands: matplotlib takes what is between dollars for a formula."""
    return text.replace("$", r"\$")


def wrapped(label: str, width: int = 30) -> str:
    return "\n".join(textwrap.wrap(label, width, subsequent_indent="    "))
