"""Calling a user's multi-task model: one place that knows the shapes a model's input and output may take.

    predict(model, x, tasks) -> {task: prediction}

Handles models that return nested dicts or named tuples, with extra outputs, and models called one task at a time
(`forward(x, task)`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from secateur.core.device import Moved, update
from secateur.core.errors import DataError, ModelError, SecateurError, described
from secateur.core.inputs import call_model, names_of, takes_task, tensors
from secateur.core.modes import modes_kept
from secateur.core.progress import track
from secateur.core.task import Batch, Task, Workload


def predict(model: nn.Module, inputs: Any, tasks: Iterable[Task]) -> dict[str, Any]:
    """Predictions of every task for one batch.

    Raises:
        ModelError: when the output has no prediction for a task; the message lists what it has.
    """
    if takes_task(model):
        return {task.name: call_model(model, inputs, task.name) for task in tasks}
    return pick_tasks(call_model(model, inputs), tasks)


def pick_tasks(output: Any, tasks: Iterable[Task]) -> dict[str, Any]:
    """Each task's prediction from a model's output: a dict or a named tuple, possibly nested."""
    named = _named(output)
    if named is None:
        raise ModelError(
            f"the model returns {type(output).__name__}, not a dict of predictions",
            "return {task: prediction} or a NamedTuple with a field for each task, or wrap the model in a module "
            "that does",
        )
    return {task.name: _find(named, task.name) for task in tasks}


def _named(value: Any) -> Mapping[str, Any] | None:
    """The entries of a dict or a named tuple; None of anything else."""
    if isinstance(value, Mapping):
        return value
    return value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else None


def _find(output: Mapping[str, Any], name: str) -> Any:
    """The value under key `name`, nearest to the top of a nested dict."""
    level = [output]
    while level:
        for mapping in level:
            if name in mapping:
                return mapping[name]
        inner = [_named(value) for mapping in level for value in mapping.values()]
        level = [mapping for mapping in inner if mapping is not None]
    raise ModelError(
        f'the model\'s output has no prediction for task "{name}"', f"it has: {', '.join(map(str, output))}"
    )


def losses(model: nn.Module, batch: Batch, tasks: Iterable[Task]) -> dict[str, torch.Tensor]:
    """Each task's loss on one batch, as scalar tensors."""
    inputs, targets = batch
    tasks = list(tasks)
    return task_losses(predict(model, inputs, tasks), targets, tasks)


def task_losses(
    predictions: Mapping[str, Any], targets: Mapping[str, Any], tasks: Iterable[Task]
) -> dict[str, torch.Tensor]:
    """Each task's loss for given predictions, as scalar tensors."""
    return {task.name: task.loss(predictions[task.name], targets[task.name]) for task in tasks}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode and without gradients; each module's own mode is restored afterwards."""
    with modes_kept(model), torch.no_grad():
        model.eval()
        yield model


def evaluate(model: nn.Module, batches: Iterable[Batch], tasks: Iterable[Task], label: str = "") -> dict[str, float]:
    """Each task's metric over all batches, with the model in evaluation mode.

    `label` shows a progress bar; the model's training mode is restored afterwards.

    Raises:
        DataError: no batch at all, or a metric that is not finite.
    """
    tasks = list(tasks)
    with evaluating(model):
        return evaluate_with(lambda inputs: predict(model, inputs, tasks), batches, tasks, label)


@torch.no_grad()
def evaluate_with(predictor: Any, batches: Iterable[Batch], tasks: Iterable[Task], label: str = "") -> dict[str, float]:
    """As `evaluate`, for any callable `predictor(input) -> {task: prediction}` (a runtime session, say)."""
    tasks = list(tasks)
    metrics = {task.name: copy.deepcopy(task.metric) for task in tasks}
    seen = False
    for inputs, targets in track(batches, label):
        seen = True
        predictions = predictor(inputs)
        for task in tasks:
            update(metrics[task.name], predictions[task.name], targets[task.name])
    if not seen:
        raise DataError("there is no batch to evaluate on", "give at least one")
    values = {name: float(metric.compute()) for name, metric in metrics.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise DataError(f'the metric of "{name}" is {value}', "a metric is one finite number")
    return values


def check(workload: Workload) -> None:
    """Try the workload on its first calibration batch, so that mistakes show before any long work.

    Raises:
        ModelError: NaN or infinite weights, an output without a task, a forward that fails.
        DataError: an empty loader, targets without a task, shapes that do not fit, a loss that is not finite,
            a loss or a metric that fails.
    """
    for name, tensor in workload.model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f'"{name}" of the model holds NaN or infinite values', "load a sound checkpoint")
    for split in ("train", "calibration", "test"):
        _check_batch(workload, split)


def _check_batch(workload: Workload, split: str) -> None:
    inputs, targets = _first_batch(getattr(workload, split), split)
    missing = [name for name in workload.task_names if name not in targets]
    if missing:
        raise DataError(
            f'the {split} loader\'s targets have no "{missing[0]}"',
            f"they have: {', '.join(map(str, targets))}",
        )
    _check_shapes(workload, inputs, split)
    try:
        with evaluating(workload.model) as model:
            predictions = predict(model, inputs, workload.tasks)
            for task in workload.tasks:
                _check_task(task, predictions[task.name], targets[task.name], split)
    except SecateurError:
        raise
    except Exception as error:
        raise DataError(
            f"the model, a loss or a metric fails on the first {split} batch: {described(error)}",
            "call them on that batch by hand; --debug shows the traceback",
        ) from error


def _check_task(task: Task, prediction: Any, target: Any, split: str) -> None:
    value = task.loss(prediction, target)
    if not isinstance(value, torch.Tensor) or value.ndim != 0 or not torch.isfinite(value):
        raise DataError(
            f'the loss of "{task.name}" on the first {split} batch is {_describe(value)}',
            "a loss is one finite number, as a tensor",
        )
    metric = copy.deepcopy(task.metric)
    update(metric, prediction, target)
    float(metric.compute())


def _first_batch(loader: Iterable[Batch], split: str) -> Batch:
    try:
        batches = iter(loader)
        batch = next(batches, None)
    except Exception as error:
        raise DataError(
            f"the {split} loader fails: {described(error)}", "iterate over it by hand; --debug shows the traceback"
        ) from error
    if batches is loader or (isinstance(loader, Moved) and iter(loader.loader) is loader.loader):
        raise DataError(f"the {split} loader can be read only once", "give a DataLoader or a list, not an iterator")
    if batch is None:
        raise DataError(f"the {split} loader yields nothing", "give it at least one batch")
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Mapping)):
        raise DataError(f"the {split} loader yields {_describe(batch)}", "it must yield (input, {task: target}) pairs")
    return batch[0], batch[1]


def _check_shapes(workload: Workload, inputs: Any, split: str) -> None:
    example = workload.example_input
    if names_of(inputs) != names_of(example):
        raise DataError(
            f"the {split} loader yields {_describe(inputs)}, the example input is {_describe(example)}",
            "make example_input one sample as the loaders yield it",
        )
    for got, wanted in zip(tensors(inputs), tensors(example), strict=True):
        if got.shape[1:] != wanted.shape[1:]:
            raise DataError(
                f"the {split} loader yields inputs of shape {list(got.shape[1:])} a sample, "
                f"the example input has {list(wanted.shape[1:])}",
                "make example_input one sample as the loaders yield it",
            )


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}" if value.ndim else f"{value.item()}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    return type(value).__name__
