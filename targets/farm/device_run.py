"""One run on one device: push the runner and the networks, run them in turns, and read what the runner says.

    run_on(device, device.reach.open(), {"before": Path("a.ncnn.param"), "after": Path("b.ncnn.param")})

The outputs are fetched as well, so that a figure never stands for a network that computes something else there. A run
works in a folder that this machine has on the device; what an earlier run left in it, killed with its cable or its
computer, is ended and removed first.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from secateur.core import machine
from secateur.core.errors import DeviceLostError, ExportError
from secateur.core.files import sha256
from secateur.core.scratch import Scratch
from secateur.export.ncnn_session import Signature, weights_of
from secateur.export.runtime import Array
from secateur.targets.farm.file import FarmDevice
from secateur.targets.farm.reach import Reach

PATH_OF_HEAT = "/sys/class/thermal/thermal_zone*/temp"
_CLEAR = """if [ -d {place} ]; then
  here=$(cd {place} && pwd -P)
  ls -l /proc/[0-9]*/cwd 2>/dev/null | while read -r line; do
    case "$line" in *" -> $here") pid=${{line##*/proc/}}; kill -9 "${{pid%%/*}}";; esac
  done
  rm -rf {place}
fi"""
"""End whoever works in a folder, and remove it; where there is no /proc, nobody is found."""


@dataclass(frozen=True)
class Inputs:
    """What a network is run on, in its order, with a batch of one."""

    values: tuple[Array, ...]

    @classmethod
    def noise(cls, signature: Signature, seed: int = 0) -> Inputs:
        """Normal noise of the right shapes."""
        draw = np.random.default_rng(seed)
        return cls(tuple(draw.standard_normal(each.shape).astype(np.float32) for each in signature.inputs))


@dataclass
class Said:
    """What a runner said."""

    version: str = ""
    threads: int = 0
    samples: dict[str, list[float]] = field(default_factory=dict)  # milliseconds
    shapes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # blob and size of each output
    clock_khz: dict[str, int] = field(default_factory=dict)  # before and after, where it can be read
    temperature_c: dict[str, float] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class DeviceRun:
    """Times of each network in milliseconds, those of one round at the same place in each list, its outputs by task,
    and the state of the device."""

    samples: dict[str, list[float]]
    outputs: dict[str, dict[str, Array]]
    said: Said


def run_on(
    device: FarmDevice,
    reach: Reach,
    networks: Mapping[str, Path],
    inputs: Mapping[str, Inputs],
    *,
    seed: int = 0,
    sleep: Callable[[float], None] = time.sleep,
) -> DeviceRun:
    """Run networks of ncnn in turns on a device.

    Args:
        networks: name → graph, with the files that belong to it beside it.
        inputs: of each.
        seed: of the order within each round.

    Raises:
        DeviceLostError: the device is gone, or went in the middle.
        ExportError: the runner refused.
    """
    home = PurePosixPath(device.folder)
    place = home / f"run-{_owner(device)}"
    labels = {name: f"m{index}" for index, name in enumerate(networks)}
    signatures = {name: Signature.read(path) for name, path in networks.items()}
    _clear(reach, place)
    reach.run(["mkdir", "-p", str(place)])
    try:
        runner = _push_runner(device, reach, home)
        for name, path in networks.items():
            _push_network(reach, place / labels[name], path, signatures[name], inputs[name])
        cool(device, reach, sleep)
        half = device.half and all(each.storage == "fp16" for each in signatures.values())
        command = [*device.launcher, runner, *_options(device, half, seed)]
        command += [f"{labels[name]}={_shapes(each)}" for name, each in signatures.items()]
        said = parse(reach.run(command, device.timeout_s, folder=str(place)))
        if not said.complete:
            raise DeviceLostError(f"{device.name}: the runner's report ends early", "check cable or network")
        outputs = {
            name: _outputs(reach, place / f"{labels[name]}.out", said.shapes[labels[name]], signatures[name])
            for name in networks
        }
    finally:
        with suppress(DeviceLostError, ExportError):  # a device that is gone keeps its files until the next run
            _clear(reach, place)
    return DeviceRun({name: said.samples.get(label, []) for name, label in labels.items()}, outputs, said)


def parse(text: str) -> Said:
    """The report of a runner. What it does not know is skipped; a line that is cut off makes it incomplete.

    Raises:
        DeviceLostError: a line that no runner writes, as a bad connection leaves it.
    """
    said, count = Said(), 0
    for line in text.splitlines():
        word, *values = line.split()[:4] or [""]
        try:
            if word == "ncnn":
                said.version = values[0]
            elif word == "threads":
                said.threads = int(values[0])
            elif word == "output":
                size = int(np.prod([int(each) for each in values[2].split("x")]))
                said.shapes.setdefault(values[0], []).append((values[1], size))
            elif word == "sample":
                said.samples.setdefault(values[0], []).append(_positive(values[1]))
                count += 1
            elif word == "clock_khz":
                said.clock_khz[values[0]] = int(values[1])
            elif word == "temperature_mc":
                said.temperature_c[values[0]] = _celsius(values[1])
            elif word == "done":
                said.complete = int(values[0]) == count
        except (IndexError, ValueError) as error:
            raise DeviceLostError(
                f'the runner\'s report is damaged: "{line[:60]}"', "check cable or network"
            ) from error
    return said


def cool(device: FarmDevice, reach: Reach, sleep: Callable[[float], None] = time.sleep) -> None:
    """Let a device rest before a run, and cool down where its temperature can be read."""
    if device.cool_down_s:
        sleep(device.cool_down_s)
    if device.cool_below_c is None:
        return
    waited = 0.0
    while waited < device.cool_limit_s:
        heat = [_celsius(each) for each in reach.run_script(f"cat {PATH_OF_HEAT} 2>/dev/null || true").split()]
        if not heat or max(heat) <= device.cool_below_c:
            return
        sleep(2.0)
        waited += 2.0


def _owner(device: FarmDevice) -> str:
    """The same for all runs of one user of one machine on one device: of these its lease lets one at a time go on."""
    return hashlib.sha256(f"{platform.node()}|{machine.user()}|{device.name}".encode()).hexdigest()[:12]


def _push_runner(device: FarmDevice, reach: Reach, home: PurePosixPath) -> str:
    """The runner's path on the device, pushed unless this very program is there already."""
    local = Path(device.runner)
    remote = str(home / f"secateur-ncnn-{sha256(local)[:16]}")
    if "there" not in reach.run_script(f"test -x {shlex.quote(remote)} && echo there || true"):
        arriving = f"{remote}.{uuid.uuid4().hex[:8]}"
        reach.push(local, arriving)
        reach.run(["chmod", "755", arriving])
        reach.run(["mv", arriving, remote])
    return remote


def _push_network(reach: Reach, place: PurePosixPath, param: Path, signature: Signature, inputs: Inputs) -> None:
    given = [each.reshape(-1).astype("<f4").tobytes() for each in inputs.values]
    if [each.shape for each in inputs.values] != [tuple(each.shape) for each in signature.inputs]:
        raise ExportError(f"{param} takes inputs of other shapes", "give one sample in the shapes that it was made for")
    reach.push(param, f"{place}.param")
    reach.push(weights_of(param), f"{place}.bin")
    with Scratch() as folder:
        content = Path(folder) / "inputs"
        content.write_bytes(b"".join(given))
        reach.push(content, f"{place}.in")


def _options(device: FarmDevice, half: bool, seed: int) -> list[str]:
    options = ["--threads", str(device.threads), "--cores", device.cores, "--seed", str(seed)]
    options += ["--warmup", str(round(1e3 * device.warmup_s)), "--limit", str(round(1e3 * device.limit_s))]
    return [*options, "--half"] if half else options


def _shapes(signature: Signature) -> str:
    return ",".join("x".join(map(str, each.sample or (1,))) for each in signature.inputs)


def _outputs(
    reach: Reach, remote: PurePosixPath, shapes: list[tuple[str, int]], signature: Signature
) -> dict[str, Array]:
    content = reach.pull(str(remote))
    if len(content) != 4 * sum(size for _, size in shapes):
        raise DeviceLostError(f"{remote.name} did not arrive whole", "check cable or network")
    values, parts, start = np.frombuffer(content, "<f4"), {}, 0
    for blob, size in shapes:
        parts[blob] = values[start : start + size]
        start += size
    try:
        return {str(each.task): parts[each.blob].reshape(each.shape) for each in signature.outputs}
    except (KeyError, ValueError) as error:
        raise ExportError(f"the device computes other outputs: {error}", "export again") from error


def _clear(reach: Reach, place: PurePosixPath) -> None:
    reach.run_script(_CLEAR.format(place=shlex.quote(str(place))))


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("not a time")
    return value


def _celsius(text: str) -> float:
    """Kernels report thousandths of a degree; some old ones whole degrees."""
    value = float(text)
    return value / 1000 if abs(value) > 500 else value


def digest(*paths: Path) -> str:
    """One hash of several files' content."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(sha256(path).encode())
    return whole.hexdigest()
