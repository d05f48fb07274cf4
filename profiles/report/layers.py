"""Bars before and after, layer by layer; long models are folded to their modules, so that a page stays a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.core.costs import Profile
from secateur.profiles.report import units
from secateur.profiles.report.content import Report

LIMIT = 30  # bars that can be read at a glance
FEWEST = 6  # below this, modules say too little and the largest layers are shown instead


@dataclass(frozen=True)
class Bar:
    """One line: a layer, a module or the rest, with its figures and their share of the longest bar in percent.

    The rest has no widths: it would dwarf the layers that are shown.
    """

    name: str
    before: float
    after: float
    before_width: float | None = None
    after_width: float | None = None

    @property
    def change(self) -> float | None:
        return units.relative(self.before, self.after)


@dataclass(frozen=True)
class Folding:
    """The bar of every layer, how layers were put together in words, and the name of the bar that sums the rest."""

    bar_of: dict[str, str]
    words: str = ""
    rest: str = ""


@dataclass(frozen=True)
class Chart:
    """Bars of one quantity. `folded` says how layers were put together, empty when each has its bar."""

    title: str
    unit: str
    bars: list[Bar]
    folded: str
    every: list[Bar]


def prepare(report: Report) -> dict[str, Any] | None:
    """The data of the section, or None without layers."""
    charts = [chart for chart in (_flops(report), *map(_latency(report), report.profiles)) if chart and chart.bars]
    return {"charts": charts} if charts else None


def fold(names: Iterable[str], weights: Mapping[str, float], limit: int = LIMIT) -> Folding:
    """Put layers together so that at most `limit` bars (and the rest) are left.

    The deepest level of modules with at most `limit` bars wins; where modules are too few, the `limit` largest
    layers of the next level stand alone and the rest is summed.
    """
    layers = list(names)
    if len(layers) <= limit:
        return Folding({name: name for name in layers})
    depth = max(name.count(".") + 1 for name in layers)
    while depth > 1 and len({_module(name, depth) for name in layers}) > limit:
        depth -= 1
    modules = len({_module(name, depth) for name in layers})
    if FEWEST <= modules <= limit:
        return Folding({name: _module(name, depth) for name in layers}, f"{len(layers)} layers, summed by module")
    return _largest(layers, weights, limit, depth if modules > limit else depth + 1)


def _largest(layers: list[str], weights: Mapping[str, float], limit: int, depth: int) -> Folding:
    totals: dict[str, float] = {}
    for name in layers:
        module = _module(name, depth)
        totals[module] = totals.get(module, 0.0) + weights.get(name, 0.0)
    top = set(sorted(totals, key=lambda module: -totals[module])[:limit])
    rest = f"{len(totals) - len(top)} others"
    bars = {name: module if (module := _module(name, depth)) in top else rest for name in layers}
    return Folding(bars, f"{len(layers)} layers: the {limit} largest, the rest summed", rest)


def chart(title: str, unit: str, before: Mapping[str, float], after: Mapping[str, float]) -> Chart:
    """Bars of one quantity of every layer, in the model's order, the rest last; layers without any are left out."""
    names = [name for name in {**before, **after} if before.get(name, 0) or after.get(name, 0)]
    folding = fold(names, {name: max(before.get(name, 0), after.get(name, 0)) for name in names})
    every = _bars(Folding({name: name for name in names}), before, after) if folding.words else []
    return Chart(title, unit, _bars(folding, before, after), folding.words, every)


def _bars(folding: Folding, before: Mapping[str, float], after: Mapping[str, float]) -> list[Bar]:
    sums: dict[str, tuple[float, float]] = {}
    for name, bar in folding.bar_of.items():
        old, new = sums.get(bar, (0.0, 0.0))
        sums[bar] = old + before.get(name, 0), new + after.get(name, 0)
    rest = sums.pop(folding.rest, None)
    longest = max((max(pair) for pair in sums.values()), default=0) or 1

    def width(value: float) -> float:
        return round(100 * value / longest, 2)

    bars = [Bar(name, old, new, width(old), width(new)) for name, (old, new) in sums.items()]
    return bars if rest is None else [*bars, Bar(folding.rest, *rest)]


def _flops(report: Report) -> Chart | None:
    if not report.layers_before or not report.layers_after:
        return None
    before = _sum((layer.name, layer.flops) for layer in report.layers_before)
    after = _sum((layer.name, layer.flops) for layer in report.layers_after)
    return chart("FLOPs", "flops", before, after)


def _latency(report: Report) -> Callable[[Profile], Chart | None]:
    def of(profile: Profile) -> Chart | None:
        before = report.before(profile)
        if before is None:
            return None
        old = _sum((layer.name, layer.latency_ms) for layer in before.layers)
        new = _sum((layer.name, layer.latency_ms) for layer in profile.layers)
        title = f"Latency on {profile.target}, {profile.source}"
        return chart(title, "milliseconds", old, new) if old and new else None

    return of


def _sum(figures: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Total by name (a shared module may occur twice), without what is not known."""
    sums: dict[str, float] = {}
    for name, value in figures:
        if units.known(value):
            sums[name] = sums.get(name, 0) + value
    return sums


def _module(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])
