"""Export to a design for an FPGA: a C++ project written by hls4ml for AMD's Vitis HLS, as one archive.

Integer bits come from the ranges on the calibration data, the width is the smallest that keeps the task metrics, and
the reuse factors make it the fastest design that fits on the board. See hls_graph.py for what can be expressed.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.core.errors import ExportError, MissingExtraError, described
from secateur.core.files import canonical_json, writing
from secateur.core.scratch import Scratch
from secateur.core.task import Workload
from secateur.export.hls_fixed import RANGE_BATCHES, WIDEST, Fixed, smallest_width
from secateur.export.hls_graph import LAYERS_WITH_WEIGHTS, Prepared, prepare
from secateur.export.hls_resources import BOARDS, Board, Design, fit, layers_of
from secateur.export.hls_session import PROJECT, SIGNATURE, DesignEntry, TaskOutput

BOARD = "zcu104"


def to_hls(
    model: nn.Module, workload: Workload, path: Path, *, board: str = BOARD, width: int | None = None
) -> DesignEntry:
    """Write a model as an archive of C++; the model itself is not changed.

    Args:
        board: one of BOARDS, whose limits the design keeps.
        width: bits of every number; without it the smallest that keeps the task metrics.

    Raises:
        ExportError: an unknown board; a model that hls4ml cannot take, with all reasons; one that no width serves, or
            that does not fit on the board.
        MissingExtraError: hls4ml is not installed.
    """
    if board not in BOARDS:
        raise ExportError(f'unknown board "{board}"', f"the boards are: {', '.join(BOARDS)}")
    prepared = prepare(model, workload)
    fixed = Fixed.measure(prepared, (inputs for inputs, _ in islice(workload.calibration, RANGE_BATCHES)))
    chosen = width or smallest_width(prepared, fixed, workload)
    if not 2 <= chosen <= WIDEST:
        raise ExportError(f"a width of {chosen} bits makes no sense", f"it lies between 2 and {WIDEST}")
    design = fit(layers_of(prepared), chosen, BOARDS[board])
    with Scratch() as temporary:
        folder = Path(temporary) / PROJECT
        order = _write_project(prepared, fixed, chosen, design, BOARDS[board], folder)
        entry = _entry(prepared, order, chosen, design, BOARDS[board])
        (folder / SIGNATURE).write_text(canonical_json(entry.model_dump(mode="json")))
        _archive(folder, path)
    return entry


def _entry(prepared: Prepared, order: list[str], width: int, design: Design, board: Board) -> DesignEntry:
    return DesignEntry(
        width=width,
        input_shape=list(prepared.input_shape),
        outputs=[TaskOutput(task=task, shape=list(prepared.outputs[task].meta["shape"])) for task in order],
        board=board.name,
        reuse=design.reuse,
        estimate=asdict(design.resources),
        limits=asdict(board.limits),
        cycles=design.cycles,
        interval_ms=design.interval_ms,
    )


def _write_project(
    prepared: Prepared, fixed: Fixed, width: int, design: Design, board: Board, folder: Path
) -> list[str]:
    """Write the project; gives the tasks in the order of the design's outputs."""
    try:
        import hls4ml
    except ImportError as error:
        raise MissingExtraError("hls4ml", "fpga") from error

    with _quiet(), torch.no_grad():
        try:
            config = _config(hls4ml, prepared, fixed, width, design)
            graph = hls4ml.converters.convert_from_pytorch_model(
                prepared.graph, output_dir=str(folder), project_name=PROJECT, backend="Vitis", hls_config=config,
                io_type="io_stream", part=board.part,
            )  # fmt: skip
            graph.write()
            outputs = [str(each) for each in graph.outputs]
        except Exception as error:  # hls4ml raises plain exceptions
            raise ExportError(f"hls4ml fails on this model: {described(error)}", "--debug shows more") from error
    for left in folder.glob("*.tar.gz"):
        left.unlink()
    return _tasks(prepared, outputs)


def _tasks(prepared: Prepared, outputs: list[str]) -> list[str]:
    by_node = {node.name: task for task, node in prepared.outputs.items()}
    missing = [name for name in outputs if name not in by_node]
    if missing or len(outputs) != len(by_node):
        raise ExportError(f"hls4ml gives other outputs: {', '.join(outputs)}", "report this model")
    return [by_node[name] for name in outputs]


def _config(hls4ml: Any, prepared: Prepared, fixed: Fixed, width: int, design: Design) -> dict[str, Any]:
    """hls4ml's configuration with every number's format and every layer's reuse factor said."""
    config: dict[str, Any] = hls4ml.utils.config_from_pytorch_model(
        prepared.graph, prepared.input_shape, granularity="name", backend="Vitis",
        channels_last_conversion="internal", transpose_outputs=False,
    )  # fmt: skip
    config["Model"]["Strategy"] = "Resource"
    for node in prepared.nodes:
        if node.name not in fixed.results:
            continue
        layer = config["LayerName"].setdefault(node.name, {})
        precision = layer.setdefault("Precision", {})
        precision["result"] = _format(width, fixed.results[node.name])
        if isinstance(prepared.module(node), LAYERS_WITH_WEIGHTS):
            precision["weight"] = _format(width, fixed.weights[node.name])
            precision["bias"] = _format(width, fixed.biases[node.name])
            layer["ReuseFactor"] = design.reuse[node.name]
            layer["Strategy"] = "Latency" if design.reuse[node.name] == 1 else "Resource"
    return config


def _format(width: int, integer: int) -> str:
    return f"ap_fixed<{width},{integer}>"


def _archive(folder: Path, path: Path) -> None:
    """The same project gives the same bytes: files in order, without their times."""
    with writing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            info = zipfile.ZipInfo(file.relative_to(folder).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, file.read_bytes())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """hls4ml prints its progress, and leaves the folder that it was called in changed when it fails."""
    here, silence = Path.cwd(), io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(here)
