"""Reads token files, orders reviews by a seed, and cuts batches of concatenated ids."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from distiltune import InputError
from distiltune.artifacts import DIGEST_KEY, WAY_OUT, DatasetInfo, metadata_bytes

# Batches of similar length come from chunks of this many batches.
BATCHES_PER_CHUNK = 50


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One split, mapped from its token file.

    ids (num_tokens,) int32; offsets (num_reviews + 1,) int64; labels (num_reviews,) int64.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    labels: torch.Tensor
    info: DatasetInfo
    max_length: int
    truncation: str
    reviews_sha256: str = ""  # of the texts and labels that it was made of

    @property
    def num_reviews(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> torch.Tensor:
        return self.offsets.diff()

    def digest(self) -> str:
        """The sha256 of ids, offsets and labels."""
        digest = hashlib.sha256()
        for tensor in (self.ids, self.offsets, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Reviews one after the other, unpadded.

    ids (num_tokens,), offsets (num_reviews + 1,) and labels (num_reviews,), all int64 and
    on one device; `lengths` holds the reviews' lengths on the host, so that nobody has to
    wait for the device to know them.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    labels: torch.Tensor
    lengths: list[int]

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device, from pinned memory without waiting for it."""
        if device.type == "cpu":
            return self
        moved = [t.pin_memory().to(device, non_blocking=True) for t in
                 (self.ids, self.offsets, self.labels)]  # fmt: skip
        return Batch(ids=moved[0], offsets=moved[1], labels=moved[2], lengths=self.lengths)


def read_tokens(path: Path) -> Tokens:
    """Map a token file into memory, and check that it holds what was written.

    Raises:
        InputError: the file is damaged or cut off.
    """
    digest = hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("ids", "offsets", "labels")}
            metadata = file.metadata()
        for name in ("ids", "offsets", "labels"):
            digest.update(tensors[name].numpy())
        digest.update(metadata_bytes(metadata))
        if digest.hexdigest() != metadata[DIGEST_KEY]:
            raise ValueError("its content has another sha256")
        label_names = tuple(json.loads(metadata["label_names"]))
        info = DatasetInfo(dataset=metadata["dataset"], label_names=label_names)
        tokens = Tokens(
            **tensors,
            info=info,
            max_length=int(metadata["max_length"]),
            truncation=metadata["truncation"],
            reviews_sha256=metadata["reviews_sha256"],
        )
    except FileNotFoundError:
        raise InputError(f"{path}: No such file; {WAY_OUT}") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no token file, or damaged ({error}); {WAY_OUT}") from None
    return tokens


def epoch_order(num_reviews: int, seed: int, epoch: int) -> torch.Tensor:
    """The reviews' order in one epoch, (num_reviews,): depends on seed and epoch alone."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_reviews))


def random_batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut an order into batches; the last may be smaller."""
    return list(order.split(batch_size))


def bucketed_batches(
    order: torch.Tensor, lengths: torch.Tensor, batch_size: int, seed: int, epoch: int
) -> list[torch.Tensor]:
    """Batches of reviews of similar length, in random order, for models that need padding.

    Chunks of `BATCHES_PER_CHUNK` batches are sorted by length each, so that which
    reviews meet still depends on the order.
    """
    batches: list[torch.Tensor] = []
    for chunk in order.split(batch_size * BATCHES_PER_CHUNK):
        by_length = chunk[lengths[chunk].argsort(stable=True)]
        batches += by_length.split(batch_size)
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(len(batches))
    return [batches[i] for i in shuffled]


def length_sorted_batches(lengths: torch.Tensor, max_tokens: int) -> Iterator[torch.Tensor]:
    """All reviews, longest first, in batches that hold `max_tokens` when padded."""
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end = start + max(1, max_tokens // longest)
        yield order[start:end]
        start = end


def lengths_of(tokens: Tokens, rows: torch.Tensor) -> torch.Tensor:
    """The lengths of some reviews, (len(rows),)."""
    return tokens.offsets[rows + 1] - tokens.offsets[rows]


def divide(rows: torch.Tensor, lengths: torch.Tensor, max_tokens: int) -> list[torch.Tensor]:
    """Cut a batch into parts of at most `max_tokens` each, or of one review.

    Args:
        rows: (num_reviews,), in the order to keep.
        lengths: (num_reviews,), what each review counts for.
        max_tokens: the bound.
    """
    sizes, num_tokens = [0], 0
    for length in lengths.tolist():
        if sizes[-1] and num_tokens + length > max_tokens:
            sizes.append(0)
            num_tokens = 0
        sizes[-1] += 1
        num_tokens += length
    return list(rows.split(sizes))


def add_filler(batch: Batch, multiple: int, max_length: int) -> Batch:
    """Append a review of zeros without a label, so that few numbers of tokens occur.

    Args:
        batch: of reviews of up to `max_length` tokens.
        multiple: what the number of tokens is rounded up to, by 1 to `multiple` tokens.
        max_length: what `lengths` says of every review, as its bound.
    """
    assert multiple <= max_length
    filler = multiple - len(batch.ids) % multiple
    return Batch(
        ids=functional.pad(batch.ids, (0, filler)),
        offsets=torch.cat([batch.offsets, batch.offsets[-1:] + filler]),
        labels=batch.labels,
        lengths=[max_length] * (len(batch.lengths) + 1),
    )


def gather(tokens: Tokens, rows: torch.Tensor) -> Batch:
    """Collect some reviews, by one vectorised index over the mapped ids."""
    starts, lengths = tokens.offsets[rows], lengths_of(tokens, rows)
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    num_tokens = int(offsets[-1])
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=num_tokens)
    ids = tokens.ids[torch.arange(num_tokens) + shift]
    return Batch(
        ids=ids.long(), offsets=offsets, labels=tokens.labels[rows], lengths=lengths.tolist()
    )


def batches(
    tokens: Tokens, selections: Iterable[torch.Tensor], device: torch.device
) -> Iterator[Batch]:
    """Batches on the device. CUDA computes one while the next is gathered here."""
    for rows in selections:
        yield gather(tokens, rows).to(device)
