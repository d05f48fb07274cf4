"""Layers of an ONNX file: how many weights it has, and where ONNX Runtime spends its time, by module path.

ONNX Runtime fuses and renames operators before it runs them. A fused operator keeps the name of its last output, so
each is traced back, in the file, to the operator of its own type that stands before that output.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from secateur.core.costs import LayerProfile
from secateur.core.errors import ExportError
from secateur.core.scratch import Scratch
from secateur.export.onnx_session import NAME_SCOPES, open_session
from secateur.profiles.latency import read

REPEATS = 20
FUSED_STEPS = 4
"""Longest chain that ONNX Runtime fuses into one convolution: convolution, addition, activation; and one to spare."""
_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/\w*Fusion\w*/?)+$")


def count_parameters(path: Path) -> int:
    """Floating-point numbers among the weights stored in the file (or beside it), without reading them."""
    return read.count_parameters(_load(path).graph)


def profile_layers(path: Path, feed: dict[str, Any], threads: int) -> tuple[LayerProfile, ...]:
    """Latency of each layer in milliseconds, in the order of execution.

    A layer is a module path where the file tells it (see export/onnx.py), otherwise a node's name; `kind` is the
    operator that took longest in it. Each operator counts with its median over REPEATS runs, in which ONNX Runtime's
    profiler adds some microseconds to each.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in _profile(path, feed, threads):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            spent[name].append(event["dur"] / 1e3)
            kinds[name] = event["args"]["op_name"]
    modules = _Modules(path)
    layers: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for name, times in spent.items():
        layers[modules.of(name, kinds[name])].append((median(times), kinds[name]))
    return tuple(
        LayerProfile(layer, max(parts)[1], latency_ms=sum(time for time, _ in parts)) for layer, parts in layers.items()
    )


def _profile(path: Path, feed: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    with Scratch() as folder:
        session = open_session(path, threads, profile_prefix=Path(folder) / "profile")
        for _ in range(REPEATS):
            session.run(None, feed)
        text = Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace")
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except json.JSONDecodeError as error:  # ONNX Runtime writes names as they are
        raise ExportError(
            f"{path} has nodes whose names ONNX Runtime cannot write into its profile", "measure it without layers"
        ) from error


class _Modules:
    """The module path of each operator that ONNX Runtime reports."""

    def __init__(self, path: Path) -> None:
        graph = _load(path).graph
        self._weights = {weight.name for weight in graph.initializer}
        self._by_name = {node.name: node for node in graph.node if node.name}
        self._by_output = {output: node for node in graph.node for output in node.output}

    def of(self, operator: str, kind: str) -> str:
        name = _SUFFIX.sub("", operator)
        node = self._by_name.get(name) or self._by_output.get(name)
        if node is None:
            return name
        return self._module(self._source(node, kind))

    def _source(self, node: Any, kind: str) -> Any:
        """The operator that a fused one began with: the nearest of its kind before its last output."""
        steps = [node]
        for _ in range(FUSED_STEPS):
            for step in steps:
                if step.op_type == kind.removeprefix("Fused"):
                    return step
            steps = [self._by_output[name] for step in steps for name in step.input if name in self._by_output]
        return node

    def _module(self, node: Any) -> str:
        """Its weight's name says it best; the exporter's note comes next."""
        for name in node.input:
            if name in self._weights and "." in name:
                return str(name.rpartition(".")[0])
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = re.findall(r"'([^']*)'", notes.get(NAME_SCOPES, ""))
        return scopes[-2] if len(scopes) > 1 and scopes[-2] else str(node.name or node.output[0])


def _load(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ExportError(
            f"{path} is not an ONNX model", "the file may be truncated: copy or export it again"
        ) from error
