"""Damped least squares: the smallest change of a linear map with which inputs give wanted outputs.

min_W  Σ_n ‖y_n - W·x_n - b‖² + r·‖W - W_0‖²
"""

from __future__ import annotations

import torch
from torch import Tensor


def damped(gram: Tensor, ridge: float) -> Tensor:
    """A Gram matrix [n, n] that can be inverted: with a share of its mean diagonal added to the diagonal."""
    size = ridge * gram.diagonal().mean().clamp_min(1e-12)
    return gram + size * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def least_squares(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, ridge: float
) -> tuple[Tensor, Tensor | None]:
    """The weight [out, in], near the given one, and the bias, with which x [n, in] gives y [n, out].

    Args:
        bias: None for a map without one.
        ridge: r, as a share of the mean square of the inputs.
    """
    x, y, start = x.double(), y.double(), weight.detach().double()
    x_mean = x.mean(0) if bias is not None else torch.zeros_like(x[0])
    y_mean = y.mean(0) if bias is not None else torch.zeros_like(y[0])
    x, y = x - x_mean, y - y_mean
    found = start + torch.linalg.solve(damped(x.T @ x, ridge), x.T @ (y - x @ start.T)).T
    shift = (y_mean - found @ x_mean).to(weight.dtype) if bias is not None else None
    return found.to(weight.dtype), shift
