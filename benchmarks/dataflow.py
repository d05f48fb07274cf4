"""The channel dataflow on published multi-task structures, at the sizes they are published with.

    python benchmarks/dataflow.py [MODEL ...]

Per model: ops, channel groups and how many of them can be pruned, the share of parameters that some prunable group
removes a part of, why the others are kept whole, and seconds: of torch.export (evaluation and training mode), of
finding the groups in its graphs, and of the whole `trace` (export, groups, and trial cuts). Half of all groups'
channels are cut and compared with the masked model. Writes benchmarks/results/dataflow.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from secateur.compress.dataflow import ChannelGroups, from_graphs, trace
from secateur.core import machine
from secateur.core.files import write_json
from secateur.core.seeds import seed_everything
from secateur.profiles.graph import capture_tasks
from secateur.workloads.models.aspp import MultiTaskDeepLab
from secateur.workloads.models.blocks import Trunk
from secateur.workloads.models.cross_stitch import CrossStitchNetwork
from secateur.workloads.models.hrnet import hrnet18
from secateur.workloads.models.mtan import MTAN
from secateur.workloads.models.mti_net import MTINet
from secateur.workloads.models.nddr import NDDRNetwork
from secateur.workloads.models.pad_net import PADNet
from secateur.workloads.models.scenes_vit import ScenesViT
from secateur.workloads.models.two_stage import Proposals
from secateur.workloads.models.yolo import YOLO, AnchorGrid

NYUD = {"segmentation": 40, "depth": 1, "normals": 3, "edges": 1}
PAIR = {"segmentation": 40, "depth": 1}
RESNET18 = (64, 128, 256, 512)
COCO = AnchorGrid(
    128,
    (8, 16, 32),
    (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326))),
)
"""YOLOv5's strides and anchors."""

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: Trunk(RESNET18),
    "deeplab-resnet18": lambda: MultiTaskDeepLab(NYUD, RESNET18, 256),
    "mtan-resnet18": lambda: MTAN(NYUD, RESNET18, 1),
    "cross-stitch-resnet18": lambda: CrossStitchNetwork(PAIR, RESNET18),
    "nddr-resnet18": lambda: NDDRNetwork(PAIR, RESNET18),
    "pad-net-resnet18": lambda: PADNet(NYUD, RESNET18, 256),
    "mti-net-hrnet18": lambda: MTINet(NYUD, hrnet18()),
    "yolov5s-like": lambda: YOLO(80, COCO, (32, 64, 128, 256, 512), 2),
    "faster-rcnn-first-stage": lambda: Proposals(RESNET18, 256, 3, 2),
    "scenes-vit": lambda: ScenesViT(7, 128),
}
INPUT = (2, 3, 128, 128)
"""Small: groups do not depend on the size of pictures, and exporting runs no arithmetic."""


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """BatchNorm with statistics of real activations, scales and shifts that differ by channel: wrong channels show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
            module.momentum = 1.0  # the statistics become those of the next batch
    model.train()(torch.randn(INPUT))
    return model.eval()


def examine(model: nn.Module) -> dict[str, Any]:
    inputs = torch.randn(INPUT)
    start = time.perf_counter()
    graphs, training = capture_tasks(model, inputs, ()), capture_tasks(model, inputs, (), training=True)
    exported = time.perf_counter()
    from_graphs(model, graphs, training)
    walked = time.perf_counter()
    groups = trace(model, inputs)
    traced = time.perf_counter()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ops": len(graphs[0].nodes),
        "groups": len(groups),
        "prunable": len(groups.prunable),
        "share": round(share(groups), 4),
        "difference": difference(groups, inputs),
        "seconds": {
            "export": round(exported - start, 2),
            "groups": round(walked - exported, 2),
            "trace": round(traced - walked, 2),
        },
        "dead": groups.dead,
        "why_not": {group.name: group.why_not for group in groups.values() if not group.prunable},
    }


def share(groups: ChannelGroups) -> float:
    """The share of parameter elements that some prunable group removes a part of."""
    touched = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in groups.model.named_parameters()}
    for group in groups.prunable:
        for member in group.members:
            if member.parameter in touched:
                touched[member.parameter].index_fill_(member.dim, torch.from_numpy(member.index.ravel()), True)
    return sum(int(mask.sum()) for mask in touched.values()) / sum(mask.numel() for mask in touched.values())


@torch.no_grad()
def difference(groups: ChannelGroups, inputs: torch.Tensor) -> float:
    """The largest difference between the cut and the masked model, half of all channels gone, relative to outputs."""
    draw = np.random.default_rng(0)
    keep = {
        group.name: np.sort(draw.choice(group.channels, max(1, group.channels // 2), replace=False))
        for group in groups.prunable
    }
    small = groups.cut(keep).eval()(inputs)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(small) if isinstance(leaf, torch.Tensor)]
    masked = groups.mask(keep)(inputs).values()
    return max(
        float((one - other).abs().max() / other.abs().max().clamp_min(1e-6))
        for one, other in zip(leaves, masked, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", choices=[*MODELS, []])
    wanted = parser.parse_args().model or list(MODELS)
    torch.set_num_threads(1)
    table = Table(
        "model", "params", "ops", "groups", "prunable", "share %", "masked − cut", "export s", "groups s", "trace s"
    )
    results = {}
    for name in wanted:
        seed_everything(0)
        row = results[name] = examine(randomise(MODELS[name]()))
        seconds = row["seconds"]
        table.add_row(
            name,
            f"{row['parameters'] / 1e6:.1f} M",
            *(str(row[key]) for key in ("ops", "groups", "prunable")),
            f"{100 * row['share']:.1f}",
            f"{row['difference']:.0e}",
            *(f"{seconds[key]:.2f}" for key in ("export", "groups", "trace")),
        )
    Console(width=140).print(table)
    write_json(
        Path(__file__).parent / "results" / "dataflow.json",
        {
            "command": " ".join(["python", "benchmarks/dataflow.py", *sys.argv[1:]]),
            "machine": machine.describe(),
            "versions": machine.versions(),
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
