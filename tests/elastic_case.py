"""Tables of elastic models, made by hand or at random, for tests."""

from __future__ import annotations

import itertools

import numpy as np

from secateur.core.elastic import Figures, LatencyTable, Original, Stage, Table

WIDTHS = (0.25, 0.5, 1.0)


def random_table(seed: int = 0, tasks: tuple[str, ...] = ("depth", "edges"), stages: int = 2) -> Table:
    """Every figure at random: nothing is monotone, nothing is smooth."""
    draw = np.random.default_rng(seed)
    shared = tuple(Stage(f"encoder{i + 1}", tasks, WIDTHS, {f"enc.{i}": (2, 4, 8)}) for i in range(stages))
    own = tuple(Stage(task, (task,), WIDTHS, {f"{task}.0": (2, 4, 8)}) for task in tasks)
    rows = np.array(list(itertools.product(range(3), repeat=stages)))
    decoders = {task: np.arange(3)[:, None] for task in tasks}

    def figures(scale: float) -> Figures:
        return Figures(
            scale * draw.uniform(1, 2, len(rows)),
            {task: scale * draw.uniform(0.2, 1, (len(rows), 3)) for task in tasks},
        )

    metrics = {task: draw.uniform(0.5, 1, (len(rows), 3)) for task in tasks}
    return Table(
        stages=(*shared, *own),
        better={task: "lower" if task == "depth" else "higher" for task in tasks},
        rows=rows,
        decoders=decoders,
        metrics=metrics,
        fitted=metrics,
        costs={
            kind: figures(scale)
            for kind, scale in (("flops", 1e6), ("params", 1e3), ("size", 4e3), ("activations", 1e4))
        },
        original=Original(8e6, 8e3, 3e4, 5e4, dict.fromkeys(tasks, 0.8)),
        latency={"cpu": LatencyTable(figures(1.0), "measured", "a test", 5.0, 6.0)},
        energy={"cpu": figures(2.0)},
        exported=(0, len(rows) - 1),
    )


def combinations(table: Table, tasks: tuple[str, ...] | None = None):
    """(row, {task: width}) of every configuration."""
    running = table.tasks if tasks is None else tasks
    for row in range(len(table.rows)):
        for chosen in itertools.product(*(range(len(table.decoders[task])) for task in running)):
            yield row, dict(zip(running, chosen, strict=True))
