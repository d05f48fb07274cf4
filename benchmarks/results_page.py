"""docs/results.md from the committed results: every figure with its command, machine and spread, every goal judged.

    python benchmarks/results_page.py           # writes docs/results.md
    python benchmarks/results_page.py --check    # says whether it is up to date

A section reads one JSON file of benchmarks/results/ and gives Markdown. Whether a goal was met is computed from the
figures; why one was missed is written beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from results_kit import SECTIONS, Document

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
HEAD = """# Results

Written by `python benchmarks/results_page.py` from the JSON files of `benchmarks/results/`, which hold every seed, the
machine and the versions. Latencies are measured where nothing else is said; what a model says is called *predicted*.
Δ_MTL is the mean relative change of the tasks' metrics on test data, positive for better.
"""

for chapter in (
    "results_compression",
    "results_methods",
    "results_hardware",
    "results_faults",
    "results_tool",
):  # in the order of the page
    importlib.import_module(chapter)


def page(folder: Path = RESULTS) -> str:
    """The whole page."""
    parts = [HEAD]
    for heading, pattern, write in SECTIONS:
        files = sorted(folder.glob(pattern))
        if files:
            parts.append(f"## {heading}\n")
        for path in files:
            document = json.loads(path.read_text(encoding="utf-8"))
            parts += ["\n".join([origin(path, document), "", *spaced(write(document)), ""])]
    return "\n".join(parts)


def spaced(lines: list[str]) -> list[str]:
    """With an empty line before each list, without which some readers of Markdown see none."""
    found: list[str] = []
    for line in lines:
        if line.startswith("- ") and found and found[-1] and not found[-1].startswith("- "):
            found.append("")
        found.append(line)
    return found


def origin(path: Path, document: Document) -> str:
    """Where a section's figures come from."""
    machine = document.get("machine") or document.get("benchmark", {}).get("machine", {})
    versions = document.get("versions") or machine.get("versions", {})
    parts = [f"`{document['command']}`"] if "command" in document else []
    parts += [f"{machine.get('cores', '?')} cores of an {machine['cpu']}"] if "cpu" in machine else []
    parts += [f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "torch-pruning") if name in versions]
    return " · ".join([*parts, f"[JSON](../benchmarks/results/{path.name})"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="do not write; exit code 1 when the page is out of date")
    text = page()
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
