"""Is expert by expert faster than dense and masked? Mixtures of the published sizes, and whole models, on CPU cores.

    python benchmarks/experts_speed.py [--threads 2] [--seconds 40]

Executions take turns in random order, as torch runs them; medians of the ratios within each round. Sizes: Edge-MoE's
(129 tokens, width 192, 16 experts of 384, top-2), M³ViT-small on NYUD pictures (1201 tokens, width 384, 16 experts of
384, top-4), `scenes-moe` and M³ViT-tiny of 128x256 pixels, one task, one picture.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from secateur.core import machine
from secateur.core.experts import Execution, ExpertWeights, execution, mix
from secateur.core.files import write_json
from secateur.workloads.models.m3vit import DEIT, M3ViT
from secateur.workloads.scenes_moe import network

OUT = Path(__file__).parent / "results" / "experts_speed.json"
KINDS: tuple[Execution, ...] = ("dense", "sparse", "batched")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cases = {
        "layer, 129 tokens, width 192, top-2 of 16": layer(129, 192, 384, 2),
        "layer, 1201 tokens, width 384, top-4 of 16": layer(1201, 384, 384, 4),
        "scenes-moe, top-2 of 16": whole(network(), (64, 64)),
        "M3ViT-tiny, 129 tokens, top-2 of 16": whole(
            M3ViT((128, 256), {"depth": 1}, **DEIT["tiny"], expert_ratio=2.0, top_k=2, channels=32), (128, 256)
        ),
    }
    rows = {name: measure(run, options.seconds / len(cases)) for name, run in cases.items()}
    document = {
        "command": f"python benchmarks/experts_speed.py --threads {options.threads} --seconds {options.seconds:g}",
        "source": "measured",
        "machine": machine.describe(), "versions": machine.versions(), "threads": options.threads, "rows": rows,
    }  # fmt: skip
    write_json(options.out, document)
    for name, row in rows.items():
        shown = "  ".join(f"{kind} {row['ms'][kind]:.2f} ms" for kind in KINDS)
        print(f"{name:45} {shown}  dense / sparse {row['dense_over']['sparse']:.2f}")


def layer(tokens: int, width: int, hidden: int, k: int, experts: int = 16) -> Callable[[], Any]:
    """One mixture, routed at random."""
    up, down = torch.randn(experts, hidden, width) * 0.02, torch.randn(experts, width, hidden) * 0.02
    weights = ExpertWeights(up, down, torch.zeros(experts, hidden), torch.zeros(experts, width))
    x, scores = torch.randn(1, tokens, width), torch.randn(1, tokens, experts).softmax(-1)
    return lambda: mix(x, scores, torch.arange(experts), weights, k)


def whole(model: M3ViT, size: tuple[int, int]) -> Callable[[], Any]:
    """One picture through a model, for depth."""
    model.eval()
    x = torch.rand(1, 3, *size)
    return lambda: model(x, "depth")


@torch.no_grad()
def measure(run: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Medians in milliseconds, and of dense over each execution within a round."""
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    ends = time.perf_counter() + seconds
    for kind in KINDS * 2:
        _once(run, kind)
    while time.perf_counter() < ends or len(times["dense"]) < 5:
        for kind in random.sample(KINDS, len(KINDS)):
            times[kind].append(_once(run, kind))
    ratios = {kind: [dense / other for dense, other in zip(times["dense"], times[kind], strict=True)] for kind in KINDS}
    return {
        "rounds": len(times["dense"]),
        "ms": {kind: 1e3 * statistics.median(found) for kind, found in times.items()},
        "dense_over": {kind: statistics.median(found) for kind, found in ratios.items()},
    }


def _once(run: Callable[[], Any], kind: Execution) -> float:
    with execution(kind):
        started = time.perf_counter()
        run()
        return time.perf_counter() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
