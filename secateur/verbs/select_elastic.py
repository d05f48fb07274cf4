"""select for elastic bundles: widths from a budget and a preference, in milliseconds; torch only where a choice is
written as a bundle of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.core.budget import Budget, Limit, Pairs, Tolerance, describe
from secateur.core.bundle import Bundle, check_output
from secateur.core.elastic import Choice, Chooser, Table, Wish
from secateur.core.elastic.choose import Objective
from secateur.core.elastic.files import read_table
from secateur.core.errors import BudgetError, BudgetNotMetError

if TYPE_CHECKING:
    from secateur.core.task import Workload


@dataclass(frozen=True)
class ElasticSelection:
    """Widths that were picked. `met`: every limit and floor holds by the table; else it is the smallest configuration,
    or the nearest."""

    bundle: Bundle | None
    table: Table
    choice: Choice
    budget: Budget
    target: str
    search_ms: float

    @property
    def met(self) -> bool:
        return self.choice.met

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
        reached = [f"{limit.text}: {self._reached(limit)}" for limit in self.budget.limits]
        return BudgetNotMetError(
            f"no widths meet the budget and floors; the nearest give {'; '.join(reached) or 'less than a floor'}",
            "allow more, leave out tasks with --tasks, or compress with smaller --widths",
        )

    def _reached(self, limit: Limit) -> str:
        return describe(limit, self.choice.costs[limit.kind], _original(self.table, limit.kind, self.target))

    def as_json(self) -> dict[str, Any]:
        """The document of `select --json`."""
        costs = {kind: value for kind, value in self.choice.costs.items() if kind != "latency"}
        return {
            "bundle": str(self.bundle.path) if self.bundle else None,
            "widths": self.widths,
            "tasks": list(self.choice.decoders),
            "budget": [str(limit) for limit in self.budget.limits],
            "budget_met": self.met,
            "expected": {
                "latency_ms": self.choice.costs.get("latency"),
                **{kind: round(value) for kind, value in costs.items()},
                "metrics": dict(self.choice.metrics),
            },
            "target": self.target,
            "search_ms": self.search_ms,
        }


def select_elastic(
    bundle: Bundle | Table,
    budget: str | Iterable[str] | Budget | None,
    target: str = "cpu",
    prefer: Mapping[str, float] | None = None,
    *,
    tasks: Iterable[str] | None = None,
    floors: Tolerance | None = None,
    objective: Objective = "chebyshev",
) -> ElasticSelection:
    """Pick widths from a table.

    Args:
        budget: limits on flops, params, size, memory, or latency on a target that the table has.
        prefer: weights of tasks; 1 for those that are not named.
        tasks: those that are to run, all by default.
        floors: relative loss, against the original, that is allowed of the tasks that are named.
        objective: "chebyshev", "paper" or "sum"; see `secateur.core.elastic.choose`.

    Raises:
        BundleError: a static bundle, or a damaged table.
        BudgetError: an unknown task, a weight that is none, a target without latencies.
    """
    started = time.perf_counter()
    table = bundle if isinstance(bundle, Table) else read_table(bundle)
    limits = Budget.parse(budget)
    running = None if tasks is None else tuple(tasks)
    named = dict(floors.tasks) if floors else {}
    chooser = Chooser(table, target=target, tasks=running)
    allowed = {limit.kind: limit.absolute(_original(table, limit.kind, target)) for limit in limits.limits}
    choice = chooser.pick(Wish(allowed, prefer or {}, named, objective))
    found = bundle if isinstance(bundle, Bundle) else None
    return ElasticSelection(found, table, choice, limits, target, 1e3 * (time.perf_counter() - started))


def _original(table: Table, kind: str, target: str) -> float:
    """The original's figure, to which percentages refer; its latency is that of the full width."""
    if kind == "latency":
        if target not in table.latency:
            known = ", ".join(table.latency) or "none"
            raise BudgetError(
                f'the bundle has no latencies of "{target}"',
                f"it has those of: {known}; compress with --target {target}, or limit flops",
            )
        return table.latency[target].original_ms or 0.0
    if kind == "energy":
        raise BudgetError("an elastic model has no figures of energy", "limit flops, latency or memory")
    return float(getattr(table.original, kind))


def write_selection(
    selection: ElasticSelection,
    output: str | os.PathLike[str],
    workload: Workload | str | None = None,
    *,
    force: bool = False,
    command: str = "",
) -> ElasticSelection:
    """Write the chosen widths as a static bundle: cut, statistics recalibrated, evaluated, exported and measured.

    Returns:
        the selection with the new bundle.

    Raises:
        BudgetNotMetError: the real evaluation contradicts the table on a floor.
    """
    from secateur.compress.compressed import Compressed
    from secateur.compress.slimmable import Settings, load_elastic, static_point
    from secateur.compress.slimmable.result import statistics_at
    from secateur.compress.slimmable.tabulate import Judge
    from secateur.verbs.benchmark import costs_of
    from secateur.verbs.complete import complete
    from secateur.verbs.measure import places
    from secateur.verbs.sources import workload_of
    from secateur.verbs.staging import check_state, finish, state_folder

    bundle, choice, path = selection.bundle, selection.choice, Path(output)
    assert bundle is not None
    manifest = bundle.manifest
    check_output(path, force)
    check_state(path, force=force)
    found = workload_of(bundle, workload)
    elastic, _, kept = load_elastic(bundle, found)
    statistics = statistics_at(kept, elastic.space, choice.row, choice.decoders)
    if statistics is None:
        settings = Settings.from_json(manifest.settings)
        statistics = Judge(elastic, found, settings, bundle.manifest.seed).statistics(choice.configuration)
    point = static_point(elastic, choice.configuration, statistics, found, manifest.metrics_before)
    misses = selection.budget.misses(point.costs, costs_of(manifest.before), _latencies(selection))
    result = Compressed(
        found, "slimmable", selection.budget, Tolerance(1.0), [point], 0, costs_of(manifest.before),
        manifest.metrics_before, misses, {"groups": [], "sequences": [], "decisions": [], "fine_tuning": []}, {},
        manifest.settings | {"selected": selection.widths}, manifest.seed, 0.0,
    )  # fmt: skip
    history = " && ".join(filter(None, (manifest.command, command)))
    staged = result.save(state_folder(path) / "bundle", force=True, command=history)
    staged = complete(staged, found, formats=("onnx",), where=places(selection.target))
    return replace(selection, bundle=finish(staged, path))


def _latencies(selection: ElasticSelection) -> Pairs | None:
    if "latency" not in selection.choice.costs:
        return None
    return {"latency": (selection.choice.costs["latency"], _original(selection.table, "latency", selection.target))}
