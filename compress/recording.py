"""Recording: what modules return while the user's code runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def recording(model: nn.Module, paths: Sequence[str]) -> Iterator[list[tuple[str, Any]]]:
    """(path, output) of the named modules' calls inside of the block, in the order in which they return."""
    seen: list[tuple[str, Any]] = []

    def hook(path: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            seen.append((path, output))

        return note

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
