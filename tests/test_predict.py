"""`distiltune predict`: texts and tables, models from folders and from MLflow, what is refused."""

import csv
import dataclasses
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification, pipeline

from benchmarks import inputs
from benchmarks import predict as benchmark
from distiltune import classifier as classifier_module
from distiltune import cli
from distiltune.artifacts import read_reviews
from distiltune.batching import Tokens
from distiltune.classifier import ReviewClassifier
from distiltune.encoding import Encoded
from distiltune.predicting.progress import Progress
from distiltune.runtime import Runtime
from tests.bad_inputs import DATA_STAGES
from tests.conftest import Project, as_if_alone, environment, make_project
from tests.damage import (
    change_settings,
    cut_the_weights,
    lose_a_layer,
    make_weights_nan,
    name_a_third_class,
)
from tests.test_pipeline import runs_of
from tests.test_start_up import loaded

GOOD, BAD = "The acting looked delightful, a joy!", "The plot was dull, and the score lifeless."
ADDED = ["label", "probability", "probability_negative", "probability_positive"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project with all stages run, and its model registered in MLflow."""
    project = make_project(tmp_path_factory.mktemp("trained") / "project")
    project.change_params({"tracking.system_metrics": False})
    for stage in (*DATA_STAGES, "train", "evaluate"):
        project.stage_here(stage)
    with as_if_alone(project.root, io.StringIO(), io.StringIO()):
        mlflow.set_tracking_uri(f"sqlite:///{project.root / 'mlflow.db'}")
        version = mlflow.register_model(f"runs:/{runs_of(project)[0].info.run_id}/model", "reviews")
        mlflow.MlflowClient().set_registered_model_alias("reviews", "best", version.version)
    return project


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    output: str
    errors: str

    @property
    def message(self) -> str:
        """The one line that a failed call has said."""
        assert self.status == 1 and self.output == ""
        lines = self.errors.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 500, lines
        return lines[0]


def predict(
    project: Project, *arguments: object, stdin: bytes = b"", command: str = "predict"
) -> Answer:
    """The command itself, without a process of its own."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distiltune", command, *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            with as_if_alone(project.root, output, errors):
                cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Answer(status, output.getvalue(), errors.getvalue())


def read(path: Path) -> pa.Table:
    return pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types={"note": pa.string()}),
    )  # fmt: skip


def test_texts_get_label_and_probability_as_from_the_pipeline_of_transformers(
    trained: Project,
) -> None:
    folder = trained.root / "data/model"
    expected = pipeline("text-classification", model=str(folder), device="cpu")([GOOD, BAD])
    answer = predict(trained, GOOD, BAD)
    assert answer.status == 0 and answer.errors == ""
    lines = [line.split("\t") for line in answer.output.splitlines()]
    assert [label for label, _ in lines] == [found["label"] for found in expected]
    for (_, probability), found in zip(lines, expected, strict=True):
        assert float(probability) == pytest.approx(found["score"], abs=6e-5)
    piped = predict(trained, "-", stdin=f"{GOOD}\r\n{BAD}\n".encode())
    assert piped.output == answer.output


def test_a_model_of_other_settings_than_the_params_is_told(trained: Project) -> None:
    params = trained.root / "params.yaml"
    before = params.read_text()
    try:
        trained.change_params({"optimizer": "lion"})
        answer = predict(trained, GOOD)
        assert answer.status == 0 and len(answer.output.splitlines()) == 1
        warning = (
            "is an earlier model, of other settings than those of params.yaml (optimizer: adam, "
        )
        assert warning + "not lion); `dvc repro` trains that one\n" in answer.errors
        assert predict(trained, GOOD, "--model", "data/model").errors == ""
        params.write_text("no params")
        assert predict(trained, GOOD).status == 0
    finally:
        params.write_text(before)


def test_texts_that_the_model_read_in_part_are_counted(trained: Project, tmp_path: Path) -> None:
    encoder = ReviewClassifier(trained.root / "data/model").encoder
    beyond, just_all = ". " * (encoder.content + 1), ". " * encoder.content
    said = f"than the model reads: of such a one the first {encoder.content} tokens count "
    said += f"({encoder.max_length} with the special ones)\n"
    assert predict(trained, just_all).errors == ""
    assert predict(trained, just_all, beyond).errors == f"1 text was longer {said}"
    settings = trained.root / "data/model/run.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "truncation": "head_tail"}))
    both_ends = predict(trained, beyond).errors
    settings.write_text(before)
    first = encoder.content * 128 // 510
    assert f"the first {first} and the last {encoder.content - first} tokens count" in both_ends
    pq.write_table(pa.table({"text": [beyond, just_all] * 50}), tmp_path / "given.parquet")
    answer = predict(
        trained, "--file", tmp_path / "given.parquet", "--output", tmp_path / "out.csv"
    )
    assert answer.status == 0 and answer.errors.endswith(f"\n50 texts were longer {said}")


def test_a_table_gets_what_evaluate_has_predicted(trained: Project, tmp_path: Path) -> None:
    answer = predict(trained, "--file", "data/splits/test.parquet", "--prefix", "predicted_",
                     "--output", tmp_path / "out.parquet")  # fmt: skip
    assert answer.status == 0 and answer.output == ""
    assert "40 reviews in" in answer.errors and str(tmp_path / "out.parquet") in answer.errors
    found = pq.read_table(tmp_path / "out.parquet")
    given, info = read_reviews(trained.root / "data/splits/test.parquet")
    assert found.column_names == [*given.column_names, *(f"predicted_{name}" for name in ADDED)]
    assert found.select(given.column_names).equals(given)
    expected = pq.read_table(trained.root / "data/predictions.parquet")
    labels = [info.label_names[i] for i in expected["predicted"].to_pylist()]
    assert found["predicted_label"].to_pylist() == labels
    for name in ADDED[2:]:
        assert found[f"predicted_{name}"].to_numpy().tolist() == expected[name].to_numpy().tolist()


@pytest.mark.parametrize("end", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("start", [".csv", ".csv.gz", ".parquet"])
def test_every_kind_of_table_keeps_its_rows(
    start: str, end: str, trained: Project, tmp_path: Path
) -> None:
    texts = [f'{text} "{number}",\nand so on' for number in range(5) for text in (GOOD, BAD)]
    notes = ["007", "NA", "", "é😀", "=1+1"] * 2
    given, output = tmp_path / f"given{start}", tmp_path / f"out{end}"
    if start == ".parquet":
        pq.write_table(pa.table({"note": notes, "review": texts}), given)
    else:
        text = io.StringIO()
        csv.writer(text).writerows([("note", "review"), *zip(notes, texts, strict=True)])
        content = ("\ufeff" + text.getvalue()).encode()
        given.write_bytes(gzip.compress(content) if start == ".csv.gz" else content)
    assert predict(trained, "--file", given, "--output", output).status == 0
    found = read(output)
    assert found.column_names == ["note", "review", *ADDED]
    assert found["note"].to_pylist() == notes and found["review"].to_pylist() == texts
    expected = ReviewClassifier(trained.root / "data/model").predict(texts)
    assert found["label"].to_pylist() == expected["label"].tolist()
    assert found["probability"].to_pylist() == expected["probability"].tolist()


@pytest.mark.parametrize(
    ("columns", "options", "chosen"),
    [
        (["review", "text"], [], 0),
        (["other", "text"], [], 1),
        (["other"], [], 0),
        (["review", "other"], ["--text-column", "other"], 1),
    ],
)
def test_the_column_of_the_texts(
    columns: list[str], options: list[str], chosen: int, trained: Project, tmp_path: Path
) -> None:
    values = [[GOOD], [BAD]][: len(columns)]
    pq.write_table(pa.table(dict(zip(columns, values, strict=True))), tmp_path / "given.parquet")
    output = tmp_path / "out.parquet"
    answer = predict(
        trained, "--file", tmp_path / "given.parquet", "--output", output, *options
    )  # fmt: skip
    assert answer.status == 0
    one = predict(trained, values[chosen][0]).output.split("\t")[1]
    assert pq.read_table(output)["probability"][0].as_py() == pytest.approx(float(one), abs=6e-5)


ROWS = b"review,stars\ngood,1\nbad,2\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.csv", None, "", "a.csv: no such file"),
        ("a.txt", ROWS, "", "--file: FOLDER/a.txt: must end with .csv, .csv.gz, .parquet"),
        ("a.csv", b"", "", "a.csv: is empty"),
        ("a.csv", b"review,stars\n", "", "has no rows"),
        ("a.csv", b"a,b\n1,2\n", "", "no column 'review' or 'text'; it has 'a', 'b'; name one"),
        ("a.csv", ROWS, "--text-column x", "no column 'x'; it has 'review', 'stars'"),
        ("a.csv", b"review,review\na,b\n", "", "column 'review' stands there twice"),
        ("a.csv", b"review,label\na,b\n", "", "has a column 'label' already"),
        ("a.csv", b"review,s\ngood,1\n,2\n ,3\n", "", "row 2: column 'review' is empty (and in 1"),
        ("a.csv", b"text\ngood\n\nbad\n", "", "row 2: column 'text' is empty"),
        ("a.csv", b"\ntext\ngood\n", "", "line 1 is empty, where the column's name must stand"),
        ("a.csv", b"review,s\ngood,1\n\xff,2\n", "", "line 3: not UTF-8"),
        ("a.csv", b"review,s\ngood,1\na,b,c\n", "", "not a table: Expected 2 fields in line 3"),
        ("a.csv.gz", gzip.compress(ROWS * 99, mtime=0)[:-9], "", "damaged or cut off"),
        ("a.parquet", ROWS, "", "not a Parquet file"),
        ("a.csv", ROWS, "--output old.txt", "--output: old.txt: must end with .csv, .csv.gz"),
        ("a.csv", ROWS, "--output data/../FOLDER/a.csv", "is the same file as --file"),
        ("a.csv", ROWS, "--output FOLDER", "must end with"),
        ("a.csv", ROWS, "--model nowhere", "nowhere: no such folder"),
        ("a.csv", ROWS, "--model data/splits", "no model of the train stage: it has no run.json"),
        ("a.csv", ROWS, "--model models:/a/b/c/d", "must be a folder, runs:/ID, models:/NAME/VER"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    name: str, content: bytes | None, options: str, words: str, trained: Project, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "old.parquet").write_bytes(b"as it was")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    replaced = [part.replace("data/../FOLDER", str(tmp_path)) for part in options.split()]
    replaced = [part.replace("FOLDER", str(tmp_path)) for part in replaced]
    given = ["--file", tmp_path / name, "--output", tmp_path / "old.parquet", *replaced]
    message = predict(trained, *given).message
    assert words.replace("FOLDER", str(tmp_path)) in message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_wrong_texts_and_options_are_one_line(trained: Project, tmp_path: Path) -> None:
    assert "text 2: is empty" in predict(trained, GOOD, " ").message
    assert "text 1: not UTF-8" in predict(trained, "\udcff").message
    assert "stdin: line 2: is empty" in predict(trained, "-", stdin=b"a\n\nb\n").message
    assert "stdin: has no line" in predict(trained, "-").message
    assert "--output: goes with --file" in predict(trained, GOOD, "--output", "a.csv").message
    assert "--output: is missing" in predict(trained, "--file", "a.csv").message
    pq.write_table(pa.table({"review": [GOOD, None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"review": [1, 2]}), tmp_path / "int.parquet")
    pq.write_table(pa.table({"review": [GOOD], "list": [[1]]}), tmp_path / "list.parquet")
    for name, words in (
        ("null.parquet", "row 2: column 'review' is empty"),
        ("int.parquet", "column 'review' must hold strings, not int64"),
    ):
        given = ("--file", tmp_path / name, "--output", tmp_path / "o.csv")
        assert words in predict(trained, *given).message
    answer = predict(
        trained, "--file", tmp_path / "list.parquet", "--output", tmp_path / "o.csv"
    )  # fmt: skip
    assert answer.status == 1 and "CSV cannot hold this table" in answer.errors
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "int.parquet", "list.parquet", "null.parquet"
    ]  # fmt: skip


def with_code_of_its_own(folder: Path) -> None:
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    facts = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    (folder / "config.json").write_text(
        json.dumps({**facts, "model_type": "own", "auto_map": names})
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_the_weights, "the model cannot be loaded"),
        (lose_a_layer, "lacks 1 weights, classifier.weight for one"),
        (name_a_third_class, "run.json names 3 classes, config.json has 2"),
        (make_weights_nan, "the model's output is no finite number"),
        (
            lambda folder: change_settings(folder, truncation="tail"),
            "truncation is 'tail', none of",
        ),
        (
            lambda folder: change_settings(folder, max_length=True),
            "max_length is missing, or no int",
        ),
        (lambda folder: (folder / "run.json").write_text("{}"), "label_names is missing"),
        (lambda folder: (folder / "run.json").write_text("{"), "run.json: damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (with_code_of_its_own, "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: "),
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "it has no model.safetensors",
        ),
    ],
)
def test_a_damaged_model_is_refused(
    damage: Any, words: str, trained: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained.root / "data/model", folder)
    damage(folder)
    assert words in predict(trained, GOOD, "--model", folder).message
    assert not (folder / "ran").exists()


def test_the_pipelines_own_model_is_compared_with_its_record(
    trained: Project, tmp_path: Path
) -> None:
    shutil.copytree(trained.root / "data/model", tmp_path / "data/model")
    shutil.copytree(trained.root / "data/history", tmp_path / "data/history")
    project = Project(tmp_path)
    assert predict(project, GOOD).output == predict(trained, GOOD).output
    weights = tmp_path / "data/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors: damaged, or not of the training" in predict(project, GOOD).message
    shutil.rmtree(tmp_path / "data/model")
    assert "there is no model; `dvc repro` trains one" in predict(project, GOOD).message


def test_a_model_of_mlflow(trained: Project) -> None:
    run_id = runs_of(trained)[0].info.run_id
    expected = predict(trained, GOOD, BAD).output
    for source in (
        f"runs:/{run_id}", f"runs:/{run_id}/model", "models:/reviews@best", "models:/reviews/1",
        "models:/reviews/latest",
    ):  # fmt: skip
        answer = predict(trained, GOOD, BAD, "--model", source)
        assert (answer.status, answer.output) == (0, expected), (source, answer.errors)
    # The other command that asks a model takes the same.
    answer = predict(trained, GOOD, "--model", "models:/reviews@best", command="explain")
    label, probability = expected.split("\n")[0].split("\t")
    assert answer.output.startswith(f"{label}: {float(probability):.1%}"), answer
    assert answer.errors.startswith("models:/reviews@best: on cpu")
    for source, words in (
        ("runs:/0123", "Run with id=0123 not found"),
        ("models:/reviews@worst", "alias worst not found"),
        ("models:/reviews/9", "version=9) not found"),
        ("models:/others/1", "name=others not found"),
    ):
        message = predict(trained, GOOD, "--model", source).message
        assert source in message and words in message


def test_a_folder_needs_no_mlflow(trained: Project) -> None:
    found = loaded(trained, "-m", "distiltune.cli", "predict", GOOD)
    assert {"torch", "transformers"} <= found
    assert not found & {"mlflow", "matplotlib", "sklearn"}
    empty = trained.root / "without_runs"
    empty.mkdir()
    message = predict(Project(empty), GOOD, "--model", "runs:/0123").message
    assert "there are no runs here yet" in message
    assert list(empty.iterdir()) == []


def write_large(folder: Path, name: str, num_rows: int) -> None:
    """A table whose rows have 8 kB each, which nothing compresses."""
    notes = [os.urandom(4096).hex() for _ in range(num_rows)]
    table = pa.table({"text": ["good"] * num_rows, "note": notes})
    if name.endswith(".csv"):
        pyarrow.csv.write_csv(table, folder / name)
    else:
        pq.write_table(table, folder / name, compression="none", use_dictionary=False)


PEAK = """
import sys
from distiltune.cli import main
model, *files = sys.argv[1:]
for given, output in zip(files[::2], files[1::2]):
    sys.argv[1:] = ["predict", "--model", model, "--file", given, "--output", output]
    main()
    # Of this process alone; ru_maxrss would count from the size of pytest's.
    print(*[s.split()[1] for s in open("/proc/self/status") if s.startswith("VmHWM")])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(trained: Project, tmp_path: Path) -> None:
    num_rows = 6 * 4096
    for name in ("a.csv", "b.csv", "b.parquet"):
        write_large(tmp_path, name, num_rows // 2 if name == "a.csv" else num_rows)
    assert (tmp_path / "b.parquet").stat().st_size > 190e6
    files = ("a.csv", "1.parquet", "b.csv", "2.parquet", "b.parquet", "3.csv")
    model = str(trained.root / "data/model")
    printed = Project(tmp_path).run(sys.executable, "-c", PEAK, model, *files).stdout
    peaks = [int(line) / 1024 for line in printed.split()]
    # Half of the rows have 100 MB.
    assert len(peaks) == 3 and peaks[2] - peaks[0] < 50, peaks
    for name in ("2.parquet", "3.csv"):
        assert len(read(tmp_path / name)) == num_rows


@pytest.mark.slow
def test_one_that_is_ended_leaves_what_was_there(trained: Project, tmp_path: Path) -> None:
    num_rows = 60_000
    pq.write_table(pa.table({"text": [f"{GOOD} {i}" for i in range(num_rows)]}),
                   tmp_path / "a.parquet")  # fmt: skip
    signals = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}
    processes = {}
    for number in signals:
        folder = tmp_path / number.name
        folder.mkdir()
        (folder / "out.parquet").write_bytes(b"as it was")
        files = ("--file", str(tmp_path / "a.parquet"), "--output", str(folder / "out.parquet"))
        command = (sys.executable, "-m", "distiltune.cli", "predict", *files)
        processes[number] = subprocess.Popen(
            command, cwd=trained.root, env=environment({}), stderr=subprocess.DEVNULL
        )
    for number, process in processes.items():
        folder = tmp_path / number.name
        deadline = time.monotonic() + 120
        # Until some rows are written, aside.
        while not any(path.stat().st_size > 4 for path in folder.glob(".out.parquet.*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == signals[number]
        assert (folder / "out.parquet").read_bytes() == b"as it was"
    assert len(list((tmp_path / "SIGTERM").iterdir())) == 1


def test_half_precision_keeps_the_labels_of_full(
    trained: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained.root / "data/model", folder)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "from_scratch": False}))
    texts = read_reviews(trained.root / "data/splits/train.parquet", ["text"])[0]["text"]
    texts = texts.to_pylist() + [f"{text} And more." for text in texts.to_pylist()]
    # A head for which every second review is positive, so that many are close; none is so close
    # that rounding in fp32 decides.
    plain = ReviewClassifier(folder)
    logits = plain._logits(plain._tokens(plain.encoder.encode(texts)))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] -= (logits[:, 1] - logits[:, 0]).quantile(0.5)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    exact = ReviewClassifier(folder)
    assert exact.runtime.device.type != "cpu" or exact.runtime.precision == "fp32"
    expected = exact.classify(texts)

    runtime = Runtime(device=torch.device("cpu"), precision="bf16", description="bf16")
    monkeypatch.setattr(classifier_module, "choose_runtime", lambda *_, **__: runtime)
    mixed = ReviewClassifier(folder, mixed_on_cpu=True)
    num_done: list[int] = []
    found = mixed.classify(texts, num_done.append)
    assert sum(num_done) == len(texts)
    assert found["label"] == expected["label"]
    assert np.abs(found["probability"] - expected["probability"]).max() < 0.01
    shift = np.abs(found["probability"] - expected["probability"])
    # In fp32 is what is close; not all.
    assert 0 < (shift > 1e-6).sum() < len(texts) - 16
    # bf16 alone has other labels, of which the above would tell nothing if it had none.
    monkeypatch.setattr(classifier_module, "SAFETY", 0.0)
    monkeypatch.setattr(classifier_module, "NUM_PROBES", 1)
    alone = ReviewClassifier(folder, mixed_on_cpu=True).classify(texts)
    assert alone["label"] != expected["label"]
    # A few texts are computed in fp32.
    few = ReviewClassifier(folder, mixed_on_cpu=True).classify(texts[:20])
    expected = exact.classify(texts[:20])
    assert few["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_a_larger_difference_makes_others_close(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Margins in bf16 against those in fp32: the second row shows what the third needs."""
    given = torch.tensor([1e-3] * 16 + [3e-2, 0.3, 5.0] + [9.0] * 45)
    exact = given + torch.tensor([0.01] * 16 + [0.5, -0.4, 0.1] + [0.0] * 45)
    classifier = ReviewClassifier(trained.root / "data/model")
    classifier.is_mixed = True
    # Each text is one token, its number.
    encoded = Encoded(
        ids=np.arange(len(given), dtype=np.int32),
        lengths=np.ones(len(given), dtype=np.int64),
        is_cut=np.zeros(len(given), dtype=np.bool_),
    )

    def answer(asked: Tokens, runtime: Any, _: Any = None) -> torch.Tensor:
        if runtime is not classifier.exact:
            return torch.stack([torch.zeros_like(given), given], dim=1)
        return torch.stack([torch.zeros(asked.num_reviews), exact[asked.ids]], dim=1)

    monkeypatch.setattr(classifier, "_compute", answer)
    found = classifier._logits(classifier._tokens(encoded))[:, 1]
    assert found[:18].tolist() == exact[:18].tolist()
    assert found[18:].tolist() == given[18:].tolist()


class Screen(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_one_line_on_a_terminal(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]
    screen = Screen(is_terminal=is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    progress = Progress(20_000)
    for seconds[0] in (0.1, 40.0, 40.1, 80.0):
        progress.add(2_000)
    progress.end("out.csv")
    shown = [
        "4,000 of 20,000 reviews (20%), 100.0 a second, 2 min 40 s left",
        "8,000 of 20,000 reviews (40%), 100.0 a second, 2 min 00 s left",
        "8,000 reviews in 1 min 20 s (100.0 a second): out.csv",
    ]
    if is_terminal:
        assert screen.getvalue() == "".join(f"\r{line}\x1b[K" for line in shown) + "\n"
    else:
        assert screen.getvalue().splitlines() == shown


@pytest.mark.slow
def test_the_benchmark_compares_with_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def new_distilbert() -> Any:
        torch.manual_seed(0)
        return DistilBertForSequenceClassification(
            DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32)
        )

    monkeypatch.setattr(inputs, "new_distilbert", new_distilbert)
    monkeypatch.setattr(benchmark, "NUM_CALLS", 2)
    options = ["--num-reviews", "70", "--rounds", "1", "--batch-sizes", "4"]
    benchmark.run(benchmark.parse([*options, "--output", str(tmp_path)]))
    report = json.loads((tmp_path / "predict.json").read_text())
    assert report["num_reviews"] == 70 and len(report["cases"]) == 5
    for name in (benchmark.PRODUCT, benchmark.EXPORTED):
        assert report["cases"][name]["num_other_labels"] == 0
    seconds = {name: case["seconds"][0] for name, case in report["cases"].items()}
    best = min(seconds[benchmark.REFERENCE], seconds["pipeline, batches of 4"])
    expected = pytest.approx(best / seconds[benchmark.PRODUCT])
    assert report["ratios"]["to_best_batch_size_seconds"] == expected
    assert len(report["latency_ms"]) == 3
    assert all(ms > 0 for found in report["latency_ms"].values() for ms in found.values())
    output = capsys.readouterr().out
    assert all(name in output for name in report["cases"])
