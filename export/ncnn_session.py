"""A network of ncnn, loaded from its files and called like the torch model it came from.

    NcnnModel("model.ncnn.param").run([images])      # {task: array}

Three files belong together: the graph (`.param`), the weights (`.bin`), and what ncnn itself does not keep (`.json`):
shapes of the inputs, and of the outputs by task.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.core.errors import ExportError, MissingExtraError, first_line
from secateur.export.native_output import captured
from secateur.export.ncnn_param import read_param
from secateur.export.runtime import Array, Runtime

Storage = Literal["fp32", "fp16"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BlobEntry(_Model):
    """An input or output: its name in the graph, the task that it predicts, and its shape for a batch of one."""

    blob: str
    task: str | None = None
    shape: list[int]
    batched: bool = True

    @property
    def sample(self) -> tuple[int, ...]:
        """The shape as ncnn sees it: it has no batch."""
        return tuple(self.shape[1:] if self.batched else self.shape)


class Signature(_Model):
    """What a network takes and gives, and how its weights are stored."""

    storage: Storage
    inputs: list[BlobEntry]
    outputs: list[BlobEntry]

    @classmethod
    def read(cls, param: Path) -> Signature:
        """The signature beside a graph.

        Raises:
            ExportError: missing or damaged.
        """
        path = signature_of(param)
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ExportError(f"cannot read {path}: {error.strerror}", "it belongs beside the .param file") from error
        except ValidationError as error:
            raise ExportError(f"{path} is damaged: {error.errors()[0]['msg']}", "export it again") from error


def weights_of(param: Path) -> Path:
    """The file of weights beside a graph."""
    return param.with_suffix(".bin")


def signature_of(param: Path) -> Path:
    """The file of shapes beside a graph."""
    return param.with_suffix(".json")


class NcnnModel(Runtime):
    """A network on this machine's CPU.

    Args:
        half: compute in 16 bits where the processor can (phones do, most x86 processors do not); otherwise exactly
            in 32 bits. Left to itself, ncnn decides by processor.
    """

    batch = 1

    def __init__(self, path: str | os.PathLike[str], threads: int = 1, *, half: bool = False) -> None:
        self.path = Path(path)
        self.signature = Signature.read(self.path)
        self.tasks = tuple(str(each.task) for each in self.signature.outputs)
        self._net = _load(self.path, threads, half)
        known = {*self._net.input_names(), *self._net.output_names()}
        for each in (*self.signature.inputs, *self.signature.outputs):
            if each.blob not in known:
                raise ExportError(
                    f"{self.path} has no blob {each.blob}", "its files do not belong together: export again"
                )

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for a batch of one.

        Raises:
            ExportError: inputs that the network does not take.
        """
        import ncnn

        mats = self._mats(inputs)
        outputs = {}
        with self._net.create_extractor() as extractor:
            for entry, mat in zip(self.signature.inputs, mats, strict=True):
                extractor.input(entry.blob, mat)
            for entry in self.signature.outputs:
                failed, value = extractor.extract(entry.blob)
                if failed:
                    raise ExportError(
                        f"{self.path.name}: ncnn fails to compute {entry.task} (code {failed})",
                        "it may have an operator that this ncnn does not run (of 3-D pictures, say): try --to onnx",
                    )
                outputs[str(entry.task)] = _array(ncnn, value, entry)
        return outputs

    def _mats(self, inputs: Sequence[Array]) -> list[Any]:
        import ncnn

        entries = self.signature.inputs
        if len(inputs) != len(entries):
            raise ExportError(
                f"{self.path} takes {len(entries)} inputs, {len(inputs)} were given", "give them in order"
            )
        mats = []
        for entry, value in zip(entries, inputs, strict=True):
            if tuple(value.shape) != tuple(entry.shape):
                raise ExportError(
                    f"{self.path}: {entry.blob} has shape {list(entry.shape)}, {list(value.shape)} was given",
                    "ncnn files are made for one shape and a batch of one",
                )
            sample = np.ascontiguousarray(value.reshape(entry.sample), dtype=np.float32)
            mats.append(ncnn.Mat(sample).clone())
        return mats


def _array(ncnn: Any, value: Any, entry: BlobEntry) -> Array:
    array = np.array(value, dtype=np.float32)
    if array.size != int(np.prod(entry.shape)):
        raise ExportError(
            f"ncnn gives {list(array.shape)} for {entry.task}, {list(entry.shape)} was expected", "export it again"
        )
    return array.reshape(entry.shape)


def _load(path: Path, threads: int, half: bool) -> Any:
    try:
        import ncnn
    except ImportError as error:
        raise MissingExtraError("ncnn", "mobile") from error

    unknown = [each for each in read_param(path) if ncnn.layer_to_index(each.kind) < 0]
    if unknown:
        first = min(unknown, key=lambda each: each.kind.startswith("pnnx."))  # the converter's own words come last
        raise ExportError(f"ncnn has no operator {first.kind} ({first.name})", "write that step with other operations")
    if not weights_of(path).is_file():
        raise ExportError(f"{weights_of(path)} does not exist", "it belongs beside the .param file")
    net = ncnn.Net()
    for option, value in options(threads, half).items():
        setattr(net.opt, option, value)
    with captured() as said:
        failed = net.load_param(str(path)) or net.load_model(str(weights_of(path)))
    if failed:
        reason = first_line(said() or "unreadable")
        raise ExportError(
            f"{path} is no network that ncnn can run: {reason}", "the files may be truncated: export again"
        )
    return net


def options(threads: int, half: bool) -> Mapping[str, Any]:
    """ncnn's options, each said: its defaults differ between processors."""
    return {
        "num_threads": threads,
        "use_fp16_packed": half,
        "use_fp16_storage": half,
        "use_fp16_arithmetic": half,
        "use_bf16_storage": False,
        "use_bf16_packed": False,
        "use_vulkan_compute": False,
    }
