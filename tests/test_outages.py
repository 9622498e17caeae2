"""MLflow goes, comes back, fails and lies: it has each entry once in the end."""

import json
import resource
from pathlib import Path

import pytest

from benchmarks import outages
from benchmarks.torture import prepare
from distiltune.outbox import ENTRIES, FOLDER, Outbox, left_behind

FAST = ("every_third_answer_is_lost",)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("outages") / "prepared", outages.SETTINGS)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in (*outages.SERVER_CASES, *outages.SQLITE_CASES)
    ],
)
def test_nothing_is_lost_or_there_twice(name: str, tokenized: Path) -> None:
    mistakes, output = outages.run_case(name, tokenized)
    assert mistakes == [], output


def entry(number: int) -> dict[str, object]:
    return {"kind": "metrics", "time": number, "step": number, "metrics": {"loss": 1 / number}}


def test_entries_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    first = Outbox.new(tmp_path, {"name": "first"})
    for number in range(1, 6):
        assert first.append(entry(number))
    first.note_sent(2)
    first.note_run("abc")
    Outbox.new(tmp_path, {"name": "second"}).release()
    assert [outbox.header["name"] for outbox in left_behind(tmp_path)] == ["second"]
    first.release()
    # The end of a process may cut off the entry that it is writing.
    with (first.folder / ENTRIES).open("ab") as file:
        file.write(b'{"kind": "met')
    found, _ = list(left_behind(tmp_path))
    assert found.run_id == "abc" and list(found.entries) == [entry(n) for n in (3, 4, 5)]
    found.rewind()
    assert [e["step"] for e in found.entries] == [1, 2, 3, 4, 5] and found.run_id is None
    found.remove()
    assert [outbox.header["name"] for outbox in left_behind(tmp_path)] == []  # locked again


def test_a_file_is_kept_as_it_was(tmp_path: Path) -> None:
    outbox = Outbox.new(tmp_path, {})
    model = tmp_path / "model"
    (model / "__pycache__").mkdir(parents=True)
    (model / "weights").write_text("old")
    (kept,) = outbox.keep([model])
    # As stages and DVC write: aside, and renamed.
    (model / "new").write_text("new")
    (model / "new").replace(model / "weights")
    folder = outbox.folder / kept
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("weights", "old")]


def test_what_a_full_disk_does_not_take_is_written_when_it_does(tmp_path: Path) -> None:
    outbox = Outbox.new(tmp_path, {})
    assert outbox.append(entry(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert not outbox.append(entry(2)) and not outbox.append(entry(3))
        assert len(outbox.entries) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outbox.append(entry(4))
    lines = (tmp_path / FOLDER / outbox.folder.name / ENTRIES).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
