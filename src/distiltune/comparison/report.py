"""A comparison as text for the terminal, as JSON, and as a folder with tables and a page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distiltune.artifacts import new_folder, replaceable_folder, write_csv, write_json
from distiltune.comparison.comparing import Comparison, fold
from distiltune.comparison.figures import write_figures
from distiltune.comparison.page import render_page
from distiltune.comparison.tables import MISSING, percent, terminal_tables

REPORT_FILE = "comparison.json"
PAGE_FILE = "report.html"


def format_table(comparison: Comparison) -> str:
    """The variants, what is to say of each pair, and what to beware of, as plain text.

    One table of up to 120 columns, or two where the names are long.
    """
    blocks = terminal_tables(comparison)
    blocks.append(
        [
            f"{comparison.num_reviews:,} test reviews; "
            f"target: {percent(comparison.target, 1)} % of the validation reviews right; "
            f"{MISSING}: not measured, or not reached by every run"
        ]
    )
    if comparison.pairs:
        blocks.append(_list("Pairs:", [pair.sentence for pair in comparison.pairs]))
    if comparison.notes:
        blocks.append(_list("Notes:", comparison.notes))
    if comparison.differences:
        blocks.append(_list("NOT COMPARABLE, forced:", fold(comparison.differences)))
    return "\n\n".join("\n".join(lines) for lines in blocks)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All figures, as JSON has them; what is not a finite number is null."""
    content = {
        "variants": [asdict(variant) for variant in comparison.variants],
        "pairs": [
            {**asdict(pair), "verdict": pair.verdict, "sentence": pair.sentence}
            for pair in comparison.pairs
        ],
        "target": comparison.target,
        "num_reviews": comparison.num_reviews,
        "forced": bool(comparison.differences),
        "differences": [difference.sentence for difference in comparison.differences],
        "notes": comparison.notes,
        "tried_rates": [asdict(tried) for tried in comparison.tried_rates],
        "runs": [
            {
                "variant": name,
                "seed": run.seed,
                "source": run.source,
                "accuracy": run.accuracy,
                "loss": run.loss,
            }
            for name, runs in comparison.runs.items()
            for run in runs
        ],
    }
    plain = _plain(content)
    assert isinstance(plain, dict)
    return plain


def report_folder(folder: Path) -> Path:
    """The folder, if a report may take its place.

    Raises:
        InputError: it is there and holds something else, which would be lost.
    """
    return replaceable_folder(folder, REPORT_FILE, "a report")


def write_report(comparison: Comparison, folder: Path, title: str) -> list[Path]:
    """Write the comparison as JSON, CSV, PNG and one self-contained page.

    Args:
        comparison: what to report.
        folder: made anew; the report that is there goes when the new one is complete.
        title: of the page.

    Returns:
        The files, the page first.

    Raises:
        InputError: as `report_folder`.
    """
    folder = report_folder(folder)
    content = to_json(comparison)
    with new_folder(folder) as partial:
        write_json(partial / REPORT_FILE, content)
        tables = {
            "variants.csv": content["variants"],
            "pairs.csv": content["pairs"],
            "runs.csv": content["runs"],
        }
        for name, rows in tables.items():
            if not rows:
                continue  # of pairs there may be none
            cells = [_cells(row) for row in rows]
            write_csv(partial / name, list(cells[0]), (row.values() for row in cells))
        pictures = write_figures(comparison, partial)
        page = render_page(comparison, title, pictures, partial)
        (partial / PAGE_FILE).write_text(page, encoding="utf-8")
    names = [PAGE_FILE, REPORT_FILE, *tables, *(picture.file for picture in pictures)]
    return [folder / name for name in names]


def _list(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, *(f"- {line}" for line in lines)]


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists, and null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        # A number of numpy's is a float too, and prints otherwise.
        return float(value) if math.isfinite(value) else None
    return value


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a CSV file: intervals as two columns, seeds as one text."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("interval"):
            cells[f"{name}_low"], cells[f"{name}_high"] = value or (None, None)
        else:
            cells[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return cells
