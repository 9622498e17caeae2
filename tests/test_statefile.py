"""What is written past the disk cache is a file that safetensors itself reads."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from distiltune.training.statefile import CHUNK_BYTES, DTYPES, checksum_of, write_state_file

TEXT = {"state": 'quotes ", a line\nand \u00e4\U0001f600'}


def tensors_of_every_kind() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 2, (3, 5), generator=generator)
    tensors = {DTYPES[dtype]: numbers.to(dtype) for dtype in DTYPES}
    return {**tensors, "one": torch.tensor(1.5), "none": torch.zeros(0, 7), "odd": numbers.bool()}


def assert_holds(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == TEXT


@pytest.mark.parametrize("more", [-9, -1, 0, 1, 4096, CHUNK_BYTES // 2 + 3])
def test_safetensors_reads_it(tmp_path: Path, more: int) -> None:
    """Also where the file ends at a chunk, and just before and behind it."""
    file = tmp_path / "file"
    file.write_bytes(b"something longer" * 1_000_000)
    tensors = {**tensors_of_every_kind(), "rest": torch.zeros(CHUNK_BYTES).byte()}
    write_state_file(file, tensors, TEXT)
    length = 3 * CHUNK_BYTES + more - file.stat().st_size
    tensors["rest"] = torch.arange(length).remainder(251).byte()
    checksum = write_state_file(file, tensors, TEXT)
    assert_holds(file, tensors)
    assert checksum == checksum_of(file) and file.stat().st_size == 2 * CHUNK_BYTES + more


def test_a_file_system_without_another_way(tmp_path: Path, monkeypatch: Any) -> None:
    flags, opened = [], os.open

    def refusing(file: Any, flag: int, *args: Any) -> int:
        flags.append(flag & os.O_DIRECT)
        if flag & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(file, flag, *args)

    monkeypatch.setattr(os, "open", refusing)
    tensors = tensors_of_every_kind()
    checksum = write_state_file(tmp_path / "file", tensors, TEXT)
    assert flags == [os.O_DIRECT, 0]
    assert_holds(tmp_path / "file", tensors)
    assert checksum == checksum_of(tmp_path / "file")


def test_a_write_that_takes_less_than_it_was_given(tmp_path: Path, monkeypatch: Any) -> None:
    written = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: written(fd, view[:4096]))
    tensors = {**tensors_of_every_kind(), "long": torch.arange(100_000)}
    write_state_file(tmp_path / "file", tensors, TEXT)
    assert_holds(tmp_path / "file", tensors)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_state_file(tmp_path / "file", {"a": torch.zeros(1_000_000)}, TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
