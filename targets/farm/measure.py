"""Measuring on a device of the farm: the first that is free, another one of its key when it is lost.

measure_on_farm(farm_target("farm:pixel-6"), {"model": Path("model.ncnn.param")})
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from secateur.core.costs import Profile
from secateur.core.errors import DeviceLostError, ExportError
from secateur.core.scratch import Scratch
from secateur.targets.cpu import Shapes
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases
from secateur.targets.farm.network import Network, job_of, measure, profile
from secateur.targets.farm.schedule import run_all
from secateur.targets.farm.target import FarmTarget


def measure_on_farm(
    target: FarmTarget, files: Mapping[str, Path], *, shapes: Shapes | None = None, against: str | None = None
) -> dict[str, Profile]:
    """Latency of networks, in turns on one device.

    Args:
        files: name → graph of ncnn, with the files that belong to it beside it; or ONNX, for devices that run TVM.
        shapes: input name → shape, for ONNX files that leave more than the batch open.
        against: name of the network that `speedup_against` of the others refers to.

    Raises:
        DeviceLostError: no device could be reached, or each was lost.
        ExportError: a device cannot run the networks, or computes something else.
        MissingExtraError: what makes or checks networks of its runtime is not installed.
    """
    with Scratch() as temporary:
        folder = Path(temporary)
        networks = {name: _network(target, path, folder, shapes or {}) for name, path in files.items()}
        job = job_of(target.devices[0].key, "/".join(networks), networks)
        work, journal, leases = partial(measure, against=against), Journal(folder / "journal"), Leases(target.leases)
        outcome = run_all([job], target.devices, work, journal, leases)[job.name]
    if "unavailable" in outcome:
        raise DeviceLostError(f"{target.name}: {outcome['unavailable']}", outcome["hint"])
    if "failed" in outcome:
        raise ExportError(f"{target.name}: {outcome['failed']}", outcome["hint"])
    return {name: profile(target.name, outcome, name) for name in networks}


def _network(target: FarmTarget, path: Path, folder: Path, shapes: Shapes) -> Network:
    if target.runtime == "ncnn":
        return Network.read(path)
    return Network.compile(path, Path(tempfile.mkdtemp(dir=folder)), target.devices[0].arch, shapes)
