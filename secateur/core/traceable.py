"""Stand-ins: modules that compute the same as others, from the same weights, where the others' code cannot be traced.

A mixture of experts may loop over the experts that some token chose, which no graph can hold. Who knows such modules
registers how to put stand-ins into a copy of a model (`compress/experts/twin.py`); who traces a model to count or to
export it, and does not change it, traces `traceable(model)`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Rewrite = Callable[[nn.Module], nn.Module]
_REWRITES: list[Rewrite] = []


def stands_in(rewrite: Rewrite) -> Rewrite:
    """Decorator: register what gives a model itself, or a copy with stand-ins."""
    _REWRITES.append(rewrite)
    return rewrite


def traceable(model: nn.Module) -> nn.Module:
    """The model itself, or a copy with stand-ins that computes the same; parameters may be named otherwise there."""
    for rewrite in _REWRITES:
        model = rewrite(model)
    return model
