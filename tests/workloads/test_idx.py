"""idx files: real layout in, tensors out; anything else is one clear line."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from secateur.core.errors import DataError, WorkloadError
from secateur.workloads import multifashion
from secateur.workloads.idx import read_idx


def idx(tensor: torch.Tensor) -> bytes:
    header = b"\0\0\x08" + bytes([tensor.ndim]) + struct.pack(f">{tensor.ndim}I", *tensor.shape)
    return header + tensor.numpy().tobytes()


IMAGES = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_plain_and_gzipped_files_give_what_was_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(idx(IMAGES)) if name.endswith("gz") else idx(IMAGES))
    assert torch.equal(read_idx(path, 3), IMAGES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no idx file"),
        (b"\0\0\x08", "no idx file"),
        (b"\0\0\x0d" + idx(IMAGES)[3:], "unsigned bytes"),
        (b"PK\x03\x04" + idx(IMAGES), "no idx file"),
        (idx(IMAGES[0]), "2 dimensions instead of 3"),
        (idx(IMAGES)[:9], "within its header"),
        (idx(IMAGES)[:-1], "23 bytes of data instead of 2 x 3 x 4 = 24"),
        (idx(IMAGES) + b"\0", "25 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "instead of 4294967295 x"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(idx(IMAGES))[:-5], b"no gzip at all", gzip.compress(b"x")[:12]],
    ids=["its end is missing", "no gzip", "a header alone"],  # gzip writes the time: as a name, no two workers agree
)
def test_damaged_gzip_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated, or no gzip file"):
        read_idx(path, 3)


def test_a_missing_folder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multifashion, "DEBIAN", tmp_path / "absent")
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    with pytest.raises(WorkloadError) as caught:
        multifashion.data_folder()
    assert "dataset-fashion-mnist" in caught.value.hint
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    (tmp_path / "fashion-mnist").mkdir()
    assert multifashion.data_folder() == tmp_path / "fashion-mnist"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny data set in the real layout."""
    monkeypatch.setitem(multifashion.SPLITS, "train", ("train", 0, 20, 8))
    monkeypatch.setitem(multifashion.SPLITS, "calibration", ("train", 20, 30, 4))
    for name, tensor in (
        ("train-images-idx3-ubyte", torch.randint(256, (30, 28, 28), dtype=torch.uint8)),
        ("train-labels-idx1-ubyte", torch.arange(30, dtype=torch.uint8) % 10),
    ):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(tensor)))
    return tmp_path


def test_pairs_lie_at_opposite_corners(folder: Path) -> None:
    images, labels = multifashion.pictures("train", folder)
    inputs, targets = multifashion.loader("train", folder).stored
    assert inputs.shape == (8, 1, 36, 36)
    for canvas, left, right in zip(inputs[:, 0], targets["left"], targets["right"], strict=True):
        assert any(torch.equal(canvas[:8, :28], image[:8]) for image in images[labels == left])
        assert any(torch.equal(canvas[-8:, -28:], image[-8:]) for image in images[labels == right])
    assert len(multifashion.pictures("calibration", folder)[0]) == 10


def test_a_file_that_is_missing_or_of_another_data_set_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        multifashion.pictures("test", folder)
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(torch.full((30,), 10, dtype=torch.uint8))))
    with pytest.raises(DataError, match="label is 10"):
        multifashion.pictures("train", folder)
    path.write_bytes(gzip.compress(idx(torch.zeros(29, dtype=torch.uint8))))
    with pytest.raises(DataError, match="not Fashion-MNIST"):
        multifashion.pictures("train", folder)
