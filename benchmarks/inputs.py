"""What the benchmarks run on: real token files and reviews, or made-up ones of their lengths."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from distiltune.artifacts import DatasetInfo
from distiltune.batching import Tokens, gather, read_tokens

# Every 20th part of the 35,000 training reviews of IMDb, in DistilBERT's tokens cut at 512.
LENGTH_QUANTILES = (
    11, 83, 120, 146, 157, 166, 176, 187, 200, 215, 231, 250, 273, 300, 336, 376, 430, 502, 512,
    512, 512,
)  # fmt: skip
MAX_LENGTH = 512
MAX_REVIEWS = 1_000_000  # more than that is a slip of the hand
VOCABULARY_SIZE = 30522
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def made_up_tokens(num_reviews: int, seed: int = 0) -> Tokens:
    """Reviews of random ids, in random order, with the lengths of IMDb's."""
    places = (np.arange(num_reviews) + 0.5) / num_reviews * (len(LENGTH_QUANTILES) - 1)
    lengths = np.interp(places, np.arange(len(LENGTH_QUANTILES)), LENGTH_QUANTILES).round()
    generator = np.random.default_rng(seed)
    lengths = generator.permutation(lengths.astype(np.int64))
    return _tokens(generator.integers(1000, VOCABULARY_SIZE, lengths.sum()), lengths, generator)


def grouped_by_length(tokens: Tokens, batch_size: int, num_batches: int) -> Tokens:
    """Batches of similar reviews, evenly spaced over the lengths.

    The Trainer sorts 50 batches of reviews at a time where there are as many. A few
    batches of its own would hold all lengths and be padded more than in a real epoch.
    """
    by_length = tokens.lengths.argsort(descending=True, stable=True)
    batches = by_length.split(batch_size)
    places = (np.arange(num_batches) + 0.5) / num_batches * len(batches)
    rows = torch.cat([batches[int(place)] for place in places])
    batch = gather(tokens, rows)
    return dataclasses.replace(
        tokens, ids=batch.ids.int(), offsets=batch.offsets, labels=batch.labels
    )


def some_of(path: Path, num_reviews: int, seed: int = 0) -> Tokens:
    """Reviews of a token file, drawn at random; all of them if it has no more."""
    tokens = read_tokens(path)
    generator = np.random.default_rng(seed)
    rows = generator.permutation(tokens.num_reviews)[:num_reviews]
    parts = [tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]] for i in rows]
    lengths = np.array([len(part) for part in parts])
    chosen = _tokens(torch.cat(parts).numpy(), lengths, generator)
    chosen.labels.copy_(tokens.labels[torch.from_numpy(rows)])
    return chosen


def _tokens(ids: Any, lengths: Any, generator: np.random.Generator) -> Tokens:
    return Tokens(
        ids=torch.from_numpy(np.asarray(ids, dtype=np.int32)),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        labels=torch.from_numpy(generator.integers(0, 2, len(lengths))),
        info=DatasetInfo(dataset="benchmark", label_names=("negative", "positive")),
        max_length=MAX_LENGTH,
        truncation="head",
    )


def new_distilbert(
    seed: int = 0, attention_dropout: float = 0.1
) -> DistilBertForSequenceClassification:
    """DistilBERT at its real size, with random weights, which take as long as any."""
    torch.manual_seed(seed)
    return DistilBertForSequenceClassification(
        DistilBertConfig(num_labels=2, attention_dropout=attention_dropout)
    )


def matrix_flops(num_tokens: int, sum_of_squares: int) -> float:
    """Operations of a forward and backward pass of the plain model, without padding.

    Shortcuts are not subtracted, so that what they save shows as speed. 42.47 million
    weights are multiplied for each token; the backward pass costs twice the forward one.

    Args:
        num_tokens: of all reviews.
        sum_of_squares: of their lengths, for the attention's products.
    """
    num_layers, dim, feed_forward = 6, 768, 3072
    weights = num_layers * (4 * dim * dim + 2 * dim * feed_forward)
    return 3.0 * (2 * weights * num_tokens + 4 * dim * num_layers * sum_of_squares)


def made_up_reviews(num_reviews: int, seed: int = 0) -> list[str]:
    """Texts of pseudo-words, about as long as IMDb's reviews."""
    generator = np.random.default_rng(seed)
    words = np.array(_words())
    # Zipf's law, as in English.
    ranks = 1.0 / np.arange(1, len(words) + 1)
    lengths = np.exp(generator.normal(5.2, 0.65, num_reviews)).astype(int) + 5
    texts = []
    for length in lengths:
        chosen = words[generator.choice(len(words), length, p=ranks / ranks.sum())]
        sentences = [" ".join(part) for part in np.array_split(chosen, max(1, length // 15))]
        texts.append(". ".join(sentences) + ".")
    return texts


def made_up_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer like DistilBERT's, for `made_up_reviews`."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIAL, ".", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [f"##{a}{b}" for a in letters for b in letters]
    # Rare words are left out, so that they are cut into pieces.
    pieces += _words()[:20_000]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _words() -> list[str]:
    """30,000 of one to three syllables, the short ones first, as frequent words are."""
    generator = random.Random(0)  # noqa: S311 (no secret)
    words: dict[str, None] = {}
    while len(words) < 30_000:
        num_syllables = generator.choice((1, 2, 2, 3, 3))
        syllables = (
            generator.choice("bcdfghjklmnprstvwz") + generator.choice("aeiou")
            for _ in range(num_syllables)
        )
        words.setdefault("".join(syllables) + generator.choice(("", "n", "s", "t", "r", "l")))
    return sorted(words, key=len)
