"""The page of a comparison: one file with all it shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distiltune.comparison.comparing import Comparison
from distiltune.comparison.figures import LEARNING_RATES_FILE, Picture
from distiltune.comparison.pairs import Pair, Verdict
from distiltune.comparison.statistics import ALPHA, NUM_RESAMPLES, POWER
from distiltune.comparison.tables import (
    MISSING,
    Column,
    accuracy_columns,
    cost_columns,
    grouped,
    percent,
    seconds,
)
from distiltune.pages import as_data_uri, load_template

TEMPLATE = Path(__file__).with_name("report.html.jinja")
# More sentences than these stand behind a line to open, so that the table is not far.
MAX_OPEN_SENTENCES = 10
MAX_NAMES = 5  # in a sentence


@dataclass(frozen=True, kw_only=True)
class VerdictGroup:
    """The pairs with the same verdict, and what that means."""

    kind: str  # for the style
    heading: str
    meaning: str
    sentences: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        return len(self.sentences) <= MAX_OPEN_SENTENCES


def render_page(
    comparison: Comparison, title: str, pictures: Sequence[Picture], folder: Path
) -> str:
    """The page as HTML: verdicts, table, pictures, method, runs.

    Args:
        comparison: what to show.
        title: plain text, as all that comes from outside; the template escapes it.
        pictures: in their order.
        folder: where their files are; they become part of the page.
    """
    rate = Column(group="", header="learning rate", cell=lambda v: f"{v.learning_rate:.3g}")
    columns = [rate, *accuracy_columns(comparison), *cost_columns(comparison)]
    return load_template(TEMPLATE).render(
        title=title,
        comparison=comparison,
        headline=headline(comparison),
        verdict_groups=verdict_groups(comparison),
        column_groups=[(group, len(numbers)) for group, numbers in grouped(columns)],
        columns=columns,
        pictures=[(picture, as_data_uri(folder / picture.file)) for picture in pictures],
        has_learning_rates=any(picture.file == LEARNING_RATES_FILE for picture in pictures),
        num_tested=sum(pair.p_value is not None for pair in comparison.pairs),
        pair_rows=[_pair_cells(pair) for pair in comparison.pairs],
        run_rows=_run_rows(comparison),
        percent=percent,
        alpha=f"{ALPHA:.0%}".replace("%", " %"),
        power=f"{POWER:.0%}".replace("%", " %"),
        num_resamples=NUM_RESAMPLES,
    )


def headline(comparison: Comparison) -> str:
    """Which variant is first, and whether that means something, in two sentences."""
    first, *others = comparison.variants
    seeds = "one seed" if first.num_seeds == 1 else f"{first.num_seeds} seeds"
    if not comparison.pairs:
        least = "the highest mean test accuracy" if others else "a mean test accuracy"
        why = "the test reviews differ" if others else "there is no other variant"
        return (
            f"{first.name} has {least}, {percent(first.mean)} % over {seeds}. "
            f"Nothing was compared, because {why}."
        )
    equal = [variant.name for variant in others if variant.mean == first.mean]
    if equal:
        names = [first.name, *equal]
        who = _listed(names) if len(names) <= MAX_NAMES else f"{len(names)} variants"
        return (
            f"{who} have the same mean test accuracy, "
            f"{percent(first.mean)} %, and no variant has a higher one."
        )
    by_verdict: dict[Verdict, list[str]] = {}
    for pair in comparison.pairs:
        # The best variant is the first of each of its pairs.
        if pair.variant_a == first.name:
            by_verdict.setdefault(pair.verdict, []).append(pair.variant_b)
    claims: list[tuple[Verdict, str, str]] = [
        ("better", "it is better than {}", "all others"),
        ("worse", "over the seeds in common it is worse than {}", "all others"),
        ("no difference shown", "no difference to {} is shown", "any other"),
        ("not tested", "it was not tested against {}", "any other"),
    ]
    parts = []
    for verdict, text, whole in claims:
        if found := by_verdict.get(verdict):
            who = _listed(found) if len(found) <= MAX_NAMES else f"{len(found)} others"
            parts.append(text.format(whole if 1 < len(found) == len(others) else who))
    said = "; ".join(parts)
    return (
        f"{first.name} has the highest mean test accuracy, {percent(first.mean)} % over {seeds}. "
        f"{said[0].upper()}{said[1:]}."
    )


def verdict_groups(comparison: Comparison) -> list[VerdictGroup]:
    """All pairs by verdict, those with a difference first; groups without pairs are left out."""

    def group(kind: str, heading: str, meaning: str, *verdicts: Verdict) -> VerdictGroup:
        sentences = tuple(p.sentence for p in comparison.pairs if p.verdict in verdicts)
        return VerdictGroup(kind=kind, heading=heading, meaning=meaning, sentences=sentences)

    groups = [
        group(
            "better",
            "Better",
            "Shown for other seeds and other reviews like these, not for these models alone.",
            "better",
            "worse",
        ),
        group(
            "open",
            "No difference shown",
            "This does not say that there is none: it may be too small for these seeds and "
            "reviews to show.",
            "no difference shown",
        ),
        group(
            "untested",
            "Not tested",
            "It takes two seeds or more that both variants have; five show a good deal more.",
            "not tested",
        ),
    ]
    return [found for found in groups if found.sentences]


def _pair_cells(pair: Pair) -> list[str]:
    """A pair's figures, in percentage points and as p values."""

    def points(value: float | None) -> str:
        return MISSING if value is None else f"{100 * value:+z.2f}"

    def interval(bounds: tuple[float, float] | None) -> str:
        return MISSING if bounds is None else f"{points(bounds[0])} to {points(bounds[1])}"

    def chance(value: float | None) -> str:
        if value is None:
            return MISSING
        return "< 0.001" if value < 0.001 else f"{value:.3f}"

    return [
        f"{pair.variant_a} minus {pair.variant_b}",
        pair.verdict,
        str(pair.num_seeds),
        points(pair.difference),
        interval(pair.interval),
        interval(pair.bootstrap_interval),
        chance(pair.p_value),
        chance(pair.p_corrected),
        f"{pair.num_a_only:,} / {pair.num_b_only:,}",
        chance(pair.mcnemar_p_value),
    ]


def _run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "variant": name,
            "seed": run.seed,
            "accuracy": percent(run.accuracy),
            "loss": f"{run.loss:.4f}",
            "seconds": seconds(run.summary["train_seconds"]),
            "source": run.source,
        }
        for name, runs in comparison.runs.items()
        for run in runs
    ]


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
