"""Networks of ncnn as work for a farm: run in turns on one device, checked against what ncnn computes here.

work = {"original": Network.read(a), "mine": Network.read(b)}
outcome = measure(device, job_of("pixel-6", "mine", work), against="original")
profile("farm:pixel-6", outcome, "mine")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.core.costs import Latency, Profile
from secateur.core.errors import ExportError
from secateur.export.ncnn_session import NcnnModel, Signature, signature_of, weights_of
from secateur.export.parity import TOLERANCES
from secateur.export.runtime import Array
from secateur.profiles.timing import speedup, summarise
from secateur.targets.farm.device_run import DeviceRun, Inputs, digest, run_on
from secateur.targets.farm.file import FarmDevice
from secateur.targets.farm.schedule import Job, Outcome


@dataclass(frozen=True)
class Network:
    """A network of ncnn, the noise that it is run on, and what it must give for that."""

    path: Path
    inputs: Inputs
    expected: Mapping[str, Array]

    @classmethod
    def read(cls, path: Path) -> Network:
        """A graph, with the files that belong to it beside it, run here once.

        Raises:
            ExportError, MissingExtraError: it does not run here.
        """
        inputs = Inputs.noise(Signature.read(path))
        return cls(path, inputs, NcnnModel(path).run(inputs.values))


def job_of(key: str, name: str, networks: Mapping[str, Network]) -> Job:
    """The same networks on the same kind of device are the same job, in a later run too."""
    files = [file for each in networks.values() for file in (each.path, weights_of(each.path), signature_of(each.path))]
    return Job(f"{name}@{key}#{digest(*files)[:16]}", key, networks)


def measure(device: FarmDevice, job: Job, *, against: str | None = None, seed: int = 0) -> Outcome:
    """A job's networks on a device.

    Args:
        against: name of the network that the speed-up of the others refers to, where the job has it.
        seed: of the order within each round.

    Raises:
        DeviceLostError: the device is gone.
        ExportError: it cannot run them, or computes something else than this machine.
    """
    networks: Mapping[str, Network] = job.work
    run = run_on(
        device,
        device.reach.open(),
        {name: each.path for name, each in networks.items()},
        {name: each.inputs for name, each in networks.items()},
        seed=seed,
    )
    return _outcome(device, run, networks, against)


def profile(target: str, outcome: Outcome, label: str) -> Profile:
    """What an outcome says of one of its networks; whatever else it was, it says why there is no figure."""
    if "latency_ms" not in outcome:
        reason = outcome.get("unavailable") or outcome.get("failed") or "no figure"
        return Profile(target, "ncnn", "unavailable", reason=reason, how=outcome.get("hint") or None)
    return Profile(
        target,
        f"ncnn {outcome['ncnn']} on {outcome['device']}, threads {outcome['threads']}, batch 1",
        "measured",
        Latency(**outcome["latency_ms"][label]),
        parity_max_abs=outcome["parity"][label],
        speedup_against=outcome["speedup"].get(label),
    )


def _outcome(device: FarmDevice, run: DeviceRun, networks: Mapping[str, Network], against: str | None) -> Outcome:
    latency = {name: summarise(times) for name, times in run.samples.items()}
    base = run.samples.get(against) if against else None
    others = {name: times for name, times in run.samples.items() if name != against}
    return {
        "latency_ms": {name: {**each.as_json(), "repeats": each.repeats} for name, each in latency.items()},
        "speedup": {name: speedup(base, times).median for name, times in others.items()} if base else {},
        "parity": {name: _agreement(device, name, run.outputs[name], each) for name, each in networks.items()},
        "ncnn": run.said.version,
        "threads": run.said.threads,
        "clock_khz": run.said.clock_khz,
        "temperature_c": run.said.temperature_c,
    }


def _agreement(device: FarmDevice, name: str, outputs: Mapping[str, Array], network: Network) -> float:
    """The largest difference from what this machine computes.

    Raises:
        ExportError: beyond tolerance.
    """
    tolerance = TOLERANCES[Signature.read(network.path).storage]
    worst = 0.0
    for task, wanted in network.expected.items():
        off = float(np.abs(outputs[task] - wanted).max(initial=0.0))
        allowed = tolerance.atol + tolerance.rtol * float(np.abs(wanted).max(initial=0.0))
        if not off <= allowed:
            raise ExportError(
                f'{device.name} computes something else: task "{task}" of {name} differs by {off:.3g}, '
                f"{allowed:.3g} is allowed",
                "build its runner again, from the same ncnn as the Python package",
            )
        worst = max(worst, off)
    return worst
