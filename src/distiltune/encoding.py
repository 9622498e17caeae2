"""Turns reviews into token ids: a checkpoint's tokenizer, or one trained on the data."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer, WordLevelTrainer

from distiltune import InputError
from distiltune.artifacts import TokenWriter, read_batches, read_info, read_json
from distiltune.chunks import Chunks, Flags, Ids, Lengths, splits_at_spaces
from distiltune.config import TokenizerRow

# Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?", keep the first 128
# and the last 382 of 510 tokens; other lengths are divided in the same proportion.
HEAD_TOKENS, ALL_TOKENS = 128, 510
PROBE = "Any words, and one that no vocabulary has: \U0010fffd"
# Their first position is the one after the padding id.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
# How the tokenizer is named to transformers, which makes it loadable by AutoTokenizer.
TOKENIZER_CONFIG = "tokenizer_config.json"


def prepare_tokenizer(
    row: TokenizerRow, max_length: int, checkpoint: Path, train_table: Path, output: Path
) -> tokenizers.Tokenizer:
    """Load the checkpoint's tokenizer or train one, and save it in `output`.

    Args:
        row: the type; `word` splits at spaces and punctuation, `bpe` goes on with
            byte-pair encoding (Sennrich et al. 2016) between two special tokens, both
            in lower case. The same texts always give the same tokenizer, which
            WordPiece's trainer does not.
        max_length: the longest review in tokens, special ones included.
        checkpoint: the folder of `download-checkpoint`.
        train_table: the training split, for types that are trained.
        output: the folder to save it in, as transformers reads it.

    Raises:
        InputError: the checkpoint takes no reviews of that length, or its tokenizer
            cannot be read.
    """
    if row.type == "checkpoint":
        return _load_tokenizer(checkpoint, max_length, output)
    assert row.vocabulary_size is not None
    special = [PAD, UNKNOWN] if row.type == "word" else [PAD, UNKNOWN, START, END]
    trainer: WordLevelTrainer | BpeTrainer
    if row.type == "word":
        tokenizer = tokenizers.Tokenizer(WordLevel(unk_token=UNKNOWN))
        trainer = WordLevelTrainer(
            vocab_size=row.vocabulary_size, special_tokens=special, show_progress=False
        )
    else:
        tokenizer = tokenizers.Tokenizer(BPE(unk_token=UNKNOWN))
        trainer = BpeTrainer(
            vocab_size=row.vocabulary_size, special_tokens=special, show_progress=False
        )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("<br />", " "), normalizers.BertNormalizer(lowercase=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        (text for texts, _ in _batches(train_table) for text in texts), trainer
    )
    if row.type == "bpe":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}",
            special_tokens=[(START, special.index(START)), (END, special.index(END))],
        )
    (output / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
    }
    if row.type == "bpe":
        config |= {"cls_token": START, "sep_token": END}
    (output / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def _load_tokenizer(checkpoint: Path, max_length: int, output: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer

    config = read_json(checkpoint / "config.json")
    longest = config.get("max_position_embeddings")
    if longest is not None and config.get("model_type") in POSITIONS_AFTER_PADDING:
        longest -= config.get("pad_token_id", 1) + 1
    if longest is not None and max_length > longest:
        raise InputError(
            f"tokenize.max_length: {max_length} is more than the checkpoint takes; "
            f"it has {longest} positions"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the checkpoint's tokenizer cannot be read: {reason}") from None
    if not tokenizer.is_fast:
        raise InputError(f"the checkpoint's tokenizer {type(tokenizer).__name__} has no fast form")
    tokenizer.model_max_length = max_length
    try:
        tokenizer.save_pretrained(output)
    # What the library says where the disk is full has no class of its own, but its number.
    except Exception as error:
        if "os error" not in str(error):
            raise
        raise InputError(f"{output}: cannot be written: {error}") from None
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    try:
        backend.encode(PROBE)
    # The library has no narrower one for a vocabulary without a token for what is unknown.
    except Exception as error:
        raise InputError(f"the checkpoint's tokenizer cannot encode a text: {error}") from None
    return backend


def load_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer that `prepare_tokenizer` saved."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Texts as token ids."""

    ids: Ids  # of all texts, one after the other, (num_tokens,)
    lengths: Lengths  # (num_texts,), in tokens, special ones included
    is_cut: Flags  # (num_texts,), whether it was longer than what is kept


class Encoder:
    """Encodes texts, all cores at work, with the truncation that the params name.

    `head` keeps the first tokens; `head_tail` the first quarter and the rest from the
    end (128 and 382 of 510), special tokens besides.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_length: int, truncation: str) -> None:
        tokenizer.no_padding()
        num_special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if truncation == "head":
            tokenizer.enable_truncation(max_length)
        else:
            tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        # Of a longer text, special tokens aside: what is kept, and of it what from the start.
        self.content = max_length - num_special
        self.head_content = self.content
        if truncation == "head_tail":
            self.head_content = self.content * HEAD_TOKENS // ALL_TOKENS
        self.head = self.head_content + num_special // 2
        self.chunks = Chunks(tokenizer) if splits_at_spaces(tokenizer) else None
        unknown = tokenizer.token_to_id(UNKNOWN)
        # Stands for a text of which the tokenizer keeps nothing, as of lone control characters.
        self.nothing = np.array([0 if unknown is None else unknown], dtype=np.int32)

    def encode(self, texts: list[str]) -> Encoded:
        """Encode one text or more."""
        if self.chunks is None:
            encodings = self.tokenizer.encode_batch_fast(texts)
            rows = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
            # The rest of a text is copied for the asking, so only of those that may have one.
            is_cut = np.array(
                [
                    len(ids) == self.max_length and bool(encoding.overflowing)
                    for ids, encoding in zip(rows, encodings, strict=True)
                ]
            )
        else:
            kept = self.content if self.truncation == "head" else None
            rows, is_cut = self.chunks.encode(texts, kept)
        for i, ids in enumerate(rows):
            if len(ids) > self.max_length:
                tail = self.max_length - self.head
                rows[i] = np.concatenate([ids[: self.head], ids[len(ids) - tail :]])
                is_cut[i] = True
            elif not len(ids):
                rows[i] = self.nothing
        lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
        return Encoded(ids=np.concatenate(rows), lengths=lengths, is_cut=is_cut)


def encode_split(encoder: Encoder, table: Path, output: Path) -> dict[str, int]:
    """Encode one split into a token file, in batches.

    Args:
        encoder: tokenizer and truncation.
        table: the split's reviews.
        output: the token file; its metadata names the classes, length and truncation, and
            the sha256 of the texts and labels, whatever tokens they became.

    Returns:
        `num_reviews`, `num_tokens` and `num_cut`, the reviews longer than `max_length`.
    """
    writer = TokenWriter(output)
    counts = {"num_reviews": 0, "num_tokens": 0, "num_cut": 0}
    digest = hashlib.sha256()
    for texts, labels in _batches(table):
        digest.update("\0".join([*texts, ""]).encode())
        encoded = encoder.encode(texts)
        writer.write(encoded.ids, encoded.lengths, np.array(labels, dtype=np.int64))
        counts["num_reviews"] += len(encoded.lengths)
        counts["num_tokens"] += len(encoded.ids)
        counts["num_cut"] += int(encoded.is_cut.sum())
    digest.update(np.concatenate(writer.labels).tobytes())
    info = read_info(table)
    writer.close(
        {
            "dataset": info.dataset,
            "label_names": json.dumps(info.label_names),
            "max_length": str(encoder.max_length),
            "truncation": encoder.truncation,
            "reviews_sha256": digest.hexdigest(),
        }
    )
    return counts


def _batches(table: Path) -> Iterator[tuple[list[str], list[int]]]:
    for batch in read_batches(table, ["text", "label"]):
        yield batch["text"].to_pylist(), batch["label"].to_pylist()
