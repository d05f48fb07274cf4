"""Elastic models as ONNX files that switch widths at run time, weights stored once.

`if`: one file. A scalar input chooses the encoder's row, one more each task's width; each component is a tree of If
nodes whose branches hold one width. A width of -1 leaves a task out.

`files`: a small graph for every component and width, all over one shared file of weights (`weights.bin`).

In both, a branch or graph cuts its weights out of the full ones by Slice (or Gather), which ONNX Runtime folds when
it loads. Statistics are those of the configuration and stand in its graph. `index.json` says what is where, with the
hash of every file; `elastic.json` is the table, for the controller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.elastic import Table
from secateur.core.elastic.files import TABLE
from secateur.core.errors import ExportError
from secateur.core.files import canonical_json, sha256, write_json
from secateur.export.elastic_graph import Array, Component, ElasticSource, Graphs, Split
from secateur.export.onnx_format import OPSET

INDEX, WEIGHTS, MODEL = "index.json", "weights.bin", "elastic.onnx"
LAYOUTS = ("auto", "if", "files")
BRANCHES = 64
"""Branches up to which `auto` writes one file: a session holds the weights of all of them."""
ALIGNMENT = 64
SHARED = ""
"""What stands for a task's name where a part of the model is shared."""


def write_elastic(source: ElasticSource, folder: Path, layout: str = "auto") -> Path:
    """Write an elastic model into an empty folder; returns its index.

    Args:
        layout: "if", "files", or "auto": one file while it has at most BRANCHES branches.

    Raises:
        ExportError: an unknown layout, or a model that ONNX cannot express.
    """
    check_layout(layout)
    table = source.table
    if layout == "auto":
        layout = "if" if branches(table) <= BRANCHES else "files"
    graphs = Graphs(source)
    splits = {(row, d): graphs.split(row, _chosen(table, d)) for row in table.exported for d in range(_depth(table))}
    write = _write_one_file if layout == "if" else _write_files
    index = write(graphs, table, splits, folder)
    return _seal(folder, table, {"schema": 1, "layout": layout, "tasks": list(table.tasks), **index})


def renew_table(folder: Path, table: Table) -> Path:
    """Put a newer table of the same configurations beside files that were written; returns their index."""
    return _seal(folder, table, json.loads((folder / INDEX).read_text(encoding="utf-8")))


def _seal(folder: Path, table: Table, index: Mapping[str, Any]) -> Path:
    """The table, and the index with the hash of every file."""
    (folder / TABLE).write_text(canonical_json(table.as_json()), encoding="utf-8")
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != INDEX}
    write_json(folder / INDEX, {**index, "files": files})
    return folder / INDEX


def check_layout(layout: str) -> None:
    """Raise ExportError for a layout that is none of LAYOUTS."""
    if layout not in LAYOUTS:
        raise ExportError(f'unknown elastic layout "{layout}"', f"choose one of: {', '.join(LAYOUTS)}")


def branches(table: Table) -> int:
    """Branches of all components together in one file."""
    rows = len(table.exported)
    return rows + (rows * sum(len(each) for each in table.decoders.values()) if len(table.tasks) > 1 else 0)


def _depth(table: Table) -> int:
    return max(len(rows) for rows in table.decoders.values()) if len(table.tasks) > 1 else 1


def _chosen(table: Table, d: int) -> dict[str, int]:
    return {task: min(d, len(rows) - 1) for task, rows in table.decoders.items()}


def _components(table: Table, splits: Mapping[tuple[int, int], Split]) -> Iterator[tuple[str, int, int, Component]]:
    """(task or SHARED, row, width, component), each once."""
    for row in table.exported:
        if splits[row, 0].shared.outputs:
            yield SHARED, row, 0, splits[row, 0].shared
        for task in splits[row, 0].decoders:
            for d in range(len(table.decoders[task])):
                yield task, row, d, splits[row, d].decoders[task]


# --- many graphs over one file of weights -------------------------------------------------------------------------


def _write_files(graphs: Graphs, table: Table, splits: Mapping[tuple[int, int], Split], folder: Path) -> dict[str, Any]:
    from onnx import helper

    first = next(iter(splits.values()))
    places = _write_weights(graphs, folder / WEIGHTS)
    entries: dict[str, str] = {}
    known: dict[str, str] = {}
    for name, row, d, component in _components(table, splits):
        nodes, own = _cut(component, "")
        full = [_external(weight, graphs.weights[weight], places[weight]) for weight in component.slices]
        types = splits[row, d].types
        graph = helper.make_graph(
            nodes, name,
            [_value(each, types, first) for each in component.inputs],
            [_value(each, types, first) for each in component.outputs],
            [*full, *own],
        )  # fmt: skip
        content = _model(graph).SerializeToString()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in known:
            known[digest] = f"part-{len(known):03d}.onnx"
            (folder / known[digest]).write_bytes(content)
        entries[f"{name}/{row}/{d}"] = known[digest]
    return {"graphs": entries, "inputs": [value.name for value in first.inputs]}


def _write_weights(graphs: Graphs, path: Path) -> dict[str, tuple[int, int]]:
    """All full weights in one file; name → (offset, bytes)."""
    places, position = {}, 0
    with path.open("wb") as file:
        for name in sorted(graphs.full_names):
            content = np.ascontiguousarray(graphs.weights[name]).tobytes()
            file.write(b"\0" * (-position % ALIGNMENT))
            position += -position % ALIGNMENT
            places[name] = (position, len(content))
            file.write(content)
            position += len(content)
    return places


def _external(name: str, array: Array, place: tuple[int, int]) -> Any:
    from onnx import TensorProto, helper

    tensor = TensorProto(name=_full(name), dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", str(place[0])), ("length", str(place[1]))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


# --- one file with branches ---------------------------------------------------------------------------------------


def _write_one_file(
    graphs: Graphs, table: Table, splits: Mapping[tuple[int, int], Split], folder: Path
) -> dict[str, Any]:
    from onnx import TensorProto, helper, numpy_helper

    first = next(iter(splits.values()))
    tree = _Tree(first)
    used = sorted({name for _, _, _, each in _components(table, splits) for name in each.slices})
    initializers = [numpy_helper.from_array(np.ascontiguousarray(graphs.weights[n]), _full(n)) for n in used]
    rows = list(table.exported)
    nodes, outputs = [], dict.fromkeys(splits[rows[0], 0].shared.outputs)
    shared = [(splits[row, 0].shared, splits[row, 0].types) for row in rows]
    names = [SHARED]
    if outputs:
        nodes += tree.choose(SHARED, shared, list(outputs))
    for task in splits[rows[0], 0].decoders:
        widths = range(len(table.decoders[task]))
        options = [(splits[row, d].decoders[task], splits[row, d].types) for row in rows for d in widths]
        result = splits[rows[0], 0].decoders[task].outputs[0]
        nodes += tree.position(task, len(widths))
        nodes += tree.choose(f"{task}/at", options, [result], skip=f"{task}/off")
        names.append(task)
    scalars = [helper.make_tensor_value_info(_scalar(name), TensorProto.INT64, []) for name in names]
    results = [_value(each, first.types, first) for each in _results(first, table)]
    graph = helper.make_graph(nodes, "elastic", [*first.inputs, *scalars], results, [*initializers, *tree.constants])
    (folder / MODEL).write_bytes(_model(graph).SerializeToString())
    return {
        "model": MODEL, "rows": rows, "inputs": [value.name for value in first.inputs],
        "selectors": {name: _scalar(name) for name in names}, "results": _results(first, table),
    }  # fmt: skip


def _results(split: Split, table: Table) -> list[str]:
    """The values of the tasks' predictions, in their order."""
    if split.decoders:
        return [split.decoders[task].outputs[0] for task in table.tasks]
    return list(split.shared.outputs)


def _scalar(name: str) -> str:
    return f"width of {name}"


class _Tree:
    """If nodes that choose one of several components by a number, by halving."""

    def __init__(self, split: Split) -> None:
        self._split, self._count = split, 0
        self.constants: list[Any] = []

    def _constant(self, value: int) -> str:
        from onnx import numpy_helper

        name = f"number {value}"
        if all(each.name != name for each in self.constants):
            self.constants.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
        return name

    def position(self, task: str, widths: int) -> list[Any]:
        """row × widths + width of a task, and whether the task is left out."""
        from onnx import helper

        own, rows = _scalar(task), _scalar(SHARED)
        return [
            helper.make_node("Mul", [rows, self._constant(widths)], [f"{task}/row"]),
            helper.make_node("Add", [f"{task}/row", own], [_scalar(f"{task}/at")]),
            helper.make_node("Less", [own, self._constant(0)], [f"{task}/off"]),
        ]

    def choose(
        self, name: str, options: Sequence[tuple[Component, Any]], outputs: list[str], skip: str | None = None
    ) -> list[Any]:
        from onnx import helper

        if skip is None:
            return self._halved(name, options, 0, outputs, outputs)
        inner = [f"{each}/on" for each in outputs]
        empty = [f"{each}/none" for each in outputs]
        whole = helper.make_graph(self._halved(name, options, 0, outputs, inner), "on", [], self._infos(outputs, inner))
        blank = helper.make_graph(self._blank(outputs, empty), "off", [], self._infos(outputs, empty))
        return [helper.make_node("If", [skip], outputs, then_branch=blank, else_branch=whole)]

    def _halved(
        self, name: str, options: Sequence[tuple[Component, Any]], start: int, values: list[str], results: list[str]
    ) -> list[Any]:
        """Nodes that give `values` of the chosen option under the names `results`."""
        from onnx import helper

        self._count += 1
        tag = f"branch {self._count} "
        if len(options) == 1:
            component, _ = options[0]
            nodes, own = _cut(component, tag)
            renamed = dict(zip((tag + each for each in values), results, strict=True))
            for node in nodes:
                node.output[:] = [renamed.get(each, each) for each in node.output]
                node.input[:] = [renamed.get(each, each) for each in node.input]
            return [*(helper.make_node("Constant", [], [each.name], value=each) for each in own), *nodes]
        middle = len(options) // 2
        condition = f"{tag}lower"
        sides = []
        for part, offset in ((options[:middle], start), (options[middle:], start + middle)):
            names = [f"{tag}{offset} {each}" for each in values]
            nodes = self._halved(name, part, offset, values, names)
            sides.append(helper.make_graph(nodes, f"{tag}{offset}", [], self._infos(values, names)))
        return [
            helper.make_node("Less", [_scalar(name), self._constant(start + middle)], [condition]),
            helper.make_node("If", [condition], results, then_branch=sides[0], else_branch=sides[1]),
        ]

    def _infos(self, values: list[str], names: list[str]) -> list[Any]:
        from onnx import helper

        types = self._split.types
        return [
            helper.make_tensor_value_info(name, types[value][0], [None] * types[value][1])
            for value, name in zip(values, names, strict=True)
        ]

    def _blank(self, values: list[str], names: list[str]) -> list[Any]:
        from onnx import helper, numpy_helper

        nodes = []
        for value, name in zip(values, names, strict=True):
            kind, rank = self._split.types[value]
            empty = np.zeros((0,) * rank, dtype=helper.tensor_dtype_to_np_dtype(kind))
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(empty)))
        return nodes


# --- what both do -------------------------------------------------------------------------------------------------


def _full(name: str) -> str:
    return f"full {name}"


def _cut(component: Component, tag: str) -> tuple[list[Any], list[Any]]:
    """(nodes, tensors of its own) of a component: first the cuts of its weights, then its nodes. Every name that it
    makes is given the tag; what it reads from outside keeps its name."""
    from onnx import NodeProto, helper, numpy_helper

    outside = set(component.inputs)
    rename = {"": ""}
    nodes, own = [], [numpy_helper.from_array(np.asarray(array), tag + name) for name, array in component.own.items()]
    for name, dims in component.slices.items():
        cuts, source = [], _full(name)
        cut = {dim: index for dim, index in dims.items() if index is not None}
        plain = {dim: len(index) for dim, index in cut.items() if int(index[-1]) + 1 == len(index)}
        if plain:
            for label, values in (("starts", [0] * len(plain)), ("ends", plain.values()), ("axes", plain)):
                own.append(numpy_helper.from_array(np.array(list(values), dtype=np.int64), f"{tag}{name} {label}"))
            bounds = [f"{tag}{name} {label}" for label in ("starts", "ends", "axes")]
            cuts.append(helper.make_node("Slice", [source, *bounds], [f"{tag}{name} sliced"]))
            source = f"{tag}{name} sliced"
        for dim, index in cut.items():
            if dim not in plain:
                own.append(numpy_helper.from_array(np.asarray(index, dtype=np.int64), f"{tag}{name} kept {dim}"))
                cuts.append(
                    helper.make_node("Gather", [source, own[-1].name], [f"{tag}{name} gathered {dim}"], axis=dim)
                )
                source = f"{tag}{name} gathered {dim}"
        rename[name] = source
        nodes += cuts
    for node in component.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [rename.get(each, each if each in outside else tag + each) for each in node.input]
        copy.output[:] = [tag + each if each else each for each in node.output]
        nodes.append(copy)
    return nodes, own


def _value(name: str, types: Mapping[str, tuple[int, int]], split: Split) -> Any:
    from onnx import helper

    for given in split.inputs:
        if given.name == name:
            return given
    if name not in types:
        raise ExportError(f"the exporter gave no type for {name}", "report this model")
    kind, rank = types[name]
    return helper.make_tensor_value_info(name, kind, [None] * rank)


def _model(graph: Any) -> Any:
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="secateur")
    model.ir_version = 10
    return model
