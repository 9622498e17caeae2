"""What is bad or strange, and what a stage makes of it: the corpus behind `test_bad_inputs.py`.

    python -m tests.bad_inputs > table.md

prints it as a table, with what each stage has said.
"""

import functools
import gzip
import io
import json
import lzma
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from distiltune.artifacts import sha256_of
from tests.archives import write_archive
from tests.conftest import Project, make_project

WORKS = ""
DATA_STAGES = ("download", "download_checkpoint", "split", "tokenize")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "was", "not", "plot", "."]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input: how to put it into a project, and what the stages say of it."""

    kind: str
    name: str
    prepare: Callable[[Project], object]
    stages: tuple[str, ...]  # the last is the one that says something
    words: str  # in the one line of the error; WORKS if it is taken


def run_case(case: Case, project: Project) -> tuple[int, str]:
    """Prepare the input, and run the stages in this process.

    Returns:
        The exit status of the last stage, and its error output.
    """
    case.prepare(project)
    for stage in case.stages[:-1]:
        project.stage_here(stage)
    before = listing(project)
    result = project.stage_here(case.stages[-1], check=False)
    if result.returncode:
        assert listing(project) == before, "a failed stage has changed files"
    return result.returncode, result.stderr


def listing(project: Project) -> dict[str, tuple[int, int]]:
    """The stages' outputs by path: size and time of each."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for folder in ("data", "metrics")
        for path in (project.root / folder).rglob("*")
        if path.is_file()
    }


def archive(name: str, make: Callable[[Path], object], words: str, **params: Any) -> Case:
    """An archive in place of IMDb's, under its right checksum."""

    def prepare(project: Project) -> None:
        path = project.root / "archive"
        make(path)
        changes = {"urls": [path.as_uri()], "table_sha256": None, **params}
        if "sha256" not in changes:
            changes["sha256"] = sha256_of(path)
        project.change_params({"dataset": "imdb"})
        project.change_params({f"datasets.imdb.{key}": value for key, value in changes.items()})

    return Case(kind="archive", name=name, prepare=prepare, stages=("download",), words=words)


def with_member(*members: tarfile.TarInfo, content: bytes = b"") -> Callable[[Path], None]:
    """An archive with members of these kinds beside its reviews."""

    def make(path: Path) -> None:
        write_archive(path)
        plain = gzip.decompress(path.read_bytes())
        with tarfile.open(fileobj=(added := io.BytesIO()), mode="w") as tar:
            for member in members:
                member.size = len(content) if member.isfile() else 0
                tar.addfile(member, io.BytesIO(content) if member.isfile() else None)
        # Without the two blocks of zeros, and more, that a tar file ends with.
        path.write_bytes(gzip.compress(added.getvalue()[: tar.offset - 1024] + plain, 1))

    return make


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


def damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(write_archive(path).read_bytes()))


def flip(content: bytes, place: float = 0.5) -> bytes:
    changed = bytearray(content)
    changed[int(len(changed) * place)] ^= 0x10
    return bytes(changed)


REVIEW = "aclImdb/train/pos/99_9.txt"
NO_ARCHIVE = "the archive is damaged, or none: "
ARCHIVES = [
    archive("empty file", lambda p: p.write_bytes(b""), NO_ARCHIVE),
    archive("a web page", lambda p: p.write_text("<html>not found"), NO_ARCHIVE),
    archive("cut off", damaged(lambda c: c[: len(c) // 2]), NO_ARCHIVE),
    archive("a bit flipped", damaged(flip), NO_ARCHIVE),
    archive("wrong checksum", write_archive, "its sha256 is", sha256="0" * 64),
    archive("other reviews", write_archive, "table_sha256", table_sha256="1" * 64),
    archive("absent", write_archive, "no such file", urls=["file:///nowhere/a"], sha256="0" * 64),
    archive("a folder", write_archive, "Is a directory", urls=["file:///tmp"], sha256="0" * 64),
    archive("no reviews", lambda p: write_archive(p, 0), "holds no labelled reviews"),
    archive("review not UTF-8", lambda p: write_archive(p, extra={REVIEW: b"\xff"}), "not UTF-8"),
    archive("lone surrogate", lambda p: write_archive(p, extra={REVIEW: b"\xed\xa0\x80"}),
            "not UTF-8"),
    archive("review of 2 MB", lambda p: write_archive(p, extra={REVIEW: bytes(1 << 21)}),
            "has 2097152 bytes; a review has at most"),
    archive("bomb in a review", with_member(member(REVIEW), content=bytes(1 << 27)),
            "has 134217728 bytes"),
    archive("bomb beside the reviews", with_member(member("aclImdb/imdb.vocab"),
            content=bytes(1 << 27)), WORKS),
    archive("leads out of it", lambda p: write_archive(p, extra={"../../x.txt": b"x"}), WORKS),
    archive("absolute path", lambda p: write_archive(p, extra={"/tmp/x.txt": b"x"}), WORKS),
    archive("symbolic link", with_member(member(REVIEW, tarfile.SYMTYPE, "/etc/passwd")), WORKS),
    archive("hard link", with_member(member(REVIEW, tarfile.LNKTYPE, "/etc/passwd")), WORKS),
    archive("device", with_member(member(REVIEW, tarfile.CHRTYPE)), WORKS),
    archive("FIFO", with_member(member(REVIEW, tarfile.FIFOTYPE)), WORKS),
    archive("NUL in a review", lambda p: write_archive(p, extra={REVIEW: b"a\0b"}), WORKS),
    archive("xz instead of gzip", lambda p: p.write_bytes(lzma.compress(gzip.decompress(
        write_archive(p).read_bytes()))), WORKS),
    archive("not compressed", damaged(gzip.decompress), WORKS),
    archive("gzip twice", damaged(gzip.compress), NO_ARCHIVE),
]  # fmt: skip


def table(name: str, content: bytes, words: str, file: str = "r.csv", **params: Any) -> Case:
    """A file of the user's."""

    def prepare(project: Project) -> None:
        (project.root / file).write_bytes(content)
        changes = {"paths": [file], **params}
        project.change_params({"dataset": "csv"})
        project.change_params({f"datasets.csv.{key}": value for key, value in changes.items()})

    kind = "Parquet" if file.endswith(".parquet") else "CSV"
    return Case(kind=kind, name=name, prepare=prepare, stages=("download",), words=words)


def rows(*texts: str, header: str = "review,sentiment", encoding: str = "utf-8") -> bytes:
    lines = [header, *(f'"{text}",{i % 2}' for i, text in enumerate(texts))]
    return ("\n".join(lines) + "\n").encode(encoding, "surrogatepass")


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    pq.write_table(pa.table(columns), found := io.BytesIO(), **options)
    return found.getvalue()


GOOD = {"review": ["good one", "bad one"] * 50, "sentiment": [1, 0] * 50}
TABLES = [
    table("empty file", b"", "is empty"),
    table("only a header", b"review,sentiment\n", "has no rows"),
    table("only a byte order mark", b"\xef\xbb\xbf", "is empty"),
    table("other columns", b"text,label\na,1\n", "has no column 'review'; it has 'text', 'label'"),
    table("semicolons", b"review;sentiment\na;1\nb;0\n", "has no column 'review'"),
    table("column twice", b"review,review,sentiment\na,b,1\nc,d,0\n", "column 'review' stands"),
    table("empty text", b"review,sentiment\na,1\n,0\n", "row 2: column 'review' is empty"),
    table("blank text", "review,sentiment\na,1\n\u00a0\u2003,0\n".encode(), "'review' is empty"),
    table("empty label", b"review,sentiment\na,1\nb,\n", "row 2: column 'sentiment' is empty"),
    table("one class", b"review,sentiment\na,1\nb,1\n", "all 2 rows have the label '1'"),
    table("1,200 classes", b"review,sentiment\n" + b"".join(b"t,%d\n" % i for i in range(1200)),
          "over 1000 different values"),
    table("too many fields", b"review,sentiment\na,1\nb,0,x\n", "Expected 2 fields in line 3"),
    table("comma without quotes", b"review,sentiment\na, b,1\nb, c,0\n", "row 1 has more fields"),
    table("quote left open", b'review,sentiment\n"a,1\n', "not a table"),
    table("Latin-1", rows("café", "bar", encoding="latin-1"), "line 2: not UTF-8"),
    table("UTF-16", rows("a", "b", encoding="utf-16"), "not UTF-8"),
    table("lone surrogate", rows("a", "b \ud800"), "line 3: not UTF-8"),
    table("NUL bytes", rows("a\0b", "c"), WORKS),
    table("binary", bytes(range(256)) * 8, "UTF-8"),
    table("gzip cut off", gzip.compress(rows("a", "b") * 9)[:-12], "gzip file is damaged",
          "r.csv.gz"),
    table("no gzip", rows("a", "b"), "gzip file is damaged", "r.csv.gz"),
    table("gzip under another name", gzip.compress(rows("a", "b")), "not UTF-8"),
    table("no such file", b"", "gone.csv: no such file", paths=["gone.csv"]),
    table("a folder", b"", "no such file", paths=["src/x.csv"]),
    table("leaves the project", b"", "give its absolute path", paths=["../r.csv"]),
    table("another kind of file", b"", "must end in .csv", paths=["r.xlsx"]),
    table("Windows line ends", rows("a", "b").replace(b"\n", b"\r\n"), WORKS),
    table("1 MB in a text", rows("long " * 200_000, "b"), WORKS),
    table("control characters", rows("a\x01\x08\x1b[31m b", "\x7f c"), WORKS),
    table("right to left", rows("\u202e\u05de\u05e6\u05d5\u05d9\u05df", "الفيلم سيئ"), WORKS),
    table("emoji", rows("😀👩‍👩‍👧 superb", "💩"), WORKS),
    table("combining marks", rows("Z\u0351\u036b\u0343a" * 50, "b"), WORKS),
    table("line breaks in a text", rows("two\nlines", "b"), WORKS),
    table("words that mean nothing to pandas", rows("NA", "null", "nan", "None"), WORKS),
    table("labels beyond 32 bits", b"review,sentiment\na,99999999999\nb,-1\n", WORKS),
    table("10,000 columns", (",".join(["review", "sentiment", *(f"c{i}" for i in range(9998))])
          + "\n" + "a,1" + "," * 9998 + "\n" + "b,0" + "," * 9998 + "\n").encode(), WORKS),
    table("no Parquet", rows("a", "b"), "not a Parquet file", "r.parquet"),
    table("cut off", parquet(GOOD)[:-20], "not a Parquet file", "r.parquet"),
    table("a bit flipped", flip(parquet(GOOD, write_page_checksum=True), 0.05),
          "not a Parquet file", "r.parquet"),
    table("a name that is not UTF-8", parquet(GOOD).replace(b"sentiment", b"\x95entiment"),
          "not a Parquet file", "r.parquet"),
    table("numbers for texts", parquet({"review": [1, 2], "sentiment": [0, 1]}),
          "column 'review' must hold strings, not int64", "r.parquet"),
    table("fractions for labels", parquet({"review": ["a", "b"], "sentiment": [0.5, 1.0]}),
          "must hold strings or integers, not double", "r.parquet"),
    table("lists for texts", parquet({"review": [["a"], ["b"]], "sentiment": [0, 1]}),
          "must hold strings, not list", "r.parquet"),
    table("missing text", parquet({"review": ["a", None], "sentiment": [0, 1]}),
          "row 2: column 'review' is empty", "r.parquet"),
    table("no rows", parquet({"review": pa.array([], pa.string()), "sentiment":
          pa.array([], pa.int64())}), "has no rows", "r.parquet"),
    table("dictionaries", parquet({"review": ["a", "b"], "sentiment": pa.array(["x", "y"])
          .dictionary_encode()}), WORKS, "r.parquet"),
]  # fmt: skip


def too_small(name: str, num_rows: int, words: str, **changes: Any) -> Case:
    """A file that is no mistake in itself, and does not suffice for the splits."""

    def prepare(project: Project) -> None:
        table("", rows(*(f"text {i}" for i in range(num_rows))), "").prepare(project)
        project.change_params({f"splits.csv.{key}": value for key, value in changes.items()})

    return Case(kind="split", name=name, prepare=prepare, stages=("download", "split"),
                words=words)  # fmt: skip


SPLITS = [
    too_small("two reviews", 2, "splits.csv"),
    too_small("counts beyond the file", 20, "splits.csv", train=50, validation=5, test=5),
    too_small("no review for validation", 20, "splits.csv", train=0.9, validation=0.01, test=0.05),
]


@functools.cache
def good_checkpoint() -> Path:
    """A tiny DistilBERT as the hub has it, made once for a process."""
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(VOCABULARY), dim=16, n_layers=2, n_heads=2, hidden_dim=32,
        max_position_embeddings=64,
    )  # fmt: skip
    DistilBertForSequenceClassification(config).distilbert.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


def checkpoint(
    name: str,
    change: Callable[[Path], object],
    words: str,
    stages: Iterable[str] = ("download_checkpoint",),
    **params: Any,
) -> Case:
    """A checkpoint in a folder, under its right checksum."""

    def prepare(project: Project) -> None:
        folder = project.root / "mine"
        shutil.copytree(good_checkpoint(), folder)
        change(folder)
        weights = folder / "model.safetensors"
        digest = sha256_of(weights) if weights.exists() else "0" * 64
        changes = {"folder": "mine", "sha256": digest, **params}
        project.change_params({"model": "distilbert", "tokenize.max_length": 32})
        project.change_params({f"models.distilbert.checkpoint.{k}": v for k, v in changes.items()})

    return Case(kind="checkpoint", name=name, prepare=prepare, stages=tuple(stages), words=words)


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})

    return edit


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def drop_layer(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if ".layer.1." in name]:
        del weights[name]


def poison(weights: dict[str, torch.Tensor]) -> None:
    weights["embeddings.LayerNorm.bias"][0] = float("nan")


def widen(weights: dict[str, torch.Tensor]) -> None:
    weights["embeddings.word_embeddings.weight"] = torch.zeros(len(VOCABULARY), 24)


TOKENIZE = ("download_checkpoint", "tokenize")
TRAIN = ("download_checkpoint", "tokenize", "train")
LACKS = "cannot be loaded as a classifier"
CHECKPOINTS = [
    checkpoint("no folder", shutil.rmtree, "is no folder"),
    checkpoint("no weights", lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    checkpoint("only a pickle", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
               "no model.safetensors; only safetensors"),
    checkpoint("no config", lambda f: (f / "config.json").unlink(), "has no config.json"),
    checkpoint("no tokenizer", lambda f: (f / "vocab.txt").unlink(), "has no tokenizer"),
    checkpoint("other weights", lambda f: None, "has the sha256", sha256="0" * 64),
    checkpoint("config is no JSON", lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    checkpoint("config is a list", lambda f: (f / "config.json").write_text("[]"),
               "must hold a table"),
    checkpoint("code of its own", edit_config(auto_map={"AutoModel": "x.Y"}), "run code"),
    checkpoint("a pickle under the name of the weights",
               lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04}."), LACKS, TRAIN),
    checkpoint("weights cut off", lambda f: os.truncate(f / "model.safetensors", 2000), LACKS,
               TRAIN),
    checkpoint("a header of 2^60 bytes",
               lambda f: (f / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") * 9),
               LACKS, TRAIN),
    checkpoint("wrong shapes", edit_weights(widen), "has not the shape", TRAIN),
    checkpoint("a layer is missing", edit_weights(drop_layer), "its weights lack", TRAIN),
    checkpoint("not a number in the weights", edit_weights(poison), "the loss is nan", TRAIN),
    checkpoint("unknown architecture", edit_config(model_type="nothing"),
               "tokenizer cannot be read", TOKENIZE),
    checkpoint("an architecture that classifies nothing", edit_config(model_type="clip"), LACKS,
               TRAIN),
    checkpoint("an empty vocabulary", lambda f: (f / "vocab.txt").write_text(""),
               "tokenizer cannot encode a text", TOKENIZE),
    checkpoint("tokenizer is no JSON", lambda f: (f / "tokenizer.json").write_text("{}"),
               "tokenizer cannot be read", TOKENIZE),
    checkpoint("more words than embeddings", lambda f: (f / "vocab.txt").write_text(
        "\n".join([*VOCABULARY, "film", "movie", "acting", "a", "it", "and"]) + "\n"),
        "has a vocabulary of 16 tokens, and its weights have embeddings for 10", TRAIN),
]  # fmt: skip


def stored(name: str, change: Callable[[Path], object], words: str, stage: str, file: str) -> Case:
    """A file between two stages that is not what the first has written."""
    return Case(kind="stored file", name=f"{file}: {name}", stages=(stage,), words=words,
                prepare=lambda project: change(project.root / file))  # fmt: skip


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


TOKENS = "data/tokens/train.safetensors"
STORED = [
    case
    for file, stage, words in (
        ("data/reviews.parquet", "split", "no table of reviews"),
        ("data/splits/train.parquet", "tokenize", "no table of reviews"),
        (TOKENS, "train", "no token file, or damaged"),
        ("data/tokens/validation.safetensors", "train", "no token file, or damaged"),
    )
    for case in (
        stored("cut off", rewrite(lambda c: c[: len(c) // 2]), words, stage, file),
        stored("a bit flipped", rewrite(functools.partial(flip, place=0.6)), words, stage, file),
        stored("empty", rewrite(lambda c: b""), words, stage, file),
        stored("absent", lambda path: path.unlink(), "No such file", stage, file),
    )
] + [
    stored("another format", lambda p: save_file({"ids": torch.zeros(3)}, p),
           "no token file, or damaged", "train", TOKENS),
    stored("another length in its head",
           rewrite(lambda c: re.sub(rb'(max_length": ")\d', rb"\g<1>9", c)), "another sha256",
           "train", TOKENS),
    stored("a bit flipped", rewrite(flip), "damaged, or not of the training", "evaluate",
           "data/model/model.safetensors"),
    stored("no JSON", rewrite(lambda c: c[:9]), "damaged", "evaluate", "data/model/run.json"),
    stored("of another training", rewrite(lambda c: re.sub(rb'_sha256": "..', b'_sha256": "zz', c)),
           "damaged, or not of the training", "evaluate", "data/history/summary.json"),
    stored("no JSON", rewrite(lambda c: b""), "damaged", "evaluate", "data/history/summary.json"),
    stored("absent", lambda path: path.unlink(), "No such file", "evaluate", "data/model/run.json"),
]  # fmt: skip


def params(name: str, content: str | bytes, words: str) -> Case:
    """All of params.yaml."""

    def prepare(project: Project) -> None:
        raw = content.encode() if isinstance(content, str) else content
        (project.root / "params.yaml").write_bytes(raw)

    return Case(kind="params.yaml", name=name, prepare=prepare, stages=("split",), words=words)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)
PARAMS = [
    params("empty", "", "must hold keys and values"),
    params("a list", "- 1\n", "must hold keys and values, not list"),
    params("not UTF-8", b"a: \xff\n", "not UTF-8"),
    params("not YAML", "a: [b\n", "not YAML"),
    params("tabs", "a:\n\tb: 1\n", "not YAML"),
    params("NUL", "a: \0\n", "not YAML"),
    params("an object of Python", "a: !!python/object/apply:os.system [echo]\n", "not YAML"),
    params("aliases of aliases", LAUGHS, "alias"),
    params("10,000 levels", "a: " + "[" * 10_000, "nested"),
    params("a key that is a list", "[1, 2]: 3\n", "not YAML"),
    params("a number of 100,000 digits", "seed: 1" + "0" * 100_000 + "\n", "digits"),
    params("an alias of itself", "a: &a [*a]\n", "Circular"),
]


CASES = [*PARAMS, *ARCHIVES, *TABLES, *SPLITS, *CHECKPOINTS, *STORED]


def prepared_project(folder: Path) -> Project:
    """A small project with all stages run already, for the cases to be put into copies of."""
    project = make_project(folder)
    project.change_params({"tracking.log_model": False, "tracking.system_metrics": False})
    for stage in (*DATA_STAGES, "train", "evaluate"):
        project.stage_here(stage)
    return project


def copy_of(prepared: Project, folder: Path) -> Project:
    shutil.copytree(prepared.root, folder, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    return Project(folder)


def main() -> None:
    """Print the corpus with what the stages say."""
    print("| kind | input | what comes of it |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepared_project(Path(folder) / "prepared")
        for number, case in enumerate(CASES):
            project = copy_of(prepared, Path(folder) / str(number))
            status, errors = run_case(case, project)
            said = errors.replace(f"{project.root}/", "").strip().replace("\n", "<br>")
            said = said.replace("|", "\\|") if status else "works"
            print(f"| {case.kind} | {case.name} | {said} |", flush=True)
            shutil.rmtree(project.root)
    print(f"{len(CASES)} inputs", file=sys.stderr)


if __name__ == "__main__":
    main()
