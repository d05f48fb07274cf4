"""Device: a piece of hardware described in YAML, one file each; users bring their own in the same form.

    get("mobile:raspberry-pi-5")  the devices of this version, from targets/devices/*.yaml, and of the user's folder
    get("boards/mine.yaml")       any other file of the user's

docs/targets.md shows every key. Figures are text with a unit and say where they come from.
"""

from __future__ import annotations

import os
import re
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from secateur.core.errors import DeviceError
from secateur.targets.runtimes import RUNTIMES

Kind = Literal["cpu", "gpu", "mobile", "fpga"]
LARGEST_FILE = 64 * 1024

_DECIMAL = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"": 1.0, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_MILLI = {"k": 1e3, "": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15}


def _parse_figure(text: Any, *, unit: str, prefixes: dict[str, float], least: str, most: str) -> float:
    """`"34 GB/s"` → 3.4e10, for the unit `B/s` and decimal prefixes; between `least` and `most`, which are units with
    prefixes: what lies beyond is a prefix that was mistyped."""
    example = next(prefix for prefix in ("G", "Gi", "m", "") if prefix in prefixes) + unit
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*?)" + re.escape(unit), text) if type(text) is str else None
    if match is None or match[2] not in prefixes:
        raise ValueError(f'{text!r} is not a number with a unit, such as "34 {example}"')
    if float(match[1]) == 0:
        raise ValueError("must be above zero")
    value = float(match[1]) * prefixes[match[2]]
    if not prefixes[least] <= value <= prefixes[most]:
        raise ValueError(f"{text!r} is beyond what hardware has, 1 {least}{unit} to 1 {most}{unit}: check its unit")
    return value


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader, in C where there is one, that takes no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice} stands twice")
        return super().construct_mapping(node, deep=deep)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Sourced(_Model):
    source: str = Field(min_length=1)  # where the figure comes from: a data sheet, a paper, a measurement


def _unit(unit: str, prefixes: dict[str, float], least: str, most: str) -> BeforeValidator:
    return BeforeValidator(partial(_parse_figure, unit=unit, prefixes=prefixes, least=least, most=most))


class Compute(_Sourced):
    """Peak arithmetic, in FLOP/s (1 MAC = 2 FLOPs)."""

    value: Annotated[float, _unit("FLOP/s", _DECIMAL, "M", "P")]


class Bandwidth(_Sourced):
    """Memory bandwidth, in bytes per second."""

    value: Annotated[float, _unit("B/s", _DECIMAL | _BINARY, "M", "P")]


class Memory(_Sourced):
    """Memory that a model may fill, in bytes."""

    value: Annotated[float, _unit("B", _DECIMAL | _BINARY, "K", "P")]


class Power(_Sourced):
    """Power drawn under load, in watts."""

    value: Annotated[float, _unit("W", _MILLI, "m", "k")]


class Energy(_Sourced):
    """Energy of one MAC or of one byte from main memory, in joules."""

    value: Annotated[float, _unit("J", _MILLI, "f", "n")]


class PublishedLatency(_Model):
    """Predicted from published figures of this device, see `secateur.profiles.latency.published`."""

    model: Literal["published"]
    backend: Literal["cpu", "vulkan"]
    device: str = Field(min_length=1)  # as its name begins in the published table
    threads: int | None = Field(default=None, ge=1)
    powersave: int | None = Field(default=None, ge=0, le=2)


class SoftCoreLatency(_Model):
    """Predicted by the model of a systolic soft core, see `secateur.profiles.latency.soft_core`."""

    model: Literal["soft_core"]
    core: Literal["B512", "B800", "B1024", "B1152", "B1600", "B2304", "B3136", "B4096"]
    clock: Annotated[float, _unit("Hz", _DECIMAL, "M", "G")]
    board: str = ""


class RooflineLatency(_Model):
    """Predicted from peaks alone: each operator takes `use` of the arithmetic or the bandwidth, whichever is slower."""

    model: Literal["roofline"]
    use: float = Field(gt=0, le=1)
    operator: Annotated[float, _unit("s", _MILLI, "n", "")]  # time to start one operator


class RoutedLatency(_Model):
    """Predicted from the routing tables of a workload, see `secateur.targets.edge_moe`: `board` is one of its boards,
    or the path of a YAML file like theirs."""

    model: Literal["routed"]
    board: str


class StreamedLatency(_Model):
    """Predicted from the design that hls4ml would make of a workload, a piece of hardware for every layer: `board` is
    one of `secateur.export.hls_resources.BOARDS`, `width` the bits of every number."""

    model: Literal["streamed"]
    board: Literal["zcu102", "zcu104", "kv260", "pynq-z2"]
    width: int = Field(default=16, ge=2, le=32)


LatencyModel = Annotated[
    PublishedLatency | SoftCoreLatency | RooflineLatency | RoutedLatency | StreamedLatency,
    Field(discriminator="model"),
]


class Settings(_Model):
    """How models are run when they are measured."""

    threads: int | None = Field(default=None, ge=1, le=1024)  # None: all cores of this process
    batch: int = Field(default=1, ge=1, le=65536)


RUNS_HERE = ("onnxruntime", "tvm", *RUNTIMES)


class Device(_Model):
    """One piece of hardware and the runtime that executes models on it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9:._-]*$")
    kind: Kind
    title: str
    runtime: Literal["onnxruntime", "openvino", "tvm", "ncnn", "tensorrt", "vitis-ai", "edge-moe", "hls4ml"]
    description: str = ""
    here: bool = False  # whether it is this machine, although its kind is not cpu or its runtime not ONNX Runtime
    like: str | None = None  # the device that has all the rest, but for name and description
    settings: Settings = Settings()
    compute: Compute | None = None
    bandwidth: Bandwidth | None = None
    memory: Memory | None = None
    power: Power | None = None
    energy_per_mac: Energy | None = None
    energy_per_byte: Energy | None = None
    latency: LatencyModel | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Device:
        if self.kind == "cpu" and self.runtime not in RUNS_HERE:
            raise ValueError(f"kind: cpu is this machine, which runs {', '.join(RUNS_HERE)}, not {self.runtime}")
        if self.here and self.kind == "mobile" and self.runtime not in RUNTIMES:
            raise ValueError(f"here: {self.runtime} on this machine is a target of kind cpu")
        if isinstance(self.latency, RooflineLatency) and (self.compute is None or self.bandwidth is None):
            raise ValueError("latency: a roofline needs compute and bandwidth")
        return self


def get(name: str | os.PathLike[str]) -> Device:
    """A device by name, or from a YAML file by path.

    Raises:
        DeviceError: no such device or file, or a description with a mistake; the message names file and key.
    """
    text = os.fspath(name)
    found = _files().get(text)
    if found is not None:
        device = _read(found)
        if device.name != text:
            raise DeviceError(f"{found} describes {device.name}", f"write name: {text}, or rename the file")
        return device
    if text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        return _read(Path(text))
    family = text.partition(":")[0]
    same = [each for each in names() if each.partition(":")[0] == family] or names()
    raise DeviceError(f'unknown target "{text}"', f"the targets are: {', '.join(same)}; or give a YAML file")


def names() -> list[str]:
    """Names of the devices that come with this version, and of those in the user's folder."""
    return sorted(_files())


def users_folder() -> Path:
    """Where a user's own device files are picked up: `$SECATEUR_DEVICES`, or the configuration folder's `devices`."""
    from platformdirs import user_config_path

    return Path(os.environ.get("SECATEUR_DEVICES") or user_config_path("secateur", appauthor=False) / "devices")


def _files() -> dict[str, Path]:
    """Name → file; the first dot of a file's name stands for the colon of a device's. A user's file goes first."""
    shipped = Path(str(resources.files("secateur.targets.devices")))
    files = [*sorted(shipped.glob("*.yaml")), *sorted(users_folder().glob("*.yaml"))]
    return {file.stem.replace(".", ":", 1): file for file in files}


def _read(path: Path) -> Device:
    keys = ", ".join(Device.model_fields)
    document = _load(path)
    if not isinstance(document, dict):
        raise DeviceError(f"{path} holds no device description", f"it is a mapping with keys such as: {keys}")
    try:
        return Device.model_validate(_filled(document, path))
    except ValidationError as error:
        raise DeviceError(f"{path}: {_first_mistake(error)}", f"the keys of a device are: {keys}") from error


def _filled(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """With what is not said here, but of the device that this one is `like`."""
    name = document.get("like")
    if name is None:
        return document
    file = _files().get(name) if isinstance(name, str) else None
    base = _load(file) if file is not None and file != path else None
    if not isinstance(base, dict) or "like" in base:
        raise DeviceError(f"{path}: like: {name!r} is no device that describes itself", "see: secateur targets")
    return {key: value for key, value in base.items() if key not in ("name", "description")} | document


def _first_mistake(error: ValidationError) -> str:
    """Key and reason; an unknown key comes first, since it is likelier misspelt than another one is missing."""
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), reason)))


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DeviceError(f"{path} is too large for a device description", f"at most {LARGEST_FILE} bytes are read")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", "give the path of a device's YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(f"{path} is not YAML: {reason}", "see docs/targets.md for an example") from error
