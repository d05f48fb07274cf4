"""The workload `pair` with a part that fails at its n-th use, as FRAGILE=where:n says: model, loss, metric, a loader;
or loaders that end after n batches (`short`), or change their shape there (`shapes`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from toys import Mean, TwoHeads, pair

from secateur.core.task import Task, Workload


class Counted:
    """Counts uses; the n-th raises."""

    def __init__(self, at: int) -> None:
        self.at, self.uses = at, 0

    def use(self) -> None:
        self.uses += 1
        if self.uses == self.at:
            raise RuntimeError(f"use {self.at} failed\nand said more in a second line")


class FragileModel(TwoHeads):
    counted: Counted

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.counted.use()
        return super().forward(x)


class FragileMetric(Mean):
    counted: Counted

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        self.counted.use()
        super().update(prediction, target)

    def __deepcopy__(self, memo: Any) -> FragileMetric:
        made = FragileMetric(self.loss)
        made.counted = self.counted
        return made


class Batches:
    """A loader without a length, that `change` may stop or spoil at its n-th batch."""

    def __init__(self, batches: Any, change: Callable[[int, Any], Any]) -> None:
        self.batches, self.change, self.given = batches, change, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.given += 1
            if (changed := self.change(self.given, batch)) is None:
                return
            yield changed


def workload() -> Workload:
    where, _, number = os.environ["FRAGILE"].partition(":")
    at, found = int(number), pair()
    counted = Counted(at)
    if where == "model":
        model = FragileModel()
        model.load_state_dict(found.model.state_dict())
        model.counted = counted
        return replace(found, name="fragile", model=model.eval(), factory=TwoHeads)
    if where in ("loss", "metric"):
        return replace(found, name="fragile", tasks=(_fragile(found.tasks[0], where, counted), found.tasks[1]))

    def change(given: int, batch: Any) -> Any:
        if where == "short":
            return batch if given <= at else None
        if where == "shapes":
            return batch if given < at else (batch[0][..., :3], batch[1])
        counted.use()
        return batch

    splits = ("train", "calibration", "test") if where in ("short", "shapes") else (where,)
    return replace(found, name="fragile", **{split: Batches(getattr(found, split), change) for split in splits})


def _fragile(task: Task, where: str, counted: Counted) -> Task:
    if where == "metric":
        metric = FragileMetric(task.metric.loss)
        metric.counted = counted
        return replace(task, metric=metric)

    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        counted.use()
        return task.loss(prediction, target)

    return replace(task, loss=loss)
