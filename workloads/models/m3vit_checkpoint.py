"""Checkpoints of the published M³ViT code, read into ours: other names, other layouts, experts spread over processes.

    state = torch.load(path, weights_only=True)
    model = from_published([state], size=(512, 512), tasks=["semseg", "depth"], heads=12, top_k=4)

The published code keeps the trunk under `backbone.`, one head per task under `decoders.`, a gate as `w_gate` [D, E],
one for each task in order or one for all, and (FastMoE) experts stacked as `experts.htoh4.weight` [E, H, D]. Trained
with experts spread over processes, each process saves its own E / world; what is not an expert is the same in all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.errors import WorkloadError
from secateur.workloads.models.m3vit import EPS, M3ViT

State = Mapping[str, Any]
_WRAPPERS = ("state_dict", "model")
_EXPERT = re.compile(r".*\.mlp\.experts\.(htoh4|h4toh)\.(weight|bias)")
_RULES = (
    (r"backbone\.patch_embed\.proj\.(\w+)", r"patch_embed.\1"),
    (r"backbone\.(cls_token|pos_embed)", r"\1"),
    (r"backbone\.(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]|mlp\.experts\.\w+)\.\w+)", r"\1"),
    (r"decoders\.(\w+)\.norm\.(\w+)", r"heads.\1.norm.\2"),
    (r"decoders\.(\w+)\.syncbn_fc_(\d+)\.(\w+)", r"heads.\1.norms.\2.\3"),
    (r"decoders\.(\w+)\.conv_(\d+)\.(\w+)", r"heads.\1.convs.\2.\3"),
)
_GATE = re.compile(r"backbone\.(blocks\.\d+)\.mlp\.gate\.(?:(\d+)\.)?w_gate")
_TASKS = "backbone.gate_task_represent."


def from_published(
    shards: Sequence[State], *, size: tuple[int, int], tasks: Sequence[str], heads: int, top_k: int
) -> M3ViT:
    """The model of a published checkpoint; everything but the arguments is read off the tensors' shapes.

    Args:
        shards: what each process saved, in the order of their ranks; one, if experts were not spread.
        size: (H, W) of the pictures. tasks: in the order of the gates. heads: of attention.

    Raises:
        WorkloadError: a tensor that is missing, unknown, or of another shape than the others say.
    """
    state = _gathered([_plain(shard) for shard in shards])
    model = M3ViT(**_settings(state, size, tasks), heads=heads, top_k=top_k)
    converted = convert(state, tasks)
    own = {name: tensor for name, tensor in model.state_dict().items() if name.endswith((".kept", ".slots"))}
    try:
        model.load_state_dict({**own, **converted})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise WorkloadError(f"the checkpoint does not fit M³ViT: {reason}", "check tasks, size and heads") from error
    return model.eval()


def convert(state: State, tasks: Sequence[str]) -> dict[str, Tensor]:
    """Published names and layouts → ours. `state` is whole: one process's, or gathered."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        gate = _GATE.fullmatch(name)
        if gate:
            task = "all" if gate[2] is None else _task(tasks, int(gate[2]))
            converted[f"{gate[1]}.mlp.router.gates.{task}.weight"] = tensor.t().contiguous()
        elif not name.startswith(_TASKS):
            converted[_renamed(name)] = tensor
    if f"{_TASKS}fc1.weight" in state:
        converted |= _embeddings(state, tasks, converted)
    return _last_convolutions(converted)


def _plain(document: State) -> dict[str, Tensor]:
    """The tensors themselves, without the wrappers that training scripts put around them and their names."""
    for key in _WRAPPERS:
        if isinstance(document.get(key), Mapping):
            document = document[key]
    return {name.removeprefix("module."): tensor for name, tensor in document.items() if isinstance(tensor, Tensor)}


def _gathered(shards: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    whole = dict(shards[0])
    for name in whole:
        if len(shards) > 1 and _EXPERT.fullmatch(name):
            whole[name] = torch.cat([shard[name] for shard in shards])
    return whole


def _settings(state: State, size: tuple[int, int], tasks: Sequence[str]) -> dict[str, Any]:
    try:
        experts, hidden, width = state["backbone.blocks.1.mlp.experts.htoh4.weight"].shape
        patch = state["backbone.patch_embed.proj.weight"].shape[-1]
        dense = state["backbone.blocks.0.mlp.fc1.weight"].shape[0]
        last = patch.bit_length() - 1
        outputs = {task: state[f"decoders.{task}.conv_{last}.weight"].shape[0] for task in tasks}
        channels = state[f"decoders.{tasks[0]}.conv_0.weight"].shape[0]
    except KeyError as error:
        raise WorkloadError(f"the checkpoint has no {error}", "is it one of the published M³ViT code?") from error
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("backbone.blocks."))
    conditioned = f"{_TASKS}fc2.weight" in state
    single = "backbone.blocks.1.mlp.gate.w_gate" in state
    return {
        "size": size, "outputs": outputs, "width": width, "depth": depth, "patch": patch, "ratio": dense / width,
        "expert_ratio": hidden / width, "experts": experts, "channels": channels,
        "routing": "conditioned" if conditioned else "shared" if single else "multi-gate",
        "task_width": state[f"{_TASKS}fc2.weight"].shape[0] if conditioned else 0,
    }  # fmt: skip


def _renamed(name: str) -> str:
    for pattern, ours in _RULES:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    raise WorkloadError(f'the checkpoint holds "{name}", which M³ViT does not have', "take it out, or report it")


def _task(tasks: Sequence[str], number: int) -> str:
    if number >= len(tasks):
        raise WorkloadError(f"the checkpoint has a gate for task {number}", f"name all its tasks, not {len(tasks)}")
    return tasks[number]


def _embeddings(state: State, tasks: Sequence[str], converted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published task embedding is a small network on a one-hot vector: here its outputs, one for each task."""
    first, second, norm = (
        (state[f"{_TASKS}{part}.weight"], state[f"{_TASKS}{part}.bias"]) for part in ("fc1", "fc2", "norm")
    )
    vectors = F.linear(F.gelu(F.linear(torch.eye(len(tasks)), *first)), *second)
    vectors = F.layer_norm(vectors, vectors.shape[-1:], *norm, EPS)
    routers = [name.removesuffix("gates.all.weight") for name in converted if name.endswith("gates.all.weight")]
    return {
        f"{router}embeddings.{task}.weight": vector
        for router in routers
        for task, vector in zip(tasks, vectors, strict=True)
    }


def _last_convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head's last convolution, 1x1, has a name of its own here."""
    found = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(heads\.\w+)\.convs\.(\d+)\.(\w+)", name)
        last = match and f"{match[1]}.convs.{int(match[2]) + 1}.weight" not in state
        found[f"{match[1]}.last.{match[3]}" if match and last else name] = tensor
    return found
