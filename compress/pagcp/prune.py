"""PAGCP: performance-aware global channel pruning to a budget, every task within its own tolerance.

    rounds of { trace → sequences under the oracle until the round's share of the budget is met → cut → fine-tune }

Each round ends in one point of the Pareto front. Ye et al., T-PAMI 2023 (arXiv 2303.11923); `Settings.published()`
runs one sequence as published. What differs otherwise is said in docs/pagcp.md.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.compress import ranks
from secateur.compress.channel_map import ChannelMap
from secateur.compress.compressed import Compressed, CompressedPoint, Start
from secateur.compress.dataflow import trace
from secateur.compress.finetune import finetune
from secateur.compress.journal import Journal
from secateur.compress.pagcp import saliency
from secateur.compress.pagcp.calibration import calibration_batches
from secateur.compress.pagcp.compensation import compensate
from secateur.compress.pagcp.front import check_front, epochs, front_misses, round_limits, with_front
from secateur.compress.pagcp.hardware import Judge, Loop, told_apart
from secateur.compress.pagcp.round import Record, Round
from secateur.compress.pagcp.settings import Settings
from secateur.compress.runs import drops_too_large, fingerprint, strictness
from secateur.core.budget import Budget, Limit, Tolerance
from secateur.core.costs import Costs
from secateur.core.errors import BudgetError
from secateur.core.predict import check, evaluate
from secateur.core.seeds import seed_everything
from secateur.core.task import Workload, delta_mtl
from secateur.profiles.count import count_graphs
from secateur.profiles.graph import capture_tasks


def prune(
    workload: Workload,
    budget: Budget,
    tolerance: Tolerance | None = None,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    state: Path | None = None,
    resume: bool = False,
    loop: Loop | None = None,
    before: Costs | None = None,
    start: Start | None = None,
) -> Compressed:
    """Prune a workload's model to a budget. The workload's own model is not changed.

    Args:
        budget: limits on flops, params, memory, size, and with a `loop` on latency and energy; may be empty with
            `Settings.published()`.
        tolerance: allowed relative drop of each task's metric: it scales each task's share of the oracle's criterion,
            and is checked on the test split at the end.
        state: folder in which finished steps are kept; a killed run resumes from it and ends in the same result. It
            stays until the caller has put the result in a safe place, and removes it.
        loop: the target that limits on latency and energy refer to.
        before: costs that relative limits refer to, where the workload's model is itself a compressed one.
        start: the model that is pruned, where it is the workload's own one compressed; limits and drops still refer to
            that, the tolerances of single decisions to the start.

    Raises:
        BudgetError, ModelError, DataError: wrong input, found before any long work.
    """
    started = time.monotonic()
    budget, settings = with_front(budget, settings or Settings())
    run = _Run(workload, budget, tolerance or Tolerance(), settings, seed, loop, before, start)
    journal = Journal(state, run.identity(), resume=resume)
    run.judge = Judge(run.loop, run.before, journal)
    with ranks.joined():
        points, metrics_before = run.points(journal)
    return Compressed(
        workload, "pagcp", budget, run.tolerance, points, len(points) - 1, run.before, metrics_before,
        run.misses(points, metrics_before), run.history(), dict(vars(run.record.spent)),
        run.settings.as_json(), seed, time.monotonic() - started, on_target=run.judge.on_target(),
    )  # fmt: skip


class _Run:
    def __init__(
        self, workload: Workload, budget: Budget, tolerance: Tolerance, settings: Settings, seed: int,
        loop: Loop | None, before: Costs | None, start: Start | None,
    ) -> None:  # fmt: skip
        self.workload, self.budget, self.tolerance, self.settings, self.seed, self.loop = (
            workload, budget, tolerance, settings, seed, loop if budget.on_target else None,
        )  # fmt: skip
        self.record = Record()
        self.judge: Judge
        self.curves: list[dict[str, Any]] = []
        tolerance.check(workload.task_names)
        saliency.find(settings.saliency)
        _check_budget(budget, settings, loop)
        check(workload)
        self.begun, self.start = start, start or Start(workload.model, ChannelMap())
        self.costs_at_start = self._costs(self.start.model)
        self.before = before or (self._costs(workload.model) if start else self.costs_at_start)
        check_front(budget, settings.front, self.before)

    def points(self, journal: Journal) -> tuple[list[CompressedPoint], dict[str, float]]:
        """All rounds: (points from large to small, metrics before)."""
        workload = self.workload
        metrics_before = self._metrics(journal, "before", workload.model)
        model, channels = copy.deepcopy(self.start.model).eval(), self.start.channels
        points = list[CompressedPoint]()
        if self.settings.remove_dead:
            dead = trace(model, workload.example_input, workload.task_names).channel_map({}, remove_dead=True)
            dead.apply(model)
            channels = channels.then(dead)
        for number in range(self.settings.rounds):
            limits = round_limits(self.budget, self.settings, number, self.before, self.costs_at_start)
            channels = channels.then(self._prune(journal, model, number, limits))
            if further := self._missed(model, number):
                channels = channels.then(self._prune(journal, model, number, further, "/correction"))
                self.judge.check(f"round{number}/correction/check", model)
            self._finetune(journal, model, number)
            metrics = self._metrics(journal, f"round{number}/metrics", model)
            delta = delta_mtl(workload.tasks, metrics_before, metrics)
            points.append(CompressedPoint(copy.deepcopy(model), channels, self._costs(model), metrics, delta))
        return points, metrics_before

    def _costs(self, model: nn.Module) -> Costs:
        workload = self.workload
        graphs = capture_tasks(model, workload.example_input, workload.task_names)
        costs = count_graphs(graphs, model, workload.task_names).costs
        return costs if self.loop is None else self.loop.priced(costs, graphs)

    def _missed(self, model: nn.Module, number: int) -> list[Limit] | None:
        """The limits of one more run of this round, where the target does not give what was predicted."""
        last = number == self.settings.rounds - 1
        if self.loop is None or not (last or self.settings.front):
            return None
        limits = self.budget.limits if last else round_limits(self.budget, self.settings, number, self.before)
        return self.judge.corrected(f"round{number}/check", model, self._costs(model), limits)

    def _prune(
        self, journal: Journal, model: nn.Module, number: int, limits: list[Limit], label: str = ""
    ) -> ChannelMap:
        """Prune a model in place to limits; `label` tells a second run within a round from the first."""
        strict = strictness(self.tolerance, self.workload.task_names)
        seed_everything(self.seed, number)  # a calibration loader that shuffles gives a resumed run the same data
        one = Round(
            model, self.workload, self.settings, strict, journal, self.record, number,
            None if self.loop is None else self.loop.hardware, label,
        )  # fmt: skip
        cut = one.prune(limits, self.before)
        self._cut(journal, model, cut, f"round{number}{label}/compensated")
        return cut

    def _cut(self, journal: Journal, model: nn.Module, cut: ChannelMap, key: str) -> None:
        """Cut a model in place; with `compensate`, mend the layers that read what is gone."""
        before = copy.deepcopy(model)
        cut.apply(model)
        if not self.settings.compensate or not cut.kept:
            return
        saved = journal.load_tensors(key)
        if saved is not None:
            model.load_state_dict(saved)
            return
        if ranks.leads():
            seed_everything(self.seed)
            batches = calibration_batches(self.workload.calibration, self.settings.calibration_samples)
            compensate(model, before, cut, batches, self.workload.tasks)
        ranks.state_from_leader(model)
        journal.save_tensors(key, model.state_dict())

    def _finetune(self, journal: Journal, model: nn.Module, number: int) -> None:
        settings = self.settings
        seed_everything(self.seed, number)
        recipe = settings.recipe(epochs(settings)[number])
        label = f"round{number}/finetune"
        for entry in finetune(
            model, self.workload, recipe, seed=self.seed + 1000 * number, label=label, journal=journal
        ):
            self.curves.append({"round": number, **entry})

    def _metrics(self, journal: Journal, key: str, model: nn.Module) -> dict[str, float]:
        return journal.step(
            key, lambda: evaluate(model, self.workload.test, self.workload.tasks, "evaluating"), dict, dict
        )

    def misses(self, points: list[CompressedPoint], metrics_before: Mapping[str, float]) -> list[str]:
        """What of budget and tolerance does not hold at the last point, and which points of a front were not
        reached."""
        point, reached = points[-1], [each.costs for each in points]
        found = self.budget.misses(point.costs, self.before, self.judge.figures)
        found += front_misses(self.budget, self.settings, reached, self.before)
        return found + drops_too_large(self.workload.tasks, self.tolerance, metrics_before, point.metrics)

    def history(self) -> dict[str, Any]:
        record = self.record
        return {
            "groups": record.groups,
            "sequences": record.sequences,
            "decisions": record.decisions,
            "fine_tuning": self.curves,
        }

    def identity(self) -> dict[str, Any]:
        """What makes this run another run: everything that its result depends on."""
        return {
            "method": "pagcp", "budget": str(self.budget), "drop": str(self.tolerance), "seed": self.seed,
            "settings": self.settings.as_json(), "model": fingerprint(self.workload.model),
            "target": told_apart(self.loop, self.before),
            **({"start": fingerprint(self.start.model)} if self.begun else {}),
        }  # fmt: skip


def _check_budget(budget: Budget, settings: Settings, loop: Loop | None) -> None:
    if budget.on_target and loop is None:
        raise BudgetError(
            f"{budget.on_target} is a limit on a target, and none is given",
            "name one, for example: --target cpu, or limit flops, params, memory or size",
        )
    if not budget and settings.stop_at_budget:
        raise BudgetError("no budget is given", 'for example: --budget "flops<=40%", or --paper for the published run')
