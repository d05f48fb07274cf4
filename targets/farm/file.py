"""The farm file: which devices there are and how each is reached, in YAML.

devices:
  - name: phone-1
    key: pixel-6                    # devices of one key are alike, and share a queue
    reach: {adb: 2A111FDH200}       # or {ssh: user@board, options: [-p, "2222"]}, or {local: true}
    runner: build/secateur-ncnn     # built for it, see docs/farm.md
    target: mobile:snapdragon-888   # predicts it while it cannot be reached
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.core.cache import cache_folder
from secateur.core.errors import DeviceError
from secateur.targets.farm.reach import Adb, Local, Reach, Ssh

LARGEST_FILE = 256 * 1024


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ReachEntry(_Model):
    """Exactly one way to the device."""

    adb: str | None = Field(default=None, min_length=1)
    ssh: str | None = Field(default=None, pattern=r"^[^-\s]\S*$")  # what begins with "-" would be an option
    local: Literal[True] | None = None
    rpc: str | None = Field(default=None, pattern=r"^\S+:\d+$")  # a TVM server's host:port, or a tracker's
    tracker_key: str = ""  # of the device, where it is a tracker
    options: list[str] = Field(default_factory=list)
    program: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.adb, self.ssh, self.local, self.rpc)) != 1:
            raise ValueError("name one of: adb, ssh, local, rpc")
        return self

    def open(self) -> Reach:
        """The way itself, to a device that runs ncnn."""
        if self.adb is not None:
            return Adb(self.adb, self.program or "adb")
        if self.ssh is not None:
            return Ssh(self.ssh, tuple(self.options), self.program or "ssh")
        return Local()


class FarmDevice(_Model):
    """One device of the farm."""

    name: str = Field(pattern=r"^[\w.:-]+$")
    key: str = Field(pattern=r"^[\w.:-]+$")
    reach: ReachEntry
    runner: str = ""  # path of the program on this machine; over rpc there is none
    arch: str = ""  # over rpc: of its CPU, such as aarch64; this machine's when empty
    target: str | None = None  # whose predictions stand in while the device cannot be reached
    launcher: list[str] = Field(default_factory=list)  # before the runner, such as an emulator
    folder: str = Field(default="/data/local/tmp/secateur", pattern=r"^/")  # there, where programs may be started
    threads: int = Field(default=1, ge=1, le=256)
    cores: Literal["all", "big", "little"] = "all"
    half: bool = True  # 16-bit arithmetic for models that are stored so
    warmup_s: float = Field(default=0.5, ge=0, le=600)
    limit_s: float = Field(default=5.0, gt=0, le=3600)
    timeout_s: float = Field(default=120.0, gt=0, le=36000)  # for a whole run; then the device is lost
    cool_down_s: float = Field(default=0.0, ge=0, le=3600)  # before each run
    cool_below_c: float | None = Field(default=None, gt=0, le=150)  # wait for that temperature, where it is readable
    cool_limit_s: float = Field(default=120.0, ge=0, le=3600)  # but no longer than this

    @property
    def runtime(self) -> Literal["ncnn", "tvm"]:
        """What executes models there."""
        return "ncnn" if self.reach.rpc is None else "tvm"

    @model_validator(mode="after")
    def _fits_its_runtime(self) -> Self:
        if self.runtime == "ncnn" and not self.runner:
            raise ValueError("runner: required")
        if self.runtime == "ncnn" and self.arch:
            raise ValueError("arch: is of devices that are reached over rpc")
        if self.runtime == "tvm" and (self.runner or self.target):
            raise ValueError("a device that is reached over rpc has neither runner nor target: nothing predicts TVM")
        return self


class Farm(_Model):
    """All devices of a file."""

    devices: list[FarmDevice] = Field(min_length=1)
    leases: str | None = None  # path of the file in which everybody queues; the user's cache folder if not said

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [device.name for device in self.devices]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two devices are called {twice[0]}")
        return self

    @model_validator(mode="after")
    def _keys_are_alike(self) -> Self:
        for key in self.keys:
            if len({(device.target, device.runtime, device.arch) for device in self.of_key(key)}) > 1:
                raise ValueError(
                    f"devices of the key {key} differ in target, runtime or arch, and are meant to be alike"
                )
        return self

    @property
    def keys(self) -> list[str]:
        """Kinds of device, in the order of the file."""
        return list(dict.fromkeys(device.key for device in self.devices))

    def of_key(self, key: str) -> list[FarmDevice]:
        """The devices of a kind."""
        return [device for device in self.devices if device.key == key]

    @property
    def leases_path(self) -> Path:
        """The file in which everybody queues."""
        return Path(self.leases) if self.leases else cache_folder() / "farm.leases"


def read_farm(path: str | os.PathLike[str]) -> Farm:
    """The farm that a file describes; paths of runners and of the leases are relative to the file.

    Raises:
        DeviceError: the file cannot be read, or describes no farm; the message names the key.
    """
    place = Path(path)
    document = _load(place)
    try:
        farm = Farm.model_validate(document)
    except ValidationError as error:
        first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"])) or "it"
        reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise DeviceError(f"{place}: {where}: {reason}", "docs/farm.md shows every key") from error
    devices = [_placed(each, place.parent) for each in farm.devices]
    for device in devices:
        if device.runner and not Path(device.runner).is_file():
            raise DeviceError(
                f"{place}: {device.name}: there is no runner at {device.runner}",
                "build it with: python -m secateur.export.runner --ncnn SOURCE --compiler COMPILER -o PATH",
            )
    leases = str(place.parent / farm.leases) if farm.leases else None
    return farm.model_copy(update={"devices": devices, "leases": leases})


def _placed(device: FarmDevice, folder: Path) -> FarmDevice:
    return device.model_copy(update={"runner": str(folder / device.runner)}) if device.runner else device


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DeviceError(f"{path} is too large for a farm file", f"at most {LARGEST_FILE} bytes are read")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}", "give the path of a farm's YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceError(f"{path} is not YAML: {reason}", "docs/farm.md has an example") from error
