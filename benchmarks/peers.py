"""What people use otherwise: the lecture's hand-written loop, and the Hugging Face Trainer.

Each does what its users would write, on the same reviews and weights.
"""

import tempfile
import time
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from distiltune.batching import Tokens
from distiltune.runtime import Runtime

LEARNING_RATE = 5e-5
PADDED_LENGTH = 512


class PaddedReviews(Dataset[dict[str, torch.Tensor]]):
    """All padded to one length beforehand, as the notebooks' tokenizer call does."""

    def __init__(self, tokens: Tokens) -> None:
        self.labels = tokens.labels
        self.ids = torch.zeros(tokens.num_reviews, PADDED_LENGTH, dtype=torch.int64)
        self.mask = torch.zeros_like(self.ids)
        for i, length in enumerate(tokens.lengths.tolist()):
            start = int(tokens.offsets[i])
            self.ids[i, :length] = tokens.ids[start : start + length]
            self.mask[i, :length] = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.ids[i],
            "attention_mask": self.mask[i],
            "labels": self.labels[i],
        }


def notebook_epoch(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    tokens: Tokens,
    batch_size: int,
    runtime: Runtime,
) -> float:
    """One epoch of the loop, in fp32; its seconds, without the preparation."""
    loader = DataLoader(PaddedReviews(tokens), batch_size=batch_size, shuffle=True)
    model.train()
    synchronize(runtime)
    started = time.perf_counter()
    for batch in loader:
        ids = batch["input_ids"].to(runtime.device)
        mask = batch["attention_mask"].to(runtime.device)
        labels = batch["labels"].to(runtime.device)
        loss = model(ids, attention_mask=mask, labels=labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    synchronize(runtime)
    return time.perf_counter() - started


def notebook_accuracy(
    model: PreTrainedModel, tokens: Tokens, batch_size: int, runtime: Runtime
) -> float:
    """The seconds of the notebooks' `compute_accuracy`."""
    loader = DataLoader(PaddedReviews(tokens), batch_size=batch_size)
    model.eval()
    synchronize(runtime)
    started = time.perf_counter()
    num_right, num_examples = 0, 0
    with torch.no_grad():
        for batch in loader:
            ids = batch["input_ids"].to(runtime.device)
            mask = batch["attention_mask"].to(runtime.device)
            labels = batch["labels"].to(runtime.device)
            predicted = torch.argmax(model(ids, attention_mask=mask)["logits"], 1)
            num_examples += labels.size(0)
            num_right += int((predicted == labels).sum())
    assert num_examples == tokens.num_reviews
    return time.perf_counter() - started


class _Reviews(Dataset[dict[str, Any]]):
    """Unpadded, with lengths, for the Trainer's grouping."""

    column_names = ("input_ids", "labels", "length")

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.reviews = [part.long() for part in tokens.ids.split(tokens.lengths.tolist())]

    def __len__(self) -> int:
        return len(self.reviews)

    def __getitem__(self, i: Any) -> Any:
        if i == "length":
            return self.tokens.lengths.tolist()
        return {"input_ids": self.reviews[i], "labels": self.tokens.labels[i]}


def _collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    ids = [example["input_ids"] for example in examples]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    lengths = torch.tensor([len(review) for review in ids])
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    labels = torch.stack([example["labels"] for example in examples])
    return {"input_ids": padded, "attention_mask": mask, "labels": labels}


class _Clock(TrainerCallback):
    """The seconds of each epoch; the device has finished at both ends."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.seconds: list[float] = []
        self.started = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        synchronize(self.runtime)
        self.started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        synchronize(self.runtime)
        self.seconds.append(time.perf_counter() - self.started)


def trainer_epochs(
    model: PreTrainedModel,
    tokens: Tokens,
    batch_size: int,
    runtime: Runtime,
    num_epochs: int,
    *,
    at_its_best: bool,
    are_grouped: bool = False,
    compiled: bool = False,
) -> list[float]:
    """The seconds of whole epochs of the Trainer.

    `at_its_best` is half precision, batches grouped by length and padded to their
    longest, and a fused optimizer; otherwise it is what the notebooks set: fp32, padded
    to 512, the plain optimizer. Grouping puts the longest batch first, so nothing less
    than an epoch can be timed. With `are_grouped` the reviews stand in groups already.
    """
    clock = _Clock(runtime)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=num_epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            weight_decay=0.01,
            bf16=at_its_best and runtime.precision == "bf16",
            fp16=at_its_best and runtime.precision == "fp16",
            optim="adamw_torch_fused" if at_its_best else "adamw_torch",
            train_sampling_strategy=(
                "sequential" if are_grouped else "group_by_length" if at_its_best else "random"
            ),
            torch_compile=compiled,
            use_cpu=runtime.device.type == "cpu",
            # What costs time and changes nothing here: a look at each loss, and clipping.
            logging_nan_inf_filter=not at_its_best,
            max_grad_norm=0.0 if at_its_best else 1.0,
            dataloader_num_workers=2 if at_its_best and runtime.device.type == "cuda" else 0,
            logging_steps=10**9,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=runtime.device.type == "cuda",
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_Reviews(tokens) if at_its_best else PaddedReviews(tokens),
            data_collator=_collate if at_its_best else None,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)  # its summary would stand between the figures
        trainer.train()
    return clock.seconds


def synchronize(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


def matrix_peak(runtime: Runtime, size: int = 4096) -> float:
    """Operations per second of a square product in the runtime's precision: the best of 5."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    a, b = (
        functional.normalize(torch.randn(size, size)).to(runtime.device, dtype[runtime.precision])
        for _ in range(2)
    )
    repeats = 20 if runtime.device.type == "cuda" else 1
    best = float("inf")
    for attempt in range(6):
        synchronize(runtime)
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        synchronize(runtime)
        if attempt:  # the first warms up
            best = min(best, (time.perf_counter() - started) / repeats)
    return 2.0 * size**3 / best
