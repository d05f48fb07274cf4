"""Measuring with a runtime of this machine: each model in a process of its own, in turns.

measure_here(get("mobile"), {"model": Path("model.ncnn.param")}, {"model": [image]})
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.core import machine
from secateur.core.costs import Profile
from secateur.export.runtime import Array
from secateur.targets.apart import Artefact, sample_apart
from secateur.targets.device import Device
from secateur.targets.measured import profiles_of
from secateur.targets.runtimes import RUNTIMES


def measure_here(
    device: Device,
    files: Mapping[str, Path],
    inputs: Mapping[str, Sequence[Array]],
    *,
    against: str | None = None,
    **how: Any,
) -> dict[str, Profile]:
    """Latency of files on this machine, with the runtime and the threads of a device file.

    Args:
        files: name → artefact in the runtime's format.
        inputs: of each, in the model's order.
        against: name of the file that `speedup_against` of the others refers to.
        how: see `secateur.profiles.timing.sample`.

    Raises:
        ExportError, MissingExtraError: an artefact that does not load or run.
    """
    runtime = RUNTIMES[device.runtime]
    threads = device.settings.threads or len(machine.cores())
    artefacts = {name: Artefact(runtime.format, path) for name, path in files.items()}
    samples = sample_apart(artefacts, inputs, threads=threads, **how)
    version = importlib.metadata.version(runtime.packages[0])
    backend = f"{device.runtime} {version}, threads {threads}"
    return profiles_of(samples, device.name, backend, inputs, against=against)
