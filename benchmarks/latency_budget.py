"""Latency-driven against FLOPs-driven PAGCP at equal measured latency, on this CPU (ONNX Runtime, one thread).

    secateur calibrate cpu
    python benchmarks/latency_budget.py digits --seeds 0 1 2
    python benchmarks/latency_budget.py scenes --seeds 0

The one prunes to `latency<=SHARE`: groups ordered by milliseconds saved for what a trial cut costs, channel counts at
which the device gets faster, the limit corrected by a measurement. The other prunes to FLOPs, and its budget is moved
until its measured latency is the first one's (± 2 %, at most `--tries` runs; the nearest that is no faster than 2 %
below counts). Same fine-tuning. Latencies are measured in turns with the original, Δ_MTL on the test split. Writes its
part of benchmarks/results/latency_budget.json after each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import secateur as sc
from secateur.compress import pagcp
from secateur.compress.compressed import Compressed
from secateur.core import machine
from secateur.core.budget import Budget, Tolerance
from secateur.core.files import write_json
from secateur.core.task import Workload
from secateur.export.onnx import to_onnx
from secateur.targets.cpu import measure_onnx
from secateur.verbs.hardware import hardware_for, loop_for

RESULT = Path(__file__).parent / "results" / "latency_budget.json"
NEAR = 0.02
"""Latencies that are so near count as equal; medians are measured to about that."""


@dataclass(frozen=True)
class Run:
    """One compressed model beside the original: `ms` and `speedup` measured, `predicted` the share of the original's
    latency that the calibrated model predicts."""

    result: Compressed
    budget: str
    seconds: float
    ms: float
    original_ms: float
    predicted: float | None

    @property
    def share(self) -> float:
        return self.ms / self.original_ms

    def as_json(self) -> dict[str, Any]:
        point, before = self.result.point, self.result.costs_before
        corrections = self.result.on_target.corrections if self.result.on_target else {}
        return {
            "budget": self.budget, "delta_mtl": point.delta_mtl, "metrics": dict(point.metrics),
            "latency_ms": self.ms, "original_ms": self.original_ms, "latency_share": self.share,
            "predicted_share": self.predicted, "corrections": corrections,
            "flops_share": point.costs.flops / before.flops, "params_share": point.costs.params / before.params,
            "oracle_forward_flops": self.result.oracle["forward_flops"], "seconds": self.seconds,
            "channels": widths(self.result),
        }  # fmt: skip


def widths(result: Compressed) -> dict[str, list[int]]:
    """Group → (channels before, after)."""
    groups = {group["name"]: group["channels"] for group in result.history["groups"] if group["prunable"]}
    kept = groups | {each["group"]: each["kept"] for each in result.history["decisions"]}
    return {name: [channels, kept[name]] for name, channels in groups.items()}


class Arena:
    """One workload, one seed: prunes to budgets and measures what comes out."""

    def __init__(self, workload: Workload, args: argparse.Namespace, seed: int) -> None:
        self._workload, self._args, self._seed = workload, args, seed

    def run(self, budget: str) -> Run:
        started, limits, workload = time.monotonic(), Budget.parse(budget), self._workload
        settings = pagcp.Settings(epochs=self._args.epochs, rounds=self._args.rounds, remove_dead=True)
        loop = loop_for(hardware_for(limits, "cpu"), workload)
        result = pagcp.prune(workload, limits, Tolerance.parse("1%"), settings, seed=self._seed, loop=loop)
        seconds = time.monotonic() - started
        ms, original = self._measured(result.model)
        costs, before = result.costs.predicted_ms, result.costs_before.predicted_ms
        predicted = costs / before if costs is not None and before is not None else None
        return Run(result, budget, seconds, ms, original, predicted)

    def flops_driven(self, goal: Run) -> tuple[Run, list[dict[str, float]]]:
        """Prune to FLOPs until the latency is that of another run; also every try."""
        share, found = goal.result.costs.flops / goal.result.costs_before.flops, list[Run]()
        for _ in range(self._args.tries):
            found.append(self.run(f"flops<={100 * min(share, 0.99):.3f}%"))
            ratio = goal.share / found[-1].share
            if abs(ratio - 1) <= NEAR:
                break
            share *= ratio
        nearest = min(found, key=lambda run: abs(run.share / goal.share - 1))
        tries = [
            {"flops": run.result.costs.flops / run.result.costs_before.flops, "latency": run.share,
             "delta_mtl": run.result.delta_mtl}
            for run in found
        ]  # fmt: skip
        return nearest, tries

    def _measured(self, model: nn.Module) -> tuple[float, float]:
        """(model, original) in milliseconds, in turns."""
        workload = self._workload
        with tempfile.TemporaryDirectory() as folder:
            files = {
                name: to_onnx(each, workload, Path(folder) / f"{name}.onnx")
                for name, each in (("model", model), ("original", workload.model))
            }
            found = measure_onnx(files, against="original", limit_s=10.0, precision=0.01)
        before, factor = found["original"].latency, found["model"].speedup_against
        assert before is not None
        assert factor is not None
        return before.median / factor, before.median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="?", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--latency", type=float, default=0.5, help="share of the original's")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tries", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    workload = sc.workload(args.workload)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        arena = Arena(workload, args, seed)
        latency = arena.run(f"latency<={100 * args.latency:g}%")
        flops, tries = arena.flops_driven(latency)
        rows.append({"seed": seed, "latency": latency.as_json(), "flops": flops.as_json(), "tries": tries})
        write(args, rows)
    show(rows)


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    document[args.workload] = {
        "command": " ".join(["python", "benchmarks/latency_budget.py", *sys.argv[1:]]), "settings": vars(args),
        "machine": machine.describe(), "versions": machine.versions(), "runs": rows,
    }  # fmt: skip
    write_json(RESULT, document)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("pruned to", "Δ_MTL % (mean ± sd)", "latency left %, measured", "FLOPs left %", "params left %")
    for name in ("latency", "flops"):
        deltas = [row[name]["delta_mtl"] for row in rows]
        spread = statistics.stdev(deltas) if len(deltas) > 1 else 0.0
        shares = [
            f"{100 * statistics.mean(row[name][key] for row in rows):.1f}"
            for key in ("latency_share", "flops_share", "params_share")
        ]
        table.add_row(name, f"{statistics.mean(deltas):+.2f} ± {spread:.2f}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
