"""Devices of the farm as targets: `farm:KEY` is whichever device of a key is free, `farm:DEVICE` a certain one.

    farm_target("farm:pixel-6")

They are those of the user's farm file, `$SECATEUR_FARM` or `farm.yaml` in the configuration folder. A device that
names a `target` is predicted as that one is while it cannot be reached.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from secateur.core.errors import DeviceError
from secateur.targets.device import Device, get
from secateur.targets.farm.file import Farm, FarmDevice, read_farm

PREFIX = "farm:"


class FarmTarget(Device):
    """Devices of which one at a time runs models, and what is known of their kind without them."""

    name: str = Field(pattern=r"^farm:[\w.:-]+$")
    devices: tuple[FarmDevice, ...]
    leases: Path


def is_farm(name: str) -> bool:
    """Whether a target's name is one of the farm."""
    return name.startswith(PREFIX)


def farm_file() -> Path:
    """Where the user's farm is described, whether there is such a file or not."""
    from platformdirs import user_config_path

    return Path(os.environ.get("SECATEUR_FARM") or user_config_path("secateur", appauthor=False) / "farm.yaml")


def farm_targets() -> list[FarmTarget]:
    """One target for each key of the farm; none without a farm file.

    Raises:
        DeviceError: a mistake in the file.
    """
    path = farm_file()
    if not path.exists():
        return []
    farm = read_farm(path)
    return [_target(key, farm.of_key(key), farm, path) for key in farm.keys]


def farm_target(name: str) -> FarmTarget:
    """The target of that name: of a key, else of a single device.

    Raises:
        DeviceError: there is no farm, or neither in it.
    """
    path, wanted = farm_file(), name.removeprefix(PREFIX)
    if not path.exists():
        raise DeviceError(
            f"{name}: there is no farm file at {path}", "write it (docs/farm.md shows one), or say where: SECATEUR_FARM"
        )
    farm = read_farm(path)
    devices = farm.of_key(wanted) or [each for each in farm.devices if each.name == wanted]
    if not devices:
        known = ", ".join(PREFIX + key for key in (*farm.keys, *(each.name for each in farm.devices)))
        raise DeviceError(f'unknown target "{name}"', f"{path} has: {known}")
    return _target(wanted, devices, farm, path)


def _target(wanted: str, devices: Sequence[FarmDevice], farm: Farm, path: Path) -> FarmTarget:
    names = ", ".join(each.name for each in devices)
    said = {"name": f"{PREFIX}{wanted}", "title": names, "devices": tuple(devices), "leases": farm.leases_path}
    return FarmTarget(**{**dict(_alike(devices[0], path)), **said})


def _alike(device: FarmDevice, path: Path) -> Device:
    """What stands for a device while it cannot be reached."""
    if device.target is None:
        return Device(name="unknown", kind="mobile", title=device.key, runtime=device.runtime)
    found = get(device.target)
    if found.runtime != "ncnn":
        raise DeviceError(
            f"{path}: {device.name}: {device.target} is run by {found.runtime}, and a farm's devices by ncnn",
            "name a target such as mobile:raspberry-pi-5 (secateur targets lists them), or none",
        )
    return found
