"""Mixtures that differ from layer to layer: one that only another task runs, a top-k deep in the module, losses below
zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import moe_models
import pytest
import torch
from torch import Tensor, nn

from secateur.compress.experts import Layout, Settings, extract, find, register
from secateur.compress.experts import layers as kinds
from secateur.core.budget import Budget, Tolerance
from secateur.core.experts import ExpertWeights, mix
from secateur.core.task import Workload

FAST = Settings(epochs=0, rounds=1, calibration_samples=12)


class HeadOfExperts(nn.Module):
    """The trunk's mixtures, and another one in the head of a single task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = moe_models.m3vit()
        self.parts = moe_models.m3vit(outputs={"parts": 1}, depth=2)

    def forward(self, x: Tensor, task: str) -> Tensor:
        found = self.trunk(x, task=task)
        return found + self.parts(x, task=task) if task == "parts" else found


def headed() -> Workload:
    torch.manual_seed(0)
    return replace(moe_models.workload(HeadOfExperts().eval()), factory=HeadOfExperts)


def test_a_mixture_that_no_kept_task_runs_is_taken_out_whole() -> None:
    workload = headed()
    small = extract(workload, ["depth"], settings=FAST)
    assert len(find(small.model)) < len(find(workload.model))
    inputs = workload.test[0][0]
    with torch.no_grad():
        assert torch.equal(small.model(inputs, task="depth"), workload.model(inputs, task="depth"))


def test_a_mixture_that_only_one_kept_task_runs_is_extracted_and_reduced_with_the_others() -> None:
    small = extract(
        headed(), ["depth", "parts"], budget=Budget.parse("params<=75%"), tolerance=Tolerance.parse("90%"),
        settings=FAST,
    )  # fmt: skip
    assert small.budget_met, small.misses


def test_a_loss_below_zero_leaves_room_as_one_above_does() -> None:
    """As the likelihood of a narrow density has it: its tolerance is a share of its size."""
    workload = moe_models.workload()
    below = replace(
        workload,
        tasks=tuple(replace(task, loss=lambda p, t, loss=task.loss: loss(p, t) - 10) for task in workload.tasks),
    )
    small = extract(
        below, ["depth"], budget=Budget.parse("params<=70%"), tolerance=Tolerance.parse("90%"),
        settings=FAST,
    )  # fmt: skip
    assert small.budget_met, small.misses


class Deep(nn.Module):
    """Keeps how many experts a token goes through, and how many there are, in its router, as plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 6, bias=False)
        self.router.top_k, self.router.count = 2, 6
        self.up, self.down = nn.Parameter(torch.randn(6, 12, 16)), nn.Parameter(torch.randn(6, 16, 12))
        self.register_buffer("kept", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        weights = ExpertWeights(self.up, self.down, None, None, None, "relu")
        return mix(x, self.router(x).softmax(-1), self.kept, weights, int(self.router.top_k), False)


class DeepNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.mixture = Deep()
        self.depth, self.edges = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.patches(x).flatten(2).transpose(1, 2)
        found = (found + self.mixture(found)).transpose(1, 2).unflatten(2, (4, 4))
        return {name: nn.functional.pixel_shuffle(getattr(self, name)(found), 4) for name in ("depth", "edges")}


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(kinds, "_LAYOUTS", list(kinds._LAYOUTS))
    return register(
        Layout(
            "deep", fits=lambda m: isinstance(m, Deep), up="up", down="down", activation="relu", kept="kept",
            top_k="router.top_k", count="router.count", scores=lambda m, x, task: m.router(x).softmax(-1),
        )
    )  # fmt: skip


@pytest.mark.usefixtures("deep")
def test_numbers_that_stand_deep_in_a_mixture_are_rewritten_too() -> None:
    torch.manual_seed(0)
    workload = replace(moe_models.workload(DeepNet().eval(), ("depth", "edges")), factory=DeepNet)
    small = extract(
        workload, budget=Budget.parse("params<=70%"), tolerance=Tolerance.parse("90%"), settings=replace(FAST, top_k=1)
    )
    router = small.model.mixture.router
    assert (router.top_k, router.count) == (1, len(small.model.mixture.up))
    assert len(small.model.mixture.up) < 6
    assert small.history["experts"]["dense_equivalent"]["flops"] > small.costs_before.flops
