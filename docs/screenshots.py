"""Makes the pictures of the UI and of a run's report.

    python -m docs.screenshots [--output FOLDER] [--store PROJECT]

In a copy of this checkout it runs a sweep of two variants by two seeds on generated reviews,
starts the real UI on it, and takes `ui-*.png` and `report.png` with headless Chromium. Some
minutes.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from benchmarks.torture import prepare, shell
from distiltune.runtime import run_stage
from docs.browser import find_chromium, open_page, serve_ui

SETTINGS = {
    "dataset": "sample", "model": "tiny", "datasets.sample.num_reviews": 6000,
    "splits.sample.train": 5000, "splits.sample.validation": 500, "splits.sample.test": 500,
    "train.epochs": 6,
}  # fmt: skip
SWEEP = ("sweep", "--optimizers", "adam,lion", "--seeds", "2", "--name", "adam-or-lion")
WIDTH, HEIGHT = 1280, 760
NUM_COLOURS = 128
SETTLE_MILLISECONDS = 3000  # charts move to their places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--store", type=Path, metavar="PROJECT",
                        help="of whose runs, instead of new ones")  # fmt: skip
    arguments = parser.parse_args()
    find_chromium()  # now, and not after the sweep
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        project = arguments.store or _train(Path(folder) / "distiltune")
        with serve_ui(project, shell()) as address, open_page(WIDTH, HEIGHT) as page:
            arguments.output.mkdir(parents=True, exist_ok=True)
            photographer = Photographer(page, arguments.output)
            photographer.tour(address)
            photographer.take_report(_report(project, Path(folder)))


def _train(project: Path) -> Path:
    prepare(project, [f"{key}={value}" for key, value in SETTINGS.items()])
    command = [sys.executable, "-m", "distiltune.cli", *SWEEP]
    subprocess.run(command, cwd=project, env=_own_code(project), check=True)
    return project


def _report(project: Path, folder: Path) -> Path:
    """The page about the first run of the sweep."""
    names = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "list", "--name-only"], cwd=project,
        env=_own_code(project), check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    name = next(name for name in names if name.startswith("adam-1-"))
    page = folder / "report.html"
    command = [sys.executable, "-m", "distiltune.cli", "report", "--experiment", name]
    subprocess.run(
        [*command, "--output", str(page)], cwd=project, env=_own_code(project), check=True
    )
    return page


def _own_code(project: Path) -> Mapping[str, str]:
    return {**shell(), "PYTHONPATH": str(project / "src")}


class Photographer:
    """Goes through the UI as a reader would, and takes a picture at each place."""

    def __init__(self, page: Page, output: Path) -> None:
        self.page = page
        self.output = output

    def tour(self, address: str) -> None:
        """Take all pictures.

        Args:
            address: of the runs table.
        """
        page = self.page
        self._open_table(address)
        self._take("ui-runs")
        home = re.sub(r"/runs\?.*", "", address)
        page.get_by_role("link", name="tiny-adam-1").click()
        page.get_by_text("test reviews are right").wait_for()
        url = re.match(rf"{re.escape(home)}/runs/\w+", page.url)
        assert url
        page.get_by_text("Show more").first.click()
        page.get_by_placeholder("Search metrics").fill("test/")
        self._take("ui-run")
        for tab, wanted, name in (
            ("model-metrics", "^(train|validation)/", "ui-curves"),
            ("system-metrics", "cpu|memory|network", "ui-system"),
        ):
            page.goto(f"{url[0]}/{tab}")
            page.get_by_placeholder("Search metric charts").fill(wanted)
            page.locator(".js-plotly-plot").nth(2).wait_for()
            self._take(name)
        page.goto(f"{url[0]}/artifacts/plots/confusion.png")
        page.get_by_alt_text("plots/confusion.png").wait_for()
        self._take("ui-picture")
        page.goto(f"{url[0]}/artifacts/test/mistakes.json")
        page.reload()  # within its tab MLflow does not look at the address again
        page.get_by_role("columnheader", name="probability").wait_for()
        self._take("ui-mistakes")
        page.goto(f"{home.split('#')[0]}#/models/distiltune")
        page.get_by_text("champion").nth(1).wait_for()
        self._take("ui-champion")
        page.goto(f"{address}&compareRunsMode=CHART")
        page.get_by_role("button", name="Hide banner").click()
        self.page.locator("[data-component-id*=runnamecellrenderer]").first.click()
        page.get_by_role("link", name="tiny-adam-1").wait_for()
        page.get_by_placeholder("Search metric charts").fill("^validation/")
        page.locator(".js-plotly-plot").nth(1).wait_for()
        self._take("ui-compare")

    def take_report(self, file: Path) -> None:
        self.page.set_viewport_size({"width": WIDTH, "height": 2 * HEIGHT})
        self.page.goto(file.as_uri())
        self._take("report")

    def _open_table(self, address: str) -> None:
        self.page.goto(address)
        self.page.get_by_role("button", name="Hide banner").click()
        # The sweep, whose runs are below it.
        self.page.locator("[data-component-id*=runnamecellrenderer]").first.click()
        self.page.get_by_role("link", name="tiny-adam-1").wait_for()

    def _take(self, name: str) -> None:
        self.page.mouse.move(0, 0)  # or a chart shows its buttons
        self.page.evaluate("document.activeElement.blur()")
        self.page.wait_for_timeout(SETTLE_MILLISECONDS)
        # MLflow shows where the store is, which is nobody's business here.
        self.page.evaluate(HIDE_PATHS)
        file = self.output / f"{name}.png"
        self.page.screenshot(path=file)
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        small.save(file, optimize=True)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB", flush=True)


HIDE_PATHS = r"""
() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = texts.nextNode()); )
    node.data = node.data.replace(/file:\/\/\/\S*?(?=\/mlartifacts)/g, "file:///...");
}
"""


if __name__ == "__main__":
    run_stage(main)
