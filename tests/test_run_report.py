"""`distiltune report`: one run's page, what keeps it from being made; `dvc plots` of two runs."""

import io
import json
import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvc.cli import main as dvc_main

from distiltune import cli
from distiltune.evaluation.plots import write_plots
from distiltune.evaluation.run import all_metrics
from distiltune.reporting.files import PICTURES, Origin
from distiltune.reporting.model import FinishedRun, Output
from distiltune.reporting.page import SHOWN_CHARACTERS, write_page
from tests.conftest import Project, as_if_alone

# By the name in dvc.yaml: title, labels of the axes, and what a line or cell is made of.
PLOTS = {
    "Loss by step": ("Training and validation loss", "step", "cross-entropy"),
    "Accuracy by epoch": (
        "Training and validation accuracy", "epoch", "share of reviews that are right",
    ),
    "Learning rate by step": ("Learning rate", "step", "learning rate"),
    "Speed by step": ("Training speed", "step", "tokens per second"),
    "Confusion on the test split": ("Confusion on the test split", "predicted", "actual"),
    "ROC on the test split": (
        "ROC on the test split", "false positive rate", "true positive rate",
    ),
    "Calibration on the test split": (
        "Calibration on the test split", "confidence of the answer", "share that is right",
    ),
}  # fmt: skip
# Elements without an end.
VOID = {"img", "meta"}


class Page(HTMLParser):
    """What a browser makes of the page, as far as it matters here."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, name: str) -> list[str]:
        """The cells behind the first row so named."""
        return next(row[1:] for row in self.rows if row and row[0] == name)


def report(
    project: Project, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """The command as its user gives it: exit status, output, errors."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    monkeypatch.setattr(sys, "argv", ["distiltune", "report", *arguments])
    try:
        with as_if_alone(project.root, output, errors):
            cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    return status, output.getvalue(), errors.getvalue()


def dvc_commit(project: Project, *stages: str) -> None:
    """`dvc commit -f`, without a process of its own, which imports for seconds."""
    with as_if_alone(project.root, io.StringIO(), io.StringIO()):
        assert dvc_main(["commit", "-f", "-q", *stages]) == 0


def values_of(plot: dict[str, Any], revision: str) -> list[dict[str, str]]:
    return [row for row in plot["content"]["data"]["values"] if row["rev"] == revision]


def axis_titles(spec: Any) -> set[str]:
    """The titles of x and y, wherever in the plot they stand."""
    found: set[str] = set()
    if isinstance(spec, dict):
        encoding = spec.get("encoding", {})
        found = {encoding[axis]["title"] for axis in "xy" if "title" in encoding.get(axis, {})}
    parts = list(spec.values() if isinstance(spec, dict) else spec)
    return found.union(*(axis_titles(part) for part in parts if isinstance(part, dict | list)))


def test_pages_and_plots_of_real_runs(prepared: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.change_params({"tracking.log_model": False, "tracking.system_metrics": False})
    for optimizer in ("adam", "adamw"):
        prepared.change_params({"optimizer": optimizer})
        prepared.stage_here("train")
        prepared.stage_here("evaluate")
        dvc_commit(prepared)
        prepared.commit()
        prepared.git("tag", optimizer)
    _check_plots(prepared)

    metrics = json.loads((prepared.root / "metrics" / "test.json").read_text())
    status, output, errors = report(prepared, monkeypatch)
    file = prepared.root / "reports" / "run.html"
    assert (status, errors) == (0, "") and output.endswith(f"\npage: {file}\n")
    page = Page(file)
    assert "tiny with adamw, seed 123" in page.text
    accuracy = f"{100 * metrics['accuracy']:.2f} %"
    assert accuracy in output and page.row("accuracy")[0].startswith(accuracy)
    assert page.row("loss (cross-entropy)") == [f"{metrics['loss']:.4f}"]
    assert page.row("reviews") == ["40"] and page.row("optimizer") == ["adamw"]
    assert page.row("optimizer.warmup_steps") == ["5"]
    assert page.row("commit") == [prepared.git("rev-parse", "HEAD")]
    assert page.row("class negative") == ["78", "20", "22"]
    lock = (prepared.root / "dvc.lock").read_text()
    digest = next(row[2] for row in page.rows if row[1:2] == ["data/model"])
    assert digest in lock

    status, output, _ = report(prepared, monkeypatch, "--experiment", "adam", "--output", "a.html")
    assert status == 0
    page = Page(prepared.root / "a.html")
    assert "tiny with adam, seed 123" in page.text
    assert page.row("commit") == [prepared.git("rev-parse", "adam")]
    assert prepared.git("status", "--porcelain") == "?? a.html"
    status, _, errors = report(prepared, monkeypatch, "--experiment", "nobody")
    assert status == 1 and "'nobody' is no experiment, branch, tag or commit" in errors

    # A row that the run is not of concerns it in no way.
    prepared.change_params({"optimizers.sgd.learning_rate": 0.01})
    assert report(prepared, monkeypatch)[2] == ""
    prepared.git("checkout", "params.yaml")
    prepared.change_params({"optimizer": "lion"})
    status, _, errors = report(prepared, monkeypatch)
    assert status == 0
    assert re.fullmatch(
        r"warning: stage train is out of date, .* changed since: optimizer, optimizers.lion; .*\n",
        errors,
    )
    page = Page(file)
    assert any(attributes.get("role") == "alert" for attributes in page.all("div"))
    assert "changed since: optimizer, optimizers.lion" in page.text
    assert page.row("commit")[0].endswith(", and changes that are not committed in params.yaml")

    before = file.read_bytes()
    prepared.stage_here("train")
    status, _, errors = report(prepared, monkeypatch)
    assert status == 1 and "not what stage train wrote" in errors and "dvc repro train" in errors
    dvc_commit(prepared, "train")
    status, _, errors = report(prepared, monkeypatch)
    assert status == 1 and "not what stage evaluate read" in errors
    assert errors.count("\n") == 1 and "`dvc repro evaluate`" in errors
    assert file.read_bytes() == before


def _check_plots(project: Project) -> None:
    """Of the tags `adam` and `adamw`, and of the checkout."""
    found = json.loads(project.run("dvc", "plots", "diff", "adam", "adamw", "--json").stdout)
    shown = json.loads(project.run("dvc", "plots", "show", "--json").stdout)
    assert "errors" not in found and "errors" not in shown
    assert list(found["data"]) == list(shown["data"]) == list(PLOTS)
    for name, (title, *axes) in PLOTS.items():
        (plot,), (alone,) = found["data"][name], shown["data"][name]
        assert plot["revisions"] == ["adam", "adamw"] and alone["revisions"] == ["workspace"]
        assert plot["content"]["title"]["text"] == alone["content"]["title"]["text"] == title
        assert axis_titles(plot["content"]) == set(axes)
        for revision in plot["revisions"]:
            assert values_of(plot, revision), name
        assert len(values_of(alone, "workspace")) == len(values_of(plot, "adamw"))
        assert "<DVC_METRIC" not in json.dumps(plot)
    loss = values_of(found["data"]["Loss by step"][0], "adam")
    assert {row["filename::field"] for row in loss} == {
        "steps.csv::loss", "epochs.csv::validation_loss",
    }  # fmt: skip
    confusion = values_of(found["data"]["Confusion on the test split"][0], "adamw")
    assert len(confusion) == 40
    rates = [
        [float(row["learning_rate"]) for row in values_of(plot, revision)]
        for plot in found["data"]["Learning rate by step"]
        for revision in plot["revisions"]
    ]
    assert len(set(rates[0])) == 1 and rates[1][-1] < rates[1][0]
    project.dvc("plots", "diff", "adam", "adamw", "-o", "dvc_plots")
    page = (project.root / "dvc_plots" / "index.html").read_text()
    assert "<h1>Plots</h1>" in page and page.count("vegaEmbed('#") == len(PLOTS)
    assert not re.search(r"\{(plot_divs|scripts|refresh_tag)\}", page)


@pytest.mark.parametrize(
    "path", ["metrics/split.json", "data/model/run.json", "metrics/test.json", "data/plots/roc.png"]
)
def test_a_missing_file_names_its_stage(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"metrics/split.json": "split", "data/model/run.json": "train"}
    for name in ("dvc.yaml", "metrics/split.json", "data/model/run.json", "metrics/test.json",
                 "data/history/summary.json", "data/history/steps.csv", "data/history/epochs.csv",
                 "data/mistakes.json", "data/plots/confusion.png"):  # fmt: skip
        if name != path:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("{}")
    status, output, errors = report(Project(tmp_path), monkeypatch)
    assert status == 1 and output == "" and errors.count("\n") == 1
    assert errors.startswith(f"error: {path}: no such file; ")
    assert f"`dvc repro {stages.get(path, 'evaluate')}` makes it" in errors
    assert not (tmp_path / "reports").exists()


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, errors = report(Project(tmp_path), monkeypatch)
    assert status == 1 and "run from the project's root" in errors
    status, _, errors = report(Project(tmp_path), monkeypatch, "--output", "no/where.html")
    assert status == 1 and errors.startswith("error: --output: no/where.html: ")


# --- the page of a run that is made up ---


def make_run(
    folder: Path, label_names: tuple[str, ...], mistakes: Sequence[Sequence[Any]]
) -> FinishedRun:
    """A run of 300 test reviews, every tenth of which stands in training too."""
    generator = np.random.default_rng(0)
    labels = generator.integers(len(label_names), size=300)
    probabilities = generator.dirichlet(np.ones(len(label_names)), size=300)
    num_tokens = generator.integers(1, 700, size=300)
    test = all_metrics(labels, probabilities, num_tokens, label_names)
    kept = np.arange(300) % 10 > 0
    test["without_training_copies"] = all_metrics(
        labels[kept], probabilities[kept], num_tokens[kept], label_names
    )
    write_plots(labels, probabilities, label_names, folder)
    part = {"num_reviews": 300, "per_class": dict.fromkeys(label_names, 7), "copies_within": 1,
            "copies_dropped": 0, "copies_from_train": 30}  # fmt: skip
    return FinishedRun(
        origin=Origin(source="here", commit="<i>c", warnings=()),
        facts={
            "name": "<u>n", "dataset": "<s>d", "label_names": label_names,
            "params": {"model": "<b>m", "optimizer": "o", "seed": 1, "optimizer.betas": [0.9, 0.5],
                       "optimizer.warmup_share": None, "speed.compile": False},
            "tags": {"device": "cpu", "torch": "2"}, "dataset_digest": "d1", "code_digest": "c1",
        },
        split={"num_reviews": 900, "left_over": 0, "copies": 33, "texts_with_two_labels": 0,
               "train": part, "validation": part, "test": part},
        summary={"started": 0.0, "ended": 86400.0, "train_seconds": 20.0,
                 "validation_seconds": 1.0, "num_steps": 10, "num_tokens": 5000,
                 "peak_memory_bytes": 2**30, "optimizer_seconds_per_step": None,
                 "optimizer_state_bytes": None, "energy_joules": 1500.0, "kept_epoch": 1,
                 "stopped_early": True, "weights_sha256": "w1"},
        test=test,
        # As the Trainer: neither accuracy of training nor speed; a loss that is no number.
        steps=[{"step": 5.0, "loss": float("nan"), "learning_rate": 1.0}],
        epochs=[{"epoch": 1.0, "step": 10.0, "train_loss": 0.5, "validation_loss": 0.6,
                 "validation_accuracy": 0.7, "train_seconds": 20.0, "validation_seconds": 1.0}],
        mistakes=mistakes,
        outputs=[Output(stage="train", path="data/<b>", digest="m1", num_bytes=2048)],
        pictures={name: folder / name for name in PICTURES},
    )  # fmt: skip


def test_a_page_runs_nothing_and_tells_what_there_is(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\n& </td></table><img src=x onerror=y> {{ 7*7 }}"
    long = "word " * 200 + "end"
    run = make_run(
        tmp_path,
        ("<em>a", "b", "c"),
        [[hostile, "<em>a", "b", 0.99996], [long, "b", "<em>a", 0.5]],
    )
    write_page(run, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert {name for name, _ in page.tags} & {"script", "em", "b", "i", "u", "s", "link"} == set()
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", source)
    # Each link has its place, each picture its words.
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {str(a["href"]).removeprefix("#") for a in page.all("a")} == places
    assert len(page.all("img")) == 5 and all(picture["alt"] for picture in page.all("img"))
    first, second = (row for row in page.rows if len(row) == 5 and row[0].isdigit())
    assert first == ["1", hostile, "<em>a", "b", "100.00 %"]
    shown, rest = second[1].split("the rest")
    assert len(shown) <= SHOWN_CHARACTERS and shown + rest == long

    assert page.row("reviews") == ["300", "270"]  # all, and without copies
    assert page.row("tokens per second") == ["250"] and page.row("energy") == ["1.50 kJ"]
    assert not any(row[:1] == ["optimizer's memory"] for row in page.rows)  # not measured
    assert ["1", "10", "0.5000", "-", "0.6000", "70.00 %", "20.0"] in page.rows
    assert page.row("optimizer.betas") == ["[0.9, 0.5]"]
    assert page.row("optimizer.warmup_share") == ["null"]
    assert page.row("speed.compile") == ["false"]
    assert page.row("copies of training reviews") == ["30", "30", "30"]
    assert "1970-01-01 00:00 UTC to 1970-01-02 00:00 UTC" in page.text
    assert "means over the classes" in page.text and "The training ended early" in page.text
