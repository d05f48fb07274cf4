"""A CNN for two overlaid pictures: shared convolutions, one branch and one classifier per side."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class PairCNN(nn.Module):
    """[N, 1, H, W] → {"left": logits [N, 10], "right": logits [N, 10]}.

    Args:
        size: H = W of the canvas.
        widths: channels of the shared convolutions; every one but the first halves the picture.
        branch: channels of the convolution of each side.
        hidden: units of each side's hidden layer.
        dropout: probability, before the last layer.
    """

    def __init__(self, size: int, widths: Sequence[int], branch: int, hidden: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if index:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            channels = width
        self.shared = nn.Sequential(*layers)
        self.left = _side(channels, branch, size, hidden, dropout)
        self.right = _side(channels, branch, size, hidden, dropout)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.shared(x)
        return {"left": self.left(features), "right": self.right(features)}


def _side(channels: int, branch: int, size: int, hidden: int, dropout: float) -> nn.Sequential:
    """Flattened, not pooled: where a picture lies tells which of the two it is."""
    return nn.Sequential(
        nn.Conv2d(channels, branch, 3, padding=1, bias=False),
        nn.BatchNorm2d(branch),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(branch * size * size, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, 10),
    )
