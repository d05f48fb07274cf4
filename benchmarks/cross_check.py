"""Soft cores in our predictor, in ZigZag and as published: cycles and energy of the same layers, side by side.

    python benchmarks/cross_check.py         # some minutes; needs the extra [fpga]; writes results/cross_check.json

The networks are those of the published table whose layers are known. Our figures are of constants fitted to that table,
ZigZag's of none, so only the agreement of each with the other says something here; see latency.py for held-out errors.
"""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from secateur.core.files import write_json
from secateur.profiles.latency.fit_soft_core import known_layers
from secateur.profiles.latency.soft_core import SoftCore
from secateur.profiles.latency.tables import soft_core_rows
from secateur.targets.device import get
from secateur.targets.predict import latency_model
from secateur.targets.zigzag import Layer, cross_check

TARGET, BOARD = "fpga:zcu102", "ZCU102"


def kind(layer: Layer) -> str:
    operator = layer.operator
    if operator.depthwise:
        return "depthwise"
    return operator.kind if operator.kind != "conv" else f"conv {operator.kernel[0]}x{operator.kernel[1]}"


def total(layers: Sequence[Layer]) -> dict[str, object]:
    """Sums of both models over layers."""
    return {"layers": len(layers)} | {
        f"{figure}_{model}": round(sum(getattr(getattr(each, model), figure) for each in layers), 4)
        for figure in ("busy", "cycles", "energy_mj")
        for model in ("ours", "zigzag")
    }


def main() -> None:
    device = get(TARGET)
    core = latency_model(device)
    assert isinstance(core, SoftCore)
    rows = {row.network: row for row in soft_core_rows() if row.board == BOARD and known_layers(row.network)}
    each_once = list(dict.fromkeys(each for name in rows for each in known_layers(name) or ()))
    checked = {each.operator: each for each in cross_check(device, each_once)}
    networks, kinds = {}, defaultdict(list)
    for name, row in rows.items():
        operators = known_layers(name) or ()
        layers = [checked[each] for each in operators if each in checked]
        for each in layers:
            kinds[kind(each)].append(each)
        rest = 1e3 * core.clock_hz**-1 * sum(each.ours.cycles for each in layers)
        networks[name] = total(layers) | {
            "published_ms": row.ms,
            "ours_ms": round(core.predict(operators).ms, 3),
            "outside_ms": round(core.predict(operators).ms - rest, 3),
            "zigzag_ms": round(1e3 * sum(each.zigzag.cycles for each in layers) / core.clock_hz, 3),
        }
        print(name, networks[name], flush=True)
    document = {
        "command": "python benchmarks/cross_check.py", "target": TARGET,
        "versions": {"zigzag-dse": importlib.metadata.version("zigzag-dse")},
        "networks": networks, "kinds": {name: total(layers) for name, layers in sorted(kinds.items())},
    }  # fmt: skip
    write_json(Path(__file__).parent / "results" / "cross_check.json", document)


if __name__ == "__main__":
    main()
