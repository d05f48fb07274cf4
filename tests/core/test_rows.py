"""Parts of safetensors files: what the library reads, row by row; hostile headers are refused."""

from __future__ import annotations

import io
import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.errors import BundleError
from secateur.core.rows import DTYPES, TensorFile

shapes = st.lists(st.integers(0, 4), max_size=3)


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.tuples(shapes, st.sampled_from([*DTYPES.values()]))))
def test_tensors_and_rows_are_those_of_the_library(made: dict[str, tuple[list[int], torch.dtype]]) -> None:
    tensors = {name: (100 * torch.rand(shape)).to(dtype) for name, (shape, dtype) in made.items()}
    file = TensorFile(io.BytesIO(safetensors.torch.save(tensors)), "here")
    assert set(file.entries) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(file.tensor(name, file.read(name)), tensor)
        for row in range(len(tensor) if tensor.ndim else 0):
            assert torch.equal(file.tensor(name, file.read(name, row), 1)[0], tensor[row])


def document(**entry: object) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


HOSTILE = {
    "empty": b"",
    "short": b"\0" * 4,
    "long header": (2**40).to_bytes(8, "little") + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"{]",
    "no object": (2).to_bytes(8, "little") + b"[]",
    "unknown type": document(dtype="F3"),
    "other size": document(shape=[3]),
    "negative size": document(shape=[-2], data_offsets=[0, -8]),
    "negative place": document(data_offsets=[-8, 0]),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        TensorFile(io.BytesIO(data), "here")


def test_a_truncated_tensor_is_found_when_it_is_read() -> None:
    file = TensorFile(io.BytesIO(document()[:-1]), "here")
    with pytest.raises(BundleError, match="here is truncated"):
        file.read("a")
