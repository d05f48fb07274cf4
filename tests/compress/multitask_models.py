"""The published multi-task structures, small: name → (model, example input)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zoo.registry import image, randomise

from secateur.workloads.models.aspp import MultiTaskDeepLab
from secateur.workloads.models.cross_stitch import CrossStitchNetwork
from secateur.workloads.models.hrnet import HRNet
from secateur.workloads.models.mtan import MTAN
from secateur.workloads.models.mti_net import MTINet
from secateur.workloads.models.nddr import NDDRNetwork
from secateur.workloads.models.pad_net import PADNet
from secateur.workloads.models.scenes_vit import ScenesViT
from secateur.workloads.models.two_stage import Proposals, RegionHead
from secateur.workloads.models.yolo import YOLO, AnchorGrid

TASKS = {"segmentation": 5, "depth": 1, "normals": 3}
GRID = AnchorGrid(
    32, (4, 8, 16), (((6.0, 6.0), (8.0, 12.0)), ((12.0, 9.0), (16.0, 16.0)), ((20.0, 20.0), (24.0, 12.0)))
)

MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "mtan": lambda: (MTAN(TASKS, (8, 12, 16), 1), image(size=32)),
    "pad_net": lambda: (PADNet(TASKS, (8, 12), 8, {"edges": 1}, 1), image(size=32)),
    "mti_net": lambda: (MTINet(TASKS, HRNet(4, (1, 1, 1), 1, 4)), image(size=32)),
    "cross_stitch": lambda: (CrossStitchNetwork(TASKS, (8, 12), 1), image(size=32)),
    "nddr": lambda: (NDDRNetwork(TASKS, (8, 12), 1), image(size=32)),
    "deeplab": lambda: (MultiTaskDeepLab(TASKS, (8, 10, 12, 16), 8, 1), image(size=32)),
    "yolo": lambda: (YOLO(3, GRID, (4, 8, 12, 16)), image(size=32)),
    "two_stage_first": lambda: (Proposals((8, 12, 16), 8), image(size=32)),
    "two_stage_second": lambda: (RegionHead(8, 3, 16, 4), torch.randn(4, 8, 3, 3)),
    "scenes_vit": lambda: (ScenesViT(5, 16, 12, 2, 3), image(size=16)),
}


def make(name: str) -> tuple[nn.Module, Any]:
    """The same numbers at every call; weights that matter (see the zoo)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = MODELS[name]()
        for module in model.modules():
            randomise(module)
        return model.eval(), inputs


def named_leaves(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a nested output by their path."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Tensor] = {}
    for key, part in items:
        found |= named_leaves(part, f"{name}.{key}" if name else str(key))
    return found
