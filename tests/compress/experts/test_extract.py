"""Extraction: exact is exact, budgets are met where they can be, other tasks' parts go, and a killed run resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_models import SIZE, TASKS, m3vit, workload
from torch import nn

from secateur.compress.compressed import Compressed, load_model
from secateur.compress.experts import Settings, extract, removal
from secateur.compress.experts.usage import Table
from secateur.core.budget import Budget, Tolerance
from secateur.core.errors import BudgetError, DataError, ModelError

QUICK = Settings(epochs=2, rounds=2)
BUDGET = Budget.parse("params<=59%")


@pytest.fixture(scope="module")
def exact() -> Compressed:
    return extract(workload(), ["depth"])


@pytest.fixture(scope="module")
def small() -> Compressed:
    return extract(workload(), ["depth"], BUDGET, Tolerance.parse("50%"), QUICK)


def test_exact_equals_the_whole_model_bit_for_bit_on_calibration_data(exact: Compressed) -> None:
    kept = exact.history["experts"]["points"][0]["kept"]
    assert all(2 <= len(numbers) < 6 for numbers in kept.values())  # something was cut
    whole = workload()
    with torch.no_grad():
        for inputs, _ in whole.calibration:
            assert torch.equal(exact.model(inputs, "depth"), whole.model(inputs, "depth"))
    assert exact.history["experts"]["exact"] == {"max_abs": 0.0, "samples": 12, "identical": 1.0}


def test_other_tasks_routers_and_heads_are_gone(exact: Compressed) -> None:
    names = set(exact.model.state_dict())
    assert not any(f".{task}." in name for name in names for task in TASKS if task != "depth")
    assert any("heads.depth" in name for name in names)


def test_the_table_counts_every_choice_of_every_token(exact: Compressed) -> None:
    table = Table.from_json(exact.history["experts"]["usage"])
    for task in TASKS:
        for usage in table.tasks[task].values():
            assert usage.total == 12 * 17  # samples, tokens
            assert sum(usage.tokens) == 2 * usage.total
            assert all((count > 0) == (gate > 0) == (norm > 0) for count, gate, norm in
                       zip(usage.tokens, usage.gate, usage.contribution, strict=True))  # fmt: skip
    assert Table.from_json(json.loads(json.dumps(table.as_json()))) == table


def test_overlap_is_the_jaccard_index(exact: Compressed) -> None:
    usage, overlap = exact.history["experts"]["usage"], exact.history["experts"]["overlap"]
    used = {task: {n for n, c in enumerate(usage[task]["blocks.1.mlp"]["tokens"]) if c} for task in TASKS}
    expected = len(used["depth"] & used["edges"]) / len(used["depth"] | used["edges"])
    assert overlap["blocks.1.mlp"]["depth"]["edges"] == expected < 1
    assert overlap["blocks.1.mlp"]["depth"]["depth"] == 1


def test_several_tasks_keep_what_any_of_them_uses() -> None:
    both = extract(workload(), ["depth", "edges"])  # the set, and not twice what one task needs
    table = Table.from_json(both.history["experts"]["usage"])
    for path, kept in both.history["experts"]["points"][0]["kept"].items():
        assert kept == sorted({*table.tasks["depth"][path].used, *table.tasks["edges"][path].used})


def test_a_budget_removes_experts_in_points_to_select_from(small: Compressed) -> None:
    assert small.budget_met, small.misses
    assert len(small.points) == 3
    params = [point.costs.params for point in small.points]
    assert params == sorted(params, reverse=True)
    assert params[-1] <= 0.59 * small.costs_before.params
    removed = [line for line in small.history["decisions"] if line["round"] and line["pruned"]]
    assert removed
    assert all(trial["loss_ratio"]["depth"] <= 1 + line["tau"] for line in removed for trial in line["curve"])


def test_the_least_worth_is_asked_first_and_k_experts_always_stay(small: Compressed) -> None:
    asked = [line for line in small.history["decisions"] if line["round"] == 1 and line["pass"] == 0]
    assert [line["worth"] for line in asked] == sorted(line["worth"] for line in asked)
    nothing = extract(workload(), ["depth"], Budget.parse("params<=1%"), Tolerance.parse("50%"), Settings(epochs=0))
    assert not nothing.budget_met
    assert all(len(kept) == 2 for kept in nothing.history["experts"]["points"][-1]["kept"].values())


def test_a_smaller_k_costs_less_and_is_lowered_only_when_asked(exact: Compressed) -> None:
    one = extract(workload(), ["depth"], settings=Settings(top_k=1))
    assert one.history["experts"]["points"][0]["top_k"] == {"blocks.1.mlp": 1, "blocks.3.mlp": 1}
    assert one.costs.flops < exact.costs.flops
    with pytest.raises(BudgetError, match="top-k 3 is not between 1 and the 2"):
        extract(workload(), ["depth"], settings=Settings(top_k=3))


def test_a_bundle_is_rebuilt_from_the_full_class(small: Compressed, tmp_path: Path) -> None:
    bundle = small.save(tmp_path / "bundle")
    x = torch.rand(2, 3, SIZE, SIZE)
    for number, point in enumerate(small.points):
        assert torch.equal(load_model(bundle, m3vit, number)(x, "depth"), point.model(x, "depth"))


def test_miss_rate_counts_tokens_that_want_what_is_gone(small: Compressed) -> None:
    rates = [record["miss_rate"]["depth"] for record in small.history["experts"]["points"]]
    for path in rates[0]:
        assert 0 <= rates[0][path] <= rates[-1][path] <= 1
    assert max(rates[-1].values()) > 0


class _StopError(Exception):
    pass


@pytest.mark.parametrize("last", [1, 2])
def test_a_killed_run_resumes_and_ends_the_same(
    last: int, small: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = removal.Removal._decide, []

    def stopping(self: Any, *args: Any) -> None:
        calls.append(args)
        if len(calls) == last:
            raise _StopError
        real(self, *args)

    monkeypatch.setattr(removal.Removal, "_decide", stopping)
    run = {"budget": BUDGET, "tolerance": Tolerance.parse("50%"), "settings": QUICK, "state": tmp_path / "state"}
    with pytest.raises(_StopError):
        extract(workload(), ["depth"], **run)  # type: ignore[arg-type]
    monkeypatch.undo()
    again = extract(workload(), ["depth"], **run, resume=True)  # type: ignore[arg-type]
    assert again.metrics == small.metrics
    assert again.history["decisions"] == small.history["decisions"]
    assert again.oracle == small.oracle, "what was spent before the kill counts once"
    assert all(torch.equal(a, b) for a, b in
               zip(again.model.state_dict().values(), small.model.state_dict().values(), strict=True))  # fmt: skip


def test_wrong_input_is_one_clear_line() -> None:
    given = workload()
    with pytest.raises(BudgetError, match='no task "deph"') as error:
        extract(given, ["deph"])
    assert "depth, edges, parts" in error.value.hint
    with pytest.raises(ModelError, match="no expert layers found; looked for M³ViT"):
        extract(given.with_model(nn.Conv2d(3, 1, 1)), ["depth"])
    with pytest.raises(BudgetError, match="latency"):
        extract(given, ["depth"], Budget.parse("latency<=1ms"))
    bad = m3vit()
    with torch.no_grad():
        bad.blocks[1].mlp.router.gates["depth"].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r'"blocks.1.mlp.router.gates.depth.weight" holds NaN'):
        extract(given.with_model(bad), ["depth"])
    wrong = [(x, {"depth": y["depth"]}) for x, y in given.calibration]
    with pytest.raises(DataError, match='the calibration loader\'s targets have no "edges"'):
        extract(replace(given, calibration=wrong), ["depth"])
    short = m3vit()
    short.blocks[1].mlp.router.gates["depth"].weight = nn.Parameter(torch.zeros(5, 16))
    with pytest.raises(ModelError, match=r"the router of blocks.1.mlp scores 5 experts, the layer has 6"):
        extract(given.with_model(short), ["depth"])
