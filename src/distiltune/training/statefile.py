"""Writes a safetensors file past the disk cache, with its checksum.

safetensors' own writer goes through the cache: the system must find and clear as much memory
as the file is long, on a core that is computing.
"""

import errno
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

CHUNK_BYTES = 1 << 22
BLOCK_BYTES = 4096  # past the cache a disk takes whole blocks only, from memory so aligned
# The names of https://github.com/huggingface/safetensors#format
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def write_state_file(
    file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> str:
    """Write and sync a safetensors file.

    Args:
        file: what is there is replaced.
        tensors: in the main memory, contiguous.
        metadata: goes into the header.

    Returns:
        The file's CRC-32, as `checksum_of` gives it.

    Raises:
        OSError: if the disk is full, say. A part of the file may be left.
    """
    past_the_cache = getattr(os, "O_DIRECT", 0)
    try:
        return _write(file, tensors, metadata, past_the_cache)
    except OSError as error:
        if not past_the_cache or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    return _write(file, tensors, metadata, 0)  # a file system that has no other way


def checksum_of(file: Path) -> str:
    """The CRC-32 of a file, in eight hexadecimal digits."""
    value, buffer = 0, bytearray(1 << 20)
    with file.open("rb", buffering=0) as opened:
        while size := opened.readinto(buffer):
            value = zlib.crc32(memoryview(buffer)[:size], value)
    return f"{value:08x}"


def _write(
    file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], flag: int
) -> str:
    checksum = size = 0
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag, 0o666)
    try:
        with mmap.mmap(-1, CHUNK_BYTES) as chunk:
            for piece in _pieces(tensors, metadata):
                checksum = zlib.crc32(piece, checksum)
                done = 0
                while done < len(piece):
                    place = (size + done) % CHUNK_BYTES
                    part = piece[done : done + CHUNK_BYTES - place]
                    chunk[place : place + len(part)] = part
                    done += len(part)
                    if place + len(part) == CHUNK_BYTES:
                        _write_all(descriptor, chunk, CHUNK_BYTES)
                size += len(piece)
            _write_all(descriptor, chunk, -(-(size % CHUNK_BYTES) // BLOCK_BYTES) * BLOCK_BYTES)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return f"{checksum:08x}"


def _write_all(descriptor: int, chunk: mmap.mmap, size: int) -> None:
    with memoryview(chunk) as view:
        done = 0
        while done < size:
            done += os.write(descriptor, view[done:size])


def _pieces(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Iterator[memoryview]:
    """The bytes of the file: the header's length, the header, the tensors."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    # As the format asks for, each begins at a multiple of its numbers' size.
    ordered = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    end = 0
    for name in ordered:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in ordered:
        yield tensors[name].reshape(-1).view(torch.uint8).numpy().data
