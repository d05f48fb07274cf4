"""What the sections of docs/results.md are made of: their register, tables, spreads and judged goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
Document = dict[str, Any]
Section = Callable[[Document], list[str]]
SECTIONS: list[tuple[str, str, Section]] = []
"""(heading, pattern of files, what makes the text)."""


def section(heading: str, pattern: str) -> Callable[[Section], Section]:
    """Register what writes the section of the files that match."""

    def register(function: Section) -> Section:
        SECTIONS.append((heading, pattern, function))
        return function

    return register


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def goal(text: str, met: bool, why: str = "") -> str:
    """One line that judges a goal."""
    return f"- Goal: {text}: **{'met' if met else 'missed'}**." + (f" {why}" if why and not met else "")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:+.{digits}f}"
    return f"{statistics.mean(values):+.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def pct(share: float) -> str:
    return f"{100 * share:.1f} %"
