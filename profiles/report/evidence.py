"""What the figures rest on: targets and where their figures come from, exported artefacts and their parity, and how
to make the run again."""

from __future__ import annotations

import json
from typing import Any

from secateur.profiles.report.content import Report
from secateur.profiles.report.summary import SOURCES, speedup

_AFFIXES = {
    "cpu": ("", ""),
    "cores": ("", " cores"),
    "memory_gib": ("", " GiB of memory"),
    "os": ("", ""),
    "python": ("Python ", ""),
}


def prepare_artefacts(report: Report) -> dict[str, Any] | None:
    """The exported forms and how exactly they agree with the model in torch, or None without any."""
    manifest = report.manifest
    if not manifest.artefacts:
        return None
    return {"artefacts": manifest.artefacts, "tasks": manifest.tasks, "metrics": manifest.point.metrics}


def prepare_targets(report: Report) -> dict[str, Any] | None:
    """Targets that give figures, and those that cannot be had here with how to get them; None without any."""
    if not report.profiles:
        return None
    known = [profile for profile in report.profiles if profile.source != "unavailable"]
    return {
        "rows": [{"profile": profile, "speedup": speedup(profile, report.before(profile))} for profile in known],
        "missing": [profile for profile in report.profiles if profile.source == "unavailable"],
        "sources": SOURCES,
        "energy": any(profile.energy_mj is not None for profile in known),
    }


def prepare_reproduction(report: Report) -> dict[str, Any]:
    """Command, seed, settings, versions, machine and the cost of the search."""
    manifest = report.manifest
    spent = manifest.oracle.get("forward_flops")
    published = manifest.oracle.get("published_loop_forward_flops")
    return {
        "manifest": manifest,
        "machine": [_part(key, value) for key, value in manifest.machine.items()],
        "settings": {key: _plain(value) for key, value in manifest.settings.items()},
        "spent": spent,
        "published": published,
        "saving": published / spent if spent and published else None,
    }


def _part(key: str, value: str | int) -> str:
    """One fact of the machine: 2 cores, Python 3.11.2."""
    before, after = _AFFIXES.get(key, (f"{key} ", ""))
    return f"{before}{value}{after}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
