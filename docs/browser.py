"""The real UI in headless Chromium, for the pictures of it and for its test."""

import contextlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from distiltune import InputError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_MILLISECONDS = 120_000
# MLflow's Assistant opens by itself on the first visit, and hides a third of the page.
WITHOUT_ASSISTANT = """
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.workflowType_v1", JSON.stringify("machine_learning"));
"""


def find_chromium() -> str:
    """The path of the Chromium, or Chrome, that is there.

    Raises:
        InputError: there is none.
    """
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise InputError(f"none of {', '.join(NAMES)} is on the path; `apt-get install chromium` "
                     "brings the first")  # fmt: skip


@contextlib.contextmanager
def open_page(width: int, height: int) -> Iterator[Page]:
    """A page of a browser that has never been here; without MLflow's Assistant.

    Args:
        width: in pixels.
        height: in pixels.
    """
    executable = find_chromium()
    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container lacks, and it opens nothing but our own pages.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(WAIT_MILLISECONDS)
        page.add_init_script(WITHOUT_ASSISTANT)
        yield page
        browser.close()


@contextlib.contextmanager
def serve_ui(root: Path, environment: Mapping[str, str], *command: str) -> Iterator[str]:
    """The UI on a project's store; gives the address that it prints.

    Args:
        root: of the project.
        environment: of the process.
        command: what starts it, by default `distiltune ui`; the port is put behind it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = command or (sys.executable, "-m", "distiltune.cli", "ui", "--port", "")
    server = subprocess.Popen(
        [*command[:-1], f"{command[-1]}{port}"], cwd=root, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    said = []
    try:
        for line in server.stdout:
            said.append(line)
            if found := re.fullmatch(r"The runs: (\S+)\n", line):
                yield found[1]
                return
        raise InputError(f"the UI did not start:\n{''.join(said)}")
    finally:
        server.terminate()
        server.communicate()
