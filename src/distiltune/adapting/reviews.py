"""The reviews that the adaptation learns from: no text that stands in the test split is one."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from distiltune.artifacts import read_batches
from distiltune.batching import Tokens, gather, read_tokens
from distiltune.encoding import Encoder, load_tokenizer

WORD = re.compile(r"\w+")
LINE_BREAK = "<br />"


@dataclass(frozen=True, kw_only=True)
class AdaptationReviews:
    """What to learn from, and how it came about."""

    train: Tokens  # of the training split, then the unlabelled; labels are all 0
    validation: Tokens
    counts: dict[str, int]


def read_adaptation_reviews(
    tokens: Path, splits: Path, unlabelled: Path | None, tokenizer: Path
) -> AdaptationReviews:
    """Put the reviews together.

    Training reviews that also stand in the test split are left out, and unlabelled ones
    that stand there or in the validation split; two texts count as the same if their words
    are. So are reviews of which the tokenizer knows no word.

    Args:
        tokens: the folder with the token files.
        splits: the folder with the tables that those were made of.
        unlabelled: a table with the column `text`; `None` takes none.
        tokenizer: the tokenizer's folder, for these.

    Raises:
        InputError: a file is damaged.
    """
    test = set(_digests(_texts(splits / "test.parquet")))
    train = read_tokens(tokens / "train.safetensors")
    is_kept = torch.tensor(
        [digest not in test for digest in _digests(_texts(splits / "train.parquet"))]
    )
    kept = gather(train, is_kept.nonzero().flatten())
    ids, lengths = [kept.ids.int()], [torch.tensor(kept.lengths)]
    known = test | set(_digests(_texts(splits / "validation.parquet")))
    num_unlabelled = num_known = 0
    encoder = Encoder(load_tokenizer(tokenizer), train.max_length, train.truncation)
    for texts in _text_batches(unlabelled) if unlabelled else ():
        new = [t for t, d in zip(texts, _digests(texts), strict=True) if d not in known]
        num_unlabelled += len(new)
        num_known += len(texts) - len(new)
        if new:
            encoded = encoder.encode(new)
            ids.append(torch.from_numpy(encoded.ids))
            lengths.append(torch.from_numpy(encoded.lengths))
    all_lengths = torch.cat(lengths)
    reviews = replace(
        train,
        ids=torch.cat(ids),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), all_lengths.cumsum(0)]),
        labels=torch.zeros(len(all_lengths), dtype=torch.int64),
    )
    counts = {
        "num_train_reviews": len(kept.lengths),
        "num_train_reviews_in_test": train.num_reviews - len(kept.lengths),
        "num_unlabelled_reviews": num_unlabelled,
        "num_unlabelled_reviews_known": num_known,
    }
    validation = read_tokens(tokens / "validation.safetensors")
    return AdaptationReviews(train=reviews, validation=validation, counts=counts)


def with_words(tokens: Tokens, num_words: torch.Tensor) -> Tokens:
    """The reviews that have a word, since in others nothing can be hidden.

    Args:
        tokens: the reviews.
        num_words: (num_reviews,).
    """
    kept = gather(tokens, (num_words > 0).nonzero().flatten())
    return replace(tokens, ids=kept.ids.int(), offsets=kept.offsets, labels=kept.labels)


def _texts(table: Path) -> Iterator[str]:
    for texts in _text_batches(table):
        yield from texts


def _text_batches(table: Path) -> Iterator[list[str]]:
    for batch in read_batches(table, ["text"]):
        yield batch["text"].to_pylist()


def _digests(texts: Iterable[str]) -> Iterator[bytes]:
    """Equal for texts of the same words, whatever their case, spaces and punctuation."""
    for text in texts:
        words = " ".join(WORD.findall(text.replace(LINE_BREAK, " ").casefold()))
        # Two different texts in a million have the same 64 bits with a chance of 3e-8.
        yield hashlib.blake2b(words.encode(), digest_size=8).digest()
