"""The training loop: mixed precision, accumulation.

Nothing in a step waits for the device, but for fp16, whose loss scale must be looked at.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from distiltune import InputError
from distiltune.batching import (
    Tokens,
    bucketed_batches,
    epoch_order,
    lengths_of,
    random_batches,
)
from distiltune.config import TrainConfig
from distiltune.inference import loss_and_accuracy, predict_logits
from distiltune.optimizers import build_optimizer, build_schedule
from distiltune.runtime import Runtime
from distiltune.training.averaging import EvaluatedWeights
from distiltune.training.costs import EnergyMeter, OptimizerClock, optimizer_state_bytes
from distiltune.training.history import EpochRecord, History, Recorder, Reporter, StepRecord
from distiltune.training.passes import Passes


def train_native(
    config: TrainConfig,
    model: PreTrainedModel,
    train: Tokens,
    validation: Tokens,
    runtime: Runtime,
    reporters: Sequence[Reporter],
) -> History:
    """Train the model in place and return the records of the run.

    The loss of a step is the mean over its reviews, accumulated batches together. The
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

    Raises:
        InputError: the warm-up is longer than the training, or the loss is no number.
    """
    loop = _Loop(config, model, train, validation, runtime, reporters)
    energy = EnergyMeter(runtime.device)
    for epoch in range(1, config.epochs + 1):
        loop.run_epoch(epoch)
        if loop.recorder.history.is_hopeless(config.stop_below):
            break
    loop.weights.apply()
    if loop.best_weights is not None:
        model.load_state_dict(loop.best_weights)
    history = loop.recorder.history
    averages = loop.weights.num_bytes
    history.optimizer_state_bytes = optimizer_state_bytes(loop.optimizer) + averages
    history.energy_joules = energy.joules()
    return history


class _Loop:
    """The state of one training run."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        train: Tokens,
        validation: Tokens,
        runtime: Runtime,
        reporters: Sequence[Reporter],
    ) -> None:
        self.config = config
        self.model = model
        self.train = train
        self.validation = validation
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
        self.passes = Passes(config, model, train, runtime)
        self.scaler = self.passes.scaler
        self.step = 0
        self.window = _Window(runtime.device)

    def run_epoch(self, epoch: int) -> EpochRecord:
        """One pass over the training split, then validation."""
        started = time.perf_counter()
        config, device = self.config, self.runtime.device
        selections = self._selections(epoch)
        group_size = config.train.gradient_accumulation_steps
        epoch_sums = torch.zeros(2, device=device)  # loss, right answers
        self.model.train()
        for first in range(0, len(selections), group_size):
            group = selections[first : first + group_size]
            sums = self.passes.run(group)
            epoch_sums += sums
            rows = torch.cat(group)
            self.window.add(sums[0], len(rows), int(lengths_of(self.train, rows).sum()))
            self._update(epoch - 1 + (first + len(group)) / len(selections))
        train_loss, train_right = epoch_sums.tolist()
        trained = time.perf_counter()
        with self.weights.applied():
            logits = predict_logits(self.model, self.validation, self.runtime, config.speed)
            validation_loss, validation_accuracy = loss_and_accuracy(logits, self.validation.labels)
            self._keep_the_best(epoch, validation_accuracy)
        record = EpochRecord(
            epoch=epoch,
            step=self.step,
            train_loss=train_loss / self.train.num_reviews,
            train_accuracy=train_right / self.train.num_reviews,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            train_seconds=trained - started,
            validation_seconds=time.perf_counter() - trained,
        )
        self.recorder.on_epoch(record)
        self.window.leave_out(time.perf_counter() - trained)
        return record

    def _keep_the_best(self, epoch: int, accuracy: float) -> None:
        history, keep_best = self.recorder.history, self.config.train.keep == "best"
        if all(accuracy > earlier.validation_accuracy for earlier in history.epochs):
            history.best_epoch = epoch
            if keep_best:
                self.best_weights = copy.deepcopy(self.model.state_dict())
        history.kept_epoch = history.best_epoch if keep_best else epoch

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
        learning_rate = max(map(float, self.schedule.get_last_lr()))
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
            record = self.window.close(
                step=self.step,
                epoch=epoch,
                learning_rate=learning_rate,
                norm=norm,
                optimizer_seconds=self.clock.mean_seconds,
            )
            if not math.isfinite(record.loss):
                raise InputError(
                    f"the loss is {record.loss} at step {self.step}, epoch {epoch:.2f}, "
                    f"learning rate {learning_rate:g}; "
                    f"lower optimizers.{self.config.optimizer}.learning_rate"
                )
            self.recorder.on_step(record)


class _Window:
    """Sums since the last record; reading them is the only time that a step waits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._open()

    def _open(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.num_examples = 0
        self.num_tokens = 0
        self.started = time.perf_counter()

    def add(self, loss_sum: torch.Tensor, num_examples: int, num_tokens: int) -> None:
        self.loss_sum += loss_sum
        self.num_examples += num_examples
        self.num_tokens += num_tokens

    def leave_out(self, seconds: float) -> None:
        """Do not count a time in which nothing was trained."""
        self.started += seconds

    def close(
        self,
        *,
        step: int,
        epoch: float,
        learning_rate: float,
        norm: torch.Tensor | None,
        optimizer_seconds: Callable[[], float | None],
    ) -> StepRecord:
        loss = self.loss_sum.item() / self.num_examples  # waits for the device
        seconds = time.perf_counter() - self.started
        record = StepRecord(
            step=step,
            epoch=epoch,
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=None if norm is None else norm.item(),
            tokens_per_second=self.num_tokens / seconds,
            examples_per_second=self.num_examples / seconds,
            optimizer_seconds=optimizer_seconds(),
        )
        self._open()
        return record
