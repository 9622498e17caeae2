"""Encodes texts by what stands between spaces, each different chunk once."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import WordPiece

Ids = np.ndarray[Any, np.dtype[np.int32]]
Lengths = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
# Over so many ids of different chunks the memory of them is emptied. Ids and not chunks are
# counted, because a language without spaces has chunks of any length.
MAX_CHUNK_IDS = 1_000_000


class Chunks:
    """Encodes texts by what stands between spaces, each different chunk once.

    Reviews are made of few different chunks, so looking them up takes a fraction of
    normalising and cutting every word anew. Exact where a tokenizer never looks across
    a space (`splits_at_spaces`); the chunks are encoded by the tokenizer itself.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        # What the tokenizer puts before and after the ids of a text.
        inner = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a").ids
        start = whole.index(inner[0])
        self.before = np.array(whole[:start], dtype=np.int32)
        self.after = np.array(whole[start + len(inner) :], dtype=np.int32)
        self._forget()

    def _forget(self) -> None:
        self.numbers: dict[str, int] = {}
        self.ids: Ids = np.empty(0, dtype=np.int32)  # of all chunks, one after the other
        self.ends: Lengths = np.zeros(1, dtype=np.int64)  # of chunk i, in place i + 1

    def encode(self, texts: list[str], max_content: int | None) -> tuple[list[Ids], Flags]:
        """Ids of each text, of its content the first `max_content` alone, and if it has more."""
        chunked = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
        different = chunked.flatten().dictionary_encode()
        # (num_chunks,) of all texts, then where each has its ids.
        numbers = self._numbers(different.dictionary.to_pylist())[different.indices.to_numpy()]
        starts, lengths = self.ends[numbers], self.ends[numbers + 1] - self.ends[numbers]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
        content = self.ids[places]
        bounds = ends[chunked.offsets.to_numpy()]
        rows = []
        for start, end in itertools.pairwise(bounds.tolist()):
            kept = end if max_content is None else min(end, start + max_content)
            rows.append(np.concatenate([self.before, content[start:kept], self.after]))
        sizes = np.diff(bounds)
        is_cut = np.zeros(len(rows), np.bool_) if max_content is None else sizes > max_content
        return rows, is_cut

    def _numbers(self, chunks: list[str]) -> Lengths:
        """The number of each chunk, new ones encoded."""
        if len(self.ids) > MAX_CHUNK_IDS:
            self._forget()
        missing = [chunk for chunk in chunks if chunk not in self.numbers]
        encodings = self.tokenizer.encode_batch_fast(missing, add_special_tokens=False)
        found = [encoding.ids for encoding in encodings]
        self.numbers.update(zip(missing, itertools.count(len(self.numbers))))
        new_ids = np.fromiter(itertools.chain.from_iterable(found), dtype=np.int32)
        new_ends = self.ends[-1] + np.cumsum([len(ids) for ids in found], dtype=np.int64)
        self.ids = np.concatenate([self.ids, new_ids])
        self.ends = np.concatenate([self.ends, new_ends])
        return np.array([self.numbers[chunk] for chunk in chunks], dtype=np.int64)


def splits_at_spaces(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether encoding the parts between spaces is encoding the whole, as with BERT's.

    Its normaliser looks at single characters, its pre-tokenizer drops white space, and
    none of the added tokens reaches across a space.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.model, WordPiece)
        and not any(t.lstrip or t.rstrip or t.single_word or " " in t.content for t in added)
    )
