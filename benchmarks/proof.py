"""Sixty percent off: what compressed bundles kept and lost, over seeds.

    secateur compress scenes-detect --budget "flops<=40%" --budget "params<=40%" --epochs 16 --seed 0 -o runs/detect-0
    python benchmarks/proof.py runs/detect-0 runs/detect-1 runs/detect-2 [more bundles]

All that is reported stands in the bundles' manifests: Δ_MTL and every task's metric on the test split, what is left of
FLOPs and parameters, and the command that made them. Writes its part of benchmarks/results/proof.json; the runs of one
workload are replaced together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.core.bundle import Bundle, Manifest
from secateur.core.files import write_json

RESULT = Path(__file__).parent / "results" / "proof.json"


def run(manifest: Manifest) -> dict[str, Any]:
    """One bundle."""
    point, before = manifest.point, manifest.before
    return {
        "command": manifest.command, "seed": manifest.seed, "epochs": manifest.settings["epochs"],
        "saliency": manifest.settings["saliency"], "delta_mtl": point.delta_mtl, "metrics": point.metrics,
        "metrics_before": manifest.metrics_before, "flops_share": point.costs.flops / before.flops,
        "params_share": point.costs.params / before.params, "seconds": manifest.seconds,
        "machine": manifest.machine, "versions": manifest.versions,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for manifest in (Bundle.open(folder).manifest for folder in args.bundles):
        found.setdefault(manifest.workload, []).append(run(manifest))
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"results": {}}
    document["command"] = " ".join(["python", "benchmarks/proof.py", *sys.argv[1:]])
    document["results"] |= {name: sorted(runs, key=lambda each: each["seed"]) for name, runs in found.items()}
    write_json(RESULT, document)
    table = Table("workload", "seeds", "epochs", "FLOPs left %", "parameters left %", "Δ_MTL %")
    for name, runs in found.items():
        deltas = [each["delta_mtl"] for each in runs]
        spread = statistics.stdev(deltas) if len(deltas) > 1 else 0.0
        table.add_row(
            name, str(len(runs)), str(runs[0]["epochs"]),
            *(f"{100 * max(each[key] for each in runs):.1f}" for key in ("flops_share", "params_share")),
            f"{statistics.mean(deltas):+.2f} ± {spread:.2f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
