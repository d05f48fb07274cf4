"""How to run a model fast on its device without changing what it computes: memory layout, reduced precision, and memory
that is kept between steps."""

from __future__ import annotations

import contextlib
import copy
import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.core.predict import predict
from secateur.core.task import Task

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's `mallopt`."""


def fast_layout(
    inputs: Any, tasks: tuple[Task, ...], *models: nn.Module, trained: nn.Module | None = None
) -> torch.memory_format:
    """Channels last, which convolutions run twice as fast on, unless the forward of some model cannot take it (a `view`
    of a feature map needs the contiguous layout), in evaluation mode, or of the `trained` one in training mode."""
    runs = [(model, False) for model in models] + ([(trained, False), (trained, True)] if trained is not None else [])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for model, training in runs:
            trial = lay_out(copy.deepcopy(model), torch.channels_last).train(training)
            try:
                predict(trial, in_layout(inputs, torch.channels_last), tasks)
            except RuntimeError:
                return torch.contiguous_format
            except ValueError:  # one sample can be too little for a batch norm to learn from
                if not training:
                    raise
    return torch.channels_last


def lay_out(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Put a model's weights into a memory layout, in place; those of convolutions over volumes or sequences stay."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=layout)
    return model


def in_layout(value: Any, layout: torch.memory_format) -> Any:
    """All 4-dimensional tensors of a nested value in a memory layout; the numbers stay."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor

    return pytree.tree_map_only(Tensor, convert, value)


def fast_bfloat16(device: str) -> bool:
    """Whether a device computes bfloat16 in hardware."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fast_precision(model: nn.Module, inputs: Any, tasks: tuple[Task, ...]) -> torch.dtype:
    """What a model's device multiplies matrices in fastest, with enough digits to train in: float32 where the model
    cannot be trained in less. Whether a small model gains by it is not measured: the same run would then not end in the
    same weights."""
    device = next(model.parameters()).device.type
    fast = torch.bfloat16 if fast_bfloat16(device) else torch.float16 if device == "cuda" else torch.float32
    return fast if fast == torch.float32 or trains_in(fast, model, inputs, tasks) else torch.float32


def float32(value: Tensor) -> Tensor:
    """Reduced precisions widened; everything else as it is."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def trains_in(precision: torch.dtype, model: nn.Module, inputs: Any, tasks: tuple[Task, ...]) -> bool:
    """Whether a copy of the model can be run forwards and backwards. It cannot where an operation has no kernel for the
    precision, where the model writes what it computed into a float32 tensor of its own, or where the batch is too small
    for a batch norm to learn from."""
    trial = copy.deepcopy(model).train()
    try:
        with torch.autocast(next(trial.parameters()).device.type, precision):
            leaves = pytree.tree_leaves(predict(trial, inputs, tasks))
        found = [leaf.float().sum() for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        torch.autograd.backward(torch.stack(found).sum())
    except (RuntimeError, ValueError):
        return False
    return True


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next step to use: glibc hands large tensors back to the system, and
    getting them anew is a page fault for every 4 KiB. For a command's own process: a library does not decide over its
    caller's memory. Where the C library is another, nothing changes."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        for size in (2**30, 2**25):  # the larger one is refused by versions before 2.35
            if libc.mallopt(MMAP_THRESHOLD, size):
                break
        libc.mallopt(TRIM_THRESHOLD, 2**30)
