"""One elastic model against models trained separately at each width, and against uniform widths only.

    python benchmarks/slimmable.py digits --epochs 6 [--seeds 0 1 2] [--output benchmarks/results/slimmable-digits.json]

For every seed: the elastic model is trained, its configurations tabulated; at each uniform width, the model cut to
that width (channels sorted alike) is fine-tuned by itself for as many epochs, with the original as teacher. Judged on
test data: the elastic model's uniform widths against the separate models (hypervolume of both sets, relative to the
original, reference twice as bad), and, on calibration data, what the search finds within the FLOPs of each uniform
width against that width itself.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from secateur.compress.finetune import Recipe, finetune
from secateur.compress.journal import Journal
from secateur.compress.slimmable import Elastic, Settings, slim
from secateur.compress.slimmable.tabulate import Judge
from secateur.core import machine
from secateur.core.elastic import Chooser, Wish
from secateur.core.files import write_json
from secateur.core.predict import evaluate
from secateur.core.progress import say
from secateur.core.task import Workload, delta_mtl
from secateur.profiles.control import REFERENCE, control, hypervolume
from secateur.workloads import workload as workload_by_name


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    workload, settings = workload_by_name(options.workload), Settings(epochs=options.epochs)
    runs = [one_seed(workload, settings, seed) for seed in options.seeds]
    document = {
        "command": f"python benchmarks/slimmable.py {options.workload} --epochs {options.epochs} "
        f"--seeds {' '.join(map(str, options.seeds))}",
        "workload": options.workload,
        "settings": settings.as_json(),
        "runs": runs,
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
    write_json(options.output or Path(f"benchmarks/results/slimmable-{options.workload}.json"), document)
    show(runs)
    return 0


def one_seed(workload: Workload, settings: Settings, seed: int) -> dict[str, Any]:
    """Everything that is compared, for one seed."""
    started = time.monotonic()
    result = slim(workload, settings, seed=seed)
    seconds = time.monotonic() - started
    judge = Judge(result.elastic, workload, settings, seed)
    before, widths = dict(result.metrics_before), []
    for at in result.elastic.space.uniform():
        statistics = judge.statistics(at)
        shared = evaluate(result.elastic.static(at, statistics), workload.test, workload.tasks)
        widths.append(
            {
                "configuration": list(at),
                "flops": judge_flops(result, at),
                "elastic": shared,
                "separate": separate(workload, result, at, settings, seed),
            }
        )
        for name in ("elastic", "separate"):
            widths[-1][f"{name}_delta_mtl"] = delta_mtl(workload.tasks, before, widths[-1][name])
    least, most = widths[0]["flops"], widths[-1]["flops"]
    return {
        "seed": seed,
        "seconds": round(seconds),
        "original": before,
        "widths": widths,
        "hypervolume": {n: volume(workload, before, [each[n] for each in widths]) for n in ("elastic", "separate")},
        "flops_range": most / least,
        "searched": searched(result, [each["flops"] for each in widths]),
        "control": control(result.table, list(np.geomspace(1.2 * least, most, 6))).as_json(),
        "notes": dict(result.table.notes),
    }


def separate(
    workload: Workload, result: Elastic, at: tuple[int, ...], settings: Settings, seed: int
) -> dict[str, float]:
    """Test metrics of the original cut to a configuration and fine-tuned by itself."""
    from secateur.compress.slimmable.sort import sort_channels

    space, model = result.elastic.space, copy.deepcopy(workload.model)
    names = list(space.channels(space.largest))
    sort_channels(model, space.groups, names, workload.example_input, workload.task_names, settings.order)
    space.channel_map(at).apply(model)
    recipe = Recipe(settings.epochs, settings.lr, settings.weight_decay, settings.output_distillation, settings.clip)
    finetune(model, workload, recipe, seed=seed, label="separate", journal=Journal(None, {}, resume=False))
    return evaluate(model, workload.test, workload.tasks)


def judge_flops(result: Elastic, at: tuple[int, ...]) -> float:
    from secateur.compress.slimmable.costs import Costing

    return Costing(result.elastic.space).flops(at)


def volume(workload: Workload, before: dict[str, float], found: list[dict[str, float]]) -> float:
    """Hypervolume of a set of models, the original's being 1."""
    points = [
        [
            m[t.name] / before[t.name] if t.better == "lower" else before[t.name] / max(m[t.name], 1e-12)
            for t in workload.tasks
        ]
        for m in found
    ]
    return hypervolume(np.array(points), REFERENCE) / (REFERENCE - 1) ** len(workload.tasks)


def searched(result: Elastic, budgets: list[float]) -> list[dict[str, float]]:
    """At the FLOPs of each uniform width: mean scaled metric of that width, and of what the search finds."""
    table, chooser = result.table, Chooser(result.table)
    rows = table.rows.tolist()
    found = []
    for at, budget in zip(result.elastic.space.uniform(), budgets, strict=True):
        row = rows.index([at[place] for place in table.shared])
        chosen = {t: table.decoders[t].tolist().index([at[p] for p in table.decoder(t)]) for t in table.tasks}
        best = chooser.pick(Wish({"flops": budget}, objective="sum"))
        found.append(
            {
                "budget": budget,
                "uniform": quality(table, row, chosen),
                "searched": quality(table, best.row, dict(best.decoders)),
            }
        )
    return found


def quality(table: Any, row: int, chosen: dict[str, int]) -> float:
    """Mean over tasks of the fitted metric, scaled to 0..1 over the table."""
    scaled = []
    for task, d in chosen.items():
        values = table.fitted[task]
        q = (values[row, d] - values.min()) / max(float(np.ptp(values)), 1e-12)
        scaled.append(float(q if table.better[task] == "higher" else 1 - q))
    return float(np.mean(scaled))


def show(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        volumes = run["hypervolume"]
        say(
            f"seed {run['seed']}: hypervolume {volumes['elastic']:.4f} elastic, {volumes['separate']:.4f} separate "
            f"({100 * volumes['elastic'] / max(volumes['separate'], 1e-12):.1f} %), "
            f"{run['flops_range']:.1f}x range of FLOPs"
        )
        for each in run["widths"]:
            say(
                f"  {each['flops'] / 1e6:8.2f} MFLOPs  Δ_MTL {each['elastic_delta_mtl']:+.2f} % elastic, "
                f"{each['separate_delta_mtl']:+.2f} % separate"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", help="a built-in name, or package.module:function")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
