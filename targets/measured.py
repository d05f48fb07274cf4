"""From samples to profiles: what every target that measures says of its models, in the same words.

profiles_of(samples, "cpu", "onnxruntime 1.32, threads 1", inputs, against="before")
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.core.costs import Profile
from secateur.profiles.timing import speedup, summarise

Inputs = Mapping[str, Sequence[np.ndarray[Any, Any]]]
"""Name of a model → its inputs."""


def profiles_of(
    samples: Mapping[str, Sequence[float]],
    target: str,
    backend: str,
    inputs: Inputs,
    *,
    params: Mapping[str, int] | None = None,
    against: str | None = None,
) -> dict[str, Profile]:
    """Name → profile with source "measured".

    Args:
        samples: milliseconds of each model; sampled in turns where `against` is given.
        backend: the runtime with its version and settings; the batch is added.
        against: name of the model that `speedup_against` of the others refers to.
    """
    each = _batches(inputs)

    def profile(name: str, times: Sequence[float]) -> Profile:
        compared = against is not None and name != against
        return Profile(
            target, f"{backend}, batch {each[name]}", "measured", summarise(times), params=(params or {}).get(name),
            speedup_against=speedup(samples[against], times).median if compared else None,  # type: ignore[index]
        )  # fmt: skip

    return {name: profile(name, times) for name, times in samples.items()}


def _batches(inputs: Inputs) -> dict[str, int]:
    """How many samples a call of each model computes, as the first dimension of its first input says.

    Warns:
        UserWarning: they differ, so that latencies are of different work.
    """
    found = {name: int(given[0].shape[0]) if given and given[0].ndim > 1 else 1 for name, given in inputs.items()}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in found.items())
        warnings.warn(
            f"the models are called with different numbers of samples ({told}): compare with care", stacklevel=2
        )
    return found
