"""What a training run did, by step and by epoch, and how it is shown while it runs."""

import csv
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from distiltune.artifacts import ANSWERS_FILE, write_csv

SECONDS_BETWEEN_LINES = 5.0
STEPS_FILE, EPOCHS_FILE = "steps.csv", "epochs.csv"
ADAPTATION_PREFIX = "adapt_"


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The steps since the record before: mean loss, speed, seconds of an optimizer step.

    Rate and norm are those of the last.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float | None
    tokens_per_second: float | None
    examples_per_second: float | None
    optimizer_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch: the running training figures, then validation; seconds of each."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float | None
    validation_loss: float
    validation_accuracy: float
    train_seconds: float
    validation_seconds: float


class Reporter(Protocol):
    """Is told of the training as it goes on."""

    def on_update(self, step: int) -> None: ...

    def on_step(self, record: StepRecord) -> None: ...

    def on_epoch(self, record: EpochRecord) -> None: ...


@dataclass(kw_only=True)
class History:
    """All the records of a run."""

    steps: list[StepRecord] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    kept_epoch: int = 0
    kept_predictions: list[int] = field(default_factory=list)  # of the validation reviews
    stopped_early: bool = False
    optimizer_state_bytes: int | None = None
    energy_joules: float | None = None

    def is_hopeless(self, bars: Sequence[float] | None) -> bool:
        """Whether no epoch so far came up to the bar of the last one; notes it.

        Args:
            bars: `train.stop_below`, a validation accuracy for each epoch.
        """
        if bars is not None and 0 < len(self.epochs) <= len(bars):
            best = max(record.validation_accuracy for record in self.epochs)
            self.stopped_early = best < bars[len(self.epochs) - 1]
        return self.stopped_early

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "History":
        """The history that `dataclasses.asdict` has turned into tables."""
        steps = [StepRecord(**record) for record in state["steps"]]
        epochs = [EpochRecord(**record) for record in state["epochs"]]
        return cls(**{**state, "steps": steps, "epochs": epochs})

    def keep(self, epoch: int, accuracy: float, predictions: list[int], *, best: bool) -> bool:
        """Note which epoch's weights are kept, before its record is added.

        Args:
            epoch: the one that has just ended, from 1.
            accuracy: its validation accuracy.
            predictions: its class for each validation review.
            best: keep the best epoch so far, and not the last.

        Returns:
            Whether it is the best so far.
        """
        is_best = all(accuracy > earlier.validation_accuracy for earlier in self.epochs)
        if is_best:
            self.best_epoch = epoch
        if is_best or not best:
            self.kept_epoch, self.kept_predictions = epoch, predictions
        return is_best

    def write(self, folder: Path, labels: Sequence[int]) -> None:
        """Write `steps.csv`, `epochs.csv` and, with the true classes, `validation.csv`."""
        answers = zip(labels, self.kept_predictions, strict=True)
        write_csv(folder / ANSWERS_FILE, ["label", "predicted"], answers)
        self.write_tables(folder)

    def write_tables(self, folder: Path) -> None:
        """Write `steps.csv` and `epochs.csv`."""
        for name, record_class, records in (
            (STEPS_FILE, StepRecord, self.steps),
            (EPOCHS_FILE, EpochRecord, self.epochs),
        ):
            columns = [column.name for column in fields(record_class)]
            rows = [list(asdict(record).values()) for record in records]
            write_csv(folder / name, columns, rows)

    def summary(self) -> dict[str, Any]:
        """The metrics of the train stage."""
        kept = self.epochs[self.kept_epoch - 1]
        timed = [r.optimizer_seconds for r in self.steps if r.optimizer_seconds is not None]
        # The first steps make the optimizer's state; where there is more, they do not count.
        timed = timed[1:] or timed
        return {
            "train_loss": kept.train_loss,
            "train_accuracy": kept.train_accuracy,
            "validation_loss": kept.validation_loss,
            "validation_accuracy": kept.validation_accuracy,
            "best_epoch": self.best_epoch,
            "kept_epoch": self.kept_epoch,
            "num_epochs": len(self.epochs),
            "stopped_early": self.stopped_early,
            "num_steps": self.epochs[-1].step,
            "train_seconds": sum(record.train_seconds for record in self.epochs),
            "validation_seconds": sum(record.validation_seconds for record in self.epochs),
            "optimizer_seconds_per_step": statistics.mean(timed) if timed else None,
            "optimizer_state_bytes": self.optimizer_state_bytes,
            "energy_joules": self.energy_joules,
        }


def read_metrics(
    folder: Path, prefix: str = ""
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The records that `History.write` wrote, without the cells that are empty.

    Args:
        folder: where they are.
        prefix: of the files' names.
    """
    found = []
    for name in (f"{prefix}{STEPS_FILE}", f"{prefix}{EPOCHS_FILE}"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            found.append([{k: float(v) for k, v in row.items() if v} for row in rows])
    return found[0], found[1]


def copy_adaptation(source: Path, folder: Path) -> None:
    """Put the tables of an adaptation beside those of the training that starts from it."""
    for name in (STEPS_FILE, EPOCHS_FILE):
        shutil.copyfile(source / name, folder / f"{ADAPTATION_PREFIX}{name}")


def adaptation_metrics(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps and figures, as `adapt/...`, of what `copy_adaptation` put there, if anything."""
    if not (folder / f"{ADAPTATION_PREFIX}{STEPS_FILE}").exists():
        return
    for records in read_metrics(folder, ADAPTATION_PREFIX):
        for record in records:
            figures = {f"adapt/{n}": v for n, v in record.items() if n not in ("step", "epoch")}
            yield int(record["step"]), figures


class ConsoleReporter:
    """A progress bar on a terminal; elsewhere plain lines, no more than one in 5 seconds."""

    def __init__(self, num_steps: int, num_epochs: int) -> None:
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self._next_line = 0.0
        self.bar = tqdm(total=num_steps, unit="step", disable=not sys.stderr.isatty(), leave=False)

    def on_update(self, step: int) -> None:
        self.bar.update(step - self.bar.n)

    def on_step(self, record: StepRecord) -> None:
        speed = f"{record.tokens_per_second:,.0f} tokens/s" if record.tokens_per_second else ""
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {record.loss:.4f}, {speed}")
        if not self.bar.disable or time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        print(
            f"step {record.step}/{self.num_steps}  loss {record.loss:.4f}  "
            f"rate {record.learning_rate:.2e}  {speed}",
            flush=True,
        )

    def on_epoch(self, record: EpochRecord) -> None:
        accuracy = record.train_accuracy
        train = "" if accuracy is None else f", accuracy {accuracy:.2%}"
        tqdm.write(
            f"epoch {record.epoch}/{self.num_epochs}: "
            f"training loss {record.train_loss:.4f}{train}; "
            f"validation loss {record.validation_loss:.4f}, "
            f"accuracy {record.validation_accuracy:.2%}  "
            f"({record.train_seconds:.1f} s + {record.validation_seconds:.1f} s)"
        )
        if record.epoch == self.num_epochs:
            self.bar.close()


class Recorder:
    """Keeps the records and passes them on."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.history = History()
        self.reporters = reporters

    def on_update(self, step: int) -> None:
        for reporter in self.reporters:
            reporter.on_update(step)

    def on_step(self, record: StepRecord) -> None:
        self.history.steps.append(record)
        for reporter in self.reporters:
            reporter.on_step(record)

    def on_epoch(self, record: EpochRecord) -> None:
        self.history.epochs.append(record)
        for reporter in self.reporters:
            reporter.on_epoch(record)
