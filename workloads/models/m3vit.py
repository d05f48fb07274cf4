"""M³ViT: a vision transformer for many tasks in which every other block's MLP is a mixture of experts.

Liang, Fan, Sarkar et al., NeurIPS 2022 (arXiv 2210.14793). Tasks run one at a time through the shared trunk, each with
its own routing: `model(x, "depth")`; `model(x)` gives all tasks. Sizes are DeiT's (Touvron et al., 2021).

    tiny = M3ViT(size=(224, 224), outputs={"depth": 1}, **DEIT["tiny"])
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.workloads.models.m3vit_moe import MoE, Router

DEIT: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 12},
    "base": {"width": 768, "depth": 12, "heads": 12},
}
"""Published sizes; M³ViT gives its small model twelve heads where DeiT-S has six."""
EPS = 1e-6


class Attention(nn.Module):
    """Self-attention [N, T, D] → [N, T, D]. The scale is that of the trained head width: it stays when heads shrink."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        result: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return result


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), where the mlp may be a mixture of experts."""

    def __init__(self, width: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=EPS), mlp

    def attend(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm1(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, task: str | None = None) -> Tensor:
        x = self.attend(x)
        mixed = self.mlp(self.norm2(x), task) if isinstance(self.mlp, MoE) else self.mlp(self.norm2(x))
        return x + mixed  # type: ignore[no-any-return]


class UpHead(nn.Module):
    """Tokens [N, 1 + H·W, D] → a map [N, outputs, P·H, P·W]: convolution, batch norm, ReLU and doubling, log2 P times,
    then a 1×1 convolution (the progressive head of SETR, Zheng et al., CVPR 2021, as M³ViT uses it)."""

    def __init__(self, width: int, grid: tuple[int, int], patch: int, outputs: int, channels: int) -> None:
        super().__init__()
        self.grid, stages = grid, patch.bit_length() - 1
        self.norm = nn.LayerNorm(width, eps=EPS)
        sizes = [width, *[channels] * stages]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(stages))
        self.last = nn.Conv2d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x[:, 1:]).transpose(1, 2).unflatten(2, self.grid)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.interpolate(F.relu(norm(conv(x))), scale_factor=2.0, mode="bilinear", align_corners=False)
        result: Tensor = self.last(x)
        return result


class M3ViT(nn.Module):
    """[N, 3, H, W] and a task → the task's map [N, outputs, H, W]; without a task {task: map}, and while training
    "balance" and "sharing", the routers' losses (see `m3vit_losses`).

    Args:
        size: (H, W) of the pictures. patch: side of a patch, a power of two.
        outputs: channels of each task's map, in the order of the tasks.
        ratio: hidden width of a dense MLP over `width`; expert_ratio: that of one expert.
        experts, top_k: per mixture; the mixtures are the MLPs of blocks 1, 3, 5, ...
        routing: "multi-gate": a linear router for each task; "conditioned": one router over [token, embedding of the
            task], of `task_width` channels; "shared": one router that does not know the task.
        noise: of the routers while training, as a multiple of 1 / experts.
        channels: of the heads' convolutions.
    """

    def __init__(
        self,
        size: tuple[int, int],
        outputs: Mapping[str, int],
        width: int,
        depth: int,
        heads: int,
        patch: int = 16,
        ratio: float = 4.0,
        expert_ratio: float = 1.0,
        experts: int = 16,
        top_k: int = 4,
        routing: str = "multi-gate",
        task_width: int = 64,
        noise: float = 1.0,
        channels: int = 256,
    ) -> None:
        super().__init__()
        self.tasks, self.size = tuple(outputs), size
        grid = size[0] // patch, size[1] // patch
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, width))

        def mlp(number: int) -> nn.Module:
            if number % 2 == 0:
                return Mlp(width, int(width * ratio))
            router = Router(self.tasks, width, experts, routing, task_width, noise)
            return MoE(width, int(width * expert_ratio), experts, top_k, router)

        self.blocks = nn.ModuleList(Block(width, heads, mlp(number)) for number in range(depth))
        self.heads = nn.ModuleDict(
            {task: UpHead(width, grid, patch, channels_out, channels) for task, channels_out in outputs.items()}
        )
        self._reset()

    def _reset(self) -> None:
        for parameter in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, task: str | None = None) -> Any:
        if task is not None:
            return self.heads[task](self.run(self.embed(x), task))
        return self.all_tasks(x)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens [N, 1 + patches, D]."""
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.pos_embed

    def run(self, tokens: Tensor, task: str | None) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, task)
        return tokens

    def all_tasks(self, x: Tensor) -> dict[str, Tensor]:
        """All tasks in one pass, as training wants it: what lies before the first mixture is the same for every task
        and is computed once; behind it the tasks are parts of one batch."""
        from secateur.workloads.models.m3vit_losses import router_losses

        tokens = self.blocks[0](self.embed(x))
        tokens = self.blocks[1].attend(tokens).repeat(len(self.tasks), 1, 1)  # type: ignore[operator]
        tokens = tokens + self.blocks[1].mlp.forward_tasks(self.blocks[1].norm2(tokens), self.tasks)  # type: ignore[operator, union-attr]
        for block in list(self.blocks)[2:]:
            if isinstance(block.mlp, MoE):
                tokens = block.attend(tokens)  # type: ignore[operator]
                tokens = tokens + block.mlp.forward_tasks(block.norm2(tokens), self.tasks)  # type: ignore[operator]
            else:
                tokens = block(tokens)
        parts: Sequence[Tensor] = tokens.chunk(len(self.tasks))
        found = {task: self.heads[task](part) for task, part in zip(self.tasks, parts, strict=True)}
        if self.training:
            found.update(router_losses([m for m in self.modules() if isinstance(m, MoE)]))
        return found
