"""Networks as work for a farm: run in turns on one device, checked against what they compute here.

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
from secateur.export import formats
from secateur.export.ncnn_session import NcnnModel, Signature, signature_of, weights_of
from secateur.export.onnx_session import OnnxModel, open_session
from secateur.export.parity import TOLERANCES
from secateur.export.runtime import Array
from secateur.profiles.timing import speedup, summarise
from secateur.targets.cpu import Shapes, make_inputs
from secateur.targets.farm.device_run import DeviceRun, Inputs, digest, run_on
from secateur.targets.farm.file import FarmDevice
from secateur.targets.farm.schedule import Job, Outcome


@dataclass(frozen=True)
class Network:
    """A network, the noise that it is run on, and what it must give for that.

    Attributes:
        files: the network's own first, then those that belong to it.
        precision: key of `parity.TOLERANCES`.
    """

    files: tuple[Path, ...]
    inputs: Inputs
    expected: Mapping[str, Array]
    precision: str = "fp32"

    @classmethod
    def read(cls, path: Path) -> Network:
        """A graph of ncnn, run here once.

        Raises:
            ExportError, MissingExtraError: it does not run here.
        """
        signature = Signature.read(path)
        inputs = Inputs.noise(signature)
        files = (path, weights_of(path), signature_of(path))
        return cls(files, inputs, NcnnModel(path).run(inputs.values), signature.storage)

    @classmethod
    def compile(cls, onnx_file: Path, folder: Path, arch: str, shapes: Shapes) -> Network:
        """An ONNX file, run here once with ONNX Runtime, and compiled with TVM into a folder that exists.

        Args:
            shapes: input name → shape, for what the file leaves open besides the batch.

        Raises:
            ExportError, MissingExtraError: it does not run here, or TVM cannot compile it.
        """
        from secateur.export import tvm_format

        formats.get(tvm_format.Tvm.name).require()
        feed = make_inputs(open_session(onnx_file).get_inputs(), onnx_file, 1, shapes)
        closed = {name: each.shape for name, each in feed.items()}
        path = tvm_format.compile_onnx(onnx_file, folder / "model.tvm.so", arch, closed)
        inputs = Inputs(tuple(feed.values()))
        expected = OnnxModel(onnx_file, 1).run(inputs.values)
        return cls((path, tvm_format.signature_of(path)), inputs, expected)


def job_of(key: str, name: str, networks: Mapping[str, Network]) -> Job:
    """The same networks on the same kind of device are the same job, in a later run too."""
    files = [file for each in networks.values() for file in each.files]
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
    files = {name: each.files[0] for name, each in networks.items()}
    inputs = {name: each.inputs for name, each in networks.items()}
    if device.runtime == "tvm":
        from secateur.targets.farm.rpc_run import run_over_rpc

        run = run_over_rpc(device, files, inputs, seed=seed)
    else:
        run = run_on(device, device.reach.open(), files, inputs, seed=seed)
    return _outcome(device, run, networks, against)


def profile(target: str, outcome: Outcome, label: str) -> Profile:
    """What an outcome says of one of its networks; whatever else it was, it says why there is no figure."""
    if "latency_ms" not in outcome:
        reason = outcome.get("unavailable") or outcome.get("failed") or "no figure"
        return Profile(target, "", "unavailable", reason=reason, how=outcome.get("hint") or None)
    return Profile(
        target,
        f"{outcome['runtime']} on {outcome['device']}, threads {outcome['threads']}, batch 1",
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
        "runtime": f"{device.runtime} {run.said.version}",
        "threads": run.said.threads,
        "clock_khz": run.said.clock_khz,
        "temperature_c": run.said.temperature_c,
    }


def _agreement(device: FarmDevice, name: str, outputs: Mapping[str, Array], network: Network) -> float:
    """The largest difference from what this machine computes.

    Raises:
        ExportError: beyond tolerance.
    """
    tolerance = TOLERANCES[network.precision]
    worst = 0.0
    for task, wanted in network.expected.items():
        off = float(np.abs(outputs[task] - wanted).max(initial=0.0))
        allowed = tolerance.atol + tolerance.rtol * float(np.abs(wanted).max(initial=0.0))
        if not off <= allowed:
            raise ExportError(
                f'{device.name} computes something else: task "{task}" of {name} differs by {off:.3g}, '
                f"{allowed:.3g} is allowed",
                "run there what this machine runs: the same version of ncnn or TVM",
            )
        worst = max(worst, off)
    return worst
