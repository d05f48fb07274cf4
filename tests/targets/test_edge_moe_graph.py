"""Programs of traced models: the same as from a transformer's sizes, by hand for convolutions, from real routing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.compress.experts.layers import find
from secateur.compress.experts.routing import routing_tables
from secateur.core.errors import DataError, DeviceError
from secateur.profiles.graph import capture
from secateur.targets.edge_moe import ViT, board, on_chip, program, traced_program
from secateur.targets.edge_moe.program import linear
from secateur.workloads.models.m3vit import M3ViT

EDGE = board("zcu102")
SIZES = {"width": 32, "depth": 4, "heads": 2, "patch": 4, "experts": 4, "top_k": 2, "channels": 8}
TOKENS = 17


@pytest.fixture(scope="module")
def model() -> M3ViT:
    torch.manual_seed(0)
    return M3ViT(size=(16, 16), outputs={"depth": 1, "edges": 2}, **SIZES).eval()  # type: ignore[arg-type]


def batches(model: nn.Module, samples: int = 3) -> list[Any]:
    torch.manual_seed(1)
    return [(torch.rand(samples, 3, 16, 16), {"depth": torch.zeros(1), "edges": torch.zeros(1)})]


def test_a_table_holds_the_best_experts_of_every_token_of_every_sample(model: M3ViT) -> None:
    data = batches(model)
    tables = routing_tables(model, find(model), data, "edges", samples=2)
    assert len(tables) == 2
    assert set(tables[0]) == {"blocks.1.mlp", "blocks.3.mlp"}
    seen: list[Tensor] = []
    handle = model.blocks[1].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(data[0][0], "edges")
    handle.remove()
    logits = seen[0] @ model.blocks[1].mlp.router.gates["edges"].weight.T  # type: ignore[union-attr, index, operator]
    assert tables[1]["blocks.1.mlp"] == logits[1].topk(2).indices.tolist()
    with pytest.raises(DataError, match="no sample"):
        routing_tables(model, find(model), [], "edges", samples=2)


def test_a_traced_transformer_is_the_program_of_its_sizes_with_embedding_and_head(model: M3ViT) -> None:
    table = routing_tables(model, find(model), batches(model), "depth", samples=1)[0]
    traced = traced_program(EDGE, capture(model, torch.zeros(1, 3, 16, 16), task="depth"), table)
    sizes = ViT(TOKENS, 32, 2, 16, (128, 0, 128, 0), (None, (4, 32), None, (4, 32)))
    drawn = program(EDGE, sizes, [table["blocks.1.mlp"], table["blocks.3.mlp"]])
    inner = [replace(stage, name="") for stage in traced.stages[1:-3]]
    assert inner == [replace(stage, name="") for stage in drawn.stages]
    assert (traced.tokens, traced.width, traced.mixtures) == (drawn.tokens, drawn.width, drawn.mixtures)
    embedding, head = traced.stages[0], traced.stages[-3:]
    assert embedding == linear(EDGE, "patch_embed", 16, 48, 32, 3 * 256)
    assert [stage.macs for stage in head] == [9 * 32 * 8 * 16, 9 * 8 * 8 * 64, 8 * 256]
    assert on_chip(EDGE, traced) == on_chip(EDGE, drawn)


def test_windows_of_a_convolution_are_read_once_and_groups_run_one_by_one(model: M3ViT) -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.body = nn.Conv2d(3, 3, 3, padding=1, groups=3), model

        def forward(self, x: Tensor) -> Any:
            return {"depth": self.body(self.conv(x), "depth")}

    table = {f"body.{path}": tokens for path, tokens in
             routing_tables(model, find(model), batches(model), "depth", samples=1)[0].items()}  # fmt: skip
    traced = traced_program(EDGE, capture(Grouped(), torch.zeros(1, 3, 16, 16)), table)
    first = traced.stages[:3]
    assert [stage.macs for stage in first] == [9 * 256] * 3
    assert first[0].feature_bytes == (256 + 256) * 4
    assert first[0].compute == 256  # one tile for each window


def test_what_does_not_fit_is_one_clear_line(model: M3ViT) -> None:
    graph = capture(model, torch.zeros(1, 3, 16, 16), task="depth")
    with pytest.raises(DeviceError, match=r"blocks.1.mlp runs on 17 tokens, and its routing table is none"):
        traced_program(EDGE, graph, {})
    with pytest.raises(DeviceError, match=r"one of 2 tokens"):
        traced_program(EDGE, graph, {"blocks.1.mlp": [[0, 1]] * 2})
    with pytest.raises(DeviceError, match="the model has no experts"):
        traced_program(EDGE, capture(nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 8, 8)), {})
