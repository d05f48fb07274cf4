"""Ranks: one run in several processes, as torchrun starts them. Rank 0 decides and writes, the others take over what
it sends; in fine-tuning each takes every n-th batch.

Without torchrun's environment there is one rank, and everything here does nothing. What is sent are tensors and JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


class WorkerDone(Exception):  # noqa: N818 - no error: the first process writes the result
    """This is not the first of several processes, and its part is done."""


def rank() -> int:
    """This process's number; 0 when there is but one."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def world() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this is the process that decides and writes."""
    return rank() == 0


def connected() -> bool:
    """Whether the processes can talk: inside of `joined()`, with more than one of them."""
    return world() > 1 and dist.is_available() and dist.is_initialized()


@contextmanager
def joined() -> Iterator[None]:
    """Join the group that torchrun's environment describes, unless it is joined already."""
    if world() == 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def mean(values: Tensor) -> Tensor:
    """The mean over all processes; not finite when it is so in any of them."""
    if not connected():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """The mean over all processes of every gradient, in one message; a missing gradient counts as zero."""
    if not connected():
        return
    found = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in found:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    averaged = mean(torch.cat([p.grad.flatten() for p in found if p.grad is not None]))
    for parameter, part in zip(found, torch.split(averaged, [p.numel() for p in found]), strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))


def from_leader(value: Any) -> Any:
    """Rank 0's value, which can be written as JSON, in every process."""
    if not connected():
        return value
    return json.loads(bytes_from_leader(json.dumps(value).encode() if leads() else b""))


def bytes_from_leader(data: bytes) -> bytes:
    """Rank 0's bytes in every process."""
    if not connected():
        return data
    size = torch.tensor([len(data)])
    dist.broadcast(size, 0)
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data and leads() else None
    if buffer is None:
        buffer = torch.zeros(int(size), dtype=torch.uint8)
    if int(size):
        dist.broadcast(buffer, 0)
    return buffer.numpy().tobytes()


@torch.no_grad()
def state_from_leader(model: nn.Module) -> None:
    """Rank 0's parameters and buffers in every process, in place."""
    if not connected():
        return
    for tensor in model.state_dict().values():
        whole = tensor.contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)
