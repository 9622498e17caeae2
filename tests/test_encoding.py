"""The tokenize stage: truncation, special tokens, token files, trained tokenizers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import torch
from tokenizers.models import WordLevel, WordPiece
from tokenizers.normalizers import BertNormalizer, Replace
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import BertPreTokenizer, Sequence, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from distiltune import InputError
from distiltune import chunks as chunks_module
from distiltune.artifacts import DatasetInfo, TokenWriter, read_reviews, write_reviews
from distiltune.batching import Tokens, batches, bucketed_batches, epoch_order, gather, read_tokens
from distiltune.config import TokenizerRow
from distiltune.dataset import write_table
from distiltune.encoding import Encoder, encode_split, prepare_tokenizer
from distiltune.imdb import read_imdb
from tests.conftest import IMDB

TEXTS = ["one two three", "a b c d e f g h i j k l", "<br />One, TWO!", "\x00\x01", "two " * 500]
INFO = DatasetInfo(dataset="x", label_names=("no", "yes"))


def number_tokenizer(special: bool = True) -> tokenizers.Tokenizer:
    """Word `n` is id n; 1000 starts and 1001 ends a text."""
    vocabulary = {str(i): i for i in range(1000)} | {"[CLS]": 1000, "[SEP]": 1001, "[UNK]": 1002}
    tokenizer = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1000), ("[SEP]", 1001)]
        )
    return tokenizer


def test_head_keeps_the_first_tokens() -> None:
    encoded = Encoder(number_tokenizer(), 8, "head").encode(
        ["0 1 2", " ".join(map(str, range(20)))]
    )
    assert encoded.lengths.tolist() == [5, 8]
    assert encoded.is_cut.tolist() == [False, True]
    assert encoded.ids.tolist() == [1000, 0, 1, 2, 1001, 1000, 0, 1, 2, 3, 4, 5, 1001]


def test_head_tail_keeps_128_and_382_of_510() -> None:
    text = " ".join(map(str, range(900)))
    encoded = Encoder(number_tokenizer(), 512, "head_tail").encode([text, "5 6"])
    assert encoded.lengths.tolist() == [512, 4]
    assert encoded.is_cut.tolist() == [True, False]
    assert encoded.ids[:512].tolist() == [1000, *range(128), *range(900 - 382, 900), 1001]
    assert encoded.ids[512:].tolist() == [1000, 5, 6, 1001]


def test_head_tail_without_special_tokens() -> None:
    text = " ".join(map(str, range(100)))
    ids = Encoder(number_tokenizer(special=False), 51, "head_tail").encode([text]).ids
    assert ids.tolist() == [*range(12), *range(100 - 39, 100)]


HARD_TEXTS = [
    "The film,  the FILM... the film!",
    "",
    " ",
    "tabs\tand\nlines\r\nand\x0bothers\x0c.",
    "no\x1cspace\x1dfor\x1ePython\x1f \x85 \x00 \x7f \u00a0here\u2003there\u200b",
    "[SEP] in[CLS]side [MASK][PAD] [UNK] [sep] [ SEP ]",
    "na\u00efve \u00e9t\u00e9 e \u0301 \u0301\u0327e I\u0130i \u1e9e stra\u00dfe",
    "\u03a3\u03c3\u03c2 O\u03a3 \ufb01n",
    "\u7535\u5f71 \u5f88\u597d\u770b \U0001f3ac\U0001f468\u200d\U0001f469 \ufffd \ud55c\uad6d",
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101,
    "don't can't it's 7/10 $1,000.00 <br /><br />a-b_c (d) 'e' \"f\"",
    " leading and trailing ",
    "word " * 300,
]


def word_piece_tokenizer(pre_tokenizer: Any = None) -> tokenizers.Tokenizer:
    """As BERT's, with few words and all letters as pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)] + list(
        "\u00e9\u03c3\u7535\u5f71\u00df\U0001f3ac"
    )
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), "film", "the", "##ing"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizer or BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.mark.parametrize("max_ids", [3, 1_000_000])
@pytest.mark.parametrize("truncation", ["head", "head_tail"])
def test_looking_chunks_up_encodes_as_the_tokenizer_does(
    monkeypatch: pytest.MonkeyPatch, truncation: str, max_ids: int
) -> None:
    monkeypatch.setattr(chunks_module, "MAX_CHUNK_IDS", max_ids)
    encoder = Encoder(word_piece_tokenizer(), 40, truncation)
    assert encoder.chunks is not None
    whole = Encoder(word_piece_tokenizer(Sequence([BertPreTokenizer()])), 40, truncation)
    assert whole.chunks is None
    for texts in (HARD_TEXTS, HARD_TEXTS[::-1], *([text] for text in HARD_TEXTS)):
        found, expected = encoder.encode(texts), whole.encode(texts)
        assert found.is_cut.tolist() == expected.is_cut.tolist()
        assert found.lengths.tolist() == expected.lengths.tolist()
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.ids.dtype == np.int32


def test_a_language_without_spaces_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "MAX_CHUNK_IDS", 1000)
    encoder = Encoder(word_piece_tokenizer(), 512, "head")
    assert encoder.chunks is not None
    for i in range(50):
        encoder.encode([chr(0x4E00 + i) * 300])
        assert len(encoder.chunks.ids) <= 1000 + 300


def test_chunks_are_looked_up_only_where_that_is_exact() -> None:
    """A normaliser or an added token that looks across a space rules it out."""
    across = word_piece_tokenizer()
    across.normalizer = NormalizerSequence([Replace("a b", "c"), BertNormalizer()])
    assert Encoder(across, 40, "head").chunks is None
    added = word_piece_tokenizer()
    added.add_tokens([tokenizers.AddedToken("the film")])
    assert Encoder(added, 40, "head").chunks is None
    assert Encoder(number_tokenizer(), 40, "head").chunks is None


@pytest.mark.imdb
@pytest.mark.skipif(not IMDB.exists(), reason=f"{IMDB} is not here")
def test_looking_chunks_up_is_exact_on_all_of_imdb() -> None:
    texts, _ = read_imdb(IMDB)
    encoder = Encoder(word_piece_tokenizer(), 512, "head")
    whole = Encoder(word_piece_tokenizer(Sequence([BertPreTokenizer()])), 512, "head")
    for start in range(0, len(texts), 4096):
        found = encoder.encode(texts[start : start + 4096])
        expected = whole.encode(texts[start : start + 4096])
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.lengths, expected.lengths)
        assert np.array_equal(found.is_cut, expected.is_cut)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "train.parquet"
    write_table(path, TEXTS, [0, 1, 0, 1, 1], INFO)
    return path


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_trained_tokenizer_is_the_same_each_time_and_transformers_reads_it(
    table: Path, tmp_path: Path, kind: Any
) -> None:
    row = TokenizerRow(type=kind, max_length=16, vocabulary_size=40)
    saved = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        trained = prepare_tokenizer(row, 16, tmp_path, table, folder)
        saved.append((folder / "tokenizer.json").read_bytes())
    assert saved[0] == saved[1]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert loaded.pad_token_id == 0
    encoded = Encoder(trained, 16, "head").encode(TEXTS)
    expected = [loaded(text, truncation=True, max_length=16)["input_ids"] for text in TEXTS]
    expected[3] = expected[3] or [1]  # a text with nothing in it is one unknown token
    assert encoded.ids.tolist() == [i for row in expected for i in row]
    assert encoded.lengths.tolist() == [len(row) for row in expected]


def test_a_token_file_can_be_mapped_and_says_what_it_is(table: Path, tmp_path: Path) -> None:
    encoder = Encoder(number_tokenizer(), 8, "head")
    counts = encode_split(encoder, table, tmp_path / "t.safetensors")
    tokens = read_tokens(tmp_path / "t.safetensors")
    encoded = encoder.encode(TEXTS)
    assert tokens.ids.tolist() == encoded.ids.tolist()
    assert tokens.lengths.tolist() == encoded.lengths.tolist()
    assert tokens.labels.tolist() == [0, 1, 0, 1, 1]
    assert (tokens.info, tokens.max_length, tokens.truncation) == (INFO, 8, "head")
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (torch.int32, torch.int64)
    assert counts == {"num_reviews": 5, "num_tokens": len(encoded.ids), "num_cut": 3}


def test_a_cut_token_file_is_refused(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    encode_split(Encoder(number_tokenizer(), 8, "head"), table, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged"):
        read_tokens(path)


def test_the_same_reviews_have_the_same_digest_whatever_their_tokens(
    table: Path, tmp_path: Path
) -> None:
    digests = []
    for length in (8, 5):
        encode_split(Encoder(number_tokenizer(), length, "head"), table, tmp_path / "t.safetensors")
        digests.append(read_tokens(tmp_path / "t.safetensors").reviews_sha256)
    assert digests[0] == digests[1] and len(digests[0]) == 64
    reviews = read_reviews(table)[0]
    for column, value in (("text", "other"), ("label", 1 - reviews["label"][0].as_py())):
        rows = reviews.to_pylist()
        rows[0][column] = value
        other = pa.Table.from_pylist(rows, schema=reviews.schema)
        write_reviews(tmp_path / "o.parquet", other.to_batches(), other.schema)
        encode_split(Encoder(number_tokenizer(), 8, "head"), tmp_path / "o.parquet",
                     tmp_path / "o.safetensors")  # fmt: skip
        assert read_tokens(tmp_path / "o.safetensors").reviews_sha256 not in digests


def make_tokens(lengths: list[int], tmp_path: Path) -> Tokens:
    writer = TokenWriter(tmp_path / "m.safetensors")
    ids = np.arange(sum(lengths), dtype=np.int32)
    labels = np.arange(len(lengths), dtype=np.int64) % 2
    writer.write(ids, np.array(lengths, dtype=np.int64), labels)
    metadata = {"dataset": "x", "label_names": '["no", "yes"]', "max_length": "9"}
    writer.close({**metadata, "truncation": "head", "reviews_sha256": ""})
    return read_tokens(tmp_path / "m.safetensors")


def test_batches_hold_the_reviews_that_were_asked_for(tmp_path: Path) -> None:
    tokens = make_tokens([3, 1, 4, 2], tmp_path)
    batch = gather(tokens, torch.tensor([2, 0, 3]))
    assert batch.ids.tolist() == [4, 5, 6, 7, 0, 1, 2, 8, 9]
    assert batch.offsets.tolist() == [0, 4, 7, 9]
    assert batch.lengths == [4, 3, 2]
    assert batch.labels.tolist() == [0, 0, 1]
    selections = [torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3])]
    found = [b.lengths for b in batches(tokens, selections, torch.device("cpu"))]
    assert found == [[3, 1], [4], [2]]


def test_orders_depend_on_seed_and_epoch_and_hold_every_review() -> None:
    first = epoch_order(50, 1, 1).tolist()
    assert first == epoch_order(50, 1, 1).tolist()
    assert first != epoch_order(50, 1, 2).tolist() != epoch_order(50, 2, 2).tolist()
    lengths = torch.from_numpy(np.random.default_rng(0).integers(1, 99, 1000))
    order = epoch_order(1000, 0, 1)
    found = bucketed_batches(order, lengths, 8, 0, 1)
    assert sorted(torch.cat(found).tolist()) == list(range(1000))
    spread = [int(lengths[rows].max() - lengths[rows].min()) for rows in found]
    assert np.mean(spread) < 5
