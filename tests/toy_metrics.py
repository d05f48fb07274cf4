"""The metric of toy regressions."""

from __future__ import annotations

from torch import Tensor

from secateur.workloads.metrics import Mean


class AbsoluteError(Mean):
    """Mean of |predicted - true| over all values."""

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs()
