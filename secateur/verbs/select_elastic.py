"""select for elastic bundles: widths from a budget and a preference, in milliseconds; torch only where a choice is
written as a bundle of its own."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.budget import ON_TARGET, Budget, Limit, Tolerance, describe
from secateur.core.bundle import Bundle, OnTarget, check_output
from secateur.core.elastic import Choice, Chooser, Table, Wish
from secateur.core.elastic.choose import Objective
from secateur.core.elastic.files import read_table
from secateur.core.errors import BudgetError, BudgetNotMetError
from secateur.core.task import missed_drop, relative_change

if TYPE_CHECKING:
    from secateur.compress.compressed import CompressedPoint
    from secateur.compress.slimmable import Elastic
    from secateur.core.task import Workload

DEFAULT = "cpu"
"""Target that is not looked for unless something is limited on it."""


@dataclass(frozen=True)
class ElasticSelection:
    """Widths that were picked.

    Attributes:
        table: with figures of the target.
        floors: task → relative loss that is allowed.
        named: the target as it was asked for: a name or a file.
        misses: what the written bundle does not keep.
        written: whether `bundle` is the choice as a bundle of its own.
    """

    bundle: Bundle | None
    table: Table
    choice: Choice
    budget: Budget
    floors: Mapping[str, float]
    target: str
    named: str
    search_ms: float
    misses: tuple[str, ...] = ()
    written: bool = False

    @property
    def met(self) -> bool:
        """Whether every limit and floor holds, by the table or, once it is written, by the bundle's own figures; the
        choice is else the smallest configuration, or the nearest."""
        return not self.misses if self.written else self.choice.met

    @property
    def figures(self) -> dict[str, tuple[float, float]]:
        """Kind → (chosen, original) figure on the target, of those that are known."""
        known = [kind for kind in ON_TARGET if kind in self.choice.costs]
        return {kind: (self.choice.costs[kind], _original(self.table, kind, self.target)) for kind in known}

    @property
    def widths(self) -> dict[str, float]:
        """Stage → share of its channels; decoders of tasks that do not run are left out."""
        table, running = self.table, set(self.choice.decoders)
        found = table.widths(self.choice.configuration)
        return {s.name: found[s.name] for s in table.stages if len(s.tasks) > 1 or running.intersection(s.tasks)}

    @property
    def error(self) -> BudgetNotMetError | None:
        """What kept the budget from being met."""
        if self.met:
            return None
        if self.written:
            promised = " what its table promised" if self.choice.met else ""
            return BudgetNotMetError(
                f"the written model misses{promised}: {'; '.join(self.misses)}",
                "it is kept; allow more, or select for a little less",
            )
        return BudgetNotMetError(
            f"no widths meet the budget and floors; the nearest give {'; '.join(self._unmet)}",
            "allow more, leave out tasks with --tasks, or compress with smaller --widths",
        )

    @property
    def _unmet(self) -> list[str]:
        """What the chosen widths miss, limits first, as the table says it."""
        table, costs = self.table, self.choice.costs
        late = [
            f"{limit.text}: {self._reached(limit)}"
            for limit in self.budget.limits
            if costs[limit.kind] > limit.absolute(_original(table, limit.kind, self.target)) * (1 + 1e-9)
        ]
        judged = [task for task in self.choice.decoders if task in self.floors]
        fallen = [missed_drop(task, self._change(task), self.floors[task]) for task in judged]
        return late + [sentence for sentence in fallen if sentence]

    def _change(self, task: str) -> float:
        """Of a task's metric by which the choice was made."""
        table, choice = self.table, self.choice
        fitted = float(table.fitted[task][choice.row, choice.decoders[task]])
        return relative_change(table.better[task], table.original.metrics[task], fitted)

    @property
    def predicted(self) -> bool:
        """Whether the latency comes from a model of the target."""
        latency = self.table.latency.get(self.target)
        return latency is not None and latency.source != "measured"

    def _reached(self, limit: Limit) -> str:
        return describe(limit, self.choice.costs[limit.kind], _original(self.table, limit.kind, self.target))

    def as_json(self) -> dict[str, Any]:
        """The document of `select --json`."""
        costs = {kind: value for kind, value in self.choice.costs.items() if kind not in ON_TARGET}
        return {
            "bundle": str(self.bundle.path) if self.bundle else None,
            "widths": self.widths,
            "tasks": list(self.choice.decoders),
            "budget": [str(limit) for limit in self.budget.limits],
            "budget_met": self.met,
            "misses": list(self.misses),
            "expected": {
                "latency_ms": self.choice.costs.get("latency"),
                "energy_mj": self.choice.costs.get("energy"),
                "predicted": self.predicted,
                **{kind: round(value) for kind, value in costs.items()},
                "metrics": dict(self.choice.metrics),
            },
            "written": self.bundle.manifest.point.model_dump() if self.bundle and self.written else None,
            "sources": {"latency": "predicted" if self.predicted else "measured", "energy": "predicted"},
            "target": self.target,
            "search_ms": self.search_ms,
        }


def select_elastic(
    bundle: Bundle | Elastic,
    budget: str | Iterable[str] | Budget | None,
    target: str = "cpu",
    prefer: Mapping[str, float] | None = None,
    *,
    tasks: Iterable[str] | None = None,
    floors: Tolerance | None = None,
    objective: Objective = "chebyshev",
) -> ElasticSelection:
    """Pick widths from the table of an elastic bundle, or of one that was just made.

    Args:
        budget: limits on flops, params, size, memory, or latency and energy on the target.
        target: one that the table has latencies of, or another that can be predicted.
        prefer: weights of tasks; 1 for those that are not named.
        tasks: those that are to run, all by default.
        floors: relative loss, against the original, that is allowed of each task that runs; of some only where
            `Tolerance.parse(text, math.inf)` says nothing of the others.
        objective: "chebyshev", "paper" or "sum"; see `secateur.core.elastic.choose`.

    Raises:
        BundleError: a static bundle, or a damaged table.
        BudgetError: an unknown task, a weight that is none, limits on a target that nothing is known of.
        DeviceError: an unknown target, or one that nothing predicts.
    """
    started = time.perf_counter()
    limits = Budget.parse(budget)
    named = target
    table, target = _on_target(bundle, target, [limit.kind for limit in limits.on_target.limits])
    running = None if tasks is None else tuple(tasks)
    chooser = Chooser(table, target=target, tasks=running)
    floor = _floors(floors, table.tasks if running is None else running, table.tasks)
    allowed = {limit.kind: _allowed(table, limit, target) for limit in limits.limits}
    choice = chooser.pick(Wish(allowed, prefer or {}, floor, objective))
    found = bundle if isinstance(bundle, Bundle) else None
    elapsed = 1e3 * (time.perf_counter() - started)
    return ElasticSelection(found, table, choice, limits, floor, target, named, elapsed)


def _floors(floors: Tolerance | None, running: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Task → the loss that is allowed of it, of those that have a limit."""
    if floors is None:
        return {}
    floors.check(known)
    found = {task: floors.of(task) for task in (*running, *dict(floors.tasks))}
    return {task: drop for task, drop in found.items() if math.isfinite(drop)}


def _on_target(bundle: Bundle | Elastic, target: str, kinds: Sequence[str]) -> tuple[Table, str]:
    """The table, with what it does not hold of a target predicted; and the target's own name.

    Args:
        kinds: that are limited, of "latency" and "energy".
    """
    table = read_table(bundle) if isinstance(bundle, Bundle) else bundle.table
    known = {"latency": table.latency, "energy": table.energy}
    wanted = kinds or ([] if target == DEFAULT else ["latency"])
    if all(target in known[kind] for kind in wanted):
        return table, target
    from secateur.profiles.latency.parts import read_parts
    from secateur.targets.elastic_predicted import with_predictions
    from secateur.targets.registry import find

    device = find(target)
    missing = [kind for kind in wanted if device.name not in known[kind]]
    if missing:
        parts = read_parts(bundle) if isinstance(bundle, Bundle) else bundle.parts
        table = with_predictions(table, parts, device, missing)
    return table, device.name


def _allowed(table: Table, limit: Limit, target: str) -> float:
    """A limit in base units.

    Raises:
        BudgetError: a share of something that the table does not know.
    """
    original = _original(table, limit.kind, target)
    if limit.relative and not original:
        raise BudgetError(f"the {limit.kind} of the original on {target} is not known", "give the limit as a figure")
    return limit.absolute(original)


def _original(table: Table, kind: str, target: str) -> float:
    """The original's figure, to which percentages refer; on a target, that of the full width."""
    if kind == "latency":
        return table.latency[target].original_ms or 0.0
    if kind == "energy":
        return table.energy[target].of(*table.full)
    return float(getattr(table.original, kind))


def write_selection(
    selection: ElasticSelection,
    output: str | os.PathLike[str],
    workload: Workload | str | None = None,
    *,
    epochs: int = 0,
    force: bool = False,
    command: str = "",
) -> ElasticSelection:
    """Write the chosen widths as a static bundle: cut, statistics recalibrated, evaluated on test data, exported and
    measured; the decoders of tasks that do not run are taken out.

    Args:
        epochs: of fine-tuning the choice by itself, with the original as teacher.

    Returns:
        the selection with the new bundle; where that contradicts the table, the selection is not met.
    """
    from secateur.compress.compressed import Compressed
    from secateur.verbs.benchmark import costs_of
    from secateur.verbs.complete import complete
    from secateur.verbs.measure import places
    from secateur.verbs.sources import workload_of
    from secateur.verbs.staging import BUNDLE, finish, nothing_left, reserved

    bundle, path = selection.bundle, Path(output)
    assert bundle is not None
    manifest, where = bundle.manifest, places(selection.named)
    check_output(path, force)
    with reserved(path, resume=False, force=force) as state, nothing_left(state):
        found = workload_of(bundle, workload)
        point, curves = _point(selection, found, epochs)
        found, before = found.select_tasks(selection.choice.decoders), costs_of(manifest.before)
        misses = [
            *selection.budget.misses(point.costs, before, selection.figures), *_missed_floors(selection, found, point),
        ]  # fmt: skip
        result = Compressed(
            found, "slimmable", selection.budget, Tolerance(1.0, tuple(selection.floors.items())), [point], 0, before,
            {task: manifest.metrics_before[task] for task in found.task_names}, misses,
            {"groups": [], "sequences": [], "decisions": [], "fine_tuning": curves}, {},
            manifest.settings | {"selected": selection.widths}, manifest.seed, 0.0, on_target=_judge(selection),
        )  # fmt: skip
        history = " && ".join(filter(None, (manifest.command, command)))
        staged = result.save(state / BUNDLE, force=True, command=history)
        written = finish(complete(staged, found, formats=("onnx",), where=where), path)
    return replace(selection, bundle=written, misses=tuple(written.manifest.misses), written=True)


def _point(
    selection: ElasticSelection, workload: Workload, epochs: int
) -> tuple[CompressedPoint, list[dict[str, Any]]]:
    """The chosen widths as a static model of the tasks that run, fine-tuned and evaluated; and the curve of that."""
    from secateur.compress.finetune import finetune
    from secateur.compress.journal import Journal
    from secateur.compress.slimmable import Settings, judged_point, load_elastic, static_model
    from secateur.compress.slimmable.result import statistics_at
    from secateur.compress.slimmable.tabulate import Judge

    bundle, choice = selection.bundle, selection.choice
    assert bundle is not None
    elastic, _, kept = load_elastic(bundle, workload)
    statistics = statistics_at(kept, elastic.space, choice.row, choice.decoders)
    settings, seed = Settings.from_json(bundle.manifest.settings), bundle.manifest.seed
    if statistics is None:
        statistics = Judge(elastic, workload, settings, seed).statistics(choice.configuration)
    running = workload.select_tasks(choice.decoders)
    model, channels = static_model(elastic, choice.configuration, statistics, running)
    curve = finetune(
        model, running, settings.recipe(epochs), seed=seed, label="fine-tuning", journal=Journal(None, {}, resume=False)
    )
    point = judged_point(model.eval(), channels, running, bundle.manifest.metrics_before)
    return point, [{"round": 0, **entry} for entry in curve]


def _missed_floors(selection: ElasticSelection, workload: Workload, point: CompressedPoint) -> list[str]:
    """Floors that the table promised and the test split does not show."""
    from secateur.compress.runs import drops_too_large

    assert selection.bundle is not None
    floors = Tolerance(math.inf, tuple(selection.floors.items()))
    return drops_too_large(workload.tasks, floors, selection.bundle.manifest.metrics_before, point.metrics)


def _judge(selection: ElasticSelection) -> OnTarget | None:
    """What limits on a target were chosen by; the written bundle is judged by its own figures there."""
    if not selection.budget.on_target:
        return None
    latency = selection.table.latency.get(selection.target)
    basis = "the table of the elastic bundle" if latency is None else f"{latency.source}: {latency.machine}"
    return OnTarget(target=selection.target, basis=basis, figures=selection.figures)
