"""Training and evaluation mode: each module's own, and what modules keep from one to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Each module is afterwards in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def forget(model: nn.Module) -> None:
    """Drop what modules keep from evaluation until training begins (a table that follows from parameters, say): it
    would be a constant of a trace, and belong to other parameters after a cut."""
    with modes_kept(model):
        training = model.training
        model.train()
        model.train(training)
