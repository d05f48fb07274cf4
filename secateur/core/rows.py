"""Parts of a safetensors file: single tensors, or single rows of them, without reading the rest.

file = TensorFile(path.open("rb"), path)
file.read("blocks.1.mlp.experts.htoh4.weight", 3)      the bytes of the fourth expert

The format: 8 bytes with the length of a header, a JSON header with dtype, shape and place of each tensor, the tensors.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import torch
from torch import Tensor

from secateur.core.errors import BundleError

LARGEST_HEADER = 100 * 2**20
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor: its type, its shape, and where its bytes begin in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Of one index of the first dimension."""
        return prod(self.shape[1:]) * self.dtype.itemsize


class TensorFile:
    """The header of an open file; tensors are read when they are asked for.

    Attributes:
        bytes_read: so far, the header included.
    """

    def __init__(self, file: BinaryIO, path: str | os.PathLike[str]) -> None:
        """Raises BundleError: not a file of this format, or one whose header does not fit it."""
        self._file, self._path, self.bytes_read = file, path, 0
        try:
            length = int.from_bytes(self._take(0, 8), "little")
            if length > LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(self._take(8, length))
            header.pop("__metadata__", None)
            self.entries = {str(name): self._entry(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(f"{path} is damaged: {error}", "copy the bundle again, or compress again") from error

    def _entry(self, entry: Any, data: int) -> Entry:
        start, end = entry["data_offsets"]
        found = Entry(DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"]), data + start)
        if start < 0 or min(found.shape, default=0) < 0 or end - start != found.bytes:
            raise ValueError("a tensor's place does not fit its shape")
        return found

    def read(self, name: str, row: int | None = None) -> bytes:
        """The bytes of a tensor, or of one index of its first dimension."""
        entry = self.entries[name]
        if row is None:
            return self._take(entry.start, entry.bytes)
        return self._take(entry.start + row * entry.row_bytes, entry.row_bytes)

    def tensor(self, name: str, data: bytes, rows: int | None = None) -> Tensor:
        """Bytes as they were read as the tensor that they are; `rows`: so many indices of its first dimension."""
        entry = self.entries[name]
        shape = entry.shape if rows is None else (rows, *entry.shape[1:])
        if not data:
            return torch.empty(shape, dtype=entry.dtype)
        return torch.frombuffer(bytearray(data), dtype=entry.dtype).view(shape)

    def _take(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(length)
        self.bytes_read += len(data)
        if len(data) != length:
            raise BundleError(f"{self._path} is truncated", "copy the bundle again, or compress again")
        return data
