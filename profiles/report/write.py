"""From a Report to the page: every section is data from one module and HTML from one template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from secateur.core.files import writing
from secateur.profiles.report import (
    accuracy,
    decisions,
    evidence,
    experts,
    layers,
    pareto,
    pictures,
    summary,
    units,
    widths,
)
from secateur.profiles.report.content import Report


@dataclass(frozen=True)
class Section:
    """A part of the page; `prepare` returns None where there is nothing to show, and the section is left out."""

    key: str
    heading: str
    prepare: Callable[[Report], dict[str, Any] | None]


SECTIONS = (
    Section("summary", "Before and after", summary.prepare),
    Section("accuracy", "Accuracy against tolerance", accuracy.prepare),
    Section("samples", "Sample predictions", pictures.prepare),
    Section("pareto", "Accuracy against FLOPs", pareto.prepare),
    Section("widths", "Widths by budget and preference", widths.prepare),
    Section("layers", "Layer by layer", layers.prepare),
    Section("decisions", "Decisions in order", decisions.prepare),
    Section("experts", "Experts by task", experts.prepare),
    Section("tuning", "Fine-tuning", decisions.prepare_tuning),
    Section("targets", "Targets", evidence.prepare_targets),
    Section("artefacts", "Exported artefacts", evidence.prepare_artefacts),
    Section("reproduce", "How to reproduce", evidence.prepare_reproduction),
)


def write_report(path: Path, report: Report) -> None:
    """Write one self-contained HTML file: no script, nothing fetched, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
        ValueError: a sample's picture is not uint8 [H, W, 3] or [H, W].
    """
    page = render(report)
    with writing(Path(path)) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))


def render(report: Report) -> str:
    """The page as text. Whatever comes from the user is escaped by the templates."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(units.FILTERS)
    environment.filters["dotted"] = _dotted
    environment.filters["svg"] = Markup  # plots.py escapes what it is given
    sections = [(section, section.prepare(report)) for section in SECTIONS]
    return environment.get_template("page.html.j2").render(
        title=report.title,
        css=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        sections=[(section, data) for section, data in sections if data is not None],
        created=report.manifest.created,
    )


def _dotted(name: str) -> Markup:
    """A module's name that may break after its dots, and only there where there is room."""
    return Markup(".<wbr>").join(escape(part) for part in name.split("."))
