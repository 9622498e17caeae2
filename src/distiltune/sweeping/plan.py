"""What a sweep consists of: experiments whose names follow from their settings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from distiltune import InputError
from distiltune.config import load_params
from distiltune.runtime import code_digest

DIGEST_LENGTH = 6
# `train` alone: a search for rates does not read the test split.
SEARCH_TARGET = "train"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One experiment of a sweep."""

    name: str
    optimizer: str
    seed: int
    learning_rate: float
    overrides: tuple[str, ...]
    targets: tuple[str, ...] = ()  # stages; none is all of them


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run.

    The same command means the same experiments, and a changed row, code or data set
    means others, because all that matters is in a digest in their names.
    """

    name: str
    trials: tuple[Trial, ...]
    data_overrides: tuple[str, ...]


class Planner:
    """Makes the trials for the workspace's params and code."""

    def __init__(
        self,
        root: Path,
        optimizers: Sequence[str],
        seeds: Sequence[int],
        overrides: Sequence[str] = (),
        *,
        num_rates: int = 0,
        span: float = 1.0,
        name: str | None = None,
    ) -> None:
        """Check what is asked for.

        Args:
            root: the main checkout.
            optimizers: rows of the params' table.
            seeds: of each variant, the same.
            overrides: further changes of params, as `dvc exp run -S` takes them.
            num_rates: how many learning rates to try first for each variant.
            span: they reach from the row's rate divided by this to it times this.
            name: of the sweep; by default made of a digest of the settings.

        Raises:
            InputError: a variant is no row or is named twice, or the params hold a mistake.
        """
        params = load_params(root / "params.yaml")
        for optimizer in optimizers:
            if optimizer not in params.optimizers:
                rows = ", ".join(params.optimizers)
                raise InputError(f"--optimizers: {optimizer!r} is no row of optimizers ({rows})")
        for option, values in (("--optimizers", list(optimizers)), ("--seeds", list(seeds))):
            if len(set(values)) < len(values):
                raise InputError(f"{option}: {', '.join(map(str, values))}: one is named twice")
        for override in overrides:
            key = override.partition("=")[0].strip("+~")
            if key in ("optimizer", "seed") or (num_rates and key.endswith(".learning_rate")):
                raise InputError(f"-S {override}: the sweep sets this itself")
        self.optimizers = tuple(optimizers)
        self.seeds = tuple(seeds)
        self.overrides = tuple(overrides)
        self.num_rates = num_rates
        self.span = span
        self.rows = params.optimizers
        everything = asdict(params)
        for key in ("optimizer", "optimizers", "seed"):
            del everything[key]
        pipeline = root / "dvc.yaml"
        stages = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]
        code = {stage: code_digest(stage, pipeline) for stage in stages}
        self._shared = [everything, code, sorted(overrides)]
        search = [num_rates, span] if num_rates else []
        self.name = name or f"sweep-{_digest([*self._shared, *search])}"

    def search(self) -> Sweep:
        """The same number of rates for each variant, evenly in the logarithm, with one seed.

        That seed is none of the sweep's, so that a rate is not chosen by the runs that it
        is then judged by.
        """
        seed = next(number for number in range(len(self.seeds) + 1) if number not in self.seeds)
        factors = np.geomspace(1 / self.span, self.span, self.num_rates)
        trials = [
            self._trial(optimizer, seed, rate, ("rate", f"{rate:g}"), (SEARCH_TARGET,))
            for optimizer in self.optimizers
            for rate in (
                float(f"{self.rows[optimizer].learning_rate * factor:.3g}") for factor in factors
            )
        ]
        return Sweep(name=self.name, trials=tuple(trials), data_overrides=self.overrides)

    def sweep(self, rates: Mapping[str, float] | None = None) -> Sweep:
        """Every variant with every seed.

        Args:
            rates: by variant, in place of the row's.
        """
        # Seed by seed, so that an unfinished sweep has as many of each variant.
        trials = [
            self._trial(optimizer, seed, (rates or {}).get(optimizer), (str(seed),), ())
            for seed in self.seeds
            for optimizer in self.optimizers
        ]
        return Sweep(name=self.name, trials=tuple(trials), data_overrides=self.overrides)

    def _trial(
        self,
        optimizer: str,
        seed: int,
        rate: float | None,
        parts: tuple[str, ...],
        targets: tuple[str, ...],
    ) -> Trial:
        overrides = [*self.overrides, f"optimizer={optimizer}", f"seed={seed}"]
        if rate is not None:
            overrides.append(f"optimizers.{optimizer}.learning_rate={rate!r}")
        row = asdict(self.rows[optimizer])
        digest = _digest([*self._shared, row, optimizer, seed, rate, targets])
        name = "-".join([self.name, optimizer, *parts, digest])
        return Trial(
            # Git allows no dot before "lock" or at an end, and DVC no "+" of an exponent.
            name=name.replace(".", "_").replace("+", ""),
            optimizer=optimizer,
            seed=seed,
            learning_rate=self.rows[optimizer].learning_rate if rate is None else rate,
            overrides=tuple(overrides),
            targets=targets,
        )


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
