"""Parity: does an exported model compute what the torch model computes? Judged on real samples, per task.

Outputs are compared number by number, and each task's metric is computed through both on the same samples. An
artefact beyond tolerance is an error, not a warning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.device import update
from secateur.core.errors import DataError, ParityError
from secateur.core.inputs import batch_size
from secateur.core.predict import evaluating, predict
from secateur.core.task import Task, Workload

BATCHES = 8
"""Batches of the test split that are compared unless said otherwise."""
Predictor = Callable[[Any], dict[str, Tensor]]


@dataclass(frozen=True)
class Tolerance:
    """How far an artefact may be from torch. Outputs of a task: `atol + rtol * s`, s being their largest magnitude.
    Its metric: `metric`, relatively, since rounding may flip an arg max here and there."""

    atol: float
    rtol: float
    metric: float


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-3, 5e-3),
    "fp16": Tolerance(1e-3, 2e-2, 1e-2),  # 11 bits of mantissa, and errors add up over the layers
    "fixed": Tolerance(1e-6, 0.5, 2e-2),  # the width was chosen by the metrics; single outputs may be off by more
}
"""By the precision that an artefact computes in."""


@dataclass(frozen=True)
class Parity:
    """How near an artefact comes to the torch model: over the outputs of all tasks, and each task's metric as the
    artefact computes it, on `samples` samples of the test split."""

    max_abs: float
    mean_abs: float
    metrics: dict[str, float]
    samples: int


class _Comparison:
    """One task's running comparison."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.torch_metric, self.metric = copy.deepcopy(task.metric), copy.deepcopy(task.metric)
        self.max_abs = self.sum_abs = self.scale = 0.0
        self.count = 0

    def update(self, wanted: Tensor, got: Tensor, target: Any) -> None:
        wanted = wanted.detach().cpu()
        if got.shape != wanted.shape:
            raise ParityError(
                f'task "{self.task.name}": the artefact gives shape {list(got.shape)}, torch {list(wanted.shape)}',
                "export again, and report this model if it stays so",
            )
        a, b = wanted.double(), got.double()
        error = torch.where(a == b, 0.0, (a - b).abs())  # equal infinities are no error
        if error.isnan().any():
            where = "torch model" if a.isnan().any() else "artefact"
            raise ParityError(f'task "{self.task.name}": the {where} predicts NaN', "check the weights and the inputs")
        if error.numel():
            self.max_abs = max(self.max_abs, float(error.max()))
            self.sum_abs += float(error.sum())
            self.scale = max(self.scale, _largest(a))
            self.count += error.numel()
        update(self.torch_metric, wanted, target)
        update(self.metric, got, target)

    def judge(self, tolerance: Tolerance) -> None:
        """Raise ParityError when outputs or metric are beyond tolerance."""
        name, allowed = self.task.name, tolerance.atol + tolerance.rtol * self.scale
        if self.max_abs > allowed:
            raise ParityError(
                f'task "{name}": outputs differ by up to {self.max_abs:.3g}, {allowed:.3g} is allowed '
                f"(outputs reach {self.scale:.3g})",
                "the artefact was not kept; export again, and report this model if it stays so",
            )
        before, after = float(self.torch_metric.compute()), float(self.metric.compute())
        if not abs(after - before) <= tolerance.metric * abs(before) + tolerance.atol:
            raise ParityError(
                f'task "{name}": the metric is {after:.6g} in the artefact, {before:.6g} in torch',
                "the artefact was not kept; export again, and report this model if it stays so",
            )


@torch.no_grad()
def check_parity(
    model: nn.Module,
    predictor: Predictor,
    workload: Workload,
    *,
    precision: str = "fp32",
    tolerance: Tolerance | None = None,
    batches: int = BATCHES,
) -> Parity:
    """Compare an artefact with the torch model on the first batches of the test split.

    Args:
        predictor: the artefact, called as `predictor(input) -> {task: tensor}`.
        precision: that the artefact computes in, of which TOLERANCES says what is allowed.
        tolerance: to allow something else.

    Raises:
        ParityError: names the task and the figures; also for NaN in either prediction.
        DataError: the test split yields nothing.
    """
    comparisons = [_Comparison(task) for task in workload.tasks]
    samples = 0
    with evaluating(model):
        for inputs, targets in islice(workload.test, batches):
            wanted, got = predict(model, inputs, workload.tasks), predictor(inputs)
            for one in comparisons:
                if one.task.name not in got:
                    raise ParityError(
                        f'the artefact has no output for task "{one.task.name}"', f"its outputs are: {', '.join(got)}"
                    )
                one.update(wanted[one.task.name], got[one.task.name], targets[one.task.name])
            samples += batch_size(inputs)
    if not samples:
        raise DataError("the test loader yields nothing", "give it at least one batch")
    for one in comparisons:
        one.judge(tolerance or TOLERANCES[precision])
    count = sum(one.count for one in comparisons)
    return Parity(
        max_abs=max(one.max_abs for one in comparisons),
        mean_abs=sum(one.sum_abs for one in comparisons) / max(count, 1),
        metrics={one.task.name: float(one.metric.compute()) for one in comparisons},
        samples=samples,
    )


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
