"""A model as hls4ml can take it: modules of a short list in a plain graph, or the reasons why it cannot be.

    prepare(model, workload).graph            # a torch.fx.GraphModule; batch norms folded, dropout gone

hls4ml reads a graph of modules. What can be said in its words is rewritten (functional ReLU, a mean over an image);
everything else is refused before any conversion, all reasons at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from secateur.core.errors import ExportError, SecateurError, described
from secateur.core.inputs import filled, leaves
from secateur.core.predict import evaluating, predict
from secateur.core.task import Workload

SUPPORTED = (
    "Conv2d (no groups, no dilation, zero padding), Linear on vectors, BatchNorm2d, ReLU, Sigmoid, Tanh, MaxPool2d and "
    "AvgPool2d (stride = kernel, no padding), a mean over the whole image, nearest Upsample by whole numbers, Flatten, "
    "Dropout, addition, concatenation of channels"
)
LAYERS_WITH_WEIGHTS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Prepared:
    """A graph of supported modules with static shapes (in `node.meta["shape"]`, without the batch), and the node that
    computes each task."""

    graph: fx.GraphModule
    outputs: dict[str, fx.Node]
    input_shape: tuple[int, ...]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.graph.graph.nodes)


def prepare(model: nn.Module, workload: Workload) -> Prepared:
    """Trace a model and bring it into the form that hls4ml takes; the model itself is not changed.

    Raises:
        ExportError: it cannot be traced, or uses what hls4ml does not support; the message lists every reason.
    """
    args = [value for _, value in leaves(workload.example_input)]
    if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dtype != torch.float32:
        raise ExportError("an FPGA design takes one image in float32", "put the rest into the model as constants")
    with evaluating(model):
        graph = _fold(_trace(model, workload))
    _rewrite(graph, args[0][:1])
    prepared = Prepared(graph, _outputs(graph, workload), tuple(args[0].shape[1:]))
    if problems := _problems(prepared):
        raise ExportError(f"hls4ml cannot take this model: {'; '.join(problems)}", f"it takes: {SUPPORTED}")
    return prepared


class _Tasks(nn.Module):
    def __init__(self, model: nn.Module, workload: Workload) -> None:
        super().__init__()
        self.model = model
        self._example, self._tasks = workload.example_input, workload.tasks

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        return tuple(predict(self.model, filled(self._example, [x]), self._tasks).values())


def _trace(model: nn.Module, workload: Workload) -> fx.GraphModule:
    try:
        graph = fx.symbolic_trace(_Tasks(model, workload))
    except SecateurError:
        raise
    except Exception as error:  # whatever the user's forward does with a proxy
        raise ExportError(
            f"torch.fx cannot trace the model: {described(error, 160)}",
            "hls4ml takes plain CNNs; take control flow that depends on values or shapes out of forward",
        ) from error
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        node.type = None  # annotations as text, which a graph cannot be stored with
    graph.recompile()
    return graph


def _fold(graph: fx.GraphModule) -> fx.GraphModule:
    """Batch norms into the convolutions before them."""
    from torch.fx.experimental.optimization import fuse

    return cast(fx.GraphModule, fuse(graph))


def _rewrite(graph: fx.GraphModule, example: Tensor) -> None:
    """Functions as modules where there is one, dropout and identity as nothing, a mean over an image as pooling."""
    ShapeProp(graph).propagate(example)
    for node in list(graph.graph.nodes):
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Dropout, nn.Dropout2d, nn.Identity)) or node.target is F.dropout:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif (made := _as_modules(node, module)) is not None:
            _replace(graph, node, made)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    ShapeProp(graph).propagate(example)
    for node in graph.graph.nodes:
        meta = node.meta.get("tensor_meta")
        node.meta["shape"] = tuple(getattr(meta, "shape", ())[1:])


_FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    "tanh": nn.Tanh,
}


def _as_modules(node: fx.Node, module: nn.Module | None) -> list[nn.Module] | None:
    """The modules that stand for a node, None when it stays as it is."""
    if node.op == "call_module":
        if isinstance(module, nn.AdaptiveAvgPool2d) and _node_shape(node)[-2:] == (1, 1):
            height, width = _node_shape(node.args[0])[-2:]
            return [nn.AvgPool2d((height, width))]
        return None
    if node.op not in ("call_function", "call_method") or node.all_input_nodes != list(node.args[:1]):
        return None
    arguments, source = list(node.args[1:]), _node_shape(node.args[0])
    if node.target in _FUNCTIONS:
        return [_FUNCTIONS[node.target]()]
    if node.target in (torch.flatten, "flatten") and (arguments or [node.kwargs.get("start_dim", 0)]) in ([1], [1, -1]):
        return [nn.Flatten()]
    if node.target in (torch.mean, "mean") and len(source) == 4:
        dims = node.kwargs.get("dim", arguments[0] if arguments else None)
        if isinstance(dims, (tuple, list)) and sorted(dim % 4 for dim in dims) == [2, 3]:
            keep = node.kwargs.get("keepdim", arguments[1] if len(arguments) > 1 else False)
            return [nn.AvgPool2d(source[-2:]), *([] if keep else [nn.Flatten()])]
    if node.target is F.interpolate and node.kwargs.get("mode", "nearest") == "nearest":
        return [nn.Upsample(size=_node_shape(node)[-2:])]
    return None


def _replace(graph: fx.GraphModule, node: fx.Node, modules: list[nn.Module]) -> None:
    last = node.args[0]
    with graph.graph.inserting_before(node):
        for index, module in enumerate(modules):
            name = f"{node.name}_{index}" if node.op != "call_module" else f"{node.name}_pool"
            graph.add_module(name, module)
            last = graph.graph.call_module(name, (last,))
    cast(fx.Node, last).meta.update(node.meta)  # the shape, for what comes after
    node.replace_all_uses_with(cast(fx.Node, last))
    graph.graph.erase_node(node)


def _outputs(graph: fx.GraphModule, workload: Workload) -> dict[str, fx.Node]:
    (returned,) = next(node for node in graph.graph.nodes if node.op == "output").args
    return dict(zip(workload.task_names, cast(Any, returned), strict=True))


def _problems(prepared: Prepared) -> list[str]:
    places: dict[str, list[str]] = {}
    for node in prepared.nodes:
        reason = _node_problem(prepared, node)
        if reason:
            places.setdefault(reason, []).append(_where(node))
    problems = [f"{_some(found)}: {reason}" for reason, found in places.items()]
    nodes = list(prepared.outputs.values())
    for task, node in prepared.outputs.items():
        if nodes.count(node) > 1:
            problems.append(f'task "{task}" shares its output with another task')
        elif any(user.op != "output" for user in node.users):
            problems.append(f'the output of task "{task}" is used on the way to another')
    return list(dict.fromkeys(problems))


def _some(places: list[str]) -> str:
    """The first places of several."""
    more = len(places) - 2
    return ", ".join(places[:2]) + (f" and {more} more" if more > 0 else "")


def _node_problem(prepared: Prepared, node: fx.Node) -> str | None:
    module = prepared.module(node)
    if module is not None:
        check = _CHECKS.get(type(module))
        return check(module, node) if check else f"{type(module).__name__} is not supported"
    if node.op == "get_attr":
        return "a tensor of the model that is no layer's weight is not supported"
    if node.op in ("call_function", "call_method"):
        return _function_problem(node)
    return None


def _function_problem(node: fx.Node) -> str | None:
    name = getattr(node.target, "__name__", str(node.target))
    if node.target in (operator.add, torch.add, "add", operator.iadd):
        same = len({_node_shape(each) for each in node.all_input_nodes}) == 1
        return None if len(node.all_input_nodes) == 2 and same else "addition of other than two tensors of one shape"
    if node.target in (torch.cat, torch.concat):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        two = len(node.all_input_nodes) == 2
        return None if dim == 1 and two else "concatenation of other than two tensors along their channels"
    return f"the function {name} is not supported"


def _conv(module: Any, node: fx.Node) -> str | None:
    if module.groups != 1:
        return f"Conv2d with {module.groups} groups"
    if module.dilation != (1, 1):
        return "Conv2d with dilation"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return f"Conv2d with padding {module.padding_mode if module.padding_mode != 'zeros' else module.padding}"
    return None


def _linear(module: Any, node: fx.Node) -> str | None:
    return None if len(_node_shape(node.args[0])) == 2 else "Linear on more than vectors"


def _pool(module: Any, node: fx.Node) -> str | None:
    pair = nn.modules.utils._pair
    kernel, stride = pair(module.kernel_size), pair(module.stride)
    if kernel != stride or pair(module.padding) != (0, 0) or module.ceil_mode:
        return f"{type(module).__name__} whose stride is not its kernel, or with padding"
    if pair(getattr(module, "dilation", 1)) != (1, 1):
        return f"{type(module).__name__} with dilation"
    return None


def _upsample(module: Any, node: fx.Node) -> str | None:
    before, after = _node_shape(node.args[0])[-2:], _node_shape(node)[-2:]
    whole = all(large % small == 0 for small, large in zip(before, after, strict=True))
    return None if module.mode == "nearest" and whole else "Upsample other than nearest by whole numbers"


def _flatten(module: Any, node: fx.Node) -> str | None:
    return None if (module.start_dim, module.end_dim) == (1, -1) else "Flatten of some dimensions only"


def _fine(module: Any, node: fx.Node) -> str | None:
    return None


_CHECKS: dict[type[nn.Module], Callable[[Any, fx.Node], str | None]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.Upsample: _upsample,
    nn.UpsamplingNearest2d: _upsample,
    nn.Flatten: _flatten,
    nn.BatchNorm2d: _fine,
    nn.ReLU: _fine,
    nn.Sigmoid: _fine,
    nn.Tanh: _fine,
}


def _node_shape(node: Any) -> tuple[int, ...]:
    """With the batch; nothing for what is no tensor."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(getattr(meta, "shape", ()))


def _where(node: fx.Node) -> str:
    return str(node.target).removeprefix("model.") if node.op == "call_module" else node.name
