"""Which targets there are, and what each can say here and now: the table of `secateur targets`.

Answers at once: nothing heavy is imported, packages are only looked for.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Literal

from secateur.core.errors import DeviceError
from secateur.targets.device import Device, Kind, get, names
from secateur.targets.farm.target import FarmTarget, farm_target, farm_targets, is_farm
from secateur.targets.nvidia import gpus
from secateur.targets.runtimes import RUNTIMES

Status = Literal["measured", "predicted", "unavailable"]


@dataclass(frozen=True)
class TargetStatus:
    """One line of the table: whether figures of this target are measured or predicted; if there are none, why not and
    how to get them."""

    name: str
    kind: Kind
    status: Status
    reason: str | None = None
    how: str | None = None

    def as_json(self) -> dict[str, str | None]:
        """The entry of this target in the JSON document of `targets`."""
        return asdict(self)


BASIS = {
    "calibrated": "from operators of this machine, measured by secateur calibrate",
    "published": "from published figures of this device",
    "soft_core": "from a model of the core, fitted to published figures",
    "roofline": "from the peaks of its data sheet alone",
    "routed": "from a cycle model and the routing of the workload, for models with experts",
    "streamed": "from the reuse factors of a design that fits on the board, for models that hls4ml takes",
}
"""Latency model of a device's file → what it comes from."""
_MEASURE = {
    "tvm": "export with --to tvm and run it there",
    "onnxruntime": "export with --to onnx and run it there",
    "ncnn": "export with --to ncnn and run it there, over adb or ssh",
    "openvino": "export with --to openvino and run it there",
    "tensorrt": "run secateur on a machine with this GPU",
    "edge-moe": "synthesise the published accelerator for the board",
    "vitis-ai": "export with --to onnx and compile it with the vendor's tools for the board",
    "hls4ml": "export with --to hls and synthesise it with the vendor's tools for the board",
}
_PACKAGE = {"tvm": '"secateur[tvm]"'}
_NEEDS = {"ncnn": (RUNTIMES["ncnn"].packages, RUNTIMES["ncnn"].extra), "tvm": (("tvm", "tvm_ffi"), "tvm")}
"""Runtime of a farm's device → packages that make its files here, and the extra that brings them."""
_ELSEWHERE: tuple[Kind, ...] = ("gpu", "mobile", "fpga")


def status() -> list[TargetStatus]:
    """Every target: the devices of this version and of the user's folder, then those of the farm."""
    return [*map(_named_status, names()), *_farm_status()]


def status_of(name: str) -> TargetStatus:
    """One target, or a device's YAML file.

    Raises:
        DeviceError: no such device, or a mistake in its description.
    """
    return device_status(find(name))


def find(name: str) -> Device:
    """A device by name or YAML file, or one of the farm.

    Raises:
        DeviceError: no such device, or a mistake in its description.
    """
    return farm_target(name) if is_farm(name) else get(name)


def _farm_status() -> list[TargetStatus]:
    try:
        return [device_status(target) for target in farm_targets()]
    except DeviceError as error:
        return [TargetStatus("farm", "mobile", "unavailable", error.message, error.hint)]


def _named_status(name: str) -> TargetStatus:
    """The status of one name; a user's file with a mistake is told and hides no other."""
    try:
        return device_status(get(name))
    except DeviceError as error:
        kind: Kind = next((each for each in _ELSEWHERE if name.startswith(each)), "cpu")
        return TargetStatus(name, kind, "unavailable", error.message, error.hint)


def device_status(device: Device) -> TargetStatus:
    """What can be said of one device, a user's own included."""
    if isinstance(device, FarmTarget):
        return _status_on_farm(device)
    if device.here and device.kind == "gpu" and gpus():
        return TargetStatus(device.name, device.kind, "measured", f"on {gpus()[0]}")
    if device.here and device.kind != "gpu" and device.runtime in RUNTIMES:
        return _status_here(device)
    if device.kind != "cpu" and device.latency is not None:
        why = "; ".join(filter(None, (BASIS[device.latency.model], stand_in(device))))
        how = "run secateur on a machine with an NVIDIA GPU" if device.here else _MEASURE[device.runtime]
        return TargetStatus(device.name, device.kind, "predicted", why, how)
    if device.kind != "cpu":
        return TargetStatus(
            device.name, device.kind, "unavailable", "its file names no latency model", "add one: see docs/targets.md"
        )
    if importlib.util.find_spec(device.runtime) is None:
        reason = f"{device.runtime} is not installed"
        how = f"install it with: pip install {_PACKAGE.get(device.runtime, device.runtime)}"
        return TargetStatus(device.name, device.kind, "unavailable", reason, how)
    return TargetStatus(device.name, device.kind, "measured")


def stand_in(device: Device) -> str | None:
    """What a prediction is of, where that is another device: in words."""
    if device.like is None:
        return None
    missing = "there is no NVIDIA GPU here, " if device.here and device.kind == "gpu" and not gpus() else ""
    return f"{missing}as {device.like}"


def _status_on_farm(target: FarmTarget) -> TargetStatus:
    """Whether a device can be reached is seen when it is asked to measure."""
    packages, extra = _NEEDS[target.runtime]
    missing = next((name for name in packages if importlib.util.find_spec(name) is None), None)
    if missing is None:
        return TargetStatus(target.name, target.kind, "measured", f"on {target.title}, while it can be reached")
    how = f'install it with: pip install "secateur[{extra}]"'
    status: Status = "unavailable" if target.latency is None else "predicted"
    return TargetStatus(target.name, target.kind, status, f"{missing} is not installed", how)


def _status_here(device: Device) -> TargetStatus:
    runtime = RUNTIMES[device.runtime]
    if (package := runtime.missing()) is not None:
        how = f'install it with: pip install "secateur[{runtime.extra}]"'
        return TargetStatus(device.name, device.kind, "unavailable", f"{package} is not installed", how)
    return TargetStatus(device.name, device.kind, "measured")
