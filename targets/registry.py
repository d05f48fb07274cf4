"""Which targets there are, and what each can say here and now: the table of `secateur targets`.

Answers at once: nothing heavy is imported, packages are only looked for.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Literal

from secateur.core.errors import TargetUnavailableError
from secateur.targets.device import Device, Kind, all_devices

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


_ELSEWHERE: tuple[Kind, ...] = ("gpu", "mobile", "fpga")


def status() -> list[TargetStatus]:
    """Every target: the devices of this version, then the kinds of hardware that it cannot reach."""
    here = [device_status(device) for device in all_devices()]
    elsewhere = [
        TargetStatus(
            name=kind,
            kind=kind,
            status="unavailable",
            reason=f"this version has no backend for {kind} targets",
            how="export with --to onnx and time the file with a runtime of that device",
        )
        for kind in _ELSEWHERE
    ]
    return here + elsewhere


def device_status(device: Device) -> TargetStatus:
    """What can be said of one device, a user's own included."""
    if device.kind != "cpu":
        return TargetStatus(device.name, device.kind, "unavailable", f"this version has no backend for {device.kind}")
    if importlib.util.find_spec(device.runtime) is None:
        reason, how = f"{device.runtime} is not installed", f"install it with: pip install {device.runtime}"
        return TargetStatus(device.name, device.kind, "unavailable", reason, how)
    return TargetStatus(device.name, device.kind, "measured")


def require(device: Device) -> None:
    """Raise TargetUnavailableError unless the device can be measured here."""
    found = device_status(device)
    if found.status != "measured":
        raise TargetUnavailableError(f"{device.name}: {found.reason}", found.how or "choose another target")
