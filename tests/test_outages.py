"""MLflow goes, comes back, fails and lies: it has each entry once in the end."""

import dataclasses
import itertools
import json
import os
import re
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from benchmarks import outages
from benchmarks.torture import prepare
from distiltune import InputError, location, sending, store, tracking
from distiltune.monitoring import SystemMonitor
from distiltune.outbox import (
    ENTRIES,
    FOLDER,
    MIN_LINKED_BYTES,
    Header,
    Outbox,
    is_empty,
    left_behind,
)
from distiltune.sending import CHECKOUT_TAG, KEY_TAG, WEIGHTS_TAG, Sender, reason_of
from distiltune.syncing import send_left_behind
from distiltune.tracking import TrackedRun


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("outages") / "prepared", outages.SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*outages.SERVER_CASES, *outages.SQLITE_CASES])
def test_nothing_is_lost_or_there_twice(name: str, tokenized: Path) -> None:
    mistakes, output = outages.run_case(name, tokenized)
    assert mistakes == [], output


def header(name: str, **changes: Any) -> Header:
    made = Header(
        store="x", experiment="distiltune", key="k1", weights=None, is_training=True, time=1000,
        name=name, params={"seed": 1}, tags={CHECKOUT_TAG: ""}, dataset="sample",
        dataset_digest="0" * 64,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def entry(number: int) -> dict[str, Any]:
    return {"kind": "metrics", "time": number, "step": number, "metrics": {"loss": 1 / number}}


def left(root: Path) -> list[str]:
    found = []
    for outbox in left_behind(root):
        found.append(outbox.header.name)
        outbox.release()
    return found


def test_entries_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    first = Outbox.new(tmp_path, header("first"))
    for number in range(1, 6):
        assert first.append(entry(number))
    first.note_sent(2)
    first.note_run("abc")
    Outbox.new(tmp_path, header("second")).release()
    assert left(tmp_path) == ["second"]
    first.release()
    # The end of a process may cut off the entry that it is writing.
    with (first.folder / ENTRIES).open("ab") as file:
        file.write(b'{"kind": "met')
    found = next(left_behind(tmp_path))
    assert found.header == header("first")
    assert found.run_id == "abc" and [e["step"] for e in found.entries] == [3, 4, 5]
    found.rewind()
    assert [e["step"] for e in found.entries] == [1, 2, 3, 4, 5] and found.run_id is None
    assert left(tmp_path) == []  # who sends one part of a run sends alone
    found.remove()
    assert left(tmp_path) == ["second"]


@pytest.mark.parametrize("damage", [b"\0" * 50 + b"\n", b"[]\n", b'{"kind": 3}\n'])
def test_a_damaged_entry_leaves_the_others(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox.new(tmp_path, header("x"))
    outbox.append(entry(1))
    with (outbox.folder / ENTRIES).open("ab") as file:
        file.write(damage)
    outbox._size += len(damage)
    outbox.append(entry(2))
    outbox.release()
    assert [e["step"] for e in next(left_behind(tmp_path)).entries] == [1, 2]
    assert "an entry is damaged" in capsys.readouterr().err


def test_an_outbox_that_cannot_be_read_is_put_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (b"{", b"[]", b'{"version": 9}', b"\0"):
        outbox = Outbox.new(tmp_path, header("bad"))
        (outbox.folder / "header.json").write_bytes(content)
        outbox.release()
    Outbox.new(tmp_path, header("good")).release()
    assert left(tmp_path) == ["good"]
    assert capsys.readouterr().err.count("cannot be read") == 4
    assert len(list((tmp_path / FOLDER).glob(".damaged-*"))) == 4
    assert left(tmp_path) == ["good"] and capsys.readouterr().err == ""


def test_a_file_is_kept_as_it_was(tmp_path: Path) -> None:
    outbox = Outbox.new(tmp_path, header("x"))
    model = tmp_path / "model"
    (model / "__pycache__").mkdir(parents=True)
    (model / "config").write_text("old")
    (model / "weights").write_bytes(b"old" * MIN_LINKED_BYTES)
    (kept,) = outbox.keep([model])
    # As people edit; and as stages and DVC write: aside, and renamed.
    (model / "config").write_text("new")
    (model / "new").write_bytes(b"new")
    (model / "new").replace(model / "weights")
    files = {file.name: file for file in (outbox.folder / kept).iterdir()}
    assert files.keys() == {"config", "weights"}
    assert files["config"].read_text() == "old" and files["weights"].read_bytes()[:3] == b"old"


def test_what_a_full_disk_does_not_take_is_written_when_it_does(tmp_path: Path) -> None:
    outbox = Outbox.new(tmp_path, header("x"))
    assert outbox.append(entry(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (120, limits[1]))
    try:
        assert not outbox.append(entry(2)) and not outbox.append(entry(3))
        assert len(outbox.entries) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outbox.append(entry(4))
    lines = (outbox.folder / ENTRIES).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def written(root: Path, name: str, entries: list[dict[str, Any]], **changes: Any) -> Outbox:
    """What a process has left that is gone."""
    tags = {CHECKOUT_TAG: location.checkout_id(root)}
    outbox = Outbox.new(root, header(name, store=location.store_name(root), tags=tags, **changes))
    for one in entries:
        outbox.append(one)
    outbox.release()
    return outbox


@pytest.mark.parametrize(
    ("seconds", "interval", "pause"),
    [(0, 5, 1), (20, 5, 1), (60, 5, 3), (200, 5, 5), (9, 0.2, 0.2)],
)
def test_a_short_run_has_its_system_metrics_too(
    seconds: float, interval: float, pause: float
) -> None:
    monitor = SystemMonitor(lambda metrics, step: None, time.time() - seconds)
    assert monitor._pause(interval) == pytest.approx(pause, abs=0.01)


def runs(root: Path) -> list[Any]:
    client = mlflow.MlflowClient(location.store_name(root))
    return list(client.search_runs(["1"], order_by=["attributes.start_time ASC"]))


def steps(root: Path, run: Any, name: str = "loss") -> list[int]:
    client = mlflow.MlflowClient(location.store_name(root))
    return [metric.step for metric in client.get_metric_history(run.info.run_id, name)]


def end(time: int, status: str = "FINISHED") -> dict[str, Any]:
    return {"kind": "end", "status": status, "time": time}


def test_a_late_part_of_an_attempt_does_not_end_the_run_again(root: Path) -> None:
    """The second attempt has finished before what the first has left was sent."""
    second = written(root, "second", [entry(1), entry(2), entry(3), end(3000)], time=2000)
    assert send_left_behind(root)[1] == {} and not second.folder.exists()
    for entries in ([entry(1), entry(2)], [entry(1), end(1500, "KILLED")], [end(1600, "FAILED")]):
        written(root, "first", entries)
        sent, left_over = send_left_behind(root)
        assert len(sent) == 1 and left_over == {}
        (run,) = runs(root)
        assert run.info.status == "FINISHED" and steps(root, run) == [1, 2, 3]


def test_both_attempts_of_a_training_may_be_sent_late(root: Path) -> None:
    written(root, "first", [entry(1), entry(2)])
    written(root, "second", [entry(1), entry(2), entry(3), end(3000)], time=2000)
    assert len(send_left_behind(root)[0]) == 2
    (run,) = runs(root)
    assert run.info.status == "FINISHED" and steps(root, run) == [1, 2, 3]


def test_what_is_left_without_an_end_was_killed(root: Path) -> None:
    written(root, "first", [entry(1)])
    send_left_behind(root)
    assert [run.info.status for run in runs(root)] == ["KILLED"]
    # What was all sent already, but for the removal.
    for one in ([entry(1), end(5000)], [entry(1), end(5000)]):
        outbox = written(root, "again", one, key="k2", time=2000)
        send_left_behind(root)
        assert [run.info.status for run in runs(root)] == ["KILLED", "FINISHED"]
        assert not outbox.folder.exists()


def test_a_training_that_is_sent_after_its_evaluation_is_one_run_with_it(root: Path) -> None:
    weights = "a" * 64
    restored: list[dict[str, Any]] = [
        {**entry(1), "only_new": True},
        {"kind": "tags", "tags": {WEIGHTS_TAG: weights}, "only_new": True},
        {"kind": "metrics", "time": 5, "step": 0, "metrics": {"test/accuracy": 0.5}}, end(4000),
    ]  # fmt: skip
    written(root, "evaluation", restored, weights=weights, is_training=False)
    send_left_behind(root)
    training = [entry(1), {"kind": "tags", "tags": {WEIGHTS_TAG: weights}}, end(3000)]
    written(root, "training", training)
    send_left_behind(root)
    (run,) = runs(root)
    assert run.info.status == "FINISHED" and steps(root, run) == [1]
    # And the other way round; what is evaluated once more may have come out otherwise.
    restored[2] = {"kind": "metrics", "time": 9, "step": 0, "metrics": {"test/accuracy": 0.75}}
    written(root, "evaluation", restored, weights=weights, is_training=False)
    send_left_behind(root)
    (run,) = runs(root)
    assert run.data.metrics["test/accuracy"] == 0.75 and steps(root, run) == [1]


def test_what_mlflow_will_never_take_does_not_keep_the_rest(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    impossible: list[dict[str, Any]] = [
        {"kind": "files", "files": ["files/1/gone"], "folder": "plots"},
        {"kind": "metrics", "time": 1, "step": 1, "metrics": {"no name: $%&": 1.0}},
        entry(2),
        {"kind": "poem"},
    ]
    written(root, "x", [*impossible, entry(1), end(2000)])
    assert send_left_behind(root)[1] == {}
    (run,) = runs(root)
    assert run.info.status == "FINISHED" and sorted(steps(root, run)) == [1, 2]
    assert run.data.tags["incomplete"]
    assert capsys.readouterr().err.count("warning: MLflow does not take of x: the ") == 3


def test_a_run_that_was_deleted_meanwhile_is_let_be(root: Path) -> None:
    outbox = written(root, "x", [entry(1)])
    found = next(left_behind(root))
    Sender(root, found, is_live=True).send()
    (run,) = runs(root)
    mlflow.MlflowClient(location.store_name(root)).delete_run(run.info.run_id)
    found.append(entry(2))
    Sender(root, found, is_live=True).send()
    assert runs(root) == [] and not found.entries and outbox.folder.exists()


def test_an_attempt_that_goes_on_has_its_own_experiments_name(root: Path) -> None:
    written(root, "first", [entry(1)])
    send_left_behind(root)
    written(root, "second", [entry(2)], time=2000)
    Sender(root, next(left_behind(root)), is_live=True).send()
    (run,) = runs(root)
    assert (run.info.run_name, run.info.status) == ("second", "RUNNING")
    assert steps(root, run) == [1, 2]


def test_another_checkouts_run_with_the_same_key_is_let_be(root: Path) -> None:
    """As of a training whose outputs were pulled from a remote."""
    client = mlflow.MlflowClient(location.store_name(root))
    theirs = client.create_run("1", start_time=1, tags={KEY_TAG: "k1", CHECKOUT_TAG: "theirs"})
    written(root, "mine", [entry(1), end(2000)])
    send_left_behind(root)
    other, mine = runs(root)
    assert other.info.run_id == theirs.info.run_id and other.data.metrics == {}
    assert mine.data.metrics["loss"] == 1


def test_a_stage_that_fails_ends_its_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nor does a machine without git keep it from that.
    monkeypatch.setenv("PATH", "")
    facts = {"name": "x", "params": {}, "tags": {}, "dataset": "sample", "dataset_digest": "0" * 64}
    for error, status in ((ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), TrackedRun(root, "distiltune") as tracked:
            tracked.find("b" * 64, facts)
            raise error
        assert runs(root)[-1].info.status == status
    assert left(root) == []


class Lossy:
    """A client of which every seventh answer is lost: MLflow has done what was asked."""

    def __init__(self, client: Any, counter: Iterator[int]) -> None:
        self._client, self._counter = client, counter

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            if next(self._counter) % 7 == 0:
                raise ConnectionError("the answer was lost")
            return answer

        return call


def test_lost_answers_double_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count(1)
    monkeypatch.setattr(sending, "open_store", lambda r: Lossy(location.open_store(r), counter))
    entries = [*map(entry, range(1, 1501)), {"kind": "tags", "tags": {"a": "b"}}, end(9000)]
    written(root, "x", entries)
    tries = 0
    while send_left_behind(root)[1]:
        tries += 1
        assert tries < 20
    (run,) = runs(root)
    assert tries > 1 and (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert steps(root, run) == list(range(1, 1501))


def test_an_outbox_that_its_lock_made_anew_is_removed(tmp_path: Path) -> None:
    debris = tmp_path / FOLDER / "0001-x"
    making, old = (tmp_path / FOLDER / f".half-000{number}-x" for number in (2, 3))
    for folder in (debris, making, old):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    os.utime(old, (0, 0))
    assert left(tmp_path) == [] and is_empty(tmp_path)
    assert making.exists() and not debris.exists() and not old.exists()


def test_who_is_killed_keeps_what_is_being_sent(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_at_it, may_go_on = threading.Event(), threading.Event()

    def send(self: Sender) -> None:
        is_at_it.set()
        may_go_on.wait(30)

    monkeypatch.setattr(Sender, "send", send)
    monkeypatch.setattr(tracking, "KILLED_WAIT_SECONDS", 0.1)
    facts = {"name": "x", "params": {}, "tags": {}, "dataset": "sample", "dataset_digest": "0" * 64}
    with pytest.raises(KeyboardInterrupt), TrackedRun(root, "distiltune") as tracked:
        tracked.find("b" * 64, facts)
        assert is_at_it.wait(30)
        raise KeyboardInterrupt
    assert left(root) == [] and not is_empty(root)
    may_go_on.set()


def test_an_experiment_that_another_has_just_made_is_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = mlflow.MlflowClient.get_experiment_by_name
    answers: list[Any] = [None]
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "get_experiment_by_name",
        lambda self, name: answers.pop() if answers else find(self, name),
    )
    assert location.experiment_id(root, "distiltune") == "1" and not answers


def test_a_store_that_is_away_is_named_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:1 ") as raised:
        store.find_runs(tmp_path, "distiltune")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5/x?token=secret", "http://host:5/x"),
        ("postgresql://me:sec/ret@x@host/db", "postgresql://host/db"),
        ("mysql+pymysql://me:secret@host/db#secret", "mysql+pymysql://host/db"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_no_message_holds_the_stores_credentials(
    uri: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert location.store_name(Path("/")) == shown
    path = uri.partition("?")[0]
    said = reason_of(ValueError(f"API request to {path}/api failed: {uri}; https://a:secret@b/c"))
    assert not re.search("sec|ret", said) and "https://b/c" in said
