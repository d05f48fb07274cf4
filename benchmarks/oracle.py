"""The cost of PAGCP's decisions: the published loop, run as it is described, against our oracle.

    python benchmarks/oracle.py digits multifashion scenes

Both take the same model, calibration data, τ0 and T, prune one sequence and stop before fine-tuning. Our oracle runs
twice: deciding on all calibration samples (`exact`), and stopping as soon as a decision is clear. Forward FLOPs are
counted on either side by what was run; seconds are of this machine, one after the other. A decision agrees when it
keeps the same channels. Writes benchmarks/results/oracle.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import secateur as sc
from secateur.compress.journal import Journal
from secateur.compress.pagcp.calibration import calibration_batches
from secateur.compress.pagcp.round import Record, Round
from secateur.compress.pagcp.settings import Settings
from secateur.core import machine
from secateur.core.files import write_json
from secateur.core.task import Workload
from secateur.profiles.count import count

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent / "tests" / "compress" / "pagcp"))
from published_loop import Published, published_procedure  # noqa: E402 - the reference lives with the test that holds to it


def ours(workload: Workload, settings: Settings) -> dict[str, Any]:
    """One round under our oracle: what it decided, spent and took."""
    record, started = Record(), time.monotonic()
    equal = dict.fromkeys(workload.task_names, 1.0)
    journal = Journal(None, {}, resume=False)
    before = count(workload.model, workload.example_input, workload.task_names).costs
    Round(workload.model, workload, settings, equal, journal, record, 0).prune([], before)
    return {
        "seconds": time.monotonic() - started,
        "forward_flops": record.spent.forward_flops,
        "not_monotone": record.spent.not_monotone,
        "decisions": record.decisions,
    }


def published(workload: Workload, settings: Settings) -> tuple[Published, float]:
    batches = calibration_batches(workload.calibration, settings.calibration_samples)
    started = time.monotonic()
    assert settings.global_tolerance is not None
    found = published_procedure(workload, batches, settings.local_tolerance, settings.global_tolerance)
    return found, time.monotonic() - started


def agreement(found: Published, decisions: list[dict[str, Any]]) -> float:
    """Share of the groups of which both keep as many channels."""
    same = [line["kept"] == len(found.kept.get(line["group"], range(line["channels"]))) for line in decisions]
    return sum(same) / len(found.plan)


def measure(name: str, samples: int | None) -> dict[str, Any]:
    workload = sc.workload(name)
    settings = replace(Settings().published(), calibration_samples=samples)
    reference, seconds = published(workload, settings)
    rows: dict[str, Any] = {
        "groups": len(reference.plan),
        "published": {"forward_flops": reference.forward_flops, "seconds": seconds},
    }
    for label, confidence in (("exact", None), ("confident", Settings().confidence)):
        run = ours(workload, replace(settings, confidence=confidence))
        rows[label] = {
            "forward_flops": run["forward_flops"],
            "seconds": run["seconds"],
            "not_monotone": run["not_monotone"],
            "fewer_flops": reference.forward_flops / run["forward_flops"],
            "faster": seconds / run["seconds"],
            "same_decisions": agreement(reference, run["decisions"]),
        }
    return rows


def show(results: dict[str, dict[str, Any]]) -> None:
    table = Table("workload", "oracle", "forward GFLOPs", "fewer", "seconds", "faster", "same decisions")
    for name, rows in results.items():
        for label in ("published", "exact", "confident"):
            row = rows[label]
            more = (
                (f"{row['fewer_flops']:.1f}×", f"{row['faster']:.1f}×", f"{100 * row['same_decisions']:.0f} %")
                if label != "published"
                else ("", "", "")
            )
            gflops, seconds = f"{row['forward_flops'] / 1e9:,.1f}", f"{row['seconds']:.1f}"
            table.add_row(name, label, gflops, more[0], seconds, more[1], more[2])
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--samples", type=int, help="calibration samples (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, dict[str, Any]] = {}
    document = {
        "command": " ".join(["python", "benchmarks/oracle.py", *sys.argv[1:]]), "machine": machine.describe(),
        "versions": machine.versions(), "results": results,
    }  # fmt: skip
    for name in args.workloads:
        results[name] = measure(name, args.samples)
        write_json(ROOT / "results" / "oracle.json", document)
    show(results)


if __name__ == "__main__":
    main()
