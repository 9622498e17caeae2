"""The download stage: mirrors, checksums, outages, archives that mean ill, your own files."""

import csv
import gzip
import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distiltune import sample
from distiltune.artifacts import read_reviews, sha256_of
from distiltune.imdb import read_imdb, table_sha256
from tests.archives import running_server, write_archive
from tests.conftest import IMDB, IMDB_SHA256, Project


def use_archive(project: Project, urls: list[str], sha256: str) -> None:
    project.change_params(
        {
            "dataset": "imdb",
            "datasets.imdb.urls": urls,
            "datasets.imdb.sha256": sha256,
            "datasets.imdb.table_sha256": None,
        }
    )


def fails(project: Project, stage: str = "download") -> str:
    """Run a stage that must fail with lines, not a traceback, and write nothing."""
    before = sorted(project.root.joinpath("data").rglob("*"))
    result = project.stage(stage, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(project.root.joinpath("data").rglob("*")) == before
    return result.stderr


def table(project: Project) -> tuple[list[str], list[int], tuple[str, ...]]:
    read, info = read_reviews(project.root / "data/reviews.parquet")
    return read["text"].to_pylist(), read["label"].to_pylist(), info.label_names


def test_a_download_over_http_survives_a_cut_connection(project: Project, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz")
    with running_server() as server:
        server.files["/a.tar.gz"] = archive.read_bytes()
        server.cut = 1
        use_archive(project, [f"{server.url}/a.tar.gz"], sha256_of(archive))
        project.stage("download")
        assert len(server.requests) == 2
        texts, labels, names = table(project)
        assert (len(texts), sum(labels), names) == (16, 8, ("negative", "positive"))
        # What was downloaded once is not asked for again.
        project.stage("download")
        assert len(server.requests) == 2
    assert [p.name for p in (project.root / ".cache/downloads").iterdir()] == [sha256_of(archive)]


def test_mirrors_are_tried_in_order_and_each_failure_is_named(
    project: Project, tmp_path: Path
) -> None:
    archive = write_archive(tmp_path / "a.tar.gz")
    with running_server() as server:
        server.files["/other"] = b"something else"
        server.files["/right"] = archive.read_bytes()
        urls = [f"{server.url}/{name}" for name in ("missing?token=secret", "other", "right")]
        use_archive(project, urls, sha256_of(archive))
        project.stage("download")
        assert server.requests[-1] == "/right"
        for kept in (project.root / ".cache/downloads").iterdir():
            kept.unlink()
        use_archive(project, [urls[0], urls[1], (tmp_path / "no").as_uri()], sha256_of(archive))
        message = fails(project)
    assert "/missing: the server answered 404" in message
    assert "/other" in message and "hash" in message.lower()
    assert "/no: no such file" in message
    assert "secret" not in message
    assert "dataset=sample" in message  # the way out


def test_an_absent_network_fails_soon_with_the_way_out(project: Project) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    use_archive(
        project, [f"http://127.0.0.1:{port}/a.tar.gz", "https://nowhere.invalid/a.tar.gz"], "0" * 64
    )
    started = time.monotonic()
    message = fails(project)
    assert time.monotonic() - started < 60
    assert message.count("cannot connect") == 2
    assert "datasets.imdb.urls=[file:///...]" in message


def test_a_file_url_with_a_wrong_checksum(project: Project, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz")
    use_archive(project, [archive.as_uri()], "0" * 64)
    assert f"its sha256 is {sha256_of(archive)}, not {'0' * 64}" in fails(project)


def test_reviews_other_than_the_checksum_says(project: Project, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "a.tar.gz")
    use_archive(project, [archive.as_uri()], sha256_of(archive))
    project.change_params({"datasets.imdb.table_sha256": "1" * 64})
    assert "datasets.imdb.table_sha256" in fails(project)


def test_an_archive_writes_nothing_but_its_reviews(project: Project, tmp_path: Path) -> None:
    names = ("../../evil.txt", "/tmp/evil.txt", "aclImdb/train/pos/x.txt")
    archive = write_archive(tmp_path / "a.tar.gz", extra=dict.fromkeys(names, b"x"))
    use_archive(project, [archive.as_uri()], sha256_of(archive))
    before = set(tmp_path.rglob("*"))
    project.stage("download")
    new = {p for p in set(tmp_path.rglob("*")) - before if "__pycache__" not in p.parts}
    data = project.root / "data"
    assert new == {data, data / "reviews.parquet", data / "unlabelled.parquet"}
    assert not Path("/tmp/evil.txt").exists()
    assert len(table(project)[0]) == 16


def test_unlabelled_reviews_are_a_table_of_their_own(project: Project, tmp_path: Path) -> None:
    names = ("train/unsup/9_0.txt", "train/unsup/10_0.txt", "test/unsup/1_0.txt", "train/urls.txt")
    extra = {f"aclImdb/{name}": name.encode() for name in names}
    archive = write_archive(tmp_path / "a.tar.gz", extra=extra)
    use_archive(project, [archive.as_uri()], sha256_of(archive))
    project.stage_here("download")
    assert len(table(project)[0]) == 16
    found = pq.read_table(project.root / "data/unlabelled.parquet").to_pydict()
    assert found == {"text": ["train/unsup/10_0.txt", "train/unsup/9_0.txt"]}
    project.change_params({"dataset": "sample"})
    project.stage_here("download")
    assert pq.read_table(project.root / "data/unlabelled.parquet").num_rows == 0


@pytest.mark.parametrize("damage", ["cut", "text", "not utf-8", "unlabelled"])
def test_a_damaged_archive(project: Project, tmp_path: Path, damage: str) -> None:
    archive = tmp_path / "a.tar.gz"
    if damage == "text":
        archive.write_text("<html>not found</html>")
    elif damage == "not utf-8":
        write_archive(archive, extra={"aclImdb/train/pos/77_9.txt": b"\xff\xfe"})
    elif damage == "unlabelled":
        write_archive(archive, num_per_class=0)
    else:
        content = write_archive(archive).read_bytes()
        archive.write_bytes(content[: len(content) // 2])
    use_archive(project, [archive.as_uri()], sha256_of(archive))
    message = fails(project)
    expected = {"not utf-8": "77_9.txt is not UTF-8", "unlabelled": "no labelled reviews"}
    assert expected.get(damage, "damaged") in message


def test_the_reference_order(tmp_path: Path) -> None:
    texts, labels = read_imdb(write_archive(tmp_path / "a.tar.gz"))
    in_files = [
        f"The {part} film number {i} is {word}, said éva."
        for part in ("test", "train")
        for word in ("superb", "awful")
        for i in range(4)
    ]
    order = np.random.RandomState(0).permutation(16)
    assert texts == [in_files[i] for i in order]
    assert labels == [int("superb" in text) for text in texts]


def test_the_table_checksum_is_that_of_the_csv_form(tmp_path: Path) -> None:
    texts, labels = ["a, b", 'say "x"', "line\nbreak"], [1, 0, 1]
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["review", "sentiment"])
        writer.writerows(zip(texts, labels, strict=True))
    assert table_sha256(texts, labels) == sha256_of(tmp_path / "t.csv")


@pytest.mark.imdb
@pytest.mark.skipif(not IMDB.exists(), reason="the IMDb archive is not here")
def test_the_real_archive_has_the_reference_table(new_project: Any) -> None:
    project = new_project(small=False)
    project.change_params({"datasets.imdb.urls": [IMDB.as_uri()]})
    project.change_params({"datasets.imdb.sha256": IMDB_SHA256})
    project.stage("download")  # checks the table's sha256 of the committed params
    texts, labels, _ = table(project)
    assert labels[:5] == [1, 0, 0, 1, 0]
    assert texts[0].startswith("In 1974, the teenager Martha Moxley")


def test_the_sample_is_the_same_each_time_and_no_bag_of_words_solves_it() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    def generate(num_reviews: int, seed: int) -> tuple[list[str], list[int]]:
        texts, labels = sample.generate_reviews(num_reviews, seed)
        return list(texts), list(labels)

    texts, labels = generate(12_000, 0)
    assert (texts, labels) == generate(12_000, 0)
    assert texts[:100] != generate(100, 1)[0]
    assert len(set(texts)) > 11_900
    words = CountVectorizer()
    counts = words.fit_transform(texts[:10_000])
    model = LogisticRegression(max_iter=300).fit(counts, labels[:10_000])
    assert model.score(words.transform(texts[10_000:]), labels[10_000:]) < 0.75
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == ("023f35bf8693004da8edb717874566b447954259bf485587c50cd9fcd57d27b9"), (
        "the committed sample changed: every cached result with it"
    )


def use_csv(project: Project, name: str, content: bytes | None, **params: Any) -> None:
    if content is not None:
        (project.root / name).write_bytes(content)
    changes = {f"datasets.csv.{key}": value for key, value in params.items()}
    project.change_params({"dataset": "csv", "datasets.csv.paths": [name], **changes})


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz", "r.parquet"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_your_own_file(project: Project, name: str, bom: str) -> None:
    text = f'{bom}id,sentiment,review\n1,10,"Good, éh"\n2,9,NA\n3,10,"two\nlines"\n'
    content = text.encode()
    if name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    if name.endswith(".parquet"):
        columns = {"review": ["Good, éh", "NA", "two\nlines"], "sentiment": [10, 9, 10]}
        pq.write_table(pa.table(columns), project.root / name)
    use_csv(project, name, None if name.endswith(".parquet") else content)
    project.stage("download")
    # Integers are classes in the order of their values: 9 before 10.
    assert table(project) == (["Good, éh", "NA", "two\nlines"], [1, 0, 1], ("9", "10"))


def test_several_files_and_string_classes(project: Project) -> None:
    (project.root / "b.csv").write_text("review,sentiment\nfine,neutral\n")
    use_csv(project, "a.csv", b"review,sentiment\ngood,pos\nbad,neg\n")
    project.change_params({"datasets.csv.paths": ["a.csv", str(project.root / "b.csv")]})
    project.stage("download")
    assert table(project) == (["good", "bad", "fine"], [2, 0, 1], ("neg", "neutral", "pos"))


BAD_FILES: list[tuple[str, bytes | None, str]] = [
    ("gone.csv", None, "gone.csv: no such file"),
    ("r.csv", b"", "is empty"),
    ("r.csv", b"review,sentiment\n", "has no rows"),
    ("r.csv", b"text,sentiment\na,1\n", "no column 'review'; it has 'text', 'sentiment'"),
    ("r.csv", b"review,label\na,1\n", "datasets.csv.label_column"),
    ("r.csv", b"review,sentiment\na,1\n,0\n", "row 2: column 'review' is empty"),
    ("r.csv", b"review,sentiment\na,1\n  ,0\n", "row 2: column 'review' is empty"),
    ("r.csv", b"review,sentiment\na,1\nb,\n", "row 2: column 'sentiment' is empty"),
    ("r.csv", b"review,sentiment\na,1\nb,1\n", "all 2 rows have the label '1'"),
    ("r.csv", b"review,sentiment\na,1\n\xff\xfe,0\n", "line 3: not UTF-8"),
    ("r.csv", b"review,sentiment\na,1\nb,0,x\n", "Expected 2 fields in line 3, saw 3"),
    ("r.csv", b"review,sentiment\na, b,1\nb, c,0\n", "row 1 has more fields than the header"),
    ("r.csv", b'review,sentiment\n"a,1\n', "not a table"),
    (
        "r.csv.gz",
        gzip.compress(b"review,sentiment\na,1\nb,0\n" * 9, mtime=0)[:-12],
        "gzip file is damaged",
    ),
    ("r.csv.gz", b"review,sentiment\na,1\n", "gzip file is damaged"),
    ("r.parquet", b"review,sentiment\na,1\n", "not a Parquet file"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES)
def test_a_bad_file_gets_one_clear_error(
    project: Project, name: str, content: bytes | None, words: str
) -> None:
    use_csv(project, name, content)
    message = fails(project)
    assert words in message
    assert len(message.splitlines()) == 1
    assert message.startswith("error: ")


def test_labels_that_are_no_classes(project: Project) -> None:
    rows = "".join(f"text {i},{i}\n" for i in range(1200))
    use_csv(project, "r.csv", f"review,sentiment\n{rows}".encode())
    assert "over 1000 different values" in fails(project)
    pq.write_table(pa.table({"review": ["a"], "sentiment": [0.5]}), project.root / "r.parquet")
    use_csv(project, "r.parquet", None)
    assert "must hold strings or integers, not double" in fails(project)
