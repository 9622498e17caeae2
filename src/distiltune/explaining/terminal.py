"""An explanation in the terminal."""

import os
from typing import TextIO

from distiltune.explaining.run import Explanation
from distiltune.explaining.words import visible

NUM_STRONGEST = 15
# Weaker than this share of the strongest word, a word is not coloured.
LEAST_STRENGTH = 0.1
BAR = 20  # characters of the strongest word's
# Of the 256 colours, weak to strong; with black letters readable on a light and on a dark ground.
FOR, AGAINST = (153, 111, 75), (223, 215, 208)
FAINT, RESET = "\x1b[2m", "\x1b[0m"


def has_colours(stream: TextIO) -> bool:
    """Whether colours are wanted there: a terminal, and no variable NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def format_explanation(found: Explanation, *, colours: bool) -> str:
    """Verdict, baseline, how well it adds up, the text if it can be coloured, strongest words."""
    parts = ["\n".join(summary(found))]
    if colours:
        parts.append(_coloured(found))
    parts.append(_table(found))
    return "\n\n".join(parts)


def summary(found: Explanation) -> list[str]:
    """What is explained, against what, and how surely, a sentence each."""
    by = found.attribution
    which = "" if found.label_name == found.predicted else f" (the model says {found.predicted})"
    lines = [
        f"{found.label_name}{which}: {found.probability:.1%}, log-odds {by.output:+.3f}.",
        f"Baseline: {found.baseline_probability:.1%}, log-odds {by.baseline_output:+.3f}: the same "
        f"text with each of its {found.num_tokens:,} tokens replaced by {found.baseline_token}.",
        completeness(found),
    ]
    if found.unread:
        start, end = found.unread
        lines.append(
            f"Not read: {end - start:,} of {len(found.text):,} characters, from character "
            f"{start + 1:,}; the model takes no more tokens."
        )
    return lines


def completeness(found: Explanation) -> str:
    """Whether the words add up to the difference between text and baseline."""
    by = found.attribution
    total = (
        f"the words add up to {by.values.sum():+.3f} of a difference of {by.difference:+.3f} "
        f"({by.num_steps} steps; tolerance {by.tolerance:.3f})"
    )
    if by.holds:
        return f"Complete: {total}."
    if by.gap > by.tolerance:
        return f"NOT COMPLETE: {total}; allow more with --steps."
    return (
        f"NOT SETTLED: {total}, but a word still moved by {by.change:.3f} when the steps were "
        "doubled; allow more with --steps."
    )


def _on_terminal(text: str) -> str:
    """A return alone would write over the line."""
    return visible(text).replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")


def _coloured(found: Explanation) -> str:
    strengths = found.strengths
    parts = []
    for piece, number, is_unread in found.pieces():
        shown = _on_terminal(piece)
        if is_unread:
            shown = f"{FAINT}[not read: {shown}]{RESET}"
        elif number is not None and (colour := _colour(strengths[number])):
            shown = f"\x1b[38;5;16;48;5;{colour}m{shown}{RESET}"
        parts.append(shown)
    legend = "  ".join(
        "".join(f"\x1b[38;5;16;48;5;{colour}m {sign} {RESET}" for colour in shades) + f" {meaning}"
        for shades, sign, meaning in (
            (FOR, "+", f"for {found.label_name}"),
            (AGAINST, "-", "against it"),
        )
    )
    return f"{''.join(parts)}\n\n{legend}, weak to strong"


def _colour(strength: float) -> int | None:
    if abs(strength) < LEAST_STRENGTH:
        return None
    shades = FOR if strength > 0 else AGAINST
    return shades[min(len(shades) - 1, int(abs(strength) * len(shades)))]


def _table(found: Explanation) -> str:
    rows = found.strongest[:NUM_STRONGEST]
    shown = [" ".join(visible(found.text[word.start : word.end]).split()) for word, _ in rows]
    width = max([len("word"), *map(len, shown)])
    most = abs(rows[0][1])
    lines = [f"{'word':{width}}  log-odds  + for {found.label_name}, - against"]
    for text, (_, value) in zip(shown, rows, strict=True):
        bar = ("+" if value > 0 else "-") * (round(BAR * abs(value) / most) if most else 0)
        lines.append(f"{text:{width}}  {value:+8.3f}  {bar}".rstrip())
    if rest := found.strongest[NUM_STRONGEST:]:
        total = sum(value for _, value in rest)
        lines.append(f"{'':{width}}  {total:+8.3f}  the other {len(rest):,} words together")
    return "\n".join(lines)
