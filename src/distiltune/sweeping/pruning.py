"""Which trials of a search are hopeless: by one rule for all variants."""

import statistics
from collections.abc import Mapping, Sequence

from distiltune.sweeping.plan import Trial

MIN_FINISHED = 2  # of the same variant, before any is ended


def median_of_finished(curve: Sequence[float], finished: Sequence[Sequence[float]]) -> float | None:
    """What makes a running trial hopeless by the median stopping rule, or None.

    The rule (Golovin et al., "Google Vizier: A service for black-box optimization", KDD
    2017): after epoch e a trial is ended whose best value so far is below the median,
    over the finished trials, of the mean of their values up to e.

    Args:
        curve: validation accuracy after each epoch so far; higher is better.
        finished: the same of the finished trials, over all of their epochs.

    Returns:
        That median, where the trial is hopeless.
    """
    if not curve or len(finished) < MIN_FINISHED:
        return None
    median = statistics.median(statistics.fmean(other[: len(curve)]) for other in finished)
    return median if max(curve) < median else None


def hopeless_trials(
    trials: Sequence[Trial], finished: set[str], curves: Mapping[str, Sequence[float]]
) -> dict[str, str]:
    """The running trials to be ended, each with the reason.

    Args:
        trials: of the search.
        finished: the names of those that have results.
        curves: by name, the validation accuracy after each epoch.
    """
    found = {}
    for trial in trials:
        others = [
            curves[other.name]
            for other in trials
            if other.optimizer == trial.optimizer
            and other.name in finished
            and curves.get(other.name)
        ]
        curve = curves.get(trial.name, ())
        median = median_of_finished(curve, others)
        if trial.name not in finished and median is not None:
            found[trial.name] = (
                f"validation accuracy {max(curve):.2%} in {len(curve)} epochs; the median of the "
                f"{len(others)} finished rates of {trial.optimizer} is {median:.2%}"
            )
    return found
