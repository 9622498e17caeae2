"""Whether what was exported computes what transformers does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distiltune import InputError
from distiltune.artifacts import read_batches
from distiltune.exporting.classify import ExportedModel
from distiltune.sample import generate_reviews
from distiltune.trained import TrainedModel

VALIDATION = Path("data/splits/validation.parquet")
NUM_CANDIDATES, NUM_TEXTS, SEED = 512, 12, 0
TOLERANCE = 1e-4  # of a logit


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near the logits are."""

    texts: str  # which they were
    num_texts: int
    shortest_tokens: int
    longest_tokens: int
    largest_difference: float
    allowed: float


def read_texts(root: Path) -> tuple[list[str], str]:
    """Texts from short to longer than any model reads, and what they are.

    Args:
        root: of the project, whose validation reviews are taken if they are there.
    """
    if (root / VALIDATION).is_file():
        batch = next(read_batches(root / VALIDATION, ["text"]))
        texts, kind = batch["text"].to_pylist()[:NUM_CANDIDATES], "validation reviews"
    else:
        generated, _ = generate_reviews(NUM_CANDIDATES, SEED)
        texts, kind = list(generated), "generated reviews"
    by_length = sorted(texts, key=len)
    places = np.linspace(0, len(by_length) - 1, NUM_TEXTS - 1).round().astype(int)
    # In turn from both ends, so that no batch is of one length.
    return [by_length[i] for i in (*places[::2], *places[1::2][::-1])] + [" ".join(texts)], kind


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a model says of texts, each alone and without padding."""

    texts: list[str]
    kind: str  # what they are
    lengths: list[int]  # in tokens
    logits: "np.ndarray[Any, np.dtype[np.float32]]"  # (num_texts, num_labels)


@torch.inference_mode()
def compute_reference(trained: TrainedModel, root: Path) -> Reference:
    """Run a model as transformers has it, on the texts of `read_texts`.

    Raises:
        InputError: its logits are no finite numbers.
    """
    texts, kind = read_texts(root)
    encoded = trained.encoder.encode(texts)
    rows = []
    for one in torch.from_numpy(encoded.ids).long().split(encoded.lengths.tolist()):
        mask = torch.ones_like(one)
        rows.append(trained.model(input_ids=one[None], attention_mask=mask[None]).logits)
    logits = torch.cat(rows).float().numpy()
    if not np.isfinite(logits).all():
        raise InputError(
            f"{trained.folder}: the model's output is no finite number; its weights are damaged, "
            "or its training diverged"
        )
    return Reference(texts=texts, kind=kind, lengths=encoded.lengths.tolist(), logits=logits)


def check_agreement(folder: Path, reference: Reference) -> Agreement:
    """Compare an exported folder, used as its own example does, with the model itself.

    The exported one gets the first text alone and the others as one batch, padded.

    Raises:
        InputError: the logits differ by more than `TOLERANCE`.
    """
    exported, texts = ExportedModel(folder), reference.texts
    found = np.concatenate([exported.logits(texts[:1]), exported.logits(texts[1:])])
    difference = float(np.abs(found - reference.logits).max())
    if not difference <= TOLERANCE:  # nor is NaN
        raise InputError(
            f"the exported model disagrees with transformers: logits of {len(texts)} "
            f"{reference.kind} differ by up to {difference:.2g}, allowed are {TOLERANCE:g}; "
            "nothing was written"
        )
    return Agreement(
        texts=reference.kind,
        num_texts=len(texts),
        shortest_tokens=min(reference.lengths),
        longest_tokens=max(reference.lengths),
        largest_difference=difference,
        allowed=TOLERANCE,
    )
