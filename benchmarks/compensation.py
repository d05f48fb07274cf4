"""What the choice of channels and a compensation of the cut bring before any fine-tuning, and what is left of it after.

    python benchmarks/compensation.py digits multifashion --shares 0.25 0.5 --epochs 1 3

Of every prunable group the same share of channels goes, chosen by each criterion; the cut model is then taken as it is
(`cut`), with its batch norms estimated anew (`statistics`), or with the layers that read fewer channels solved as well
(`solved`). Δ_MTL on the test data in percent, the original is 0; no label is used after the cut. Then, for two of the
criteria and the largest share, the first and the last of them are fine-tuned by the default recipe for so many epochs,
with each of the seeds. Writes benchmarks/results/compensation.json.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import secateur as sc
from secateur.compress.channel_map import ChannelMap
from secateur.compress.dataflow import ChannelGroups, trace
from secateur.compress.finetune import finetune
from secateur.compress.journal import Journal
from secateur.compress.pagcp import Settings
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
TUNED = ("l1", "reconstruction")
"""Criteria whose cuts are fine-tuned."""
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


def fine_tuned(name: str, share: float, epochs: list[int], seeds: list[int]) -> list[dict[str, Any]]:
    """Δ_MTL after so many epochs, from the cut as it is and from the solved one, a list of one for each seed."""
    workload = sc.workload(name)
    batches = calibration_batches(workload.calibration, 256)
    groups = trace(workload.model, workload.example_input, workload.task_names)
    before = evaluate(workload.model, workload.test, workload.tasks)
    found = []
    for criterion in TUNED:
        cut = choice(groups, criterion, share, batches, workload)
        for number in epochs:
            row: dict[str, Any] = {"workload": name, "share": share, "criterion": criterion, "epochs": number}
            for how in ("cut", "solved"):
                row[how] = [
                    tuned(mended(workload, cut, how, batches)[0], workload, number, seed, before) for seed in seeds
                ]
            print(row, flush=True)
            found.append(row)
    return found


def tuned(model: nn.Module, workload: Workload, epochs: int, seed: int, before: dict[str, float]) -> float:
    """Δ_MTL in percent of a model once fine-tuned; it is changed."""
    recipe = Settings().recipe(epochs)
    finetune(model, workload, recipe, seed=seed, label="fine-tuning", journal=Journal(None, {}, resume=False))
    return delta_mtl(workload.tasks, before, evaluate(model, workload.test, workload.tasks))


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
    parser.add_argument("--epochs", nargs="*", type=int, default=[1, 3], help="of fine-tuning")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = [row for name in args.workloads for row in rows(name, args.shares)]
    show(found)
    document = {
        "command": " ".join(["python", "benchmarks/compensation.py", *sys.argv[1:]]),
        "unit": "Δ_MTL on the test data in percent, before fine-tuning; 256 calibration samples",
        "machine": machine.describe(),
        "versions": machine.versions(),
        "results": found,
        "fine_tuned": [
            row for name in args.workloads for row in fine_tuned(name, max(args.shares), args.epochs, args.seeds)
        ],
    }
    write_json(ROOT / "results" / "compensation.json", document)


if __name__ == "__main__":
    main()
