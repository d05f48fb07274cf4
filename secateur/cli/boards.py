"""What `benchmark` shows of designs for a board: what they take of it; and of one that works expert by expert, every
task, with and without reordering."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from secateur.cli.listing import table
from secateur.core.costs import Profile
from secateur.profiles.report import units


def show_boards(console: Console, profiles: Sequence[tuple[str, Profile]]) -> None:
    """What takes how much of a board, of the profiles that tell: (name of the model, profile), all on one target."""
    _show_routed(console, profiles)
    for name, profile in profiles:
        if "resources" in profile.details:
            console.print(f"{name}: {_design(profile)}", style="dim", soft_wrap=True)


def _show_routed(console: Console, profiles: Sequence[tuple[str, Profile]]) -> None:
    """Task by task."""
    found = [(name, profile) for name, profile in profiles if "on_chip" in profile.details]
    if not found:
        return
    numbers = ("latency", "energy", "weights", "features", "experts", "token by token")
    for name, profile in found:
        shown = table("task", *numbers, numbers=numbers)
        for task, figures in profile.details["tasks"].items():
            shown.add_row(
                task, units.milliseconds(figures["latency_ms"]), f"{units.number(figures['energy_mj'], 3)} mJ",
                units.size(figures["weight_bytes"]), units.size(figures["feature_bytes"]),
                units.number(figures["experts_loaded"], 3), units.milliseconds(figures["token_by_token"]["latency_ms"]),
            )  # fmt: skip
        console.print()
        console.print(f"{name}, task by task on {profile.target}", style="bold")
        console.print(shown)
        console.print(_on_chip(profile), style="dim", soft_wrap=True)


def _design(profile: Profile) -> str:
    """The pace of a design of its own for every layer, and what it takes."""
    found = profile.details
    taken = ", ".join(
        f"{value:,} of {found['limits'][kind]:,} {kind.upper()}" for kind, value in found["resources"].items()
    )
    return f"an image every {units.milliseconds(found['interval_ms'])} on {found['board']}; an estimated {taken}"


def _on_chip(profile: Profile) -> str:
    chip = profile.details["on_chip"]
    blocks = ", ".join(
        f"{chip[kind]} of {chip[f'{kind}_limit']} {kind.upper()}"
        for kind in ("bram18", "uram")
        if chip[f"{kind}_limit"]
    )
    verdict = "" if chip["fits"] else f"; it does not fit {chip['part']}"
    return (
        f"{units.size(chip['bytes'])} on the chip ({blocks}), "
        f"{units.size(chip['bytes_with_resident_experts'])} with all experts of a layer{verdict}; "
        f"means over {profile.details['samples']} test samples"
    )
