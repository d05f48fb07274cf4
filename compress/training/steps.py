"""The steps of training, of fine-tuning and of elastic models: which batches each takes, which rate it learns at, and
what is averaged over all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from secateur.compress import ranks
from secateur.core.errors import DataError, ModelError
from secateur.core.seeds import seed_loader
from secateur.core.task import Batch, Workload


def batches_of(workload: Workload) -> int:
    """Batches of one pass over the training data."""
    try:
        return len(workload.train)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in workload.train)


class Windows:
    """The training data as this process takes it: windows of the batches whose gradients make one step.

    Every process reads the same batches in the same order and takes every n-th, and all take equally many. A loader
    that shares its data out by itself (`DistributedSampler`) is taken as it is.
    """

    def __init__(self, workload: Workload, accumulate: int) -> None:
        self._loader, self._accumulate = workload.train, accumulate
        sampler = getattr(workload.train, "sampler", None)
        self._sampler = sampler if isinstance(sampler, torch.utils.data.DistributedSampler) else None
        self.batches = batches_of(workload) // (1 if self._sampler else ranks.world())
        if self.batches == 0:
            raise DataError(
                f"the train loader yields fewer batches than there are processes ({ranks.world()})",
                "use fewer processes, or smaller batches",
            )

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return math.ceil(self.batches / self._accumulate)

    def epoch(self, number: int) -> Iterator[list[Batch]]:
        """The windows of one epoch, in an order that the seed of torch's own generator says."""
        if self._sampler is not None:
            self._sampler.set_epoch(number)
        seed_loader(self._loader)  # a resumed run draws what the whole one would have
        own = iter(self._loader)
        if self._sampler is None:
            own = itertools.islice(own, ranks.rank(), None, ranks.world())
        own = itertools.islice(own, self.batches)
        while window := list(itertools.islice(own, self._accumulate)):
            yield window


class Descent:
    """AdamW whose rate rises and then falls as a cosine, and the moving average of the weights.

    Args:
        learnt: everything that gradients change.
        result: the part of it whose moving average, buffers included, is the result.
        steps: of the whole run.
        half: gradients are of float16, which needs its losses scaled.
    """

    def __init__(
        self, learnt: nn.Module, result: nn.Module, *, lr: float, weight_decay: float, warmup: float, ema_decay: float,
        steps: int, half: bool = False,
    ) -> None:  # fmt: skip
        decay, no_decay = parameter_groups(learnt)
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}], lr=lr
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step / max(steps, 1), warmup)
        )
        # torch's own start of 65536 would leave out the first steps, of which fine-tuning has few
        device = next(learnt.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, init_scale=1024.0, enabled=half)
        self.result, self.ema = result, AveragedModel(result, avg_fn=moving_average(ema_decay), use_buffers=True)

    def step(self) -> None:
        """Go down the gradient; with scaled losses, unless it is not finite."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.ema.update_parameters(self.result)

    def averaged(self) -> dict[str, Any]:
        """The state of the moving average, as that of what it averages."""
        return self.ema.module.state_dict()

    def checkpoint(self) -> dict[str, Any]:
        return {
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch, "_step_count": self.scheduler._step_count},
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        vars(self.scheduler).update(saved["scheduler"])  # its own load_state_dict wants the lambdas too


def warmup_cosine(progress: float, warmup: float) -> float:
    """The learning rate's factor after a share of all steps."""
    if progress < warmup:
        return min(1.0, (progress + 1e-3) / warmup)  # not 0, so that the first step moves
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights decay; biases and normalisation parameters do not.

    Raises:
        ModelError: no parameter may change.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError(
            "every parameter of the model is frozen: there is nothing to train",
            "set requires_grad=True on those that may change, or train for 0 epochs",
        )
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """An exponential moving average that forgets its start: a decay of at most (1 + n) / (10 + n) after n steps keeps
    short runs from averaging over the damaged weights they began with."""

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        count = int(steps)
        return torch.lerp(current, averaged, min(decay, (1 + count) / (10 + count)))

    return average
