"""Workloads small enough that the command line can be tried from end to end, and some with a mistake in each."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.task import Batch, Task, Workload

SIZE, CLASSES = 8, 3


class TwoHeads(nn.Module):
    """A shared trunk, one dense and one classifying head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()
        )
        self.depth = nn.Conv2d(16, 1, 1)
        self.kind = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {"depth": self.depth(features), "kind": self.kind(features.mean((2, 3)))}


class Mean:
    """The mean of a loss over batches, as a metric."""

    def __init__(self, loss) -> None:
        self.loss, self.total, self.batches = loss, 0.0, 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.total, self.batches = self.total + float(self.loss(prediction, target)), self.batches + 1

    def compute(self) -> float:
        return self.total / self.batches


calls = 0


def stopping_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """L1; where the environment asks for it, its n-th call (TOYS_ONLY=training: in fine-tuning) sends this process a
    signal."""
    global calls
    calls += prediction.requires_grad or os.environ.get("TOYS_ONLY") != "training"
    if calls == int(os.environ.get("TOYS_STOP_AFTER", "0")):
        os.kill(os.getpid(), signal.Signals[os.environ["TOYS_SIGNAL"]])
    return F.l1_loss(prediction, target)


def batches(seed: int, count: int = 3) -> list[Batch]:
    """Noise, with targets that can be learnt from it."""
    torch.manual_seed(seed)
    inputs = [torch.randn(8, 3, SIZE, SIZE) for _ in range(count)]
    return [(x, {"depth": x.mean(1, keepdim=True) + 2, "kind": x.mean((2, 3)).argmax(1)}) for x in inputs]


def render(task: str, value: Tensor):
    grey = value.float().mean(0) if value.ndim == 3 else value.float().reshape(1, -1).expand(SIZE, -1)
    return (grey.sigmoid() * 255).byte()[..., None].expand(-1, -1, 3).numpy()


def pair() -> Workload:
    torch.manual_seed(0)
    return Workload(
        name="pair",
        model=TwoHeads().eval(),
        example_input=torch.zeros(1, 3, SIZE, SIZE),
        tasks=(
            Task("depth", stopping_loss, Mean(F.l1_loss), "lower"),
            Task("kind", F.cross_entropy, Mean(F.cross_entropy), "lower"),
        ),
        train=batches(1),
        calibration=batches(2),
        test=batches(3),
        factory=TwoHeads,
        render=render,
    )


def chatty() -> Workload:
    print("the workload's own greeting")
    return replace(pair(), name="chatty")


def raises() -> Workload:
    raise FileNotFoundError("no data at ./nyud")


def exits() -> Workload:
    sys.exit(7)


def closes_stdout() -> Workload:
    sys.stdout.close()
    return replace(pair(), name="quiet")


def leaves_a_thread() -> Workload:
    threading.Thread(target=threading.Event().wait, name="prefetch").start()
    return replace(pair(), name="busy")


def nothing() -> None:
    return None


def one_task_missing() -> Workload:
    found = pair()
    more = [(x, {**targets, "normals": targets["depth"]}) for x, targets in batches(1)]
    tasks = (*found.tasks, Task("normals", F.l1_loss, Mean(F.l1_loss), "lower"))
    return replace(found, tasks=tasks, train=more, calibration=more, test=more)


def wrong_shapes() -> Workload:
    return replace(pair(), calibration=[(torch.randn(8, 3, 5, 5), targets) for _, targets in batches(2)])


def nan_weights() -> Workload:
    found = pair()
    with torch.no_grad():
        found.model.depth.weight[0, 3] = float("nan")
    return found


def nan_loss() -> Workload:
    found = pair()
    broken = Task("depth", lambda prediction, target: (prediction - 1e9).mean().sqrt(), Mean(F.l1_loss), "lower")
    return replace(found, tasks=(broken, found.tasks[1]))


def nan_in_training() -> Workload:
    found = pair()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        value = F.l1_loss(prediction, target)
        return value * float("nan") if prediction.requires_grad else value

    return replace(found, tasks=(Task("depth", loss, Mean(F.l1_loss), "lower"), found.tasks[1]))


def nameless() -> Workload:
    return replace(pair(), name="")


def frozen() -> Workload:
    found = pair()
    found.model.requires_grad_(False)
    return replace(found, name="frozen")


def of_an_inference_script() -> Workload:
    torch.set_grad_enabled(False)
    os.chdir(Path(__file__).parent)
    return replace(pair(), name="inference")


def draws_floats() -> Workload:
    return replace(pair(), render=lambda task, value: value.float().mean(0).numpy() if value.ndim else value.numpy())
