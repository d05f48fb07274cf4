"""Sizes that modules keep in attributes: which of them count channels, so that a cut can rewrite them.

    self.num_heads = 8          counts the heads that `view(b, n, 3, self.num_heads, -1)` splits off
    self.dims = (32, 32, 128)   count the parts of `x.split(self.dims, dim=1)`

An attribute counts channels when its value is the size of a labelled dimension in a call that its module's own code
makes with explicit sizes, or of one that comes in, where the code checks that it is (`assert x.shape[-1] == self.dim`).
That is a guess; trial cuts verify it. Attributes that the code only compares with each other or with numbers
(`if self.dim != self.dim_out: x = self.proj(x)`) are left alone: a cut would change what is run.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.compress.dataflow.groups import Index
from secateur.compress.dataflow.space import Channels, Components
from secateur.profiles.graph import FILLED, Graph, module_path, op_name, shape
from secateur.profiles.macs import RECURRENT, RECURRENT_CELLS, arguments

SIZED = frozenset(
    ("view", "reshape", "unflatten", "_unsafe_view", "split", "split_with_sizes", "slice", "narrow", "expand",
     "layer_norm", "rms_norm", "group_norm", "conv1d", "conv2d", "conv3d", "repeat", "unfold", "pixel_shuffle",
     "chunk", "flatten", "tensor_split", *RECURRENT, *RECURRENT_CELLS, *FILLED)
)  # fmt: skip
"""Ops that are told sizes."""

_OWN = (_ConvNd, nn.Linear, _NormBase, nn.Embedding, nn.PReLU)
"""Layers whose size attributes follow from their tensors."""

_ELSE = re.compile("class|image|img|patch|window|kernel|grid|stride|pad|dilation")
_OF_CHANNELS = re.compile("channel|feature|dim|width|hidden|embed|head")
"""What the name of an attribute has in it that counts something else than channels, though it may be as many; unless
it says that it counts them."""

Size = int | list[int]
Candidates = list[tuple[int, Index]]
"""Arrays of one size, each with how many others of that size stand before it in the same tensor."""
Parts = dict[tuple[int, ...], dict[int, Index]]
"""A list of sizes → its places → the components that they count."""


@dataclass(frozen=True, eq=False)
class Binding:
    """An integer attribute (or an entry of a sequence of integers) and the components that it counts."""

    module: str
    attribute: str
    position: int | None
    components: Index

    def size(self, alive: NDArray[np.bool_]) -> int:
        return int(alive[self.components].sum())


Constant = tuple[type, str]
"""A module class and an attribute of it that counts no channels, although it is as large as some dimension."""


def constant_of(binding: Binding, model: nn.Module) -> Constant:
    """What a binding would be a coincidence of."""
    return type(model.get_submodule(binding.module)), binding.attribute


def resized(bindings: Collection[Binding], model: nn.Module, gone: Index) -> dict[str, Size]:
    """The attributes that change when components go: `path.attribute` → new value."""
    changed: dict[str, Size] = {}
    alive = np.ones(max(int(b.components.max()) for b in bindings) + 1 if bindings else 0, dtype=bool)
    alive[gone[gone < len(alive)]] = False
    for binding in bindings:
        size = binding.size(alive)
        if size == len(binding.components):
            continue
        name = f"{binding.module}.{binding.attribute}" if binding.module else binding.attribute
        if binding.position is None:
            changed[name] = size
        else:
            whole = changed.setdefault(name, list(getattr(model.get_submodule(binding.module), binding.attribute)))
            whole[binding.position] = size  # type: ignore[index]
    return changed


def integers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """(attribute, position in a sequence or None, value) of a module's own sizes."""
    normless = isinstance(module, _NormBase) and not list(module.parameters()) and not list(module.buffers())
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and module.weight is not None:
        return
    if isinstance(module, _OWN) and not normless:
        return
    kind: Any = type(module)
    uses = _uses(kind)
    for name, value in (_class_attributes(kind) | vars(module)).items():
        if name in uses.compared or (_ELSE.search(name) and not _OF_CHANNELS.search(name)):
            continue
        if type(value) is int and value > 1:
            yield name, None, value
        elif isinstance(value, (tuple, list)) and value and all(type(entry) is int for entry in value):
            yield from ((name, place, entry) for place, entry in enumerate(value) if entry > 1)


@functools.cache
def _class_attributes(kind: Any) -> dict[str, Any]:
    """Attributes that a user's class holds for all of its instances."""
    return {name: value for base in _users(kind) for name, value in vars(base).items()}


@dataclass(frozen=True)
class _Uses:
    """What a class's methods, but for its constructor, do with attributes.

    Attributes:
        compared: only compared with each other or with numbers.
        checked: compared with something else, such as the size of a tensor; by torch's classes too.
    """

    compared: frozenset[str] = frozenset()
    checked: frozenset[str] = frozenset()


@functools.cache
def _uses(kind: Any) -> _Uses:
    compared: set[str] = set()
    checked: set[str] = set()
    elsewhere: set[str] = set()
    for base in kind.__mro__:
        if base in (nn.Module, object):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # no source at hand: nothing is known of it
            return _Uses()
        for method in ast.walk(tree):
            if isinstance(method, ast.FunctionDef) and method.name != "__init__" and method.args.args:
                own = [node for node in ast.walk(method) if _is_own(node, method.args.args[0].arg)]
                sides = [side for node in ast.walk(method) for side in _sides(node, own)]
                if base in _users(kind):
                    compared |= {node.attr for node in own if node in sides}
                elsewhere |= {node.attr for node in own if node not in sides}
                compares = [node for node in ast.walk(method) if isinstance(node, ast.Compare)]
                others = [side for node in compares for side in (node.left, *node.comparators) if side not in sides]
                checked |= {node.attr for node in own if node in others}
    return _Uses(frozenset(compared - elsewhere), frozenset(checked))


def _is_own(node: ast.AST, owner: str) -> TypeGuard[ast.Attribute]:
    """Whether this is `self.something`."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner


def _sides(node: ast.AST, own: Collection[ast.Attribute]) -> list[ast.expr]:
    """Both sides of `self.a != self.b` or `self.a != 1`; nothing of anything else."""
    if not isinstance(node, ast.Compare):
        return []
    sides = [node.left, *node.comparators]
    return sides if all(side in own or isinstance(side, ast.Constant) for side in sides) else []


def _users(kind: Any) -> list[Any]:
    """A class and its bases, without torch's."""
    return [base for base in reversed(kind.__mro__) if not base.__module__.startswith(("torch.", "builtins"))]


class Scopes:
    """Which sizes the code of each module can know: its own attributes, its children's, and its parents'."""

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        self._own = {path: frozenset(size for *_, size in integers(module)) for path, module in modules.items()}
        self._around: dict[str, frozenset[int]] = {}
        self._children = {path: [name for name, _ in module.named_children()] for path, module in modules.items()}

    def sizes(self, path: str) -> frozenset[int]:
        if path not in self._around:
            children = [f"{path}.{name}" if path else name for name in self._children.get(path, ())]
            near = [path, *_parents(path), *children]
            self._around[path] = frozenset().union(*(self._own.get(place, frozenset()) for place in near))
        return self._around[path]


def _parents(path: str) -> list[str]:
    """The two modules around a module."""
    found: list[str] = []
    while path and len(found) < 2:
        path = path.rpartition(".")[0]
        found.append(path)
    return found


def first_paths(model: nn.Module) -> dict[str, str]:
    """Every path of a module → the first one that it is known by; a shared module has several."""
    first = {module: path for path, module in model.named_modules()}
    return {path: first[module] for path, module in model.named_modules(remove_duplicate=False)}


def sized_tensors(
    model: nn.Module, graphs: Iterable[Graph], labels: Mapping[Node, Any]
) -> dict[str, list[list[Channels]]]:
    """For every module, by the first of its paths, the tensors of its own calls that are told sizes: the channels of
    their dimensions."""
    found: dict[str, list[list[Channels]]] = defaultdict(list)
    canonical = first_paths(model)
    for graph in graphs:
        for node in graph.nodes:
            if op_name(node) in SIZED:
                path = module_path(node)
                found[canonical.get(path, path)] += _tensors(node, labels)
    return found


def _tensors(node: Node, labels: Mapping[Node, Any]) -> Iterator[list[Channels]]:
    """Results first: their sizes are what the code says."""
    result = labels.get(node, {})
    for part in result if isinstance(result, list) else [result]:
        yield [part[dim] for dim in sorted(part)]
    for used in node.all_input_nodes:
        if isinstance(found := labels.get(used), dict):
            yield [found[dim] for dim in sorted(found)]
    if op_name(node) == "slice" and len(node.args) > 2 and isinstance(node.args[2], int):
        source, dim, start = node.args[:3]
        before = labels.get(source, {}).get(int(dim) % len(shape(node)))  # type: ignore[arg-type]
        if before is not None and 1 < start < len(before):  # type: ignore[operator]
            yield [before[:start]]


def bindings(
    model: nn.Module,
    graphs: Collection[Graph],
    labels: Mapping[Node, Any],
    components: Components,
    constants: Collection[Constant] = (),
) -> tuple[Binding, ...]:
    """The attributes that count channels which may be cut, but for those that are known not to."""
    cuttable, parts = _cuttable(components), _listed_parts(model, graphs, labels, components)
    arrays = {
        path: _by_size([[components.of[channels] for channels in tensor] for tensor in found], cuttable)
        for path, found in sized_tensors(model, graphs, labels).items()
    }
    found: list[Binding] = []
    for path, module in model.named_modules():
        found += _bind(path, module, arrays.get(path, {}), parts.get(path, {}))
    bound = {(binding.module, len(binding.components)) for binding in found}
    for path, module in model.named_modules():
        for child, _ in module.named_children():
            inner = f"{path}.{child}" if path else child
            for binding in _bind(path, module, arrays.get(inner, {})):
                if not {(path, len(binding.components)), (inner, len(binding.components))} & bound:
                    found.append(binding)
    found += _checked(model, graphs, labels, components, found)
    return tuple(binding for binding in found if constant_of(binding, model) not in constants)


def _checked(
    model: nn.Module,
    graphs: Collection[Graph],
    labels: Mapping[Node, Any],
    components: Components,
    bound: Collection[Binding],
) -> Iterator[Binding]:
    """The attributes, of those that are not bound, that code compares with the size of what its module is given."""
    cuttable, known = _cuttable(components), {(binding.module, binding.attribute) for binding in bound}
    for path, module in model.named_modules():
        kind: Any = type(module)
        if checked := _uses(kind).checked:
            tensors = [labels.get(node) for graph in graphs for node in given(path, graph)]
            arrays = [[components.of[dims[dim]] for dim in sorted(dims)] for dims in tensors if isinstance(dims, dict)]
            for binding in _bind(path, module, _by_size(arrays, cuttable)):
                if binding.attribute in checked and (path, binding.attribute) not in known:
                    yield binding


def given(path: str, graph: Graph) -> list[Node]:
    """The tensors that a module is given, the model's state aside."""
    used = dict.fromkeys(used for node in graph.nodes if within(node, path) for used in node.all_input_nodes)
    return [node for node in used if not within(node, path) and node not in graph.state]


def within(node: Node, path: str) -> bool:
    """Whether a call is made inside a module."""
    own = module_path(node)
    return node.op == "call_function" and (own == path or own.startswith(f"{path}.") or not path)


def _bind(
    path: str, module: nn.Module, arrays: Mapping[int, Candidates], parts: Parts | None = None
) -> Iterator[Binding]:
    """The attributes of one module: whole lists of sizes that a call splits by first; entries of other lists only where
    `parts` are given."""
    own = list(integers(module)) if arrays else []
    scalars = {size for _, place, size in own if place is None}
    met: dict[tuple[str, int], int] = defaultdict(int)
    listed = {name: parts[key] for name, key in _lists(module, own) if key in parts} if parts else {}
    for name, place, size in own:
        if name in listed and place in listed[name]:
            yield Binding(path, name, place, listed[name][place])
        if size not in arrays or name in listed:
            continue
        if place is None:
            yield Binding(path, name, None, _fitting(name, arrays[size]))
        elif parts is not None and size not in scalars:
            candidates = arrays[size]
            yield Binding(path, name, place, candidates[min(met[name, size], len(candidates) - 1)][1])
            met[name, size] += 1


def _lists(module: nn.Module, own: Iterable[tuple[str, int | None, int]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(attribute, value) of a module's own sequences of sizes."""
    for name in dict.fromkeys(name for name, place, _ in own if place is not None):
        yield name, tuple(getattr(module, name))


def _listed_parts(
    model: nn.Module, graphs: Iterable[Graph], labels: Mapping[Node, Any], components: Components
) -> dict[str, Parts]:
    """For every module the lists of sizes that its own calls split by → the channels of each labelled part."""
    found: dict[str, Parts] = defaultdict(dict)
    canonical = first_paths(model)
    for graph in graphs:
        for node in graph.nodes:
            sizes = node.args[1] if op_name(node) in ("split", "split_with_sizes") else None
            if isinstance(sizes, (list, tuple)) and isinstance(labels.get(node), list):
                dim = int(arguments(node).get("dim") or 0) % len(shape(node.args[0]))  # type: ignore[arg-type]
                parts = {place: components.of[part[dim]] for place, part in enumerate(labels[node]) if dim in part}
                path = module_path(node)
                found[canonical.get(path, path)].setdefault(tuple(map(int, sizes)), parts)
    return found


_WIDTHS = re.compile("dim|size|width|channel|^d_")
"""What the name of an attribute has in it that counts channels, rather than heads or groups of them."""


def _fitting(name: str, candidates: Candidates) -> Index:
    """Of several dimensions of one size, heads come before their width in every layout that is written."""
    place, behind = candidates[-1]
    return behind if place and _WIDTHS.search(name) else candidates[0][1]


def _by_size(tensors: Iterable[Sequence[Index]], cuttable: NDArray[np.bool_]) -> dict[int, Candidates]:
    """Distinct arrays of channels that may be cut, by size: those that stand behind others of their size come last."""
    found: dict[int, dict[bytes, tuple[int, Index]]] = defaultdict(dict)
    for tensor in tensors:
        met: Counter[int] = Counter()
        for array in tensor:
            size = len(array)
            if size > 1 and cuttable[array].any():
                place, _ = found[size].get(array.tobytes(), (0, array))
                found[size][array.tobytes()] = max(place, met[size]), array
            met[size] += 1
    return {size: sorted(own.values(), key=itemgetter(0)) for size, own in found.items()}


def _cuttable(components: Components) -> NDArray[np.bool_]:
    """For every component, whether some part of it may be removed."""
    every = np.unique(components.of)
    fixed = np.fromiter(components.why, dtype=np.int64, count=len(components.why))
    found = np.zeros(int(components.of.max(initial=-1)) + 1, dtype=bool)
    found[components.closure(np.setdiff1d(every[~np.isin(every, list(components.pairs))], fixed))] = True
    return found
