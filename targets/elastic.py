"""Latencies of an elastic model on this CPU: of its parts, so that every configuration's is a sum.

The shared part is run alone, then with one decoder at one width; the difference is the decoder's. All calls take
turns (`profiles.timing`). What was not exported is fitted: milliseconds against FLOPs. The stated error is that of
sums against whole calls of configurations drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from secateur.core import machine
from secateur.core.elastic import Choice, Figures, LatencyTable, Table
from secateur.core.elastic.table import Floats
from secateur.export.elastic_session import ElasticSession
from secateur.profiles.timing import measure

CHECKS = 20
"""Whole configurations that sums are compared with."""
SECONDS = 20.0


def measured_latencies(
    session: ElasticSession, inputs: Sequence[Any], target: str, *, limit_s: float = SECONDS, seed: int = 0
) -> LatencyTable:
    """The latency table of a session's configurations.

    Args:
        inputs: one batch in the model's order.
        limit_s: seconds for all rounds of all calls together.
    """
    table = session.controller.table
    parts = _parts(session, table)
    checks = _random(session, table, np.random.default_rng(seed))
    session.prepare([*parts.values(), *checks])
    calls = {key: partial(session.run, *inputs, choice=choice) for key, choice in parts.items()}
    calls |= {("check", str(number), 0): partial(session.run, *inputs, choice=c) for number, c in enumerate(checks)}
    named = {"/".join(map(str, key)): call for key, call in calls.items()}
    found = measure(named, warmup_s=0.01, limit_s=limit_s, precision=0.02)
    medians = {key: found["/".join(map(str, key))].median for key in calls}
    figures = _figures(table, medians)
    whole = [medians["check", str(number), 0] for number in range(len(checks))]
    sums = [figures.of(choice.row, choice.decoders) for choice in checks]
    errors = [abs(a - b) / b for a, b in zip(sums, whole, strict=True)]
    return LatencyTable(
        figures, "measured", str(machine.describe()["cpu"]),
        float(np.percentile(errors, 90) * 100) if errors else None, figures.of(*table.full),
    )  # fmt: skip


_Key = tuple[str, str, int]


def _parts(session: ElasticSession, table: Table) -> dict[_Key, Choice]:
    """(task or "", row, width) → the shared part alone, or with that decoder."""
    choose, parts = session.controller.choice, dict[_Key, Choice]()
    several = len(table.tasks) > 1
    for row in table.exported:
        parts["", str(row), 0] = choose(row, {} if several else dict.fromkeys(table.tasks, 0))
        for task, rows in table.decoders.items() if several else ():
            parts.update({(task, str(row), d): choose(row, {task: d}) for d in range(len(rows))})
    return parts


def _random(session: ElasticSession, table: Table, draw: np.random.Generator) -> list[Choice]:
    return [
        session.controller.choice(
            int(draw.choice(table.exported)), {t: int(draw.integers(len(rows))) for t, rows in table.decoders.items()}
        )
        for _ in range(CHECKS)
    ]


def _figures(table: Table, medians: Mapping[_Key, float]) -> Figures:
    """Measured where it was exported; elsewhere milliseconds = a + b·FLOPs, fitted to what was measured."""
    exported, flops = list(table.exported), table.costs["flops"]
    shared = np.array([medians["", str(row), 0] for row in exported])
    own = {}
    for task, rows in table.decoders.items():
        found = np.zeros((len(exported), len(rows)))
        for k, row in enumerate(exported):
            for d in range(len(rows)):
                found[k, d] = max(0.0, medians.get((task, str(row), d), shared[k]) - shared[k])
        full = _line(flops.decoders[task][exported], found, flops.decoders[task])
        full[exported] = found
        own[task] = full
    every = _line(flops.shared[exported], shared, flops.shared)
    every[exported] = shared
    return Figures(every, own)


def _line(flops: Floats, ms: Floats, at: Floats) -> Floats:
    """Least squares of ms against FLOPs, neither offset nor slope below zero."""
    x, y = flops.ravel(), ms.ravel()
    centred = x - x.mean()
    slope = float(centred @ y) / max(float(centred @ centred), 1e-12)
    offset = float(y.mean()) - slope * float(x.mean())
    if slope < 0:
        slope, offset = 0.0, float(y.mean())
    elif offset < 0:
        slope, offset = float(x @ y) / max(float(x @ x), 1e-12), 0.0
    line: Floats = offset + slope * at
    return line
