"""CostModel: FLOPs, parameters and memory of a model at any widths, in microseconds, without cutting anything.

Every dimension of every tensor is a fixed part plus, for each group that labels it, a multiple of the channels kept:
size = c + Σ_g m_g·k_g. An op's MACs are products of such sizes (profiles.macs), so a model's costs are polynomials in
the widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.core.costs import Costs
from secateur.profiles.count import peak_activation_bytes
from secateur.profiles.graph import shape
from secateur.profiles.macs import mac_terms

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Products:
    """Σ constant × Π sizes[rows]: rows are padded with row 0, whose size is 1."""

    constants: Floats
    rows: NDArray[np.int64]

    def terms(self, sizes: Floats) -> Floats:
        return self.constants * sizes[self.rows].prod(axis=1)


class CostModel:
    """Costs of a traced model as a function of the channels kept in each prunable group, per sample."""

    def __init__(self, groups: ChannelGroups, batch: int) -> None:
        """`batch`: the batch size that the groups were traced with."""
        self._groups, self._batch = groups, batch
        self.names = tuple(group.name for group in groups.prunable)
        self.full = np.array([group.channels for group in groups.prunable], dtype=np.float64)
        self._group_of = np.full(len(groups.components.of), -1, dtype=np.int64)
        for position, group in enumerate(groups.prunable):
            self._group_of[group.components] = position
        self._sizes: list[tuple[float, Floats]] = [(1.0, np.zeros(len(self.names)))]
        self._row_of: dict[tuple[object, int], int] = {}
        self._macs = self._products([term for graph in groups.graphs for term in self._mac_rows(graph.compute)])
        self._params = self._products(list(self._parameter_rows()))
        self._activations = {
            node: self._products([self._tensor_rows(node)]) for graph in groups.graphs for node in graph.compute
            if isinstance(node.meta.get("val"), Tensor)
        }
        self._fixed = np.array([fixed for fixed, _ in self._sizes])
        self._slopes = np.stack([slope for _, slope in self._sizes])

    def widths(self, kept: Mapping[str, int]) -> Floats:
        """The vector of widths for a choice of channel counts; groups that are not named are whole."""
        return np.array([kept.get(name, full) for name, full in zip(self.names, self.full, strict=True)])

    def flops(self, widths: Floats) -> float:
        return 2 * float(self._macs.terms(self._at(widths)).sum()) / self._batch

    def params(self, widths: Floats) -> float:
        return float(self._params.terms(self._at(widths)).sum())

    def costs(self, widths: Floats) -> Costs:
        """All static costs; the same figures that profiles.count gives for the cut model."""
        sizes = self._at(widths)
        params = round(float(self._params.terms(sizes).sum()))
        weights = sum(self._state_bytes(sizes))
        peak = max(
            peak_activation_bytes(graph, lambda node: self._bytes(node, sizes)) for graph in self._groups.graphs
        )
        return Costs(round(self.flops(widths)), params, round(peak / self._batch) + weights, weights)

    def _at(self, widths: Floats) -> Floats:
        return self._fixed + self._slopes @ widths

    def _bytes(self, node: Node, sizes: Floats) -> int:
        value = node.meta["val"]
        products = self._activations.get(node)
        count = float(products.terms(sizes).sum()) if products else value.numel()
        return round(count) * value.element_size()

    def _row(self, key: tuple[object, int], size: int, channels: NDArray[np.int64] | None) -> int:
        if key not in self._row_of:
            slope = np.zeros(len(self.names))
            if channels is not None:
                positions = self._group_of[self._groups.components.of[channels]]
                found, counts = np.unique(positions[positions >= 0], return_counts=True)
                slope[found] = counts / self.full[found]
            self._row_of[key] = len(self._sizes)
            self._sizes.append((size - float(slope @ self.full), slope))
        return self._row_of[key]

    def _node_row(self, node: Node, dim: int) -> int:
        labels = self._groups.labels.get(node, {})
        channels = labels.get(dim) if isinstance(labels, dict) else None
        return self._row((node, dim), shape(node)[dim], channels)

    def _mac_rows(self, nodes: tuple[Node, ...]):  # type: ignore[no-untyped-def]
        for node in nodes:
            for term in mac_terms(node):
                yield float(term.constant), [self._node_row(*factor) for factor in term.factors]

    def _tensor_rows(self, node: Node) -> tuple[float, list[int]]:
        return 1.0, [self._node_row(node, dim) for dim in range(len(shape(node)))]
