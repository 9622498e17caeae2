"""What a training minimises, and how it is validated: the loss of a pass is computed here alone."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from distiltune.batching import Batch, Tokens, gather
from distiltune.config import EngineConfig
from distiltune.inference import loss_and_accuracy, predict_logits
from distiltune.models import compute_logits
from distiltune.replicas import ALONE, Replicas
from distiltune.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Of the validation split: mean loss, share of right answers, class of each review."""

    loss: float
    accuracy: float
    predictions: list[int]


class Objective(Protocol):
    """What the engine asks of a task. A target is what has a loss of its own, as a review."""

    can_be_recorded: bool  # as a CUDA graph: its shapes follow from those of ids and offsets

    def begin_epoch(self, epoch: int) -> None:
        """Choose what is drawn anew in each epoch, from 1."""

    def count_targets(self, rows: torch.Tensor) -> int:
        """How many targets some reviews have; the loss of a step is the mean over them."""

    def gather(self, rows: torch.Tensor) -> Batch:
        """Some reviews with their targets, on the host."""

    def compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the losses, with a gradient, and number of right answers; on the device."""

    def validate(self) -> Validation:
        """The model, as it is, on the validation split."""


class Classification:
    """Cross entropy of the reviews' classes, if asked for with label smoothing or R-Drop.

    Both hold for training alone: validation is plain cross entropy.
    """

    can_be_recorded = True

    def __init__(
        self,
        config: EngineConfig,
        model: PreTrainedModel,
        train: Tokens,
        validation: Tokens,
        runtime: Runtime,
        replicas: Replicas = ALONE,
    ) -> None:
        """Compute nothing yet.

        Args:
            config: `train.label_smoothing`, `train.r_drop`, and the shortcuts.
            model: on the runtime's device.
            train: the training split.
            validation: the validation split.
            runtime: device and precision.
            replicas: share the validation.
        """
        self.config = config
        self.model = model
        self.train = train
        self.validation = validation
        self.runtime = runtime
        self.replicas = replicas

    def begin_epoch(self, epoch: int) -> None:
        """Nothing is drawn but dropout."""

    def count_targets(self, rows: torch.Tensor) -> int:
        return len(rows)

    def gather(self, rows: torch.Tensor) -> Batch:
        return gather(self.train, rows)

    def compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Objective`; with R-Drop the answers are those of the first pass."""
        smoothing, r_drop = self.config.train.label_smoothing, self.config.train.r_drop
        logits = self._logits(batch)
        loss = smoothed_cross_entropy(logits, batch.labels, smoothing)
        if r_drop > 0.0:
            again = self._logits(batch)
            other = smoothed_cross_entropy(again, batch.labels, smoothing)
            loss = (loss + other) / 2 + r_drop * symmetric_divergence(logits, again)
        return loss, (logits.detach().argmax(1) == batch.labels).sum()

    def validate(self) -> Validation:
        logits = predict_logits(
            self.model,
            self.validation,
            self.runtime,
            self.config.speed,
            replicas=self.replicas,
        )
        loss, accuracy = loss_and_accuracy(logits, self.validation.labels)
        return Validation(loss=loss, accuracy=accuracy, predictions=logits.argmax(1).tolist())

    def _logits(self, batch: Batch) -> torch.Tensor:
        with self.runtime.autocast():
            logits = compute_logits(
                self.model, batch.ids, batch.offsets, batch.lengths, self.config.speed
            )
        return logits[: len(batch.labels)].float()  # a filler has no label


def smoothed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """The sum over examples of the cross entropy with smoothed labels (Szegedy et al. 2016).

    The right class has the probability 1 - smoothing + smoothing / num_classes, each other
    one smoothing / num_classes. Without smoothing it is the plain cross entropy.

    Args:
        logits: (num_examples, num_classes).
        labels: (num_examples,), classes.
        smoothing: from 0, below 1.
    """
    return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


def symmetric_divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """R-Drop's term for two passes that differ in dropout (Liang, Wu et al. 2021).

    The sum over examples of the mean of both Kullback-Leibler divergences. As in the
    authors' code it is added to the mean of both cross entropies; their formula adds it
    to the sum, so that its weight is half of the one there.

    Args:
        first: (num_examples, num_classes), logits.
        second: the same of the other pass.
    """
    log_first, log_second = first.log_softmax(1), second.log_softmax(1)
    forward = functional.kl_div(log_second, log_first, reduction="sum", log_target=True)
    backward = functional.kl_div(log_first, log_second, reduction="sum", log_target=True)
    return (forward + backward) / 2
