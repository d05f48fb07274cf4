"""PAGCP against peers, at equal FLOPs and equal fine-tuning.

    python benchmarks/pagcp.py digits --seeds 0 1 2 --epochs 9

Every method cuts the same trained model to the same share of its FLOPs, and is fine-tuned by the same recipe (teacher,
epochs, seed). PAGCP runs twice: channels go by L1, its default, or by reconstruction. With several rounds, its
fine-tuning is spread over them, within the same number of epochs. The peers are in `peers.py`; they decide nothing by
chance, so each cuts once, and what the seeds vary is its fine-tuning. `--drop` is not enforced: the table shows what
each method loses. Writes benchmarks/results/pagcp-WORKLOAD-PERCENT.json after each run; the same command goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import torch_pruning as tp
from peers import Cutter, peers
from rich.console import Console
from rich.table import Table
from torch import nn

import secateur as sc
from secateur.compress import pagcp
from secateur.compress.finetune import Recipe, finetune
from secateur.compress.journal import Journal
from secateur.core import machine
from secateur.core.budget import Budget, Tolerance
from secateur.core.files import write_json
from secateur.core.inputs import batch_size
from secateur.core.predict import evaluate
from secateur.core.progress import say
from secateur.core.seeds import seed_everything
from secateur.core.task import Workload, delta_mtl
from secateur.profiles.count import count

RESULTS = Path(__file__).parent / "results"
OURS = {"PAGCP": "l1", "PAGCP, reconstruction": "reconstruction"}
"""Row → by which criterion channels go; the first is the default."""


def run_pagcp(workload: Workload, args: argparse.Namespace, seed: int, saliency: str) -> tuple[nn.Module, float]:
    started = time.monotonic()
    settings = pagcp.Settings(epochs=args.epochs, rounds=args.rounds, remove_dead=True, saliency=saliency)
    result = pagcp.prune(
        workload, Budget.parse(f"flops<={100 * args.flops:g}%"), Tolerance.parse("1%"), settings, seed=seed
    )
    return result.model, time.monotonic() - started


def run_peer(
    cut: tuple[nn.Module, float], workload: Workload, args: argparse.Namespace, seed: int
) -> tuple[nn.Module, float]:
    """Fine-tune a copy of what a peer cut in so many seconds, which count."""
    started, model = time.monotonic() - cut[1], copy.deepcopy(cut[0])
    recipe = Recipe(args.epochs, lr=pagcp.Settings().lr)
    finetune(model, workload, recipe, seed=seed, label="fine-tuning", journal=Journal(None, {}, resume=False))
    return model, time.monotonic() - started


def timed(cut: Cutter, workload: Workload, share: float) -> tuple[nn.Module, float]:
    started = time.monotonic()
    return cut(workload, share), time.monotonic() - started


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
    path, cutters = RESULTS / f"pagcp-{args.workload}-{100 * args.flops:g}.json", peers(workload)
    cut = functools.cache(lambda name: timed(cutters[name], workload, args.flops))
    results = {name: list[dict[str, object]]() for name in [*OURS, *cutters]} | found_before(path, args)
    document = {
        "command": " ".join(["python", "benchmarks/pagcp.py", *sys.argv[1:]]), "machine": machine.describe(),
        "versions": {**machine.versions(), "torch-pruning": tp.__version__}, "settings": vars(args),
        "metrics_before": before, "results": results,
    }  # fmt: skip
    for number, seed in enumerate(args.seeds):
        for name in [name for name, runs in results.items() if len(runs) <= number]:
            seed_everything(seed)
            run = (
                run_pagcp(workload, args, seed, OURS[name])
                if name in OURS
                else run_peer(cut(name), workload, args, seed)
            )
            results[name].append(measure(workload, run, before))
            say(f"seed {seed}, {name}: Δ_MTL {results[name][-1]['delta_mtl']:+.2f} %")
            write_json(path, document)
    show(results)


def found_before(path: Path, args: argparse.Namespace) -> dict[str, list[dict[str, object]]]:
    """What a call with the same settings had found when it was stopped."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return document["results"] if document.get("settings") == vars(args) else {}


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
