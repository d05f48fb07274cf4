"""The workload `multifashion-moe`: pairs of `multifashion`, a small M³ViT that classifies both sides."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.core.task import Workload
from secateur.workloads import multifashion, pairs
from secateur.workloads.checkpoint import load
from secateur.workloads.models.m3vit import EPS, M3ViT
from secateur.workloads.training import Recipe

NAME = "multifashion-moe"
WIDTH, PATCH = 64, 6


class PairMoE(M3ViT):
    """[N, 1, 36, 36] and a side → logits [N, 10]. A patch is read by two convolutions instead of one, with which
    transformers learn faster (Xiao et al., Early convolutions help transformers see better, NeurIPS 2021)."""

    def __init__(self) -> None:
        size, classes = multifashion.CANVAS, len(multifashion.CLASSES)
        super().__init__(
            size=(size, size), outputs=dict.fromkeys(pairs.SIDES, classes), width=WIDTH, depth=4, heads=4, patch=PATCH,
            ratio=2.0, experts=16, top_k=2, channels=1,
        )  # fmt: skip
        self.patch_embed = nn.Sequential(  # type: ignore[assignment]
            nn.Conv2d(1, WIDTH // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH // 2),
            nn.ReLU(),
            nn.Conv2d(WIDTH // 2, WIDTH, 3, stride=PATCH // 2),
        )
        self.heads = nn.ModuleDict({side: ClassHead(WIDTH, classes) for side in pairs.SIDES})


class ClassHead(nn.Module):
    """Tokens [N, T, D] → logits of classes [N, K], by the class token."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(width, eps=EPS), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(x[:, 0]))
        return result


def network() -> PairMoE:
    """A fresh, untrained instance."""
    return PairMoE()


def workload() -> Workload:
    """The workload as shipped, with trained weights.

    Raises:
        WorkloadError: the four files of Fashion-MNIST are not found.
    """
    size = multifashion.CANVAS
    return recipe().workload(load(network(), NAME), (1, size, size), multifashion.render)


def router_loss(output: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Balance as published, and a sharing loss of ten times the weight that `scenes-moe` has: both sides hold the same
    kinds of pictures, so that experts come apart only when they are made to."""
    return 0.01 * output["balance"] + 0.2 * output["sharing"]


def recipe() -> Recipe:
    """How the shipped weights were trained."""
    return Recipe(
        NAME, network, pairs.tasks(), multifashion.loader, epochs=12, rate=2e-3, weight_decay=0.05, extra=router_loss
    )
