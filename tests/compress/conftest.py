"""The small model of the tests of pruning and fine-tuning, trained once."""

from __future__ import annotations

import copy

import pytest
import tiny
from torch import nn

from secateur.core.task import Workload


@pytest.fixture(scope="session")
def trained_squares() -> nn.Module:
    return tiny.trained()


@pytest.fixture
def squares(trained_squares: nn.Module) -> Workload:
    return tiny.workload(copy.deepcopy(trained_squares))
