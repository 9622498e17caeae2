"""How far a long prediction is, on stderr."""

import sys
import time

LINE_SECONDS, TERMINAL_SECONDS = 30.0, 0.5
# A terminal's line is written over, up to its end.
TO_LINE_START, TO_LINE_END = "\r", "\x1b[K"


class Progress:
    """Counts reviews: a line that is updated on a terminal, elsewhere one now and then."""

    def __init__(self, num_reviews: int) -> None:
        self.num_reviews = num_reviews
        self.num_done = 0
        self.is_terminal = sys.stderr.isatty()
        self.interval = TERMINAL_SECONDS if self.is_terminal else LINE_SECONDS
        self.started = self.shown = time.monotonic()

    def add(self, num_reviews: int) -> None:
        """Note that so many more are done."""
        self.num_done += num_reviews
        now = time.monotonic()
        if now - self.shown < self.interval:
            return
        self.shown = now
        rate = self.num_done / (now - self.started)
        left = (self.num_reviews - self.num_done) / rate
        self._show(
            f"{self.num_done:,} of {self.num_reviews:,} reviews "
            f"({self.num_done / self.num_reviews:.0%}), {rate:,.1f} a second, "
            f"{_duration(left)} left"
        )

    def end(self, where: str) -> None:
        """Say what was done in all, and where it is."""
        seconds = time.monotonic() - self.started
        self._show(
            f"{reviews(self.num_done)} in {_duration(seconds)} "
            f"({self.num_done / max(seconds, 1e-9):,.1f} a second): {where}"
        )
        self.break_line()

    def break_line(self) -> None:
        """Leave the updated line, so that what comes next stands on one of its own."""
        if self.is_terminal:
            print(file=sys.stderr, flush=True)

    def _show(self, text: str) -> None:
        if self.is_terminal:
            text = f"{TO_LINE_START}{text}{TO_LINE_END}"
        print(text, end="" if self.is_terminal else "\n", file=sys.stderr, flush=True)


def reviews(number: int) -> str:
    """So many of them, in words."""
    return f"{number:,} {'review' if number == 1 else 'reviews'}"


def _duration(seconds: float) -> str:
    """In the largest two units that it has."""
    minutes, rest = divmod(seconds, 60)
    if minutes < 1:
        return f"{rest:.1f} s"
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {int(rest):02} s"
