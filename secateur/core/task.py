"""Task and Workload: what a user brings. A workload is a trained model, its tasks, and data to judge them by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from secateur.core.errors import BudgetError, WorkloadError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

Batch = tuple[Any, Mapping[str, Any]]
"""One batch: (input, {task: target}). The input is what the model is called with: a tensor, a tuple
or a dict of them (see `secateur.core.inputs`)."""


class Metric(Protocol):
    """An accumulator; torchmetrics objects fit."""

    def update(self, prediction: Any, target: Any, /) -> None: ...
    def compute(self) -> Any: ...


@dataclass(frozen=True)
class Task:
    """One job of a multi-task model.

    Args:
        name: key of the task in the model's output and in the targets.
        loss: `loss(prediction, target) -> scalar tensor`, a mean over the batch, differentiable.
        metric: an accumulator with `update(prediction, target)` and `compute() -> float`; copied for every
            evaluation, so that a fresh one is enough.
        better: whether a higher or a lower metric is better.
        weight: of the task's loss in training.

    Raises:
        WorkloadError: for another word in `better`, or a metric that is a class or a function.
    """

    name: str
    loss: Callable[[Any, Any], Tensor]
    metric: Metric
    better: Literal["higher", "lower"]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise WorkloadError(
                f'task "{self.name}": better is "{self.better}"', 'say better="higher" or better="lower"'
            )
        if isinstance(self.metric, type) or not (hasattr(self.metric, "update") and hasattr(self.metric, "compute")):
            raise WorkloadError(
                f'task "{self.name}": the metric is {_kind(self.metric)}, which cannot accumulate over batches',
                "give an object with update(prediction, target) and compute(), "
                "for example torchmetrics.MeanAbsoluteError()",
            )

    def relative_change(self, before: float, after: float) -> float:
        """Signed relative change of the metric, positive is better."""
        return relative_change(self.better, before, after)


Figure = TypeVar("Figure", float, "NDArray[np.float64]")


def relative_change(better: str, before: float, after: Figure) -> Figure:
    """Signed relative change of a metric, positive is better: one task's term of Δ_MTL (Maninis et al., CVPR 2019,
    eq. 4)."""
    change = after - before if better == "higher" else before - after
    return change / max(abs(before), 1e-12)


def missed_drop(name: str, change: float, allowed: float) -> str | None:
    """The sentence for a task whose metric fell by more than it may; both as fractions."""
    if -change <= allowed + 1e-9:
        return None
    return f"{name}: {100 * change:+.2f}% where a drop of {100 * allowed:g}% is allowed"


def preference(prefer: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The weight of each task of `names`, 1 for those that `prefer` does not name.

    Raises:
        BudgetError: a weight that is negative or no number, or nothing but zeros.
    """
    for name, weight in prefer.items():
        if not (isinstance(weight, Real) and 0 <= float(weight) < math.inf):
            raise BudgetError(f'the weight of "{name}" is {weight}', "give a number of at least 0")
    weights = {name: float(prefer.get(name, 1.0)) for name in names}
    if not any(weights.values()):
        raise BudgetError("every task has the weight 0", "give one task a weight above 0")
    return weights


@dataclass(frozen=True, eq=False, repr=False)
class Workload:
    """A trained multi-task model with its tasks and data.

    Args:
        name: used for output folders and tables.
        model: the trained module; returns `{task: prediction}` (nested dicts and extra outputs are allowed), or is
            called one task at a time as `forward(x, task)`. Never changed by Secateur unless asked.
        example_input: one input as the model takes it, batch size 1: a tensor, a tuple of arguments, or a dict of
            arguments by name (or one dict, where the model's forward has no arguments of these names).
        tasks: at least one.
        train, calibration, test: iterables (loaders) of `(input, {task: target})` batches. Calibration drives the
            decisions, test is only used to report.
        factory: makes a fresh, untrained instance of the model's class, with which bundles are loaded.
        reference: how the command line finds this workload again (`scenes`, or `package.module:function`).
        render: optional; `render(task, value) -> uint8 array [H, W, 3]` draws one sample's prediction or target of
            a task for the report; `render("input", x)` draws the input.
    """

    name: str
    model: nn.Module
    example_input: Any
    tasks: tuple[Task, ...]
    train: Iterable[Batch]
    calibration: Iterable[Batch]
    test: Iterable[Batch]
    factory: Callable[[], nn.Module] | None = None
    reference: str | None = None
    render: Callable[[str, Any], Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.name.strip():
            raise WorkloadError("a workload without a name", "name it: output folders and tables are called so")
        if not self.tasks:
            raise WorkloadError(f'workload "{self.name}" has no tasks', "give at least one secateur.Task")
        names = self.task_names
        if len(set(names)) != len(names):
            raise WorkloadError(f'workload "{self.name}" names a task twice: {", ".join(names)}', "rename one")

    def __repr__(self) -> str:
        return f"<Workload {self.name}: {', '.join(self.task_names)}>"

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def with_model(self, model: nn.Module) -> Workload:
        """The same workload around another model (a compressed one, say)."""
        return replace(self, model=model)

    def select_tasks(self, names: Iterable[str]) -> Workload:
        """The same workload, judged on some of its tasks only.

        Raises:
            BudgetError: for a task that does not exist.
        """
        wanted = tuple(names)
        for name in wanted:
            if name not in self.task_names:
                raise BudgetError(f'no task "{name}"', f"the tasks are: {', '.join(self.task_names)}")
        return replace(self, tasks=tuple(task for task in self.tasks if task.name in wanted))


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def delta_mtl(tasks: Iterable[Task], before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Δ_MTL in percent: mean over tasks of the signed relative change of the metric, positive is better
    (Maninis et al., CVPR 2019, eq. 4)."""
    changes = [task.relative_change(before[task.name], after[task.name]) for task in tasks]
    return 100 * sum(changes) / len(changes)
