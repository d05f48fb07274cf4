"""Plots as inline SVG: drawn by matplotlib, then made part of the page.

Text stays text, colours become the page's own (so that dark mode holds), identifiers are unique on the page, and
no text of the user's is drawn: titles and task names belong to the HTML around the plot.
"""

from __future__ import annotations

import hashlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE, ACCENT, WARN = "#010101", "#020202", "#030303", "#040404", "#050505"
_THEME = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", WARN: "--warn"}
_INCHES = (4.0, 2.6)  # at 72 points: 288 × 187, so that text stays legible on a phone
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",  # the same plot gives the same bytes
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.5,
}


@dataclass(frozen=True)
class Mark:
    """One point of a front."""

    x: float
    y: float


def front(
    points: Sequence[Mark], chosen: int, original: Mark, *, limit: float | None, floor: float | None, alt: str
) -> str:
    """A quality-against-FLOPs plot: the saved points, the chosen one marked, the original for comparison.

    Args:
        points: FLOPs in percent of the original, and the quality.
        limit: of the FLOPs, in percent: a dashed vertical.
        floor: worst quality allowed: a dashed horizontal.
        alt: what the plot shows, in words.
    """

    def draw(axes: Axes) -> None:
        line = sorted([*points, original], key=lambda mark: mark.x)
        axes.plot([mark.x for mark in line], [mark.y for mark in line], color=MUTED, linewidth=1, zorder=2)
        axes.scatter([mark.x for mark in points], [mark.y for mark in points], s=22, color=ACCENT, zorder=3)
        axes.scatter([original.x], [original.y], s=26, color=INK, marker="s", zorder=3)
        best = points[chosen]
        axes.scatter([best.x], [best.y], s=110, facecolors="none", edgecolors=WARN, linewidths=1.8, zorder=4)
        rising = original.y >= best.y
        _name(axes, best, "chosen", WARN, rising)
        _name(axes, original, "original", INK, rising)
        if limit is not None:
            axes.axvline(limit, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if floor is not None:
            axes.axhline(floor, color=WARN, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlabel("FLOPs, % of the original")
        axes.set_xlim(0, 108)
        axes.margins(y=0.18)

    return _svg(draw, alt)


def curve(values: Sequence[float], rounds: Sequence[int], *, alt: str) -> str:
    """A value over epochs; `rounds` gives the epochs before which a new round began."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.plot(range(1, len(values) + 1), values, color=ACCENT, linewidth=1.6, marker="o", markersize=3)
        for step in rounds:
            axes.axvline(step + 0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")

    return _svg(draw, alt)


def _name(axes: Axes, mark: Mark, text: str, color: str, rising: bool) -> None:
    """A point's name beside it, where a curve that rises (or falls) does not run."""
    left = mark.x > 25
    axes.annotate(
        text,
        (mark.x, mark.y),
        xytext=(-7 if left else 7, 7 if left == rising else -7),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom" if left == rising else "top",
        color=color,
        zorder=5,
    )


def _svg(draw: Callable[[Axes], None], alt: str) -> str:
    """Draw on fresh axes (no global state of pyplot's) and return an <svg> element for the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return _inline(text.getvalue(), alt)


def _inline(text: str, alt: str) -> str:
    root = ET.fromstring(text)  # noqa: S314 - matplotlib's own output
    for element in root.iter():
        element.tag = _local(element.tag)
        for key in [key for key in element.attrib if "}" in key]:
            element.set(_local(key), element.attrib.pop(key))
    for defs in root.findall(".//defs"):
        for style in defs.findall("style"):
            defs.remove(style)  # a rule for `*` would reach the whole page
    for key in ("version", "width", "height"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": alt, "class": "plot"})
    _unique_ids(root, hashlib.sha256((alt + text).encode("utf-8", "replace")).hexdigest()[:8])
    markup = ET.tostring(root, encoding="unicode")
    for color, name in _THEME.items():
        markup = markup.replace(color, f"var({name})")
    return markup


def _unique_ids(root: ET.Element, prefix: str) -> None:
    """Drop identifiers that nothing refers to, and make the others unique on the page."""
    values = " ".join(value for element in root.iter() for key, value in element.attrib.items() if key != "id")
    used = set(re.findall(r"#([\w-]+)", values))
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}-{name}")
        for key, value in element.attrib.items():
            if key != "aria-label":
                element.set(key, re.sub(r"(^|url\()#([mpc][0-9a-f]+)", rf"\1#{prefix}-\2", value))


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]
