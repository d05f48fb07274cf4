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
from secateur.targets.farm.journal import Journal
from secateur.targets.farm.lease import Leases
from secateur.targets.farm.network import Network, job_of, measure, profile
from secateur.targets.farm.schedule import run_all
from secateur.targets.farm.target import FarmTarget


def measure_on_farm(target: FarmTarget, files: Mapping[str, Path], *, against: str | None = None) -> dict[str, Profile]:
    """Latency of networks of ncnn, in turns on one device.

    Args:
        files: name → graph, with the files that belong to it beside it.
        against: name of the network that `speedup_against` of the others refers to.

    Raises:
        DeviceLostError: no device could be reached, or each was lost.
        ExportError: a device cannot run the networks, or computes something else.
    """
    networks = {name: Network.read(path) for name, path in files.items()}
    job = job_of(target.devices[0].key, "/".join(networks), networks)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        journal = Journal(Path(folder) / "journal")
        outcome = run_all([job], target.devices, partial(measure, against=against), journal, Leases(target.leases))[
            job.name
        ]
    if "unavailable" in outcome:
        raise DeviceLostError(
            f"{target.name}: {outcome['unavailable']}", "check that it is on, connected and authorised"
        )
    if "failed" in outcome:
        raise ExportError(f"{target.name}: {outcome['failed']}", outcome["hint"])
    return {name: profile(target.name, outcome, name) for name in networks}
