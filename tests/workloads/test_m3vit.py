"""M³ViT: tasks run alone or together with the same result, routers as published, losses by hand."""

from __future__ import annotations

import math

import pytest
import torch

from secateur.core.experts import execution
from secateur.workloads.models.m3vit import DEIT, M3ViT
from secateur.workloads.models.m3vit_losses import cv_squared, sharing_loss
from secateur.workloads.models.m3vit_moe import MoE

SIZES = {"width": 16, "depth": 4, "heads": 2, "patch": 4, "experts": 5, "top_k": 2, "channels": 8}
ROUTINGS = ("multi-gate", "conditioned", "shared")


def small(routing: str = "multi-gate", **changes: object) -> M3ViT:
    torch.manual_seed(0)
    return M3ViT((16, 24), {"depth": 1, "parts": 7}, routing=routing, **{**SIZES, **changes}).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_all_tasks_at_once_are_what_each_alone_is(routing: str) -> None:
    model, x = small(routing), torch.rand(3, 3, 16, 24)
    with torch.no_grad():
        together = model(x)
        assert list(together) == ["depth", "parts"]
        for task, value in together.items():
            alone = model(x, task)
            assert alone.shape == (3, 7 if task == "parts" else 1, 16, 24)
            torch.testing.assert_close(alone, value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense", "batched", "unrolled", "op"])
def test_the_whole_model_is_the_same_by_every_execution(kind: str) -> None:
    model, x = small(), torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        expected = model(x, "parts")
        with execution(kind):  # type: ignore[arg-type]
            torch.testing.assert_close(model(x, "parts"), expected, atol=1e-5, rtol=1e-4)


def test_tasks_are_routed_apart_unless_the_router_does_not_know_them() -> None:
    x = torch.rand(1, 25, 16)
    for routing, apart in (("multi-gate", True), ("conditioned", True), ("shared", False)):
        layer = small(routing).blocks[1].mlp
        assert isinstance(layer, MoE)
        with torch.no_grad():
            for embedding in layer.router.embeddings.values():
                embedding.weight.normal_()
            same = torch.equal(layer.scores(x, "depth"), layer.scores(x, "parts"))
        assert same != apart


def test_every_other_block_is_a_mixture_in_the_published_sizes() -> None:
    with torch.device("meta"):
        model = M3ViT((224, 224), {"depth": 1}, **DEIT["small"], experts=16, top_k=4, expert_ratio=1.0)
    mixtures = [number for number, block in enumerate(model.blocks) if isinstance(block.mlp, MoE)]
    assert mixtures == [1, 3, 5, 7, 9, 11]
    experts = model.blocks[1].mlp.experts  # type: ignore[union-attr]
    assert experts.htoh4.weight.shape == (16, 384, 384)  # type: ignore[union-attr]
    assert model.pos_embed.shape == (1, 197, 384)


def test_routers_are_noisy_while_training_only() -> None:
    layer, x = small().blocks[1].mlp, torch.rand(1, 9, 16)
    assert isinstance(layer, MoE)
    assert torch.equal(layer.scores(x, "depth"), layer.scores(x, "depth"))
    layer.train()
    assert not torch.equal(layer.scores(x, "depth"), layer.scores(x, "depth"))
    noise = torch.stack([layer._noisy(torch.zeros(1000, 5)) for _ in range(20)])
    assert float(noise.std()) == pytest.approx(1 / 5, rel=0.02)  # standard deviation 1 / experts


def test_training_gives_the_routers_losses() -> None:
    model = small().train()
    found = model(torch.rand(2, 3, 16, 24))
    assert set(found) == {"depth", "parts", "balance", "sharing"}
    (found["balance"] + found["sharing"]).backward()
    gate = model.blocks[1].mlp.router.gates["depth"]  # type: ignore[union-attr, index]
    assert float(gate.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]
    assert all(layer.seen is None for layer in model.modules() if isinstance(layer, MoE))  # no graph is kept


def test_losses_by_hand() -> None:
    assert float(cv_squared(torch.tensor([2.0, 2.0, 2.0]))) == 0
    assert float(cv_squared(torch.tensor([0.0, 4.0]))) == pytest.approx(8 / 4)  # variance 8, mean 2
    apart = torch.eye(2).reshape(2, 1, 2)  # each task its own expert: I = log 2
    assert float(sharing_loss(apart)) == pytest.approx(-math.log(2), abs=1e-6)
    alike = torch.full((2, 3, 4), 0.25)
    assert float(sharing_loss(alike)) == pytest.approx(0, abs=1e-6)
