"""Export to ncnn, the runtime of phones and small boards: `model.ncnn.param`, `.bin` and `.json`.

The outputs are blobs named after the tasks (percent-encoded where ncnn's text format cannot hold a character). ncnn
has no batch: a file computes one sample of the example input's shape. In fp16 the weights take half the space, and
processors with 16-bit arithmetic use it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor, nn

from secateur.core.errors import ExportError, SecateurError, described
from secateur.core.files import canonical_json
from secateur.core.inputs import batch_size, tensors
from secateur.core.predict import evaluating
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export.ncnn_param import name_blobs, read_param, write_param
from secateur.export.ncnn_session import BlobEntry, NcnnModel, Signature, Storage, signature_of, weights_of
from secateur.export.onnx import TaskOutputs
from secateur.export.parity import TOLERANCES
from secateur.export.pnnx import Converted, routes


def to_ncnn(model: nn.Module, workload: Workload, path: Path, *, half: bool = False) -> Path:
    """Write the model as a network of ncnn; the model itself is not changed.

    Values of the example input that are no tensors become constants.

    Args:
        path: of the graph, `*.param`; weights and shapes are written beside it.
        half: store weights in 16 bits.

    Raises:
        ExportError: the model cannot be traced, pnnx cannot convert it, or the result computes something else.
    """
    inputs = _one_sample(tensors(workload.example_input))
    closed = TaskOutputs(model, workload)
    with evaluating(model), torch.no_grad():
        wanted = _call(closed, inputs)
    signature = _signature(workload, inputs, wanted, "fp16" if half else "fp32")
    problem: ExportError | None = None
    with Scratch() as temporary:
        for converted in routes(closed, inputs, Path(temporary), half=half):
            _place(converted, signature, path)
            found = _problem(path, inputs, wanted, signature)
            if found is None:
                return path
            problem = problem or found
    for file in (path, weights_of(path), signature_of(path)):
        file.unlink(missing_ok=True)
    raise problem or ExportError("pnnx gave no graph", "report this model")


def _call(model: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    try:
        return tuple(model(*inputs))
    except SecateurError:
        raise
    except Exception as error:  # whatever the user's forward raises
        raise ExportError(
            f"the model fails on its example input: {described(error)}", "--debug shows the whole message"
        ) from error


def _one_sample(inputs: list[Tensor]) -> list[Tensor]:
    for value in inputs:
        if value.dtype != torch.float32:
            raise ExportError(
                f"ncnn takes float32 inputs, the model takes {value.dtype}", "convert inside of the model"
            )
    size = batch_size(inputs)
    return [value[:1] if _is_batched(value, size) else value for value in inputs]


def _is_batched(value: Tensor, size: int) -> bool:
    return value.ndim > 1 and value.shape[0] == size


def _signature(workload: Workload, inputs: list[Tensor], outputs: tuple[Tensor, ...], storage: Storage) -> Signature:
    return Signature(
        storage=storage,
        inputs=[
            BlobEntry(blob=f"in{index}", shape=list(value.shape), batched=_is_batched(value, 1))
            for index, value in enumerate(inputs)
        ],
        outputs=[
            BlobEntry(blob=quote(task, safe=""), task=task, shape=list(value.shape), batched=_is_batched(value, 1))
            for task, value in zip(workload.task_names, outputs, strict=True)
        ],
    )


def _place(converted: Converted, signature: Signature, path: Path) -> None:
    """Put a conversion where it belongs, with the user's names in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {f"out{index}": entry.blob for index, entry in enumerate(signature.outputs)}
    write_param(name_blobs(read_param(converted.param), names), path)
    shutil.move(converted.weights, weights_of(path))
    signature_of(path).write_text(canonical_json(signature.model_dump(mode="json")))


def _problem(path: Path, inputs: list[Tensor], wanted: tuple[Tensor, ...], signature: Signature) -> ExportError | None:
    """What is wrong with a conversion: it does not load, or computes something else for the example input."""
    tolerance = TOLERANCES[signature.storage]
    try:
        got = NcnnModel(path).run([value.numpy() for value in inputs])
    except ExportError as error:
        return error
    for entry, value in zip(signature.outputs, wanted, strict=True):
        off, scale = (torch.from_numpy(got[str(entry.task)]) - value).abs(), value.abs()
        if off.numel() and not off.max() <= (allowed := tolerance.atol + tolerance.rtol * scale.max()):
            return ExportError(
                f'pnnx converted the model wrongly: task "{entry.task}" differs by {off.max():.3g}, not {allowed:.3g}',
                "report this model to the authors of pnnx; other formats may do",
            )
    return None
