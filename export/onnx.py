"""Export to ONNX: one file, weights inside, dynamic batch, outputs named after the tasks.

    to_onnx(model, workload, Path("model.onnx"))

The model is traced by torch.export and translated by torch's own exporter, whose optimiser folds constants and batch
norms and removes what has no effect. Afterwards values are renamed, so that the file speaks the user's words: tasks
for outputs, parameter names for weights, module paths at nodes; traces of source code and of folders are removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from secateur.core.errors import ExportError, described, first_line
from secateur.core.experts import execution
from secateur.core.files import writing
from secateur.core.inputs import batch_size, filled, names_of, tensors
from secateur.core.modes import forget
from secateur.core.predict import evaluating, predict
from secateur.core.task import Workload
from secateur.core.traceable import traceable
from secateur.export.half import halve
from secateur.export.onnx_format import OPSET
from secateur.export.onnx_session import NAME_SCOPES
from secateur.profiles.graph import module_path

OPSETS = range(18, 24)
"""Those that torch's exporter writes (it translates to 18 and converts upwards) and this ONNX Runtime runs."""
_WRAPPING = re.compile(r"'model', |(?<=')model\.|'_empty_nn_module_stack\w*', ")
"""What a node's module path owes to the tracing, not to the user's model."""
INLINE_LIMIT = 2**31 - 2**24
"""Bytes of weights up to which they are stored inside the file: protobuf ends at 2 GB."""


def to_onnx(
    model: nn.Module,
    workload: Workload,
    path: Path,
    *,
    dynamic_batch: bool = True,
    opset: int = OPSET,
    half: bool = False,
) -> Path:
    """Write the model as an ONNX file; the model itself is not changed.

    Inputs are named `input`, or `input_1`, `input_2`, ... when there are several, or by the keys of a dict; outputs are
    named after the tasks, in their order. Values of the example input that are no tensors become constants. Weights of
    2 GB or more go to a second file, `<name>.data`.

    Args:
        dynamic_batch: leave the first dimension open; otherwise it is that of the example input.
        opset: version of ONNX's operators, one of OPSETS.
        half: weights and arithmetic in float16 where ONNX Runtime has it; inputs and outputs stay as they are.

    Raises:
        ExportError: the model cannot be traced, fixes the batch size, or uses an op that ONNX cannot express; an
            opset that the exporter does not write.
        OutputError: the file cannot be written.
    """
    from onnx.checker import ValidationError, check_model
    from onnx.shape_inference import InferenceError

    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not written", f"choose one from {OPSETS[0]} to {OPSETS[-1]}")
    with evaluating(model), _quiet():
        traced = _trace(TaskOutputs(model, workload), tuple(tensors(workload.example_input)), dynamic_batch)
        program = _translate(traced, dynamic_batch, opset)
        _rename(program.model.graph, names_of(workload.example_input), workload.task_names)
        with writing(path) as temporary:
            _save(program.model, temporary, path, half)
            try:
                check_model(temporary, full_check=True)
            except (ValidationError, InferenceError) as error:
                raise ExportError(f"the exporter wrote an invalid ONNX file: {error}", "report this model") from error
    return path


def task_program(model: nn.Module, workload: Workload, opset: int) -> Any:
    """The torch.onnx.ONNXProgram of a model that returns its tasks' predictions in order, for any batch, before any
    optimisation: convolutions and norms apart, weights under `model.` and their own names.

    Raises:
        ExportError: as `to_onnx`.
    """
    with _quiet():
        traced = _trace(TaskOutputs(model, workload), tuple(tensors(workload.example_input)), True)
        return _translate(traced, True, opset, optimize=False)


class TaskOutputs(nn.Module):
    """A model that takes tensors only, its workload's other inputs being bound, and returns its tasks' predictions as a
    tuple and nothing else."""

    def __init__(self, model: nn.Module, workload: Workload) -> None:
        super().__init__()
        self.model = traceable(model)
        self._example, self._tasks = workload.example_input, workload.tasks

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        predictions = predict(self.model, filled(self._example, inputs), self._tasks)
        for name, value in predictions.items():
            if not isinstance(value, Tensor):
                raise ExportError(
                    f'task "{name}" predicts a {type(value).__name__}, an ONNX output is a tensor',
                    "return one tensor for each task",
                )
        return tuple(predictions.values())


def _trace(model: nn.Module, args: tuple[Any, ...], dynamic_batch: bool) -> ExportedProgram:
    if not dynamic_batch:
        return _torch_export(model, args, None)
    try:
        return _torch_export(model, _at_least_two(args), (_batch_dims(args, Dim.DYNAMIC),))
    except ExportError as error:
        try:
            _torch_export(model, args, None)
        except ExportError:
            raise error from error.__cause__
        raise ExportError(
            "the model's forward works for one batch size only",
            "take the batch size from the input (x.shape[0]) instead of a number",
        ) from error


def _torch_export(model: nn.Module, args: tuple[Any, ...], dynamic_shapes: Any) -> ExportedProgram:
    forget(model)  # what was kept would be constants of the file
    try:
        with execution("unrolled"):  # mixtures of experts keep their sparsity: open numbers of tokens for each expert
            return torch.export.export(model, args, dynamic_shapes=dynamic_shapes, strict=False)
    except ExportError:
        raise
    except Exception as error:  # torch.export raises errors of many unrelated types
        raise ExportError(
            f"torch.export cannot trace the model: {described(error)}",
            "remove control flow that depends on tensor values from forward; --debug shows the whole message",
        ) from error


def _batch_dims(args: tuple[Any, ...], dim: Any) -> tuple[Any, ...]:
    """For each argument, that its first dimension is the batch; nothing for what carries no batch."""
    size = batch_size(args)
    return tuple({0: dim} if _is_batched(value, size) else None for value in args)


def _at_least_two(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The example with a batch of two at least: torch.export takes a size of one for a constant."""
    size = batch_size(args)
    if size > 1:
        return args
    return tuple(torch.cat([value, value]) if _is_batched(value, size) else value for value in args)


def _is_batched(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size


def _translate(traced: ExportedProgram, dynamic_batch: bool, opset: int, *, optimize: bool = True) -> Any:
    """The torch.onnx.ONNXProgram of a traced model."""
    from torch.onnx import OnnxExporterError

    (inputs, _) = traced.example_inputs
    shapes = (_batch_dims(inputs, "batch"),) if dynamic_batch else None
    try:
        program = torch.onnx.export(
            traced, dynamo=True, opset_version=opset, dynamic_shapes=shapes, optimize=optimize, verbose=False
        )
    except OnnxExporterError as error:
        raise _untranslatable(error, traced) from error
    written = program.model.opset_imports[""] if program is not None else 0
    if written != opset:
        raise ExportError(
            f"the model uses operators that opset {opset} does not have", f"leave the opset at {OPSET}, or above"
        )
    return program


def _untranslatable(error: Exception, traced: ExportedProgram) -> ExportError:
    """Which op of which module ONNX cannot express, from the exporter's chain of errors."""
    chain, link = [str(error)], error.__cause__
    while link is not None:
        chain.append(str(link))
        link = link.__cause__
    text = "\n".join(chain)
    op = re.search(r"target=torch\.ops\.([\w.]+)", text)
    if op is None:
        return ExportError(
            f"torch's exporter cannot translate the model to ONNX: {first_line(error)}", "--debug shows why"
        )
    name = re.search(r"node %(\w+)", text)
    nodes = traced.run_decompositions().graph.nodes if name else ()
    path = next((module_path(node) for node in nodes if name and node.name == name[1]), "")
    module = path.removeprefix("model").removeprefix(".") or "the model's forward"
    return ExportError(
        f"ONNX has no translation of {op[1]}, called in {module}",
        "write that step with other operations, keep it outside the model, or fix the batch with --static",
    )


def _rename(graph: Any, inputs: Sequence[str], tasks: Sequence[str]) -> None:
    """Give inputs, outputs, weights and nodes of an onnx_ir graph the user's names."""
    inputs = [f"{name}_tensor" if name in tasks else name for name in inputs]
    for value in list(graph.initializers.values()):
        value.name = value.name.removeprefix("model.")
    reserved = {*inputs, *tasks}
    nodes = list(graph.all_nodes())
    values = [*graph.initializers.values(), *graph.inputs, *(value for node in nodes for value in node.outputs)]
    taken = {value.name for value in values} | reserved
    for value in values:
        if value.name in reserved:
            value.name = next(name for i in range(len(taken) + 1) if (name := f"{value.name}_{i}") not in taken)
            taken.add(value.name)
    for value, name in zip([*graph.inputs, *graph.outputs], [*inputs, *tasks], strict=True):
        value.name = name
    graph.metadata_props.clear()
    for value in [*values, *graph.outputs]:
        value.metadata_props.clear()
    for node in nodes:
        scopes = node.metadata_props.get(NAME_SCOPES)
        node.metadata_props.clear()
        if scopes:
            node.metadata_props[NAME_SCOPES] = _WRAPPING.sub("", scopes)


def _save(model: Any, temporary: Path, path: Path, half: bool) -> None:
    import onnx_ir

    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:  # a file names its data file
        whole = Path(folder) / path.name
        if half:
            onnx_ir.save(model, whole, external_data=_data_name(model, whole))
            model = halve(whole)
        onnx_ir.save(model, whole, external_data=_data_name(model, whole))
        data = whole.with_name(f"{path.name}.data")
        if _data_name(model, whole):
            data.replace(path.with_name(data.name))
        whole.replace(temporary)


def _data_name(model: Any, path: Path) -> str | None:
    """The file beside `path` for weights that are too large to be inside, or None."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    return f"{path.name}.data" if size >= INLINE_LIMIT else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs, warns and prints about its own internals; users cannot act on that."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    silence = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(silence), contextlib.redirect_stdout(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
