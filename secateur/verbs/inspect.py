"""inspect: what of a model can be cut, what it costs, and who needs it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.compress.dataflow import trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.experts.banked import Bank, has_bank
from secateur.compress.experts.layers import look_for
from secateur.compress.pagcp.round import describe_groups
from secateur.core.bundle import Bundle
from secateur.core.costs import Costs
from secateur.core.task import Workload
from secateur.core.traceable import traceable
from secateur.profiles.count import TaskCost, count
from secateur.verbs.sources import (
    AnyBundle,
    AnyWorkload,
    compressed_model,
    find_workload,
    looks_like_bundle,
    open_bundle,
    workload_of,
)


@dataclass(frozen=True)
class Inspection:
    """What is known of a model before anything is run on data.

    Attributes:
        groups: name, channels, prunable, why_not, members and flops_share (the share of the model's FLOPs that would
            go with all but one of the channels) of each channel group.
        dead: modules that no task's prediction depends on.
        uncounted: op → number of its calls that count no FLOPs by convention.
        experts: path, number, top-k and bytes of one expert of each mixture of experts.
        bank: of a bank of task sets, bytes of each set's model and of what is stored for all.
    """

    name: str
    groups: list[dict[str, Any]]
    dead: tuple[str, ...]
    costs: Costs
    tasks: dict[str, TaskCost]
    uncounted: dict[str, int]
    experts: list[dict[str, Any]] = field(default_factory=list)
    bank: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The document of `inspect --json`."""
        return {
            "name": self.name,
            "groups": self.groups,
            "dead": list(self.dead),
            "costs": self.costs.as_json(),
            "tasks": {
                name: {"flops_exclusive": task.flops_exclusive, "flops_shared": task.flops_shared}
                for name, task in self.tasks.items()
            },
            "uncounted": self.uncounted,
            "experts": self.experts,
            "bank": self.bank,
        }


def inspect(thing: AnyWorkload | AnyBundle, *, workload: AnyWorkload | None = None) -> Inspection:
    """Look into a workload's model, or into the chosen point of a bundle.

    Args:
        workload: of a bundle, instead of the one that it refers to.

    Raises:
        ModelError: the model cannot be traced.
    """
    if isinstance(thing, Bundle) or looks_like_bundle(thing):
        bundle = open_bundle(thing)  # type: ignore[arg-type]
        found = workload_of(bundle, workload)
        inspected = _inspect(bundle.path.resolve().name, compressed_model(bundle, found), found)
        if not has_bank(bundle):
            return inspected
        with Bank(bundle, lambda: found.model) as bank:
            return replace(inspected, bank=bank.describe())
    found = find_workload(thing)  # type: ignore[arg-type]
    return _inspect(found.name, found.model, found)


def _inspect(name: str, model: nn.Module, workload: Workload) -> Inspection:
    example = workload.example_input
    traced = traceable(model)
    table = count(traced, example, workload.task_names)
    groups = trace(traced, example, workload.task_names)
    described = describe_groups(groups, CostModel(groups))
    tasks, uncounted = dict(table.tasks), dict(table.uncounted)
    return Inspection(name, described, table.dead, table.costs, tasks, uncounted, _experts(model))


def _experts(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"path": layer.path, "experts": layer.experts, "top_k": layer.top_k, "expert_bytes": layer.expert_bytes}
        for layer in look_for(model)
    ]
