"""The page of an explanation: one file with all it shows."""

from pathlib import Path

from distiltune.artifacts import new_file
from distiltune.explaining.gradients import LEAST_TOLERANCE, RELATIVE_TOLERANCE
from distiltune.explaining.run import Explanation
from distiltune.explaining.terminal import LEAST_STRENGTH, NUM_STRONGEST, completeness
from distiltune.explaining.words import visible
from distiltune.pages import load_template

TEMPLATE = Path(__file__).with_name("explanation.html.jinja")
# The share of the colour in a word's ground: as much as letters stay readable on.
FAINTEST, FULLEST = 0.1, 0.75


def write_page(found: Explanation, file: Path) -> None:
    """Write the page aside, and put it in its place."""
    page = render_page(found)
    with new_file(file) as partial:
        partial.write_text(page, encoding="utf-8")


def render_page(found: Explanation) -> str:
    """The page as HTML; the template escapes all that comes from outside."""
    strengths = found.strengths
    pieces = []
    for text, number, is_unread in found.pieces():
        strength = 0.0 if number is None else strengths[number]
        pieces.append(
            {
                "text": visible(text),
                "is_unread": is_unread,
                "kind": _kind(strength),
                "shade": f"{FAINTEST + (FULLEST - FAINTEST) * abs(strength):.2f}",
                "value": None if number is None else f"{found.values[number]:+.3f}",
            }
        )
    most = abs(found.strongest[0][1])
    rows = [
        {
            "word": visible(found.text[word.start : word.end]),
            "value": f"{value:+.3f}",
            "width": f"{100 * abs(value) / most if most else 0:.1f}",
        }
        for word, value in found.strongest[:NUM_STRONGEST]
    ]
    rest = found.strongest[NUM_STRONGEST:]
    return load_template(TEMPLATE).render(
        found=found,
        pieces=pieces,
        rows=rows,
        rest=f"{sum(value for _, value in rest):+.3f}" if rest else None,
        num_rest=f"{len(rest):,}",
        completeness=completeness(found),
        probability=f"{found.probability:.1%}".replace("%", " %"),
        baseline_probability=f"{found.baseline_probability:.1%}".replace("%", " %"),
        odds=f"{found.attribution.output:+.3f}",
        baseline_odds=f"{found.attribution.baseline_output:+.3f}",
        shades=[f"{FAINTEST + (FULLEST - FAINTEST) * i / 4:.2f}" for i in range(1, 5)],
        num_unread=f"{found.unread[1] - found.unread[0]:,}" if found.unread else None,
        num_characters=f"{len(found.text):,}",
        num_tokens=f"{found.num_tokens:,}",
        tolerance=f"{RELATIVE_TOLERANCE:.0%}".replace("%", " %"),
        least_tolerance=LEAST_TOLERANCE,
    )


def _kind(strength: float) -> str:
    if abs(strength) < LEAST_STRENGTH:
        return "weak"
    return "for" if strength > 0 else "against"
