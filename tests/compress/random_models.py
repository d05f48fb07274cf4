"""Random CNNs as small programs: each step takes tensors made before it and appends one.

    Program([("conv", 3, 8), ("cat", 0, 1), ...])

A step is a kind and two free numbers, which choose operands and sizes; any list of steps is a valid program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo.registry import randomise

Step = tuple[str, int, int]
SIZE = 8


class Program(nn.Module):
    """[N, 3, 8, 8] → {"image": [N, 2, ...], "vector": [N, 3], "last": ...}, according to the number of heads."""

    def __init__(self, steps: Sequence[Step], heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[Callable[[nn.ModuleList, list[Tensor]], Tensor]] = []
        self.shapes: list[tuple[int, int]] = [(8, SIZE)]  # (channels, height = width) of each tensor
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for kind, one, other in steps:
            KINDS[kind](self, one % len(self.shapes), other)
        last = len(self.shapes) - 1
        self.heads = nn.ModuleDict({"image": nn.Conv2d(self.shapes[last][0], 2, 1)})
        if heads > 1:
            self.heads["vector"] = nn.Linear(self.shapes[last // 2][0], 3)
        if heads > 2:
            self.heads["last"] = nn.Sequential(nn.Conv2d(self.shapes[last][0], 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
        for module in self.modules():
            randomise(module)
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        values = [self.stem(x)]
        for step in self.steps:
            values.append(step(self.layers, values))
        out = {"image": self.heads["image"](values[-1])}
        if "vector" in self.heads:
            out["vector"] = self.heads["vector"](values[(len(values) - 1) // 2].mean((2, 3)))
        if "last" in self.heads:
            out["last"] = self.heads["last"](values[-1])
        return out

    def add(self, step: Callable[[nn.ModuleList, list[Tensor]], Tensor], channels: int, size: int) -> None:
        self.steps.append(step)
        self.shapes.append((channels, size))

    def layer(self, module: nn.Module) -> int:
        """Its number among the layers, by which steps call it: a copy of the program calls its own."""
        self.layers.append(module)
        return len(self.layers) - 1

    def apply_to(self, source: int, module: nn.Module, channels: int, size: int) -> None:
        number = self.layer(module)
        self.add(lambda layers, values: layers[number](values[source]), channels, size)

    def like(self, source: int, wanted: int) -> int:
        """Another tensor of the same shape as `source`: one there is, or a 1×1 convolution to it."""
        same = [index for index, shape in enumerate(self.shapes) if shape == self.shapes[source] and index != source]
        if same:
            return same[wanted % len(same)]
        channels, size = self.shapes[source]
        self.apply_to(source, nn.Conv2d(channels, channels, 1), channels, size)
        return len(self.shapes) - 1


class Attention(nn.Module):
    """Self-attention over tokens [B, T, C]; the code counts heads, or takes their width from the input's."""

    def __init__(self, width: int, heads: int, *, by_count: bool) -> None:
        super().__init__()
        self.heads, self.by_count = heads, by_count
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        size = -1 if self.by_count else width // self.heads
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Split(nn.Module):
    """[B, C, H, W] in two parts of unequal widths, which an attribute holds; one goes through a convolution."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.widths = [left, right]
        self.conv = nn.Conv2d(right, right, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.split(self.widths, 1)
        return torch.cat([self.conv(right), left], 1)


class Scale(nn.Module):
    """A factor for every channel, and the mean over pixels added back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + x.mean((2, 3), keepdim=True)


def conv(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    out, kernel = 2 + number % 9, (1, 3)[number % 2]
    p.apply_to(source, nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=number % 3 > 0), out, size)


def depthwise(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    out = channels * (1 + number % 2)
    p.apply_to(source, nn.Conv2d(channels, out, 3, padding=1, groups=channels), out, size)


def grouped(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    groups = next((g for g in (4, 2, 3) if channels % g == 0), 1)
    out = groups * (1 + number % 3)
    p.apply_to(source, nn.Conv2d(channels, out, 1, groups=groups), out, size)


def transposed(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    out = 2 + number % 5
    p.apply_to(source, nn.ConvTranspose2d(channels, out, 3, padding=1), out, size)


def norm(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    groups = next((g for g in (4, 2, 3) if channels % g == 0), 1)
    norms = (nn.BatchNorm2d(channels), nn.GroupNorm(groups, channels), nn.InstanceNorm2d(channels, affine=True),
             nn.GroupNorm(channels, channels))  # fmt: skip
    p.apply_to(source, norms[number % 4], channels, size)


def layer_norm(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    own = p.layer(nn.LayerNorm(channels))
    p.add(lambda layers, values: layers[own](values[source].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), channels, size)


def activate(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    kinds = (nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.PReLU(channels), nn.Hardswish(), nn.Softmax(1))
    p.apply_to(source, kinds[number % 6], channels, size)


def add(p: Program, source: int, number: int) -> None:
    other, shape = p.like(source, number), p.shapes[source]
    p.add(lambda layers, values: values[source] + values[other], *shape)


def multiply(p: Program, source: int, number: int) -> None:
    other, shape = p.like(source, number), p.shapes[source]
    p.add(lambda layers, values: values[source] * torch.sigmoid(values[other]), *shape)


def cat(p: Program, source: int, number: int) -> None:
    same = [index for index, (_, size) in enumerate(p.shapes) if size == p.shapes[source][1]]
    other = same[number % len(same)]
    channels = p.shapes[source][0] + p.shapes[other][0]
    if channels > 24:
        return conv(p, source, number)
    p.add(lambda layers, values: torch.cat([values[source], values[other]], 1), channels, p.shapes[source][1])


def chunk(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    if channels % 2:
        return conv(p, source, number)
    own = p.layer(nn.Conv2d(channels // 2, channels // 2 + number % 2, 1))

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        left, right = values[source].chunk(2, 1)
        return torch.cat([layers[own](left), right], 1)

    p.add(step, channels + number % 2, size)


def shuffle(p: Program, source: int, number: int) -> None:
    """ShuffleNet's: two halves interleaved."""
    channels, size = p.shapes[source]
    if channels % 2:
        return conv(p, source, number)

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        batch, width, height, _ = values[source].shape
        rows = values[source].reshape(batch, 2, width // 2, height, height)
        return rows.transpose(1, 2).reshape(batch, width, height, height)

    p.add(step, channels, size)


def gate(p: Program, source: int, number: int) -> None:
    """Squeeze and excite."""
    channels, size = p.shapes[source]
    squeeze, excite = p.layer(nn.Linear(channels, 2 + number % 3)), p.layer(nn.Linear(2 + number % 3, channels))

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        scale = torch.sigmoid(layers[excite](F.relu(layers[squeeze](values[source].mean((2, 3))))))
        return values[source] * scale[:, :, None, None]

    p.add(step, channels, size)


def attend(p: Program, source: int, number: int) -> None:
    """A map from statistics over channels scales every channel."""
    own = p.layer(nn.Conv2d(2, 1, 3, padding=1))

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        x = values[source]
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(layers[own](pooled))

    p.add(step, *p.shapes[source])


def resize(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    if size > 2 and number % 2:
        p.apply_to(source, (nn.MaxPool2d(2), nn.AvgPool2d(2))[number // 2 % 2], channels, size // 2)
    elif size < SIZE:
        p.apply_to(
            source, nn.Upsample(scale_factor=2, mode=("nearest", "bilinear")[number // 2 % 2]), channels, 2 * size
        )


def pixels(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    if channels % 4 == 0 and size < SIZE:
        p.apply_to(source, nn.PixelShuffle(2), channels // 4, 2 * size)
    elif channels <= 6 and size > 2:
        p.apply_to(source, nn.PixelUnshuffle(2), 4 * channels, size // 2)


def twice(p: Program, source: int, number: int) -> None:
    """One module called two times in a row."""
    channels, size = p.shapes[source]
    own = p.layer(nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()))
    p.add(lambda layers, values: layers[own](layers[own](values[source])), channels, size)


def flatten(p: Program, source: int, number: int) -> None:
    """All values of a sample through a linear layer, back as an image of one pixel block."""
    channels, size = p.shapes[source]
    own = p.layer(nn.Linear(channels * size * size, 2 + number % 4))

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        return layers[own](values[source].flatten(1))[:, :, None, None].expand(-1, -1, size, size)

    p.add(step, 2 + number % 4, size)


def inplace(p: Program, source: int, number: int) -> None:
    """A copy whose first half is written to through a view."""
    channels, size = p.shapes[source]

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        x = values[source] * 1.5
        x[:, : x.shape[1] // 2].mul_(0.5)
        return x.add_(values[source])

    p.add(step, channels, size)


def attention(p: Program, source: int, number: int) -> None:
    """Pixels as tokens look at each other, with a residual path."""
    channels, size = p.shapes[source]
    heads = next(heads for heads in ((4, 2, 1), (2, 1), (1,))[number % 3] if channels % heads == 0)
    own = p.layer(Attention(channels, heads, by_count=number % 2 == 0))

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        tokens = values[source].flatten(2).transpose(1, 2)
        return (tokens + layers[own](tokens)).transpose(1, 2).reshape(values[source].shape)

    p.add(step, channels, size)


def mlp(p: Program, source: int, number: int) -> None:
    """Two linear layers over the channels of each pixel, with a residual path."""
    channels, size = p.shapes[source]
    hidden = nn.Linear(channels, 3 + number % 4)
    own = p.layer(nn.Sequential(nn.LayerNorm(channels), hidden, nn.GELU(), nn.Linear(hidden.out_features, channels)))

    def step(layers: nn.ModuleList, values: list[Tensor]) -> Tensor:
        return values[source] + layers[own](values[source].movedim(1, -1)).movedim(-1, 1)

    p.add(step, channels, size)


def split(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    if channels < 3:
        return conv(p, source, number)
    left = 1 + number % (channels - 1)
    p.apply_to(source, Split(left, channels - left), channels, size)


def broadcast(p: Program, source: int, number: int) -> None:
    channels, size = p.shapes[source]
    p.apply_to(source, Scale(channels), channels, size)


KINDS: dict[str, Callable[[Program, int, int], None]] = {
    function.__name__: function
    for function in (
        conv, depthwise, grouped, transposed, norm, layer_norm, activate, add, multiply, cat, chunk, shuffle, gate,
        attend, resize, pixels, twice, flatten, inplace, attention, mlp, split, broadcast,
    )
}  # fmt: skip
