"""Choosing a configuration: from limits and a preference over tasks to widths, exactly, in well under a millisecond.

    Chooser(table).pick(Wish(limits={"flops": 80e6}, prefer={"depth": 2}))

Each task's metric is scaled to q in 0..1 over the table. With weights r (summing to 1), the default objective is the
augmented Chebyshev scalarisation  min max_t r_t·(1 - q_t) + 0.01·Σ_t r_t·(1 - q_t)  (Steuer and Choo, 1983), which
reaches points that no weighted sum does. `paper` adds the rule of Efficient Controllable Multi-Task Architectures
(ICCV 2023): a task that is preferred gets at least as large a share of its decoder as one that is not. Of equals, the
cheapest in FLOPs wins. All combinations are looked at while they are few; beyond that, a search over thresholds finds
the minimax, exactly within one limit, as each decoder then can be chosen by itself (within several, what it gives keeps
them, but it may miss what keeps them barely).
"""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secateur.core.elastic.table import ADDITIVE, Figures, Floats, Table
from secateur.core.errors import BudgetError
from secateur.core.task import preference, relative_change

Objective = Literal["chebyshev", "paper", "sum"]
OBJECTIVES: tuple[str, ...] = ("chebyshev", "paper", "sum")
EXHAUSTIVE = 2**20
"""Combinations up to which all are looked at."""
AUGMENTATION = 0.01
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Args:
        limits: kind (`flops`, `params`, `size`, `memory`, `latency`, `energy`) → at most so much, in base units.
        prefer: weights of tasks; 1 for those that are not named.
        floors: task → relative loss of its metric, against the original, that is allowed at most.
        objective: `chebyshev`, `paper` (the same under the paper's rule) or `sum`.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    prefer: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    objective: Objective = "chebyshev"


@dataclass(frozen=True)
class Choice:
    """A configuration, and what the table says of it. `met`: all limits and floors hold; if not, it is the smallest
    one (or, where only a floor fails, the one that comes nearest to it)."""

    row: int
    decoders: Mapping[str, int]
    configuration: tuple[int, ...]
    met: bool
    costs: Mapping[str, float]
    metrics: Mapping[str, float]
    utility: float


class Chooser:
    """Choices among a table's configurations; immutable, so that threads may share it.

    Args:
        target: whose latency and energy count.
        tasks: those that run, all by default; the decoders of others cost nothing.
        rows: of the table to choose among, all by default.
    """

    def __init__(
        self,
        table: Table,
        *,
        target: str = "cpu",
        tasks: tuple[str, ...] | None = None,
        rows: tuple[int, ...] | None = None,
    ) -> None:
        self.table, self.target = table, target
        self.tasks = tuple(dict.fromkeys(_known(table, tasks if tasks is not None else table.tasks)))
        if not self.tasks:
            raise BudgetError("no task is to run", f"the tasks are: {', '.join(table.tasks)}")
        self._rows = np.arange(len(table.rows)) if rows is None else np.array(rows, dtype=np.int64)
        self._shape = (len(self._rows), *(len(table.decoders[task]) for task in self.tasks))
        self._small = math.prod(self._shape) <= EXHAUSTIVE
        self._scaled = {task: self._scale(task) for task in self.tasks}
        self._parts = {kind: self._part(figures) for kind, figures in self._figures().items()}
        self._totals = {kind: self._total(kind) for kind in self._kinds()} if self._small else {}
        self._regret = {task: self._spread(task, 1 - q).ravel() for task, q in self._scaled.items() if self._small}

    def pick(self, wish: Wish) -> Choice:
        """The best configuration for a wish.

        Raises:
            BudgetError: an unknown task, a weight that is none, a target without latencies, an unknown objective.
        """
        weights = self._weights(wish.prefer)
        self._refuse(wish)
        if self._small:
            return self._exhaustive(wish, weights)
        return self._by_threshold(wish, weights)

    def choice(self, row: int, decoders: Mapping[str, int], *, met: bool = True, utility: float = math.nan) -> Choice:
        """What the table says of one configuration."""
        table = self.table
        costs = {kind: table.costs[kind].of(row, decoders) for kind in ADDITIVE}
        peak = [table.costs["activations"].shared[row]]
        peak += [table.costs["activations"].decoders[task][row, index] for task, index in decoders.items()]
        costs["memory"] = costs["size"] + table.memory_margin * float(max(peak))
        costs |= {kind: figures.of(row, decoders) for kind, figures in self._on_target().items()}
        metrics = {task: float(table.metrics[task][row, index]) for task, index in decoders.items()}
        return Choice(row, dict(decoders), table.configuration(row, decoders), met, costs, metrics, utility)

    def _weights(self, prefer: Mapping[str, float]) -> Floats:
        _known(self.table, tuple(prefer))
        weights = np.array(list(preference(prefer, self.tasks).values()))
        scaled: Floats = weights / weights.sum()
        return scaled

    def _refuse(self, wish: Wish) -> None:
        _known(self.table, tuple(wish.floors))
        if wish.objective not in OBJECTIVES:
            raise BudgetError(f'unknown objective "{wish.objective}"', f"choose one of: {', '.join(OBJECTIVES)}")
        for kind, limit in wish.limits.items():
            if math.isnan(limit):
                raise BudgetError(f"the limit on {kind} is no number", "give a number")
            if kind not in self._kinds():
                known = ", ".join(self.table.energy if kind == "energy" else self.table.latency) or "none"
                raise BudgetError(
                    f'the table has no figures of {kind} on "{self.target}"',
                    f"it has those of: {known}; compress with --target {self.target}, or limit flops",
                )

    # --- all combinations -------------------------------------------------------------------------------------------

    def _exhaustive(self, wish: Wish, weights: Floats) -> Choice:
        objective = self._objective(wish.objective, weights)
        allowed = np.ones(objective.size, dtype=bool)
        for kind, limit in wish.limits.items():
            allowed &= self._totals[kind] <= limit * (1 + 1e-9)
        if not allowed.any():
            return self._smallest(wish)
        excess = self._floor_excess(wish.floors)
        met = excess is None or bool((excess[allowed] <= 1e-9).any())
        if excess is not None:
            nearest = max(0.0, float(excess[allowed].min()))
            allowed &= excess <= nearest + 1e-9
        if wish.objective == "paper":  # a rule among what limits and floors leave
            ruled = allowed & self._ruled(weights)
            allowed = ruled if ruled.any() else allowed
        return self._found(_first_best(objective, self._totals["flops"], allowed), met, objective)

    def _objective(self, name: str, weights: Floats) -> Floats:
        terms = [weight * self._regret[task] for task, weight in zip(self.tasks, weights, strict=True)]
        total: Floats = terms[0].copy()
        for term in terms[1:]:
            total += term
        if name == "sum":
            return total
        worst: Floats = terms[0].copy()
        for term in terms[1:]:
            np.maximum(worst, term, out=worst)
        worst += AUGMENTATION * total
        return worst

    def _found(self, flat: int, met: bool, objective: Floats | None = None) -> Choice:
        row, *chosen = np.unravel_index(flat, self._shape)
        decoders = {task: int(index) for task, index in zip(self.tasks, chosen, strict=True)}
        utility = math.nan if objective is None else -float(objective[flat])
        return self.choice(int(self._rows[row]), decoders, met=met, utility=utility)

    def _smallest(self, wish: Wish) -> Choice:
        """The configuration that comes nearest to limits that none keeps."""
        ratios = np.stack([self._totals[kind] / self._above_zero(kind, limit) for kind, limit in wish.limits.items()])
        return self._found(_first_best(ratios.max(0), self._totals["flops"], None), met=False)

    def _above_zero(self, kind: str, limit: float) -> float:
        """A limit to divide by: one that nothing keeps, where time is up already, is next to nothing."""
        most = self._totals[kind].max() if self._small else self._parts[kind].shared.max()
        return max(limit, 1e-12 * max(float(most), 1e-12))

    def _ruled(self, weights: Floats) -> Mask:
        """Combinations in which no task has a smaller share of its decoder than a task of less weight."""
        flops = self.table.costs["flops"].decoders
        shares = []
        for task in self.tasks:
            own = flops[task][self._rows]
            shares.append(self._spread(task, own / np.maximum(own.max(1, keepdims=True), 1)))
        allowed = np.ones(self._shape, dtype=bool)
        for i, more in enumerate(weights):
            for j, less in enumerate(weights):
                if more > less and flops[self.tasks[i]].shape[1] > 1 and flops[self.tasks[j]].shape[1] > 1:
                    allowed &= shares[i] >= shares[j] - 1e-9
        return allowed.ravel()

    def _floor_excess(self, floors: Mapping[str, float]) -> Floats | None:
        """By how much each combination falls below the floors; None when there are none."""
        excess = [self._spread(task, self._loss(task) - floors[task]).ravel() for task in self.tasks if task in floors]
        return np.max(excess, axis=0) if excess else None

    def _loss(self, task: str) -> Floats:
        """Relative loss of a task's metric against the original [rows, D]."""
        before, after = self.table.original.metrics[task], self.table.fitted[task][self._rows]
        return -relative_change(self.table.better[task], before, after)

    # --- figures of combinations ------------------------------------------------------------------------------------

    def _figures(self) -> dict[str, Figures]:
        return {**self.table.costs, **self._on_target()}

    def _on_target(self) -> dict[str, Figures]:
        """Those of `latency` and `energy` that the table has of the target."""
        latency, energy = self.table.latency.get(self.target), self.table.energy.get(self.target)
        found = {"latency": latency.figures if latency else None, "energy": energy}
        return {kind: figures for kind, figures in found.items() if figures is not None}

    def _kinds(self) -> list[str]:
        return [*ADDITIVE, "memory", *self._on_target()]

    def _part(self, figures: Figures) -> Figures:
        return Figures(figures.shared[self._rows], {t: figures.decoders[t][self._rows] for t in self.tasks})

    def _total(self, kind: str) -> Floats:
        """The figure of every combination, flat."""
        if kind == "memory":
            peak = self._combined("activations", np.maximum)
            total: Floats = self._total("size") + self.table.memory_margin * peak
            return total
        return self._combined(kind, np.add)

    def _combined(self, kind: str, combine: np.ufunc) -> Floats:
        part = self._parts[kind]
        total = np.broadcast_to(part.shared.reshape(-1, *(1 for _ in self.tasks)), self._shape)
        for task in self.tasks:
            total = combine(total, self._spread(task, part.decoders[task]))
        return np.ascontiguousarray(total).ravel()

    def _spread(self, task: str, values: Floats) -> Floats:
        """[rows, D_t] along the axes of all combinations."""
        axis = 1 + self.tasks.index(task)
        shape = [len(values), *(1 for _ in self.tasks)]
        shape[axis] = values.shape[1]
        return np.broadcast_to(values.reshape(shape), self._shape)

    def _scale(self, task: str) -> Floats:
        """The task's metric as 0 (worst of the whole table) to 1 (best)."""
        values = self.table.fitted[task]
        low, high = float(values.min()), float(values.max())
        scaled = (values[self._rows] - low) / (high - low) if high > low else np.ones((self._shape[0], values.shape[1]))
        return scaled if self.table.better[task] == "higher" else 1 - scaled

    # --- too many combinations to look at ---------------------------------------------------------------------------

    def _by_threshold(self, wish: Wish, weights: Floats) -> Choice:
        """The smallest threshold θ on every r_t·(1 - q_t) that some row can keep within the limits, by bisection; each
        decoder takes its cheapest width that keeps θ. What is left of the budget goes to the decoders, best first."""
        if wish.objective != "chebyshev" or "memory" in wish.limits:
            raise BudgetError(
                "so many combinations can be weighed by chebyshev only, and not within a limit on memory",
                "use objective chebyshev, and limit size instead of memory",
            )
        regrets = {t: w * (1 - self._scaled[t]) for t, w in zip(self.tasks, weights, strict=True)}
        price = self._price(wish.limits)
        relaxed = self._nearest_floor(wish.floors, regrets, price)
        regrets = self._within_floors(wish.floors, regrets, relaxed)
        levels = np.unique(np.concatenate([each[np.isfinite(each)].ravel() for each in regrets.values()]))
        low, high = 0, len(levels) - 1
        best = self._keeping(levels[high], regrets, price) if len(levels) else None
        if best is None or best[1] > 1 + 1e-9:
            cheapest = self._keeping(math.inf, {t: np.zeros_like(r) for t, r in regrets.items()}, price)
            assert cheapest is not None
            return self.choice(int(self._rows[cheapest[0]]), cheapest[2], met=False)
        while low < high:
            middle = (low + high) // 2
            found = self._keeping(levels[middle], regrets, price)
            if found is not None and found[1] <= 1 + 1e-9:
                best, high = found, middle
            else:
                low = middle + 1
        row, _, chosen = best
        chosen = self._improved(row, chosen, regrets, price)
        total = sum(float(regrets[task][row, index]) for task, index in chosen.items())
        worst = max(float(regrets[task][row, index]) for task, index in chosen.items())
        return self.choice(int(self._rows[row]), chosen, met=relaxed == 0, utility=-(worst + AUGMENTATION * total))

    def _within_floors(
        self, floors: Mapping[str, float], regrets: Mapping[str, Floats], relaxed: float
    ) -> dict[str, Floats]:
        """Regrets, infinite where a task falls below its floor by more than so much."""
        return {
            task: np.where(self._loss(task) <= floors[task] + relaxed + 1e-9, regret, np.inf)
            if task in floors
            else regret
            for task, regret in regrets.items()
        }

    def _nearest_floor(self, floors: Mapping[str, float], regrets: Mapping[str, Floats], price: list[Figures]) -> float:
        """By how much the floors must give way for some configuration within the limits to keep them; 0 where none
        must, or where the limits alone leave nothing."""
        excess = [(self._loss(task) - floors[task]).ravel() for task in self.tasks if task in floors]
        steps = np.unique(np.maximum(np.concatenate([np.zeros(1), *excess]), 0.0))

        def kept(relaxed: float) -> bool:
            found = self._keeping(sys.float_info.max, self._within_floors(floors, regrets, relaxed), price)
            return found is not None and found[1] <= 1 + 1e-9

        if not kept(float(steps[-1])):
            return 0.0
        return float(steps[bisect.bisect_left(steps, True, key=lambda relaxed: kept(float(relaxed)))])

    def _price(self, limits: Mapping[str, float]) -> list[Figures]:
        """Each limited figure as a share of its limit; FLOPs, almost free, where nothing is limited."""
        shares = limits or {"flops": math.inf}
        return [
            Figures(self._parts[kind].shared / limit, {t: a / limit for t, a in self._parts[kind].decoders.items()})
            for kind, limit in ((kind, self._above_zero(kind, limit)) for kind, limit in shares.items())
        ]

    def _keeping(
        self, level: float, regrets: Mapping[str, Floats], price: list[Figures]
    ) -> tuple[int, float, dict[str, int]] | None:
        """(row, largest share of a limit, decoders) of the cheapest configuration that keeps a level."""
        totals = [part.shared.copy() for part in price]
        alive, chosen = np.ones(self._shape[0], dtype=bool), {}
        for task, regret in regrets.items():
            cost = np.stack([part.decoders[task] for part in price]).max(0)
            cost = np.where(regret <= level + 1e-15, cost, np.inf)
            picked = cost.argmin(1)
            alive &= np.isfinite(cost[np.arange(len(cost)), picked])
            chosen[task] = picked
            for total, part in zip(totals, price, strict=True):
                total += part.decoders[task][np.arange(len(cost)), picked]
        if not alive.any():
            return None
        worst = np.where(alive, np.max(totals, axis=0), np.inf)
        row = int(worst.argmin())
        return row, float(worst[row]), {task: int(picked[row]) for task, picked in chosen.items()}

    def _improved(
        self, row: int, chosen: dict[str, int], regrets: Mapping[str, Floats], price: list[Figures]
    ) -> dict[str, int]:
        spent = [part.shared[row] + sum(part.decoders[t][row, i] for t, i in chosen.items()) for part in price]
        while True:
            steps = []
            for task, index in chosen.items():
                for other, regret in enumerate(regrets[task][row]):
                    gain = float(regrets[task][row, index] - regret)
                    new = [
                        s + part.decoders[task][row, other] - part.decoders[task][row, index]
                        for s, part in zip(spent, price, strict=True)
                    ]
                    if gain > 1e-12 and max(new) <= 1 + 1e-9:
                        steps.append((gain, task, other, new))
            if not steps:
                return chosen
            _, task, other, spent = max(steps, key=lambda step: step[0])
            chosen = {**chosen, task: other}


def _known(table: Table, tasks: tuple[str, ...]) -> tuple[str, ...]:
    for task in tasks:
        if task not in table.better:
            raise BudgetError(f'no task "{task}"', f"the tasks are: {', '.join(table.better)}")
    return tasks


def _first_best(objective: Floats, cost: Floats, allowed: Mask | None) -> int:
    """The smallest objective among the allowed; of equals, the one of least cost."""
    values = objective if allowed is None else np.where(allowed, objective, np.inf)
    equals = np.flatnonzero(values <= values.min() + 1e-12)
    return int(equals[cost[equals].argmin()])
