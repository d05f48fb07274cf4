"""The idx format of MNIST and its kin: a magic number, the sizes, then the bytes; plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from secateur.core.errors import DataError

_LARGEST = 2**31
"""Bytes that no file of this family exceeds: a guard against a gzip that unpacks without end."""


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read unsigned bytes with that number of dimensions.

    Raises:
        DataError: not an idx file of unsigned bytes, of other dimensions, truncated, or with bytes left over.
    """
    content = _content(path)
    start = 4 + 4 * dimensions
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise _wrong(path, "is no idx file of unsigned bytes")
    if content[3] != dimensions:
        raise _wrong(path, f"has {content[3]} dimensions instead of {dimensions}")
    if len(content) < start:
        raise _wrong(path, "ends within its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    wanted, found = math.prod(shape), len(content) - start
    if wanted != found:
        raise _wrong(path, f"holds {found} bytes of data instead of {' x '.join(map(str, shape))} = {wanted}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def _content(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            content = file.read(_LARGEST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _wrong(path, "is truncated, or no gzip file") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check the file and its permissions") from error
    if len(content) > _LARGEST:
        raise _wrong(path, "unpacks to more than 2 GiB")
    return content


def _wrong(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}", "get the file again")
