"""The multi-task CNN of the `scenes` workload: one residual encoder, one decoder with skip connections per task.

All layers compute at half resolution or below, where channels are cheap, and are wide; a pixel shuffle makes the last
step to full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM = 32
STAGES = ((48, 1, 1), (96, 2, 2), (192, 2, 2))
"""(channels, blocks, stride) of each encoder stage: features stay at 32 pixels, then go to 16 and 8."""
DECODER = (48, 32)
"""Channels of each decoder at 16 and 32 pixels."""


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, projected where the shape changes (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Encoder(nn.Module):
    """[N, 3, 64, 64] → features of each stage, from fine (32 pixels) to coarse (8 pixels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, STEM, kernel=5, stride=2)
        widths = [STEM, *(channels for channels, _, _ in STAGES)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(inputs if i == 0 else channels, channels, stride if i == 0 else 1)
                    for i in range(blocks)
                )
            )
            for inputs, (channels, blocks, stride) in zip(widths, STAGES, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """From the coarsest features to 32 pixels: upsample, concatenate the skip, convolve; then four outputs per pixel
    become 64 × 64 (pixel shuffle: Shi et al., CVPR 2016)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        fine, middle, coarse = (channels for channels, _, _ in STAGES)
        self.blocks = nn.ModuleList(
            (conv_bn_relu(coarse + middle, DECODER[0]), conv_bn_relu(DECODER[0] + fine, DECODER[1]))
        )
        self.head = nn.Conv2d(DECODER[1], 4 * outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine, middle, x = features
        for block, skip in zip(self.blocks, (middle, fine), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2)


class ScenesCNN(nn.Module):
    """[N, 3, 64, 64] in 0..1 → {"segmentation": logits [N, K, 64, 64], "depth": metres [N, 1, 64, 64],
    "normals": unit vectors [N, 3, 64, 64], "edges": logits [N, 1, 64, 64]}, and while training "aux": segmentation
    logits [N, K, 8, 8] of the coarsest features (an auxiliary head as in Zhao et al., CVPR 2017)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.segmentation = Decoder(classes)
        self.depth = Decoder(1)
        self.normals = Decoder(3)
        self.edges = Decoder(1)
        self.aux = nn.Sequential(conv_bn_relu(STAGES[-1][0], 32), nn.Conv2d(32, classes, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(2 * x - 1)
        out = {
            "segmentation": self.segmentation(features),
            "depth": 4 * torch.exp(self.depth(features)),  # scenes are about four metres deep
            "normals": F.normalize(self.normals(features), dim=1),
            "edges": self.edges(features),
        }
        if self.training:
            out["aux"] = self.aux(features[-1])
        return out
