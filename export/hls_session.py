"""A design for an FPGA, compiled with g++ and run here, bit by bit as the FPGA would compute.

    HlsModel("model.hls.zip").run([images])       # {task: array}

The archive is the hls4ml project with a `secateur.json` that says which output is which task. g++ is enough.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from secateur.core.errors import ExportError, TargetUnavailableError
from secateur.core.scratch import Scratch
from secateur.export.runtime import Array, Runtime

PROJECT = "model"
SIGNATURE = "secateur.json"
LARGEST = 2 * 2**30
"""Bytes that an archive may unpack to."""
_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskOutput(_Model):
    """An output port, in the order of the design: the task, and its shape without the batch, channels first."""

    task: str
    shape: list[int]


class DesignEntry(_Model):
    """What was chosen for a design, and what it is estimated to take."""

    width: int
    input_shape: list[int]
    outputs: list[TaskOutput]
    board: str
    reuse: dict[str, int]
    estimate: dict[str, int]
    limits: dict[str, int]
    cycles: int
    interval_ms: float


class HlsModel(Runtime):
    """A design on this machine."""

    batch = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._folder = Scratch()
        try:
            self.design = _unpack(self.path, Path(self._folder.name))
            self._function = _compile(Path(self._folder.name), self.path)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """Predictions of every task for one sample.

        Raises:
            ExportError: an input of another shape.
        """
        shape = (1, *self.design.input_shape)
        if len(inputs) != 1 or tuple(inputs[0].shape) != shape:
            raise ExportError(f"{self.path} takes one input of shape {list(shape)}", "give one sample at a time")
        given = _flat(inputs[0][0])
        outputs = [np.zeros(int(np.prod(each.shape)), np.float32) for each in self.design.outputs]
        self._function(*(value.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for value in (given, *outputs)))
        return {
            each.task: _channels_first(value, each.shape)[None]
            for each, value in zip(self.design.outputs, outputs, strict=True)
        }

    def close(self) -> None:
        """Remove what was unpacked."""
        self._folder.cleanup()


def _flat(sample: Array) -> Array:
    """Streams carry one pixel after another, all channels of it together."""
    moved = np.moveaxis(sample, 0, -1) if sample.ndim > 1 else sample
    return np.ascontiguousarray(moved, dtype=np.float32).reshape(-1)


def _channels_first(value: Array, shape: Sequence[int]) -> Array:
    if len(shape) == 1:
        return value.reshape(shape)
    return np.moveaxis(value.reshape(*shape[1:], shape[0]), -1, 0)


def _unpack(path: Path, folder: Path) -> DesignEntry:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not _NAME.fullmatch(entry.filename) or ".." in entry.filename.split("/"):
                    raise ValueError(f"{entry.filename!r} is no plain file")
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise ValueError("it is too large")
            archive.extractall(folder)
        return DesignEntry.model_validate_json((folder / SIGNATURE).read_bytes())
    except FileNotFoundError as error:
        raise ExportError(f"{path} does not exist, or lacks its {SIGNATURE}", "export it again") from error
    except (zipfile.BadZipFile, ValidationError, ValueError, OSError, EOFError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{path} is no design: {reason}", "the file may be truncated: export it again") from error


def _compile(folder: Path, path: Path) -> Any:
    compiler = shutil.which("g++")
    if compiler is None:
        raise TargetUnavailableError("g++ is not installed", "on Debian: apt install g++")
    library = folder / f"{PROJECT}.so"
    command = [compiler, "-O1", "-fPIC", "-shared", "-std=c++14", "-w", "-fno-gnu-unique", "-Ifirmware/ap_types"]
    command += [
        f'-DWEIGHTS_DIR="{folder / "firmware" / "weights"}"',
        f"firmware/{PROJECT}.cpp",
        f"{PROJECT}_bridge.cpp",
    ]
    done = subprocess.run(  # noqa: S603 - a fixed command
        [*command, "-o", library.name], cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise ExportError(f"{path} does not compile: {said.strip()[:200]}", "export it again, and report this model")
    return getattr(ctypes.CDLL(str(library)), f"{PROJECT}_float")
