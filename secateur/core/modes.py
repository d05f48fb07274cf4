"""Training and evaluation mode: each module's own, and what modules keep from one to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Each module is afterwards in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def averaging(norms: Sequence[_NormBase]) -> Iterator[None]:
    """Normalisation layers gather running statistics as plain averages over what they see, and stop after that."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


def forget(model: nn.Module) -> None:
    """Drop what modules keep from evaluation until training begins (a table that follows from parameters, say): it
    would be a constant of a trace, and belong to other parameters after a cut."""
    with modes_kept(model):
        training = model.training
        model.train()
        model.train(training)
