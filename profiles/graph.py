"""The one trace of a model: torch.export's ATen graph, with what every reader of it asks for.

Costs, channel dataflow and the pruning oracle all read this graph. It is taken *before* decomposition, because that
form still shows what later passes remove: branches whose result is dropped, and `chunk` as the user wrote it. Only
where the forward writes to a tensor through a view (`x[:, :4] += y`), which that form cannot express as a flow of
values, or runs a part of itself under autocast or no_grad, which that form keeps as graphs of their own, the graph is
made functional first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from secateur.core.errors import ModelError, described
from secateur.core.inputs import arguments, leaves, takes_task
from secateur.core.modes import forget, modes_kept

SPREADING = frozenset(("expand", "expand_as", "broadcast_to", "repeat", "tile"))
"""Ops that give a dimension of one value any size."""
FILLED = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
"""Ops that make a tensor of one value."""
VIEWS = frozenset(
    ("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "select",
     "slice", "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "contiguous", "view_as", "movedim",
     "narrow", "getitem")
)  # fmt: skip
"""Ops whose result shares the memory of their input (as counted here)."""


@dataclass(frozen=True)
class Graph:
    """A traced model.

    Attributes:
        nodes: calls in execution order, dead ones included.
        state: placeholder → name of the parameter or buffer in the model.
        constants: placeholder → tensor that the forward made itself.
        inputs: placeholders of the user's tensors, in the order of `secateur.core.inputs.tensors`.
        outputs: nodes of the user's outputs, in order.
        output_names: for each output, its keys in the model's (nested) output, joined with dots.
    """

    nodes: tuple[Node, ...]
    state: Mapping[Node, str]
    constants: Mapping[Node, Tensor]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    output_names: tuple[str, ...]
    returned: tuple[Any, ...] = field(repr=False, default=())
    out_spec: Any = field(repr=False, default=None)

    @cached_property
    def live(self) -> frozenset[Node]:
        """Nodes that some output depends on; the rest is computed and dropped."""
        return ancestors(self.outputs)

    def unflatten(self, values: Sequence[Any]) -> Any:
        """The user's (nested) output from the values of `outputs`."""
        filled = dict(zip(self.outputs, values, strict=True))
        leaves = [filled[leaf] if isinstance(leaf, Node) else leaf for leaf in self.returned]
        return leaves if self.out_spec is None else pytree.tree_unflatten(leaves, self.out_spec)

    @cached_property
    def compute(self) -> tuple[Node, ...]:
        """Live calls, in execution order."""
        return tuple(node for node in self.nodes if node in self.live)


def ancestors(nodes: Iterable[Node]) -> frozenset[Node]:
    """The nodes themselves and everything they are computed from."""
    seen: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return frozenset(seen)


def op_name(node: Node) -> str:
    """`aten.add_.Tensor` → `add`: the name of the op without overload and in-place mark; `getitem` for picking."""
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target._schema.name.split("::")[-1]
        return name[:-1] if name.endswith("_") and not name.startswith("_") else name
    return getattr(node.target, "__name__", str(node.target))


def module_path(node: Node) -> str:
    """The path of the module whose forward made this call; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", ""))[0] if stack else ""
    return str(path).split("@")[0]


def module_kind(node: Node) -> str:
    """The class name of the module whose forward made this call."""
    stack = node.meta.get("nn_module_stack") or {}
    kind = next(reversed(stack.values()), ("", ""))[1] if stack else ""
    return (kind if isinstance(kind, str) else kind.__name__).rsplit(".", 1)[-1]


def shape(node: Node) -> tuple[int, ...]:
    """The shape of the tensor that a node stands for; empty for anything else."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def is_in_place(node: Node) -> bool:
    """Whether a call writes its result over its first operand, as `relu_` does."""
    return getattr(node.target, "_schema", None) is not None and node.target._schema.name.endswith("_")  # type: ignore[union-attr]


def capture(model: nn.Module, inputs: Any, *, training: bool = False, task: str | None = None) -> Graph:
    """Trace a model on an input, with fixed shapes.

    Args:
        inputs: a tensor, or a tuple or dict of tensors, any batch size.
        training: trace `model.train()`, which shows branches that only training runs.
        task: for models called as `forward(x, task)`.

    Raises:
        ModelError: when torch.export cannot trace the model.
    """
    with modes_kept(model):
        model.train(training)
        args, kwargs = arguments(model, inputs)
        program = _export(model, args, kwargs if task is None else {**kwargs, "task": task})
    branches = _nested(program)
    if branches:
        place = module_path(branches[0]) or "the model"
        raise ModelError(
            f"{place} chooses while it runs what to compute ({op_name(branches[0])})",
            "take the branch out of forward, or wrap the part that always runs",
        )
    return _read(program)


def capture_tasks(model: nn.Module, inputs: Any, tasks: Collection[str], *, training: bool = False) -> list[Graph]:
    """One graph per call that the model's tasks need: a single one, unless tasks are called one at a time."""
    if takes_task(model):
        if not tasks:
            raise ModelError("the model is called one task at a time", "name its tasks")
        return [capture(model, inputs, training=training, task=task) for task in tasks]
    return [capture(model, inputs, training=training)]


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    failures = []
    for strict in (False, True):
        forget(model)  # what was kept would be constants of the graph
        try:
            with _quiet():
                program = torch.export.export(model, args, kwargs, strict=strict)
                _refuse_open_sizes(program)
                return program.run_decompositions({}) if _writes_unseen(program) or _nested(program) else program
        except ModelError:
            raise
        except Exception as error:  # torch.export raises errors of many unrelated types
            failures.append(error)
    first = failures[0]
    raise ModelError(
        f"torch.export cannot trace the model: {described(first)}",
        "remove control flow that depends on tensor values from forward, or wrap the traceable part; "
        "--debug shows the whole message",
    ) from first


def _refuse_open_sizes(program: torch.export.ExportedProgram) -> None:
    """Raises ModelError where a tensor's size depends on the values of the input, as the choices of a router do."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            owner = module_path(node) or "the model"
            raise ModelError(
                f"the size of what {owner} computes depends on the values of its input ({op_name(node)})",
                "compute with masks of a fixed size; of a mixture of experts extract what a task needs (--method "
                "experts), which needs no such trace",
            )


def _nested(program: torch.export.ExportedProgram) -> list[Node]:
    """Calls that run graphs of their own: the parts under autocast or no_grad, the branches of a condition."""
    nodes = program.graph.nodes
    return [node for node in nodes if any(used.op == "get_attr" for used in node.all_input_nodes)]


def _writes_unseen(program: torch.export.ExportedProgram) -> bool:
    """Whether some call writes to memory that a later call reads under another name, so that the graph does not show
    that one depends on the other."""
    order = {node: step for step, node in enumerate(program.graph.nodes)}
    memory: dict[Node, Node] = {}
    sharing: dict[Node, list[Node]] = {}
    for node in order:
        shares = node.all_input_nodes and (is_in_place(node) or op_name(node) in VIEWS | {"dropout"})
        memory[node] = memory[node.all_input_nodes[0]] if shares else node
        sharing.setdefault(memory[node], []).append(node)
    return any(
        order[reader] > order[write]
        for write in order
        if is_in_place(write)
        for alias in sharing[memory[write]]
        if order[alias] < order[write]
        for reader in alias.users
        if reader is not write
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and warns about its own internals; users cannot act on that."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _read(program: torch.export.ExportedProgram) -> Graph:
    graph = program.graph
    by_name = {node.name: node for node in graph.nodes}
    state, constants, given = {}, {}, list[Any]()
    for spec in program.graph_signature.input_specs:
        node = by_name[spec.arg.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            state[node] = str(spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[node] = program.constants[str(spec.target)]
        elif spec.kind is InputKind.USER_INPUT:
            given.append(node if isinstance(node.meta.get("val"), Tensor) else None)
    mutated = len(program.graph_signature.output_specs) - len(program.graph_signature.user_outputs)
    returned = list(graph.output_node().args[0])[mutated:]
    outputs = tuple(dict.fromkeys(leaf for leaf in returned if isinstance(leaf, Node)))
    return Graph(
        nodes=tuple(node for node in graph.nodes if node.op == "call_function"),
        state=state,
        constants=constants,
        inputs=tuple(node for _, node in leaves(pytree.tree_unflatten(given, program.call_spec.in_spec))),
        outputs=outputs,
        output_names=_output_names(returned, program.call_spec.out_spec),
        returned=tuple(returned),
        out_spec=program.call_spec.out_spec,
    )


def _output_names(returned: list[Any], spec: Any) -> tuple[str, ...]:
    """Each output's place in the user's nested output: `depth`, `heads.depth` or `0`; empty for a bare tensor."""
    names: dict[Node, str] = {}
    nested = returned if spec is None else pytree.tree_unflatten(returned, spec)
    for path, leaf in pytree.tree_flatten_with_path(nested)[0]:
        if isinstance(leaf, Node):
            name = ".".join(map(_key, path))
            names.setdefault(leaf, name)
    return tuple(names.values())


def _key(entry: Any) -> str:
    """A dict's key, a place in a sequence or the name of a field."""
    found = (getattr(entry, kind, None) for kind in ("key", "idx", "name"))
    return str(next((value for value in found if value is not None), entry))
