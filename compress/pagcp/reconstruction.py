"""Reconstruction: channels ranked by how well the layers that read them can do without.

With Z[n, c] what channel c contributes to a sampled output n of the next layers, a choice S of channels with scales β
costs ‖Σ_c Z_c - Σ_{c∈S} β_c·Z_c‖². Channels are taken out one by one, always the cheapest, and the scales of the rest
are solved again each time, in closed form (channel pruning by least squares: He, Zhang and Sun, ICCV 2017; greedy as
ThiNet, Luo, Wu and Lin, ICCV 2017; the updates are those of the optimal brain surgeon, Hassibi and Stork, 1993).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.compress.dataflow import ChannelGroup, ChannelGroups
from secateur.compress.least_squares import damped
from secateur.compress.pagcp.windows import Rows, observe, readable
from secateur.core.task import Batch, Task

BATCHES = 16
"""Batches that are looked at, at most."""
CHUNK = 128
RIDGE = 1e-4


def reconstruction_scores(groups: ChannelGroups, batches: Sequence[Batch], tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Group → score of each channel: its place in the order in which the channels are taken out, the first lowest.
    Groups that no convolution or linear layer reads are left out."""
    readers = {group.name: _readers(groups, group) for group in groups.prunable}
    paths = sorted({path for found in readers.values() for path in found})
    grams: dict[tuple[str, str], Tensor] = {}
    wanted: dict[str, list[str]] = {path: [name for name, found in readers.items() if path in found] for path in paths}

    def note(path: str, rows: Rows) -> None:
        weight = groups.model.get_submodule(path).weight.detach().float()  # type: ignore[operator]
        for name in wanted[path]:
            gram = _gram(rows.inputs, weight.reshape(*weight.shape[:2], -1), readers[name][path])
            grams[name, path] = grams.get((name, path), 0) + gram

    observe(groups.model, paths, batches[:BATCHES], tasks, note)
    return {
        name: removal_order(
            torch.stack([_in_shares(grams[name, path]) for path in found if (name, path) in grams]).sum(0)
        )
        for name, found in readers.items()
        if any((name, path) in grams for path in found)
    }


def _readers(groups: ChannelGroups, group: ChannelGroup) -> Mapping[str, Tensor]:
    """Path of each layer that reads a group's channels → its input's indices [channels, k]."""
    return {
        path: torch.from_numpy(member.index)
        for member in group.members
        for path, _, attribute in [member.parameter.rpartition(".")]
        if member.role == "in" and member.dim == 1 and attribute == "weight"
        if readable(groups.model.get_submodule(path))
    }


def _gram(inputs: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Zᵀ·Z [channels, channels] over all sampled outputs; windows [n, in, k], weight [out, in, k]."""
    total = torch.zeros(len(index), len(index), dtype=torch.float64)
    for part in torch.split(inputs, CHUNK):
        parts = torch.einsum("nik,oik->noi", part, weight)[..., index.to(part.device)].sum(-1)
        flat = parts.flatten(0, 1).double().cpu()
        total += flat.T @ flat
    return total


def _in_shares(gram: Tensor) -> Tensor:
    """In units of what the whole contributes, so that all readers count alike."""
    return gram / gram.sum().clamp_min(1e-12)


def removal_order(gram: Tensor) -> Tensor:
    """For each channel, how many were taken out before it."""
    count = len(gram)
    inverse, scales = torch.linalg.inv(damped(gram, RIDGE)), torch.ones(count, dtype=gram.dtype)
    left, order = torch.ones(count, dtype=torch.bool), torch.zeros(count)
    for place in range(count):
        cost = (scales.square() / inverse.diagonal().clamp_min(1e-18)).masked_fill(~left, float("inf"))
        gone = int(cost.argmin())
        order[gone], left[gone] = place, False
        column, pivot = inverse[:, gone].clone(), float(inverse[gone, gone])
        scales -= column * (scales[gone] / pivot)
        inverse -= torch.outer(column, column) / pivot
    return order
