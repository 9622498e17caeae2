"""Properties of the readers that hold for any input (hypothesis makes them up)."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distiltune import InputError
from distiltune.artifacts import read_reviews
from distiltune.batching import read_tokens
from distiltune.config import CsvRow, load_params
from distiltune.imdb import read_imdb
from distiltune.own_files import import_files
from tests.archives import write_archive
from tests.conftest import ROOT, Project

# Files are written, so that times vary; and each example is a file of its own.
MANY = settings(max_examples=150, deadline=None)
SOME = settings(max_examples=40, deadline=None)
COLUMNS = {"text_column": "review", "label_column": "sentiment"}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
# What a CSV can hold: no lone surrogates, which UTF-8 has no bytes for, and a text is not blank.
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
LABELS = st.lists(TEXTS.map(str.strip), min_size=2, max_size=4, unique=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@pytest.fixture(scope="module")
def archive(folder: Path) -> bytes:
    return write_archive(folder / "good.tar.gz").read_bytes()


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[str, str]]:
    labels = draw(LABELS)
    rows = draw(st.lists(st.tuples(TEXTS, st.sampled_from(labels)), max_size=6))
    return [("a", labels[0]), *rows, ("b", labels[1])]


def row_for(file: Path) -> CsvRow:
    return CsvRow(paths=(str(file),), **COLUMNS)


@MANY
@given(tables())
def test_a_table_is_read_as_it_was_written(folder: Path, rows: list[tuple[str, str]]) -> None:
    file, output = folder / "r.csv", folder / "r.parquet"
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["review", "sentiment"])
        writer.writerows(rows)
    import_files(row_for(file), folder, output)
    table, info = read_reviews(output)
    assert table["text"].to_pylist() == [text for text, _ in rows]
    assert [info.label_names[i] for i in table["label"].to_pylist()] == [name for _, name in rows]


@MANY
@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda b: b"review,sentiment\n" + b))
def test_any_bytes_are_a_table_or_a_mistake(folder: Path, content: bytes) -> None:
    file, output = folder / "any.csv", folder / "any.parquet"
    file.write_bytes(content)
    output.unlink(missing_ok=True)
    try:
        import_files(row_for(file), folder, output)
    except InputError as error:
        assert str(error).startswith(str(file)) and not output.exists()
    else:
        assert read_reviews(output)[0].num_rows > 1


def changed(content: bytes, edits: list[tuple[float, int]]) -> bytes:
    """Some bytes replaced, each at a share of the length."""
    found = bytearray(content)
    for place, value in edits:
        found[int(place * (len(found) - 1))] = value
    return bytes(found)


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8)


@MANY
@given(EDITS, st.booleans())
def test_a_damaged_archive_is_read_or_a_mistake(
    folder: Path, archive: bytes, edits: list[tuple[float, int]], is_plain: bool
) -> None:
    """Damage behind the compression, too, which its checksum does not show."""
    file = folder / "any.tar.gz"
    plain = changed(gzip.decompress(archive), edits)
    file.write_bytes(gzip.compress(plain, 1) if is_plain else changed(archive, edits))
    try:
        texts, labels = read_imdb(file)
    except InputError as error:
        assert str(error).startswith(str(file))
    else:
        assert len(texts) == len(labels) <= 17


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a tree of tables and lists."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=4,
)


@SOME
@given(st.sampled_from(list(places(PARAMS))), ANYTHING)
def test_any_value_in_params_is_taken_or_a_mistake(
    folder: Path, place: tuple[Any, ...], value: Any
) -> None:
    file = folder / "params.yaml"
    tree = json.loads(json.dumps(PARAMS))
    table = tree
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    try:
        load_params(file)
    except InputError as error:
        assert all(line.startswith(str(file)) for line in str(error).splitlines())
        assert str(error).replace("\n", "").isprintable()


@SOME
@given(EDITS)
def test_damaged_tokens_are_a_mistake_or_the_same_tokens(
    folder: Path, _tokenized: Project, edits: list[tuple[float, int]]
) -> None:
    good = _tokenized.root / "data/tokens/test.safetensors"
    expected = read_tokens(good)
    file = folder / "tokens.safetensors"
    file.write_bytes(changed(good.read_bytes(), edits))
    try:
        found = read_tokens(file)
    except InputError as error:
        assert str(error).startswith(str(file))
    else:
        assert (found.info, found.max_length, found.truncation) == (
            expected.info, expected.max_length, expected.truncation,
        )  # fmt: skip
        for name in ("ids", "offsets", "labels"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_the_edits_reach_all_of_a_file() -> None:
    assert changed(b"abc", [(0.0, 120), (1.0, 122)]) == b"xbz"
    assert changed(b"a", [(0.5, 98)]) == b"b"
