"""Extraction: from a multi-task mixture of experts, the model that some of its tasks need.

    calibrate every task → keep what the asked tasks use (exact) → cut other tasks' routers, heads, embeddings
    → with a budget: rounds of { remove experts under the oracle → cut → fine-tune with the whole model as teacher }

The first point is `exact`: on the calibration data it computes what the whole model does, bit for bit. Later points are
smaller. Liang, Fan, Sarkar et al., M³ViT (NeurIPS 2022): a single task needs only its own experts.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.compress.channel_map import ChannelMap
from secateur.compress.compressed import Compressed, CompressedPoint
from secateur.compress.dataflow import from_graphs
from secateur.compress.experts import removal
from secateur.compress.experts.bank import FILE as BANK
from secateur.compress.experts.bank import check_sets, make_bank, places_of
from secateur.compress.experts.cutting import Keep, dead_map, expert_map, record
from secateur.compress.experts.evidence import largest_difference, overlaps
from secateur.compress.experts.layers import ExpertLayer, find
from secateur.compress.experts.settings import Settings
from secateur.compress.experts.twin import twinned
from secateur.compress.experts.usage import Table, measure, miss_rates, probe
from secateur.compress.finetune import finetune
from secateur.compress.journal import Journal
from secateur.compress.pagcp.front import step_limits
from secateur.compress.pagcp.hardware import Judge, Loop, told_apart
from secateur.compress.pagcp.oracle import Spent
from secateur.compress.runs import drops_too_large, fingerprint, strictness
from secateur.core.budget import Budget, Limit, Tolerance
from secateur.core.costs import Costs
from secateur.core.errors import BudgetError
from secateur.core.files import canonical_json
from secateur.core.predict import check, evaluate
from secateur.core.seeds import seed_everything
from secateur.core.task import Workload, delta_mtl
from secateur.profiles.count import count, count_graphs
from secateur.profiles.graph import capture_tasks


def extract(
    workload: Workload,
    tasks: Iterable[str] | None = None,
    budget: Budget | None = None,
    tolerance: Tolerance | None = None,
    settings: Settings | None = None,
    *,
    sets: Sequence[Sequence[str]] = (),
    seed: int = 0,
    state: Path | None = None,
    resume: bool = False,
    loop: Loop | None = None,
) -> Extracted:
    """Extract the model that some tasks need. The workload's own model is not changed.

    Args:
        tasks: to keep; all by default.
        sets: of these tasks, between which a device switches: each point gets a bank, see `bank`.
        budget: limits on flops, params, memory or size, in relation to the whole multi-task model, and with a `loop` on
            latency and energy, in relation to the whole model computing the kept tasks; without any, the exact
            extraction is the result.
        tolerance: allowed relative drop of each kept task's metric, checked on the test split at the end.
        state: folder in which finished steps are kept; a killed run resumes from it and ends in the same result.
        loop: the target that limits on latency and energy refer to; with one, all costs have what it predicts.

    Raises:
        BudgetError, ModelError, DataError: wrong input, found before any long work.
    """
    started = time.monotonic()
    names = tuple(workload.task_names if tasks is None else tasks)
    check_sets(sets)
    run = _Run(workload, names, budget or Budget(), tolerance or Tolerance(), settings or Settings(), seed, sets, loop)
    journal = Journal(state, run.identity(), resume=resume)
    run.judge = Judge(loop, run.before, journal)
    points = run.points(journal)
    return Extracted(
        run.kept, "experts", run.budget, run.tolerance, points, len(points) - 1, run.before, run.metrics_before,
        run.misses(points[-1]), run.history(), dict(vars(run.spent)), run.settings.as_json(), seed,
        time.monotonic() - started, run.banks, on_target=run.judge.on_target() if run.budget.on_target else None,
    )  # fmt: skip


@dataclass(repr=False)
class Extracted(Compressed):
    """An extraction; `banks` has one document for each point, if sets of tasks were asked for."""

    banks: list[Any] = field(default_factory=list)

    def write_more(self, folder: Path) -> None:
        for number, bank in enumerate(self.banks):
            (folder / "points" / f"{number:02d}" / BANK).write_text(canonical_json(bank), encoding="utf-8")


class _Run:
    def __init__(
        self, workload: Workload, tasks: tuple[str, ...], budget: Budget, tolerance: Tolerance, settings: Settings,
        seed: int, sets: Sequence[Sequence[str]], loop: Loop | None,
    ) -> None:  # fmt: skip
        self.whole, self.budget, self.tolerance, self.settings, self.seed = workload, budget, tolerance, settings, seed
        self.loop = loop
        self.judge: Judge
        if not tasks:
            raise BudgetError("no task is kept", f"the tasks are: {', '.join(workload.task_names)}")
        self.kept, self.sets, self.banks = workload.select_tasks(tasks), sets, list[Any]()
        tolerance.check(self.kept.task_names)
        _check_budget(budget, loop)
        self.layers = find(workload.model)
        probe(workload.model, self.layers, workload.calibration, workload.task_names)
        check(workload)
        self.before = self._costs(workload.model, workload.task_names)
        self.spent, self.table = Spent(), Table()
        self.records: list[dict[str, Any]] = []
        self.exact: dict[str, float] = {}
        self.curves: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []

    def points(self, journal: Journal) -> list[CompressedPoint]:
        """The exact point, then those of the rounds towards the budget."""
        whole = self.whole
        self.metrics_before = self._metrics(journal, "before", whole.model)
        model, channels = copy.deepcopy(whole.model).eval(), ChannelMap()
        if self.settings.top_k is not None:
            channels = self._cut(model, channels, expert_map(model, find(model), {}, self.settings.top_k))
        reference = copy.deepcopy(model)
        self.table = self._calibrate(journal, model, "calibrate", whole.task_names)
        keep = {layer.path: self._used(layer) for layer in find(model)}
        channels = self._cut(model, channels, expert_map(model, find(model), keep))
        channels = self._cut(model, channels, _dead(model, self.kept))
        self.exact = journal.step("exact", lambda: largest_difference(reference, model, self.kept), dict, dict)
        found = [self._point(journal, model, channels, "exact")]
        self._bank(journal, model, "exact")
        rounds = self.settings.rounds if self.budget.misses(found[0].costs, self.before) else 0
        for number in range(rounds):
            limits = step_limits(self.budget, (number + 1) / rounds, found[0].costs, self.before)
            channels = self._cut(model, channels, self._remove(journal, model, number, limits))
            if number + 1 == rounds and (further := self._missed(model, number)):
                channels = self._cut(model, channels, self._remove(journal, model, number, further, "/correction"))
                self.judge.check(f"round{number}/correction/check", model)
            self._finetune(journal, model, number, rounds)
            found.append(self._point(journal, model, channels, f"round{number}"))
            self._bank(journal, model, f"round{number}")
        self._note_misses(journal, reference)
        return found

    def _used(self, layer: ExpertLayer) -> list[int]:
        """The places of the experts that a kept task uses; of a layer that no kept task runs all, as it is taken out
        whole. Orders to compare with do not know the task."""
        used = set(self.table.used(self.kept.task_names, layer.path))
        if self.settings.order != "contribution" or not used:
            return list(range(layer.experts))
        return places_of(layer, used)

    def _cut(self, model: nn.Module, channels: ChannelMap, cut: ChannelMap) -> ChannelMap:
        cut.apply(model)
        return channels.then(cut)

    def _bank(self, journal: Journal, model: nn.Module, label: str) -> None:
        if self.sets:
            table = self._calibrate(journal, model, f"{label}/bank", self.kept.task_names)
            self.banks.append(make_bank(model, self.kept, table, self.sets, _dead))

    def _calibrate(self, journal: Journal, model: nn.Module, label: str, tasks: Iterable[str]) -> Table:
        table = Table()
        traceable = twinned(model)
        layers = find(traceable)
        for task in tasks:

            def run(task: str = task) -> Table:
                seed_everything(self.seed)  # a loader that shuffles gives a resumed run the same data
                return Table({task: measure(traceable, layers, self.whole.calibration, task, f"calibrating {task}")})

            table.tasks |= journal.step(f"{label}/{task}", run, Table.as_json, Table.from_json).tasks
        return table

    def _costs(self, model: nn.Module, tasks: Sequence[str]) -> Costs:
        """What a model costs for some tasks, and what the target predicts for those that are kept."""
        traceable = twinned(model)
        graphs = capture_tasks(traceable, self.whole.example_input, tasks)
        costs = count_graphs(graphs, traceable, tasks).costs
        if self.loop is None:
            return costs
        if len(graphs) > 1:  # tasks run one at a time
            graphs = [graph for task, graph in zip(tasks, graphs, strict=True) if task in self.kept.task_names]
        return self.loop.priced(costs, graphs)

    def _missed(self, model: nn.Module, number: int) -> list[Limit] | None:
        """The limits to go on to, where the target does not give what was predicted."""
        if not self.budget.on_target:
            return None
        costs = self._costs(model, self.kept.task_names)
        return self.judge.corrected(f"round{number}/check", model, costs, self.budget.limits)

    def _remove(
        self, journal: Journal, model: nn.Module, number: int, limits: list[Limit], more: str = ""
    ) -> ChannelMap:
        """Which experts go from the model as it is; `more` tells a second time within a round from the first."""
        label = f"round{number}{more}"
        tasks = self.whole.task_names if self.settings.order == "usage" else self.kept.task_names
        table = self.table
        if tasks == self.kept.task_names:
            table = self._calibrate(journal, model, f"{label}/calibrate", tasks)
        seed_everything(self.seed)
        one = removal.Removal(
            twinned(model), self.kept, self.settings, table, journal, label, self.spent,
            max(layer.top_k for layer in find(model)), self.seed, None if self.loop is None else self.loop.hardware,
        )  # fmt: skip
        kept: Keep = one.run(limits, self.before, strictness(self.tolerance, self.kept.task_names))
        self.decisions += [{"round": number + 1, **decision} for decision in one.decisions]
        return expert_map(model, find(model), kept)

    def _finetune(self, journal: Journal, model: nn.Module, number: int, rounds: int) -> None:
        settings = self.settings
        share = settings.epochs // rounds
        epochs = share if number + 1 < rounds else settings.epochs - share * (rounds - 1)
        recipe = settings.recipe(epochs)
        seed_everything(self.seed, number)
        label, seed = f"round{number}/finetune", self.seed + 1000 * number
        for entry in finetune(model, self.kept, recipe, seed=seed, label=label, journal=journal):
            self.curves.append({"round": number, **entry})

    def _point(self, journal: Journal, model: nn.Module, channels: ChannelMap, label: str) -> CompressedPoint:
        costs = self._costs(model, self.kept.task_names)
        metrics = self._metrics(journal, f"{label}/metrics", model)
        self.records.append(record(label, model, channels))
        delta = delta_mtl(self.kept.tasks, self.metrics_before, metrics)
        return CompressedPoint(copy.deepcopy(model), channels, costs, metrics, delta)

    def _note_misses(self, journal: Journal, reference: nn.Module) -> None:
        """Of each point, how often a token of the test split wants an expert that is gone."""
        for one in self.records:

            def rates(kept: Keep = one["kept"]) -> dict[str, dict[str, float]]:
                return miss_rates(reference, kept, self.kept)

            one["miss_rate"] = journal.step(f"{one['point']}/misses", rates, dict, lambda found: dict(found))

    def _metrics(self, journal: Journal, key: str, model: nn.Module) -> dict[str, float]:
        return journal.step(key, lambda: evaluate(model, self.kept.test, self.kept.tasks, "evaluating"), dict, dict)

    def misses(self, point: CompressedPoint) -> list[str]:
        """What of budget and tolerance does not hold."""
        found = self.budget.misses(point.costs, self.before, self.judge.figures)
        return found + drops_too_large(self.kept.tasks, self.tolerance, self.metrics_before, point.metrics)

    def history(self) -> dict[str, Any]:
        """What the report shows. Groups are layers, their channels are experts."""
        layers = find(self.whole.model)
        groups = [
            {"name": layer.path, "channels": layer.experts, "prunable": True, "why_not": "", "flops_share": None,
             "members": [{"parameter": layer.name(part), "dim": 0} for part in layer.layout.parts.values()]}
            for layer in layers
        ]  # fmt: skip
        experts = {
            "layers": [
                {"path": layer.path, "experts": layer.experts, "top_k": layer.top_k, "bytes": layer.expert_bytes}
                for layer in layers
            ],
            "tasks": list(self.kept.task_names), "usage": self.table.as_json(), "points": self.records,
            "overlap": overlaps(self.table), "exact": self.exact, "dense_equivalent": self._dense_equivalent(),
        }  # fmt: skip
        first = [_exact_decision(layer, self.records[0]) for layer in layers]
        return {
            "groups": groups, "decisions": first + self.decisions, "fine_tuning": self.curves, "experts": experts,
        }  # fmt: skip

    def _dense_equivalent(self) -> dict[str, int]:
        """Costs of the whole model if every token went through every expert."""
        dense = copy.deepcopy(twinned(self.whole.model))
        for layer in find(dense):
            layer.choose(layer.experts)
        return count(dense, self.whole.example_input, self.whole.task_names).costs.as_json()

    def identity(self) -> dict[str, Any]:
        return {
            "method": "experts", "tasks": list(self.kept.task_names), "budget": str(self.budget),
            "drop": str(self.tolerance), "seed": self.seed, "settings": self.settings.as_json(),
            "model": fingerprint(self.whole.model), "target": told_apart(self.loop, self.before),
        }  # fmt: skip


def _dead(model: nn.Module, workload: Workload) -> ChannelMap:
    """What no task of a workload needs of a model."""
    inputs, _ = next(iter(workload.calibration))
    traceable = twinned(model)
    groups = from_graphs(traceable, capture_tasks(traceable, inputs, workload.task_names))
    return dead_map(groups, inputs, workload.tasks)


def _exact_decision(layer: ExpertLayer, record: Mapping[str, Any]) -> dict[str, Any]:
    """The first cut of a layer: what no kept task uses, which may be all of it."""
    kept = len(record["kept"].get(layer.path, ()))
    return {
        "round": 0, "pass": 0, "group": layer.path, "channels": layer.experts, "kept_before": layer.experts,
        "kept": kept, "tau": 0.0, "pruned": kept < layer.experts, "curve": [], "flops_after": None,
    }  # fmt: skip


def _check_budget(budget: Budget, loop: Loop | None) -> None:
    if budget.on_target and loop is None:
        raise BudgetError(
            f"{budget.on_target} is a limit on a target, and none is given",
            "name one, for example: --target cpu, or limit flops, params, memory or size",
        )
