"""Runs grouped by variant, checked for what they must share, summarized and compared."""

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from distiltune import InputError
from distiltune.comparison.pairs import Pair, compare_pairs
from distiltune.comparison.runs import TEST_SPLIT, Run, TriedRate
from distiltune.comparison.statistics import mean_with_deviation

DIGEST_LENGTH = 12
NOT_SET = "not set"


@dataclass(frozen=True, kw_only=True)
class VariantSummary:
    """The runs of one variant; figures without a name of their own are means over them.

    `..._to_target` is None unless every run gets there: the first epoch after which the
    validation accuracy is at least the target, what was trained until its end, and the
    seconds of that without validation.
    """

    name: str
    learning_rate: float  # after the model's multiplier
    num_seeds: int
    seeds: tuple[int, ...]
    mean: float  # of the test accuracy
    standard_deviation: float | None
    best: float
    mean_loss: float
    best_loss: float
    loss_standard_deviation: float | None
    mean_validation_accuracy: float
    epochs_to_target: float | None
    seconds_to_target: float | None
    tokens_to_target: float | None
    train_seconds: float
    optimizer_seconds_per_step: float | None
    optimizer_state_bytes: float | None
    peak_memory_bytes: float  # the largest
    energy_joules: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A condition that runs must share, and do not."""

    name: str
    values: tuple[tuple[str, tuple[str, ...]], ...]  # each with its runs, the most common first

    @property
    def sentence(self) -> str:
        parts = (f"{_short(value)} ({_few(labels)})" for value, labels in self.values)
        return f"{self.name}: {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variants on the same data; `differences` is empty unless they were forced together."""

    runs: Mapping[str, tuple[Run, ...]]  # by variant, by seed
    variants: tuple[VariantSummary, ...]  # best mean accuracy first
    pairs: tuple[Pair, ...]  # none of one variant, or on different test reviews
    target: float  # validation accuracy
    num_reviews: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    tried_rates: tuple[TriedRate, ...] = ()  # from which the variants' rates were chosen


def compare(
    runs: Sequence[Run],
    *,
    target: float | None = None,
    force: bool = False,
    tried_rates: Sequence[TriedRate] = (),
    is_sweep: bool = False,
) -> Comparison:
    """Group runs by variant and compare these with each other.

    Args:
        runs: in the order of time; of two with the same variant and seed the later counts.
        target: validation accuracy to reach; by default the highest that all runs reach, but
            for those that give every review the same class.
        force: compare what is not comparable too, and say so in the result. Runs on different
            test reviews are put side by side, and no pair of them is tested.
        tried_rates: the search for the variants' learning rates, for the report.
        is_sweep: of which one variant alone is summarized too.

    Raises:
        InputError: there are fewer than two variants, or the runs differ in more than the
            variant and the seed.
    """
    grouped, notes = _by_variant(runs)
    if len(grouped) < (1 if is_sweep else 2):
        found = f"only runs of {', '.join(grouped)}" if grouped else "no runs"
        raise InputError(f"a comparison needs two variants or more, and there are {found}")
    differences = tuple(_differences(grouped))
    if differences and not force:
        raise InputError(
            "\n".join(
                ["these runs are not comparable (--force compares them still):", *fold(differences)]
            )
        )
    every = [run for group in grouped.values() for run in group]
    if _are_together(every):
        notes.append(
            "some of these runs were trained at the same time: where that was on one machine, "
            "their seconds (and the steps of their optimizers) are longer for it"
        )
    idle = [run for run in every if len(np.unique(run.predicted)) == 1]
    for name, group in grouped.items():
        if seeds := [str(run.seed) for run in group if run in idle]:
            notes.append(
                f"{name} has learned nothing with seed {', '.join(seeds)}: every test review gets "
                "the same class"
            )
    if target is None:
        learned = [run for run in every if run not in idle] or every
        reached = [max(epoch["validation_accuracy"] for epoch in run.epochs) for run in learned]
        # Rounded down, so that it reads well and all still reach it.
        target = math.floor(min(reached) * 1000) / 1000
    summaries = [_summarize(name, group, target) for name, group in grouped.items()]
    summaries.sort(key=lambda summary: -summary.mean)
    pairs: Sequence[Pair] = ()
    if len({run.conditions[TEST_SPLIT] for run in every}) > 1:
        notes.append("the test reviews differ, so no pair is compared on them")
    elif len(grouped) > 1:
        pairs = compare_pairs(
            {s.name: {run.seed: run.right for run in grouped[s.name]} for s in summaries}
        )
    return Comparison(
        runs={summary.name: grouped[summary.name] for summary in summaries},
        variants=tuple(summaries),
        pairs=tuple(pairs),
        target=target,
        num_reviews=len(every[0].right),
        differences=differences,
        notes=tuple(notes),
        tried_rates=tuple(tried_rates),
    )


def _by_variant(runs: Sequence[Run]) -> tuple[dict[str, tuple[Run, ...]], list[str]]:
    """Runs by variant, named by the optimizer and where that is not enough by what differs."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run in runs:
        rows.setdefault(run.optimizer, {})[str(sorted(run.variant_params.items()))] = (
            run.variant_params
        )
    grouped: dict[str, dict[int, Run]] = {}
    notes = []
    for run in runs:
        name = run.optimizer
        others = list(rows[name].values())
        if len(others) > 1:
            keys = sorted(
                {k for row in others for k in row if len({str(o.get(k)) for o in others}) > 1}
            )
            # A row's rate and the rate after the model's multiplier say the same twice.
            if {"learning_rate", "optimizer.learning_rate"} <= set(keys):
                keys.remove("optimizer.learning_rate")
            chosen = (f"{k.removeprefix('optimizer.')}={run.variant_params.get(k)}" for k in keys)
            name += f" ({', '.join(chosen)})"
        group = grouped.setdefault(name, {})
        if run.seed in group:
            same = np.array_equal(group[run.seed].predicted, run.predicted)
            notes.append(
                f"{name} with seed {run.seed} is there twice, with "
                f"{'the same' if same else 'different'} predictions; "
                f"{run.source} counts, {group[run.seed].source} does not"
            )
        group[run.seed] = run
    return {name: tuple(group[s] for s in sorted(group)) for name, group in grouped.items()}, notes


def _differences(grouped: Mapping[str, tuple[Run, ...]]) -> Iterable[Difference]:
    """What the runs do not share and must."""
    labelled = [(f"{name} {run.seed}", run) for name, group in grouped.items() for run in group]
    names = dict.fromkeys(key for _, run in labelled for key in run.conditions)
    for name in names:
        by_value: dict[str, list[str]] = {}
        for label, run in labelled:
            by_value.setdefault(run.conditions.get(name, NOT_SET), []).append(label)
        if len(by_value) > 1:
            values = sorted(by_value.items(), key=lambda item: -len(item[1]))
            yield Difference(
                name=name, values=tuple((value, tuple(labels)) for value, labels in values)
            )


def fold(differences: Iterable[Difference]) -> list[str]:
    """A line for each, but one for those of a table that the same runs lack.

    So all of `adapt` share a line where one run was adapted and another was not. Those that divide
    the runs otherwise, as two adaptations with different results, have their own.
    """
    alike: dict[object, list[Difference]] = {}
    for difference in differences:
        values = dict(difference.values)
        runs = frozenset(values.values())
        table = difference.name.partition(".")[0]
        alike.setdefault((table, runs) if NOT_SET in values else difference.name, []).append(
            difference
        )
    return [
        first.sentence + (f"; likewise {', '.join(other.name for other in others)}" * bool(others))
        for first, *others in alike.values()
    ]


def _short(value: str) -> str:
    """Digests cut, names whole: those of two models may begin alike."""
    text = value.strip('"')
    return text[:DIGEST_LENGTH] if re.fullmatch("[0-9a-f]{40,}", text) else text


def _are_together(runs: Sequence[Run]) -> bool:
    """Whether one began before another had ended."""
    spans = sorted((run.summary["started"], run.summary["ended"]) for run in runs)
    return any(second[0] < first[1] for first, second in pairwise(spans))


def _few(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(labels[:3]) + more


def _summarize(name: str, runs: Sequence[Run], target: float) -> VariantSummary:
    accuracy = mean_with_deviation([run.accuracy for run in runs])
    loss = mean_with_deviation([run.loss for run in runs])
    last = [run.epochs[int(run.summary["kept_epoch"]) - 1] for run in runs]
    reached = [_reached(run, target) for run in runs]

    def to_target(figure: Callable[[Run, int], float]) -> float | None:
        values = [figure(run, n) for run, n in zip(runs, reached, strict=True) if n is not None]
        return statistics.mean(values) if len(values) == len(runs) else None

    def mean_of(key: str) -> float | None:
        values = [run.summary[key] for run in runs if run.summary[key] is not None]
        return statistics.mean(values) if values else None

    def seconds(run: Run, num_epochs: int) -> float:
        return sum(epoch["train_seconds"] for epoch in run.epochs[:num_epochs])

    def tokens(run: Run, num_epochs: int) -> float:
        return float(run.summary["num_tokens"]) / len(run.epochs) * num_epochs

    return VariantSummary(
        name=name,
        learning_rate=runs[0].variant_params["learning_rate"],
        num_seeds=len(runs),
        seeds=tuple(run.seed for run in runs),
        mean=accuracy.mean,
        standard_deviation=accuracy.standard_deviation,
        best=accuracy.best,
        mean_loss=loss.mean,
        best_loss=min(run.loss for run in runs),
        loss_standard_deviation=loss.standard_deviation,
        mean_validation_accuracy=statistics.mean(epoch["validation_accuracy"] for epoch in last),
        epochs_to_target=to_target(lambda run, num_epochs: num_epochs),
        seconds_to_target=to_target(seconds),
        tokens_to_target=to_target(tokens),
        train_seconds=statistics.mean(run.summary["train_seconds"] for run in runs),
        optimizer_seconds_per_step=mean_of("optimizer_seconds_per_step"),
        optimizer_state_bytes=mean_of("optimizer_state_bytes"),
        peak_memory_bytes=max(run.summary["peak_memory_bytes"] for run in runs),
        energy_joules=mean_of("energy_joules"),
    )


def _reached(run: Run, target: float) -> int | None:
    """The number of epochs until the target."""
    numbers = enumerate((epoch["validation_accuracy"] for epoch in run.epochs), start=1)
    return next((number for number, accuracy in numbers if accuracy >= target), None)
