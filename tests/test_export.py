"""`distiltune export`: what other programs read there, that it agrees, what is refused."""

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer

from distiltune import cli
from distiltune.artifacts import reviews_schema, write_reviews
from distiltune.exporting import formats
from distiltune.sample import SAMPLE_INFO, generate_reviews
from distiltune.trained import load_trained
from tests.conftest import Project, as_if_alone, environment
from tests.damage import make_weights_nan
from tests.test_explain import make_model, write_settings
from tests.test_start_up import loaded

TEXTS = [" ".join(generate_reviews(n, n)[0]) for n in (1, 30, 2, 5)] + ["The plot", "superb!"]
SLOW = [pytest.param(*names, marks=pytest.mark.slow) for names in (
    ("bert", "onnx"), ("bert", "torch"), ("tiny", "onnx"), ("tiny", "torch"),
    ("distilbert", "torch"),
)]  # fmt: skip
FILES = ["README.md", "classify.py", "config.json", "export.json", "tokenizer.json",
         "tokenizer_config.json"]  # fmt: skip


def export(root: Path, *arguments: object) -> tuple[int, str, str]:
    """The command as its user gives it: exit status, output, errors."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["distiltune", "export", *map(str, arguments)])
        try:
            with as_if_alone(root, output, errors):
                cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
    return status, output.getvalue(), errors.getvalue()


def expected_logits(folder: Path) -> Any:
    """Of `TEXTS`, each alone and without padding."""
    trained = load_trained(folder)
    rows = []
    for text in TEXTS:
        ids = torch.from_numpy(trained.encoder.encode([text]).ids).long()[None]
        with torch.inference_mode():
            rows.append(trained.model(ids, torch.ones_like(ids)).logits)
    return torch.cat(rows).numpy()


def test_the_folder_is_all_that_an_onnxruntime_program_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model(tmp_path / "made", "distilbert")
    status, output, errors = export(tmp_path, "--model", source, "--output", "out")
    assert status == 0, errors
    assert output.startswith("out: model.onnx, 0.")
    assert "comparing it with transformers on 12 generated reviews" in errors
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "model.onnx"])
    facts = json.loads((folder / "export.json").read_text())
    assert facts["labels"] == ["negative", "positive"] and facts["opset"] == 18
    assert facts["agreement"]["largest_difference"] < 1e-5
    assert facts["agreement"]["longest_tokens"] == facts["max_length"] == 128
    assert facts["truncation"] == {"first": 127, "last": 1}

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    named = {tensor.name: (tensor.type, tensor.shape)
             for tensor in (*session.get_inputs(), *session.get_outputs())}  # fmt: skip
    axes = ("tensor(int64)", ["batch", "length"])
    assert named == {
        "input_ids": axes, "attention_mask": axes, "logits": ("tensor(float)", ["batch", 2])
    }  # fmt: skip
    opsets = {o.domain: o.version for o in onnx.load(folder / "model.onnx").opset_import}
    assert opsets == {"": 18}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = expected_logits(source)
    assert 0 < expected.argmax(1).sum() < len(TEXTS)
    for texts, rows in ((TEXTS, expected), (TEXTS[:1], expected[:1])):
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        assert encoded["attention_mask"].shape[1] == 128 or len(texts) == 1
        feed = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        (found,) = session.run(["logits"], feed)
        np.testing.assert_allclose(found, rows, atol=1e-5)

    # Its own example, elsewhere, without this package.
    names = [facts["labels"][i] for i in expected.argmax(1)]
    folder = folder.rename(tmp_path / "moved")
    command = ("moved/classify.py", *TEXTS, "")
    lines = Project(tmp_path).run(sys.executable, *command).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines[:-1]] == names and len(lines) == len(names) + 1
    usage = Project(tmp_path).run(sys.executable, "moved/classify.py", check=False)
    assert usage.returncode == 1 and usage.stderr == "usage: python classify.py TEXT ...\n"
    found = loaded(Project(tmp_path), *command)
    assert "onnxruntime" in found and not found & {"distiltune", "torch", "transformers"}

    # And the code that its README shows.
    text = (folder / "README.md").read_text()
    assert "taught to read the start alone, 128 tokens with the special ones." in text
    code = text[text.index("    import json") :].split("\n\n|")[0].splitlines()
    monkeypatch.chdir(folder)
    exec("\n".join(line[4:] for line in code).replace("A superb film.", TEXTS[1]), {})
    assert capsys.readouterr().out == f"['{names[1]}']\n"


@pytest.mark.parametrize(
    ("architecture", "kind"), [("lstm", "onnx"), *SLOW]
)  # fmt: skip
def test_other_models_and_formats_agree(architecture: str, kind: str, tmp_path: Path) -> None:
    # Of the project's own validation reviews.
    texts, labels = generate_reviews(40, 3)
    schema = reviews_schema(SAMPLE_INFO)
    columns = [pa.array(list(texts)), pa.array(list(labels), pa.int32())]
    (tmp_path / "data/splits").mkdir(parents=True)
    write_reviews(tmp_path / "data/splits/validation.parquet",
                  [pa.record_batch(columns, schema=schema)], schema)  # fmt: skip
    source = make_model(tmp_path / "made", architecture)
    if architecture == "lstm":
        write_settings(source, 64, "head_tail")
    source.rename(tmp_path / "data/model")
    # An earlier export makes place.
    folder = tmp_path / "deep/out"
    folder.mkdir(parents=True)
    (folder / "export.json").write_text("{}")
    (folder / "model.old").write_text("")
    status, output, errors = export(tmp_path, "--output", "deep/out", "--format", kind)
    assert status == 0, errors
    assert "logits of 12 validation reviews" in output
    assert len(list(folder.iterdir())) == 7 and not (folder / "model.old").exists()
    if architecture == "lstm":
        both_ends = "taught to read the first 16 tokens and the last 48, special ones among them."
        assert both_ends in (folder / "README.md").read_text()
    # As a user of the folder has it, with truncation.
    code = "import json, classify, pathlib, sys\n" \
        "model = classify.ExportedModel(pathlib.Path('.'))\n" \
        "print(json.dumps(model.logits(json.load(sys.stdin)).tolist()))"  # fmt: skip
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, input=json.dumps(TEXTS), text=True,
        capture_output=True, check=True, env=environment({}),
    )  # fmt: skip
    found = json.loads(printed.stdout)
    np.testing.assert_allclose(found, expected_logits(tmp_path / "data/model"), atol=1e-5)


def test_a_disagreement_is_an_error_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model(tmp_path / "made", "distilbert")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/export.json").write_text("earlier")
    plain = formats._Logits.forward

    def ignore_padding(self: Any, input_ids: Any, attention_mask: Any) -> Any:
        return plain(self, input_ids, torch.ones_like(attention_mask))

    monkeypatch.setattr(formats._Logits, "forward", ignore_padding)
    arguments = ("--model", source, "--output", "out", "--format", "torch")
    status, output, errors = export(tmp_path, *arguments)
    assert status == 1 and output == ""
    assert "error: the exported model disagrees with transformers: logits of 12" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out"]
    assert (tmp_path / "out/export.json").read_text() == "earlier"


def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: make_model(tmp_path / name, name) for name in ("distilbert", "lstm")}

    def refused(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        status, output, errors = export(tmp_path, *arguments)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert status == 1 and output == "" and len(lines) == 1 and "Traceback" not in errors
        assert len(lines[0]) < 500
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]

    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.txt").write_text("mine")
    shutil.copytree(folders["distilbert"], tmp_path / "nan")
    make_weights_nan(tmp_path / "nan")
    model = ("--model", folders["distilbert"])
    assert "own: is there and is not an export" in refused("--output", "own", *model)
    assert "there is no model; `dvc repro` trains one" in refused("--output", "out")
    message = refused("--output", "out", "--model", folders["lstm"], "--format", "torch")
    assert "--format: torch: torch.export unrolls an LSTM" in message
    message = refused("--output", "out", "--model", "nan", "--format", "torch")
    assert "nan: the model's output is no finite number" in message
    assert "no such folder" in refused("--output", "out", "--model", "gone")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused("--output", "out", *model)
    assert "--format: 'onnx' needs the package onnxscript" in message
    assert "pip install '.[onnx]'" in message

    def fails(*_: object) -> None:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(formats, "_trace", fails)
    message = refused("--output", "out", *model, "--format", "torch")
    assert message == (
        "error: a distilbert model cannot be exported to model.pt2: no such operator"
    )


@pytest.mark.slow
def test_one_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    source = make_model(tmp_path / "made", "bert")
    process = subprocess.Popen(
        [sys.executable, "-m", "distiltune.cli", "export", "--output", "out", "--format", "torch",
         "--model", str(source)],
        cwd=tmp_path, env=environment({}), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert "exporting" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
