"""Training in several processes, as torchrun starts them: each takes every n-th batch, gradients are averaged.

Without torchrun's environment everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from secateur.compress.ranks import WorkerDone as WorkerDone

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """(rank, world size); joins the group that torchrun's environment describes, unless it is joined already."""
    import torch.distributed as dist

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_available():
        yield 0, 1
        return
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        if mine:
            dist.destroy_process_group()


def first_then_others(rank: int, world: int, make: Callable[[bool], T]) -> T:
    """`make(False)` in the first process, and `make(True)` in the others once that is done."""
    found = make(False) if rank == 0 else None
    if world > 1:
        import torch.distributed as dist

        dist.barrier()
    return found if found is not None else make(True)


def average_gradients(parameters: Iterable[Tensor], world: int) -> None:
    """The mean over all processes of every gradient, in one message; a missing gradient counts as zero."""
    if world == 1:
        return
    import torch.distributed as dist

    found = [p for p in parameters if p.requires_grad]
    for parameter in found:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in found if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    parts = torch.split(flat, [p.numel() for p in found])
    for parameter, part in zip(found, parts, strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))


def all_finite(finite: bool, world: int) -> bool:
    """Whether it is so in every process: all stop together."""
    if world == 1:
        return finite
    import torch.distributed as dist

    flag = torch.tensor(float(finite))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())
