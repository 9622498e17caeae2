"""`engine: trainer`: the Hugging Face Trainer on the same tokens, optimizer and schedule.

For comparison. It draws its own data order and pads each batch to its longest review.
"""

import functools
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from distiltune.batching import Tokens
from distiltune.config import TrainConfig
from distiltune.optimizers import build_optimizer, build_schedule
from distiltune.runtime import Runtime
from distiltune.training.costs import EnergyMeter, OptimizerClock, optimizer_state_bytes
from distiltune.training.history import EpochRecord, History, Recorder, Reporter, StepRecord
from distiltune.training.objective import smoothed_cross_entropy


class _Reviews(Dataset[dict[str, torch.Tensor]]):
    """One review at a time, as the Trainer reads them."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens.num_reviews

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        start, end = self.tokens.offsets[i], self.tokens.offsets[i + 1]
        return {"input_ids": self.tokens.ids[start:end], "labels": self.tokens.labels[i]}


class _Collator:
    """Pads to the longest review of the batch, and counts what it gave out."""

    def __init__(self, padding_id: int) -> None:
        self.padding_id = padding_id
        self.reset()

    def reset(self) -> None:
        """Count tokens and examples from here, for their speed."""
        self.num_tokens = self.num_examples = 0
        self.started = time.perf_counter()

    def __call__(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = [example["input_ids"].long() for example in examples]
        lengths = torch.tensor([len(review) for review in ids])
        padded = torch.nn.utils.rnn.pad_sequence(ids, True, self.padding_id)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        labels = torch.stack([example["labels"] for example in examples])
        self.num_tokens += int(lengths.sum())
        self.num_examples += len(examples)
        return {"input_ids": padded, "attention_mask": mask, "labels": labels}


class _Callback(TrainerCallback):
    """Turns the Trainer's logs into records."""

    def __init__(
        self,
        recorder: Recorder,
        collator: _Collator,
        clock: OptimizerClock,
        measure: "_Accuracy",
        config: TrainConfig,
    ) -> None:
        self.recorder = recorder
        self.measure = measure
        self.config = config
        self.collator = collator
        self.clock = clock
        self.epoch_started = 0.0
        self.epoch_ended = 0.0
        self.losses: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.epoch_started = time.perf_counter()
        self.losses = []
        self.collator.reset()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clock.stop()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.recorder.on_update(state.global_step)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.epoch_ended = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.losses.append(logs["loss"])
        seconds = time.perf_counter() - self.collator.started
        self.recorder.on_step(
            StepRecord(
                step=state.global_step,
                epoch=state.epoch or 0.0,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                gradient_norm=logs.get("grad_norm"),
                tokens_per_second=self.collator.num_tokens / seconds,
                examples_per_second=self.collator.num_examples / seconds,
                optimizer_seconds=self.clock.mean_seconds(),
            )
        )
        self.collator.reset()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        assert metrics is not None
        epoch, accuracy = round(state.epoch or 0), metrics["eval_accuracy"]
        self.recorder.history.keep(
            epoch, accuracy, self.measure.predicted, best=self.config.train.keep == "best"
        )
        logged = self.losses or [record.loss for record in self.recorder.history.steps[-1:]]
        self.recorder.on_epoch(
            EpochRecord(
                epoch=epoch,
                step=state.global_step,
                train_loss=float(np.mean(logged)) if logged else float("nan"),
                train_accuracy=None,
                validation_loss=metrics["eval_loss"],
                validation_accuracy=accuracy,
                train_seconds=self.epoch_ended - self.epoch_started,
                validation_seconds=time.perf_counter() - self.epoch_ended,
            )
        )
        if state.global_step < state.max_steps:
            control.should_training_stop |= self.recorder.history.is_hopeless(
                self.config.stop_below
            )


def train_with_trainer(
    config: TrainConfig,
    model: PreTrainedModel,
    train: Tokens,
    validation: Tokens,
    runtime: Runtime,
    reporters: Sequence[Reporter],
) -> History:
    """Train the model in place with `transformers.Trainer`; see `train_native`.

    The Trainer gives no running training accuracy, so that field stays empty; its
    training loss is the mean of the logged ones. It uses one device, as `engine: native`
    does.
    """
    num_steps = config.num_steps(train.num_reviews)
    optimizer = build_optimizer(
        model, config.optimizer_row, config.learning_rate, fused=config.speed.fused_optimizer
    )
    schedule = build_schedule(optimizer, config.optimizer_row, num_steps)
    keep_best = config.train.keep == "best"
    recorder = Recorder(reporters)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.batch_size * 4,
            gradient_accumulation_steps=config.train.gradient_accumulation_steps,
            # Without a bound the Trainer would not tell the norm.
            max_grad_norm=config.max_gradient_norm or 1e30,
            bf16=runtime.precision == "bf16",
            fp16=runtime.precision == "fp16",
            use_cpu=runtime.device.type == "cpu",
            seed=config.seed,
            logging_steps=min(config.train.log_every_steps, num_steps),
            eval_strategy="epoch",
            save_strategy="epoch" if keep_best else "no",
            save_total_limit=1,
            load_best_model_at_end=keep_best,
            metric_for_best_model="accuracy",
            greater_is_better=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=runtime.device.type == "cuda",
        )
        # All GPUs would make the batch as many times as large, and the steps as many fewer.
        assert arguments.device.type == runtime.device.type
        arguments._n_gpu = min(arguments.n_gpu, 1)
        collator = _Collator(model.config.pad_token_id or 0)
        measure = _Accuracy()
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_Reviews(train),
            eval_dataset=_Reviews(validation),
            data_collator=collator,
            compute_loss_func=functools.partial(_mean_loss, smoothing=config.train.label_smoothing),
            optimizers=(optimizer, schedule),
            compute_metrics=measure,
            callbacks=[
                _Callback(recorder, collator, OptimizerClock(runtime.device), measure, config)
            ],
        )
        # Its own log lines would come twice, once from the reporters.
        trainer.remove_callback(PrinterCallback)
        energy = EnergyMeter(runtime.device)
        trainer.train()
    history = recorder.history
    assert trainer.state.global_step == num_steps or history.stopped_early
    history.optimizer_state_bytes = optimizer_state_bytes(optimizer)
    history.energy_joules = energy.joules()
    return history


def _mean_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    smoothing: float,
) -> torch.Tensor:
    """The mean over the reviews of a step, accumulated batches together.

    The models' own loss ignores how many those are, and the Trainer does not divide by it.
    Its `label_smoothing_factor` holds for the validation too, and does nothing beside this.
    """
    num_reviews = len(labels) if num_items_in_batch is None else num_items_in_batch
    is_training = outputs.logits.requires_grad
    smoothing = smoothing if is_training else 0.0
    return smoothed_cross_entropy(outputs.logits.float(), labels, smoothing) / num_reviews


class _Accuracy:
    """The Trainer's metric, which keeps what it was computed of."""

    def __init__(self) -> None:
        self.predicted: list[int] = []

    def __call__(self, prediction: Any) -> dict[str, float]:
        predicted = np.argmax(prediction.predictions, axis=1)
        self.predicted = predicted.tolist()
        return {"accuracy": float((predicted == prediction.label_ids).mean())}
