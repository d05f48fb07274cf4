"""The workload `cifar100_mtl`: twenty tasks, one for each coarse class of CIFAR-100, of five classes each.

Krizhevsky (2009); as a multi-task benchmark Rosenbaum et al., Routing networks (ICLR 2018). The binary version, which
needs no pickle, below $SECATEUR_DATA/cifar-100-binary: train.bin and test.bin, a record of 3,074 bytes per picture
(coarse class, fine class, 32 × 32 red, then green, then blue).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.errors import DataError
from secateur.core.task import Task, Workload
from secateur.workloads import folders
from secateur.workloads.dense import IGNORE
from secateur.workloads.loader import Batch, Loader
from secateur.workloads.models.blocks import Trunk
from secateur.workloads.training import Recipe

SIZE = 32
RECORD = 2 + 3 * SIZE**2
TASKS = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip
PER_TASK = 5


class CoarseHeads(nn.Module):
    """[N, 3, 32, 32] in 0..1 → {coarse class: logits [N, 5]}: a residual trunk and one linear layer per task."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), blocks: int = 2) -> None:
        super().__init__()
        self.trunk = Trunk(widths, blocks)
        self.heads = nn.ModuleDict({task: nn.Linear(widths[-1], PER_TASK) for task in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(2 * x - 1)[-1].mean(dim=(2, 3))
        return {task: head(features) for task, head in self.heads.items()}


class TaskAccuracy:
    """Share of a task's own samples whose largest logit is the true class; samples of other tasks do not count."""

    def __init__(self) -> None:
        self.right, self.count = 0, 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        own = target != IGNORE
        self.right += int((prediction.argmax(dim=1)[own] == target[own]).sum())
        self.count += int(own.sum())

    def compute(self) -> float:
        return self.right / self.count if self.count else 0.0


def workload() -> Workload:
    """The workload on the user's folder, with weights from its `weights/` if there are any.

    Raises:
        WorkloadError: no folder. DataError: a file is missing or damaged.
    """
    model = folders.trained(network(), "cifar100_mtl", data_folder())
    return recipe().workload(model, (3, SIZE, SIZE))


def network() -> CoarseHeads:
    """A fresh, untrained instance."""
    return CoarseHeads()


def tasks() -> tuple[Task, ...]:
    return tuple(Task(name, own_cross_entropy, TaskAccuracy(), "higher") for name in TASKS)


def own_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Summed over the task's own samples, as a mean over the whole batch: a task's weight is its share of samples."""
    return F.cross_entropy(prediction, target, ignore_index=IGNORE, reduction="sum") / len(target)


def recipe() -> Recipe:
    """How weights are trained."""
    return Recipe("cifar100_mtl", network, tasks(), loader, epochs=60)


def data_folder() -> Path:
    return folders.data_folder("cifar100_mtl", "cifar-100-binary", "train.bin and test.bin")


def loader(name: str, folder: Path | None = None) -> Loader:
    """The training file without its last tenth, which is for calibration, or the test file."""
    folder = folder or data_folder()
    path = folders.expected(folder / ("test.bin" if name == "test" else "train.bin"))
    records = path.stat().st_size // RECORD
    last = records // 10
    rows = {"train": range(records - last), "calibration": range(records - last, records), "test": range(records)}[name]

    def source() -> Batch:
        images, coarse, fine = read(path)
        own = places(folder)[fine]
        chosen = slice(rows.start, rows.stop)
        targets = {task: torch.where(coarse == number, own, IGNORE)[chosen] for number, task in enumerate(TASKS)}
        return images[chosen], targets

    training = name == "train"
    return Loader(source, len(rows), batch_size=128, prepare=prepare_varied if training else prepare, shuffle=training)


def read(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 pictures [M, 3, 32, 32], coarse classes [M], fine classes [M].

    Raises:
        DataError: missing, of another length than whole records, or classes out of range.
    """
    content = folders.expected(path).read_bytes()
    if not content or len(content) % RECORD:
        raise DataError(f"{path} holds {len(content)} bytes", f"records of {RECORD} bytes are expected; get it again")
    rows = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, RECORD).copy())
    coarse, fine = rows[:, 0].long(), rows[:, 1].long()
    if int(coarse.max()) >= len(TASKS) or int(fine.max()) >= len(TASKS) * PER_TASK:
        raise DataError(f"{path} has classes beyond 19 and 99", "it is not CIFAR-100's binary version")
    return rows[:, 2:].reshape(-1, 3, SIZE, SIZE), coarse, fine


def places(folder: Path) -> Tensor:
    """[100]: which of the five classes of its task a fine class is, by its number; from the training file."""
    _, coarse, fine = read(folder / "train.bin")
    order = torch.full((len(TASKS) * PER_TASK,), IGNORE)
    for task in range(len(TASKS)):
        own = torch.from_numpy(np.unique(fine[coarse == task].numpy()))
        if len(own) != PER_TASK:
            raise DataError(
                f"{folder / 'train.bin'}: coarse class {task} has {len(own)} fine classes", "expected are 5"
            )
        order[own] = torch.arange(PER_TASK)
    return order


def prepare(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """Stored bytes → values in 0..1."""
    return inputs.float() / 255, targets


def prepare_varied(inputs: Tensor, targets: dict[str, Tensor]) -> Batch:
    """As `prepare`, half of the samples mirrored, the batch moved by up to four pixels."""
    inputs, targets = prepare(inputs, targets)
    chosen = torch.rand(len(inputs), 1, 1, 1) < 0.5
    x, y = torch.randint(9, (2,)).tolist()
    moved = F.pad(torch.where(chosen, inputs.flip(-1), inputs), (4, 4, 4, 4))
    return moved[:, :, y : y + SIZE, x : x + SIZE], targets
