"""Published data sets in the user's folder: where they are, files read when they are needed, one clear error for each
that is missing or damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from secateur.core.errors import DataError, WorkloadError, first_line
from secateur.core.progress import say
from secateur.workloads import checkpoint
from secateur.workloads.loader import Batch
from secateur.workloads.raycast import Array

Sample = tuple[Tensor, dict[str, Tensor]]
Model = TypeVar("Model", bound=nn.Module)


def data_folder(workload: str, name: str, holds: str) -> Path:
    """$SECATEUR_DATA/name.

    Raises:
        WorkloadError: the variable is not set, or there is no such folder.
    """
    home = os.environ.get("SECATEUR_DATA")
    if not home:
        raise WorkloadError(
            f"{workload} needs its data, and SECATEUR_DATA is not set",
            f"set it to the folder that holds {name}/ with {holds}",
        )
    folder = Path(home) / name
    if not folder.is_dir():
        raise WorkloadError(f"{workload} needs its data, and {folder} does not exist", f"it should hold {holds}")
    return folder


def trained(model: Model, name: str, folder: Path) -> Model:
    """The model with the weights that stand beside the data, else as it was made, which is said."""
    weights = folder / "weights"
    if (weights / f"{name}.safetensors").is_file():
        return checkpoint.load(model, name, weights)
    say(f"{name}: untrained weights; python -m secateur.workloads.train {name} --output {weights} makes better ones")
    return model.eval()


class Samples:
    """Batches `(input, {task: target})` of samples that `read` gives one by one, when they are needed."""

    def __init__(
        self, names: Sequence[Any], read: Callable[[Any], Sample], *, batch_size: int, shuffle: bool = False
    ) -> None:
        self.names, self.read, self.batch_size, self.shuffle = list(names), read, batch_size, shuffle

    @property
    def samples(self) -> int:
        return len(self.names)

    def __len__(self) -> int:
        return -(-len(self.names) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.names)) if self.shuffle else torch.arange(len(self.names))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size].tolist()
            inputs, targets = default_collate([self.read(self.names[index]) for index in chosen])
            yield inputs, targets

    def first(self, samples: int) -> Samples:
        """The first samples only, in order: a small split for quick checks."""
        return Samples(self.names[:samples], self.read, batch_size=self.batch_size)


def hold_out(names: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(train, calibration): the last tenth of a published training split is kept for calibration."""
    count = max(1, len(names) // 10)
    return list(names[:-count]), list(names[-count:])


def split(name: str, train: Path, test: Path) -> list[str]:
    """Names of the samples of a split, where the published lists of training and of test are; see `hold_out`."""
    if name == "test":
        return listed(test)
    kept, held_out = hold_out(listed(train))
    return kept if name == "train" else held_out


def listed(path: Path) -> list[str]:
    """The lines of a text file that names a split's samples."""
    found = expected(path).read_text(encoding="utf-8").split()
    if len(found) < 2:
        raise DataError(f"{path} names {len(found)} samples", "a split has at least two")
    return found


def expected(path: Path) -> Path:
    """The path, if there is a file.

    Raises:
        DataError: there is none.
    """
    if not path.is_file():
        raise DataError(f"no file {path}", "the layout of the data set asks for it; docs/workloads.md shows it whole")
    return path


def picture(path: Path, mode: str = "RGB") -> Array:
    """uint8 [H, W, 3], or [H, W] for modes "L" and "P" (class numbers as they are stored)."""
    from PIL import Image

    try:
        with Image.open(expected(path)) as image:
            return np.asarray(image if image.mode == mode else image.convert(mode))
    except OSError as error:
        raise _damaged(path, error) from error


def numbers(path: Path) -> Array:
    """The array of an .npy file; pickled objects are refused."""
    try:
        found: Array = np.load(expected(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return found


def matlab(path: Path, name: str) -> Any:
    """A variable of a .mat file (version 5): arrays, and structs as dicts."""
    from scipy.io import loadmat

    try:
        return loadmat(str(expected(path)), simplify_cells=True)[name]
    except KeyError as error:
        raise DataError(f"{path} has no variable {name}", "get the file again") from error
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise _damaged(path, error) from error


def fitted(array: Array, size: tuple[int, int], fill: float, corner: tuple[int, int] = (0, 0)) -> Array:
    """[H, W, ...] → [size, ...]: cut from `corner` on, and filled at the bottom and the right where it ends."""
    (top, left), (height, width) = corner, size
    part = array[top : top + height, left : left + width]
    pad = [(0, height - part.shape[0]), (0, width - part.shape[1])] + [(0, 0)] * (array.ndim - 2)
    filled: Array = np.pad(part, pad, constant_values=fill)
    return filled


def tensor(array: Array) -> Tensor:
    """[H, W] → [1, H, W], [H, W, C] → [C, H, W]; float32."""
    moved = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return torch.from_numpy(np.ascontiguousarray(moved, dtype=np.float32))


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {first_line(error, 150)}", "get the file again")
