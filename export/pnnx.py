"""Conversion to ncnn with pnnx, the converter of ncnn's authors: a traced model becomes a graph and its weights.

    convert(model, args, folder, half=False)      # graph.param, graph.bin

pnnx is a program that reads TorchScript. It knows modules by their classes, so that an attention layer stays one
operator; on models that compute what nobody uses it fails, and then the trace is frozen first, which drops dead code
and inlines modules. Each `Route` is one way to make the trace.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.core.errors import ExportError, described
from secateur.core.experts import execution
from secateur.core.predict import evaluating

TIME_LIMIT_S = 600


class Converted(NamedTuple):
    """What pnnx wrote: the graph as text, and the weights."""

    param: Path
    weights: Path


def routes(model: nn.Module, inputs: Sequence[Tensor], folder: Path, *, half: bool) -> Iterator[Converted]:
    """Every conversion that pnnx can make of a model, the most faithful first.

    Args:
        inputs: float32 tensors with a batch of one.
        folder: empty; each conversion gets a folder of its own in it.
        half: weights stored in 16 bits.

    Raises:
        ExportError: the model cannot be traced, or no route led to a graph; with the converter's own words.
    """
    traced = _trace(model, inputs)
    failures = []
    for name, make in _ROUTES.items():
        place = folder / name
        place.mkdir()
        try:
            yield _run_pnnx(_quietly(make, traced), inputs, place, half)
        except ExportError as error:
            failures.append(error)
    if len(failures) == len(_ROUTES):
        raise failures[0]


_ROUTES: dict[str, Callable[[Any], Any]] = {"traced": lambda traced: traced, "frozen": torch.jit.freeze}


def _quietly(make: Callable[[Any], Any], traced: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is called deprecated, and pnnx reads nothing else
        return make(traced)


def _trace(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    try:
        with evaluating(model), execution("fixed"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(model, tuple(inputs), check_trace=False).eval()  # type: ignore[no-untyped-call]
    except ExportError:
        raise
    except Exception as error:  # whatever the user's forward raises
        raise ExportError(
            f"torch.jit cannot trace the model: {described(error)}",
            "remove control flow that depends on tensor values from forward; --debug shows the whole message",
        ) from error


def _run_pnnx(traced: Any, inputs: Sequence[Tensor], folder: Path, half: bool) -> Converted:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced.save(str(folder / "graph.pt"))
    shapes = ",".join(f"[{','.join(map(str, value.shape))}]f32" for value in inputs)
    command = [_program(), "graph.pt", f"inputshape={shapes}", f"fp16={int(half)}"]
    try:
        done = subprocess.run(  # noqa: S603 - the program of the installed package
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"pnnx did not finish within {TIME_LIMIT_S} s", "report this model") from error
    converted = Converted(folder / "graph.ncnn.param", folder / "graph.ncnn.bin")
    if done.returncode or not converted.param.is_file() or not converted.weights.is_file():
        raise ExportError(f"pnnx cannot convert the model: {_reason(done)}", "--debug shows more; try --to onnx")
    return converted


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip(" #-")]
    said = next((line for word in _TELLING for line in lines if word in line.lower()), "")
    ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return f"{ended}{', after: ' if said or lines else ''}{(said or (lines or [''])[-1]).strip()[:200]}"


_TELLING = ("what():", "unsupported", "unknown", "error", "fail")
"""Words of the line that tells most, the most telling first."""


def _program() -> str:
    """The converter inside of the installed package."""
    import pnnx

    return str(Path(pnnx.__file__).with_name("pnnx"))
