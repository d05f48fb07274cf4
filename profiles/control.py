"""How well an elastic model can be controlled: what budgets and preferences do to its tasks.

Everything is judged in *badness* b_t: the task's metric relative to the original's, 1 when equal, larger when worse
(m / m₀ where lower is better, m₀ / m where higher is).

    hypervolume    volume between the reached badnesses and a fixed reference, over that of the original model alone
    uniformity     1 - KL(ĥ ‖ 1/T), ĥ_t = r_t·b_t / Σ r·b   (Raychaudhuri et al., CVPR 2022)
    range          gain of a task's metric when its weight goes from 0 to 1, relative
    rho            Spearman's rank correlation of a task's weight with its metric over the sweep, gain-signed
    violations     share of steps of a sweep in which more weight gave a worse metric
    compliance     share of choices within their budget; use: mean share of the budget that was used
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from secateur.core.elastic import Choice, Chooser, Table, Wish
from secateur.core.elastic.table import Floats
from secateur.core.task import relative_change

REFERENCE = 2.0
"""Badness of the hypervolume's reference point, in every task: twice as bad as the original."""
PREFERENCES = 24
STEPS = 11


@dataclass(frozen=True)
class Control:
    """The figures of one model at several budgets; lists go with `budgets`, dictionaries are by task."""

    budgets: list[float]
    hypervolume: list[float]
    uniformity: float
    range: dict[str, float]
    rho: dict[str, float]
    violations: float
    compliance: float
    use: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def control(
    table: Table, budgets: Sequence[float], *, kind: str = "flops", target: str = "cpu", seed: int = 0
) -> Control:
    """Judge a table's choices, on its own metrics.

    Args:
        budgets: limits of the given kind.
    """
    chooser = Chooser(table, target=target)
    rays = preferences(len(table.tasks), seed)
    choices = [[_pick(chooser, kind, budget, ray) for ray in rays] for budget in budgets]
    flat = [
        (budget, ray, c) for budget, row in zip(budgets, choices, strict=True) for ray, c in zip(rays, row, strict=True)
    ]
    sweeps = {task: _sweep(chooser, kind, float(np.median(budgets)), task) for task in table.tasks}
    steps = [step for values in sweeps.values() for step in np.diff(values)]
    return Control(
        budgets=list(map(float, budgets)),
        hypervolume=[
            hypervolume(np.array([badness(table, c.metrics) for c in row]), REFERENCE)
            / (REFERENCE - 1) ** len(table.tasks)
            for row in choices
        ],
        uniformity=float(np.mean([uniformity(badness(table, c.metrics), ray) for _, ray, c in flat])),
        range={task: float(values[-1] - values[0]) for task, values in sweeps.items()},
        rho={task: spearman(np.arange(STEPS, dtype=float), values) for task, values in sweeps.items()},
        violations=float(np.mean([step < -1e-12 for step in steps])),
        compliance=float(np.mean([c.costs[kind] <= budget * (1 + 1e-9) for budget, _, c in flat if c.met])),
        use=float(np.mean([c.costs[kind] / budget for budget, _, c in flat if c.met])),
    )


def preferences(tasks: int, seed: int = 0, count: int = PREFERENCES) -> Floats:
    """Points of the simplex [count, tasks]: its centre, its corners, and uniform ones."""
    drawn = np.random.default_rng(seed).dirichlet(np.ones(tasks), max(count - tasks - 1, 0))
    found: Floats = np.vstack([np.full((1, tasks), 1 / tasks), np.eye(tasks), drawn])
    return found


def badness(table: Table, metrics: Mapping[str, float]) -> Floats:
    """Every task's metric relative to the original's: 1 is equal, larger is worse."""
    found = []
    for task, better in table.better.items():
        before, after = table.original.metrics[task], metrics[task]
        found.append(after / before if better == "lower" else before / max(after, 1e-12))
    return np.array(found)


def _pick(chooser: Chooser, kind: str, budget: float, ray: Floats) -> Choice:
    weights = dict(zip(chooser.tasks, map(float, ray), strict=True))
    return chooser.pick(Wish({kind: budget}, weights))


def _sweep(chooser: Chooser, kind: str, budget: float, task: str) -> Floats:
    """Gain of a task (relative to the original, larger is better) as its weight goes from 0 to 1."""
    table, values = chooser.table, []
    others = [other for other in chooser.tasks if other != task]
    for weight in np.linspace(0, 1, STEPS):
        rest = dict.fromkeys(others, float(1 - weight) / max(len(others), 1))
        wish = Wish({kind: budget}, {task: float(weight) if others else 1.0, **rest})
        before, after = table.original.metrics[task], chooser.pick(wish).metrics[task]
        values.append(relative_change(table.better[task], before, after))
    return np.array(values)


def hypervolume(points: Floats, reference: float) -> float:
    """Volume that points [N, T] dominate below a reference (smaller is better in every dimension), exactly: by slices
    along the last dimension (Zitzler, 1999)."""
    inside = points[(points < reference).all(1)]
    if not len(inside):
        return 0.0
    if inside.shape[1] == 1:
        return float(reference - inside.min())
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    edges = np.append(inside[1:, -1], reference)
    volume = 0.0
    for count, (low, high) in enumerate(zip(inside[:, -1], edges, strict=True), start=1):
        if high > low:
            volume += float(high - low) * hypervolume(inside[:count, :-1], reference)
    return volume


def uniformity(losses: Floats, preference: Floats) -> float:
    """1 - KL(ĥ ‖ 1/T) with ĥ ∝ preference × loss; 1 when losses are inverse to preferences. Tasks of weight 0 take no
    part."""
    weighted = (losses * preference)[preference > 0]
    share = weighted / max(float(weighted.sum()), 1e-12)
    kept = share[share > 0]
    return 1 - float((kept * np.log(kept * len(share))).sum())


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation; 0 where one of them does not vary."""
    if not (np.ptp(one) and np.ptp(other)):
        return 0.0
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks, equals sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Floats = (ends - (counts - 1) / 2)[inverse]
    return found


def plot(
    table: Table, controls: Mapping[str, Control], path: Any, best: Callable[[float], float] | None = None
) -> None:
    """Draw hypervolume against budget of several models, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, each in controls.items():
        axes.plot(np.array(each.budgets) / table.original.flops, each.hypervolume, marker="o", label=name)
    if best is not None:
        axes.axhline(best(1.0), linestyle="--", color="grey")
    axes.set(xlabel="budget, share of the original's FLOPs", ylabel="hypervolume, original = 1")
    axes.legend()
    figure.savefig(path)
