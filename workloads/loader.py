"""Batches of data held in memory: shuffled anew on every pass, and the same again from the same torch seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

Batch = tuple[Tensor, dict[str, Tensor]]


class Loader:
    """Batches `(input, {task: target})` of tensors whose first dimension is the sample.

    Args:
        source: gives (inputs, targets) as they are stored; called when they are first needed.
        samples: how many `source` gives.
        prepare: turns a batch of stored tensors into what the model and the losses take.
        shuffle: draw a new order on each pass, from torch's global generator.
    """

    def __init__(
        self,
        source: Callable[[], Batch],
        samples: int,
        *,
        batch_size: int,
        prepare: Callable[[Tensor, dict[str, Tensor]], Batch],
        shuffle: bool = False,
    ) -> None:
        self._source, self.samples = source, samples
        self.batch_size, self.prepare, self.shuffle = batch_size, prepare, shuffle

    @cached_property
    def stored(self) -> Batch:
        """All inputs and targets, as stored."""
        return self._source()

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        inputs, targets = self.stored
        order = torch.randperm(self.samples) if self.shuffle else torch.arange(self.samples)
        for start in range(0, self.samples, self.batch_size):
            index = order[start : start + self.batch_size]
            yield self.prepare(inputs[index], {name: target[index] for name, target in targets.items()})

    def first(self, samples: int) -> Loader:
        """The first samples only, in order: a small split for quick checks."""
        return Loader(self._first(samples), samples, batch_size=self.batch_size, prepare=self.prepare)

    def _first(self, samples: int) -> Callable[[], Batch]:
        def source() -> Batch:
            inputs, targets = self.stored
            return inputs[:samples], {name: target[:samples] for name, target in targets.items()}

        return source
