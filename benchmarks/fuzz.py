"""Feeds the readers of users' files with inputs that a fuzzer makes up.

    python -m benchmarks.fuzz [--minutes 5] [--targets archive,csv,parquet,tokens]

`make fuzz` installs Atheris (Google's fuzzer for Python, on libFuzzer) and runs it, guided by the
coverage of what is Python (little in Arrow and safetensors). Each target
starts from the corpus of the tests. What a reader may do is to read, or to raise `InputError`;
anything else ends the run with status 1, and the input that did it is kept and named.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from distiltune import InputError
from distiltune.runtime import run_stage

TARGETS = ("archive", "csv", "parquet", "tokens")
MAX_INPUT_BYTES = 20_000
SLOWEST_SECONDS = 20
FOUND = Path(".cache/fuzz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of all targets together")
    parser.add_argument("--targets", type=lambda text: text.split(","), default=list(TARGETS))
    parser.add_argument("--one", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"--targets: {', '.join(unknown)}: none of {', '.join(TARGETS)}")
    seconds = max(1, round(60 * arguments.minutes / len(arguments.targets)))
    if arguments.one:
        fuzz(arguments.one, arguments.corpus, seconds)
        return
    failed = []
    for target in arguments.targets:
        # The fuzzer ends its process, so each has one of its own.
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            corpus = Path(folder) / "corpus"
            corpus.mkdir()
            write_corpus(target, corpus)
            command = [sys.executable, "-m", "benchmarks.fuzz", "--one", target]
            command += ["--corpus", str(corpus)]
            share = ["--minutes", str(arguments.minutes), "--targets", ",".join(arguments.targets)]
            if subprocess.run([*command, *share], check=False).returncode:
                failed.append(target)
    if failed:
        raise InputError(f"{', '.join(failed)}: see above; the inputs are in {FOUND}")
    print(f"{seconds} s each of {', '.join(arguments.targets)}: nothing found")


def write_corpus(target: str, folder: Path) -> None:
    """What the tests have of a kind, good and bad."""
    from tests import bad_inputs
    from tests.archives import write_archive

    def write(content: bytes) -> None:
        if len(content) <= MAX_INPUT_BYTES:
            (folder / f"{len(list(folder.iterdir())):03d}").write_bytes(content)

    if target == "archive":
        write(write_archive(folder / "good").read_bytes())
        write(bad_inputs.flip((folder / "good").read_bytes()))
    elif target == "csv":
        for texts in (("a", "b"), ('say ""x""', "two\nlines"), ("\u00e9", "\U0001f600")):
            write(bad_inputs.rows(*texts))
        write(b"review,sentiment\r\na,1\r\nb,0\r\n")
    elif target == "parquet":
        write(bad_inputs.parquet(bad_inputs.GOOD))
        write(bad_inputs.parquet(bad_inputs.GOOD, compression="none", write_page_checksum=True))
    else:
        with tempfile.TemporaryDirectory() as project:
            prepared = bad_inputs.prepared_project(Path(project) / "prepared")
            write((prepared.root / "data/tokens/test.safetensors").read_bytes())


def fuzz(target: str, corpus: Path, seconds: int) -> None:
    """Run libFuzzer on one reader until the time is over."""
    import atheris  # which `make fuzz` installs

    readers = ["distiltune.imdb", "distiltune.own_files", "distiltune.batching"]
    with atheris.instrument_imports(include=[*readers, "tarfile", "gzip"]):
        read = reader_of(target, corpus.parent / f"{corpus.name}-read")
    FOUND.mkdir(parents=True, exist_ok=True)

    def test_one(content: bytes) -> None:
        try:
            read(content)
        except InputError:
            return

    options = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}",
               f"-timeout={SLOWEST_SECONDS}", f"-artifact_prefix={FOUND}/{target}-",
               "-print_final_stats=1", "-rss_limit_mb=4096"]  # fmt: skip
    atheris.Setup(["fuzz", *options, str(corpus)], test_one)
    atheris.Fuzz()


def reader_of(target: str, folder: Path) -> Callable[[bytes], object]:
    """Of the bytes of a file, which it writes into a folder."""
    from distiltune.batching import read_tokens
    from distiltune.config import CsvRow
    from distiltune.imdb import read_imdb
    from distiltune.own_files import import_files

    suffix = {"archive": ".tar.gz", "tokens": ".safetensors"}.get(target, f".{target}")
    folder.mkdir()
    file = folder / f"input{suffix}"
    row = CsvRow(paths=(str(file),), text_column="review", label_column="sentiment")

    def read(content: bytes) -> object:
        file.write_bytes(content)
        if target == "archive":
            return read_imdb(file)
        if target == "tokens":
            return read_tokens(file)
        import_files(row, folder, folder / "output")
        return None

    return read


if __name__ == "__main__":
    run_stage(main)
