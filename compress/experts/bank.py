"""A bank: one stored model and, for each of several sets of tasks, the list of what that set needs of it.

The model of a bundle's point holds what all sets need; `points/NN/bank.json` says for each set which experts, routers
and heads it takes, so that the trunk is stored once. Every tensor, and every expert of a stacked one, has a hash of its
own: whoever loads a set can check what was read without reading the rest. `banked` reads it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compress.channel_map import ChannelMap, tensor_aliases
from secateur.compress.experts.cutting import expert_map
from secateur.compress.experts.evidence import largest_difference
from secateur.compress.experts.layers import ExpertLayer, find
from secateur.compress.experts.usage import Table
from secateur.core.errors import BudgetError
from secateur.core.task import Workload

FILE = "bank.json"
Rows = tuple[int, ...] | None
"""Indices of the first dimension, or all of it."""
DeadMap = Callable[[nn.Module, Workload], ChannelMap]


@dataclass(frozen=True)
class Part:
    """A tensor of a set's model: the name under which it is stored, and which of its rows."""

    stored: str
    rows: Rows


def make_bank(model: nn.Module, workload: Workload, table: Table, sets: Iterable[Sequence[str]], dead: DeadMap) -> Any:
    """The bank of a model as a JSON document.

    Args:
        table: experts that each task uses in this model, by the routers' numbers.
        dead: makes the map that cuts what some tasks do not need.
    """
    found = [_set(model, workload.select_tasks(tasks), table, dead) for tasks in sets]
    parts = [part for each in found for part in parts_of(each).values()]
    in_rows = {part.stored for part in parts if part.rows is not None}
    state = model.state_dict()
    hashes = {name: _hashes(state[name], name in in_rows) for name in sorted({part.stored for part in parts})}
    return {"sets": found, "hashes": hashes}


def _set(model: nn.Module, workload: Workload, table: Table, dead: DeadMap) -> dict[str, Any]:
    small = copy.deepcopy(model)
    keep = {layer.path: _used(layer, table, workload.task_names) for layer in find(model)}
    channels = expert_map(small, find(small), keep)
    channels.apply(small)
    rest = dead(small, workload)
    rest.apply(small)
    channels = channels.then(rest)
    return {
        "tasks": list(workload.task_names),
        "experts": {path: len(places) for path, places in keep.items()},
        "channels": channels.as_json(),
        "parts": {name: [part.stored, part.rows] for name, part in _parts(model, small, channels).items()},
        "exact": largest_difference(model, small, workload),
    }


def _used(layer: ExpertLayer, table: Table, tasks: Sequence[str]) -> list[int]:
    """The places of the experts that some tasks use; of a layer that none runs all, as it is taken out whole."""
    return places_of(layer, table.used(tasks, layer.path)) or list(range(layer.experts))


def places_of(layer: ExpertLayer, used: Collection[int]) -> list[int]:
    """The places of experts that are used, which are told by the router's numbers."""
    return [place for place, number in enumerate(layer.kept.tolist()) if number in used]


def _parts(model: nn.Module, small: nn.Module, channels: ChannelMap) -> dict[str, Part]:
    """Where each tensor of a set's model is stored, see `compressed._write_point` for tensors with several names."""
    first = {name: names[0] for name, names in tensor_aliases(model).items()}
    found = {}
    for name in small.state_dict():
        original = channels.original(name)
        index = channels.kept.get(original, {}).get(0)
        found[name] = Part(first[original], None if index is None else tuple(int(row) for row in index))
    return found


def parts_of(document: Mapping[str, Any]) -> dict[str, Part]:
    """The parts of one set, from its document."""
    return {
        str(name): Part(str(stored), None if rows is None else tuple(int(row) for row in rows))
        for name, (stored, rows) in document["parts"].items()
    }


def _hashes(tensor: Tensor, by_row: bool) -> str | list[str]:
    tensor = tensor.detach().cpu().contiguous()
    return [digest(_bytes(row)) for row in tensor] if by_row else digest(_bytes(tensor))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(data: bytes) -> str:
    """Half of a SHA-256 is as much as a bank needs."""
    return hashlib.sha256(data).hexdigest()[:32]


def check_sets(sets: Sequence[Sequence[str]]) -> None:
    """Refuse sets that make no bank.

    Raises:
        BudgetError
    """
    for number, tasks in enumerate(sets):
        if not tasks:
            raise BudgetError("a set without tasks", "name them: --tasks depth --tasks normals")
        if sorted(tasks) in [sorted(other) for other in sets[:number]]:
            raise BudgetError(f"the set {', '.join(tasks)} is given twice", "give each set once")
