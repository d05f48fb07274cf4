"""The oracle computes in bfloat16 only where the model loses the same in it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from secateur.compress.dataflow import trace
from secateur.compress.pagcp import Settings
from secateur.compress.pagcp.calibration import chunked
from secateur.compress.pagcp.oracle import Oracle
from secateur.compress.pagcp.round import oracle_precision
from secateur.core.errors import BudgetError
from secateur.core.task import Workload

GROUP = "deep.0"


class Fine(nn.Module):
    """The tiny model, its brightness known to a thousandth of what bfloat16 can tell apart."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Linear(1, 1)
        nn.init.constant_(self.scale.weight, 100.0)
        nn.init.constant_(self.scale.bias, -100.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.inner(x)
        return {**out, "brightness": self.scale(1 + 1e-3 * out["brightness"])}


def oracle(model: nn.Module, squares: Workload, precision: torch.dtype) -> Oracle:
    chunks = chunked(tiny.batches(2, 16, noisy=True), 16)
    return Oracle(trace(model, chunks[0][0]), chunks, squares.tasks, 2**28, precision=precision)


def test_losses_differ_by_rounding_alone(squares: Workload) -> None:
    exact, rounded = (oracle(squares.model, squares, each) for each in (torch.float32, torch.bfloat16))
    assert rounded.precision == torch.bfloat16
    keep = {GROUP: np.arange(2)}
    for one, other in zip(exact.chunk_losses(keep), rounded.chunk_losses(keep), strict=True):
        assert one != other
        for task, loss in one.items():
            assert other[task] == pytest.approx(loss, rel=0.05)


def test_a_model_that_needs_the_digits_is_judged_in_float32(squares: Workload) -> None:
    assert oracle(Fine(squares.model), squares, torch.bfloat16).precision == torch.float32


def test_the_published_procedure_is_run_in_float32(squares: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compress.pagcp.round.fast_bfloat16", lambda device: True)
    assert oracle_precision(Settings(), squares.model) == torch.bfloat16
    assert oracle_precision(Settings().published(), squares.model) == torch.float32
    monkeypatch.setattr("secateur.compress.pagcp.round.fast_bfloat16", lambda device: False)
    assert oracle_precision(Settings(), squares.model) == torch.float32


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(BudgetError, match="oracle_precision"):
        Settings(oracle_precision="int8")
