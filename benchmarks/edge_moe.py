"""The cycle model of an accelerator that works expert by expert, on the published model, beside published figures.

    python benchmarks/edge_moe.py

Evenly spread tokens; with and without reordering; every loop starting each cycle, and every second one. Then
`scenes-moe` by the routing of 64 test samples, whole and as extracted for one task alone, exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import secateur as sc
from secateur.core.files import write_json
from secateur.targets.edge_moe import Board, ViT, board, on_chip, predict, program
from secateur.workloads import workload

OUT = Path(__file__).parent / "results" / "edge_moe.json"
PUBLISHED = ViT(129, 192, 3, 64, (768, 0) * 6, (None, (16, 384)) * 6)
SPREAD = [[[token % 16, (token + 5) % 16] for token in range(129)]] * 6


def main() -> None:
    given = board("zcu102")
    ways = {"reordered": {}, "token by token": {"reorder": False}, "reordered, every second cycle": {"initiation": 2}}
    boards = {name: Board.model_validate({**given.model_dump(), **change}) for name, change in ways.items()}
    found = {name: predict(way, program(way, PUBLISHED, SPREAD)).as_json() for name, way in boards.items()}
    resident = on_chip(given, program(given, PUBLISHED, SPREAD), resident_experts=True).bytes
    ours, loose = found["reordered"], found["token by token"]
    ratios = {
        "energy": loose["energy_mj"] / ours["energy_mj"],
        "latency": loose["latency_ms"] / ours["latency_ms"],
        "on_chip_bytes_of_resident_experts": resident / ours["memory"]["bytes"],
    }
    write_json(OUT, {
        "command": "python benchmarks/edge_moe.py", "predicted": found, "ratios": ratios, "scenes-moe": routed(),
    })  # fmt: skip
    for name, value in found.items():
        print(f"{name:30} {value['latency_ms']:6.2f} ms  {value['energy_mj']:7.1f} mJ")
    print(ratios)


def routed() -> dict[str, Any]:
    """Real routing: the whole model's tasks, and the model that depth alone needs, on two boards."""
    whole = workload("scenes-moe")
    depth = sc.extract(whole, "depth")
    subjects = {"whole": whole, "depth alone": depth.workload.with_model(depth.model)}
    found: dict[str, Any] = {}
    for name, subject in subjects.items():
        for profile in sc.benchmark(subject, ("fpga:edge-moe", "fpga:edge-moe-zcu104")).profiles:
            found[f"{name}, {profile.target}"] = {"energy_mj": profile.energy_mj, **profile.details}
            for task, figures in profile.details["tasks"].items():
                print(f"{name:12} {profile.target:22} {task:13} {figures['latency_ms']:.3f} ms "
                      f"{figures['energy_mj']:.2f} mJ  {figures['weight_bytes'] / 1024:.0f} KiB of weights  "
                      f"token by token {figures['token_by_token']['latency_ms']:.3f} ms")  # fmt: skip
    return found


if __name__ == "__main__":
    main()
