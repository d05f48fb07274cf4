"""Device: a workload on a GPU, or back on the CPU. Its model and every batch are moved here, and nowhere else.

on_device(workload, "cuda")       # under torchrun each process takes the GPU of its own number
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.core.errors import DeviceError
from secateur.core.task import Batch, Metric, Workload


def on_device(workload: Workload, device: str | None) -> Workload:
    """The workload with a copy of its model on a device, and loaders whose batches go there as they are read.

    Args:
        device: `cpu`, `cuda`, `cuda:1`; without one, where the model is.

    Raises:
        DeviceError: there is none of that name here.
    """
    here = device_of(workload.model)
    place = here if device is None else _found(device)
    if place == here and place.type == "cpu":
        return workload
    return replace(
        workload,
        model=workload.model if place == here else copy.deepcopy(workload.model).to(place),
        example_input=moved(workload.example_input, place),
        train=Moved(workload.train, place),
        calibration=Moved(workload.calibration, place),
        test=Moved(workload.test, place),
    )


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter or buffer lies; the CPU for one without any."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def moved(value: Any, device: torch.device | str) -> Any:
    """All tensors of a nested value on a device. On the CPU their values are there when this returns."""
    away = torch.device(device).type != "cpu"

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):  # of a kind that torch does not look into, as a tokenizer's result is
            return {key: moved(each, device) for key, each in leaf.items()}
        return leaf.to(device, non_blocking=away) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(move, value)


def update(metric: Metric, prediction: Any, target: Any) -> None:
    """Update a metric where it is: torchmetrics say so, others are taken to be on the CPU."""
    place = getattr(metric, "device", None)
    place = place if isinstance(place, torch.device) else torch.device("cpu")
    metric.update(moved(prediction, place), moved(target, place))


class Moved:
    """A loader whose batches are moved to a device; in everything else it is the user's."""

    def __init__(self, loader: Iterable[Batch], device: torch.device) -> None:
        self.loader: Iterable[Batch] = loader.loader if isinstance(loader, Moved) else loader
        self.device = device

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield moved(batch, self.device)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # one without a length says so itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _found(name: str) -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    known = ["cpu", *([accelerator.type] if accelerator else [])]
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f'no device "{name}"', f"name one of: {', '.join(known)}") from error
    if place.type not in known:
        raise DeviceError(f"no {place.type} device can be used here", f"name one of: {', '.join(known)}")
    if place.type == "cpu":
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    number = int(os.environ.get("LOCAL_RANK", "0")) if place.index is None else place.index
    if number >= count:
        raise DeviceError(f"no device {place.type}:{number} here", f"there are {count}, counted from 0")
    return torch.device(place.type, number)
