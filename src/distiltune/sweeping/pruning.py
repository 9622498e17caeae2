"""Which tried learning rates are hopeless: by one rule for all variants."""

import math
import statistics
from collections.abc import Sequence

MIN_FINISHED = 2  # of a variant, to set a bar for its others


def num_in_full(num_rates: int) -> int:
    """How many of a variant's rates, from the middle of them, set the bar for the rest."""
    return max(MIN_FINISHED, math.ceil(num_rates / 2))


def median_bars(curves: Sequence[Sequence[float]]) -> tuple[float, ...] | None:
    """The bars of the median stopping rule, for `train.stop_below`.

    The rule (Golovin et al., "Google Vizier: A service for black-box optimization", KDD
    2017): after epoch e a training is ended whose best value so far is below the median,
    over the finished ones, of the mean of their values up to e.

    Args:
        curves: of the finished ones, the validation accuracy after each epoch.

    Returns:
        A bar for each epoch but the last; None where too few have finished, or there is
        one epoch alone.
    """
    if len(curves) < MIN_FINISHED:
        return None
    bars = [
        round(statistics.median(statistics.fmean(curve[:epoch]) for curve in curves), 6)
        for epoch in range(1, len(curves[0]))
    ]
    return tuple(bars) or None
