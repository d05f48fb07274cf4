"""What the choice of channels and a compensation of the cut bring before any fine-tuning.

    python benchmarks/compensation.py digits multifashion --shares 0.25 0.5

Of every prunable group the same share of channels goes, chosen by each criterion; the cut model is then taken as it is
(`cut`), with its batch norms estimated anew (`statistics`), or with the layers that read fewer channels solved as well
(`solved`). Δ_MTL on the test data in percent, the original is 0; no label is used after the cut. Writes
benchmarks/results/compensation.json.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

import secateur as sc
from secateur.compress.channel_map import ChannelMap
from secateur.compress.dataflow import ChannelGroups, trace
from secateur.compress.pagcp.calibration import calibration_batches
from secateur.compress.pagcp.compensation import compensate, estimate_statistics
from secateur.compress.pagcp.saliency import find, lowest, score
from secateur.compress.pagcp.sensitivity import evidence
from secateur.core import machine
from secateur.core.files import write_json
from secateur.core.predict import evaluate
from secateur.core.task import Batch, Workload, delta_mtl
from secateur.profiles.count import count

ROOT = Path(__file__).parent
CRITERIA = ("random", "l1", "l2", "bn", "taylor", "fisher", "reconstruction")
STEP = 4
"""Kept channels are a multiple of this, where a group has as many."""


def choice(groups: ChannelGroups, name: str, share: float, batches: list[Batch], workload: Workload) -> ChannelMap:
    """The same share of every group, the lowest scores of a criterion first."""
    criterion, state, keep = find(name), dict(groups.model.state_dict()), {}
    found = evidence(criterion, groups, batches, workload.tasks)
    for group in groups.prunable:
        left = max(STEP, round(group.channels * (1 - share) / STEP) * STEP)
        scores = score(group, state, criterion, found)
        keep[group.name] = np.setdiff1d(np.arange(group.channels), lowest(scores, max(0, group.channels - left)))
    return groups.channel_map(keep)


def mended(workload: Workload, cut: ChannelMap, how: str, batches: list[Batch]) -> tuple[nn.Module, float]:
    """(the cut model, seconds of mending it)."""
    model = copy.deepcopy(workload.model)
    cut.apply(model)
    started = time.monotonic()
    if how == "statistics":
        estimate_statistics(model, batches, workload.tasks)
    elif how == "solved":
        compensate(model, workload.model, cut, batches, workload.tasks)
    return model, time.monotonic() - started


def rows(name: str, shares: list[float]) -> list[dict[str, Any]]:
    workload = sc.workload(name)
    batches = calibration_batches(workload.calibration, 256)
    groups = trace(workload.model, workload.example_input, workload.task_names)
    before = evaluate(workload.model, workload.test, workload.tasks)
    whole = count(workload.model, workload.example_input, workload.task_names).costs
    found = []
    for share in shares:
        for criterion in CRITERIA:
            cut = choice(groups, criterion, share, batches, workload)
            row: dict[str, Any] = {"workload": name, "share": share, "criterion": criterion}
            for how in ("cut", "statistics", "solved"):
                model, seconds = mended(workload, cut, how, batches)
                after = evaluate(model, workload.test, workload.tasks)
                row[how] = {"delta_mtl": delta_mtl(workload.tasks, before, after), "metrics": after, "seconds": seconds}
            costs = count(model, workload.example_input, workload.task_names).costs
            found.append(row | {"flops_left": costs.flops / whole.flops, "params_left": costs.params / whole.params})
    return found


def show(found: list[dict[str, Any]]) -> None:
    table = Table("workload", "channels gone", "FLOPs left", "criterion", "cut", "statistics", "solved")
    for row in found:
        figures = [f"{row[how]['delta_mtl']:+.2f} %" for how in ("cut", "statistics", "solved")]
        table.add_row(
            row["workload"], f"{row['share']:.0%}", f"{row['flops_left']:.0%}", row["criterion"], *figures
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=["digits", "multifashion"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    args = parser.parse_args()
    found = [row for name in args.workloads for row in rows(name, args.shares)]
    show(found)
    document = {
        "command": f"python benchmarks/compensation.py {' '.join(args.workloads)} --shares "
        + " ".join(map(str, args.shares)),
        "unit": "Δ_MTL on the test data in percent, before fine-tuning; 256 calibration samples",
        "machine": machine.describe(),
        "versions": machine.versions(),
        "results": found,
    }
    write_json(ROOT / "results" / "compensation.json", document)


if __name__ == "__main__":
    main()
