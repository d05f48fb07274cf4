"""CostModel: FLOPs, parameters, memory and operators of a model at any widths, in microseconds, cutting nothing.

Every dimension of every tensor is a fixed part plus, for each group that labels it, a multiple of the channels kept:
size = c + Σ_g m_g·k_g; where heads and their width are groups of their own, products k_g·k_h stand in that sum as well.
An op's MACs are products of such sizes (profiles.macs), so a model's costs are polynomials in the widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from secateur.compress.channel_map import tensor_aliases
from secateur.compress.dataflow.channel_groups import ChannelGroups
from secateur.compress.dataflow.groups import Member
from secateur.compress.dataflow.space import Channels
from secateur.core.costs import Costs
from secateur.profiles.count import PerSample, peak_activation_bytes, per_sample
from secateur.profiles.graph import shape
from secateur.profiles.latency.operators import Operator
from secateur.profiles.latency.traced import AnyStep, read_graph
from secateur.profiles.macs import Factor, mac_terms

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Products:
    """Σ constant × Π sizes[rows]: rows are padded with row 0, whose size is 1."""

    constants: Floats
    rows: NDArray[np.int64]

    def terms(self, sizes: Floats) -> Floats:
        found: Floats = self.constants * sizes[self.rows].prod(axis=1)
        return found


class CostModel:
    """Costs of a traced model as a function of the channels kept in each prunable group, per sample."""

    def __init__(self, groups: ChannelGroups) -> None:
        self._graphs = groups.graphs
        self._samples = [per_sample(graph) for graph in groups.graphs]
        self.names = tuple(group.name for group in groups.prunable)
        self.full = np.array([group.channels for group in groups.prunable], dtype=np.float64)
        self._table = _SizeTable(groups)
        state = {id(tensor): (name, tensor) for name, tensor in groups.model.state_dict(keep_vars=True).items()}
        trainable = dict(groups.model.named_parameters())
        self._state_names, self._trainable = [name for name, _ in state.values()], frozenset(trainable)
        self._state_bytes = np.array([float(tensor.element_size()) for _, tensor in state.values()])
        self._state = _products([self._table.tensor(name, tensor) for name, tensor in state.values()])
        self._params = _products([self._table.tensor(name, tensor) for name, tensor in trainable.items()])
        macs = [
            (node, row)
            for sample in self._samples
            for node in sample.graph.compute
            for row in self._mac_rows(sample, node)
        ]
        self._mac_nodes, self._macs = [node for node, _ in macs], _products([row for _, row in macs])
        self._outputs = [
            {node: row for row, node in enumerate(n for n in graph.compute if isinstance(n.meta.get("val"), Tensor))}
            for graph in groups.graphs
        ]
        self._activations = [_products([self._table.node(node) for node in found]) for found in self._outputs]
        self._fixed, self._slopes = self._table.arrays()

    def widths(self, kept: Mapping[str, int]) -> Floats:
        """The vector of widths for a choice of channel counts; groups that are not named are whole."""
        return np.array([kept.get(name, full) for name, full in zip(self.names, self.full, strict=True)])

    def flops(self, widths: Floats) -> float:
        """FLOPs per sample."""
        return 2 * float(self._macs.terms(self._at(widths)).sum())

    def call_flops(self, widths: Floats) -> dict[Node, float]:
        """FLOPs per sample of every call that has any."""
        found: dict[Node, float] = {}
        for node, macs in zip(self._mac_nodes, self._macs.terms(self._at(widths)), strict=True):
            found[node] = found.get(node, 0.0) + 2 * float(macs)
        return found

    def tensor_sizes(self, widths: Floats) -> dict[str, tuple[float, float, bool]]:
        """Parameter or buffer → (elements, bytes, whether it is a parameter), shared ones once."""
        elements = self._state.terms(self._at(widths))
        return {
            name: (float(count), float(count * size), name in self._trainable)
            for name, count, size in zip(self._state_names, elements, self._state_bytes, strict=True)
        }

    def params(self, widths: Floats) -> float:
        return float(self._params.terms(self._at(widths)).sum())

    def costs(self, widths: Floats) -> Costs:
        """All static costs; the same figures that profiles.count gives for the cut model."""
        sizes = self._at(widths)
        weights = round(float(self._state.terms(sizes) @ self._state_bytes))
        peak = max(
            peak_activation_bytes(sample.graph, _bytes_of(sample, rows, products.terms(sizes)))
            for sample, rows, products in zip(self._samples, self._outputs, self._activations, strict=True)
        )
        flops, params = round(self.flops(widths)), round(float(self._params.terms(sizes).sum()))
        return Costs(flops, params, peak + weights, weights)

    def operators(self, widths: Floats) -> list[Operator]:
        """What a runtime executes for one sample; the same operators as of the cut model's ONNX file, without names."""
        return [operator for _, operator in self.call_operators(widths)]

    def call_operators(self, widths: Floats) -> list[tuple[Node | None, Operator]]:
        """The operators, each with the call of the graph that it belongs to."""
        steps, rows = self._steps
        sizes = np.rint(self._at(widths)).astype(np.int64).tolist()

        def size(node: Node, dim: int) -> int:
            return int(sizes[rows[node, dim]])

        return [(step.call, operator) for step in steps for operator in step.operators(size)]

    @cached_property
    def _steps(self) -> tuple[list[AnyStep], dict[Factor, int]]:
        """Steps of all graphs, and each dimension's row in the table of sizes, which grows by those."""
        steps = [replace(step, name="") for graph in self._graphs for step in read_graph(graph)]
        rows = {factor: self._table.node_dim(*factor) for step in steps for factor in step.factors}
        self._fixed, self._slopes = self._table.arrays()
        return steps, rows

    def _at(self, widths: Floats) -> Floats:
        return self._fixed + self._slopes @ self._table.monomials(widths)

    def _mac_rows(self, sample: PerSample, node: Node) -> list[_Row]:
        batch = sample.batch if node in sample.batched else 1
        return [
            (term.constant / batch, [self._table.node_dim(*factor) for factor in term.factors])
            for term in mac_terms(node)
        ]


_Row = tuple[float, list[int]]


def _products(rows: list[_Row]) -> _Products:
    longest = max((len(factors) for _, factors in rows), default=0)
    padded = np.zeros((len(rows), longest), dtype=np.int64)
    for line, (_, factors) in zip(padded, rows, strict=True):
        line[: len(factors)] = factors
    return _Products(np.array([constant for constant, _ in rows]), padded)


def _bytes_of(sample: PerSample, rows: Mapping[Node, int], counts: Floats) -> Callable[[Node], int]:
    def bytes_of(node: Node) -> int:
        if node not in rows:
            return sample.bytes(node)
        return sample.share(node, round(counts[rows[node]]) * node.meta["val"].element_size())

    return bytes_of


class _SizeTable:
    """Rows `size = fixed + slope · monomials`, one per distinct dimension; row 0 is the constant 1. Monomials are the
    widths, and their products where a dimension runs over several groups."""

    def __init__(self, groups: ChannelGroups) -> None:
        self._labels, self._components = groups.labels, groups.components.of
        self._full = np.array([group.channels for group in groups.prunable], dtype=np.float64)
        self._products: dict[tuple[int, ...], int] = {(at,): at for at in range(len(self._full))}
        self._rows: list[tuple[float, dict[int, float]]] = [(1.0, {})]
        self._seen: dict[object, int] = {}
        self._of_component = self._products_of_components(groups)
        self._members: dict[tuple[str, int], list[tuple[int, Member]]] = {}
        aliases = tensor_aliases(groups.model)
        for position, group in enumerate(groups.prunable):
            for member in group.members:
                for name in aliases.get(member.parameter, ()):
                    self._members.setdefault((name, member.dim), []).append((position, member))

    def monomials(self, widths: Floats) -> Floats:
        """The widths, then the products of widths that occur."""
        longer = [factors for factors in self._products if len(factors) > 1]
        return np.concatenate([widths, [widths[list(factors)].prod() for factors in longer]])

    def arrays(self) -> tuple[Floats, Floats]:
        slopes = np.zeros((len(self._rows), len(self._products)))
        for row, (_, multiples) in enumerate(self._rows):
            slopes[row, list(multiples)] = list(multiples.values())
        return np.array([fixed for fixed, _ in self._rows]), slopes

    def tensor(self, name: str, tensor: Tensor) -> _Row:
        """The number of elements of a parameter or buffer."""
        return 1.0, [self._member_row(name, dim, size) for dim, size in enumerate(tensor.shape)]

    def node(self, node: Node) -> _Row:
        """The number of elements of a call's result."""
        return 1.0, [self.node_dim(node, dim) for dim in range(len(shape(node)))]

    def node_dim(self, node: Node, dim: int) -> int:
        labels = self._labels.get(node, {})
        channels = labels.get(dim) if isinstance(labels, dict) else None
        if channels is None:
            return self._row(shape(node)[dim], shape(node)[dim], {})
        return self._row((node, dim), shape(node)[dim], self._counted(self._of_component[self._components[channels]]))

    def _member_row(self, name: str, dim: int, size: int) -> int:
        members = self._members.get((name, dim))
        if not members:
            return self._row(size, size, {})
        times = np.stack([np.bincount(member.index.ravel(), minlength=size) for _, member in members], axis=1)
        rows, which = np.unique(times, axis=0, return_inverse=True)
        positions = np.array([position for position, _ in members])
        products = [self._product(tuple(np.repeat(positions, row).tolist())) for row in rows]
        return self._row((name, dim), size, self._counted(np.array(products)[which.ravel()]))

    def _products_of_components(self, groups: ChannelGroups) -> Channels:
        """Component → the monomial that counts it; -1 for what stays."""
        position = np.full(groups.components.of.max(initial=-1) + 1, -1, dtype=np.int64)
        for at, group in enumerate(groups.prunable):
            position[group.components] = at
        found = position.copy()
        for pair, parts in groups.components.parts().items():
            found[pair] = self._product(tuple(sorted(int(at) for at in position[parts] if at >= 0)))
        return found

    def _product(self, factors: tuple[int, ...]) -> int:
        return self._products.setdefault(factors, len(self._products)) if factors else -1

    def _counted(self, products: Channels) -> dict[int, float]:
        """Monomial → how often one channel of it stands in a dimension."""
        found, counts = np.unique(products[products >= 0], return_counts=True)
        full = self.monomials(self._full)
        return {int(at): count / full[at] for at, count in zip(found, counts, strict=True)}

    def _row(self, key: object, size: int, multiples: Mapping[int, float]) -> int:
        if key not in self._seen:
            self._seen[key] = len(self._rows)
            full = self.monomials(self._full)
            fixed = size - sum(multiple * float(full[at]) for at, multiple in multiples.items())
            self._rows.append((fixed, dict(multiples)))
        return self._seen[key]
