"""Checkpoints with the published names and shapes, made here, are read into the model that they describe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.errors import WorkloadError
from secateur.workloads.models.m3vit import M3ViT
from secateur.workloads.models.m3vit_checkpoint import from_published

TASKS = ("semseg", "depth")
SIZES = {
    "small, multi-gate": {"width": 48, "hidden": 96, "expert": 48, "routing": "multi"},
    "one task or shared": {"width": 32, "hidden": 64, "expert": 64, "routing": "shared"},
    "conditioned": {"width": 32, "hidden": 128, "expert": 32, "routing": "conditioned"},
}


def published(
    width: int, hidden: int, expert: int, routing: str, depth: int = 4, experts: int = 6, patch: int = 4
) -> dict[str, Tensor]:
    """A checkpoint as the published code saves it: its names, its shapes."""
    noise = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise) * 0.2

    state = {
        "patch_embed.proj.weight": normal(width, 3, patch, patch), "patch_embed.proj.bias": normal(width),
        "cls_token": normal(1, 1, width), "pos_embed": normal(1, (16 // patch) ** 2 + 1, width),
    }  # fmt: skip
    gate_width = width + (10 if routing == "conditioned" else 0)
    if routing == "conditioned":
        state |= {
            "gate_task_represent.fc1.weight": normal(10, len(TASKS)), "gate_task_represent.fc1.bias": normal(10),
            "gate_task_represent.fc2.weight": normal(10, 10), "gate_task_represent.fc2.bias": normal(10),
            "gate_task_represent.norm.weight": normal(10), "gate_task_represent.norm.bias": normal(10),
        }  # fmt: skip
    for number in range(depth):
        block = {
            "norm1.weight": normal(width), "norm1.bias": normal(width), "norm2.weight": normal(width),
            "norm2.bias": normal(width), "attn.qkv.weight": normal(3 * width, width),
            "attn.qkv.bias": normal(3 * width), "attn.proj.weight": normal(width, width),
            "attn.proj.bias": normal(width),
        }  # fmt: skip
        if number % 2 == 0:
            block |= {
                "mlp.fc1.weight": normal(hidden, width), "mlp.fc1.bias": normal(hidden),
                "mlp.fc2.weight": normal(width, hidden), "mlp.fc2.bias": normal(width),
            }  # fmt: skip
        else:
            block |= {
                "mlp.experts.htoh4.weight": normal(experts, expert, width),
                "mlp.experts.htoh4.bias": normal(experts, expert),
                "mlp.experts.h4toh.weight": normal(experts, width, expert),
                "mlp.experts.h4toh.bias": normal(experts, width),
            }
            gates = [f"{task}." for task in range(len(TASKS))] if routing == "multi" else [""]
            block |= {f"mlp.gate.{gate}w_gate": normal(gate_width, experts) for gate in gates}
        state |= {f"blocks.{number}.{name}": tensor for name, tensor in block.items()}
    whole = {f"backbone.{name}": tensor for name, tensor in state.items()}
    for task, outputs in zip(TASKS, (5, 1), strict=True):
        head = {
            "norm.weight": normal(width), "norm.bias": normal(width),
            "conv_0.weight": normal(8, width, 3, 3), "conv_0.bias": normal(8),
            "conv_1.weight": normal(8, 8, 3, 3), "conv_1.bias": normal(8),
            "conv_2.weight": normal(outputs, 8, 1, 1), "conv_2.bias": normal(outputs),
        }  # fmt: skip
        for stage in range(2):
            head |= {
                f"syncbn_fc_{stage}.weight": normal(8), f"syncbn_fc_{stage}.bias": normal(8),
                f"syncbn_fc_{stage}.running_mean": normal(8), f"syncbn_fc_{stage}.running_var": normal(8).abs() + 0.5,
                f"syncbn_fc_{stage}.num_batches_tracked": torch.tensor(3),
            }  # fmt: skip
        whole |= {f"decoders.{task}.{name}": tensor for name, tensor in head.items()}
    return whole


def read(*shards: Any) -> M3ViT:
    return from_published(shards, size=(16, 16), tasks=TASKS, heads=4, top_k=2)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_every_configuration_is_read_off_the_shapes(sizes: dict[str, Any]) -> None:
    state = published(**sizes)
    model = read({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}})
    with torch.no_grad():
        assert model(torch.rand(2, 3, 16, 16), "semseg").shape == (2, 5, 16, 16)
    own = model.state_dict()
    assert torch.equal(own["blocks.1.mlp.experts.h4toh.weight"], state["backbone.blocks.1.mlp.experts.h4toh.weight"])
    assert torch.equal(own["heads.depth.last.weight"], state["decoders.depth.conv_2.weight"])


def test_a_tasks_gate_multiplies_tokens_from_the_left_as_published() -> None:
    state, x = published(**SIZES["small, multi-gate"]), torch.randn(1, 7, 48)
    mixture: Any = read(state).blocks[3].mlp
    for number, task in enumerate(TASKS):
        logits = x @ state[f"backbone.blocks.3.mlp.gate.{number}.w_gate"]
        torch.testing.assert_close(mixture.scores(x, task), logits.softmax(-1))


def test_the_conditioned_router_sees_the_published_embedding_of_the_task() -> None:
    state, x = published(**SIZES["conditioned"]), torch.randn(1, 7, 32)
    part = {name.rpartition("represent.")[2]: t for name, t in state.items() if "gate_task_represent" in name}
    one_hot = torch.tensor([0.0, 1.0])  # the second task, depth
    hidden = F.gelu(one_hot @ part["fc1.weight"].t() + part["fc1.bias"])
    vector = hidden @ part["fc2.weight"].t() + part["fc2.bias"]
    vector = F.layer_norm(vector, (10,), part["norm.weight"], part["norm.bias"], 1e-6)
    logits = torch.cat([x, vector.expand(1, 7, 10)], -1) @ state["backbone.blocks.1.mlp.gate.w_gate"]
    mixture: Any = read(state).blocks[1].mlp
    torch.testing.assert_close(mixture.scores(x, "depth"), logits.softmax(-1))


def test_experts_spread_over_processes_are_gathered_in_order() -> None:
    whole = published(**SIZES["small, multi-gate"])
    shards = []
    for rank in range(3):
        expert = {name: t[2 * rank : 2 * rank + 2] for name, t in whole.items() if ".experts." in name}
        shards.append({**whole, **expert})
    one, spread = read(whole).state_dict(), read(*shards).state_dict()
    assert all(torch.equal(tensor, spread[name]) for name, tensor in one.items())


def test_what_does_not_fit_is_one_clear_line() -> None:
    state = published(**SIZES["small, multi-gate"])
    with pytest.raises(WorkloadError, match=r"backbone\.blocks\.1\.mlp\.experts\.htoh4\.weight"):
        read({name: tensor for name, tensor in state.items() if "htoh4" not in name})
    with pytest.raises(WorkloadError, match=r'holds "backbone\.extra"'):
        read({**state, "backbone.extra": torch.zeros(1)})
    with pytest.raises(WorkloadError, match="a gate for task 1"):
        from_published([state], size=(16, 16), tasks=["semseg"], heads=4, top_k=2)
    with pytest.raises(WorkloadError, match="does not fit"):
        from_published([state], size=(32, 32), tasks=TASKS, heads=4, top_k=2)
