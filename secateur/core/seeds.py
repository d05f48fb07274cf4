"""Randomness from one place: every run starts from one seed, and every later step from (seed, step)."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_loader(loader: object) -> None:
    """Seed the generator of a data loader or its sampler, where it has one of its own, as torch's own was seeded."""
    for drawing in (loader, getattr(loader, "sampler", None)):
        if isinstance(generator := getattr(drawing, "generator", None), torch.Generator):
            generator.manual_seed(torch.initial_seed())


def seed_everything(seed: int, step: int = 0) -> None:
    """Seed Python, numpy and torch. With the step mixed in, a resumed run draws what the whole run would have."""
    mixed = (seed * 1_000_003 + step) % 2**31
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 - users' loaders draw from the global generator
    torch.manual_seed(mixed)
