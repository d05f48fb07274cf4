"""PAGCP against peers, at equal FLOPs and equal fine-tuning.

    python benchmarks/pagcp.py digits --seeds 0 1 2 --epochs 9

Every method cuts the same trained model to the same share of its FLOPs, and is fine-tuned by the same recipe (teacher,
epochs, seed). With several rounds, PAGCP's fine-tuning is spread over them, within the same number of epochs. Peers:
uniform L1 (the same share of every group, our own groups), and torch-pruning's global magnitude (L1), BN-scale and
Taylor criteria on a model whose training-only head was taken out, since its tracer does not see it. `--drop` is not
enforced: the table shows what each method loses. Writes benchmarks/results/pagcp-WORKLOAD-PERCENT.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from rich.console import Console
from rich.table import Table
from torch import nn

import secateur as sc
from secateur.compress import pagcp
from secateur.compress.dataflow import trace
from secateur.compress.dataflow.costs import CostModel
from secateur.compress.finetune import Recipe, finetune
from secateur.compress.journal import Journal
from secateur.compress.pagcp.saliency import find, lowest, score
from secateur.core import machine
from secateur.core.budget import Budget, Tolerance
from secateur.core.files import write_json
from secateur.core.predict import batch_size, evaluate, losses
from secateur.core.progress import say
from secateur.core.seeds import seed_everything
from secateur.core.task import Workload, delta_mtl
from secateur.profiles.count import count

Cutter = Callable[[Workload, float], nn.Module]
RESULTS = Path(__file__).parent / "results"


def uniform_l1(workload: Workload, share: float) -> nn.Module:
    """The same share of the lowest-L1 channels out of every group; the share is bisected to the FLOPs."""
    inputs, _ = next(iter(workload.calibration))
    groups = trace(workload.model, inputs, workload.task_names)
    costs, state, l1 = CostModel(groups), dict(workload.model.named_parameters()), find("l1")

    def keep(ratio: float) -> dict[str, np.ndarray]:
        return {
            group.name: np.setdiff1d(
                np.arange(group.channels),
                lowest(score(group, state, l1), min(int(group.channels * ratio), group.channels - 1)),
            )
            for group in groups.prunable
        }

    def flops(ratio: float) -> float:
        return costs.flops(costs.widths({name: len(kept) for name, kept in keep(ratio).items()}))

    ratio = bisect(lambda ratio: flops(ratio) / flops(0.0), share)
    return groups.cut(keep(ratio), remove_dead=True)


def torch_pruning(importance: Callable[[], tp.importance.Importance], gradients: bool = False) -> Cutter:
    """A cutter by torch-pruning's global ranking; the ratio is bisected to the FLOPs."""

    def cut(workload: Workload, share: float) -> nn.Module:
        def at(ratio: float) -> nn.Module:
            model = without_dead(workload)
            ignored = [module for module in model.modules() if produces_output(module, model, workload)]
            pruner = tp.pruner.BasePruner(
                model, workload.example_input, importance=importance(), pruning_ratio=ratio, max_pruning_ratio=0.95,
                global_pruning=True, ignored_layers=ignored,
            )  # fmt: skip
            if gradients:
                backward(model, workload)
            pruner.step()
            model.zero_grad()
            return model

        whole = count(without_dead(workload), workload.example_input).costs.flops
        ratio = bisect(lambda ratio: count(at(ratio), workload.example_input).costs.flops / whole, share)
        return at(ratio)

    return cut


def without_dead(workload: Workload) -> nn.Module:
    inputs, _ = next(iter(workload.calibration))
    return trace(workload.model, inputs, workload.task_names).cut({}, remove_dead=True)


def produces_output(module: nn.Module, model: nn.Module, workload: Workload) -> bool:
    """Whether a layer's channels are fixed: the last convolution or linear layer of a task's head."""
    return isinstance(module, (nn.Conv2d, nn.Linear)) and id(module) in heads(model, workload)


def heads(model: nn.Module, workload: Workload) -> set[int]:
    inputs, _ = next(iter(workload.calibration))
    groups = trace(model, inputs, workload.task_names, trial=False)
    names = {
        member.parameter.rpartition(".")[0]
        for group in groups.values()
        if not group.prunable
        for member in group.members
        if member.role == "out"
    }
    return {id(model.get_submodule(name)) for name in names}


def backward(model: nn.Module, workload: Workload) -> None:
    for batch in workload.calibration:
        values = losses(model, batch, workload.tasks)
        torch.stack([task.weight * values[task.name] for task in workload.tasks]).sum().backward()


def bisect(fraction: Callable[[float], float], share: float) -> float:
    """The smallest ratio (to 1/512) at which the fraction of FLOPs is at most `share`."""
    low, high = 0.0, 0.98
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (low, middle) if fraction(middle) <= share else (middle, high)
    return high


PEERS: dict[str, Cutter] = {
    "uniform L1": uniform_l1,
    "torch-pruning L1": torch_pruning(lambda: tp.importance.MagnitudeImportance(p=1)),
    "torch-pruning BN scale": torch_pruning(tp.importance.BNScaleImportance),
    "torch-pruning Taylor": torch_pruning(tp.importance.TaylorImportance, gradients=True),
}


def run_pagcp(workload: Workload, args: argparse.Namespace, seed: int) -> tuple[nn.Module, float]:
    started = time.monotonic()
    settings = pagcp.Settings(epochs=args.epochs, rounds=args.rounds, remove_dead=True)
    result = pagcp.prune(
        workload, Budget.parse(f"flops<={100 * args.flops:g}%"), Tolerance.parse("1%"), settings, seed=seed
    )
    return result.model, time.monotonic() - started


def run_peer(cut: Cutter, workload: Workload, args: argparse.Namespace, seed: int) -> tuple[nn.Module, float]:
    started = time.monotonic()
    model = cut(workload, args.flops)
    recipe = Recipe(args.epochs, lr=pagcp.Settings().lr)
    finetune(model, workload, recipe, seed=seed, label="fine-tuning", journal=Journal(None, {}, resume=False))
    return model, time.monotonic() - started


def measure(workload: Workload, run: tuple[nn.Module, float], before: dict[str, float]) -> dict[str, object]:
    model, seconds = run
    metrics = evaluate(model, workload.test, workload.tasks)
    costs, whole = (count(m, workload.example_input, workload.task_names).costs for m in (model, workload.model))
    return {
        "delta_mtl": delta_mtl(workload.tasks, before, metrics), "metrics": metrics, "seconds": seconds,
        "flops_share": costs.flops / whole.flops, "params_share": costs.params / whole.params,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--flops", type=float, default=0.4)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=pagcp.Settings().rounds)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    workload = sc.workload(args.workload)
    assert batch_size(workload.example_input) == 1
    before = evaluate(workload.model, workload.test, workload.tasks)
    results: dict[str, list[dict[str, object]]] = {"PAGCP": [], **{name: [] for name in PEERS}}
    document = {
        "command": " ".join(["python", "benchmarks/pagcp.py", *sys.argv[1:]]), "machine": machine.describe(),
        "versions": {**machine.versions(), "torch-pruning": tp.__version__}, "settings": vars(args),
        "metrics_before": before, "results": results,
    }  # fmt: skip
    for seed in args.seeds:
        for name in results:
            seed_everything(seed)
            run = run_peer(PEERS[name], workload, args, seed) if name in PEERS else run_pagcp(workload, args, seed)
            results[name].append(measure(workload, run, before))
            say(f"seed {seed}, {name}: Δ_MTL {results[name][-1]['delta_mtl']:+.2f} %")
        write_json(RESULTS / f"pagcp-{args.workload}-{100 * args.flops:g}.json", document)
    show(results)


def show(results: dict[str, list[dict[str, object]]]) -> None:
    table = Table("method", "Δ_MTL % (mean ± sd)", "FLOPs left %", "params left %", "seconds")
    for name, runs in results.items():
        deltas = [float(str(run["delta_mtl"])) for run in runs]
        spread = statistics.stdev(deltas) if len(deltas) > 1 else 0.0
        shares = [
            100 * statistics.mean(float(str(run[key])) for run in runs) for key in ("flops_share", "params_share")
        ]
        seconds = statistics.mean(float(str(run["seconds"])) for run in runs)
        table.add_row(
            name,
            f"{statistics.mean(deltas):+.2f} ± {spread:.2f}",
            *(f"{share:.1f}" for share in shares),
            f"{seconds:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
