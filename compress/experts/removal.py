"""Removal: which experts go next, and whether a task notices. One expert at a time, under PAGCP's oracle.

The expert that contributes least per byte goes first. Its layer's channels are masked, every kept task's loss is
evaluated on the calibration data, and it goes only if no loss rises beyond 1 + τ. When all were asked and the budget is
not met, τ doubles and those that are left are asked again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from secateur.compress.dataflow import from_graphs
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.dataflow.groups import Keep
from secateur.compress.experts.cutting import group_of
from secateur.compress.experts.layers import ExpertLayer, find
from secateur.compress.experts.settings import Settings
from secateur.compress.experts.usage import Table
from secateur.compress.journal import Journal
from secateur.compress.pagcp.calibration import calibration_batches
from secateur.compress.pagcp.oracle import Oracle, Spent
from secateur.compress.pagcp.sampling import exactly, means
from secateur.compress.pagcp.target import Target
from secateur.core.budget import Limit
from secateur.core.costs import Costs
from secateur.core.progress import bar
from secateur.core.task import Workload
from secateur.profiles.graph import capture_tasks
from secateur.targets.hardware import Hardware

Kept = dict[str, list[int]]


@dataclass(frozen=True)
class Candidate:
    """One expert that may go: its layer, its place there, and its contribution per byte."""

    path: str
    place: int
    worth: float


@dataclass(frozen=True)
class _Trial:
    """One pass over the experts: its number, its τ, what each task's loss may be, and what it was at first."""

    attempt: int
    tau: float
    limits: dict[str, float]
    base: dict[str, float]


@dataclass
class Removal:
    """Removes experts of one model until limits are met. The model's layers must be traceable (see `twin`)."""

    model: nn.Module
    workload: Workload
    settings: Settings
    table: Table
    journal: Journal
    label: str
    spent: Spent
    top_k: int
    seed: int = 0
    hardware: Hardware | None = None
    decisions: list[dict[str, Any]] = field(default_factory=list)
    current: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        batches = calibration_batches(self.workload.calibration, self.settings.calibration_samples)
        self.layers = {layer.path: layer for layer in find(self.model)}
        graphs = capture_tasks(self.model, batches[0][0], self.workload.task_names)
        self.groups = from_graphs(self.model, graphs)
        self.names = {path: group_of(self.groups, layer) for path, layer in self.layers.items()}
        self.oracle = Oracle(self.groups, batches, self.workload.tasks, self.settings.cache_limit, self.spent)
        self.costs = CostModel(self.groups)
        self._cached: dict[str, Any] | None = None

    def run(self, limits: Sequence[Limit], before: Costs, strictness: dict[str, float]) -> Kept:
        """The places of the experts that stay in each layer."""
        target = Target(limits, before, self.costs, self.hardware)
        kept: Kept = {path: list(range(layer.experts)) for path, layer in self.layers.items()}
        if self._met(target, kept):
            return kept
        base = self._step(f"{self.label}/base", lambda: means(list(self.oracle.chunk_losses(self._masks(kept)))))
        self.current, tau = dict(base), self.settings.tolerance
        for attempt in range(self.settings.passes if self.settings.oracle else 1):
            allowed = {task: loss + tau * strictness[task] * abs(loss) for task, loss in base.items()}
            trial = _Trial(attempt, tau, allowed, base)
            self._pass(kept, target, trial)
            if self._met(target, kept):
                break
            tau *= 2
        return kept

    def _pass(self, kept: Kept, target: Target, trial: _Trial) -> None:
        candidates = self._candidates(kept)
        with bar(f"{self.label}, pass {trial.attempt + 1}:", len(candidates)) as progress:
            for candidate in candidates:
                progress.advance()
                progress.note(f"{candidate.path} {candidate.place}")
                if self._met(target, kept):
                    return
                if len(kept[candidate.path]) > self.top_k:
                    self._decide(kept, candidate, trial)

    def _decide(self, kept: Kept, candidate: Candidate, trial: _Trial) -> None:
        path, left = candidate.path, [place for place in kept[candidate.path] if place != candidate.place]
        losses, accepted = None, True
        if self.settings.oracle:
            key = f"{self.label}/pass{trial.attempt}/{path}/{candidate.place}"
            losses, accepted = self._step(key, lambda: self._judge(kept, path, left, trial.limits))
        before = len(kept[path])
        if accepted:
            kept[path], self.current = left, losses or self.current
        self.decisions.append(self._line(candidate, before, kept, losses, accepted, trial))

    def _judge(self, kept: Kept, path: str, left: list[int], limits: dict[str, float]) -> list[Any]:
        """[each task's loss without the expert, whether it may go]."""
        session = self.oracle.at(self._masks(kept), self.names[path], exactly(self.current))
        verdict = session.judge(left, lambda current: limits)
        finite = all(map(math.isfinite, verdict.losses.values()))
        return [verdict.losses if finite else None, verdict.accepted]

    def _line(
        self, candidate: Candidate, before: int, kept: Kept, losses: dict[str, float] | None, accepted: bool,
        trial: _Trial,
    ) -> dict[str, Any]:  # fmt: skip
        """A decision as the report shows it."""
        layer, widths = self.layers[candidate.path], self._widths(kept)
        number = int(layer.kept[candidate.place])
        ratio = losses and {task: loss / max(trial.base[task], 1e-12) for task, loss in losses.items()}
        return {
            "pass": trial.attempt, "group": candidate.path, "expert": number, "worth": candidate.worth,
            "tau": trial.tau, "channels": layer.experts, "kept_before": before, "kept": len(kept[candidate.path]),
            "pruned": accepted,
            "curve": [{"ratio": 1 / before, "kept": before - 1, "loss_ratio": ratio, "accepted": accepted}],
            "flops_after": round(self.costs.flops(widths)), "params_after": round(self.costs.params(widths)),
        }  # fmt: skip

    def _candidates(self, kept: Kept) -> list[Candidate]:
        """Experts that are left, least worth first."""
        found = [
            Candidate(path, place, self._worth(layer, place))
            for path, layer in self.layers.items()
            for place in kept[path]
        ]
        if self.settings.order == "random":
            random.Random(self.seed).shuffle(found)  # noqa: S311 - not for secrets
            return found
        return sorted(found, key=lambda one: (one.worth, one.path, one.place))

    def _worth(self, layer: ExpertLayer, place: int) -> float:
        row = int(layer.kept[place])
        if self.settings.order == "usage":
            used = [found[layer.path] for found in self.table.tasks.values() if layer.path in found]
            return sum(usage.tokens[row] / max(usage.total, 1) for usage in used) / layer.expert_bytes
        shares = self.table.contribution(self.workload.task_names, layer.path)
        return shares[row] / layer.expert_bytes if shares else 0.0

    def _masks(self, kept: Kept) -> dict[str, Any]:
        return {self.names[path]: np.array(places) for path, places in kept.items()}

    def _widths(self, kept: Kept) -> Any:
        return self.costs.widths({self.names[path]: len(places) for path, places in kept.items()})

    def _met(self, target: Target, kept: Kept) -> bool:
        return target.met(self._widths(kept))

    def _step(self, key: str, compute: Callable[[], Any]) -> Any:
        """A journalled step that also remembers what the oracle had spent and cached after it."""

        def restore(document: Any) -> Any:
            vars(self.spent).update(document["spent"])
            self._cached = document["cached"]
            return document["result"]

        def resumed() -> Any:
            if self._cached is not None:
                self.oracle.prefix.refill(_filled(self._cached))
                self._cached = None
            return compute()

        def finished(result: Any) -> dict[str, Any]:
            return {"result": result, "spent": dict(vars(self.spent)), "cached": _cached(self.oracle.prefix.filled)}

        return self.journal.step(key, resumed, finished, restore)


def _cached(filled: Mapping[int, Mapping[str, Keep]]) -> dict[str, Any]:
    """For each chunk whose activations are cached, to which choice of experts those of each task belong, in order."""
    choices = list({id(keep): keep for keeps in filled.values() for keep in keeps.values()}.values())
    numbers = {id(keep): number for number, keep in enumerate(choices)}
    return {
        "choices": [{name: list(map(int, places)) for name, places in keep.items()} for keep in choices],
        "chunks": {
            str(chunk): [(task, numbers[id(keep)]) for task, keep in keeps.items()] for chunk, keeps in filled.items()
        },
    }


def _filled(document: Mapping[str, Any]) -> dict[int, dict[str, Keep]]:
    """What `_cached` wrote."""
    choices = [{name: np.array(places) for name, places in keep.items()} for keep in document["choices"]]
    return {
        int(chunk): {task: choices[number] for task, number in keeps} for chunk, keeps in document["chunks"].items()
    }
