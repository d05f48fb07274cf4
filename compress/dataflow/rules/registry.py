"""The rule table: one small function per family of ops says what an op does to the channels of its operands.

    @rule("glu")
    def glu(op: Op) -> Labels:
        ...

A rule reads the labels of the op's tensor arguments, ties or fixes channels, says what a weight makes and reads, and
returns the labels of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from secateur.compress.dataflow.space import Channels, Space
from secateur.profiles.graph import SPREADING, module_path, op_name, shape
from secateur.profiles.macs import arguments

Labels = dict[int, Channels]
"""dimension → its channels; dimensions that are not listed have a fixed size."""

Rule = Callable[["Op"], "Labels | list[Labels]"]
_RULES: dict[str, Rule] = {}
_COUNTING: set[str] = set()


def rule(*names: str, counting: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for ops by bare name (`conv2d`, for all overloads and the in-place form).

    Args:
        counting: the result depends on how many channels there are (a layer norm, a softmax): masks run the op on those
            that stay.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name] = function
            (_COUNTING.add if counting else _COUNTING.discard)(name)
        return function

    return register


def rules() -> dict[str, Rule]:
    """All registered rules, by the names of their ops."""
    return dict(_RULES)


def is_counting(name: str) -> bool:
    """Whether the rule of an op says that its result depends on how many channels there are."""
    return name in _COUNTING


def find_rule(node: Node) -> Rule | None:
    """The rule of an op: by name, else the pointwise one where torch declares the op pointwise."""
    found = _RULES.get(op_name(node))
    if found is None and isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        return _RULES["pointwise"]
    return found


class Op:
    """One call in the graph, as a rule sees it: arguments by their schema names, labels of its tensors, the space."""

    def __init__(
        self, node: Node, labels: dict[Node, Any], space: Space, attributes: Collection[int] | None = None
    ) -> None:
        self.node, self.space, self._labels, self._attributes = node, space, labels, attributes
        self.name, self.shape = op_name(node), shape(node)
        self.args = _named_arguments(node)

    @property
    def where(self) -> str:
        """`op in module`, for messages."""
        return f"{self.name} in {module_path(self.node) or 'the model'}"

    def is_attribute(self, size: int) -> bool:
        """Whether the module whose code makes this call, or one next to it, holds the size in an attribute, so that
        the code may follow when it changes. True where the modules are not known."""
        return self._attributes is None or size in self._attributes

    def __getitem__(self, name: str) -> Any:
        """An argument by its schema name: a python value, a Node, or a list of them."""
        return self.args[name]

    def labels(self, argument: str | Node) -> Labels:
        """The labels of a tensor argument; empty when it is absent or no tensor."""
        node = self.args.get(argument) if isinstance(argument, str) else argument
        found = self._labels.get(node, {}) if isinstance(node, Node) else {}
        return found if isinstance(found, dict) else {}

    def shape_of(self, argument: str | Node) -> tuple[int, ...]:
        node = self.args[argument] if isinstance(argument, str) else argument
        return shape(node) if isinstance(node, Node) else ()

    def is_spread(self, argument: str | Node, dim: int) -> bool:
        """Whether a tensor is one value over a dimension (`norm.expand(shape)`), so that any of its channels may go."""
        node = self.args[argument] if isinstance(argument, str) else argument
        if not isinstance(node, Node) or op_name(node) not in SPREADING:
            return False
        source = node.all_input_nodes[0]
        own = dim - len(shape(node)) + len(shape(source))
        return own < 0 or shape(source)[own] == 1

    def dim(self, name: str, of: str | Node) -> int:
        """A dimension argument, counted from the front."""
        return int(self.args[name]) % max(len(self.shape_of(of)), 1)

    @property
    def tensors(self) -> list[Node]:
        """All tensor operands, those in lists included."""
        return [node for node in self.node.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]

    @property
    def returns(self) -> int:
        """How many tensors the op returns."""
        return len(self.node.target._schema.returns)  # type: ignore[union-attr]

    def weight(self, argument: str | Node, *, makes: Collection[int] = (), reads: Collection[int] = ()) -> None:
        """Say which dimensions of a weight make channels of the result, and which read those of an operand. Groups are
        named after the weights that make them, and judged by these weights' values."""
        labels = self.labels(argument)
        self.space.made += [labels[dim] for dim in makes if dim in labels]
        self.space.read += [labels[dim] for dim in reads if dim in labels]

    def fix(self, channels: Channels | None, why: str = "") -> None:
        """Fix channels, if there are any; the reason names the op and the module."""
        if channels is not None:
            self.space.fix(channels, f"{why} ({self.where})" if why else self.where)

    def tie(self, one: Channels | None, other: Channels | None, why: str = "meets a tensor of fixed size") -> None:
        """Tie two dimensions' channels; where only one of them is labelled, it is fixed."""
        if one is not None and other is not None:
            self.space.tie(one, other)
        else:
            self.fix(one if other is None else other, why)


def _named_arguments(node: Node) -> dict[str, Any]:
    """With those left at their defaults; the first tensor is `self`, as most schemas call it."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return dict(enumerate(node.args)) | dict(node.kwargs)  # type: ignore[return-value]
    defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}
    return {"self" if name == "input" else name: value for name, value in (defaults | arguments(node)).items()}
