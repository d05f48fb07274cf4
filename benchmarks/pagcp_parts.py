"""What each part of PAGCP's decisions brings: the run as it is by default, and with one part changed at a time.

    python benchmarks/pagcp_parts.py scenes --seeds 0 --epochs 4

Same workload, share of FLOPs, epochs and seeds as the row "as it is". Also writes down the exchange rates of loss and
metric, in units of each task's own loss, and the widths that each variant comes to. Writes
benchmarks/results/pagcp_parts-WORKLOAD-PERCENT.json.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import secateur as sc
from secateur.compress import pagcp
from secateur.compress.compressed import Compressed
from secateur.compress.dataflow import trace
from secateur.compress.pagcp.calibration import calibration_batches
from secateur.compress.pagcp.exchange import loss_per_drop
from secateur.compress.pagcp.saliency import find
from secateur.compress.pagcp.sampling import means
from secateur.core import machine
from secateur.core.budget import Budget, Tolerance
from secateur.core.files import write_json
from secateur.core.predict import losses
from secateur.core.progress import say
from secateur.core.seeds import seed_everything
from secateur.core.task import Workload

RESULTS = Path(__file__).parent / "results"
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "τ of the losses by then, compounding": {"compound": True},
    "equal tolerances": {"price": 0.0},
    "no floor": {"floor": 0.0},
    "floor of 0.75": {"floor": 0.75},
    "two rounds": {"rounds": 2},
}


def exchange_rates(workload: Workload, settings: pagcp.Settings) -> dict[str, float]:
    """How many times itself each task's loss rises while its metric drops by all of itself."""
    batches = calibration_batches(workload.calibration, settings.calibration_samples)
    groups = trace(workload.model, batches[0][0], workload.task_names)
    with torch.no_grad():
        values = [losses(workload.model, batch, workload.tasks) for batch in batches]
    whole = means([{name: float(value) for name, value in each.items()} for each in values])
    rates = loss_per_drop(groups, batches, workload.tasks, find(settings.saliency))
    return {name: rate / whole[name] for name, rate in rates.items()}


def row(result: Compressed) -> dict[str, Any]:
    last = {line["group"]: line["kept"] for line in result.history["decisions"]}
    return {
        "delta_mtl": result.delta_mtl,
        "metrics": dict(result.point.metrics),
        "flops_share": result.costs.flops / result.costs_before.flops,
        "params_share": result.costs.params / result.costs_before.params,
        "seconds": result.seconds,
        "widths": {
            group["name"]: [last.get(group["name"], group["channels"]), group["channels"]]
            for group in result.history["groups"]
            if group["prunable"]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--flops", type=float, default=0.4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    workload, settings = sc.workload(args.workload), pagcp.Settings(epochs=args.epochs, remove_dead=True)
    budget, results = Budget.parse(f"flops<={100 * args.flops:g}%"), dict[str, list[dict[str, Any]]]()
    document = {
        "command": " ".join(["python", "benchmarks/pagcp_parts.py", *sys.argv[1:]]), "machine": machine.describe(),
        "versions": machine.versions(), "settings": vars(args), "variants": VARIANTS,
        "exchange_rates": exchange_rates(workload, settings), "results": results,
    }  # fmt: skip
    for name, changed in VARIANTS.items():
        for seed in args.seeds:
            seed_everything(seed)
            variant = replace(settings, **changed)
            result = pagcp.prune(workload, budget, Tolerance.parse("1%"), variant, seed=seed)
            results.setdefault(name, []).append(row(result))
            say(f"{name}, seed {seed}: Δ_MTL {result.delta_mtl:+.2f} %")
        write_json(RESULTS / f"pagcp_parts-{args.workload}-{100 * args.flops:g}.json", document)
    table = Table("variant", "Δ_MTL %", "FLOPs left %")
    for name, runs in results.items():
        deltas, shares = (", ".join(f"{run[key]:+.2f}" for run in runs) for key in ("delta_mtl", "flops_share"))
        table.add_row(name, deltas, shares)
    Console().print(table)


if __name__ == "__main__":
    main()
