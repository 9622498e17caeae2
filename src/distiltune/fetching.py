"""Fetches a file by its checksum: mirrors in order, retries, a progress bar."""

import logging
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pooch
import requests

from distiltune import InputError
from distiltune.artifacts import sha256_of

# Three tries of one URL stay well under a minute where nothing answers.
TIMEOUT_SECONDS = 8
NUM_RETRIES = 2


def fetch(urls: tuple[str, ...], sha256: str, folder: Path, way_out: str) -> Path:
    """Return a local file that has the checksum, from the first mirror that gives it.

    A file that an earlier call left in `folder` is taken without asking anybody. A
    `file://` URL is checked and read in place.

    Args:
        urls: mirrors in the order to try; https, http or file.
        sha256: of the file, in hexadecimal.
        folder: where downloads are kept, named by their checksum.
        way_out: what the user can do when no mirror works; ends the error.

    Raises:
        InputError: no mirror gave the file; says for each why.
    """
    kept = folder / sha256
    if kept.exists() and sha256_of(kept) == sha256:
        return kept
    failures = []
    for url in urls:
        try:
            if urlsplit(url).scheme == "file":
                return _check_local(Path(url2pathname(urlsplit(url).path)), sha256)
            print(f"downloading {without_secrets(url)}", flush=True)
            return _download(url, sha256, folder)
        except (OSError, ValueError) as error:
            failures.append(f"{without_secrets(url)}: {_reason(error)}")
    raise InputError("\n".join(["nothing could be fetched:", *failures, way_out]))


def without_secrets(url: str) -> str:
    """The URL without user, password and query, which may hold tokens."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _check_local(path: Path, sha256: str) -> Path:
    found = sha256_of(path)
    if found != sha256:
        raise ValueError(f"its sha256 is {found}, not {sha256}")
    return path


def _download(url: str, sha256: str, folder: Path) -> Path:
    pooch.get_logger().setLevel(logging.ERROR)
    store = pooch.create(
        path=folder,
        base_url="",
        registry={sha256: f"sha256:{sha256}"},
        urls={sha256: url},
        retry_if_failed=NUM_RETRIES,
    )
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT_SECONDS)
    return Path(store.fetch(sha256, downloader=downloader))


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT_SECONDS} seconds"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "cannot connect (no network?)"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split())
