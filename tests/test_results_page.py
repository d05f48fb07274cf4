"""docs/results.md shows what the committed results say, and all of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    again = "run: python benchmarks/results_page.py"
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), again


def test_every_result_has_a_section(script: ModuleType) -> None:
    shown = {path.name for _, pattern, _ in script.SECTIONS for path in script.RESULTS.glob(pattern)}
    assert {path.name for path in script.RESULTS.glob("*.json")} == shown


def test_lists_begin_after_an_empty_line(script: ModuleType) -> None:
    """Not all readers of Markdown see a list otherwise."""
    for before, line in pairwise(script.page().splitlines()):
        if line.startswith("- "):
            assert before == "" or before.startswith("- "), line


def test_a_goal_is_judged_by_the_figures(script: ModuleType, tmp_path: Path) -> None:
    document = json.loads((script.RESULTS / "demo-scenes.json").read_text(encoding="utf-8"))
    document["metrics"]["delta_mtl"], document["seconds"] = -1.5, 300.0
    (tmp_path / "demo-scenes.json").write_text(json.dumps(document), encoding="utf-8")
    text = script.page(tmp_path)
    assert "Δ_MTL ≥ −1 % (here -1.50 %): **missed**" in text
    assert "under four minutes: **missed**" in text
    assert "parameters off: **met**" in text
