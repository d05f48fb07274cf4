"""Sparse task experts on `scenes-moe`: what one task needs, exactly and to a budget, against pruning that does not know
the task.

    python benchmarks/experts.py [--seeds 3] [--task depth] [--budget "params<=42%"] [--epochs 1] [--out FILE]

`exact` for every task: FLOPs and parameters against the whole model as it runs and against its dense equivalent (every
token through every expert), Δ on the kept task, miss rate. Then, for each seed, three ways to the same number of
parameters: by contribution to the task under the oracle (ours), by usage over all tasks, at random. Last, for each seed
and for the other tasks once, `experts,pagcp`: the exact extraction pruned to COMPOSED with as many epochs as it says.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import secateur as sc
from secateur.compress.experts import Settings
from secateur.compress.experts.layers import find
from secateur.core import machine
from secateur.core.budget import Tolerance
from secateur.core.files import write_json
from secateur.workloads import workload

OUT = Path(__file__).parent / "results" / "experts.json"
COMPOSED, COMPOSED_EPOCHS = "flops<=21%", 4
"""Of the whole model as it runs: 11.7 % of its dense equivalent."""
LOOSE = Tolerance.parse("90%")
"""Nothing is refused at the end: the table shows what was lost."""


def main() -> None:
    options = _options()
    document: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    document.update(command=_command(options), machine=machine.describe(), versions=machine.versions())
    rows = document.setdefault("rows", [])
    given = workload("scenes-moe")
    for task in given.task_names:
        _row(rows, options.out, document, {"way": "exact", "task": task, "seed": 0}, "", Settings(), given)
    for seed in range(options.seeds):
        for way, settings in _ways(options.epochs).items():
            key = {"way": way, "task": options.task, "seed": seed}
            _row(rows, options.out, document, key, options.budget, settings, given)
    others = [(task, 0) for task in given.task_names if task != options.task]
    for task, seed in [*((options.task, seed) for seed in range(options.seeds)), *others]:
        key = {"way": "experts,pagcp", "task": task, "seed": seed}
        _row(rows, options.out, document, key, COMPOSED, Settings(epochs=COMPOSED_EPOCHS), given)
    for row in rows:
        print(
            f"{row['way']:13} {row['task']:13} {row['seed']}  params {row['params_pct']:5.1f} %  "
            f"FLOPs {row['flops_pct']:5.1f} % of the whole, {row['flops_of_dense_pct']:5.2f} % of dense  "
            f"Δ {row['delta_mtl']:+6.2f} %  misses {100 * row['miss_rate']:.2f} %"
        )


def _ways(epochs: int) -> dict[str, Settings]:
    return {
        "contribution": Settings(epochs=epochs, rounds=1),
        "usage": Settings(epochs=epochs, rounds=1, order="usage", oracle=False),
        "random": Settings(epochs=epochs, rounds=1, order="random", oracle=False),
    }


def _row(
    rows: list[dict[str, Any]], out: Path, document: dict[str, Any], key: dict[str, Any], budget: str,
    settings: Settings, given: Any,
) -> None:  # fmt: skip
    """Add one run's figures, unless they are there."""
    if any(all(row[name] == value for name, value in key.items()) for row in rows):
        return
    found = sc.extract(
        given, [key["task"]], budget or None, LOOSE, settings=settings, seed=key["seed"],
        prune=key["way"] == "experts,pagcp",
    )  # fmt: skip
    experts, costs, before = found.history["experts"], found.costs, found.costs_before
    rates = experts["points"][-1]["miss_rate"][key["task"]]
    rows.append({
        **key, "budget": budget, "params": costs.params, "flops": costs.flops,
        "params_pct": 100 * costs.params / before.params, "flops_pct": 100 * costs.flops / before.flops,
        "flops_of_dense_pct": 100 * costs.flops / experts["dense_equivalent"]["flops"],
        "metric_before": found.metrics_before[key["task"]], "metric": found.metrics["after"][key["task"]],
        "delta_mtl": found.delta_mtl, "identical_on_calibration": bool(experts["exact"]["identical"]),
        "experts_kept": {layer.path: layer.experts for layer in find(found.model)},
        "miss_rate": sum(rates.values()) / len(rates), "seconds": round(found.seconds, 1),
        "cpu": machine.describe()["cpu"],
    })  # fmt: skip
    write_json(out, document)


def _command(options: argparse.Namespace) -> str:
    return (
        f"python benchmarks/experts.py --seeds {options.seeds} --task {options.task} "
        f'--budget "{options.budget}" --epochs {options.epochs}'
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", default="depth")
    parser.add_argument("--budget", default="params<=42%")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
