"""The training loop: mixed precision, accumulation.

Nothing in a step waits for the device, but for fp16, whose loss scale must be looked at, and
for hidden words in models that pad (`models/masked.py`).
"""

import copy
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from distiltune.batching import (
    Tokens,
    bucketed_batches,
    epoch_order,
    lengths_of,
    random_batches,
)
from distiltune.config import EngineConfig
from distiltune.optimizers import build_optimizer, build_schedule
from distiltune.replicas import ALONE, Replicas
from distiltune.runtime import Runtime
from distiltune.training.averaging import EvaluatedWeights
from distiltune.training.costs import EnergyMeter, OptimizerClock, optimizer_state_bytes
from distiltune.training.history import EpochRecord, History, Recorder, Reporter
from distiltune.training.objective import Classification, Objective
from distiltune.training.passes import Passes
from distiltune.training.resume import (
    ResumePoints,
    random_state,
    set_random_state,
)
from distiltune.training.stopping import StopRequest
from distiltune.training.window import Window, WindowStep


def train_native(
    config: EngineConfig,
    model: PreTrainedModel,
    train: Tokens,
    validation: Tokens,
    runtime: Runtime,
    reporters: Sequence[Reporter],
    points: ResumePoints | None = None,
    replicas: Replicas = ALONE,
    objective: Objective | None = None,
) -> History:
    """Train the model in place and return the records of the run.

    The loss of a step is the mean over its targets, accumulated batches together. The
    training accuracy is the running one: of each batch before its update. Validation
    follows each epoch; with `keep: best` the model ends as it was after the best. An epoch
    that no accuracy so far comes up to (`train.stop_below`) is the last.

    Args:
        config: batch size, epochs, optimizer, clipping, and so on.
        model: on the runtime's device, in training mode.
        train: the training split.
        validation: the validation split.
        runtime: device and precision; fp16 scales the loss (Micikevicius et al. 2018).
        reporters: are told of steps and epochs.
        points: where states are saved; a state that is found there is gone on from.
        replicas: the processes that train the same model, each with a share of every batch;
            but for rounding and dropout the result is that of one process.
        objective: what is minimised; `None` is the classification of reviews.

    Raises:
        InputError: the warm-up is longer than the training, or the loss is no number.
        LostProcessError: another process has ended.
        KeyboardInterrupt: on SIGINT, after the state was saved.
        SystemExit: the same on SIGTERM.
    """
    if objective is None:
        objective = Classification(config, model, train, validation, runtime, replicas)
    loop = _Loop(config, model, train, objective, runtime, reporters, points, replicas)
    if points is not None and points.found is not None:
        loop.load_state(points.found)
        print(f"going on from step {loop.step} of {loop.num_steps}", flush=True)
    with loop.stop.noted():
        history = loop.recorder.history
        while loop.place.epoch <= config.epochs and not history.is_hopeless(config.stop_below):
            loop.run_epoch()
        loop.save_if_due()
        loop.end_if_asked(replicas.finish())
    loop.weights.apply()
    if loop.best_weights is not None:
        model.load_state_dict(loop.best_weights)
    averages = loop.weights.num_bytes
    history.optimizer_state_bytes = optimizer_state_bytes(loop.optimizer) + averages
    history.energy_joules = loop.energy_joules()
    return history


@dataclass(kw_only=True)
class _Place:
    """How far a training is."""

    epoch: int = 1
    num_batches: int = 0  # of the epoch, done
    seconds: float = 0.0  # that they took
    sums: torch.Tensor  # of the epoch: loss, right answers


class _Loop:
    """The state of one training run."""

    def __init__(
        self,
        config: EngineConfig,
        model: PreTrainedModel,
        train: Tokens,
        objective: Objective,
        runtime: Runtime,
        reporters: Sequence[Reporter],
        points: ResumePoints | None,
        replicas: Replicas,
    ) -> None:
        self.config = config
        self.model = model
        self.train = train
        self.objective = objective
        self.runtime = runtime
        self.recorder = Recorder(reporters)
        self.num_steps = config.num_steps(train.num_reviews)
        self.optimizer = build_optimizer(
            model, config.optimizer_row, config.learning_rate, fused=config.speed.fused_optimizer
        )
        self.schedule = build_schedule(self.optimizer, config.optimizer_row, self.num_steps)
        self.weights = EvaluatedWeights(model, config.optimizer_row, self.optimizer, self.num_steps)
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.clock = OptimizerClock(runtime.device)
        self.replicas = replicas
        self.passes = Passes(config, model, train, runtime, objective, replicas)
        self.scaler = self.passes.scaler
        self.step = 0
        self.window = Window()
        self.place = _Place(sums=torch.zeros(2, device=runtime.device))
        self.points = points
        self.stop = StopRequest()
        self.energy = EnergyMeter(runtime.device)
        # The others' GPUs are not measured.
        self.energy_before: float | None = 0.0 if replicas.num == 1 else None

    def run_epoch(self) -> None:
        """What is left of one pass over the training split, then validation."""
        place, epoch = self.place, self.place.epoch
        began = time.perf_counter() - place.seconds
        selections = self._selections(epoch)
        self.objective.begin_epoch(epoch)
        group_size = self.config.train.gradient_accumulation_steps
        self.model.train()
        for first in range(place.num_batches, len(selections), group_size):
            group = selections[first : first + group_size]
            self.replicas.seed_step(self.config.seed, self.step)
            sums = self.passes.run(group)
            place.sums += sums
            rows = torch.cat(group)
            place.num_batches = first + len(group)
            step = WindowStep(
                loss_sum=sums[0],
                learning_rate=max(map(float, self.schedule.get_last_lr())),
                epoch=epoch,
                batch=place.num_batches,
            )
            self.window.add(
                step,
                num_targets=self.objective.count_targets(rows),
                num_examples=len(rows),
                num_tokens=int(lengths_of(self.train, rows).sum()),
            )
            self._update(epoch - 1 + place.num_batches / len(selections))
            place.seconds = time.perf_counter() - began
            self.save_if_due()
        train_loss, train_right = place.sums.tolist()
        trained = time.perf_counter()
        place.seconds = trained - began
        try:
            with self._stopping_while_validating(), self.weights.applied():
                validation = self.objective.validate()
        except (KeyboardInterrupt, SystemExit):
            self._save_before_the_end()
            raise
        self._keep(epoch, validation.accuracy, validation.predictions)
        num_targets = self.objective.count_targets(torch.arange(self.train.num_reviews))
        record = EpochRecord(
            epoch=epoch,
            step=self.step,
            train_loss=train_loss / num_targets,
            train_accuracy=train_right / num_targets,
            validation_loss=validation.loss,
            validation_accuracy=validation.accuracy,
            train_seconds=place.seconds,
            validation_seconds=time.perf_counter() - trained,
        )
        self.recorder.on_epoch(record)
        self.place = _Place(epoch=epoch + 1, sums=torch.zeros_like(place.sums))
        self.window.leave_out(time.perf_counter() - trained)

    def _stopping_while_validating(self) -> AbstractContextManager[None]:
        # Nothing is changed there that is not put back, so a stop need not wait; but several
        # processes stop together, after a step.
        return self.stop.immediate() if self.replicas.num == 1 else nullcontext()

    def state(self) -> dict[str, Any]:
        """All that the rest of the training follows from."""
        return {
            "step": self.step,
            "place": vars(self.place),
            "window": self.window.state(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averages": self.weights.state(),
            "best_weights": self.best_weights,
            "max_tokens": self.passes.max_tokens,
            "history": asdict(self.recorder.history),
            "random": random_state(),
            "energy_joules": self.energy_joules(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, in another process."""
        device = self.runtime.device
        self.step = state["step"]
        self.place = _Place(**{**state["place"], "sums": state["place"]["sums"].to(device)})
        self.window.load_state(state["window"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.weights.load_state(state["averages"])
        self.best_weights = state["best_weights"]
        self.passes.max_tokens = state["max_tokens"]
        self.recorder.history = History.from_state(state["history"])
        self.energy_before = state["energy_joules"]
        set_random_state(state["random"])

    def energy_joules(self) -> float | None:
        """Of all attempts together, where each of them knew."""
        here = self.energy.joules()
        return None if here is None or self.energy_before is None else self.energy_before + here

    def save_if_due(self) -> None:
        """Save the state if it is time for it, or if the process is asked to end.

        Raises:
            InputError: the loss is no number, so the state is worth nothing.
            KeyboardInterrupt: on SIGINT.
            SystemExit: on SIGTERM.
        """
        self.end_if_asked(self.replicas.agree(self.stop.number))
        if self.points is not None and self.points.is_due(self.step):
            began = time.perf_counter()
            self._losses()
            self.points.save(self.step, self.state())
            self.window.leave_out(time.perf_counter() - began)

    def end_if_asked(self, number: int | None) -> None:
        """Save the state and end, by a signal that this process or another one was sent.

        Raises:
            KeyboardInterrupt: it was SIGINT.
            SystemExit: it was SIGTERM.
        """
        if number is not None:
            self.stop.number = number
            self._save_before_the_end()
            self.stop.check()

    def _save_before_the_end(self) -> None:
        if self.points is None or not self.points.is_enabled:
            return
        self._losses()
        self.points.save(self.step, self.state())
        if self.points.wait():
            print(
                f"stopped at step {self.step} of {self.num_steps}; "
                "the same command goes on from there",
                file=sys.stderr,
                flush=True,
            )

    def _keep(self, epoch: int, accuracy: float, predictions: list[int]) -> None:
        keeps_best = self.config.train.keep == "best"
        is_best = self.recorder.history.keep(epoch, accuracy, predictions, best=keeps_best)
        if is_best and keeps_best:
            with self.weights.applied():
                self.best_weights = copy.deepcopy(self.model.state_dict())

    def _selections(self, epoch: int) -> list[torch.Tensor]:
        order = epoch_order(self.train.num_reviews, self.config.seed, epoch)
        if self.config.model_row.training.batch_order == "bucketed":
            return bucketed_batches(
                order, self.train.lengths, self.config.batch_size, self.config.seed, epoch
            )
        return random_batches(order, self.config.batch_size)

    def _update(self, epoch: float) -> None:
        """One optimizer step; a record of the last ones where it is time for it."""
        clip = self.config.max_gradient_norm
        is_logged = (self.step + 1) % self.config.train.log_every_steps == 0 or (
            self.step + 1 == self.num_steps
        )
        norm = None
        if clip is not None or is_logged:
            self.scaler.unscale_(self.optimizer)
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), clip, norm)
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        self.clock.start()
        self.scaler.step(self.optimizer)
        self.step += 1
        self.weights.update(self.step)
        self.clock.stop()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # A step whose fp16 gradients overflowed was left out; its rate is used again.
        if not self.scaler.is_enabled() or self.scaler.get_scale() >= scale:
            self.schedule.step()
        self.recorder.on_update(self.step)
        if is_logged:
            losses = self._losses()
            record = self.window.close(
                losses,
                step=self.step,
                epoch=epoch,
                norm=norm,
                optimizer_seconds=self.clock.mean_seconds,
            )
            self.recorder.on_step(record)

    def _losses(self) -> list[float]:
        return self.window.read(self.step, f"lower {self.config.optimizer_path}.learning_rate")
