"""What a run of any method shares with others: how strict it is with each task, what it missed, what tells it apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from secateur.core.budget import Tolerance
from secateur.core.task import Task, missed_drop


def strictness(tolerance: Tolerance, tasks: Sequence[str]) -> dict[str, float]:
    """Each task's factor on τ: its tolerance over the mean tolerance. Equal ones give the published rule."""
    drops = {name: tolerance.of(name) for name in tasks}
    mean = sum(drops.values()) / len(drops)
    return {name: drop / mean if mean else 1.0 for name, drop in drops.items()}


def drops_too_large(
    tasks: Sequence[Task], tolerance: Tolerance, before: Mapping[str, float], after: Mapping[str, float]
) -> list[str]:
    """The tasks whose metric fell by more than they may, as sentences."""
    changes = {task.name: task.relative_change(before[task.name], after[task.name]) for task in tasks}
    found = [missed_drop(name, change, tolerance.of(name)) for name, change in changes.items()]
    return [sentence for sentence in found if sentence]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's names and values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
