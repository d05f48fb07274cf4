"""Windows: what a layer reads and writes at sampled places, while the user's model runs.

A convolution or linear layer is, at each place of its output, a matrix product with a window of its input; a few
hundred such rows per batch are enough to reason about the layer by least squares.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.predict import evaluating, predict
from secateur.core.task import Batch, Task

PLACES = 512
"""Places that are sampled of each call of a layer."""


@dataclass(frozen=True)
class Rows:
    """Sampled rows of one call: `inputs` [n, channels, window], `outputs` [n, filters]."""

    inputs: Tensor
    outputs: Tensor


def readable(module: nn.Module) -> bool:
    """Whether a layer mixes all its input channels as a matrix product does."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def observe(
    model: nn.Module,
    paths: Sequence[str],
    batches: Iterable[Batch],
    tasks: Sequence[Task],
    note: Callable[[str, Rows], None],
    *,
    only: bool = False,
) -> None:
    """Run a model on batches and tell `note` what the named layers read and wrote, call by call; the places are the
    same whenever the same layers see outputs of the same size.

    Args:
        only: stop each run as soon as the layers were called once; for a single layer.
    """
    for number, (inputs, _) in enumerate(batches):
        with evaluating(model), _hooks(model, paths, number, note, only):
            try:
                predict(model, inputs, tasks)
            except _SeenError:
                continue


class _SeenError(Exception):
    """All that was wanted of this run was seen."""


@contextmanager
def _hooks(
    model: nn.Module, paths: Sequence[str], number: int, note: Callable[[str, Rows], None], only: bool
) -> Iterator[None]:
    def hook(path: str) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            note(
                path,
                _rows(module, args[0] if args else kwargs["input"], output, zlib.crc32(f"{path} {number}".encode())),
            )
            if only:
                raise _SeenError

        return seen

    handles = [model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(module: nn.Module, inputs: Tensor, outputs: Tensor, seed: int) -> Rows:
    if isinstance(module, nn.Linear):
        flat_in, flat_out = (each.reshape(-1, each.shape[-1]) for each in (inputs, outputs))
        picks = _picks(len(flat_out), seed).to(inputs.device)
        return Rows(flat_in[picks][..., None].float(), flat_out[picks].float())
    assert isinstance(module, nn.Conv2d)
    if inputs.ndim == 3:
        inputs, outputs = inputs[None], outputs[None]
    count, _, height, width = outputs.shape
    picks = _picks(count * height * width, seed).to(inputs.device)
    sample, y, x = picks // (height * width), picks // width % height, picks % width
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    rows, columns = (
        (place * stride)[:, None] + torch.arange(size, device=place.device) * dilation
        for place, stride, size, dilation in zip(
            (y, x), module.stride, module.kernel_size, module.dilation, strict=True
        )
    )
    windows = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [n, kh, kw, channels]
    return Rows(windows.movedim(-1, 1).flatten(2).float(), outputs[sample, :, y, x].float())


def _picks(places: int, seed: int) -> Tensor:
    if places <= PLACES:
        return torch.arange(places)
    return torch.randint(places, (PLACES,), generator=torch.Generator().manual_seed(seed))
