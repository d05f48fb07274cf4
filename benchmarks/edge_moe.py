"""The cycle model of an accelerator that works expert by expert, on the published model, beside published figures.

    python benchmarks/edge_moe.py

Evenly spread tokens; with and without reordering; every loop starting each cycle, and every second one.
"""

from __future__ import annotations

from pathlib import Path

from secateur.core.files import write_json
from secateur.targets.edge_moe import Board, ViT, board, on_chip, predict

OUT = Path(__file__).parent / "results" / "edge_moe.json"
PUBLISHED = ViT(129, 192, 3, 64, (768, 0) * 6, (None, (16, 384)) * 6)
SPREAD = [[[token % 16, (token + 5) % 16] for token in range(129)]] * 6


def main() -> None:
    given = board("zcu102")
    ways = {"reordered": {}, "token by token": {"reorder": False}, "reordered, every second cycle": {"initiation": 2}}
    found = {
        name: predict(Board.model_validate({**given.model_dump(), **change}), PUBLISHED, SPREAD).as_json()
        for name, change in ways.items()
    }
    resident = on_chip(given, PUBLISHED, resident_experts=True).bytes
    ours, loose = found["reordered"], found["token by token"]
    ratios = {
        "energy": loose["energy_mj"] / ours["energy_mj"],
        "latency": loose["latency_ms"] / ours["latency_ms"],
        "on_chip_bytes_of_resident_experts": resident / ours["memory"]["bytes"],
    }
    write_json(OUT, {"command": "python benchmarks/edge_moe.py", "predicted": found, "ratios": ratios})
    for name, value in found.items():
        print(f"{name:30} {value['latency_ms']:6.2f} ms  {value['energy_mj']:7.1f} mJ")
    print(ratios)


if __name__ == "__main__":
    main()
