"""How a model reads a text: its tokens, and which words of the text they are of."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import tokenizers

from distiltune import InputError
from distiltune.encoding import Encoder

# Tokenizers cut at the apostrophe, readers do not.
CONTRACTION = re.compile(r"\w+(?:['’]\w+)+")  # noqa: RUF001 (typographers' apostrophe)


@dataclass(frozen=True, kw_only=True)
class Word:
    """Characters `start` to `end` of a text, and the places of their tokens."""

    start: int
    end: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text as a model reads it.

    ids and is_special have a place for each token, special ones included.
    """

    ids: tuple[int, ...]
    is_special: tuple[bool, ...]
    words: tuple[Word, ...]  # in the text's order, not overlapping
    unread: tuple[int, int] | None  # the characters that truncation took away


def read_text(text: str, encoder: Encoder, tokenizer: tokenizers.Tokenizer) -> Reading:
    """Encode a text as `encoder` does, and find each token in it.

    Args:
        text: not empty.
        encoder: with the truncation of the training.
        tokenizer: the encoder's, without truncation.

    Raises:
        InputError: the tokenizer keeps nothing of the text.
    """
    encoding = tokenizer.encode(text)
    places = [i for i, part in enumerate(encoding.sequence_ids) if part is not None]
    if not places:
        raise InputError(f"the text {text[:40]!r} has nothing that the model's tokenizer reads")
    kept = _kept(len(encoding.ids), places, encoder)
    ids = tuple(encoding.ids[i] for i in kept)
    assert list(ids) == encoder.encode([text]).ids.tolist(), "the model reads other tokens"
    content = set(places)
    spans = encoding.offsets
    words = _join(text, encoding, [(k, i) for k, i in enumerate(kept) if i in content])
    unread = None
    if dropped := sorted(content - set(kept)):
        cut = sum(i < dropped[0] for i in kept)
        # A character of several tokens, of which some are read, counts as read.
        start = max([spans[dropped[0]][0], *(w.end for w in words if w.tokens[0] < cut)])
        end = min([spans[dropped[-1]][1], *(w.start for w in words if w.tokens[0] >= cut)])
        unread = (start, end) if start < end else None
    return Reading(
        ids=ids,
        is_special=tuple(i not in content for i in kept),
        words=words,
        unread=unread,
    )


def visible(text: str) -> str:
    """A text to show: control characters, which could do anything to a terminal, marked."""
    return "".join(
        "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\t\n\r" else c for c in text
    )


def _kept(num_tokens: int, places: list[int], encoder: Encoder) -> list[int]:
    """The tokens that `encoder` keeps; `places` are those of the text itself."""
    if num_tokens <= encoder.max_length:
        return list(range(num_tokens))
    if encoder.truncation == "head_tail":
        tail = encoder.max_length - encoder.head
        return [*range(encoder.head), *range(num_tokens - tail, num_tokens)]
    beyond = set(places[encoder.content :])
    return [i for i in range(num_tokens) if i not in beyond]


def _join(text: str, encoding: Any, kept: list[tuple[int, int]]) -> tuple[Word, ...]:
    """Words of tokens that are neighbours: of one word by the tokenizer, or of a contraction."""
    contraction_at = {
        at: number
        for number, match in enumerate(CONTRACTION.finditer(text))
        for at in range(*match.span())
    }
    words: list[Word] = []
    last = -2
    for place, i in kept:
        start, end = _trimmed(text, *encoding.offsets[i])
        if (
            words
            and last == i - 1
            and (
                encoding.word_ids[i] == encoding.word_ids[last]
                or start < words[-1].end  # bytes of one character
                or start == end
                or contraction_at.get(start, -1) == contraction_at.get(words[-1].end - 1, -2)
            )
        ):
            word = words.pop()
            end, start = max(end, word.end), word.start
            tokens = (*word.tokens, place)
        else:
            tokens = (place,)
        # An accent that stands as a character of its own belongs to the letter before it.
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        words.append(Word(start=start, end=end, tokens=tokens))
        last = i
    return tuple(words)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the space that some tokenizers count as a part of the word behind it."""
    piece = text[start:end]
    if not piece.strip():
        return start, end
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
