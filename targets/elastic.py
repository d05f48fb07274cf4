"""Latencies of an elastic model on this CPU: of its parts, so that every configuration's is a sum.

The shared part is run alone, then with one decoder at one width; the difference is the decoder's. All calls take
turns (`profiles.timing`), each after an untimed one of the same widths: a device keeps its widths for many calls, and
the first after a switch finds other weights in the caches. What was not exported is fitted: milliseconds against FLOPs.
The stated error is that of sums against whole calls: the largest over configurations drawn at random, below which nine
in ten others lie with a confidence of 90 % (Wilks, Annals of Mathematical Statistics, 1941: 1 - 0.9^22 = 0.90).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from secateur.core import machine
from secateur.core.elastic import Choice, Figures, LatencyTable, Table
from secateur.core.elastic.table import Floats
from secateur.export.elastic_session import ElasticSession
from secateur.profiles.timing import sample

CHECKS = 22
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
    choices = parts | {("check", str(number), 0): choice for number, choice in enumerate(checks)}
    calls = {"/".join(map(str, key)): partial(_second, session, inputs, choice) for key, choice in choices.items()}
    found = sample(calls, warmup_s=0.01, limit_s=limit_s, precision=0.02, own_time=True)
    medians = {key: float(np.median(found["/".join(map(str, key))])) for key in choices}
    figures = _figures(table, medians)
    whole = [medians["check", str(number), 0] for number in range(len(checks))]
    sums = [figures.of(choice.row, choice.decoders) for choice in checks]
    errors = [abs(a - b) / b for a, b in zip(sums, whole, strict=True)]
    return LatencyTable(
        figures, "measured", str(machine.describe()["cpu"]),
        100 * max(errors), figures.of(*table.full),
    )  # fmt: skip


def _second(session: ElasticSession, inputs: Sequence[Any], choice: Choice) -> float:
    """Milliseconds of the second of two calls."""
    session.run(*inputs, choice=choice)
    began = time.perf_counter()
    session.run(*inputs, choice=choice)
    return 1e3 * (time.perf_counter() - began)


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
