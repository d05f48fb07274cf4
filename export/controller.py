"""Controller: which widths to run now, decided on the device in less than a millisecond. Needs numpy only.

controller = Controller.load("runs/scenes-elastic/artefacts/elastic")
choice = controller.pick(budget_ms=6, prefer={"depth": 2})
choice.met, choice.costs["latency"], choice.metrics
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from secateur.core.elastic import Choice, Chooser, Table, Wish
from secateur.core.elastic.choose import Objective
from secateur.core.elastic.files import TABLE, load_table


class Controller:
    """Chooses among the configurations that the exported files can run. Safe to share among threads.

    Args:
        target: whose latencies and energies count.
    """

    def __init__(self, table: Table, target: str = "cpu") -> None:
        self.table, self.target = table, target
        self._lock = threading.Lock()
        self._choosers: dict[tuple[str, ...], Chooser] = {}
        self._chooser(table.tasks)

    @classmethod
    def load(cls, path: str | os.PathLike[str], target: str = "cpu") -> Controller:
        """From a table's file, or a folder that holds it.

        Raises:
            BundleError: missing or damaged.
        """
        place = Path(path)
        return cls(load_table(place / TABLE if place.is_dir() else place), target)

    def pick(
        self,
        *,
        budget_ms: float | None = None,
        budget_mj: float | None = None,
        budget_flops: float | None = None,
        prefer: Mapping[str, float] | None = None,
        tasks: Iterable[str] | None = None,
        floors: Mapping[str, float] | None = None,
        objective: Objective = "chebyshev",
    ) -> Choice:
        """The best widths within a budget.

        Args:
            prefer: weights of tasks; 1 for those that are not named.
            tasks: those that are to run.
            floors: task → relative loss of its metric that is allowed at most.

        Returns:
            a choice; `met` is false where no configuration keeps the budget, and the smallest one is given.

        Raises:
            BudgetError: an unknown task, a weight that is none, a target without latencies.
        """
        limits = {"latency": budget_ms, "energy": budget_mj, "flops": budget_flops}
        wish = Wish(
            {kind: limit for kind, limit in limits.items() if limit is not None}, prefer or {}, floors or {}, objective
        )
        return self._chooser(
            self.table.tasks if tasks is None else (tasks,) if isinstance(tasks, str) else tuple(tasks)
        ).pick(wish)

    def choice(self, row: int, decoders: Mapping[str, int]) -> Choice:
        """What the table says of one configuration: a row of the encoder, and the width index of each decoder that
        runs."""
        return self._chooser(self.table.tasks).choice(row, decoders)

    def _chooser(self, tasks: tuple[str, ...]) -> Chooser:
        with self._lock:
            if tasks not in self._choosers:
                self._choosers[tasks] = Chooser(
                    self.table, target=self.target, tasks=tasks, rows=self.table.exported or None
                )
            return self._choosers[tasks]
