"""A table survives its file, and a damaged one is refused with one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elastic_case import combinations, random_table

from secateur.core.elastic.files import load_table
from secateur.core.elastic.table import Figures, Table
from secateur.core.errors import BundleError


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = random_table()
    (tmp_path / "t.json").write_text(json.dumps(table.as_json()))
    back = load_table(tmp_path / "t.json")
    assert back.stages == table.stages
    assert back.tasks == table.tasks
    assert np.array_equal(back.rows, table.rows)
    for task in table.tasks:
        np.testing.assert_allclose(back.metrics[task], table.metrics[task], rtol=1e-6)
    np.testing.assert_allclose(back.latency["cpu"].figures.shared, table.latency["cpu"].figures.shared, rtol=1e-6)
    assert back.original == table.original
    assert (back.exported, back.configurations) == (table.exported, 81)


def test_a_budget_of_just_what_a_configuration_costs_holds_it_after_the_file(tmp_path: Path) -> None:
    """Counts of nine digits stay whole numbers: 218,333,184 is not 218,333,200."""
    table = random_table()
    whole = Figures(
        table.costs["flops"].shared.round() * 100 + 1,
        {task: each.round() * 100 + 3 for task, each in table.costs["flops"].decoders.items()},
    )
    table = replace(table, costs={**table.costs, "flops": whole})
    (tmp_path / "t.json").write_text(json.dumps(table.as_json()))
    back = load_table(tmp_path / "t.json")
    for row, chosen in combinations(table):
        assert back.costs["flops"].of(row, chosen) == whole.of(row, chosen)


def test_a_configuration_has_the_rows_widths_and_the_decoders() -> None:
    table = random_table()
    seen = {table.configuration(row, chosen) for row, chosen in combinations(table)}
    assert len(seen) == table.configurations
    assert table.configuration(5, {"depth": 2}) == (1, 2, 2, 0)  # row 5 of 3x3; edges does not run
    assert table.widths((1, 2, 2, 0)) == {"encoder1": 0.5, "encoder2": 1.0, "depth": 1.0, "edges": 0.25}


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("rows"),
        lambda d: d["rows"].append([0]),
        lambda d: d["rows"][0].__setitem__(0, 7),
        lambda d: d["metrics"]["depth"].pop(),
        lambda d: d["costs"]["flops"]["decoders"].pop("edges"),
        lambda d: d["costs"]["flops"].__setitem__("shared", "many"),
        lambda d: d["decoders"].__setitem__("depth", [[9]] * 3),
        lambda d: d.__setitem__("stages", None),
        lambda d: d["original"].pop("flops"),
        lambda d: d.__setitem__("schema", 99),
        lambda d: d["latency"]["cpu"].pop("figures"),
    ],
)
def test_a_damaged_table_is_refused(damage) -> None:
    document = json.loads(json.dumps(random_table().as_json()))
    damage(document)
    with pytest.raises(BundleError):
        Table.from_json(document)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    for text in ("", "[", "[]", "null", '{"schema": "x"}'):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(BundleError):
            load_table(tmp_path / "t.json")
    with pytest.raises(BundleError):
        load_table(tmp_path / "missing.json")
