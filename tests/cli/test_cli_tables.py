"""Tables on narrow and wide terminals: no figure and no unit is cut off."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from secateur.cli.listing import show_groups
from secateur.cli.tables import show_benchmark
from secateur.core.costs import Latency, Profile
from secateur.profiles.report import units
from secateur.verbs.benchmark import Benchmark

TARGETS = ("cpu", "mobile:raspberry-pi-5")


def profile(target: str, milliseconds: float, speedup: float | None = None) -> Profile:
    latency = Latency(milliseconds, 0.9 * milliseconds, 1.1 * milliseconds)
    known = Profile(target, "onnx", "measured", latency, 650_723_328, speedup_against=speedup)
    return known if target == "cpu" else replace(known, source="predicted", error_pct=14.4, basis="published")


@pytest.mark.parametrize("width", [80, 200])
def test_figures_are_whole_at_any_width(width: int) -> None:
    found = Benchmark(
        "scenes-vit-0",
        tuple(profile(target, 4.62, 1.85) for target in TARGETS),
        "original",
        tuple(profile(target, 8.55) for target in TARGETS),
    )
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        show_benchmark(console, found)
    said = captured.get()
    for text in (*TARGETS, "scenes-vit-0", "original"):
        assert text in said
    assert said.count(units.milliseconds(4.62)) == len(TARGETS)
    assert said.count("MFLOPs") == 2 * len(TARGETS)
    assert said.count("14.4") == 2
    assert said.count("p10 to p90") == (1 if width == 200 else len(TARGETS)), "one table where there is room"
    assert max(map(len, said.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "name", ["stem.0", "backbone.encoder.layers.0.blocks.0.attention.self.continuous_position_bias.2"]
)
def test_groups_show_name_figures_and_reason_at_any_width(width: int, name: str) -> None:
    groups = [
        {"name": name, "channels": 512, "flops_share": 0.0486, "prunable": True, "why_not": ""},
        {
            "name": "head",
            "channels": 4,
            "flops_share": None,
            "prunable": False,
            "why_not": "output of the model (kind)",
        },
    ]
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        show_groups(console, groups)
    said = "".join(captured.get().split())
    for text in (name, "512", units.percent(4.86), "notprunable:outputofthemodel(kind)"):
        assert "".join(text.split()) in said
