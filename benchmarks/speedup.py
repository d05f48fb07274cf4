"""What a smaller model saves of the time: pruned bundles against their originals, on this CPU, layer by layer.

    secateur compress scenes-detect --budget "flops<=40%,params<=40%" --epochs 11 -o runs/scenes-detect
    python benchmarks/speedup.py runs/scenes-detect [more bundles]

Latencies of the whole models are measured in turns (ONNX Runtime, one thread); a layer's is the median over the runs
of ONNX Runtime's own profiler, before and after one another. A model whose time fell as its FLOPs did would take
`share · before` milliseconds. What each layer takes beyond its part of that has one of three reasons:

- allocation: it kept a larger share of its FLOPs than the model did (negative where smaller);
- narrow: it takes longer per FLOP now that it has fewer channels;
- without FLOPs: resizing, adding, normalising and the like, whose bytes do not fall as FLOPs do.

Writes its part of benchmarks/results/speedup.json after each bundle; the lines of one are those of its latest run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import secateur as sc
from secateur.core import machine
from secateur.core.bundle import Bundle
from secateur.core.costs import Profile
from secateur.core.files import write_json
from secateur.core.task import Workload
from secateur.profiles.count import count

RESULT = Path(__file__).parent / "results" / "speedup.json"
REASONS = ("allocation", "narrow", "without FLOPs")


def row(folder: Path) -> dict[str, Any]:
    """One bundle: what is left of its costs, what it lost, and where its time goes."""
    bundle = Bundle.open(folder)
    manifest, point = bundle.manifest, bundle.manifest.point
    workload = sc.workload(manifest.workload)
    measured = sc.benchmark(bundle, ["cpu"], per_layer=True)
    (after,), (before,) = measured.profiles, measured.profiles_against
    share = point.costs.flops / manifest.before.flops
    models = workload, workload.with_model(sc.load(bundle).model())
    found = layers(*models, before, after, share)
    return {
        "compress": manifest.command, "budget": manifest.budget, "epochs": manifest.settings["epochs"],
        "seed": manifest.seed, "metrics_before": manifest.metrics_before, "metrics": point.metrics,
        "delta_mtl": point.delta_mtl, "flops_share": share, "params_share": point.costs.params / manifest.before.params,
        "ms": [before.latency.median, after.latency.median], "speedup": after.speedup_against, "backend": after.backend,
        "layers": found,
    }  # fmt: skip


def layers(original: Workload, pruned: Workload, before: Profile, after: Profile, share: float) -> list[dict[str, Any]]:
    """Each layer that either model runs: [before, after] of FLOPs and milliseconds, and the milliseconds beyond
    `share` of what it took, by reason."""
    flops = [_flops(original), _flops(pruned)]
    times = [{layer.name: layer.latency_ms or 0.0 for layer in profile.layers} for profile in (before, after)]
    kinds = {layer.name: layer.kind for profile in (after, before) for layer in profile.layers}
    rows = []
    for name in dict.fromkeys([*times[0], *times[1]]):
        ops, ms = [each.get(name, 0) for each in flops], [each.get(name, 0.0) for each in times]
        rows.append({"name": name, "kind": kinds[name], "flops": ops, "ms": ms, "beyond": beyond(ops, ms, share)})
    return rows


def beyond(flops: list[int], ms: list[float], share: float) -> dict[str, float]:
    """The milliseconds that a layer takes more than `share` of what it took, by reason: they sum to the difference."""
    if not flops[0]:
        return {"without FLOPs": ms[1] - share * ms[0]}
    own = flops[1] / flops[0]
    return {"allocation": (own - share) * ms[0], "narrow": ms[1] - own * ms[0]}


def _flops(workload: Workload) -> dict[str, int]:
    table = count(workload.model, workload.example_input, workload.task_names)
    return {layer.name: layer.flops for layer in table.layers}


def reasons(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds beyond the share of FLOPs, over all layers, by reason."""
    return {reason: sum(each["beyond"].get(reason, 0.0) for each in rows) for reason in REASONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"results": {}}
    document |= {
        "command": " ".join(["python", "benchmarks/speedup.py", *sys.argv[1:]]),
        "machine": machine.describe(), "versions": machine.versions(),
    }  # fmt: skip
    for folder in args.bundles:
        found = row(folder)
        document["results"][Bundle.open(folder).manifest.workload] = found
        write_json(RESULT, document)
        show(folder.name, found)


def show(name: str, found: dict[str, Any]) -> None:
    Console().print(
        f"{name}: {100 * found['flops_share']:.1f} % of the FLOPs, {found['speedup']:.2f}× faster: "
        f"{found['speedup'] * found['flops_share']:.2f} of the FLOPs ratio; ms beyond it: "
        + ", ".join(f"{reason} {value:+.3f}" for reason, value in reasons(found["layers"]).items())
    )
    table = Table("layer", "kind", "FLOPs left", "ms before", "ms after", "ms beyond")
    for each in sorted(found["layers"], key=lambda each: -sum(each["beyond"].values()))[:12]:
        left = f"{100 * each['flops'][1] / each['flops'][0]:.0f} %" if each["flops"][0] else ""
        table.add_row(
            each["name"], each["kind"], left, *(f"{ms:.3f}" for ms in each["ms"]), f"{sum(each['beyond'].values()):.3f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
