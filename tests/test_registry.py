"""Who is the champion: validation alone, more than noise, and the model that MLflow serves."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest

from distiltune import location, registry
from distiltune.artifacts import ANSWERS_FILE, RUN_FILE, write_csv, write_json
from distiltune.registry import Answers, judge, register_if_better
from distiltune.syncing import send_left_behind
from distiltune.tracking import TrackedRun
from tests.conftest import Project, environment

NAME = "reviews"
TAG = f"registry/{NAME}"
LABELS = tuple("01" * 50)
FACTS = {"name": "run", "params": {}, "tags": {}, "dataset": "sample", "dataset_digest": "0" * 64,
         "validation_reviews": "a" * 64, "label_names": ["negative", "positive"]}  # fmt: skip


def answers(num_wrong: int, of: str = "a", start: int = 0) -> Answers:
    """Those of a model that is wrong on reviews in a row."""
    wrong = range(start, start + num_wrong)
    predicted = tuple("10"[int(x)] if i in wrong else x for i, x in enumerate(LABELS))
    return Answers(reviews_sha256=of * 64, labels=LABELS, predicted=predicted)


@pytest.mark.parametrize(
    ("challenger", "champion", "is_better", "words"),
    [
        # Of six flips of a coin all alike: 2 / 2**6 = 0.031; of seven 0.016.
        (answers(3), answers(10), True, "97.00%, the champion's 90.00%: 7 of 100 reviews won, 0"),
        (answers(4), answers(10), False, "6 of 100 reviews won, 0 lost .* p = 0.031, limit 0.025"),
        (answers(10), answers(4), False, "0 of 100 reviews won, 6 lost"),
        (answers(10), answers(10), False, "0 of 100 reviews won, 0 lost .* p = 1"),
        # More right answers, but with many won and lost: 25 to 15, p = 0.15.
        (answers(15), answers(25, start=15), False, "25 of 100 reviews won, 15 lost"),
        (answers(0), answers(50, of="b"), False, "validated on other reviews"),
    ],
)
def test_only_more_than_noise_is_better(
    challenger: Answers, champion: Answers, is_better: bool, words: str
) -> None:
    verdict = judge(challenger, champion)
    assert verdict.is_better == is_better
    assert re.search(words, verdict.reason), verdict.reason


def log_run(
    root: Path,
    found: Answers,
    files: str = "files",
    *,
    has_record: bool = True,
    has_model: bool = True,
) -> str:
    """A run with a model and these answers, as `evaluate` logs them."""
    folder = root / files
    (folder / "model").mkdir(parents=True, exist_ok=True)
    facts, table = folder / RUN_FILE, folder / ANSWERS_FILE
    write_json(facts, {**FACTS, "validation_reviews": found.reviews_sha256})
    rows = zip(found.labels, found.predicted, strict=True)
    write_csv(table, ["label", "predicted"], rows)
    (folder / "model" / "weights").write_text("none")
    with TrackedRun(root, "distiltune") as tracked:
        tracked.start(FACTS, system_metrics=False, started=time.time())
        if has_model:
            tracked.log_model(folder / "model", FACTS["label_names"])
        if has_record:
            tracked.log_files([facts, table], "record")
        tracked.register(NAME, facts, table)
    return tracked.key


def client_of(root: Path) -> Any:
    return mlflow.MlflowClient(f"sqlite:///{root / location.DATABASE}")


def run_with(client: Any, key: str) -> Any:
    (run,) = client.search_runs(["1"], filter_string=f"tags.run_key = '{key}'")
    return run


def champion(client: Any) -> Any:
    return client.get_model_version_by_alias(NAME, "champion")


def test_the_champion_changes_for_a_better_one_alone(root: Path) -> None:
    client = client_of(root)
    first = run_with(client, log_run(root, answers(20)))
    version = champion(client)
    assert (version.version, version.run_id) == (1, first.info.run_id)
    assert version.description == "the first one: validation accuracy 80.00%"
    (model,) = client.search_logged_models(["1"])
    assert version.source == model.artifact_location
    # Its pages in the UI show each other.
    assert model.source_run_id == first.info.run_id
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": "1"}]

    for other in (answers(17), answers(30), answers(0, of="b")):
        run = run_with(client, log_run(root, other))
        assert run.data.tags[TAG].startswith(f"not registered as {NAME}: ")
    better = run_with(client, log_run(root, answers(5)))
    assert better.data.tags[TAG].startswith(
        f"{NAME} version 2 is the champion: against version 1: better than the champion by more "
    )
    assert champion(client).run_id == better.info.run_id
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2


def test_a_champion_whose_record_is_gone_stays_and_says_so(root: Path) -> None:
    client = client_of(root)
    log_run(root, answers(50), has_record=False)
    run = run_with(client, log_run(root, answers(0)))
    words = (
        "against version 1: the champion's record of its validation cannot be read (there is no "
    )
    assert words in run.data.tags[TAG]
    assert champion(client).version == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (RUN_FILE, "{}"),
        (RUN_FILE, '{"validation_re'),
        (ANSWERS_FILE, ""),
        (ANSWERS_FILE, "label,predicted\n"),
        (ANSWERS_FILE, "label,predicted\n1,1\n"),
        (ANSWERS_FILE, "other\n1\n"),
    ],
)
def test_a_champion_whose_record_is_damaged_stands_in_nobodys_way(
    root: Path, file: str, content: str
) -> None:
    client = client_of(root)
    first = run_with(client, log_run(root, answers(50)))
    Path(first.info.artifact_uri.removeprefix("file://"), "record", file).write_text(content)
    run = run_with(client, log_run(root, answers(0)))
    assert run.info.status == "FINISHED"
    assert "against version 1: " in run.data.tags[TAG] and champion(client).version == 1


def test_an_alias_that_was_moved_by_hand_stays(root: Path) -> None:
    client = client_of(root)
    log_run(root, answers(20))
    better = run_with(client, log_run(root, answers(5)))
    assert champion(client).version == 2
    client.set_registered_model_alias(NAME, "champion", "1")
    record = [root / "files" / RUN_FILE, root / "files" / ANSWERS_FILE]
    told = register_if_better(client, NAME, "1", better.info.run_id, record)
    assert told == better.data.tags[TAG]
    assert champion(client).version == 1


def test_many_who_are_as_good_do_not_wear_the_champion_down(root: Path) -> None:
    """Seven reviews won and none lost are enough for the first who comes, not for the third."""
    client = client_of(root)
    log_run(root, answers(20))
    for num_wrong, limit in ((19, 0.025), (18, 0.0083), (13, 0.0042)):
        run = run_with(client, log_run(root, answers(num_wrong)))
        assert f"limit {limit:.2g} for" in run.data.tags[TAG], run.data.tags
    assert champion(client).version == 1
    log_run(root, answers(8))
    assert champion(client).version == 2


def test_a_model_that_was_not_stored_whole_is_no_champion(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("the model's files")

    monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", losing)
    client = client_of(root)
    run = run_with(client, log_run(root, answers(0)))
    assert len(client.search_logged_models(["1"])) == 1
    assert "MLflow has no whole model of this run" in run.data.tags[TAG]
    assert not client.search_registered_models()


def test_two_at_once_do_not_take_each_others_place(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = registry._champion

    def slow(client: Any, name: str) -> Any:
        found = original(client, name)
        time.sleep(1)
        return found

    monkeypatch.setattr(registry, "_champion", slow)
    with ThreadPoolExecutor() as pool:
        for name, num_wrong in (("a", 20), ("b", 30)):
            pool.submit(log_run, root, answers(num_wrong), name)
    tags = [run.data.tags[TAG] for run in client_of(root).search_runs(["1"])]
    assert sum("the first one" in tag for tag in tags) == 1, tags


def test_a_run_without_a_model_is_no_champion(root: Path) -> None:
    client = client_of(root)
    run = run_with(client, log_run(root, answers(0), has_model=False))
    assert run.data.tags[TAG].endswith("MLflow has no whole model of this run")
    assert not client.search_registered_models()


@pytest.mark.parametrize("lost", ["create_model_version", "set_registered_model_alias", "set_tag"])
def test_a_registration_whose_answer_is_lost_is_there_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    original, calls = getattr(mlflow.MlflowClient, lost), []

    def losing(*arguments: Any, **named: Any) -> Any:
        found = original(*arguments, **named)
        calls.append(lost)
        if len(calls) == 1:
            raise ConnectionError("the answer is lost")
        return found

    monkeypatch.setattr(mlflow.MlflowClient, lost, losing)
    monkeypatch.setattr("distiltune.tracking.RETRY_SECONDS", 0.01)
    key = log_run(root, answers(20))
    send_left_behind(root)
    client = client_of(root)
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    (model,) = client.search_logged_models(["1"])
    assert len(json.loads(model.tags["mlflow.modelVersions"])) == 1
    run = run_with(client, key)
    assert version.run_id == champion(client).run_id == run.info.run_id
    assert run.data.tags[TAG] == f"{NAME} version 1 is the champion: {version.description}"


@pytest.mark.slow
def test_the_champion_answers_over_http(prepared: Project) -> None:
    """`mlflow models serve`, as in the README."""
    prepared.stage_here("train")
    first, again = (prepared.stage_here("evaluate").stdout for _ in range(2))
    assert "distiltune version 1 is the champion: the first" in first
    assert "distiltune version 1 is the champion: the first" in again
    prepared.change_params({"registry.model": None})
    assert "champion" not in prepared.stage_here("evaluate").stdout
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Elsewhere: it needs nothing of the checkout but what MLflow stores.
    elsewhere = prepared.root.parent / "elsewhere"
    elsewhere.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/distiltune@champion",
         "--env-manager", "local", "--port", str(port)], cwd=elsewhere,
        env=environment({"MLFLOW_TRACKING_URI": f"sqlite:///{prepared.root / 'mlflow.db'}",
                         "PYTHONPATH": ""}),
    )  # fmt: skip
    try:
        rows = [{"text": "A superb film."}, {"text": "Dull and awful. " * 500}]
        answer = ask(port, {"dataframe_records": rows})
        assert len(answer["predictions"]) == 2
        for found in answer["predictions"]:
            assert found["label"] in ("negative", "positive")
            assert found["probability"] == found[f"probability_{found['label']}"] >= 0.5
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, {"dataframe_records": [{"words": "no such column"}]})
        assert refused.value.code == 400
        for text, reason in (("", "is empty"), (None, "is no string"), (5, "is no string but 5")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(port, {"dataframe_records": [rows[0], {"text": text}]})
            answer = json.load(refused.value)
            assert refused.value.code == 400 and f"text 2: {reason}" in answer["message"]
            assert "stack_trace" not in answer
    finally:
        server.terminate()
        server.wait()


def ask(port: int, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except (ConnectionError, urllib.error.URLError) as error:
            if isinstance(error, urllib.error.HTTPError) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
