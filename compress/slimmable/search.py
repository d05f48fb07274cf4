"""Which encoder configurations the table holds, where there are too many to try all of them.

A third is drawn: uniform widths and random ones. Then, in rounds: a ridge regression on widths (linear, squares,
products) is fitted to what was evaluated, an evolution over it proposes the best for each of several budgets and
preferences, and these are really evaluated. So every row of the table was measured; the predictor only says where to
look, and its leave-one-out error is reported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.core.elastic.choose import AUGMENTATION
from secateur.core.elastic.table import Floats

Row = tuple[int, ...]
Evaluate = Callable[[Row], Floats]
"""`evaluate(row)` gives every task's quality, larger is better [T]."""
RIDGE = 1e-3
BATCH = 8
POPULATION = 128
GENERATIONS = 12
MUTATION = 0.25


def choose_rows(
    sizes: Sequence[int],
    limit: int,
    evaluate: Evaluate,
    flops: Callable[[Row], float],
    draw: np.random.Generator,
    uniform: Sequence[Row] = (),
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of width indices, at most `limit` of them beside the uniform ones, and how they were found.

    Args:
        sizes: number of widths of each stage.
        uniform: rows that are there in any case.
    """
    if math.prod(sizes) <= limit:
        rows = list(itertools.product(*(range(size) for size in sizes)))
        return rows, {"rows": "all", "evaluated": len(rows)}
    rows = list(dict.fromkeys(uniform))
    while len(rows) < max(limit // 3, min(limit, len(sizes) + 2)):
        row = tuple(int(draw.integers(size)) for size in sizes)
        if row not in rows:
            rows.append(row)
    found = [evaluate(row) for row in rows]
    while len(rows) < limit:
        predictor = Predictor.fit(_scaled(rows, sizes), np.array(found))
        fresh = _proposals(predictor, rows, np.array(found), sizes, flops, draw)[: min(BATCH, limit - len(rows))]
        rows += fresh
        found += [evaluate(row) for row in fresh]
    predictor = Predictor.fit(_scaled(rows, sizes), np.array(found))
    notes = {
        "rows": "evolved", "evaluated": len(rows), "of": math.prod(sizes),
        "predictor_error": [float(f"{error:.4g}") for error in predictor.error],
        "predictor_correlation": [float(f"{value:.4g}") for value in predictor.correlation],
    }  # fmt: skip
    return rows, notes


@dataclass(frozen=True)
class Predictor:
    """Quality of each task from scaled widths. `error`: leave-one-out root mean square, `correlation`: of left-out
    predictions with what was evaluated; both one per task."""

    weights: Floats
    error: Floats
    correlation: Floats

    @classmethod
    def fit(cls, widths: Floats, quality: Floats) -> Predictor:
        """Ridge regression; residuals of left-out rows come from the hat matrix (PRESS)."""
        x = _features(widths)
        gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
        weights = np.asarray(np.linalg.solve(gram, x.T @ quality), dtype=np.float64)
        leverage = np.einsum("ij,ji->i", x, np.linalg.solve(gram, x.T))
        residual = (quality - x @ weights) / np.maximum(1 - leverage, 1e-3)[:, None]
        left_out = quality - residual
        spread = [bool(np.ptp(left_out[:, t]) and np.ptp(quality[:, t])) for t in range(quality.shape[1])]
        correlation = [
            float(np.corrcoef(left_out[:, t], quality[:, t])[0, 1]) if spread[t] else 1.0
            for t in range(quality.shape[1])
        ]
        error: Floats = np.sqrt(np.square(residual).mean(0))
        return cls(weights, error, np.array(correlation))

    def predict(self, widths: Floats) -> Floats:
        """[N, S] → [N, T]."""
        found: Floats = _features(widths) @ self.weights
        return found


def _features(widths: Floats) -> Floats:
    pairs = [widths[:, i] * widths[:, j] for i in range(widths.shape[1]) for j in range(i, widths.shape[1])]
    return np.column_stack([np.ones(len(widths)), widths, *pairs])


def _scaled(rows: Sequence[Row], sizes: Sequence[int]) -> Floats:
    top = np.maximum(np.array(sizes, dtype=float) - 1, 1)
    scaled: Floats = np.array(rows, dtype=float).reshape(len(rows), -1) / top
    return scaled


def _proposals(
    predictor: Predictor,
    rows: list[Row],
    quality: Floats,
    sizes: Sequence[int],
    flops: Callable[[Row], float],
    draw: np.random.Generator,
) -> list[Row]:
    """Unseen rows that are predicted to be best for some budget and preference, the most often best first."""
    population = list(rows)
    low, high = quality.min(0), quality.max(0)
    tasks = quality.shape[1]
    preferences = np.vstack([np.full(tasks, 1 / tasks), *(np.eye(tasks) * 0.75 + 0.25 / tasks)])
    price: dict[Row, float] = {}
    least, most = flops((0,) * len(sizes)), flops(tuple(size - 1 for size in sizes))
    budgets = np.exp(draw.uniform(math.log(max(least, 1.0)), math.log(max(most, 1.0)), BATCH))  # others each round
    best: list[Row] = []
    for _ in range(GENERATIONS):
        children = {_child(population, sizes, draw) for _ in range(POPULATION)}
        pool = list(dict.fromkeys([*best, *children, *rows]))
        for row in pool:
            price.setdefault(row, flops(row))
        cost = np.array([price[row] for row in pool])
        q = (predictor.predict(_scaled(pool, sizes)) - low) / np.maximum(high - low, 1e-12)
        winners = []
        for budget in budgets:
            for preference in preferences:
                regret = (preference * (1 - q)).max(1) + AUGMENTATION * (preference * (1 - q)).sum(1)
                order = np.argsort(np.where(cost <= budget * (1 + 1e-9), regret, np.inf))
                winners += [pool[i] for i in order[:1] if cost[i] <= budget * (1 + 1e-9)]
        best = list(dict.fromkeys(winners))
        population = best or population
    counted = sorted(set(best) - set(rows), key=lambda row: (-winners.count(row), row))
    others = [row for row in sorted(price) if row not in rows and row not in counted]
    return counted or [others[int(i)] for i in draw.permutation(len(others))[:BATCH]]


def _child(population: Sequence[Row], sizes: Sequence[int], draw: np.random.Generator) -> Row:
    """A crossing of two, mutated."""
    one, other = (population[int(draw.integers(len(population)))] for _ in range(2))
    mixed = [a if draw.random() < 0.5 else b for a, b in zip(one, other, strict=True)]
    return tuple(
        int(draw.integers(size)) if draw.random() < MUTATION else gene for gene, size in zip(mixed, sizes, strict=True)
    )
