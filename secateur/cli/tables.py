"""What compress, select and benchmark show to people: the same rows as the report, as tables of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from operator import itemgetter

from rich.console import Console
from rich.text import Text

from secateur.cli.boards import show_boards
from secateur.cli.listing import table
from secateur.cli.slimming import show_elastic
from secateur.core.bundle import Bundle
from secateur.core.costs import LayerProfile, Profile
from secateur.core.elastic.files import is_elastic
from secateur.profiles.report import Report, summary, units
from secateur.targets.registry import BASIS
from secateur.verbs.benchmark import Benchmark
from secateur.verbs.select import Selection

_ANY_WIDTH = 1000
"""Columns of a terminal that has room for any table."""


def show_bundle(console: Console, bundle: Bundle, measured: Benchmark | None) -> None:
    """Before and after, whether the budget was met, and where the report is."""
    manifest = bundle.manifest
    content = Report(
        "", manifest, profiles=measured.profiles if measured else (),
        profiles_before=measured.profiles_against if measured else (),
    )  # fmt: skip
    found = summary.prepare(content)
    shown = table("", "before", "after", "change", " ", numbers=("before", "after", "change"))
    for _, rows in filter(itemgetter(1), found["groups"]):
        for row in rows:
            colour = {True: "green", False: "red", None: ""}[row.good]
            note = " ".join(filter(None, (row.note, row.source)))
            shown.add_row(_label(row), row.before, row.after, Text(row.change, colour), note)
        shown.add_row()
    console.print()
    console.print(
        f"{manifest.workload}, {manifest.method}, budget {', '.join(manifest.budget) or 'none'}", style="bold"
    )
    console.print(shown)
    if found["scope"]:
        console.print(found["scope"], style="dim", soft_wrap=True)
    _show_missing(console, measured.profiles if measured else ())
    if is_elastic(bundle):
        show_elastic(console, bundle)
    elif manifest.budget_met:
        console.print(Text("budget met", "green"))
    console.print(f"bundle  {bundle.path}", soft_wrap=True)
    if "report.html" in manifest.files:
        console.print(f"report  {bundle.file('report.html')}", soft_wrap=True)


def _label(row: summary.Row) -> str:
    """The row's name with what a terminal has room for: the arrow of a metric, the target of a latency."""
    if row.source:
        return f"latency, {row.label}"
    return f"{row.label} {row.hint[0]}" if row.hint[:1] in ("↑", "↓") else row.label


def show_selection(console: Console, selection: Selection) -> None:
    """The point that was picked among all, and its widths."""
    manifest = selection.bundle.manifest
    latencies, energies = (selection.figures.get(kind, {}) for kind in ("latency", "energy"))
    columns = ("point", "FLOPs", "params", "memory", "size", "Δ_MTL", "latency", *(["energy"] if energies else []))
    shown = table(" ", *columns, numbers=columns)
    for number, point in enumerate(manifest.points):
        costs, chosen = point.costs, number == selection.point
        energy = [units.millijoules(energies.get(number))] if energies else []
        shown.add_row(
            "→" if chosen else "", str(number), units.flops(costs.flops), units.count(costs.params),
            units.size(costs.peak_memory_bytes), units.size(costs.size_bytes), units.signed_percent(point.delta_mtl),
            units.milliseconds(latencies.get(number)), *energy, style="bold" if chosen else "",
        )  # fmt: skip
    console.print(shown)
    when = "measured now" if selection.measured else "measured when the bundle was made"
    if selection.latency_ms is not None:
        when = "predicted" if selection.predicted else when
        console.print(f"latency on {selection.target}, {when}", style="dim")
    if energies:
        console.print(f"energy on {selection.target}, predicted", style="dim")
    widths = ", ".join(f"{name} {width}" for name, width in selection.widths.items())
    console.print(f"channels: {widths}", style="dim")
    console.print(f"point {selection.point} meets {selection.budget}; -o FOLDER writes it as a bundle of its own")


def show_benchmark(console: Console, found: Benchmark) -> None:
    """Every target's figures, the compared model's first."""
    others = found.profiles_against or (None,) * len(found.profiles)
    rows = [
        (str(name), each)
        for other, profile in zip(others, found.profiles, strict=True)
        for name, each in ((found.against, other), (found.name, profile))
        if each is not None and profile.source != "unavailable"
    ]
    if rows:
        _show_figures(console, rows)
        for profile in found.profiles:
            if profile.basis is not None:
                why = f"; {profile.reason}" if profile.reason else ""
                console.print(f"{profile.target} is predicted {BASIS[profile.basis]}{why}", style="dim")
        _show_missing(console, found.profiles)
    for other, profile in zip(others, found.profiles, strict=True):
        if other and other.source == "unavailable" != profile.source:
            console.print(f"{found.against} cannot be had on {other.target}: {other.reason}", style="dim")
    for other, profile in zip(others, found.profiles, strict=True):
        show_boards(console, [*([(str(found.against), other)] if other else []), (found.name, profile)])
        if profile.layers:
            show_layers(console, profile, other)


def _show_figures(console: Console, rows: Sequence[tuple[str, Profile]]) -> None:
    """One table, or where the terminal has no room for it, one under the name of each target."""
    numbers = ("latency", "p10 to p90", "speed-up", "FLOPs")
    shown = table("model", "target", *numbers, "source", numbers=numbers, whole=("target", "source"))
    for name, each in rows:
        shown.add_row(name, each.target, *_figures(each))
    if console.measure(shown, options=console.options.update(max_width=_ANY_WIDTH)).maximum <= console.width:
        console.print(shown)
        return
    for target, those in groupby(rows, key=lambda row: row[1].target):
        part = table("model", *numbers, "source", numbers=numbers, whole=("source",))
        for name, each in those:
            part.add_row(name, *_figures(each))
        console.print(Text(target, "bold"))
        console.print(part)


def _figures(profile: Profile) -> list[str]:
    latency = profile.latency
    source = profile.source + (f" ± {units.percent(profile.error_pct)}" if profile.error_pct is not None else "")
    return [
        units.milliseconds(latency.median if latency else None),
        f"{units.number(latency.p10, 3)} to {units.number(latency.p90, 3)}" if latency else units.UNKNOWN,
        units.times(profile.speedup_against),
        units.flops(profile.flops),
        source,
    ]


def show_layers(console: Console, profile: Profile, other: Profile | None) -> None:
    """Where the time goes, in the order of execution; the other model's layers beside them by name."""
    before = {layer.name: layer for layer in other.layers} if other else {}
    names = dict.fromkeys(layer.name for layer in chain(profile.layers, before.values()))
    after = {layer.name: layer for layer in profile.layers}
    numbers = ("original", "time", "share")
    shown = table(f"layer on {profile.target}", "kind", *(numbers if before else numbers[1:]), numbers=numbers)
    total = sum(layer.latency_ms or 0.0 for layer in profile.layers) or 1.0
    for name in names:
        layer = after.get(name) or before[name]
        time = _time(after.get(name))
        share = units.percent(100 * time / total) if time is not None else units.UNKNOWN
        columns = [_microseconds(_time(before.get(name)))] if before else []
        shown.add_row(name, layer.kind, *columns, _microseconds(time), share)
    console.print()
    console.print(shown)


def _microseconds(milliseconds: float | None) -> str:
    return units.UNKNOWN if milliseconds is None else f"{units.number(1e3 * milliseconds, 3)}{units.SPACE}µs"


def _time(layer: LayerProfile | None) -> float | None:
    return layer.latency_ms if layer else None


def _show_missing(console: Console, profiles: tuple[Profile, ...]) -> None:
    """Targets that cannot be had here, why, and how to get them."""
    for profile in profiles:
        if profile.source == "unavailable":
            how = f": {profile.how}" if profile.how else ""
            console.print(f"{profile.target} is not available: {profile.reason}{how}", style="dim")
