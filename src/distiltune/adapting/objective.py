"""What the adaptation minimises: the cross entropy of hidden words."""

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from distiltune.adapting.masking import MaskedBatch, Masking
from distiltune.batching import Batch, length_sorted_batches
from distiltune.config import SpeedTable
from distiltune.inference import MAX_TOKENS_PER_BATCH
from distiltune.models.masked import compute_masked_logits
from distiltune.runtime import Runtime
from distiltune.training.objective import Validation

# Validation hides the same tokens after each epoch, and training never these.
VALIDATION_EPOCH = 0


class HiddenWords:
    """Masked-language modelling (Devlin et al. 2019): a target is a hidden token."""

    can_be_recorded = False  # how many are hidden follows from the reviews' lengths

    def __init__(
        self,
        model: PreTrainedModel,
        train: Masking,
        validation: Masking,
        runtime: Runtime,
        speed: SpeedTable,
    ) -> None:
        """Hide nothing yet.

        Args:
            model: with a head over the vocabulary, on the runtime's device.
            train: the reviews to learn from.
            validation: those of the validation split.
            runtime: device and precision.
            speed: which shortcuts to take.
        """
        self.model = model
        self.train = train
        self.validation = validation
        self.runtime = runtime
        self.speed = speed
        self.epoch = 1

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def count_targets(self, rows: torch.Tensor) -> int:
        return int(self.train.num_hidden[rows].sum())

    def gather(self, rows: torch.Tensor) -> MaskedBatch:
        return self.train.gather(rows, self.epoch)

    def compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(batch, MaskedBatch)
        with self.runtime.autocast():
            logits = compute_masked_logits(
                self.model,
                batch.ids,
                batch.offsets,
                batch.lengths,
                batch.places,
                batch.counts,
                self.speed,
            )
        logits = logits.float()  # (num_hidden, vocabulary_size)
        loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
        return loss, (logits.detach().argmax(1) == batch.labels).sum()

    @torch.inference_mode()
    def validate(self) -> Validation:
        """Loss and accuracy of the hidden words; a review has no class here."""
        was_training = self.model.training
        self.model.eval()
        tokens = self.validation.tokens
        sums = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        max_tokens = MAX_TOKENS_PER_BATCH[self.runtime.device.type]
        for rows in length_sorted_batches(tokens.lengths, max_tokens):
            batch = self.validation.gather(rows, VALIDATION_EPOCH).to(self.runtime.device)
            sums += torch.stack(self.compute(batch))
        self.model.train(was_training)
        loss, accuracy = (sums / int(self.validation.num_hidden.sum())).tolist()
        return Validation(loss=loss, accuracy=accuracy, predictions=[])
