"""The IMDb archive: fetched, checked and read in the reference order."""

import csv
import hashlib
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from distiltune import InputError
from distiltune.artifacts import DatasetInfo
from distiltune.config import ImdbRow
from distiltune.dataset import write_table, write_unlabelled

INFO = DatasetInfo(dataset="imdb", label_names=("negative", "positive"))
MEMBER = re.compile(r"aclImdb/(test|train)/(pos|neg|unsup)/([0-9]+_[0-9]+\.txt)")
UNLABELLED = ("train", "unsup")
MAX_REVIEW_BYTES = 1 << 20
DOWNLOADS = Path(".cache/downloads")


def read_imdb(archive: Path) -> tuple[list[str], list[int]]:
    """The labelled reviews; see `read_imdb_with_unlabelled`."""
    return read_imdb_with_unlabelled(archive)[:2]


def read_imdb_with_unlabelled(archive: Path) -> tuple[list[str], list[int], list[str]]:
    """Read the reviews from the tar archive, without unpacking it to disk.

    The reference order: test/pos, test/neg, train/pos, train/neg, each by file name,
    then `numpy.random.RandomState(0).permutation`. Label 1 is positive. The unlabelled
    ones, if there are any, come by file name.

    Args:
        archive: `aclImdb_v1.tar.gz`, or one with the same layout. Members with any
            other name are passed over, and no path from it is ever written.

    Raises:
        InputError: the archive is damaged, or holds no labelled reviews.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {
        **{(part, label): [] for part in ("test", "train") for label in ("pos", "neg")},
        UNLABELLED: [],
    }
    try:
        # Not as a stream ("r|*"), which takes the end of a file that was cut off for the archive's.
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                match = MEMBER.fullmatch(member.name)
                if not match or not member.isfile() or match.group(1, 2) not in found:
                    continue
                if member.size > MAX_REVIEW_BYTES:
                    raise InputError(
                        f"{archive}: {member.name} has {member.size} bytes; a review has at "
                        f"most {MAX_REVIEW_BYTES}"
                    )
                content = tar.extractfile(member)
                assert content is not None
                found[match[1], match[2]].append((match[3], content.read().decode("utf-8")))
            # A damaged head looks like the archive's end; what compressed it has a checksum.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                continue
    except UnicodeDecodeError:
        raise InputError(f"{archive}: {member.name} is not UTF-8") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{archive}: the archive is damaged, or none: {reason}") from None
    unlabelled = [text for _, text in sorted(found.pop(UNLABELLED))]
    texts, labels = [], []
    for (_, label), reviews in found.items():
        texts += [text for _, text in sorted(reviews)]
        labels += [int(label == "pos")] * len(reviews)
    if len(set(labels)) < 2:
        raise InputError(
            f"{archive}: holds no labelled reviews; expected files like "
            "aclImdb/train/pos/0_9.txt, positive and negative"
        )
    order = np.random.RandomState(0).permutation(len(texts))
    return [texts[i] for i in order], [labels[i] for i in order], unlabelled


def download_imdb(row: ImdbRow, root: Path, output: Path, unlabelled: Path) -> None:
    """Fetch the archive, check it, and write its reviews as tables.

    Args:
        row: mirrors and checksums.
        root: the project's root, below which downloads are kept.
        output: the Parquet table of the labelled reviews to write.
        unlabelled: that of the others.

    Raises:
        InputError: the archive cannot be had, is damaged, or its reviews are others
            than the row's checksum says.
    """
    # Only here: other data sets need no HTTP client.
    from distiltune.fetching import fetch

    way_out = (
        "give a mirror or a file of your own: -S 'datasets.imdb.urls=[file:///...]' with its "
        "-S datasets.imdb.sha256=...; or what needs no network: -S dataset=sample -S model=tiny"
    )
    archive = fetch(row.urls, row.sha256, root / DOWNLOADS, way_out)
    texts, labels, others = read_imdb_with_unlabelled(archive)
    found = table_sha256(texts, labels)
    if row.table_sha256 not in (None, found):
        raise InputError(
            f"{archive}: its {len(texts)} reviews as CSV have the sha256 {found}, not "
            f"datasets.imdb.table_sha256 = {row.table_sha256}; null there skips the check"
        )
    write_table(output, texts, labels, INFO)
    write_unlabelled(unlabelled, others)


def table_sha256(texts: list[str], labels: list[int]) -> str:
    """The checksum of the reviews as CSV with the columns `review,sentiment`.

    The form is that of Python's `csv.writer` with line ends of one newline.
    """

    class Digest:
        sha256 = hashlib.sha256()

        def write(self, text: str) -> None:
            self.sha256.update(text.encode())

    digest = Digest()
    writer = csv.writer(digest, lineterminator="\n")
    writer.writerow(["review", "sentiment"])
    writer.writerows(zip(texts, labels, strict=True))
    return digest.sha256.hexdigest()
