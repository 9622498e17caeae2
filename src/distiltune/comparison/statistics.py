"""Tests and intervals for the difference between two variants over seeds and reviews.

Two variants A and B are trained with the same seeds and answer the same reviews. All
here starts from `d`, (num_seeds, num_reviews): 1 where A alone is right, -1 where B alone
is, 0 elsewhere. Its mean is the difference between the accuracies.

A verdict on the variants has to hold for other seeds and other reviews, so both count as
random samples (crossed random effects):

    d[s, r] = difference + seed[s] + review[r] + residual[s, r]

The mean of d then has the variance (Cornfield and Tukey 1956, Annals of Mathematical
Statistics 27:907)

    (MS_seeds + MS_reviews - MS_residual) / (num_seeds * num_reviews)

with the mean squares of the two-way analysis of variance with one observation per cell.
It is the analysis of readers and cases in radiology, with seeds as the readers (Dorfman,
Berbaum and Metz 1992, Investigative Radiology 27:723; Obuchowski and Rockette 1995,
Communications in Statistics - Simulation 24:285). `p_value` says where we part from it.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special

ALPHA = 0.05
POWER = 0.8
NUM_RESAMPLES = 2000
NUM_NODES = 100

Differences = np.ndarray[Any, np.dtype[np.int8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How d varies, (num_seeds, num_reviews), at least two of each."""

    num_seeds: int
    num_reviews: int
    mean_square_seeds: float
    mean_square_reviews: float
    mean_square_residual: float

    @property
    def review_excess(self) -> float:
        """What reviews vary beyond the residual: num_seeds times their variance."""
        return max(self.mean_square_reviews - self.mean_square_residual, 0.0)

    @property
    def standard_error(self) -> float:
        """Of the mean of d, in accuracy. No component of the variance counts as negative."""
        seeds = max(self.mean_square_seeds, self.mean_square_residual)
        return math.sqrt((seeds + self.review_excess) / (self.num_seeds * self.num_reviews))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The accuracies of one variant over its seeds."""

    num_seeds: int
    mean: float
    standard_deviation: float | None
    best: float


def variation_of(differences: Differences) -> Variation:
    """The mean squares of d, (num_seeds, num_reviews), as seeds and reviews explain it.

    The sums are taken in whole numbers, so that "does not vary" is exactly zero.
    """
    num_seeds, num_reviews = differences.shape
    assert num_seeds > 1 and num_reviews > 1
    size = num_seeds * num_reviews
    # Each sum of squares times `size`.
    total = size * int(np.count_nonzero(differences))
    seeds = num_seeds * int((differences.sum(1, dtype=np.int64) ** 2).sum())
    reviews = num_reviews * int((differences.sum(0, dtype=np.int64) ** 2).sum())
    mean = int(differences.sum(dtype=np.int64)) ** 2
    return Variation(
        num_seeds=num_seeds,
        num_reviews=num_reviews,
        mean_square_seeds=(seeds - mean) / (size * (num_seeds - 1)),
        mean_square_reviews=(reviews - mean) / (size * (num_reviews - 1)),
        mean_square_residual=(total - seeds - reviews + mean)
        / (size * (num_seeds - 1) * (num_reviews - 1)),
    )


def p_value(difference: float, variation: Variation) -> float:
    """Two-sided p value of "the variants do not differ", for other seeds and other reviews.

    MS_seeds rests on a handful of seeds, MS_reviews on all the reviews: two variances,
    one of them hardly known, which is the problem of Behrens and Fisher. The usual answer
    is a t test with estimated degrees of freedom (Satterthwaite 1946; in this analysis
    Hillis 2007, Statistics in Medicine 26:596, who estimates them as (num_seeds - 1)
    (1 + review_excess / MS_seeds)^2). Where few seeds happen to agree that is fooled twice,
    by a small error and by many degrees of freedom. At the level 0.05 / 6 it gives up to
    9 times as many false alarms as it should with 2 seeds, 4 times with 3, 1.9 with 5.

    Here the p value is the mean of the p values over the mean squares of the seeds that
    the data leave possible, (num_seeds - 1) MS_seeds / chi2, as Behrens (1929) and Fisher
    (1935) have it (Tsui and Weerahandi 1989, Journal of the American Statistical
    Association 84:602). That is known to err on the safe side (Robinson 1976, Annals of
    Statistics 4:963). None of them counts as less than MS_residual, which is the least that
    seeds can vary. The two ends are known tests: where reviews vary no more than the
    residual it tends to the t test over the seeds' means, with num_seeds - 1 degrees of
    freedom, and where seeds do not vary to that over the reviews' means.

    Where d is the same everywhere there is no variance to go by: p is 1 for no difference,
    else that of the exact sign test over the reviews.

    Args:
        difference: the mean of d, in accuracy (-1 to 1).
        variation: of the same d.
    """
    if variation.standard_error == 0:
        return exact_mcnemar(variation.num_reviews, 0) if difference else 1.0
    return _mean_p_value(difference, variation, *_possible_mean_squares(variation))


def critical_difference(variation: Variation, alpha: float = ALPHA) -> float:
    """The difference at which the p value is `alpha`: half the width of the interval."""
    low, high = 0.0, variation.standard_error
    if high == 0:
        return 0.0
    possible = _possible_mean_squares(variation)

    def excess(difference: float) -> float:
        return _mean_p_value(difference, variation, *possible) - alpha

    while excess(high) > 0:
        low, high = high, 2 * high
    return float(optimize.brentq(excess, low, high, rtol=1e-9))


def interval_of(
    difference: float, variation: Variation, alpha: float = ALPHA
) -> tuple[float, float]:
    """The interval of differences that `p_value` does not refuse at `alpha`.

    Where d is 1 everywhere, or -1, it is that of Clopper and Pearson (1934) for reviews on
    which one variant is always right and the other never.
    """
    if variation.standard_error == 0:
        if difference == 0:
            return 0.0, 0.0
        nearest = 2 * (alpha / 2) ** (1 / variation.num_reviews) - 1
        return (nearest, 1.0) if difference > 0 else (-1.0, -nearest)
    half = critical_difference(variation, alpha)
    return max(difference - half, -1.0), min(difference + half, 1.0)


def degrees_of_freedom(variation: Variation, alpha: float = ALPHA) -> float:
    """Of the t test that is as strict as `p_value` at `alpha`, given the standard error.

    From num_seeds - 1, where seeds make all the variance, to num_reviews - 1.
    """
    most = variation.num_reviews - 1
    least = min(variation.num_seeds - 1, most)
    ratio = critical_difference(variation, alpha) / variation.standard_error

    def excess(freedom: float) -> float:
        return -float(special.stdtrit(freedom, alpha / 2)) - ratio

    if excess(most) >= 0:
        return float(most)
    if excess(least) <= 0:
        return float(least)
    return float(optimize.brentq(excess, least, most, rtol=1e-6))


def smallest_detectable_difference(
    standard_error: float,
    degrees_of_freedom: float,
    num_pairs: int,
    power: float = POWER,
    alpha: float = ALPHA,
) -> float:
    """The true difference, in accuracy, that a t test shows with the chance `power`.

    The test is two-sided at `alpha / num_pairs`, which is what the first step of Holm's
    correction asks for; the chance is that of the noncentral t distribution. The standard
    error is an estimate and so is this.
    """
    critical = -special.stdtrit(degrees_of_freedom, alpha / num_pairs / 2)
    return standard_error * float(special.nctdtrinc(degrees_of_freedom, 1 - power, critical))


def bootstrap_interval(
    differences: Differences, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of d, seeds and reviews drawn anew on their own.

    The pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1:386). It assumes no
    distribution, but with a handful of seeds it is too narrow where seeds matter: it can
    only draw those that are there. So it stands beside the interval of the test as a check.

    Args:
        differences: d, (num_seeds, num_reviews).
        num_resamples: how often to draw.
        seed: of the draws.
    """
    num_seeds, num_reviews = differences.shape
    generator = np.random.default_rng(seed)
    # Reviews with the same column are alike: drawing columns is the same, and there are few.
    columns, counts = np.unique(differences, axis=1, return_counts=True)
    seed_weights = generator.multinomial(
        num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples
    )
    review_weights = generator.multinomial(num_reviews, counts / num_reviews, size=num_resamples)
    # (num_resamples, num_seeds) @ (num_seeds, num_columns)
    sums = seed_weights.astype(np.float64) @ columns.astype(np.float64)
    means = (sums * review_weights).sum(1) / (num_seeds * num_reviews)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def discordant_reviews(differences: Differences) -> tuple[int, int]:
    """On how many reviews A is right with more seeds than B, and the other way round.

    With one seed these are the reviews that A alone gets right, and B alone.
    """
    sums = differences.sum(0, dtype=np.int64)
    return int((sums > 0).sum()), int((sums < 0).sum())


def exact_mcnemar(num_a_only: int, num_b_only: int) -> float:
    """Two-sided p value of the exact sign test on discordant reviews.

    With the counts of one seed it is McNemar's test (1947, Psychometrika 12:153) in its
    exact form; with those of several, by `discordant_reviews`, the sign test over reviews.
    It treats reviews alone as a sample. So it speaks of the very models that were trained,
    as if one had to choose among them, and not of the variants: trained with another seed,
    both would answer differently.
    """
    fewer, both = min(num_a_only, num_b_only), num_a_only + num_b_only
    return min(1.0, 2 * float(special.bdtr(fewer, both, 0.5)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Calling those below 0.05 keeps the chance of any false alarm in the family below 0.05,
    however the tests hang together. None stays None and does not count as a test.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = highest
    return adjusted


def mean_with_deviation(accuracies: Iterable[float]) -> Spread:
    """Of one accuracy or more; the deviation is that of a sample (n - 1)."""
    values = np.array(list(accuracies), dtype=np.float64)
    return Spread(
        num_seeds=values.size,
        mean=float(values.mean()),
        standard_deviation=float(values.std(ddof=1)) if values.size > 1 else None,
        best=float(values.max()),
    )


def _possible_mean_squares(variation: Variation) -> tuple[Floats, Floats]:
    """Mean squares of the seeds that MS_seeds leaves possible, and their weights, which sum to 1.

    The last is the least one, MS_residual, with the weight of all below it. The others are
    placed for Gauss's rule, since without that step the integrand is smooth.
    """
    least, estimate = variation.mean_square_residual, variation.mean_square_seeds
    freedom = variation.num_seeds - 1
    above = float(special.gammainc(freedom / 2, freedom * estimate / least / 2)) if least else 1.0
    above = max(above, 1e-12)  # keeps chi2 from zero, where there is no weight to speak of
    points, weights = _nodes()
    chi2 = 2 * special.gammaincinv(freedom / 2, above * points)
    mean_squares = np.maximum(freedom * estimate / chi2, least)
    if least == 0:
        return mean_squares, weights
    return np.append(mean_squares, least), np.append(above * weights, 1 - above)


def _mean_p_value(
    difference: float, variation: Variation, mean_squares: Floats, weights: Floats
) -> float:
    size = variation.num_seeds * variation.num_reviews
    errors = np.sqrt((mean_squares + variation.review_excess) / size)
    tails = special.stdtr(variation.num_reviews - 1, -abs(difference) / errors)
    return min(1.0, 2 * float(weights @ tails))


@functools.cache
def _nodes() -> tuple[Floats, Floats]:
    """Points and weights of an integral from 0 to 1, dense at 0 where the tail's weight is."""
    points, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    points = (points + 1) / 2
    return points**4, weights / 2 * 4 * points**3
