"""Inputs: what a batch's input stands for when a model is called with it.

    call_model(model, x)                             # model(x)
    call_model(model, (image, points))               # model(image, points)
    call_model(model, {"image": x, "points": p})     # model(image=x, points=p), or model({...}) if it names no such

Whatever takes a flat list of tensors (a traced graph, an exported file) takes them in the order of `tensors`, in which
entries of dicts are sorted by their keys: a loader may fill its dicts in another order than the example has.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.core.errors import DataError

KeyPath = tuple[Any, ...]
"""The keys and places that lead to a leaf of an input."""


def arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model is called with: by place, and by name."""
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping) and _fits(model, inputs):
        return (), dict(inputs)
    return (inputs,), {}


def call_model(model: nn.Module, inputs: Any, task: str | None = None) -> Any:
    """The model's output for a batch's input, and a task if it is called one at a time."""
    args, kwargs = arguments(model, inputs)
    return model(*args, **kwargs) if task is None else model(*args, **kwargs, task=task)


def takes_task(model: nn.Module) -> bool:
    """Whether the model is called one task at a time: `forward(x, task)`."""
    return "task" in inspect.signature(model.forward).parameters


def tensors(inputs: Any) -> list[Tensor]:
    """The tensors of an input, in order."""
    return [value for _, value in leaves(inputs) if isinstance(value, Tensor)]


def leaves(inputs: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """What an input is made of, in order; None is nothing."""
    if isinstance(inputs, Mapping):
        for key in sorted(inputs, key=str):
            yield from leaves(inputs[key], (*path, key))
    elif isinstance(inputs, (tuple, list)):
        for place, value in enumerate(inputs):
            yield from leaves(value, (*path, place))
    elif inputs is not None:
        yield path, inputs


def mapped(change: Callable[[Tensor], Any], inputs: Any) -> Any:
    """The same input with every tensor changed, in order. Other mappings, as a tokenizer's result is, become dicts."""
    if isinstance(inputs, Mapping):
        changed = {key: mapped(change, inputs[key]) for key in sorted(inputs, key=str)}
        return {key: changed[key] for key in inputs}
    if isinstance(inputs, (tuple, list)):
        values = [mapped(change, value) for value in inputs]
        return type(inputs)(*values) if hasattr(inputs, "_fields") else type(inputs)(values)
    return pytree.tree_map_only(Tensor, change, inputs)


def filled(inputs: Any, values: Iterable[Any]) -> Any:
    """The same input with other tensors, in order."""
    others = iter(values)
    return mapped(lambda _: next(others), inputs)


def names_of(inputs: Any) -> list[str]:
    """Names for the tensors of an input, in order: `input` for one alone, `input_1`, `input_2`, ... for several, and
    the keys of dicts."""
    paths = [path for path, value in leaves(inputs) if isinstance(value, Tensor)]
    if len(paths) == 1 and not any(isinstance(key, str) for key in paths[0]):
        return ["input"]
    return ["_".join(key if isinstance(key, str) else f"input_{key + 1}" for key in path) for path in paths]


def batch_size(inputs: Any) -> int:
    """Number of samples in a batch: the first dimension that most tensors of the input have; the first tensor's, where
    none is more frequent."""
    found = [int(value.shape[0]) for value in tensors(inputs) if value.ndim]
    if not found:
        raise DataError(
            f"the model's input is {type(inputs).__name__}, not a tensor", "yield tensors, or tuples or dicts of them"
        )
    return Counter(found).most_common(1)[0][0]


def samples(inputs: Any, count: int) -> Any:
    """So many samples of a batch, which is repeated where it has fewer; what carries no batch stays."""
    size = batch_size(inputs)
    rows = torch.arange(count) % size
    return mapped(lambda each: each[rows] if each.ndim and each.shape[0] == size else each, inputs)


def _fits(model: nn.Module, names: Mapping[Any, Any]) -> bool:
    """Whether the model's forward takes these arguments by name."""
    signature = inspect.signature(model.forward)
    others = {"task": None} if "task" in signature.parameters else {}
    try:
        signature.bind(**{**others, **names})
    except TypeError:
        return False
    return True
