"""Filling the table: metrics of encoders × decoder widths on calibration data, costs, and what is worth exporting.

All decoders are evaluated together at their first width, at their second, and so on: K rows and D widths take K·D
evaluations and stand for K·ΠD_t configurations.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.compress.journal import Journal
from secateur.compress.pagcp.calibration import calibration_batches
from secateur.compress.slimmable.costs import Costing, figures, joined
from secateur.compress.slimmable.elastic import ElasticModel
from secateur.compress.slimmable.monotone import repaired
from secateur.compress.slimmable.search import Row, choose_rows
from secateur.compress.slimmable.settings import Settings
from secateur.compress.slimmable.space import Configuration, Space
from secateur.compress.slimmable.statistics import inputs_of, recalibrated
from secateur.core.elastic import Chooser, Original, Table, Wish
from secateur.core.elastic.table import Floats
from secateur.core.predict import evaluate, evaluate_with, predict
from secateur.core.progress import bar
from secateur.core.seeds import seed_everything, seed_loader
from secateur.core.task import Workload
from secateur.profiles.count import count

BUDGETS = 8
"""Levels of FLOPs, from the smallest to the largest configuration, for which the export is prepared."""


class Judge:
    """Evaluates configurations, each once: recalibrated statistics, then every task's metric."""

    def __init__(
        self, elastic: ElasticModel, workload: Workload, settings: Settings, seed: int, journal: Journal | None = None
    ) -> None:
        self.elastic, self.workload, self.space = elastic, workload, elastic.space
        self._journal = journal or Journal(None, {}, resume=False)
        seed_everything(seed)  # a shuffled loader gives the same first batches again
        seed_loader(workload.train)
        self._inputs = inputs_of(workload.train, settings.recalibration_batches)
        self._batches = calibration_batches(workload.calibration, settings.calibration_samples)

    def statistics(self, at: Configuration) -> dict[str, Tensor]:
        """Recalibrated statistics of a configuration."""
        return recalibrated(self.elastic, at, self._inputs, self.workload.tasks)

    def metrics(self, at: Configuration) -> dict[str, float]:
        """Every task's metric on calibration data."""
        key = f"table/{'.'.join(map(str, at))}"
        return self._journal.step(key, lambda: self._evaluate(at), dict, dict)

    def original(self) -> dict[str, float]:
        """Metrics of the workload's own model on the same data."""
        return self._journal.step(
            "table/original", lambda: evaluate(self.workload.model, self._batches, self.workload.tasks), dict, dict
        )

    def _evaluate(self, at: Configuration) -> dict[str, float]:
        subnet, tasks = self.elastic.at(at, self.statistics(at)), self.workload.tasks
        with torch.no_grad():
            return evaluate_with(lambda x: predict(subnet, x, tasks), self._batches, tasks)  # type: ignore[arg-type]


def tabulate(judge: Judge, settings: Settings, seed: int) -> Table:
    """Evaluate an elastic model's configurations into a table."""
    space, draw, costing = judge.space, np.random.default_rng(seed), Costing(judge.space)
    tasks = judge.workload.tasks
    sign = np.array([1.0 if task.better == "higher" else -1.0 for task in tasks])
    decoders = {task: _decoder_rows(space, task, settings.decoder_rows, draw) for task in space.tasks}
    largest = {task: rows[-1] for task, rows in decoders.items()}
    sizes = [len(space.stages[place].widths) for place in space.shared()]
    depth = max(len(rows) for rows in decoders.values())
    with bar("evaluating widths", depth * min(settings.rows, math.prod(sizes))) as progress:

        def measured(row: Row, d: int) -> dict[str, float]:
            at = joined(space, row, {task: rows[min(d, len(rows) - 1)] for task, rows in decoders.items()})
            progress.advance()
            return judge.metrics(at)

        uniform = [tuple(at[place] for place in space.shared()) for at in space.uniform()]
        rows, notes = choose_rows(
            sizes,
            settings.rows,
            lambda row: sign * np.array(list(measured(row, depth - 1).values())),
            lambda row: costing.flops(joined(space, row, largest)),
            draw,
            uniform,
        )
        found = [[measured(row, d) for d in range(depth)] for row in rows]
    metrics = {
        task: np.array([[found[k][d][task] for d in range(len(decoders[task]))] for k in range(len(rows))])
        for task in space.tasks
    }
    fitted, wrong = _repaired(metrics, rows, decoders, {task.name: task.better == "higher" for task in tasks})
    costs, margin = figures(space, costing, rows, decoders)
    table = Table(
        stages=space.stages,
        better={task.name: task.better for task in tasks},
        rows=np.array(rows, dtype=np.int64).reshape(len(rows), -1),
        decoders={task: np.array(each, dtype=np.int64).reshape(len(each), -1) for task, each in decoders.items()},
        metrics=metrics,
        fitted=fitted,
        costs=costs,
        original=_original(judge),
        memory_margin=margin,
        notes={**notes, "monotonicity": wrong, "evaluations": len(rows) * depth},
    )
    return with_exported(table, settings.exported)


def with_exported(table: Table, limit: int) -> Table:
    """The table with the rows to export: the smallest, the largest, and those most often best over budgets and
    preferences."""
    chooser, flops = Chooser(table), table.costs["flops"]
    least = flops.shared + sum(each.min(1) for each in flops.decoders.values())
    most = flops.shared + sum(each.max(1) for each in flops.decoders.values())
    preferences: list[dict[str, float]] = [{}, *({task: 3.0} for task in table.tasks)]
    picked = Counter(
        chooser.pick(Wish({"flops": float(budget)}, preference)).row
        for budget in np.geomspace(max(least.min(), 1.0), max(most.max(), 1.0), BUDGETS)
        for preference in preferences
    )
    ends = [int(least.argmin()), int(most.argmax())]
    chosen = list(dict.fromkeys([*ends, *(row for row, _ in picked.most_common())]))[: max(limit, 2)]
    return replace(table, exported=tuple(sorted(chosen)))


def _decoder_rows(space: Space, task: str, limit: int, draw: np.random.Generator) -> list[Row]:
    """Width indices of a decoder's stages: all of them, or the uniform ones and some at random."""
    places = space.decoder(task)
    sizes = [len(space.stages[place].widths) for place in places]
    if math.prod(sizes) <= limit:
        return list(itertools.product(*(range(size) for size in sizes)))
    rows = list(dict.fromkeys(tuple(at[place] for place in places) for at in space.uniform()))
    while len(rows) < limit:
        row = tuple(int(draw.integers(size)) for size in sizes)
        rows += [] if row in rows else [row]
    return sorted(rows)


def _repaired(
    metrics: Mapping[str, Floats],
    rows: Sequence[Row],
    decoders: Mapping[str, Sequence[Row]],
    higher: Mapping[str, bool],
) -> tuple[dict[str, Floats], dict[str, Any]]:
    fitted, wrong = {}, {}
    for task, values in metrics.items():
        coordinates = np.array([(*row, *own) for row in rows for own in decoders[task]], dtype=np.int64)
        flat, violations, pairs = repaired(values.ravel(), coordinates, increasing=higher[task])
        fitted[task] = flat.reshape(values.shape)
        wrong[task] = {"violations": violations, "pairs": pairs}
    return fitted, wrong


def _original(judge: Judge) -> Original:
    workload = judge.workload
    costs = count(workload.model, workload.example_input, workload.task_names).costs
    return Original(
        float(costs.flops), float(costs.params), float(costs.size_bytes), float(costs.peak_memory_bytes),
        judge.original(),
    )  # fmt: skip
