"""All pairs of variants compared as one family, and what to say of each in plain words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np

from distiltune import InputError
from distiltune.comparison.statistics import (
    ALPHA,
    NUM_RESAMPLES,
    POWER,
    bootstrap_interval,
    degrees_of_freedom,
    discordant_reviews,
    exact_mcnemar,
    holm,
    interval_of,
    p_value,
    smallest_detectable_difference,
    variation_of,
)

Right = np.ndarray[Any, np.dtype[np.bool_]]
Verdict = Literal["better", "worse", "no difference shown", "not tested"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Variant A against variant B, over the seeds that both have, on the same reviews.

    Differences, intervals and errors are of accuracy, from -1 to 1, A minus B. What cannot
    be told is None: with fewer than two common seeds all that a verdict needs, without any
    also the difference, and `smallest_detectable_difference` where nothing varied.
    """

    variant_a: str
    variant_b: str
    num_seeds: int
    num_reviews: int
    difference: float | None
    standard_error: float | None
    # Of the t test that is as strict at 5 %; see statistics.degrees_of_freedom.
    degrees_of_freedom: float | None
    # 95 %, agrees with p_value: so neither knows of the other pairs.
    interval: tuple[float, float] | None
    bootstrap_interval: tuple[float, float] | None
    p_value: float | None
    # Reviews on which A, or B, is right with more seeds than the other: with one seed those
    # that it alone gets right. Their test is of these models, not of the variants.
    num_a_only: int
    num_b_only: int
    mcnemar_p_value: float | None
    # Of the family: its tests, p by Holm (None until the others are known), and the true
    # difference that this pair would show among them with a chance of 80 %.
    num_pairs: int
    p_corrected: float | None
    smallest_detectable_difference: float | None

    @property
    def verdict(self) -> Verdict:
        """Of A, at 5 % for the whole family."""
        if self.p_corrected is None or self.difference is None:
            return "not tested"
        if self.p_corrected >= ALPHA:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The verdict with its figures, the better variant first; differences in points (%)."""
        if self.verdict == "not tested":
            return f"Not tested: {self._why_not_tested()}."
        assert self.difference is not None and self.interval is not None
        first, second, sign = self._better_first()
        if self.difference == 0 and self.standard_error == 0:
            return (
                f"No difference shown between {first} and {second}: with each of "
                f"{self.num_seeds} seeds both get the same of {self.num_reviews:,} reviews right."
            )
        low, high = sorted(sign * bound for bound in self.interval)
        figures = (
            f"95 % interval{' of this pair alone' if self.num_pairs > 1 else ''} "
            f"{_points(low)} to {_points(high)}; {self._corrected()}; "
            f"{self.num_seeds} seeds, {self.num_reviews:,} reviews"
        )
        size = f"{_points(abs(self.difference))} points"
        if self.verdict != "no difference shown":
            return f"{first} is better than {second} by {size} ({figures})."
        if self.difference != 0:
            size = f"{size} in favour of {first}"
        return (
            f"No difference shown between {first} and {second}: {size} ({figures}). "
            f"{self._what_would_show()}"
        )

    def _better_first(self) -> tuple[str, str, int]:
        """The names in the order of accuracy, and the sign that turns A minus B into it."""
        if self.difference is not None and self.difference < 0:
            return self.variant_b, self.variant_a, -1
        return self.variant_a, self.variant_b, 1

    def _corrected(self) -> str:
        assert self.p_corrected is not None
        text = _p(self.p_corrected)
        if self.num_pairs == 1:
            return text
        return f"{text} after Holm's correction over {self.num_pairs} pairs"

    def _what_would_show(self) -> str:
        smallest = self.smallest_detectable_difference
        assert smallest is not None
        if smallest > 1:
            return f"{self.num_seeds} seeds that differ like these cannot show any difference."
        # Rounded up, so that the claim holds.
        points = math.ceil(smallest * 1000) / 10
        return (
            f"{self.num_seeds} seeds could have shown {points:.1f} points or more "
            f"(with {POWER:.0%} power)."
        ).replace("%", " %")

    def _why_not_tested(self) -> str:
        names = f"{self.variant_a} and {self.variant_b}"
        if self.num_seeds == 0:
            return f"{names} have no seed in common"
        first, second, sign = self._better_first()
        more, fewer = (self.num_a_only, self.num_b_only)[::sign]
        assert self.mcnemar_p_value is not None
        if more + fewer == 0:
            models = f"both get the same of {self.num_reviews:,} reviews right"
        else:
            models = (
                f"{first} is right on {_reviews(more)} that {second} misses, and misses {fewer:,} "
                f"that {second} gets right (exact McNemar {_p(self.mcnemar_p_value)})"
            )
        return (
            f"{names} have one seed in common, and one seed cannot tell a variant from its luck; "
            f"of these very models, {models}"
        )


def compare_pairs(
    right: Mapping[str, Mapping[int, Right]], *, num_resamples: int = NUM_RESAMPLES
) -> list[Pair]:
    """Compare all variants with each other, as one family of tests.

    Each pair is compared over the seeds that both variants have; those of one alone are
    left out, since the comparison rests on what the same seed does to both. Pairs with
    fewer than two common seeds are not tested, and do not count in the correction.

    Args:
        right: variant -> seed -> (num_reviews,), where the model is right. All arrays speak
            of the same reviews in the same order; that is for the caller to make sure.
        num_resamples: for the bootstrap.

    Returns:
        The pairs in the order of `right`: A stands there before B, whichever is better.

    Raises:
        InputError: the numbers of reviews differ, or there is only one review.
    """
    num_reviews = _check(right)
    pairs = list(combinations(right, 2))
    common = [sorted(right[a].keys() & right[b].keys()) for a, b in pairs]
    num_pairs = sum(len(seeds) > 1 for seeds in common)
    compared = [
        compare_pair(
            _stack(right[a], seeds, num_reviews),
            _stack(right[b], seeds, num_reviews),
            variant_a=a,
            variant_b=b,
            num_pairs=num_pairs,
            num_resamples=num_resamples,
        )
        for (a, b), seeds in zip(pairs, common, strict=True)
    ]
    corrected = holm([pair.p_value for pair in compared])
    return [replace(pair, p_corrected=p) for pair, p in zip(compared, corrected, strict=True)]


def compare_pair(
    right_a: Right,
    right_b: Right,
    *,
    variant_a: str,
    variant_b: str,
    num_pairs: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Pair:
    """Compare two variants, one pair of a family; its `p_corrected` stays None.

    Args:
        right_a: (num_seeds, num_reviews), where A is right. Row s of both is the same seed,
            column r the same review.
        right_b: the same of B.
        variant_a: A's name.
        variant_b: B's name.
        num_pairs: the tests in the family.
        num_resamples: for the bootstrap.
    """
    assert right_a.shape == right_b.shape
    num_seeds, num_reviews = right_a.shape
    differences = right_a.astype(np.int8) - right_b.astype(np.int8)
    num_a_only, num_b_only = discordant_reviews(differences)
    pair = Pair(
        variant_a=variant_a,
        variant_b=variant_b,
        num_seeds=num_seeds,
        num_reviews=num_reviews,
        difference=float(differences.mean()) if num_seeds else None,
        standard_error=None,
        degrees_of_freedom=None,
        interval=None,
        bootstrap_interval=None,
        p_value=None,
        num_a_only=num_a_only,
        num_b_only=num_b_only,
        mcnemar_p_value=exact_mcnemar(num_a_only, num_b_only) if num_seeds else None,
        num_pairs=num_pairs,
        p_corrected=None,
        smallest_detectable_difference=None,
    )
    if num_seeds < 2 or pair.difference is None:
        return pair
    variation = variation_of(differences)
    error = variation.standard_error
    pair = replace(
        pair,
        standard_error=error,
        interval=interval_of(pair.difference, variation),
        bootstrap_interval=bootstrap_interval(differences, num_resamples=num_resamples),
        p_value=p_value(pair.difference, variation),
    )
    if error == 0:
        return pair
    strictest = degrees_of_freedom(variation, ALPHA / num_pairs)
    return replace(
        pair,
        degrees_of_freedom=degrees_of_freedom(variation),
        smallest_detectable_difference=smallest_detectable_difference(error, strictest, num_pairs),
    )


def _check(right: Mapping[str, Mapping[int, Right]]) -> int:
    """The number of reviews, the same for all."""
    first = ""
    num_reviews = 0
    for variant, seeds in right.items():
        for seed, answers in seeds.items():
            assert answers.dtype == np.bool_ and answers.ndim == 1
            where = f"{variant} with seed {seed}"
            found = f"{where}: predictions for {_reviews(answers.size)}"
            if answers.size < 2:
                raise InputError(f"{found}; a comparison needs 2 or more")
            if not first:
                first, num_reviews = where, answers.size
            if answers.size != num_reviews:
                raise InputError(
                    f"{found}, but {first} has {num_reviews:,}; compare runs that were evaluated "
                    "on the same test split"
                )
    return num_reviews


def _stack(answers: Mapping[int, Right], seeds: list[int], num_reviews: int) -> Right:
    """(num_seeds, num_reviews), of no seed too."""
    stacked = np.array([answers[seed] for seed in seeds], dtype=np.bool_)
    return stacked.reshape(len(seeds), num_reviews)


def _reviews(number: int) -> str:
    return f"{number:,} review" if number == 1 else f"{number:,} reviews"


def _points(difference: float) -> str:
    return f"{100 * difference:z.2f}"


def _p(value: float) -> str:
    if value < 0.001:
        return "p < 0.001"
    text = f"{value:.2g}"
    # Rounded to 0.05 it would not show on which side it is.
    return f"p = {value:.4g}" if float(text) == ALPHA else f"p = {text}"
