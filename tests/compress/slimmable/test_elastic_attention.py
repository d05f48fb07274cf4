"""A vision transformer at several widths: heads, what the MLP hides and the stream are trained together."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from elastic_tiny import FAST, workload
from torch import Tensor, nn

from secateur.compress.slimmable import Elastic, slim
from secateur.core.predict import evaluate, task_losses

HEADS, HEAD, DIM, MLP = 4, 6, 20, 40


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head = HEADS, HEAD
        self.qkv, self.proj = nn.Linear(DIM, 3 * HEADS * HEAD), nn.Linear(HEADS * HEAD, DIM)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.softmax(q @ k.mT / math.sqrt(self.head), -1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.head))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention, self.after = nn.LayerNorm(DIM), Attention(), nn.LayerNorm(DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, MLP), nn.GELU(), nn.Linear(MLP, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.after(x))


class ViT(nn.Module):
    """[N, 3, 8, 8] as sixteen tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, DIM, 2, 2), nn.Parameter(0.1 * torch.randn(1, 16, DIM))
        self.blocks, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(DIM)
        self.quadrant, self.brightness = nn.Linear(DIM, 4), nn.Linear(DIM, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        x = self.norm(self.blocks(x)).amax(1)
        return {"quadrant": self.quadrant(x), "brightness": self.brightness(x)}


def pretrained() -> ViT:
    torch.manual_seed(0)
    model = ViT().train()
    found, optimizer = workload(model), torch.optim.AdamW(model.train().parameters(), 3e-3)
    for _ in range(15):
        for inputs, targets in found.train:
            losses = task_losses(model(inputs), targets, found.tasks)
            optimizer.zero_grad()
            sum(task.weight * losses[task.name] for task in found.tasks).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def made() -> Elastic:
    found = replace(workload(pretrained()), factory=ViT, reference=None)
    settings = replace(
        FAST,
        epochs=16,
        widths=(0.25, 0.5),
        stream=True,
        rows=8,
        exported=2,
        recalibration_batches=1,
        original_distillation=0.0,
    )
    return slim(found, settings)


def test_heads_the_mlp_and_the_stream_are_elastic(made: Elastic) -> None:
    channels = {name: counts for stage in made.table.stages for name, counts in stage.channels.items()}
    assert channels["blocks.0.attention.qkv#2"] == (1, 2, HEADS)
    assert channels["blocks.0.attention.qkv#3"] == (HEAD, HEAD, HEAD), "heads alone make every width"
    assert channels["blocks.1.mlp.0"] == (10, 20, MLP)
    assert channels["patches"] == (6, 10, DIM)


def test_small_widths_learn_and_the_full_width_forgets_nothing(made: Elastic) -> None:
    """Small configurations begin with gradients that are hundreds of times as large as the full width's. Where they
    added up before they were clipped, the full width fell to chance (0.25)."""
    history, space, found = made.history["fine_tuning"], made.elastic.space, made.workload
    assert history[0]["gradients"]["smallest"] > 10 * history[0]["gradients"]["largest"]
    assert history[-1]["tasks"]["quadrant"] < history[0]["tasks"]["quadrant"]
    assert history[-1]["smallest"]["quadrant"] < 0.8 * history[0]["smallest"]["quadrant"]
    original = evaluate(found.model, found.test, found.tasks)
    full, small = (evaluate(made.elastic.static(at), found.test, found.tasks) for at in (space.largest, space.smallest))
    assert full["quadrant"] >= original["quadrant"] - 0.02
    assert full["brightness"] <= 1.1 * original["brightness"]
    assert small["quadrant"] > 0.5


def test_a_trained_configuration_is_its_static_model_with_fewer_heads(made: Elastic) -> None:
    elastic, draw = made.elastic, np.random.default_rng(0)
    inputs = made.workload.test[0][0]
    for at in (elastic.space.smallest, *(elastic.space.random(draw) for _ in range(3))):
        static = elastic.static(at)
        kept = elastic.space.channels(at)
        for block, path in zip(static.blocks, ("blocks.0", "blocks.1"), strict=True):
            assert (block.attention.heads, block.attention.head) == (
                kept[f"{path}.attention.qkv#2"], kept[f"{path}.attention.qkv#3"]
            )  # fmt: skip
        with torch.no_grad():
            one, other = elastic.at(at)(inputs), static(inputs)
        assert all(torch.equal(one[task], other[task]) for task in one)
