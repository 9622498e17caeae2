"""What a sweep consists of: experiments whose names follow from their settings."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from distiltune import InputError
from distiltune.artifacts import sha256_of
from distiltune.config import Params, load_params
from distiltune.runtime import choose_runtime, code_digest
from distiltune.sweeping.overrides import check_key, params_with
from distiltune.sweeping.pruning import MIN_FINISHED, num_in_full
from distiltune.sweeping.sharding import Shard

DIGEST_LENGTH = 6
MAX_RATE = 10.0  # of a row, by the schema
# `train` alone: a search for rates does not read the test split.
SEARCH_TARGET = "train"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One experiment of a sweep."""

    name: str
    optimizer: str
    seed: int
    rate: float | None  # the learning rate that it sets; None leaves the row's
    overrides: tuple[str, ...]
    targets: tuple[str, ...] = ()  # stages; none is all of them


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is to be run; `is_search` where it chooses learning rates."""

    name: str
    trials: tuple[Trial, ...]
    data_overrides: tuple[str, ...]
    is_search: bool
    shard: Shard | None = None  # of the whole sweep, which the trials are


class Planner:
    """Makes the trials for the workspace's params, code and data.

    A trial is named by a digest of all that it is made of. So the same command means the
    same experiments, whichever sweep they were first run for, and a changed row, module
    or file of the user's means others.
    """

    def __init__(
        self,
        root: Path,
        optimizers: Sequence[str],
        seeds: Sequence[int],
        overrides: Sequence[str] = (),
        *,
        num_rates: int = 0,
        span: float = 1.0,
        prunes: bool = False,
        name: str | None = None,
        is_divided: bool = False,
    ) -> None:
        """Check what is asked for.

        Args:
            root: the main checkout.
            optimizers: rows of the params' table.
            seeds: of each variant, the same.
            overrides: further changes of params, as `dvc exp run -S` takes them.
            num_rates: how many learning rates to try first for each variant.
            span: they reach from the row's rate divided by this to it times this.
            prunes: whether hopeless ones of them are ended early.
            name: of the sweep; by default made of a digest of the settings.
            is_divided: whether several machines share it. The digest then stands behind a
                name that is given too, so that machines with different settings do not
                take their experiments for one sweep.

        Raises:
            InputError: a variant is no row or is named twice, the params hold a mistake, or
                there is no such device.
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
            if "=" not in override:
                raise InputError(f"-S {override}: must be KEY=VALUE")
            key, _, value = override.removeprefix("params.yaml:").partition("=")
            key = key.strip("+~")
            if key in ("optimizer", "seed") or (num_rates and key.endswith(".learning_rate")):
                raise InputError(f"-S {override}: the sweep sets this itself")
            check_key(params, key, override)
            is_csv = key == "dataset" and value.strip("'\"") == "csv"
            if is_csv or key.startswith("datasets.csv"):
                raise InputError(f"-S {override}: write it into params.yaml, for a sweep")
        self.params = params_with(root, overrides) if overrides else params
        if num_rates == 1:
            raise InputError("--search-rates: 1 leaves nothing to choose; take 3 or more")
        if prunes and num_rates <= MIN_FINISHED:
            raise InputError(
                f"--prune: needs --search-rates {MIN_FINISHED + 1} or more, because "
                f"{MIN_FINISHED} of a variant set the bar for its others"
            )
        self.optimizers = tuple(optimizers)
        self.seeds = tuple(seeds)
        self.overrides = tuple(overrides)
        self.num_rates = num_rates
        self.span = span
        self.prunes = prunes
        self.rows = params.optimizers
        self.root = root
        # What `compare` would refuse to compare: results of another device or version.
        self._device = choose_runtime(self.params.device, self.params.precision).description
        self._shared = self._settings(params)
        search = [num_rates, span, *(["pruned"] if prunes else [])] if num_rates else []
        names = [trial.name for trial in self._trials({})]
        digest = _digest([*names, *search])
        self.name = name if name and not is_divided else f"{name or 'sweep'}-{digest}"

    def describe(self) -> str:
        """What is compared, on what, in one line."""
        options = "".join(f" -S {override}" for override in self.overrides)
        return (
            f"{self.name}: {', '.join(self.optimizers)} x {len(self.seeds)} "
            f"{'seed' if len(self.seeds) == 1 else 'seeds'}, {self.params.model} on "
            f"{self.params.dataset}{options}"
        )

    def check_workspace(self) -> None:
        """See that the workspace is still what the trials are named for.

        Raises:
            InputError: params, code or data have changed since.
        """
        params = load_params(self.root / "params.yaml")
        rows = {name: params.optimizers.get(name) for name in self.optimizers}
        if self._settings(params) != self._shared or any(
            self.rows[name] != row for name, row in rows.items()
        ):
            raise InputError(
                "params, code or data have changed since the sweep began, and what is not "
                "queued yet would be run with the changed ones; undo that and start the sweep "
                "again, or start another"
            )

    def _settings(self, params: Params) -> list[object]:
        """All that a trial is made of, but for its variant and seed."""
        everything = asdict(params)
        for key in ("optimizer", "optimizers", "seed"):
            del everything[key]
        pipeline = self.root / "dvc.yaml"
        stages = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]
        # What only refuses has no part in a result.
        code = {s: code_digest(s, pipeline) for s in stages if s != "check-params"}
        files = params.datasets.csv.paths if params.dataset == "csv" else ()
        data = [sha256_of(self.root / file) for file in files if (self.root / file).is_file()]
        versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
        return [everything, code, data, list(self.overrides), versions, self._device]

    def search(self, bars: Mapping[str, Sequence[float] | None] | None = None) -> Sweep:
        """The same number of rates for each variant, evenly in the logarithm, with one seed.

        That seed is none of the sweep's, so that a rate is not chosen by the runs that it
        is then judged by. The rates nearest to the row's come first.

        Args:
            bars: without them the trials to be run in full, which are all unless the
                search prunes; with them the others, by variant, as `train.stop_below`.
        """
        seed = next(number for number in range(len(self.seeds) + 1) if number not in self.seeds)
        exponents = np.linspace(-1, 1, self.num_rates)
        factors = [self.span**exponent for exponent in sorted(exponents.tolist(), key=abs)]
        rates = {}
        for optimizer in self.optimizers:
            middle = self.rows[optimizer].learning_rate
            rates[optimizer] = [float(f"{middle * factor:.4g}") for factor in factors]
            if len(set(rates[optimizer])) < self.num_rates or max(rates[optimizer]) > MAX_RATE:
                raise InputError(
                    f"--search-rates, --span: {', '.join(map(str, sorted(set(rates[optimizer]))))} "
                    f"for {optimizer}; they must differ, and be at most {MAX_RATE:g}"
                )
        num_first = num_in_full(self.num_rates) if self.prunes else self.num_rates
        chosen = slice(num_first) if bars is None else slice(num_first, None)
        trials = [
            self._trial(
                optimizer, seed, rate, ("rate", f"{rate:g}"), (SEARCH_TARGET,),
                bars.get(optimizer) if bars else None,
            )
            for same_place in zip(*(found[chosen] for found in rates.values()), strict=True)
            for optimizer, rate in zip(rates, same_place, strict=True)
        ]  # fmt: skip
        return self._sweep(trials, is_search=True)

    def sweep(self, rates: Mapping[str, float] | None = None, shard: Shard | None = None) -> Sweep:
        """Every variant with every seed.

        Args:
            rates: by variant, in place of the row's.
            shard: which part of them; by default all.

        Raises:
            InputError: there are more parts than experiments.
        """
        trials = self._trials(rates or {})
        if shard is not None:
            trials = shard.take(trials, len(self.optimizers))
        return self._sweep(trials, is_search=False, shard=shard)

    def _sweep(
        self, trials: Sequence[Trial], *, is_search: bool, shard: Shard | None = None
    ) -> Sweep:
        return Sweep(
            name=self.name,
            trials=tuple(trials),
            data_overrides=self.overrides,
            is_search=is_search,
            shard=shard,
        )

    def _trials(self, rates: Mapping[str, float]) -> Sequence[Trial]:
        # Seed by seed, so that an unfinished sweep has as many of each variant.
        return [
            self._trial(optimizer, seed, rates.get(optimizer), (str(seed),), ())
            for seed in self.seeds
            for optimizer in self.optimizers
        ]

    def _trial(
        self,
        optimizer: str,
        seed: int,
        rate: float | None,
        parts: tuple[str, ...],
        targets: tuple[str, ...],
        bars: Sequence[float] | None = None,
    ) -> Trial:
        overrides = [*self.overrides, f"optimizer={optimizer}", f"seed={seed}"]
        if rate is not None:
            overrides.append(f"optimizers.{optimizer}.learning_rate={rate!r}")
        if bars is not None:
            overrides.append(f"train.stop_below=[{','.join(map(repr, bars))}]")
        row = asdict(self.rows[optimizer])
        digest = _digest([*self._shared, row, optimizer, seed, rate, targets, bars])
        name = "-".join([optimizer, *parts, digest])
        return Trial(
            # Git allows no dot before "lock" or at an end, and DVC no "+" of an exponent.
            name=name.replace(".", "_").replace("+", ""),
            optimizer=optimizer,
            seed=seed,
            rate=rate,
            overrides=tuple(overrides),
            targets=targets,
        )


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
