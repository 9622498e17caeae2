"""What a user finds in MLflow's UI, in a real browser."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distiltune import InputError
from tests.conftest import Project, environment

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.ui
browser = pytest.importorskip("docs.browser", reason="playwright is not there: make test-ui")


@pytest.fixture
def page() -> Iterator["Page"]:
    try:
        browser.find_chromium()
    except InputError as error:
        pytest.skip(str(error))
    with browser.open_page(1800, 900) as opened:
        yield opened


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_make_ui_prints_the_address_of_runs_that_show_what_the_files_say(
    prepared: Project, page: "Page"
) -> None:
    for stage in ("train", "evaluate"):
        prepared.stage_here(stage)
    test, train = (read(prepared.root / "metrics" / f"{name}.json") for name in ("test", "train"))
    mistakes = read(prepared.root / "data" / "mistakes.json")
    # No set-up: make's own environment is this one.
    scripts = prepared.root / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts.parent / ".installed").touch()
    command = scripts / "distiltune"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m distiltune.cli "$@"\n')
    command.chmod(0o755)
    shell = environment({"PYTHONPATH": str(prepared.root / "src")})
    with browser.serve_ui(prepared.root, shell, "make", "ui", "PORT=") as address:
        page.goto(address)
        row = page.get_by_role("link", name="tiny-adam-123")
        row.wait_for()
        table = page.locator(".ag-root").inner_text()
        shown = re.findall(r"0\.\d+", table)
        for figure in (test["accuracy"], test["loss"], train["validation_accuracy"]):
            assert any(abs(float(text) - figure) <= 0.51 * 10.0 ** -len(text[2:]) for text in shown)
        row.click()
        page.get_by_role("heading", name="Registered models").wait_for()
        page.get_by_text("test reviews are right").wait_for()
        overview = page.locator("body").inner_text()
        run = re.search(r".*/runs/\w+", page.url)
        assert run
        low, high = test["accuracy_low"], test["accuracy_high"]
        assert (
            f"{test['accuracy']:.2%} of 40 test reviews are right (95 % interval {low:.2%} to "
            f"{high:.2%}); loss {test['loss']:.4f}."
        ) in overview
        digest = _digest(prepared.root)
        assert f"sample ({digest})" in overview
        assert re.search(r"Registered models\s+distiltune\s+v1", overview)
        link = page.get_by_role("link", name="distiltune", exact=True).last
        assert "models/distiltune/versions/1" in str(link.get_attribute("href"))
        page.goto(f"{run[0]}/artifacts/test/mistakes.json")
        page.get_by_role("columnheader", name="probability").wait_for()
        first = page.locator("body").inner_text()
        text, label, predicted, probability = mistakes["data"][0]
        assert re.search(
            rf"{re.escape(text[:40])}.*\s+{label}\s+{predicted}\s+{probability:g}", first
        )
        page.goto(f"{run[0]}/artifacts/plots/confusion.png")
        page.reload()
        picture = page.get_by_alt_text("plots/confusion.png")
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") > 300


def _digest(root: Path) -> str:
    """The data set's, as a run's record has it."""
    return str(read(root / "data" / "model" / "run.json")["dataset_digest"])[:32]
