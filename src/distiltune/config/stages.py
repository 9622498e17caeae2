"""What each stage reads of `params.yaml`.

A field's annotation names the param it comes from, with the active row of a table
written as in `dvc.yaml` (`optimizers.${optimizer}`). So a stage cannot read a param
that DVC does not track for it; a test compares the two. (`check-params` depends on the file.)
"""

import math
import re
import typing
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

from distiltune import InputError
from distiltune.config.schema import (
    AdaptTable,
    CheckpointRow,
    CsvRow,
    Device,
    ImdbRow,
    ModelRow,
    OptimizerRow,
    Params,
    Precision,
    RegistryTable,
    ResumeTable,
    SampleRow,
    SpeedTable,
    SplitRow,
    TokenizerRow,
    TokenizeTable,
    TrackingTable,
    TrainTable,
)


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What the stage `check-params` looks at, the file's own mistakes aside."""

    device: Annotated[Device, "device"]
    precision: Annotated[Precision, "precision"]


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What the stage `watch-csv` reads."""

    dataset: Annotated[str, "dataset"]
    paths: Annotated[tuple[str, ...], "datasets.csv.paths"]


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """What the stage `download` reads."""

    source: Annotated[ImdbRow | SampleRow | CsvRow, "datasets.${dataset}"]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What the stage `download-checkpoint` reads."""

    model: Annotated[str, "model"]
    checkpoint: Annotated[CheckpointRow | None, "models.${model}.checkpoint"]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What the stage `split` reads."""

    dataset: Annotated[str, "dataset"]
    split: Annotated[SplitRow, "splits.${dataset}"]


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """What the stage `tokenize` reads."""

    tokenizer: Annotated[TokenizerRow, "models.${model}.tokenizer"]
    tokenize: Annotated[TokenizeTable, "tokenize"]

    @property
    def max_length(self) -> int:
        chosen = self.tokenize.max_length
        return self.tokenizer.max_length if chosen == "auto" else chosen


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the training loop reads."""

    model: Annotated[str, "model"]
    model_row: Annotated[ModelRow, "models.${model}"]
    optimizer: Annotated[str, "optimizer"]
    optimizer_row: Annotated[OptimizerRow, "optimizers.${optimizer}"]
    seed: Annotated[int, "seed"]
    train: Annotated[TrainTable, "train"]
    speed: Annotated[SpeedTable, "speed"]

    @property
    def optimizer_path(self) -> str:
        """Where the optimizer's row stands in the params."""
        return f"optimizers.{self.optimizer}"

    @property
    def batch_size(self) -> int:
        chosen = self.train.batch_size
        return self.model_row.training.batch_size if chosen == "auto" else chosen

    @property
    def epochs(self) -> int:
        chosen = self.train.epochs
        return self.model_row.training.epochs if chosen == "auto" else chosen

    @property
    def learning_rate(self) -> float:
        """The peak rate: the optimizer row's, times the model row's multiplier."""
        multiplier = self.model_row.training.learning_rate_multiplier
        return self.optimizer_row.learning_rate * multiplier

    @property
    def max_gradient_norm(self) -> float | None:
        """The optimizer row's bound, else the one of all."""
        chosen = self.optimizer_row.max_gradient_norm
        return self.train.max_gradient_norm if chosen is None else chosen

    @property
    def stop_below(self) -> tuple[float, ...] | None:
        """By epoch, the validation accuracy below which there is no next one."""
        bars = self.train.stop_below
        # After the last epoch there is nothing to end.
        return None if bars is None else bars[: self.epochs - 1]

    def num_steps_per_epoch(self, num_examples: int) -> int:
        """Optimizer steps in one epoch over `num_examples` reviews."""
        num_batches = math.ceil(num_examples / self.batch_size)
        return math.ceil(num_batches / self.train.gradient_accumulation_steps)

    def num_steps(self, num_examples: int) -> int:
        """Optimizer steps of the whole training.

        Raises:
            InputError: the warm-up is longer than that.
        """
        num_steps = self.epochs * self.num_steps_per_epoch(num_examples)
        if self.optimizer_row.num_warmup_steps(num_steps) > num_steps:
            raise InputError(
                f"{self.optimizer_path}.warmup_steps: {self.optimizer_row.warmup_steps} is "
                f"longer than the training: {num_examples} reviews in batches of "
                f"{self.batch_size} for {self.epochs} epochs make {num_steps} steps; "
                f"set it to less, as -S {self.optimizer_path}.warmup_steps={num_steps // 10}"
            )
        return num_steps


@dataclass(frozen=True, kw_only=True)
class TrainConfig(EngineConfig):
    """What the stage `train` reads."""

    engine: Annotated[str, "engine"]
    device: Annotated[Device, "device"]
    precision: Annotated[Precision, "precision"]
    resume: Annotated[ResumeTable, "resume"]
    tracking: Annotated[TrackingTable, "tracking"]


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """What the stage `adapt` reads."""

    model: Annotated[str, "model"]
    model_row: Annotated[ModelRow, "models.${model}"]
    adapt: Annotated[AdaptTable, "adapt"]
    device: Annotated[Device, "device"]
    precision: Annotated[Precision, "precision"]
    speed: Annotated[SpeedTable, "speed"]
    resume: Annotated[ResumeTable, "resume"]

    @property
    def training(self) -> EngineConfig:
        """The same in the words of the training loop."""
        table = self.adapt
        return _AdaptEngineConfig(
            model=self.model,
            model_row=self.model_row,
            optimizer=table.optimizer.algorithm,
            optimizer_row=table.optimizer,
            seed=table.seed,
            speed=self.speed,
            train=TrainTable(
                batch_size=table.batch_size,
                epochs=table.epochs,
                gradient_accumulation_steps=1,
                processes=1,
                max_gradient_norm=None,
                keep="last",
                label_smoothing=0.0,
                r_drop=0.0,
                attention_dropout="auto",
                max_tokens_per_pass="auto",  # noqa: S106 (tokens of a text)
                stop_below=None,
                log_every_steps=table.log_every_steps,
            ),
        )


class _AdaptEngineConfig(EngineConfig):
    @property
    def optimizer_path(self) -> str:
        return "adapt.optimizer"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the stage `evaluate` reads."""

    device: Annotated[Device, "device"]
    precision: Annotated[Precision, "precision"]
    speed: Annotated[SpeedTable, "speed"]
    tracking: Annotated[TrackingTable, "tracking"]
    registry: Annotated[RegistryTable, "registry"]


StageConfig = TypeVar(
    "StageConfig",
    CheckConfig,
    WatchConfig,
    DownloadConfig,
    CheckpointConfig,
    SplitConfig,
    TokenizeConfig,
    AdaptConfig,
    TrainConfig,
    EvaluateConfig,
)


def select(config_class: type[StageConfig], params: Params) -> StageConfig:
    """What one stage reads of the validated params."""
    values = {}
    for field in fields(config_class):
        found: Any = params
        for part in _param_path(field.type).split("."):
            if switch := re.fullmatch(r"\$\{(\w+)\}", part):
                part = getattr(params, switch[1])
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        values[field.name] = found
    return config_class(**values)


def tracked_params(config_class: type[StageConfig]) -> set[str]:
    """The params, as `dvc.yaml` writes them, that a stage's config is made of."""
    paths = {_param_path(field.type) for field in fields(config_class)}
    return paths | {switch for path in paths for switch in re.findall(r"\$\{(\w+)\}", path)}


def _param_path(annotation: Any) -> str:
    return str(typing.get_args(annotation)[1])
